/* SPDX-License-Identifier: BSD-3-Clause */
/* A filter that injects faults and pauses requests, for tests of ours and of
 * anyone's.
 */
#ifndef TIDEMARK_BLK_DEBUG_H
#define TIDEMARK_BLK_DEBUG_H

#include "blk.h"

enum blk_debug_op {
  BLK_DEBUG_READ = 1 << 0,
  BLK_DEBUG_WRITE = 1 << 1,
  BLK_DEBUG_ZERO = 1 << 2,
  BLK_DEBUG_TRIM = 1 << 3,
  BLK_DEBUG_FLUSH = 1 << 4,
  BLK_DEBUG_EXTENTS = 1 << 5,
  BLK_DEBUG_ANY = (1 << 6) - 1,
};

/* Filter over child.  Takes ownership of child, on failure too. */
int blk_debug_open (struct blk *child, struct blk **ret, struct error *err);

/* Let the nth (from 1) request from now on that is one of ops fail with
 * errnum (positive); with is_sticky all after it too.  n 0 removes the rule.
 */
void blk_debug_fail_nth (struct blk *blk, unsigned ops, uint64_t n,
                         int errnum, bool is_sticky);
/* True if the rule fired since it was set. */
bool blk_debug_has_fired (struct blk *blk);

/* The next request that is one of ops and overlaps [off, off+len) pauses
 * before it reaches the child, once.  Tags name pause points.
 */
int blk_debug_break (struct blk *blk, unsigned ops, uint64_t off,
                     uint64_t len, const char *tag);
/* Wait until a request is paused at tag.  -ETIMEDOUT after 30 seconds. */
int blk_debug_wait_paused (struct blk *blk, const char *tag);
bool blk_debug_is_paused (struct blk *blk, const char *tag);
/* Let it go on.  -ENOENT if there is no such pause point; one that nothing
 * has reached yet is removed.
 */
int blk_debug_resume (struct blk *blk, const char *tag);

/* What reached the child, as "write 0+4096" lines joined by "\n", since the
 * last call; the caller frees it.  Recording starts with the first call.
 */
char *blk_debug_trace (struct blk *blk);

#endif /* TIDEMARK_BLK_DEBUG_H */
