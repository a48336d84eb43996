/* SPDX-License-Identifier: BSD-3-Clause */
/* Mutexes that know their owner and their place in the lock order.
 *
 * A thread may acquire a lock only if its rank is above every rank that the
 * thread already holds.  Unless NDEBUG is defined, owner and order are checked
 * and a breach aborts: it is our own mistake.  block/LOCKING.md says what each
 * rank protects.
 */
#ifndef TIDEMARK_LOCK_H
#define TIDEMARK_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <time.h>

enum lock_rank {
  LOCK_RANK_JOBS = 0,           /* block: push jobs; events go out under it */
  LOCK_RANK_SERVICE,            /* server: process-wide lists */
  LOCK_RANK_CONTROL,            /* server: one control connection */
  LOCK_RANK_SESSIONS,           /* block: session manager */
  LOCK_RANK_EXPORTS,            /* server: export table */
  LOCK_RANK_CONN,               /* server: one NBD connection */
  LOCK_RANK_COPY,               /* block: the copy engine's queue; held while
                                   its user looks for the next item */
  LOCK_RANK_DISK,               /* block: bitmap administration of a disk */
  LOCK_RANK_GATE,               /* block: slow path of a gate */
  LOCK_RANK_CBW,                /* block: one view's claims and maps */
  LOCK_RANK_DIRTY,              /* block: list and states of bitmaps */
  LOCK_RANK_STORE,              /* block: a store's intents and arrays */
  LOCK_RANK_FORMAT,             /* block: qcow2 metadata */
  LOCK_RANK_PROTOCOL,           /* block: blk-nbd, blk-file, blk-debug */
  LOCK_RANK_WORKERS,            /* common: a worker pool's queue */
  LOCK_RANK_LEAF,               /* nothing is acquired below this */
  NR_LOCK_RANKS
};

struct lock {
  pthread_mutex_t mutex;
  enum lock_rank rank;          /* fixed after init */
  pthread_t owner;              /* protected by mutex; valid if is_held */
  bool is_held;
};

void lock_init (struct lock *lock, enum lock_rank rank);
void lock_destroy (struct lock *lock);
void lock_acquire (struct lock *lock);
void lock_release (struct lock *lock);

/* Abort unless the calling thread holds the lock (no-op with NDEBUG). */
void lock_assert_held (const struct lock *lock);

/* Abort if the calling thread holds a lock that must not be held over data I/O:
 * any but COPY, and those from FORMAT on, which are for the I/O of a format's
 * metadata (no-op with NDEBUG).
 */
#ifdef NDEBUG
static inline void
lock_assert_io (void)
{
}
#else
void lock_assert_io (void);
#endif

/* Condition variables use CLOCK_MONOTONIC. */
void cond_init (pthread_cond_t *cond);

/* pthread_cond_wait on a struct lock that the caller holds. */
void lock_wait (struct lock *lock, pthread_cond_t *cond);

/* As lock_wait, until the CLOCK_MONOTONIC time *deadline.  Returns false if
 * the time ran out.
 */
bool lock_wait_until (struct lock *lock, pthread_cond_t *cond,
                      const struct timespec *deadline);

static inline void
cleanup_lock_release (struct lock **lock)
{
  lock_release (*lock);
}

#define LOCK_CONCAT_(a, b) a##b
#define LOCK_CONCAT(a, b) LOCK_CONCAT_ (a, b)

/* Hold the lock until the end of the enclosing scope. */
#define ACQUIRE_LOCK_FOR_CURRENT_SCOPE(l) \
  __attribute__ ((cleanup (cleanup_lock_release), unused)) \
  struct lock *LOCK_CONCAT (scope_lock_, __LINE__) = (l); \
  lock_acquire (l)

#endif /* TIDEMARK_LOCK_H */
