/* SPDX-License-Identifier: BSD-3-Clause */
/* Mutexes that know their owner and their rank: see lock.h.  Any thread.
 *
 * A thread never holds two locks of one rank, so a bit per rank says exactly
 * which ones it holds: the check costs a shift.
 */
#include "config.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "lock.h"

_Static_assert (NR_LOCK_RANKS <= 32, "a bit of ranks_held per rank");

static const char *const rank_names[NR_LOCK_RANKS] = {
  [LOCK_RANK_JOBS] = "JOBS",
  [LOCK_RANK_SERVICE] = "SERVICE", [LOCK_RANK_CONTROL] = "CONTROL",
  [LOCK_RANK_SESSIONS] = "SESSIONS", [LOCK_RANK_EXPORTS] = "EXPORTS",
  [LOCK_RANK_CONN] = "CONN", [LOCK_RANK_DISK] = "DISK",
  [LOCK_RANK_GATE] = "GATE", [LOCK_RANK_CBW] = "CBW",
  [LOCK_RANK_DIRTY] = "DIRTY", [LOCK_RANK_COPY] = "COPY",
  [LOCK_RANK_STORE] = "STORE", [LOCK_RANK_FORMAT] = "FORMAT",
  [LOCK_RANK_PROTOCOL] = "PROTOCOL", [LOCK_RANK_WORKERS] = "WORKERS",
  [LOCK_RANK_LEAF] = "LEAF",
};

#ifndef NDEBUG
static __thread uint32_t ranks_held;
#endif

static void __attribute__ ((noreturn, cold))
breach (const struct lock *lock, const char *what)
{
  fprintf (stderr, "lock of rank %s: %s\n",
           lock->rank < NR_LOCK_RANKS ? rank_names[lock->rank] : "?", what);
  abort ();
}

static void
check_result (const struct lock *lock, int r)
{
  if (r != 0)
    breach (lock, "the mutex call failed");
}

static void
check_before_acquire (const struct lock *lock)
{
#ifndef NDEBUG
  if (ranks_held >> lock->rank)
    breach (lock, "acquired while a lock of this or a higher rank is held");
#endif
}

static void
note_acquired (struct lock *lock)
{
#ifndef NDEBUG
  ranks_held |= UINT32_C (1) << lock->rank;
#endif
  lock->owner = pthread_self ();
  lock->is_held = true;
}

static void
note_released (struct lock *lock)
{
  lock_assert_held (lock);
#ifndef NDEBUG
  ranks_held &= ~(UINT32_C (1) << lock->rank);
#endif
  lock->is_held = false;
}

void
lock_init (struct lock *lock, enum lock_rank rank)
{
  lock->rank = rank;
  lock->is_held = false;
  check_result (lock, pthread_mutex_init (&lock->mutex, NULL));
}

void
lock_destroy (struct lock *lock)
{
#ifndef NDEBUG
  if (lock->is_held)
    breach (lock, "destroyed while it is held");
#endif
  check_result (lock, pthread_mutex_destroy (&lock->mutex));
}

void
lock_acquire (struct lock *lock)
{
  check_before_acquire (lock);
  check_result (lock, pthread_mutex_lock (&lock->mutex));
  note_acquired (lock);
}

void
lock_release (struct lock *lock)
{
  note_released (lock);
  check_result (lock, pthread_mutex_unlock (&lock->mutex));
}

void
lock_assert_held (const struct lock *lock)
{
#ifndef NDEBUG
  if (!lock->is_held || !pthread_equal (lock->owner, pthread_self ()))
    breach (lock, "not held by this thread");
#endif
}

#ifndef NDEBUG
void
lock_assert_io (void)
{
  uint32_t held = ranks_held & ((UINT32_C (1) << LOCK_RANK_FORMAT) - 1)
    & ~(UINT32_C (1) << LOCK_RANK_COPY);

  if (held == 0)
    return;
  fprintf (stderr, "lock of rank %s: held over I/O\n",
           rank_names[__builtin_ctz (held)]);
  abort ();
}
#endif

void
cond_init (pthread_cond_t *cond)
{
  pthread_condattr_t attr;

  if (pthread_condattr_init (&attr) != 0
      || pthread_condattr_setclock (&attr, CLOCK_MONOTONIC) != 0
      || pthread_cond_init (cond, &attr) != 0)
    abort ();
  pthread_condattr_destroy (&attr);
}

void
lock_wait (struct lock *lock, pthread_cond_t *cond)
{
  note_released (lock);
  check_result (lock, pthread_cond_wait (cond, &lock->mutex));
  note_acquired (lock);
}

bool
lock_wait_until (struct lock *lock, pthread_cond_t *cond,
                 const struct timespec *deadline)
{
  int r;

  note_released (lock);
  r = pthread_cond_timedwait (cond, &lock->mutex, deadline);
  if (r != 0 && r != ETIMEDOUT)
    breach (lock, "pthread_cond_timedwait failed");
  note_acquired (lock);
  return r == 0;
}
