/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest clusters to host clusters: L1 and L2 tables looked up and changed.
 *
 * Invariants: an entry with QCOW2_COPIED points to a cluster with refcount one
 * that nothing else uses; an L2 table is changed only if its L1 entry has
 * QCOW2_COPIED; an entry is changed only by the holder of a claim on its
 * guest cluster (qcow2-write.c).
 * I10: every entry is checked before its offset is used.
 *
 * Called from every thread that does I/O, with the lock.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "byteorder.h"
#include "cleanup.h"
#include "qcow2.h"

/* log2 of the entries of a slice. */
static unsigned
entries_bits (const struct qcow2 *q)
{
  return q->slice_bits - 3;
}

bool
qcow2_is_unbacked (const struct qcow2 *q, uint64_t off)
{
  return !q->has_backing || off >= q->backing_size;
}

/* The host cluster that a standard entry names is where data can be. */
static int
check_host (const struct qcow2 *q, uint64_t host)
{
  if ((host & (q->cluster_size - 1)) || host == 0
      || host >= blk_size (q->file)
      || qcow2_is_metadata (q, host, q->cluster_size))
    return -EIO;
  return 0;
}

/* What one entry says; run->len is not set. */
static int
decode (const struct qcow2 *q, uint64_t entry, struct qcow2_run *run)
{
  uint64_t host = entry & QCOW2_OFFSET_MASK, off, len;

  run->is_copied = false;
  run->host = 0;
  if (entry & QCOW2_COMPRESSED) {
    run->type = QCOW2_PACKED;
    run->host = entry;
    qcow2_packed_place (q, entry, &off, &len);
    return (entry & QCOW2_COPIED) || off < q->cluster_size
      || off >= blk_size (q->file) ? -EIO : 0;
  }
  if ((entry & QCOW2_L2_RESERVED)
      || ((entry & QCOW2_ZERO) && q->header.version < 3))
    return -EIO;
  if (host == 0) {
    if (entry & QCOW2_COPIED)
      return -EIO;
    run->type = entry & QCOW2_ZERO ? QCOW2_ZERO_PLAIN : QCOW2_UNALLOCATED;
    return 0;
  }
  run->type = entry & QCOW2_ZERO ? QCOW2_ZERO_ALLOC : QCOW2_DATA;
  run->is_copied = entry & QCOW2_COPIED;
  run->host = host;
  return check_host (q, host);
}

/* Without a table: all of its guest space and that of its neighbours that
 * have none either.
 */
static void
map_tableless (const struct qcow2 *q, uint64_t off, uint64_t len,
               struct qcow2_run *run)
{
  unsigned span_bits = q->cluster_bits + q->l2_bits;
  uint64_t i = off >> span_bits, end = off + len;

  do
    i++;
  while (i < q->l1.len && (i << span_bits) < end && q->l1.entries[i] == 0);
  run->type = QCOW2_UNALLOCATED;
  run->is_copied = false;
  run->host = 0;
  run->len = MIN (end, i << span_bits) - off;
}

/* True if run can be continued by the next cluster. */
static bool
is_continued (const struct qcow2_run *run, const struct qcow2_run *next,
              uint64_t len)
{
  if (run->type != next->type || run->is_copied != next->is_copied)
    return false;
  switch (run->type) {
  case QCOW2_PACKED:
    return false;
  case QCOW2_ZERO_ALLOC:
  case QCOW2_DATA:
    return next->host == run->host + len;
  default:
    return true;
  }
}

static int
map_slice (const struct qcow2 *q, const struct qcow2_slice *s, uint64_t off,
           uint64_t len, struct qcow2_run *run)
{
  uint64_t nr = UINT64_C (1) << entries_bits (q);
  uint64_t i = (off >> q->cluster_bits) & (nr - 1);
  uint64_t in_cluster = off & (q->cluster_size - 1), n;
  struct qcow2_run next;
  int error;

  error = decode (q, load_be64 (s->buf->bytes + i * 8), run);
  if (error < 0)
    return error;
  for (n = q->cluster_size; ++i < nr && n < in_cluster + len;
       n += q->cluster_size)
    /* A damaged entry is reported to who asks for it. */
    if (decode (q, load_be64 (s->buf->bytes + i * 8), &next) < 0
        || !is_continued (run, &next, n))
      break;
  if (run->type == QCOW2_DATA || run->type == QCOW2_ZERO_ALLOC)
    run->host += in_cluster;
  run->len = MIN (len, n - in_cluster);
  return 0;
}

int
qcow2_map (struct qcow2 *q, uint64_t off, uint64_t len, bool is_nowait,
           struct qcow2_run *ret)
{
  uint64_t index = off >> (q->cluster_bits + entries_bits (q));
  struct qcow2_slice *s;
  int error;

  if (is_nowait)
    error = qcow2_meta_get_cached (q, QCOW2_L2, index, &s);
  else
    error = qcow2_meta_get (q, QCOW2_L2, index, &s);
  if (error < 0)
    return error;
  if (!s) {
    map_tableless (q, off, len, ret);
    return 0;
  }
  return map_slice (q, s, off, len, ret);
}

/* Copy a table that others use too into the cluster at host. */
static int
copy_table (struct qcow2 *q, uint64_t from, uint64_t host)
{
  CLEANUP_FREE uint8_t *buf = malloc (q->cluster_size);
  int error;

  if (!buf)
    return -ENOMEM;
  lock_release (&q->lock);
  blk_event (q->file, BLK_EVENT_L2_ALLOC_COW_READ);
  error = qcow2_file_read (q, buf, q->cluster_size, from);
  if (error == 0)
    error = blk_pwrite (q->file, buf, q->cluster_size, host, 0);
  lock_acquire (&q->lock);
  return error;
}

/* Give L1 entry i a table of its own. */
static int
make_table (struct qcow2 *q, uint64_t i)
{
  uint64_t old, host;
  unsigned shift = q->cluster_bits - q->slice_bits;
  int error;

  error = qcow2_meta_place (q, QCOW2_L2, i << shift, &old);
  if (error < 0)
    return error;
  if (qcow2_frees_reserve (&q->frees, 1) < 0)
    return -ENOMEM;
  blk_event (q->file, BLK_EVENT_L2_ALLOC_WRITE);
  error = qcow2_alloc_table (q, &host);
  if (error < 0)
    return error;
  if (old)
    error = copy_table (q, old, host);
  if (error == 0 && qcow2_frees_reserve (&q->frees, 1) < 0)
    error = -ENOMEM;
  if (error < 0) {
    qcow2_unalloc (q, host, 1);
    return error;
  }
  if (old)
    qcow2_free_later (q, old, q->cluster_size);
  q->l1.entries[i] = host | QCOW2_COPIED;
  qcow2_table_mark (&q->l1, i);
  return 0;
}

int
qcow2_l2_prepare (struct qcow2 *q, uint64_t off)
{
  uint64_t i = off >> (q->cluster_bits + q->l2_bits);
  int error = 0;

  lock_assert_held (&q->lock);
  if (q->l1.entries[i] & QCOW2_COPIED)
    return 0;
  while (q->is_making_l2)
    lock_wait (&q->lock, &q->changed);
  if (q->l1.entries[i] & QCOW2_COPIED)
    return 0;
  q->is_making_l2 = true;
  error = make_table (q, i);
  q->is_making_l2 = false;
  pthread_cond_broadcast (&q->changed);
  return error;
}

/* What the entry pointed to is no longer used by it. */
static void
release_old (struct qcow2 *q, uint64_t entry, uint64_t new_entry)
{
  uint64_t host = entry & QCOW2_OFFSET_MASK, off, len, end;

  if (entry & QCOW2_COMPRESSED) {
    qcow2_packed_place (q, entry, &off, &len);
    end = round_up (off + len, q->cluster_size);
    off = round_down (off, q->cluster_size);
    qcow2_free_later (q, off, end - off);
  } else if (host && host != (new_entry & QCOW2_OFFSET_MASK))
    qcow2_free_later (q, host, q->cluster_size);
}

/* Set entries [i, i+nr) of the slice. */
static int
set_in_slice (struct qcow2 *q, struct qcow2_slice *s, uint64_t i, uint64_t nr,
              uint64_t entry)
{
  uint64_t host = entry & QCOW2_OFFSET_MASK, old;
  uint8_t *p;

  if (qcow2_frees_reserve (&q->frees, nr) < 0
      || qcow2_meta_dirty (q, s, (uint32_t) (i * 8),
                           (uint32_t) ((i + nr) * 8)) < 0)
    return -ENOMEM;
  for (p = s->buf->bytes + i * 8; nr > 0; nr--, p += 8) {
    old = load_be64 (p);
    release_old (q, old, entry);
    store_be64 (p, entry);
    if (host)
      entry += q->cluster_size;
  }
  return 0;
}

int
qcow2_l2_set (struct qcow2 *q, uint64_t off, uint64_t nr, uint64_t entry,
              uint64_t *ret_done)
{
  uint64_t per_slice = UINT64_C (1) << entries_bits (q);
  uint64_t cluster = off >> q->cluster_bits, i, n;
  struct qcow2_slice *s;
  int error;

  for (*ret_done = 0; *ret_done < nr; *ret_done += n, cluster += n) {
    i = cluster & (per_slice - 1);
    n = MIN (nr - *ret_done, per_slice - i);
    error = qcow2_meta_get (q, QCOW2_L2, cluster >> entries_bits (q), &s);
    if (error == 0 && !s)
      error = -EIO;
    if (error == 0)
      error = set_in_slice (q, s, i, n, entry);
    if (error < 0)
      return error;
    if (entry & QCOW2_OFFSET_MASK)
      entry += n << q->cluster_bits;
  }
  return 0;
}
