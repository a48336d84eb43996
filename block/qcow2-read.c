/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads, prefetching and extents of qcow2 nodes: run by run, each run one
 * request to the file of the layer that holds it.
 *
 * Below the top all layers are read-only: qcow2-skip.c remembers which of them
 * hold nothing.
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

/* Where a range of guest bytes comes from. */
struct source {
  struct qcow2 *layer;
  unsigned depth;               /* of the layer below where it began: 0... */
  struct qcow2_run run;         /* in the layer; UNALLOCATED: what is below it
                                   is no qcow2, or shorter, or nothing */
};

/* Find out where [off, off+len) of a read-only chain begins to come from. */
static int
find_source (struct qcow2 *q, uint64_t off, uint64_t len, bool is_nowait,
             struct source *src)
{
  unsigned skip = 0;
  struct qcow2 *next;
  int error;

  len = MIN (len, blk_size (&q->blk) - off);
  if (qcow2_layer_below (q, off))
    skip = qcow2_skip (q, off, &len, is_nowait);
  src->layer = q;
  for (src->depth = 0; src->depth < skip; src->depth++)
    src->layer = qcow2_of (src->layer->blk.backing);
  for (;;) {
    lock_acquire (&src->layer->lock);
    error = qcow2_map (src->layer, off, len, is_nowait, &src->run);
    lock_release (&src->layer->lock);
    if (error < 0 || !qcow2_run_is_unallocated (&src->run)
        || !(next = qcow2_layer_below (src->layer, off)))
      return error;
    len = MIN (src->run.len, blk_size (&next->blk) - off);
    src->layer = next;
    src->depth++;
  }
}

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
    if (n)
      blk_event (q->file, BLK_EVENT_READ_BACKING_AIO);
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
  uint64_t size = blk_size (q->data);
  uint64_t n = host < size ? MIN (len, size - host) : 0;

  memset (buf + n, 0, len - n);
  blk_event (q->file, BLK_EVENT_READ_AIO);
  return n ? blk_pread (q->data, buf, n, host, flags) : 0;
}

static int
read_run (struct qcow2 *q, const struct qcow2_run *run, uint8_t *buf,
          uint64_t off, unsigned flags)
{
  switch (run->type) {
  case QCOW2_UNALLOCATED:
  case QCOW2_UNALLOCATED_PLACED:
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

/* So much one call prefetches: a length of 64 bits may be that of a whole disk,
 * run by run.
 */
#define MAX_CACHE (UINT64_C (32) << 20)

/* Advice to the node that has the run. */
static int
cache_run (struct qcow2 *q, const struct qcow2_run *run, uint64_t off)
{
  struct blk *below = q->data;
  uint64_t size, len = run->len;

  if (qcow2_run_is_unallocated (run))
    below = q->blk.backing;
  else if (run->type == QCOW2_PACKED)
    qcow2_packed_place (q, run->host, &off, &len);
  else if (run->type == QCOW2_DATA)
    off = run->host;
  else
    return 0;
  size = below ? blk_size (below) : 0;
  return off < size ? blk_cache (below, MIN (len, size - off), off) : 0;
}

/* What is done with each run of a range. */
struct use {
  uint8_t *buf;                 /* NULL: nothing is read, only prefetched */
  uint64_t off;                 /* of buf */
  unsigned flags;
};

static int
use_run (const struct use *use, struct qcow2 *layer,
         const struct qcow2_run *run, uint64_t off)
{
  if (use->buf == NULL)
    return cache_run (layer, run, off);
  return read_run (layer, run, use->buf + (off - use->off), off, use->flags);
}

/* The top of a stack that is written to. */
static int
use_writable (const struct use *use, struct qcow2 *q, uint64_t len)
{
  uint64_t off = use->off;
  struct qcow2_run run;
  unsigned epoch;
  int error;

  for (; len > 0; off += run.len, len -= run.len) {
    lock_acquire (&q->lock);
    epoch = qcow2_op_enter (q);
    error = qcow2_map (q, off, len, use->flags & BLK_NOWAIT, &run);
    lock_release (&q->lock);
    if (error == 0)
      error = use_run (use, q, &run, off);
    lock_acquire (&q->lock);
    qcow2_op_leave (q, epoch);
    lock_release (&q->lock);
    if (error < 0)
      return error;
  }
  return 0;
}

static int
use_all (const struct use *use, struct qcow2 *q, uint64_t len)
{
  uint64_t off = use->off;
  struct source src;
  int error;

  if (!blk_is_read_only (&q->blk))
    return use_writable (use, q, len);
  for (; len > 0; off += src.run.len, len -= src.run.len) {
    error = find_source (q, off, len, use->flags & BLK_NOWAIT, &src);
    if (error == 0)
      error = use_run (use, src.layer, &src.run, off);
    if (error < 0)
      return error;
  }
  return 0;
}

int
qcow2_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
             unsigned flags)
{
  const struct use use = { buf, off, flags };

  return use_all (&use, qcow2_of (blk), len);
}

int
qcow2_cache (struct blk *blk, uint64_t len, uint64_t off)
{
  const struct use use = { NULL, off, 0 };

  return use_all (&use, qcow2_of (blk), MIN (len, MAX_CACHE));
}

/* --- extents */

struct walk {
  struct qcow2 *q;
  unsigned flags;
  enum blk_status status;
  struct extents *extents;
};

/* One extent.  1 = the list is full, 0, -errno; *ret_done bytes. */
static int
add_one (struct walk *w, uint64_t len, uint64_t off, uint32_t value,
         uint64_t *ret_done)
{
  int r = extents_add (w->extents, off, len, value);

  *ret_done = r == 0 ? len : 0;
  return r;
}

/* The depths of a node that is depth layers below. */
static int
add_depths (struct walk *w, struct blk *below, uint32_t depth, uint64_t len,
            uint64_t off, uint64_t *ret_done)
{
  struct extents list;
  int r;

  extents_init (&list, w->extents->max);
  r = blk_extents (below, len, off, w->flags, w->status, &list);
  for (size_t i = 0; r == 0 && i < list.len; i++) {
    const struct extent *e = &list.ptr[i];

    r = extents_add (w->extents, e->off, e->len,
                     e->value ? e->value + depth : 0);
    if (r == 0)
      *ret_done += e->len;
  }
  extents_free (&list);
  return r;
}

/* What below, a node with the same offsets, says of a prefix; beyond its end
 * there are zeroes.
 */
static int
add_below (struct walk *w, struct blk *below, uint64_t len, uint64_t off,
           uint64_t *ret_done)
{
  uint64_t size = blk_size (below), before;
  int r;

  if (off >= size)
    return add_one (w, len, off, EXTENT_HOLE | EXTENT_ZERO, ret_done);
  *ret_done = 0;
  if (w->extents->len == w->extents->max)
    return 1;                   /* no room even for one more */
  before = extents_length (w->extents);
  r = blk_extents (below, MIN (len, size - off), off, w->flags, w->status,
                   w->extents);
  *ret_done = r == 0 ? extents_length (w->extents) - before : 0;
  return r;
}

/* Nothing in any layer of qcow2: what is below the last of them says. */
static int
add_unallocated (struct walk *w, const struct source *src, uint64_t off,
                 uint64_t *ret_done)
{
  struct blk *below = src->layer->blk.backing;
  uint64_t size = below ? blk_size (below) : 0, len = src->run.len;

  if (off >= size)
    return add_one (w, len, off, w->status == BLK_STATUS_DEPTH ? 0
                    : EXTENT_HOLE | EXTENT_ZERO, ret_done);
  len = MIN (len, size - off);
  *ret_done = 0;
  if (w->status == BLK_STATUS_DEPTH)
    return add_depths (w, below, src->depth + 1, len, off, ret_done);
  return add_below (w, below, len, off, ret_done);
}

static int
add_source (struct walk *w, const struct source *src, uint64_t off,
            uint64_t *ret_done)
{
  uint32_t value = 0;

  if (qcow2_run_is_unallocated (&src->run))
    return add_unallocated (w, src, off, ret_done);
  if (src->run.type == QCOW2_DATA && qcow2_is_external (src->layer)
      && w->status == BLK_STATUS_ALLOCATION)
    return add_below (w, src->layer->data, src->run.len, off, ret_done);
  if (w->status == BLK_STATUS_DEPTH)
    value = src->depth + 1;
  else if (src->run.type == QCOW2_ZERO_PLAIN)
    value = EXTENT_HOLE | EXTENT_ZERO;
  else if (src->run.type == QCOW2_ZERO_ALLOC)
    value = EXTENT_ZERO;
  return add_one (w, src->run.len, off, value, ret_done);
}

/* As find_source, for a node that may be written to. */
static int
find_any_source (struct qcow2 *q, uint64_t off, uint64_t len,
                 struct source *src)
{
  struct qcow2 *next;
  unsigned epoch;
  int error;

  if (blk_is_read_only (&q->blk))
    return find_source (q, off, len, false, src);
  src->layer = q;
  src->depth = 0;
  lock_acquire (&q->lock);
  epoch = qcow2_op_enter (q);
  error = qcow2_map (q, off, len, false, &src->run);
  qcow2_op_leave (q, epoch);
  lock_release (&q->lock);
  if (error < 0 || !qcow2_run_is_unallocated (&src->run)
      || !(next = qcow2_layer_below (q, off)))
    return error;
  len = MIN (src->run.len, blk_size (&next->blk) - off);
  error = find_source (next, off, len, false, src);
  src->depth++;
  return error;
}

int
qcow2_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
               enum blk_status status, struct extents *extents)
{
  struct walk w = { qcow2_of (blk), flags, status, extents };
  size_t first = extents->len;
  struct source src;
  uint64_t done = 0;
  int r;

  for (; len > 0; off += done, len -= done) {
    r = find_any_source (w.q, off, len, &src);
    if (r == 0)
      r = add_source (&w, &src, off, &done);
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
