/* SPDX-License-Identifier: BSD-3-Clause */
/* THE node interface: one open block device, a driver and its children, fixed
 * once opened.  Every I/O of the program passes the blk_* functions, which
 * check it, count it, dispatch it to the driver and log its failure once.
 *
 * All calls block and may be made from any thread at any time between open and
 * close.  Positions and lengths are bytes.  Data-path calls return 0 or
 * -errno, always for the whole range: there are no short reads or writes.
 */
#ifndef TIDEMARK_BLK_H
#define TIDEMARK_BLK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk-event.h"
#include "error.h"
#include "extents.h"

struct blk;

/* Request flags. */
enum {
  BLK_FUA = 1 << 0,             /* pwrite, zero, trim: durable on return */
  BLK_MAY_UNMAP = 1 << 1,       /* zero: may deallocate */
  BLK_FAST = 1 << 2,            /* zero: -EOPNOTSUPP unless faster than
                                   writing zeroes */
  BLK_NOWAIT = 1 << 3,          /* pread: -EAGAIN instead of waiting for the
                                   disk; a hint, a driver may ignore it by
                                   answering -EAGAIN always */
  BLK_ONE = 1 << 4,             /* extents: the first extent is enough */
  BLK_COMPRESS = 1 << 5,        /* pwrite: store whole clusters compressed if
                                   that makes them shorter */
  BLK_KEEP_ZERO = 1 << 6,       /* zero: this layer is to say that it is zero
                                   even if it reads so already, for a backing
                                   file may be put under it later; a hint for
                                   drivers that have layers */
};

/* What a node can do; fixed after open. */
enum {
  BLK_IS_READ_ONLY = 1 << 0,
  BLK_CAN_TRIM = 1 << 1,
  BLK_CAN_ZERO = 1 << 2,        /* zero is better than writing zeroes */
  BLK_CAN_FAST_ZERO = 1 << 3,   /* BLK_FAST is understood */
  BLK_CAN_CACHE = 1 << 4,
  BLK_CAN_EXTENTS = 1 << 5,     /* else everything is data */
  BLK_CAN_MULTI_CONN = 1 << 6,  /* a flush covers all completed writes of all
                                   threads and connections */
  BLK_CAN_NOWAIT = 1 << 7,      /* pread understands BLK_NOWAIT */
  BLK_IS_ROTATIONAL = 1 << 8,
  BLK_CAN_FUA = 1 << 9,         /* the driver honours BLK_FUA; one that does
                                   not say so never sees the flag: the choke
                                   point flushes instead */
  BLK_CAN_COMPRESS = 1 << 10,   /* BLK_COMPRESS is understood */
};

/* What blk_extents asks for. */
enum blk_status {
  BLK_STATUS_ALLOCATION,        /* EXTENT_HOLE | EXTENT_ZERO */
  BLK_STATUS_DEPTH,             /* 0 unallocated, 1 this layer, 2 its backing
                                   file, ... */
};

/* One read of a stream, see blk_read_stream. */
struct blk_read {
  uint64_t off;
  uint64_t len;
  void *buf;                    /* len bytes, the caller's */
  void *opaque;                 /* the caller's */
};

/* What blk_read_stream calls, always from the thread that called it. */
struct blk_stream_ops {
  /* Fill *read with the next range and return 1; 0: no more (it may be asked
   * again while reads are in flight); -errno: give up.
   */
  int (*next) (void *opaque, struct blk_read *read);
  /* The read ended, error 0 or -errno.  In any order.  Returns 0, or -errno
   * to give up; the remaining reads in flight still get their call.
   */
  int (*done) (void *opaque, struct blk_read *read, int error);
};

/* The driver's table.  Arguments have been checked: ranges within the size
 * and len > 0 (except flush), no write on a read-only node, flags only where
 * listed above and only if the node can.  NULL where "optional".  The size may
 * shrink between the check and the call: a driver fails then, but not badly.
 */
struct blk_driver {
  const char *name;
  /* Release everything (backing too) and free blk.  Returns the first error
   * of writing back what had to be written; the node is gone in any case.
   */
  int (*close) (struct blk *blk);
  int (*pread) (struct blk *blk, void *buf, uint64_t len, uint64_t off,
                unsigned flags);
  int (*pwrite) (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
                 unsigned flags);
  /* Optional: the choke point writes zeroes instead, also for a range for
   * which this returns -EOPNOTSUPP (unless BLK_FAST).
   */
  int (*zero) (struct blk *blk, uint64_t len, uint64_t off, unsigned flags);
  /* Optional: trim is advice, doing nothing is right.  Called only if the
   * node says BLK_CAN_TRIM; one that is read-only and says so takes trims.
   */
  int (*trim) (struct blk *blk, uint64_t len, uint64_t off, unsigned flags);
  int (*flush) (struct blk *blk);
  /* Append extents from off on, at least one, contiguous, and at most to
   * off + len; stopping early is allowed.  Called only if the node says
   * BLK_CAN_EXTENTS.  Optional: all data, depth 1.
   */
  int (*extents) (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
                  enum blk_status status, struct extents *extents);
  /* Optional: the range, or a beginning of it, is read soon; advice. */
  int (*cache) (struct blk *blk, uint64_t len, uint64_t off);
  /* Optional: the node cannot be resized.  On success the driver sets
   * blk->size.
   */
  int (*resize) (struct blk *blk, uint64_t size);
  /* Optional: the choke point reads one after the other.  ops->next gives it
   * valid ranges of at most max_request.
   */
  int (*read_stream) (struct blk *blk, unsigned depth,
                      const struct blk_stream_ops *ops, void *opaque);
  /* Optional: for nodes that inject faults.  Must not block. */
  void (*event) (struct blk *blk, enum blk_event event);
};

struct blk_stats {
  _Atomic uint64_t reads, writes, zeroes, trims, flushes;
  _Atomic uint64_t read_bytes, written_bytes;
  _Atomic uint64_t failures;
};

/* Drivers embed this as their first member and fill it with blk_init. */
struct blk {
  /* Fixed after open. */
  const struct blk_driver *driver;
  char *name;                   /* node name for logs and queries */
  char *filename;               /* what was opened; may be NULL */
  unsigned can;                 /* BLK_IS_*, BLK_CAN_* */
  uint32_t block_size;          /* smallest efficient request; power of 2 */
  uint32_t cluster_size;        /* the format's; 0 = none */
  uint32_t max_request;         /* largest request; 0 = none.  The choke
                                   point splits what is longer. */
  struct blk *backing;          /* owned; NULL = none */

  /* Atomic. */
  _Atomic uint64_t size;        /* bytes */
  char pad[64];                 /* counting does not slow down the readers of
                                   what is above */
  struct blk_stats stats;
  _Atomic bool is_quiet;        /* failures are not logged: there is one reason
                                   for all, which the node's owner says */
  _Atomic uint64_t log_window;  /* private to the choke point, as the next */
  _Atomic uint64_t nr_logged;
};

/* For drivers: set the members of a zeroed node.  name and filename are
 * copied.  0 or -ENOMEM.
 */
int blk_init (struct blk *blk, const struct blk_driver *driver,
              const char *name, const char *filename, uint64_t size,
              unsigned can);
/* For drivers: free what blk_init allocated (not blk itself, not backing). */
void blk_fini (struct blk *blk);

/* Close the node and what it owns.  NULL is allowed.  The node is gone even
 * if this returns an error: -errno of what could not be written back.
 */
int blk_close (struct blk *blk);

static inline uint64_t
blk_size (const struct blk *blk)
{
  return atomic_load_explicit (&blk->size, memory_order_acquire);
}

static inline bool
blk_is_read_only (const struct blk *blk)
{
  return blk->can & BLK_IS_READ_ONLY;
}

/* The node above tells what it is about to do with this one. */
static inline void
blk_event (struct blk *blk, enum blk_event event)
{
  if (__builtin_expect (blk->driver->event != NULL, 0))
    blk->driver->event (blk, event);
}

/* Errors of all of these, besides the driver's own: -EINVAL for a range that
 * is not within the size (-ENOSPC when writing) or a flag that does not apply,
 * -EPERM for a change of a read-only node.  len 0 succeeds and does nothing.
 * pread: BLK_NOWAIT (-EAGAIN if the node cannot); pwrite: BLK_FUA,
 * BLK_COMPRESS (-EINVAL if the node cannot); zero:
 * BLK_FUA, BLK_MAY_UNMAP, BLK_FAST, BLK_KEEP_ZERO; trim: BLK_FUA; extents:
 * BLK_ONE.  FUA is emulated by a flush where the driver cannot.
 */
int blk_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
               unsigned flags);
int blk_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
                unsigned flags);
int blk_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags);
int blk_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags);
int blk_flush (struct blk *blk);
int blk_cache (struct blk *blk, uint64_t len, uint64_t off);
/* -ENOTSUP if the driver cannot. */
int blk_resize (struct blk *blk, uint64_t size);

/* Append the status of a prefix of [off, off+len): at least one extent on
 * success, unless *extents was full before.  Stops early when *extents is
 * full.  Adjacent extents of equal value are merged.  On failure *extents is
 * as it was.  The list must be empty or end at off.
 */
int blk_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
                 enum blk_status status, struct extents *extents);

/* Read many ranges with up to depth in flight.  Blocks until next returned 0
 * with nothing left in flight, or something gave up.  Several threads may
 * stream from one node at once: on a network node each uses a connection of
 * its own as far as there are enough.  Returns 0 or the first -errno of next
 * or done; a failed read is only reported to done.
 */
int blk_read_stream (struct blk *blk, unsigned depth,
                     const struct blk_stream_ops *ops, void *opaque);

#endif /* TIDEMARK_BLK_H */
