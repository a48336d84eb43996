/* SPDX-License-Identifier: BSD-3-Clause */
/* The choke point: every I/O on a node passes here in both directions.
 *
 * It checks the request, splits what is longer than the node takes, stands in
 * for what a driver cannot do, checks what the driver gives back, counts, and
 * logs a failure once, where it happened.
 *
 * I10  A request from the wire, the guest or the user that does not fit the
 *      node is an error here and never reaches a driver.
 *
 * Called from any thread.  No locks, nor may the caller hold any that must not
 * be held over I/O (LOCKING.md): that is asserted here for all drivers.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "blk.h"
#include "lock.h"
#include "log.h"
#include "range.h"

/* At most this many failures of a node are logged in a window, so that a
 * failing disk or a hostile client cannot flood the log.
 */
#define LOG_MAX 10
#define LOG_WINDOW 10           /* seconds */

/* What zeroes are written from where a driver cannot zero. */
static unsigned char zeroes[256 * 1024];

/* Failures that this thread has reported so far, and the last one: a node
 * above the one that failed does not report the same failure again.
 */
static __thread uint64_t nr_reported;
static __thread int last_reported;

int
blk_init (struct blk *blk, const struct blk_driver *driver, const char *name,
          const char *filename, uint64_t size, unsigned can)
{
  assert (size <= RANGE_MAX_SIZE);

  blk->driver = driver;
  blk->can = can;
  blk->block_size = 512;
  blk->name = strdup (name);
  blk->filename = filename ? strdup (filename) : NULL;
  if (!blk->name || (filename && !blk->filename)) {
    blk_fini (blk);
    return -ENOMEM;
  }
  atomic_store_explicit (&blk->size, size, memory_order_release);
  return 0;
}

void
blk_fini (struct blk *blk)
{
  free (blk->name);
  free (blk->filename);
  blk->name = blk->filename = NULL;
}

int
blk_close (struct blk *blk)
{
  return blk ? blk->driver->close (blk) : 0;
}

static inline void
count (_Atomic uint64_t *counter, uint64_t n)
{
  atomic_fetch_add_explicit (counter, n, memory_order_relaxed);
}

/* True if this failure may be logged now; *ret_is_last if the next ones of
 * this window will not be.
 */
static bool
may_log (struct blk *blk, bool *ret_is_last)
{
  struct timespec now;
  uint64_t window, seen, n;

  clock_gettime (CLOCK_MONOTONIC, &now);
  window = (uint64_t) now.tv_sec / LOG_WINDOW + 1;
  seen = atomic_load (&blk->log_window);
  if (seen != window
      && atomic_compare_exchange_strong (&blk->log_window, &seen, window))
    atomic_store (&blk->nr_logged, 0);
  n = atomic_fetch_add (&blk->nr_logged, 1);
  *ret_is_last = n == LOG_MAX - 1;
  return n < LOG_MAX;
}

static void __attribute__ ((cold))
report_failure (struct blk *blk, const char *op, uint64_t len, uint64_t off,
                int error)
{
  char buf[80];
  bool is_last;

  nr_reported++;
  last_reported = error;
  /* Somebody has given it up on purpose. */
  if (error == -ECANCELED || atomic_load (&blk->is_quiet)
      || !may_log (blk, &is_last))
    return;
  log_error ("%s: %s of %" PRIu64 " bytes at offset %" PRIu64 " failed: %s%s",
             blk->name, op, len, off, strerror_r (-error, buf, sizeof buf),
             is_last ? " (further failures of this node are not logged for a "
             "while)" : "");
}

/* The end of a request that a driver has seen: r is 0 or -errno; before is
 * nr_reported at its beginning.
 */
static inline int
finish (struct blk *blk, const char *op, uint64_t len, uint64_t off,
        uint64_t before, int r)
{
  if (__builtin_expect (r < 0, 0)) {
    count (&blk->stats.failures, 1);
    if (nr_reported == before || last_reported != r)
      report_failure (blk, op, len, off, r);
  }
  return r;
}

static inline int
check_read (const struct blk *blk, uint64_t len, uint64_t off)
{
  return range_is_within (off, len, blk_size (blk)) ? 0 : -EINVAL;
}

static inline int
check_write (const struct blk *blk, uint64_t len, uint64_t off)
{
  if (blk->can & BLK_IS_READ_ONLY)
    return -EPERM;
  return range_is_within (off, len, blk_size (blk)) ? 0 : -ENOSPC;
}

/* The length of the next piece of a request of len bytes. */
static inline uint64_t
piece_length (const struct blk *blk, uint64_t len)
{
  return blk->max_request && len > blk->max_request ? blk->max_request : len;
}

int
blk_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
           unsigned flags)
{
  uint64_t before, done, n;
  int r = check_read (blk, len, off);

  if (flags & ~(unsigned) BLK_NOWAIT)
    r = -EINVAL;
  if (r < 0 || len == 0)
    return r;
  if ((flags & BLK_NOWAIT) && !(blk->can & BLK_CAN_NOWAIT))
    return -EAGAIN;

  lock_assert_io ();
  before = nr_reported;
  for (done = 0; done < len && r == 0; done += n) {
    n = piece_length (blk, len - done);
    r = blk->driver->pread (blk, (char *) buf + done, n, off + done, flags);
  }
  if (r == -EAGAIN && (flags & BLK_NOWAIT))
    return r;
  count (&blk->stats.reads, 1);
  count (&blk->stats.read_bytes, len);
  return finish (blk, "read", len, off, before, r);
}

static int
flush_driver (struct blk *blk)
{
  count (&blk->stats.flushes, 1);
  return blk->driver->flush ? blk->driver->flush (blk) : 0;
}

/* True if FUA has to be done by a flush after the request: the driver cannot,
 * or it would be done again for every piece.
 */
static inline bool
needs_flush (const struct blk *blk, uint64_t len, unsigned flags)
{
  return (flags & BLK_FUA)
    && (!(blk->can & BLK_CAN_FUA) || piece_length (blk, len) < len);
}

int
blk_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  uint64_t before, done, n;
  int r = check_write (blk, len, off);
  bool is_flush;

  if ((flags & ~(unsigned) (BLK_FUA | BLK_COMPRESS))
      || ((flags & BLK_COMPRESS) && !(blk->can & BLK_CAN_COMPRESS)))
    r = -EINVAL;
  if (r < 0 || len == 0)
    return r;

  lock_assert_io ();
  before = nr_reported;
  is_flush = needs_flush (blk, len, flags);
  if (is_flush)
    flags &= ~(unsigned) BLK_FUA;
  for (done = 0; done < len && r == 0; done += n) {
    n = piece_length (blk, len - done);
    r = blk->driver->pwrite (blk, (const char *) buf + done, n, off + done,
                             flags);
  }
  if (r == 0 && is_flush)
    r = flush_driver (blk);
  count (&blk->stats.writes, 1);
  count (&blk->stats.written_bytes, len);
  return finish (blk, "write", len, off, before, r);
}

static int
write_zeroes (struct blk *blk, uint64_t len, uint64_t off)
{
  uint64_t done, n;
  int r = 0;

  for (done = 0; done < len && r == 0; done += n) {
    n = MIN (piece_length (blk, len - done), sizeof zeroes);
    r = blk->driver->pwrite (blk, zeroes, n, off + done, 0);
  }
  return r;
}

/* Zero one piece.  Sets *is_flush if it was written without FUA. */
static int
zero_piece (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
            bool *is_flush)
{
  int r = -EOPNOTSUPP;

  if (blk->driver->zero)
    r = blk->driver->zero (blk, len, off, flags);
  if (r != -EOPNOTSUPP || (flags & BLK_FAST))
    return r;
  if (flags & BLK_FUA)
    *is_flush = true;
  return write_zeroes (blk, len, off);
}

int
blk_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  uint64_t before, done, n;
  int r = check_write (blk, len, off);
  bool is_flush;

  if (flags & ~(unsigned) (BLK_FUA | BLK_MAY_UNMAP | BLK_FAST
                           | BLK_KEEP_ZERO))
    r = -EINVAL;
  if (r < 0 || len == 0)
    return r;
  if ((flags & BLK_FAST) && !(blk->can & BLK_CAN_FAST_ZERO))
    return -EOPNOTSUPP;

  lock_assert_io ();
  before = nr_reported;
  is_flush = needs_flush (blk, len, flags);
  if (is_flush)
    flags &= ~(unsigned) BLK_FUA;
  for (done = 0; done < len && r == 0; done += n) {
    n = piece_length (blk, len - done);
    r = zero_piece (blk, n, off + done, flags, &is_flush);
  }
  if (r == -EOPNOTSUPP && (flags & BLK_FAST))
    return r;
  if (r == 0 && is_flush)
    r = flush_driver (blk);
  count (&blk->stats.zeroes, 1);
  return finish (blk, "zero", len, off, before, r);
}

int
blk_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  uint64_t before, done, n;
  int r = range_is_within (off, len, blk_size (blk)) ? 0 : -ENOSPC;
  bool is_flush;

  if ((blk->can & (BLK_IS_READ_ONLY | BLK_CAN_TRIM)) == BLK_IS_READ_ONLY)
    r = -EPERM;
  if (flags & ~(unsigned) BLK_FUA)
    r = -EINVAL;
  if (r < 0 || len == 0)
    return r;
  if (!(blk->can & BLK_CAN_TRIM) || !blk->driver->trim)
    return 0;

  lock_assert_io ();
  before = nr_reported;
  is_flush = needs_flush (blk, len, flags);
  if (is_flush)
    flags &= ~(unsigned) BLK_FUA;
  for (done = 0; done < len && r == 0; done += n) {
    n = piece_length (blk, len - done);
    r = blk->driver->trim (blk, n, off + done, flags);
    if (r == -EOPNOTSUPP)       /* it is advice */
      r = 0;
  }
  if (r == 0 && is_flush)
    r = flush_driver (blk);
  count (&blk->stats.trims, 1);
  return finish (blk, "trim", len, off, before, r);
}

int
blk_flush (struct blk *blk)
{
  uint64_t before = nr_reported;

  lock_assert_io ();
  return finish (blk, "flush", blk_size (blk), 0, before, flush_driver (blk));
}

int
blk_cache (struct blk *blk, uint64_t len, uint64_t off)
{
  uint64_t before = nr_reported, done, n;
  int r = check_read (blk, len, off);

  if (r < 0 || len == 0)
    return r;
  if (!(blk->can & BLK_CAN_CACHE) || !blk->driver->cache)
    return 0;
  lock_assert_io ();
  for (done = 0; done < len && r == 0; done += n) {
    n = piece_length (blk, len - done);
    r = blk->driver->cache (blk, n, off + done);
  }
  return finish (blk, "cache", len, off, before, r);
}

int
blk_resize (struct blk *blk, uint64_t size)
{
  uint64_t before = nr_reported;
  int r;

  if (blk->can & BLK_IS_READ_ONLY)
    return -EPERM;
  if (!blk->driver->resize)
    return -ENOTSUP;
  if (size > RANGE_MAX_SIZE)
    return -EFBIG;
  r = blk->driver->resize (blk, size);
  /* That is an answer, not a failure: some files are devices. */
  return r == -ENOTSUP ? r : finish (blk, "resize", size, 0, before, r);
}

/* Where the list ends; off if it is empty. */
static uint64_t
extents_end (const struct extents *e, uint64_t off)
{
  return e->len ? e->ptr[0].off + extents_length (e) : off;
}

/* What the driver owes: contiguous from off on, at least one extent, none
 * beyond end.  old_len: the number of extents before the call.
 */
static int
check_extents (const struct extents *e, size_t old_len, uint64_t off,
               uint64_t end)
{
  uint64_t pos = off;
  size_t i;

  for (i = old_len; i < e->len; i++) {
    /* The first ones may have been merged into the last old one. */
    if (i == old_len && old_len > 0)
      pos = e->ptr[i].off;
    if (e->ptr[i].off != pos || e->ptr[i].len == 0)
      return -EPROTO;
    pos += e->ptr[i].len;
  }
  pos = extents_end (e, off);
  if (pos > end || (pos == off && e->len < e->max))
    return -EPROTO;
  return 0;
}

int
blk_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
             enum blk_status status, struct extents *e)
{
  uint64_t before = nr_reported;
  size_t old_len = e->len;
  int r = check_read (blk, len, off);

  assert (extents_end (e, off) == off);
  if (flags & ~(unsigned) BLK_ONE)
    r = -EINVAL;
  if (r < 0 || len == 0)
    return r;
  if (!(blk->can & BLK_CAN_EXTENTS) || !blk->driver->extents) {
    r = extents_add (e, off, len, status == BLK_STATUS_DEPTH ? 1 : 0);
    return r < 0 ? r : 0;
  }

  lock_assert_io ();
  r = blk->driver->extents (blk, len, off, flags, status, e);
  if (r == 0)
    r = check_extents (e, old_len, off, off + len);
  if (r < 0)
    extents_truncate (e, off);
  else if ((flags & BLK_ONE) && e->len > old_len + 1)
    e->len = old_len + 1;
  return finish (blk, "block status", len, off, before, r);
}

/* What the driver's read_stream sees in the place of the caller. */
struct stream {
  struct blk *blk;
  const struct blk_stream_ops *ops;
  void *opaque;
};

/* Give the driver only what it can read as it is; the rest is done here. */
static int
stream_next (void *opaque, struct blk_read *read)
{
  const struct stream *s = opaque;
  int r;

  while ((r = s->ops->next (s->opaque, read)) > 0) {
    if (read->len > 0 && check_read (s->blk, read->len, read->off) == 0
        && piece_length (s->blk, read->len) == read->len)
      return 1;
    r = blk_pread (s->blk, read->buf, read->len, read->off, 0);
    r = s->ops->done (s->opaque, read, r);
    if (r < 0)
      break;
  }
  return r;
}

static int
stream_done (void *opaque, struct blk_read *read, int error)
{
  const struct stream *s = opaque;

  count (&s->blk->stats.reads, 1);
  count (&s->blk->stats.read_bytes, read->len);
  finish (s->blk, "read", read->len, read->off, nr_reported, error);
  return s->ops->done (s->opaque, read, error);
}

static const struct blk_stream_ops stream_ops = {
  .next = stream_next,
  .done = stream_done,
};

int
blk_read_stream (struct blk *blk, unsigned depth,
                 const struct blk_stream_ops *ops, void *opaque)
{
  struct stream stream = { .blk = blk, .ops = ops, .opaque = opaque };
  struct blk_read read;
  int r;

  lock_assert_io ();
  if (blk->driver->read_stream)
    return blk->driver->read_stream (blk, MAX (depth, 1), &stream_ops,
                                     &stream);
  while ((r = ops->next (opaque, &read)) > 0) {
    r = blk_pread (blk, read.buf, read.len, read.off, 0);
    r = ops->done (opaque, &read, r);
    if (r < 0)
      break;
  }
  return r;
}
