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

/* Filter over child.  Takes ownership of child, on failure too.  It never
 * answers BLK_NOWAIT, so that a pause does not stop a thread that must not
 * wait.
 */
int blk_debug_open (struct blk *child, struct blk **ret, struct error *err);

/* Let the nth (from 1) request from now on that is one of ops fail with
 * errnum (positive) instead of reaching the child; with is_sticky all after it
 * too.  There is one rule: a new one takes the place of the old one, n 0
 * removes it.
 */
void blk_debug_fail_nth (struct blk *blk, unsigned ops, uint64_t n,
                         int errnum, bool is_sticky);
/* True if the rule fired since it was set. */
bool blk_debug_has_fired (struct blk *blk);

/* The next request that is one of ops and overlaps [off, off+len) pauses
 * before it reaches the child (and before a rule is applied to it), once.  A
 * flush overlaps everything.  Tags name pause points: -EEXIST, -ENOMEM.
 */
int blk_debug_break (struct blk *blk, unsigned ops, uint64_t off,
                     uint64_t len, const char *tag);
/* Wait until a request is paused at tag.  -ETIMEDOUT after 30 seconds; -ENOENT
 * if there is no such pause point.
 */
int blk_debug_wait_paused (struct blk *blk, const char *tag);
bool blk_debug_is_paused (struct blk *blk, const char *tag);
/* Let it go on.  -ENOENT if there is no such pause point; one that nothing
 * has reached yet is removed.
 */
int blk_debug_resume (struct blk *blk, const char *tag);

/* What was passed to the child since the last call, as lines "write 0+4096"
 * joined by "\n", flags behind it ("write 0+4096 fua", "zero 0+4096 unmap
 * fast"), a flush as "flush"; the caller frees it.  NULL: no memory.
 * Recording starts with the first call, which returns "".
 */
char *blk_debug_trace (struct blk *blk);

#endif /* TIDEMARK_BLK_DEBUG_H */
