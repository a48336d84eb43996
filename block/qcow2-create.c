/* SPDX-License-Identifier: BSD-3-Clause */
/* New images.
 *
 * Layout: header, refcount table (large enough for the whole disk), L1, then
 * data, L2 tables and refcount blocks in the order in which they are needed.
 * The header is written by the first flush (qcow2-commit.c).  Preallocation
 * (qcow2-prealloc.c) comes before the caller has the node.
 *
 * Called by the thread that creates the image; qcow2_reserve by any thread.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "qcow2.h"

static bool
has_backing (const struct qcow2_create_options *o)
{
  return o->backing_file || o->backing;
}

static int
check_backing (const struct qcow2_create_options *o, const char *name,
               struct error *err)
{
  if (!o->backing_file)
    return 0;
  if (!*o->backing_file
      || strlen (o->backing_file) > QCOW2_MAX_BACKING_NAME)
    return error_set (err, EINVAL, "%s: the backing file's name must have 1 to"
                      " %d bytes", name, QCOW2_MAX_BACKING_NAME);
  if (!o->backing_format || (strcmp (o->backing_format, "qcow2") != 0
                             && strcmp (o->backing_format, "raw") != 0))
    return error_set (err, EINVAL, "%s: backing format \"%s\" is not qcow2 or"
                      " raw", name,
                      o->backing_format ? o->backing_format : "");
  return 0;
}

static int
check_data_file (const struct qcow2_create_options *o, const char *name,
                 struct error *err)
{
  if (!o->data_file != !o->data)
    return error_set (err, EINVAL, "%s: a data file needs both a name and a"
                      " node", name);
  if (o->is_data_file_raw && !o->data_file)
    return error_set (err, EINVAL, "%s: data_file_raw needs a data file", name);
  if (o->is_data_file_raw && has_backing (o))
    return error_set (err, EINVAL, "%s: data_file_raw and a backing file"
                      " cannot be used together", name);
  if (o->data_file && (!*o->data_file || strlen (o->data_file)
                       > QCOW2_MAX_DATA_FILE_NAME))
    return error_set (err, EINVAL, "%s: the data file's name must have 1 to %d"
                      " bytes", name, QCOW2_MAX_DATA_FILE_NAME);
  return 0;
}

/* What only version 3 has. */
static int
check_version (const struct qcow2_create_options *o, const char *name,
               struct error *err)
{
  const char *what = NULL;

  if (o->version != 0 && o->version != 2 && o->version != 3)
    return error_set (err, EINVAL, "%s: qcow2 version %u is not 2 or 3", name,
                      o->version);
  if (o->refcount_bits > 64
      || (o->refcount_bits && !is_power_of_2 (o->refcount_bits)))
    return error_set (err, EINVAL, "%s: refcount width %u is not a power of"
                      " two from 1 to 64", name, o->refcount_bits);
  if (o->version != 2)
    return 0;
  if (o->refcount_bits && o->refcount_bits != 16)
    what = "a refcount width other than 16";
  else if (o->compression != QCOW2_COMPRESSION_ZLIB)
    what = "a compression type other than zlib";
  else if (o->has_lazy_refcounts)
    what = "lazy refcounts";
  else if (o->is_extended)
    what = "extended L2 entries";
  else if (o->data_file)
    what = "a data file";
  if (what)
    return error_set (err, EINVAL, "%s: version 2 does not have %s", name,
                      what);
  return 0;
}

static int
check_options (const struct qcow2_create_options *o, const char *name,
               struct error *err)
{
  uint32_t size = o->cluster_size;
  int error;

  if (size && (!is_power_of_2 (size)
               || size < 1u << QCOW2_MIN_CLUSTER_BITS
               || size > 1u << QCOW2_MAX_CLUSTER_BITS))
    return error_set (err, EINVAL, "%s: cluster size %u is not a power of two"
                      " from 512 to 2 MiB", name, size);
  if (o->is_extended && size
      && size < 1u << QCOW2_MIN_EXTENDED_CLUSTER_BITS)
    return error_set (err, EINVAL, "%s: extended L2 entries need clusters of at"
                      " least %u bytes, not %u", name,
                      1u << QCOW2_MIN_EXTENDED_CLUSTER_BITS, size);
  if (o->size % 512 != 0)
    return error_set (err, EINVAL, "%s: virtual size %" PRIu64 " is not a"
                      " multiple of 512", name, o->size);
  if ((unsigned) o->compression > QCOW2_COMPRESSION_ZSTD)
    return error_set (err, EINVAL, "%s: unknown compression type %u", name,
                      (unsigned) o->compression);
  if (o->preallocation != QCOW2_PREALLOCATION_OFF && has_backing (o)
      && !o->is_extended)
    return error_set (err, EINVAL, "%s: preallocation would hide the backing"
                      " file; with extended L2 entries it does not", name);
  error = check_backing (o, name, err);
  if (error == 0)
    error = check_data_file (o, name, err);
  return error < 0 ? error : check_version (o, name, err);
}

/* The features of the header. */
static void
compose_features (const struct qcow2_create_options *o, struct qcow2_header *h)
{
  if (h->version < 3)
    return;
  if (o->compression != QCOW2_COMPRESSION_ZLIB) {
    h->compression = o->compression;
    h->incompatible |= QCOW2_INCOMPAT_COMPRESSION;
    h->header_length += 8;
  }
  if (o->is_extended)
    h->incompatible |= QCOW2_INCOMPAT_EXTENDED_L2;
  if (o->has_lazy_refcounts)
    h->compatible |= QCOW2_COMPAT_LAZY_REFCOUNTS;
  if (!o->data_file)
    return;
  h->incompatible |= QCOW2_INCOMPAT_DATA_FILE;
  strcpy (h->data_file, o->data_file);
  if (o->is_data_file_raw)
    h->autoclear |= QCOW2_AUTOCLEAR_DATA_FILE_RAW;
}

/* Where the tables lie, and how large they are. */
static int
compose_layout (const struct qcow2_create_options *o, const char *name,
                struct qcow2_header *h, struct error *err)
{
  unsigned bits = h->cluster_bits;
  uint64_t size = UINT64_C (1) << bits, l1, clusters, reftable;

  if (o->size > RANGE_MAX_SIZE
      || (l1 = div_round_up (o->size, qcow2_l1_span (h)))
      > QCOW2_MAX_L1_BYTES / 8)
    return error_set (err, EFBIG, "%s: a disk of %" PRIu64 " bytes is too"
                      " large for clusters of %" PRIu64 " bytes", name, o->size,
                      size);
  h->l1_size = (uint32_t) MAX (l1, 1);
  /* All data, and 1/16 for tables: more than any cluster size needs. */
  clusters = (o->size >> bits) + (o->size >> (bits + 4)) + 64;
  reftable = div_round_up (clusters, (size * 8) >> h->refcount_order) * 8;
  reftable = MIN (round_up (reftable, size),
                  MAX (QCOW2_MAX_REFTABLE_BYTES, size));
  h->reftable_offset = size;
  h->reftable_clusters = (uint32_t) (reftable >> bits);
  h->l1_offset = size + reftable;
  return 0;
}

static int
compose_header (const struct qcow2_create_options *o, const char *name,
                struct qcow2_header *h, struct error *err)
{
  *h = (struct qcow2_header) {
    .version = o->version ? o->version : 3, .size = o->size,
    .cluster_bits = log2_exact (o->cluster_size ? o->cluster_size
                                : QCOW2_DEFAULT_CLUSTER_SIZE),
    .refcount_order = log2_exact (o->refcount_bits ? o->refcount_bits : 16),
  };
  h->header_length = h->version < 3 ? QCOW2_V2_HEADER_SIZE
    : QCOW2_V3_HEADER_SIZE;
  if (o->backing_file) {
    strcpy (h->backing_file, o->backing_file);
    strcpy (h->backing_format, o->backing_format);
  }
  compose_features (o, h);
  return compose_layout (o, name, h, err);
}

/* A header that does not fit shows now, not at the first flush. */
static int
check_header (const struct qcow2_header *h, const char *name,
              struct error *err)
{
  size_t size = (size_t) 1 << h->cluster_bits;
  CLEANUP_FREE uint8_t *buf = calloc (1, size);

  if (!buf)
    return error_set_errno (err, ENOMEM, "%s", name);
  if (qcow2_header_compose (h, buf, size) < 0)
    return error_set (err, ENAMETOOLONG, "%s: the names of the backing file and"
                      " the data file do not fit into a cluster of %zu bytes",
                      name, size);
  return 0;
}

static int
table_alloc (struct qcow2_table *t, uint64_t len)
{
  t->entries = calloc (MAX (len, 1), 8);
  t->len = len;
  return t->entries ? 0 : -ENOMEM;
}

/* Space for the fixed tables, with refcounts. */
static int
make_tables (struct qcow2 *q, struct error *err)
{
  const struct qcow2_header *h = &q->header;
  uint64_t l1_bytes = round_up ((uint64_t) h->l1_size * 8, q->cluster_size);
  uint64_t end = h->l1_offset + l1_bytes;
  int error;

  if (table_alloc (&q->l1, h->l1_size) < 0
      || table_alloc (&q->reftable, ((uint64_t) h->reftable_clusters
                                     << q->cluster_bits) / 8) < 0)
    return error_set_errno (err, ENOMEM, "%s", q->blk.name);
  error = blk_resize (q->file, end);
  q->is_growable = error == 0;
  if (error == -ENOTSUP) {
    /* A device: what it held before must not show. */
    q->fresh_from = UINT64_MAX;
    error = blk_size (q->file) < end ? -ENOSPC
      : blk_zero (q->file, end, 0, 0);
  }
  if (error == 0) {
    lock_acquire (&q->lock);
    error = qcow2_take_first (q, end);
    lock_release (&q->lock);
  }
  if (error < 0)
    return error_set_errno (err, -error, "%s: creating the image",
                            q->blk.name);
  return 0;
}

/* Everything but the data of the new image. */
static int
fill_new (struct qcow2 *q, const struct qcow2_create_options *o,
          struct error *err)
{
  enum qcow2_preallocation how = o->preallocation;
  int error;

  q->is_new = q->is_appending = true;
  q->compression_level = o->compression_level;
  q->is_writing_begun = true;
  q->blk.backing = o->backing;
  q->has_backing = has_backing (o);
  q->backing_size = o->backing ? blk_size (o->backing) : UINT64_MAX;
  if (o->data)
    q->data = o->data;
  error = make_tables (q, err);
  if (error < 0)
    return error;
  if (qcow2_is_external (q) && blk_size (q->data) != o->size)
    error = blk_resize (q->data, o->size);
  /* What is not in the tables could not be told from what is. */
  if (o->is_data_file_raw)
    how = MAX (how, QCOW2_PREALLOCATION_METADATA);
  if (error == 0 && how != QCOW2_PREALLOCATION_OFF)
    error = qcow2_preallocate (q, how);
  return error < 0 ? error_set_errno (err, -error, "%s: preallocating",
                                      q->blk.name) : 0;
}

int
blk_qcow2_create (struct blk *file, const struct qcow2_create_options *options,
                  struct blk **ret, struct error *err)
{
  const struct qcow2_cache_sizes cache = { .has_total = false };
  struct qcow2_header h;
  struct qcow2 *q;
  int error;

  error = check_options (options, file->name, err);
  if (error == 0)
    error = compose_header (options, file->name, &h, err);
  if (error == 0)
    error = check_header (&h, file->name, err);
  if (error == 0)
    error = qcow2_new (file, &h, false, &cache, &q, err);
  else
    blk_close (file);
  if (error < 0) {
    blk_close (options->backing);
    blk_close (options->data);
    return error;
  }
  error = fill_new (q, options, err);
  if (error < 0) {
    qcow2_destroy (q);
    return error;
  }
  *ret = &q->blk;
  return 0;
}

int
qcow2_reserve (struct blk *blk, uint64_t len, uint64_t off)
{
  struct qcow2 *q = qcow2_of (blk);
  uint64_t size = blk_size (blk);
  int error;

  if (blk->driver != &qcow2_driver || !q->is_appending)
    return -ENOTSUP;
  if (!range_is_within (off, len, size) || (off & (q->cluster_size - 1))
      || ((len & (q->cluster_size - 1)) && off + len != size))
    return -EINVAL;
  if (len == 0)
    return 0;
  lock_acquire (&q->lock);
  error = qcow2_reserve_locked (q, len, off);
  lock_release (&q->lock);
  return error;
}
