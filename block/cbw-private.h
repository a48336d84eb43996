/* SPDX-License-Identifier: BSD-3-Clause */
/* What cbw.c (the engine, the guest's side) and cbw-view.c (the reader's side)
 * share.
 */
#ifndef TIDEMARK_CBW_PRIVATE_H
#define TIDEMARK_CBW_PRIVATE_H

#include "cbw.h"
#include "lock.h"
#include "reqlist.h"

/* One claim covers at most this much I/O, so that nobody waits longer than
 * that takes.
 */
#define CBW_PIECE_SIZE (UINT64_C (256) << 10)

enum cbw_state {
  CBW_NEW,
  CBW_HOLDING,
  CBW_STOPPED,
};

/* What a view knows about a range. */
enum cbw_part {
  CBW_PART_OUTSIDE,             /* not in the held set, or given up */
  CBW_PART_COPIED,              /* in scratch */
  CBW_PART_LIVE,                /* held, and still in its place on the disk */
};

struct cbw_view {
  struct blk blk;               /* the reader's node; must be first */

  /* Fixed after cbw_view_new. */
  struct cbw *cbw;              /* not used after cbw_view_stop */
  struct blk *node;
  enum cbw_on_error on_error;
  uint64_t scratch_limit;       /* UINT64_MAX = none */
  uint64_t size;                /* of the disk at the point */
  uint64_t block_size;          /* power of two, >= CBW_BLOCK_SIZE */
  uint64_t piece_size;          /* CBW_PIECE_SIZE, or a block */
  bool stores_zeroes;
  uint64_t held_unit;           /* power of two, >= block_size */
  void (*broken) (void *opaque);
  void *opaque;
  struct blk *scratch;          /* until cbw_view_discard */

  /* Change only while the gate is closed. */
  const struct bitmap *held;    /* NULL = all */
  struct cbw_view *next;        /* in cbw->first */

  /* Set under lock, read with or without.  A set bit never goes. */
  struct bitmap *copied;        /* blocks */
  struct bitmap *released;      /* given up by the reader */
  struct bitmap *stored;        /* copied, and not zero: it is in the file */

  /* Atomic. */
  _Atomic int error;            /* -errno; set once, under lock */
  _Atomic uint64_t scratch_bytes;
  _Atomic uint64_t copied_bytes;

  struct lock lock;
  /* Protected by lock. */
  enum cbw_state state;
  struct reqlist shared;        /* being read, from the disk or from scratch */
  struct reqlist exclusive;     /* being copied, or given up */
  unsigned nr_users;            /* calls of the reader's node in progress */
  pthread_cond_t idle;          /* nr_users became 0 */
  struct cbw_buffer *buffers;   /* free ones */
};

/* What the range's first bytes are; *ret_len is how far that goes (a prefix,
 * not always the longest).  len > 0.  With the lock held the answer stays
 * true; without, a part can become COPIED or OUTSIDE at any time, but those
 * do not change again.
 */
enum cbw_part cbw_find_part (const struct cbw_view *v, uint64_t off,
                             uint64_t len, uint64_t *ret_len);

/* Claim a prefix of [off, off+*len) for oneself, the lock held: wait until
 * nobody else claims the first unit exclusively, add the claim, then wait for
 * the readers.  Readers that come after wait, so that a stream of them cannot
 * starve this one.  *len becomes the claim's length, whole units or all.
 */
void cbw_claim_exclusive (struct cbw_view *v, struct req *claim,
                          uint64_t off, uint64_t unit, uint64_t *len);

/* Bytes of [off, off+len) that take space in scratch. */
uint64_t cbw_stored_bytes (const struct cbw_view *v, uint64_t off,
                           uint64_t len);

extern const struct blk_driver cbw_view_driver;

#endif /* TIDEMARK_CBW_PRIVATE_H */
