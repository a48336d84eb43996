/* SPDX-License-Identifier: BSD-3-Clause */
/* The qcow2 driver: open, close, flush, and its table.
 *
 * I10: an image is checked before it is used (qcow2-header.c), its tables as
 * their entries are used (qcow2-l2.c, qcow2-meta.c); no bytes of an image fail
 * an assertion, and memory is bounded by the limits in qcow2.h.
 *
 * Open and close: the thread that owns the node; the rest: any thread.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blk-null.h"
#include "blk-window.h"
#include "cleanup.h"
#include "log.h"
#include "qcow2-check.h"
#include "qcow2.h"
#include "range.h"

/* Buckets of the table of slices. */
#define MAX_BUCKETS (1u << 16)
#define MAX_DAMAGE_LOGGED 10

int
qcow2_damaged (struct qcow2 *q, const char *fmt, ...)
{
  unsigned n = atomic_fetch_add (&q->nr_damaged, 1);
  char msg[200];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (msg, sizeof msg, fmt, ap);
  va_end (ap);
  if (n < MAX_DAMAGE_LOGGED)
    log_error ("%s: damaged: %s%s", q->blk.name, msg,
               n + 1 < MAX_DAMAGE_LOGGED ? ""
               : " (more is not logged; tidemark check lists it)");
  return -EIO;
}

static int
qcow2_flush (struct blk *blk)
{
  if (blk_is_read_only (blk))
    return 0;
  blk_event (qcow2_of (blk)->file, BLK_EVENT_FLUSH_TO_OS);
  blk_event (qcow2_of (blk)->file, BLK_EVENT_FLUSH_TO_DISK);
  return qcow2_commit (qcow2_of (blk), true);
}

/* Cut off what was added to the file in advance. */
static int
trim_file_end (struct qcow2 *q)
{
  if (!q->is_growable || blk_size (q->file) <= q->file_end)
    return 0;
  return blk_resize (q->file, q->file_end);
}

static int
qcow2_close (struct blk *blk)
{
  struct qcow2 *q = qcow2_of (blk);
  int error = 0, r;

  if (!blk_is_read_only (blk)) {
    error = qcow2_commit_last (q);
    r = trim_file_end (q);
    error = error ? error : r;
  }
  r = qcow2_destroy (q);
  return error ? error : r;
}

const struct blk_driver qcow2_driver = {
  .name = "qcow2",
  .close = qcow2_close,
  .pread = qcow2_pread,
  .pwrite = qcow2_pwrite,
  .zero = qcow2_zero,
  .trim = qcow2_trim,
  .flush = qcow2_flush,
  .extents = qcow2_extents,
  .cache = qcow2_cache,
  .resize = qcow2_resize,
};

static void
set_geometry (struct qcow2 *q)
{
  const struct qcow2_header *h = &q->header;

  q->cluster_bits = h->cluster_bits;
  q->cluster_size = 1u << h->cluster_bits;
  q->sub_bits = h->cluster_bits;
  q->l2_entry_bits = 3;
  if (h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2) {
    q->sub_bits -= QCOW2_EXTENDED_BITS;
    q->l2_entry_bits++;
  }
  q->l2_bits = h->cluster_bits - q->l2_entry_bits;
  q->refblock_bits = h->cluster_bits + 3 - h->refcount_order;
  q->blk.cluster_size = q->cluster_size;
  q->blk.block_size = q->file->block_size;
}

/* The empty cache. */
static int
make_cache (struct qcow2 *q, const struct qcow2_cache_sizes *sizes,
            bool is_read_only, struct error *err)
{
  size_t nr;

  if (qcow2_cache_check (sizes, err) < 0
      || qcow2_cache_slice (sizes, &q->header, &q->slice_bits, err) < 0
      || qcow2_cache_set (sizes, &q->header, q->slice_bits, is_read_only,
                          &q->limits, err) < 0)
    return -EINVAL;
  nr = q->limits.max_slices[QCOW2_L2];
  if (!is_read_only)
    nr += q->limits.max_slices[QCOW2_REFCOUNT];
  q->nr_buckets = 1;
  while (q->nr_buckets < nr && q->nr_buckets < MAX_BUCKETS)
    q->nr_buckets *= 2;
  q->hash = calloc (q->nr_buckets, sizeof *q->hash);
  if (!q->hash) {
    q->nr_buckets = 0;
    return error_set_errno (err, ENOMEM, "%s", q->blk.name);
  }
  return 0;
}

int
qcow2_new (struct blk *file, const struct qcow2_header *h, bool is_read_only,
           const struct qcow2_cache_sizes *cache, struct qcow2 **ret,
           struct error *err)
{
  unsigned can = BLK_CAN_CACHE | BLK_CAN_EXTENTS | BLK_CAN_MULTI_CONN;
  struct qcow2 *q = calloc (1, sizeof *q);
  int error;

  if (is_read_only)
    can |= BLK_IS_READ_ONLY;
  else
    can |= BLK_CAN_TRIM | BLK_CAN_ZERO | BLK_CAN_FAST_ZERO;
  if (!is_read_only && !(h->incompatible & (QCOW2_INCOMPAT_EXTENDED_L2
                                            | QCOW2_INCOMPAT_DATA_FILE)))
    can |= BLK_CAN_COMPRESS;
  if (!q || blk_init (&q->blk, &qcow2_driver, file->name, file->filename,
                      h->size, can) < 0) {
    error_set_errno (err, ENOMEM, "%s", file->name);
    free (q);
    blk_close (file);
    return -ENOMEM;
  }
  q->file = q->data = file;
  q->header = *h;
  set_geometry (q);
  lock_init (&q->lock, LOCK_RANK_FORMAT);
  cond_init (&q->changed);
  reqlist_init (&q->claims);
  error = make_cache (q, cache, is_read_only, err);
  if (error < 0) {
    qcow2_destroy (q);
    return error;
  }
  *ret = q;
  return 0;
}

int
qcow2_destroy (struct qcow2 *q)
{
  int error, r;

  qcow2_meta_free_all (q);
  free (q->l1.entries);
  free (q->reftable.entries);
  qcow2_reservations_reset (&q->reservations);
  qcow2_frees_reset (&q->frees);
  qcow2_ranges_reset (&q->protected);
  qcow2_ranges_reset (&q->bitmaps);
  free (q->tables.slots);
  reqlist_destroy (&q->claims);
  pthread_cond_destroy (&q->changed);
  lock_destroy (&q->lock);
  error = qcow2_is_external (q) ? blk_close (q->data) : 0;
  r = blk_close (q->file);
  error = error ? error : r;
  r = blk_close (q->blk.backing);
  blk_fini (&q->blk);
  free (q);
  return error ? error : r;
}

/* --- open */

/* Features that only forbid writing. */
static int
check_writable (const struct qcow2 *q, struct error *err)
{
  const struct qcow2_header *h = &q->header;

  if (blk_is_read_only (q->file))
    return error_set (err, EPERM, "%s is read-only", q->blk.name);
  if (h->incompatible & QCOW2_INCOMPAT_CORRUPT)
    return error_set (err, EROFS, "%s: the image is marked corrupt and can"
                      " only be read (qemu-img check -r all mends it)",
                      q->blk.name);
  return 0;
}

/* An image that is marked dirty was not closed, and its refcounts were lazy:
 * count all references again, as QEMU does, before it is written to.
 */
static int
mend_dirty (struct qcow2 *q, struct error *err)
{
  struct qcow2_check_options options = { .repair = QCOW2_REPAIR_ALL };
  struct blk_window_options lend = { .size = UINT64_MAX, .is_borrowed = true };
  struct qcow2_check_result result;
  struct blk *window;
  int error;

  error = blk_window_open (q->file, &lend, &window, err);
  if (error == 0)
    error = blk_qcow2_check (window, &options, &result, err);
  if (error < 0) {
    error_prefix (err, "the image is marked dirty");
    return error;
  }
  if (result.corruptions > 0)
    return error_set (err, EROFS, "%s: the image is marked dirty, can not be"
                      " mended (%" PRIu64 " errors are left) and can only be"
                      " read", q->blk.name, result.corruptions);
  return qcow2_header_read (q->file, &q->header, err);
}

static bool
must_be_mended (const struct qcow2 *q)
{
  return !blk_is_read_only (&q->blk) && !blk_is_read_only (q->file)
    && (q->header.incompatible & (QCOW2_INCOMPAT_DIRTY
                                  | QCOW2_INCOMPAT_CORRUPT))
    == QCOW2_INCOMPAT_DIRTY;
}

/* What was written after the last flush and is in no table goes. */
static int
begin_appending (struct qcow2 *q, struct error *err)
{
  int error;

  lock_acquire (&q->lock);
  error = qcow2_shrink_file (q);
  lock_release (&q->lock);
  if (error == 0 && q->is_growable && blk_size (q->file) > q->file_end)
    error = blk_resize (q->file, q->file_end);
  if (error < 0)
    return error_set_errno (err, -error, "%s: going on where it was left",
                            q->blk.name);
  q->next_host = round_up (q->file_end, q->cluster_size);
  if (q->is_growable)
    q->fresh_from = q->next_host;
  q->is_appending = true;
  return 0;
}

static int
load_for_writing (struct qcow2 *q, bool is_append, struct error *err)
{
  const struct qcow2_header *h = &q->header;
  uint64_t size = blk_size (q->file);
  int error;

  error = check_writable (q, err);
  blk_event (q->file, BLK_EVENT_REFTABLE_LOAD);
  if (error == 0)
    error = qcow2_table_load (q, "refcount table", h->reftable_offset,
                              ((uint64_t) h->reftable_clusters
                               << q->cluster_bits) / 8, &q->reftable, err);
  if (error < 0)
    return error;
  /* Whoever goes on with an image needs to know what is in use. */
  q->is_lazy = !is_append && (h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS);
  q->is_growable = blk_resize (q->file, size) == 0;
  q->file_end = size;
  q->fresh_from = q->is_growable ? round_up (size, q->cluster_size)
    : UINT64_MAX;
  error = qcow2_check_refcounts (q, err);
  if (error == 0)
    error = qcow2_overlap_load (q, err);
  if (error == 0 && is_append)
    error = begin_appending (q, err);
  return error;
}

/* The backing file is left out, but the image may be read with it again: what
 * is zeroed must say so, and what is not there reads as zeroes meanwhile.
 */
static int
open_nothing (struct qcow2 *q, struct error *err)
{
  q->has_backing = true;
  q->backing_size = RANGE_MAX_SIZE;
  return blk_null_open ("backing", RANGE_MAX_SIZE,
                        BLK_NULL_READ_ONLY | BLK_NULL_OPAQUE,
                        &q->blk.backing, err);
}

/* The files that the header names. */
static int
open_others (struct qcow2 *q, const struct qcow2_open_options *options,
             const struct qcow2_chain *above, struct error *err)
{
  const char *filename = options->filename ? options->filename
    : q->blk.filename;
  struct qcow2_chain link = { .above = NULL, .depth = 0 };
  int error;

  if (!above) {
    qcow2_identify (filename, &link);
    above = &link;
  }
  error = qcow2_open_data (q, filename, options, above, err);
  if (error < 0)
    return error;
  if (options->backing) {
    q->has_backing = true;
    q->backing_size = blk_size (options->backing);
    return 0;
  }
  if (!q->header.backing_file[0])
    return 0;
  if (options->ignore_backing)
    return options->is_read_only ? 0 : open_nothing (q, err);
  if (!options->allow_backing)
    return error_set (err, EPERM, "%s: the image has a backing file"
                      " (\"%.100s\") and following it was not allowed"
                      " (backing=allow; \"allow-backing\" of a node)",
                      q->blk.name, q->header.backing_file);
  error = qcow2_open_backing (q, filename, options, above, err);
  if (error == 0) {
    q->has_backing = true;
    q->backing_size = blk_size (q->blk.backing);
  }
  return error;
}

static void
set_nowait (struct qcow2 *q)
{
  if ((q->data->can & BLK_CAN_NOWAIT)
      && (!q->blk.backing || (q->blk.backing->can & BLK_CAN_NOWAIT)))
    q->blk.can |= BLK_CAN_NOWAIT;
}

int
qcow2_open_layer (struct blk *file, const struct qcow2_open_options *options,
                  const struct qcow2_chain *above, struct blk **ret,
                  struct error *err)
{
  struct qcow2_header h;
  struct qcow2 *q;
  uint64_t nr;
  int error;

  blk_event (file, BLK_EVENT_OPEN);
  error = qcow2_header_read (file, &h, err);
  if (error == 0)
    error = qcow2_new (file, &h, options->is_read_only, &options->cache, &q,
                       err);
  else
    blk_close (file);
  if (error < 0) {
    blk_close (options->backing);
    blk_close (options->data);
    return error;
  }
  q->is_valid = true;
  q->blk.backing = options->backing;
  nr = div_round_up (h.size, qcow2_l1_span (&h));
  error = open_others (q, options, above, err);
  /* An image that is refused for them is left as it is. */
  if (error == 0 && must_be_mended (q))
    error = mend_dirty (q, err);
  if (error == 0)
    error = qcow2_table_load (q, "L1 table", nr ? h.l1_offset : 0, nr, &q->l1,
                              err);
  if (error == 0 && !options->is_read_only)
    error = load_for_writing (q, options->is_append, err);
  q->compression_level = options->compression_level;
  if (error < 0) {
    qcow2_destroy (q);
    return error;
  }
  set_nowait (q);
  *ret = &q->blk;
  return 0;
}

int
blk_qcow2_open (struct blk *file, const struct qcow2_open_options *options,
                struct blk **ret, struct error *err)
{
  return qcow2_open_layer (file, options, NULL, ret, err);
}

void
blk_qcow2_info (struct blk *blk, struct qcow2_info *ret)
{
  struct qcow2 *q = qcow2_of (blk);
  const struct qcow2_header *h = &q->header;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&q->lock);
  *ret = (struct qcow2_info) {
    .version = h->version, .size = h->size,
    .cluster_size = 1u << h->cluster_bits,
    .refcount_bits = 1u << h->refcount_order,
    .compression = h->compression,
    .is_extended = h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2,
    .has_lazy_refcounts = h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS,
    .is_dirty = h->incompatible & QCOW2_INCOMPAT_DIRTY,
    .is_corrupt = h->incompatible & QCOW2_INCOMPAT_CORRUPT,
  };
  if (h->incompatible & QCOW2_INCOMPAT_DATA_FILE) {
    strcpy (ret->data_file, h->data_file);
    ret->is_data_file_raw = h->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW;
  }
  strcpy (ret->backing_file, h->backing_file);
  strcpy (ret->backing_format, h->backing_format);
}
