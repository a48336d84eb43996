/* SPDX-License-Identifier: BSD-3-Clause */
/* Whether a kind of request is better carried out by the connection's own
 * thread (no hand-over: best when the page cache takes it) or by a worker
 * (best when it waits for a disk).  Learned from how long the last ones took.
 *
 * Used by one thread; no lock.
 */
#ifndef TIDEMARK_INLINE_POLICY_H
#define TIDEMARK_INLINE_POLICY_H

#include <stdbool.h>
#include <stdint.h>

/* A hand-over costs about 10 us; slower than this is slow. */
#define INLINE_SLOW_NS 150000
/* Requests sent to workers after a slow one, doubled each time in a row. */
#define INLINE_MIN_PAUSE 16
#define INLINE_MAX_PAUSE 1024

struct inline_policy {
  unsigned left;                /* to go to workers before the next try */
  unsigned pause;               /* the last number of those; 0 = was fast */
  bool is_suspect;              /* one was slow: once may be the scheduler's
                                   doing, twice in a row is the disk's */
};

/* True: carry this one out now, and tell inline_policy_took. */
static inline bool
inline_policy_try (struct inline_policy *p)
{
  if (p->left == 0)
    return true;
  p->left--;
  return false;
}

static inline void
inline_policy_took (struct inline_policy *p, uint64_t ns)
{
  bool was_suspect = p->is_suspect;

  p->is_suspect = ns >= INLINE_SLOW_NS;
  if (!p->is_suspect)
    p->pause = 0;
  if (!p->is_suspect || !was_suspect)
    return;
  if (p->pause == 0)
    p->pause = INLINE_MIN_PAUSE;
  else if (p->pause < INLINE_MAX_PAUSE)
    p->pause *= 2;
  p->left = p->pause;
}

#endif /* TIDEMARK_INLINE_POLICY_H */
