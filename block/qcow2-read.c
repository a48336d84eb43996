/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads and extents of qcow2 nodes: run by run, each run one request to the
 * file or to the backing file.
 *
 * Called from any thread.  The lock is held only to look up a run; on a
 * writable node each step is an operation (qcow2_op_enter), so that no host
 * cluster is given to other data while it is read.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "qcow2.h"

/* Unallocated: from the backing file as far as it reaches. */
static int
read_backing (struct qcow2 *q, uint8_t *buf, uint64_t len, uint64_t off,
              unsigned flags)
{
  struct blk *backing = q->blk.backing;
  uint64_t size, n = 0;
  int error;

  if (backing) {
    size = blk_size (backing);
    n = off < size ? MIN (len, size - off) : 0;
    error = n ? blk_pread (backing, buf, n, off, flags) : 0;
    if (error < 0)
      return error;
  } else if (q->has_backing)
    return -ENOTSUP;            /* a new image whose base was not given */
  memset (buf + n, 0, len - n);
  return 0;
}

static int
read_packed (struct qcow2 *q, uint64_t entry, uint8_t *buf, uint64_t len,
             uint64_t off, unsigned flags)
{
  CLEANUP_FREE uint8_t *cluster = NULL;
  int error;

  if (flags & BLK_NOWAIT)
    return -EAGAIN;
  if (len == q->cluster_size)
    return qcow2_read_packed (q, entry, buf);
  cluster = malloc (q->cluster_size);
  if (!cluster)
    return -ENOMEM;
  error = qcow2_read_packed (q, entry, cluster);
  if (error == 0)
    memcpy (buf, cluster + (off & (q->cluster_size - 1)), len);
  return error;
}

/* Clusters in the file, which may end within the last one. */
static int
read_data (struct qcow2 *q, uint8_t *buf, uint64_t len, uint64_t host,
           unsigned flags)
{
  uint64_t size = blk_size (q->file);
  uint64_t n = host < size ? MIN (len, size - host) : 0;

  memset (buf + n, 0, len - n);
  return n ? blk_pread (q->file, buf, n, host, flags) : 0;
}

static int
read_run (struct qcow2 *q, const struct qcow2_run *run, uint8_t *buf,
          uint64_t off, unsigned flags)
{
  switch (run->type) {
  case QCOW2_UNALLOCATED:
    return read_backing (q, buf, run->len, off, flags);
  case QCOW2_PACKED:
    return read_packed (q, run->host, buf, run->len, off, flags);
  case QCOW2_DATA:
    return read_data (q, buf, run->len, run->host, flags);
  default:
    memset (buf, 0, run->len);
    return 0;
  }
}

int
qcow2_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
             unsigned flags)
{
  struct qcow2 *q = qcow2_of (blk);
  bool is_counted = !blk_is_read_only (blk);
  uint8_t *p = buf;
  struct qcow2_run run;
  unsigned epoch = 0;
  int error;

  for (; len > 0; p += run.len, off += run.len, len -= run.len) {
    lock_acquire (&q->lock);
    if (is_counted)
      epoch = qcow2_op_enter (q);
    error = qcow2_map (q, off, len, flags & BLK_NOWAIT, &run);
    lock_release (&q->lock);
    if (error == 0)
      error = read_run (q, &run, p, off, flags);
    if (is_counted) {
      lock_acquire (&q->lock);
      qcow2_op_leave (q, epoch);
      lock_release (&q->lock);
    }
    if (error < 0)
      return error;
  }
  return 0;
}

/* --- extents */

/* One step of a walk: 1 = the list is full, 0, -errno; *done bytes. */
struct walk {
  struct qcow2 *q;
  unsigned flags;
  enum blk_status status;
  struct extents *extents;
};

/* The depths of the backing file, one deeper. */
static int
add_backing_depths (struct walk *w, uint64_t len, uint64_t off,
                    uint64_t *ret_done)
{
  struct extents below;
  int r;

  extents_init (&below, w->extents->max);
  r = blk_extents (w->q->blk.backing, len, off, w->flags, w->status, &below);
  for (size_t i = 0; r == 0 && i < below.len; i++) {
    const struct extent *e = &below.ptr[i];

    r = extents_add (w->extents, e->off, e->len, e->value ? e->value + 1 : 0);
    if (r == 0)
      *ret_done += e->len;
  }
  extents_free (&below);
  return r;
}

static int
add_backing (struct walk *w, uint64_t len, uint64_t off, uint64_t *ret_done)
{
  struct blk *backing = w->q->blk.backing;
  uint64_t size = backing ? blk_size (backing) : 0, before;
  int r;

  if (off >= size) {
    r = extents_add (w->extents, off, len,
                     w->status == BLK_STATUS_DEPTH ? 0
                     : EXTENT_HOLE | EXTENT_ZERO);
    *ret_done = r == 0 ? len : 0;
    return r;
  }
  len = MIN (len, size - off);
  *ret_done = 0;
  if (w->status == BLK_STATUS_DEPTH)
    return add_backing_depths (w, len, off, ret_done);
  if (w->extents->len == w->extents->max)
    return 1;                   /* no room even for one more */
  before = extents_length (w->extents);
  r = blk_extents (backing, len, off, w->flags, w->status, w->extents);
  *ret_done = r == 0 ? extents_length (w->extents) - before : 0;
  return r;
}

static int
add_run (struct walk *w, const struct qcow2_run *run, uint64_t off,
         uint64_t *ret_done)
{
  uint32_t value;
  int r;

  switch (run->type) {
  case QCOW2_UNALLOCATED:
    return add_backing (w, run->len, off, ret_done);
  case QCOW2_ZERO_PLAIN:
    value = EXTENT_HOLE | EXTENT_ZERO;
    break;
  case QCOW2_ZERO_ALLOC:
    value = EXTENT_ZERO;
    break;
  default:
    value = 0;
    break;
  }
  r = extents_add (w->extents, off, run->len,
                   w->status == BLK_STATUS_DEPTH ? 1 : value);
  *ret_done = r == 0 ? run->len : 0;
  return r;
}

int
qcow2_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
               enum blk_status status, struct extents *extents)
{
  struct qcow2 *q = qcow2_of (blk);
  struct walk w = { q, flags, status, extents };
  size_t first = extents->len;
  struct qcow2_run run;
  unsigned epoch;
  uint64_t done = 0;
  int r;

  for (; len > 0; off += done, len -= done) {
    lock_acquire (&q->lock);
    epoch = qcow2_op_enter (q);
    r = qcow2_map (q, off, len, false, &run);
    qcow2_op_leave (q, epoch);
    lock_release (&q->lock);
    if (r == 0)
      r = add_run (&w, &run, off, &done);
    if (r == 1)
      return 0;
    if (r < 0)
      return r;
    /* The second extent has begun: the first is complete. */
    if ((flags & BLK_ONE) && extents->len > first + 1)
      return 0;
  }
  return 0;
}
