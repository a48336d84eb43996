/* SPDX-License-Identifier: BSD-3-Clause */
/* New images.
 *
 * Layout: header, refcount table (large enough for the whole disk), L1, then
 * data, L2 tables and refcount blocks in the order in which they are needed.
 * The header is written by the first flush (qcow2-commit.c).
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

static int
check_options (const struct qcow2_create_options *o, const char *name,
               struct error *err)
{
  uint32_t size = o->cluster_size;

  if (size && (!is_power_of_2 (size)
               || size < 1u << QCOW2_MIN_CLUSTER_BITS
               || size > 1u << QCOW2_MAX_CLUSTER_BITS))
    return error_set (err, EINVAL, "%s: cluster size %u is not a power of two"
                      " from 512 to 2 MiB", name, size);
  if (o->size % 512 != 0)
    return error_set (err, EINVAL, "%s: virtual size %" PRIu64 " is not a"
                      " multiple of 512", name, o->size);
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

/* Where the tables lie, and how large they are. */
static int
compose_layout (const struct qcow2_create_options *o, const char *name,
                struct qcow2_header *h, struct error *err)
{
  uint32_t cluster_size = o->cluster_size ? o->cluster_size
    : QCOW2_DEFAULT_CLUSTER_SIZE;
  unsigned bits = log2_exact (cluster_size);
  uint64_t l1, clusters, reftable;

  if (o->size > RANGE_MAX_SIZE
      || (l1 = div_round_up (o->size, UINT64_C (1) << (2 * bits - 3)))
      > QCOW2_MAX_L1_BYTES / 8)
    return error_set (err, EFBIG, "%s: a disk of %" PRIu64 " bytes is too"
                      " large for clusters of %u bytes", name, o->size,
                      cluster_size);
  *h = (struct qcow2_header) {
    .version = 3, .cluster_bits = bits, .size = o->size,
    .refcount_order = 4, .header_length = QCOW2_V3_HEADER_SIZE,
  };
  if (o->backing_file) {
    strcpy (h->backing_file, o->backing_file);
    strcpy (h->backing_format, o->backing_format);
  }
  h->l1_size = (uint32_t) MAX (l1, 1);
  /* All data, and 1/16 for tables: more than any cluster size needs. */
  clusters = (o->size >> bits) + (o->size >> (bits + 4)) + 64;
  reftable = div_round_up (clusters, cluster_size / 2) * 8;
  reftable = MIN (round_up (reftable, cluster_size),
                  MAX (QCOW2_MAX_REFTABLE_BYTES, cluster_size));
  h->reftable_offset = cluster_size;
  h->reftable_clusters = (uint32_t) (reftable >> bits);
  h->l1_offset = cluster_size + reftable;
  return 0;
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
    return error_set (err, ENAMETOOLONG, "%s: the backing file's name does not"
                      " fit into a cluster of %zu bytes", name, size);
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

int
blk_qcow2_create (struct blk *file, const struct qcow2_create_options *options,
                  struct blk **ret, struct error *err)
{
  struct qcow2_header h;
  struct qcow2 *q;
  int error;

  error = check_options (options, file->name, err);
  if (error == 0)
    error = compose_layout (options, file->name, &h, err);
  if (error == 0)
    error = check_header (&h, file->name, err);
  if (error == 0)
    error = qcow2_new (file, &h, false, &q, err);
  else
    blk_close (file);
  if (error < 0) {
    blk_close (options->backing);
    return error;
  }
  q->is_new = true;
  q->is_writing_begun = true;
  q->blk.backing = options->backing;
  q->has_backing = options->backing_file || options->backing;
  q->backing_size = options->backing ? blk_size (options->backing)
    : UINT64_MAX;
  error = make_tables (q, err);
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

  if (blk->driver != &qcow2_driver || !q->is_new)
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
