/* SPDX-License-Identifier: BSD-3-Clause */
/* The NBD driver: an export of any NBD server, over libnbd.
 *
 * A call takes the connection that has the least to do; read_stream takes one
 * for itself as long as there are enough.  More than one connection is used
 * only if the server says that they see each other's writes and flushes
 * (NBD_FLAG_CAN_MULTI_CONN), which is also how servers that take one client
 * only tell us not to try.
 *
 * What the server says is not trusted (I10): status extents that are empty, run
 * past the export or leave out a context are -EPROTO (I7), as are replies with
 * pieces missing.  A connection that dies fails what is in flight on it; calls
 * are tried again on another one while there is one, and fail with -ENOTCONN
 * after that.
 *
 * nbd-open.c makes the node, nbd-conn.c has the connections.  Called from any
 * thread.  No thread is started.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blk-nbd.h"
#include "cleanup.h"
#include "nbd-blk.h"
#include "range.h"

static struct nbd_blk *
nbd_of (struct blk *blk)
{
  return (struct nbd_blk *) blk;
}

/* The living connection with the least to do, or NULL. */
static struct nbd_conn *
pick_conn (struct nbd_blk *s, bool is_stream)
{
  struct nbd_conn *best = NULL;
  uint64_t best_load = UINT64_MAX;
  size_t i;

  for (i = 0; i < s->nr_conns; i++) {
    struct nbd_conn *c = s->conns[i];
    uint64_t load = ((uint64_t) atomic_load (&c->nr_streams) << 32) +
                    atomic_load (&c->nr_calls);

    if (load < best_load && !atomic_load (&c->is_dead)) {
      best = c;
      best_load = load;
    }
  }
  if (best)
    atomic_fetch_add (is_stream ? &best->nr_streams : &best->nr_calls, 1);
  return best;
}

static uint32_t
max_piece (const struct nbd_blk *s, enum nbd_command command)
{
  return command == NBD_CONN_READ || command == NBD_CONN_WRITE ?
         s->max_payload : NBD_MAX_LENGTH;
}

/* Send the request and wait.  Each attempt that finds its connection dead
 * leaves one connection less, so this ends.
 */
static int
call (struct nbd_blk *s, struct nbd_request *rq)
{
  struct nbd_waiter w;
  struct nbd_op op;
  struct nbd_conn *c;
  int r;

  rq->max_piece = max_piece (s, rq->command);
  nbd_waiter_init (&w);
  do {
    c = pick_conn (s, false);
    if (!c) {
      r = -ENOTCONN;
      break;
    }
    nbd_conn_issue (c, &op, &w, rq);
    nbd_conn_wait (c, &w);
    r = op.error;
    atomic_fetch_sub (&c->nr_calls, 1);
  } while (r == -ENOTCONN && atomic_load (&c->is_dead));
  nbd_waiter_destroy (&w);
  return r;
}

static bool
is_aligned (const struct nbd_blk *s, uint64_t off, uint64_t len)
{
  return ((off | len) & (s->min_block - 1)) == 0;
}

static int
aligned_pread (struct nbd_blk *s, void *buf, uint64_t len, uint64_t off)
{
  struct nbd_request rq = {
    .command = NBD_CONN_READ, .buf = buf, .len = len, .off = off,
  };

  return call (s, &rq);
}

/* Through a buffer, the server's blocks that the range touches: at most two
 * partial blocks are read more than asked for.
 */
static int
unaligned_pread (struct nbd_blk *s, void *buf, uint64_t len, uint64_t off)
{
  const uint64_t start = round_down (off, s->min_block);
  const uint64_t end = round_up (off + len, s->min_block);
  CLEANUP_FREE char *bounce = malloc (end - start);
  int r;

  if (!bounce)
    return -ENOMEM;
  r = aligned_pread (s, bounce, end - start, start);
  if (r == 0)
    memcpy (buf, bounce + (off - start), len);
  return r;
}

static int
blk_nbd_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
           unsigned flags)
{
  struct nbd_blk *s = nbd_of (blk);

  if (flags & BLK_NOWAIT)
    return -EAGAIN;
  return is_aligned (s, off, len) ? aligned_pread (s, buf, len, off) :
         unaligned_pread (s, buf, len, off);
}

static int
blk_nbd_flush (struct blk *blk)
{
  struct nbd_blk *s = nbd_of (blk);
  struct nbd_request rq = { .command = NBD_CONN_FLUSH };

  return s->can_flush ? call (s, &rq) : 0;
}

/* A request that changes the export: FUA by flag or by a flush after it. */
static int
change (struct nbd_blk *s, struct nbd_request *rq, bool is_fua)
{
  int r;

  if (is_fua && s->can_fua)
    rq->flags |= LIBNBD_CMD_FLAG_FUA;
  r = call (s, rq);
  return r == 0 && is_fua && !s->can_fua ? blk_nbd_flush (&s->blk) : r;
}

/* Where the server's blocks matter, a write of part of a block is a read and a
 * write of all of it, so no other write to that block may come between.
 */
static void
claim (struct nbd_blk *s, struct req *req, uint64_t off, uint64_t len)
{
  const uint64_t start = round_down (off, s->min_block);
  const uint64_t end = round_up (off + len, s->min_block);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  reqlist_wait (&s->writes, &s->lock, start, end - start);
  reqlist_add (&s->writes, req, start, end - start);
}

static void
unclaim (struct nbd_blk *s, struct req *req)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  reqlist_remove (&s->writes, req);
}

static int
aligned_pwrite (struct nbd_blk *s, const void *buf, uint64_t len, uint64_t off,
                bool is_fua)
{
  struct nbd_request rq = {
    .command = NBD_CONN_WRITE, .buf = (void *) buf, .len = len, .off = off,
  };

  return change (s, &rq, is_fua);
}

/* Read, modify, write the blocks that hold the range.  buf NULL: zeroes.  The
 * range is claimed.
 */
static int
modify_blocks (struct nbd_blk *s, const void *buf, uint64_t len, uint64_t off,
               bool is_fua)
{
  const uint64_t start = round_down (off, s->min_block);
  const uint64_t end = round_up (off + len, s->min_block);
  const uint64_t last = end - s->min_block;
  CLEANUP_FREE char *bounce = malloc (end - start);
  int r = 0;

  if (!bounce)
    return -ENOMEM;
  if (off > start)
    r = aligned_pread (s, bounce, s->min_block, start);
  if (r == 0 && off + len < end && (last > start || off == start))
    r = aligned_pread (s, bounce + (last - start), s->min_block, last);
  if (r < 0)
    return r;
  if (buf)
    memcpy (bounce + (off - start), buf, len);
  else
    memset (bounce + (off - start), 0, len);
  return aligned_pwrite (s, bounce, end - start, start, is_fua);
}

static int
blk_nbd_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  struct nbd_blk *s = nbd_of (blk);
  const bool is_fua = flags & BLK_FUA;
  struct req req;
  int r;

  if (s->min_block == 1)
    return aligned_pwrite (s, buf, len, off, is_fua);
  claim (s, &req, off, len);
  r = is_aligned (s, off, len) ? aligned_pwrite (s, buf, len, off, is_fua) :
      modify_blocks (s, buf, len, off, is_fua);
  unclaim (s, &req);
  return r;
}

static int
aligned_zero (struct nbd_blk *s, uint64_t len, uint64_t off, unsigned flags)
{
  struct nbd_request rq = {
    .command = NBD_CONN_ZERO, .len = len, .off = off,
    .flags = (flags & BLK_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
             (flags & BLK_FAST ? LIBNBD_CMD_FLAG_FAST_ZERO : 0),
  };

  return change (s, &rq, flags & BLK_FUA);
}

/* Whole blocks by the server, the partial ones at both ends by hand. */
static int
zero_claimed (struct nbd_blk *s, uint64_t len, uint64_t off, unsigned flags)
{
  const uint64_t end = off + len;
  const uint64_t first = round_up (off, s->min_block);
  const uint64_t last = round_down (end, s->min_block);
  int r = 0;

  if (flags & BLK_FAST && !is_aligned (s, off, len))
    return -EOPNOTSUPP;
  if (first >= last && !is_aligned (s, off, len))
    return modify_blocks (s, NULL, len, off, flags & BLK_FUA);
  if (off < first)
    r = modify_blocks (s, NULL, first - off, off, flags & BLK_FUA);
  if (r == 0)
    r = aligned_zero (s, last - first, first, flags);
  if (r == 0 && last < end)
    r = modify_blocks (s, NULL, end - last, last, flags & BLK_FUA);
  return r;
}

static int
blk_nbd_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct nbd_blk *s = nbd_of (blk);
  struct req req;
  int r;

  if (!(s->blk.can & BLK_CAN_ZERO))
    return -EOPNOTSUPP;
  if (s->min_block == 1)
    return aligned_zero (s, len, off, flags);
  claim (s, &req, off, len);
  r = zero_claimed (s, len, off, flags);
  unclaim (s, &req);
  return r;
}

static int
blk_nbd_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct nbd_blk *s = nbd_of (blk);
  const uint64_t first = round_up (off, s->min_block);
  const uint64_t last = round_down (off + len, s->min_block);
  struct nbd_request rq = {
    .command = NBD_CONN_TRIM, .len = last - first, .off = first,
  };
  struct req req;
  int r;

  if (!(s->blk.can & BLK_CAN_TRIM) || first >= last)
    return flags & BLK_FUA ? blk_nbd_flush (blk) : 0;
  if (s->min_block == 1)
    return change (s, &rq, flags & BLK_FUA);
  claim (s, &req, first, last - first);
  r = change (s, &rq, flags & BLK_FUA);
  unclaim (s, &req);
  return r;
}

static int
blk_nbd_cache (struct blk *blk, uint64_t len, uint64_t off)
{
  struct nbd_blk *s = nbd_of (blk);
  const uint64_t start = round_down (off, s->min_block);
  struct nbd_request rq = {
    .command = NBD_CONN_CACHE, .off = start,
    .len = round_up (off + len, s->min_block) - start,
  };

  return s->blk.can & BLK_CAN_CACHE ? call (s, &rq) : 0;
}

/* What the extents of one block status reply go to. */
struct status_call {
  struct nbd_blk *s;
  uint64_t off, end;            /* what the caller asked for */
  struct extents *lists;
  size_t nr_lists;
  size_t *old_len;              /* bytes covered before, per list */
  bool *is_seen;
  int error;                    /* -errno; the first one */
};

/* One context's entries: pairs of length and flags, from start on. */
static int
add_entries (struct status_call *sc, struct extents *list, uint64_t start,
             const uint32_t *entries, size_t nr_entries)
{
  const uint64_t size = blk_size (&sc->s->blk);
  uint64_t off = start;
  size_t i;
  int r;

  if (nr_entries < 2)
    return -EPROTO;
  for (i = 0; i + 1 < nr_entries; i += 2) {
    uint64_t len = entries[i], from, to;

    if (len == 0 || !range_is_within (off, len, size))
      return -EPROTO;
    from = MAX (off, sc->off);
    to = MIN (off + len, sc->end);
    off += len;
    if (from >= to)
      continue;
    r = extents_add (list, from, to - from, entries[i + 1]);
    if (r < 0)
      return r;
    if (r > 0)
      break;                    /* full: a prefix is enough */
  }
  return 0;
}

/* Called by libnbd with the lock of its handle held. */
static int
extents_arrived (void *opaque, const char *context, uint64_t off,
                 uint32_t *entries, size_t nr_entries, int *error)
{
  struct status_call *sc = opaque;
  size_t i;
  int r = 0;

  for (i = 0; i < sc->nr_lists; i++)
    if (strcmp (context, sc->s->contexts[i]) == 0)
      break;
  if (i == sc->nr_lists)
    return 0;                   /* one that the caller did not ask for */
  if (sc->is_seen[i])
    r = -EPROTO;
  else
    r = add_entries (sc, &sc->lists[i], off, entries, nr_entries);
  sc->is_seen[i] = true;
  if (r < 0 && sc->error == 0)
    sc->error = r;
  return 0;
}

/* Every list has got something, or doubt is an error (I7). */
static int
check_status (struct status_call *sc)
{
  size_t i;

  for (i = 0; i < sc->nr_lists; i++) {
    struct extents *list = &sc->lists[i];

    if (i == 0 && !sc->s->has_allocation) {
      int r = extents_add (list, sc->off, sc->end - sc->off, 0);

      if (r < 0)
        return r;
    }
    else if (!sc->is_seen[i] || extents_length (list) == sc->old_len[i])
      return -EPROTO;
  }
  return 0;
}

static int
block_status (struct nbd_blk *s, uint64_t len, uint64_t off, unsigned flags,
              struct extents *lists, size_t nr_lists)
{
  size_t old_len[NBD_MAX_CONTEXTS];
  bool is_seen[NBD_MAX_CONTEXTS] = { false };
  const uint64_t start = round_down (off, s->min_block);
  struct status_call sc = {
    .s = s, .off = off, .lists = lists, .nr_lists = nr_lists,
    .old_len = old_len, .is_seen = is_seen,
  };
  struct nbd_request rq = {
    .command = NBD_CONN_STATUS, .off = start,
    .flags = flags & BLK_ONE ? LIBNBD_CMD_FLAG_REQ_ONE : 0,
    .extent = extents_arrived, .opaque = &sc,
  };
  size_t i;
  int r = 0;

  rq.len = MIN (round_up (off + len, s->min_block) - start, NBD_MAX_LENGTH);
  sc.end = MIN (off + len, start + rq.len);
  for (i = 0; i < nr_lists; i++)
    old_len[i] = extents_length (&lists[i]);
  if (s->has_status)
    r = call (s, &rq);
  if (r == 0)
    r = sc.error;
  return r < 0 ? r : check_status (&sc);
}

static int
blk_nbd_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
             enum blk_status status, struct extents *extents)
{
  int r;

  if (status != BLK_STATUS_ALLOCATION) {
    r = extents_add (extents, off, len, 1);
    return r < 0 ? r : 0;
  }
  return block_status (nbd_of (blk), len, off, flags, extents, 1);
}

int
blk_nbd_block_status (struct blk *blk, uint64_t len, uint64_t off,
                      struct extents *lists, size_t nr_lists)
{
  struct nbd_blk *s = nbd_of (blk);

  if (blk->driver != &nbd_blk_driver || nr_lists == 0 ||
      nr_lists > s->nr_contexts || len == 0 ||
      !range_is_within (off, len, blk_size (blk)))
    return -EINVAL;
  return block_status (s, len, off, 0, lists, nr_lists);
}

/* A stream: depth slots on one connection. */
struct stream_slot {
  struct nbd_op op;             /* first */
  struct blk_read read;
  struct stream_slot *next;     /* free */
};

struct stream {
  struct nbd_blk *s;
  struct nbd_conn *c;
  const struct blk_stream_ops *ops;
  void *opaque;
  struct nbd_waiter w;
  struct stream_slot *free;
  unsigned in_flight;
  int error;                    /* of next or done: give up */
};

static void
stream_done (struct stream *st, struct stream_slot *slot, int error)
{
  int r;

  slot->next = st->free;
  st->free = slot;
  r = st->ops->done (st->opaque, &slot->read, error);
  if (r < 0 && st->error == 0)
    st->error = r;
}

/* Issue reads until next has no more or every slot is in use. */
static void
stream_fill (struct stream *st)
{
  while (st->free && st->error == 0) {
    struct stream_slot *slot = st->free;
    struct nbd_request rq = {
      .command = NBD_CONN_READ, .max_piece = st->s->max_payload,
    };
    int r = st->ops->next (st->opaque, &slot->read);

    if (r < 0)
      st->error = r;
    if (r <= 0)
      return;
    st->free = slot->next;
    rq.buf = slot->read.buf;
    rq.len = slot->read.len;
    rq.off = slot->read.off;
    if (rq.len == 0 ||
        !range_is_within (rq.off, rq.len, blk_size (&st->s->blk))) {
      stream_done (st, slot, rq.len ? -EINVAL : 0);
      continue;
    }
    if (!is_aligned (st->s, rq.off, rq.len)) {
      stream_done (st, slot, unaligned_pread (st->s, rq.buf, rq.len, rq.off));
      continue;
    }
    nbd_conn_issue (st->c, &slot->op, &st->w, &rq);
    st->in_flight++;
  }
}

static int
run_stream (struct stream *st)
{
  for (;;) {
    struct nbd_op *op, *next;

    stream_fill (st);
    if (st->in_flight == 0)
      return st->error;
    for (op = nbd_conn_wait (st->c, &st->w); op; op = next) {
      next = op->next;
      st->in_flight--;
      stream_done (st, (struct stream_slot *) op, op->error);
    }
  }
}

static int
blk_nbd_read_stream (struct blk *blk, unsigned depth,
                 const struct blk_stream_ops *ops, void *opaque)
{
  struct stream st = { .s = nbd_of (blk), .ops = ops, .opaque = opaque };
  CLEANUP_FREE struct stream_slot *slots = NULL;
  unsigned i;
  int r;

  depth = MAX (1, MIN (depth, NBD_MAX_DEPTH));
  slots = calloc (depth, sizeof *slots);
  if (!slots)
    return -ENOMEM;
  for (i = 0; i < depth; i++) {
    slots[i].next = st.free;
    st.free = &slots[i];
  }
  st.c = pick_conn (st.s, true);
  if (!st.c)
    return -ENOTCONN;
  nbd_waiter_init (&st.w);
  r = run_stream (&st);
  nbd_waiter_destroy (&st.w);
  atomic_fetch_sub (&st.c->nr_streams, 1);
  return r;
}

static int
blk_nbd_close (struct blk *blk)
{
  nbd_blk_free (nbd_of (blk));
  return 0;
}

const struct blk_driver nbd_blk_driver = {
  .name = "nbd",
  .close = blk_nbd_close,
  .pread = blk_nbd_pread,
  .pwrite = blk_nbd_pwrite,
  .zero = blk_nbd_zero,
  .trim = blk_nbd_trim,
  .flush = blk_nbd_flush,
  .extents = blk_nbd_extents,
  .cache = blk_nbd_cache,
  .read_stream = blk_nbd_read_stream,
};
