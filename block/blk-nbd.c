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

/* No connection is left. */
static int
no_conn (const struct nbd_blk *s)
{
  return atomic_load (&s->conns[0]->is_cancelled) ? -ECANCELED : -ENOTCONN;
}

static uint32_t
max_piece (const struct nbd_blk *s, enum nbd_command command)
{
  return command == NBD_CONN_READ || command == NBD_CONN_WRITE ?
         s->max_payload : NBD_MAX_LENGTH;
}

/* Send the request and wait.  *ret_again: the connection died of it or before
 * it, so that another may be tried; each time that leaves one less.
 */
static int
call_once (struct nbd_blk *s, struct nbd_request *rq, bool *ret_again)
{
  struct nbd_waiter w;
  struct nbd_op op;
  struct nbd_conn *c = pick_conn (s, false);

  *ret_again = false;
  if (!c)
    return no_conn (s);
  rq->max_piece = max_piece (s, rq->command);
  nbd_waiter_init (&w);
  nbd_conn_issue (c, &op, &w, rq);
  nbd_conn_wait (c, &w);
  nbd_waiter_destroy (&w);
  atomic_fetch_sub (&c->nr_calls, 1);
  *ret_again = op.error == -ENOTCONN && atomic_load (&c->is_dead);
  return op.error;
}

static int
call (struct nbd_blk *s, struct nbd_request *rq)
{
  bool again;
  int r;

  do
    r = call_once (s, rq, &again);
  while (again);
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

/* Through a buffer, the server's blocks that the range touches. */
static int
unaligned_pread (struct nbd_blk *s, void *buf, uint64_t len, uint64_t off)
{
  const uint64_t size = round_up (len, s->min_block) + s->min_block;
  CLEANUP_FREE char *bounce = malloc (MIN (size, s->max_payload));
  int r = bounce ? 0 : -ENOMEM;

  while (r == 0 && len > 0) {
    const uint64_t start = round_down (off, s->min_block);
    const uint64_t n = MIN (len, s->max_payload - (off - start));

    r = aligned_pread (s, bounce, round_up (off + n, s->min_block) - start,
                       start);
    if (r == 0)
      memcpy (buf, bounce + (off - start), n);
    buf = (char *) buf + n;
    off += n;
    len -= n;
  }
  return r;
}

static int
blk_nbd_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
           unsigned flags)
{
  struct nbd_blk *s = nbd_of (blk);

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

/* A request that changes the export.  FUA only if the server can. */
static int
change (struct nbd_blk *s, struct nbd_request *rq, unsigned flags)
{
  if (flags & BLK_FUA)
    rq->flags |= LIBNBD_CMD_FLAG_FUA;
  return call (s, rq);
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
                unsigned flags)
{
  struct nbd_request rq = {
    .command = NBD_CONN_WRITE, .buf = (void *) buf, .len = len, .off = off,
  };

  return change (s, &rq, flags);
}

static int
aligned_zero (struct nbd_blk *s, uint64_t len, uint64_t off, unsigned flags)
{
  struct nbd_request rq = {
    .command = NBD_CONN_ZERO, .len = len, .off = off,
    .flags = (flags & BLK_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
             (flags & BLK_FAST ? LIBNBD_CMD_FLAG_FAST_ZERO : 0),
  };

  return change (s, &rq, flags);
}

/* Read, modify, write the one or two blocks that hold the range, which is
 * claimed.  buf NULL: zeroes.
 */
static int
modify_blocks (struct nbd_blk *s, const void *buf, uint64_t len, uint64_t off,
               unsigned flags)
{
  const uint64_t start = round_down (off, s->min_block);
  const uint64_t end = round_up (off + len, s->min_block);
  CLEANUP_FREE char *bounce = malloc (end - start);
  int r;

  if (!bounce)
    return -ENOMEM;
  r = aligned_pread (s, bounce, end - start, start);
  if (r < 0)
    return r;
  if (buf)
    memcpy (bounce + (off - start), buf, len);
  else
    memset (bounce + (off - start), 0, len);
  return aligned_pwrite (s, bounce, end - start, start, flags & BLK_FUA);
}

/* Whole blocks as they are, the partial ones at both ends by hand.  The range
 * is claimed.  buf NULL: zeroes.
 */
static int
change_claimed (struct nbd_blk *s, const char *buf, uint64_t len, uint64_t off,
                unsigned flags)
{
  const uint64_t end = off + len;
  const uint64_t first = round_up (off, s->min_block);
  const uint64_t last = round_down (end, s->min_block);
  int r = 0;

  if (first >= last)
    return modify_blocks (s, buf, len, off, flags);
  if (off < first)
    r = modify_blocks (s, buf, first - off, off, flags);
  if (r == 0 && buf)
    r = aligned_pwrite (s, buf + (first - off), last - first, first, flags);
  else if (r == 0)
    r = aligned_zero (s, last - first, first, flags);
  if (r == 0 && last < end)
    r = modify_blocks (s, buf ? buf + (last - off) : NULL, end - last, last,
                       flags);
  return r;
}

static int
blk_nbd_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
                unsigned flags)
{
  struct nbd_blk *s = nbd_of (blk);
  struct req req;
  int r;

  if (s->min_block == 1)
    return aligned_pwrite (s, buf, len, off, flags);
  claim (s, &req, off, len);
  r = change_claimed (s, buf, len, off, flags);
  unclaim (s, &req);
  return r;
}

static int
blk_nbd_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct nbd_blk *s = nbd_of (blk);
  struct req req;
  int r;

  if (!(s->blk.can & BLK_CAN_ZERO) ||
      (flags & BLK_FAST && !is_aligned (s, off, len)))
    return -EOPNOTSUPP;
  if (s->min_block == 1)
    return aligned_zero (s, len, off, flags);
  claim (s, &req, off, len);
  r = change_claimed (s, NULL, len, off, flags);
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

  if (first >= last)
    return 0;
  if (s->min_block == 1)
    return change (s, &rq, flags);
  claim (s, &req, first, last - first);
  r = change (s, &rq, flags);
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

  return call (s, &rq);
}

/* A block status request, and what the extents of its reply go to. */
struct status_call {
  struct nbd_op op;
  struct nbd_request rq;
  struct nbd_status_sink sink;
  struct nbd_blk *s;
  uint64_t off, end;            /* what the caller asked for */
  struct extents *lists;
  size_t nr_lists;
  uint64_t old_end[NBD_MAX_CONTEXTS];   /* where the lists ended before */
  bool is_seen[NBD_MAX_CONTEXTS];
  int error;                    /* -errno; the first one */
};

/* Where the list ends; off if it is empty. */
static uint64_t
list_end (const struct extents *list, uint64_t off)
{
  return list->len ? list->ptr[0].off + extents_length (list) : off;
}

/* One context's entries.  What the list has already is left as it is. */
static int
add_entries (struct status_call *sc, struct extents *list,
             const struct nbd_status *status)
{
  const uint64_t size = blk_size (&sc->s->blk);
  uint64_t off = status->off;
  size_t i;
  int r;

  if (status->nr_entries == 0)
    return -EPROTO;
  for (i = 0; i < status->nr_entries; i++) {
    const struct nbd_status_entry entry = nbd_status_entry (status, i);
    uint64_t from, to;

    /* No context that we ask for has more than 32 flags. */
    if (entry.len == 0 || !range_is_within (off, entry.len, size) ||
        entry.flags > UINT32_MAX)
      return -EPROTO;
    from = MAX (off, list_end (list, sc->off));
    to = MIN (off + entry.len, sc->end);
    off += entry.len;
    if (from >= to)
      continue;
    r = extents_add (list, from, to - from, (uint32_t) entry.flags);
    if (r < 0)
      return r;
    if (r > 0)
      break;                    /* full: a prefix is enough */
  }
  return 0;
}

/* Called with libnbd's lock of the handle held. */
static void
extents_arrived (void *opaque, const struct nbd_status *status)
{
  struct status_call *sc = opaque;
  size_t i;
  int r = 0;

  for (i = 0; i < sc->nr_lists; i++)
    if (strcmp (status->context, sc->s->contexts[i]) == 0)
      break;
  if (i == sc->nr_lists)
    return;                     /* one that the caller did not ask for */
  if (sc->is_seen[i])
    r = -EPROTO;
  else
    r = add_entries (sc, &sc->lists[i], status);
  sc->is_seen[i] = true;
  if (r < 0 && sc->error == 0)
    sc->error = r;
}

/* Every list says something about off, or doubt is an error (I7). */
static int
check_status (struct status_call *sc)
{
  size_t i;

  for (i = 0; i < sc->nr_lists; i++) {
    struct extents *list = &sc->lists[i];
    const uint64_t end = list_end (list, sc->off);

    if (i > 0 || sc->s->has_allocation) {
      if (!sc->is_seen[i] || end <= sc->off)
        return -EPROTO;
    }
    else if (end < sc->end) {
      int r = extents_add (list, end, sc->end - end, 0);

      if (r < 0)
        return r;
    }
  }
  return 0;
}

/* Forget what a connection that died has answered. */
static void
reset_status (struct status_call *sc)
{
  size_t i;

  sc->error = 0;
  for (i = 0; i < sc->nr_lists; i++) {
    sc->is_seen[i] = false;
    extents_truncate (&sc->lists[i], sc->old_end[i]);
  }
}

static void
init_status (struct status_call *sc, struct nbd_blk *s,
             const struct blk_nbd_range *range, unsigned flags,
             size_t nr_lists)
{
  const uint64_t start = round_down (range->off, s->min_block);
  const uint64_t end = range->off + range->len;
  size_t i;

  *sc = (struct status_call) {
    .s = s, .off = range->off, .lists = range->lists, .nr_lists = nr_lists,
  };
  sc->rq = (struct nbd_request) {
    .command = NBD_CONN_STATUS, .off = start,
    .len = MIN (round_up (end, s->min_block) - start, s->max_status),
    .flags = flags & BLK_ONE ? LIBNBD_CMD_FLAG_REQ_ONE : 0,
    .sink = &sc->sink,
  };
  sc->sink = (struct nbd_status_sink) {
    .arrived = extents_arrived, .opaque = sc,
  };
  sc->end = MIN (end, start + sc->rq.len);
  for (i = 0; i < nr_lists; i++)
    sc->old_end[i] = list_end (&range->lists[i], range->off);
}

/* As call_once, for all of them: send them, then wait for what comes, in any
 * order.
 */
static int
call_all (struct nbd_blk *s, struct status_call *calls, size_t nr,
          bool *ret_again)
{
  struct nbd_conn *c = pick_conn (s, false);
  struct nbd_waiter w;
  struct nbd_op *op;
  size_t i, left = nr;
  int r = 0;

  *ret_again = false;
  if (!c)
    return no_conn (s);
  nbd_waiter_init (&w);
  for (i = 0; i < nr; i++)
    nbd_conn_issue (c, &calls[i].op, &w, &calls[i].rq);
  while (left > 0)
    for (op = nbd_conn_wait (c, &w); op; op = op->next)
      left--;
  nbd_waiter_destroy (&w);
  atomic_fetch_sub (&c->nr_calls, 1);
  for (i = 0; i < nr; i++) {
    *ret_again |= calls[i].op.error == -ENOTCONN && atomic_load (&c->is_dead);
    if (r == 0)
      r = calls[i].op.error;
  }
  return r;
}

static int
run_status (struct nbd_blk *s, struct status_call *calls, size_t nr)
{
  bool again = s->has_status;
  size_t i;
  int r = 0;

  while (again) {
    for (i = 0; i < nr; i++)
      reset_status (&calls[i]);
    r = call_all (s, calls, nr, &again);
  }
  for (i = 0; i < nr && r == 0; i++) {
    r = calls[i].error;
    if (r == 0)
      r = check_status (&calls[i]);
  }
  return r;
}

static int
block_status (struct nbd_blk *s, uint64_t len, uint64_t off, unsigned flags,
              struct extents *lists, size_t nr_lists)
{
  const struct blk_nbd_range range = {
    .off = off, .len = len, .lists = lists,
  };
  struct status_call sc;

  init_status (&sc, s, &range, flags, nr_lists);
  return run_status (s, &sc, 1);
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

uint64_t
blk_nbd_max_status (const struct blk *blk)
{
  return blk->driver == &nbd_blk_driver ?
    ((const struct nbd_blk *) blk)->max_status : 0;
}

int
blk_nbd_block_status_many (struct blk *blk, const struct blk_nbd_range *ranges,
                           size_t nr, size_t nr_lists)
{
  struct nbd_blk *s = nbd_of (blk);
  CLEANUP_FREE struct status_call *calls = NULL;
  size_t i;

  if (blk->driver != &nbd_blk_driver || nr == 0 || nr_lists == 0 ||
      nr_lists > s->nr_contexts)
    return -EINVAL;
  for (i = 0; i < nr; i++)
    if (ranges[i].len == 0 ||
        !range_is_within (ranges[i].off, ranges[i].len, blk_size (blk)))
      return -EINVAL;
  calls = calloc (nr, sizeof *calls);
  if (!calls)
    return -ENOMEM;
  for (i = 0; i < nr; i++)
    init_status (&calls[i], s, &ranges[i], 0, nr_lists);
  return run_status (s, calls, nr);
}

int
blk_nbd_block_status (struct blk *blk, uint64_t len, uint64_t off,
                      struct extents *lists, size_t nr_lists)
{
  const struct blk_nbd_range range = {
    .off = off, .len = len, .lists = lists,
  };

  return blk_nbd_block_status_many (blk, &range, 1, nr_lists);
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
    return no_conn (st.s);
  nbd_waiter_init (&st.w);
  r = run_stream (&st);
  nbd_waiter_destroy (&st.w);
  atomic_fetch_sub (&st.c->nr_streams, 1);
  return r;
}

void
blk_nbd_cancel (struct blk *blk)
{
  struct nbd_blk *s = nbd_of (blk);
  size_t i;

  if (blk->driver != &nbd_blk_driver)
    return;
  for (i = 0; i < s->nr_conns; i++)
    nbd_conn_cancel (s->conns[i]);
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
