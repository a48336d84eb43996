/* SPDX-License-Identifier: BSD-3-Clause */
/* The write gate of a disk.
 *
 * I5 (part): every write is wholly before or wholly after a point.  A write is
 * inside the gate from before its first effect to after its last; whoever
 * takes a point has closed the gate and found it empty.
 *
 * gate_enter and gate_leave are called from any thread that changes the disk;
 * gate_close and gate_open from control threads.
 *
 * States, in gate->state:
 *   open             -> closing        [gate_close]
 *   closing          -> closed, empty  [gate_close, once the count is 0]
 *   closed, empty    -> open           [gate_open]
 * The count of a closed gate can rise above 0 for a moment: a newcomer adds
 * itself before it sees that it must wait.  So GATE_EMPTY is remembered, not
 * derived from the count.  Each newcomer does so once per closing, hence a
 * closer cannot starve.
 */
#include "config.h"

#include <assert.h>

#include "gate.h"

void
gate_init (struct gate *gate)
{
  atomic_init (&gate->state, 0);
  lock_init (&gate->lock, LOCK_RANK_GATE);
  cond_init (&gate->changed);
  gate->is_closing = false;
  gate->nr_waiting = 0;
}

void
gate_destroy (struct gate *gate)
{
  assert ((atomic_load (&gate->state) & GATE_NR_MASK) == 0);
  pthread_cond_destroy (&gate->changed);
  lock_destroy (&gate->lock);
}

/* Take back the count of one who was inside, or who came too late. */
static void
leave_locked (struct gate *gate)
{
  lock_assert_held (&gate->lock);
  if ((atomic_fetch_sub (&gate->state, 1) & GATE_NR_MASK) == 1)
    pthread_cond_broadcast (&gate->changed);
}

static __attribute__ ((noinline)) void
enter_slowly (struct gate *gate)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&gate->lock);

  leave_locked (gate);
  gate->nr_waiting++;
  while (atomic_load (&gate->state) & GATE_CLOSED)
    lock_wait (&gate->lock, &gate->changed);
  gate->nr_waiting--;
  /* Gates are closed under the lock, so it is still open. */
  atomic_fetch_add (&gate->state, 1);
}

void
gate_enter (struct gate *gate)
{
  uint32_t old = atomic_fetch_add_explicit (&gate->state, 1,
                                            memory_order_acquire);
  if (__builtin_expect (old & GATE_CLOSED, 0))
    enter_slowly (gate);
}

void
gate_leave (struct gate *gate)
{
  uint32_t old = atomic_fetch_sub_explicit (&gate->state, 1,
                                            memory_order_release);

  assert (old & GATE_NR_MASK);
  if (__builtin_expect (old == (GATE_CLOSED | 1), 0)) {
    /* The closer reads the count under the lock, so it either saw 0 or is
     * waiting by now.
     */
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&gate->lock);
    pthread_cond_broadcast (&gate->changed);
  }
}

void
gate_close (struct gate *gate)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&gate->lock);

  while (gate->is_closing)
    lock_wait (&gate->lock, &gate->changed);
  gate->is_closing = true;
  atomic_fetch_or (&gate->state, GATE_CLOSED);
  while (atomic_load (&gate->state) & GATE_NR_MASK)
    lock_wait (&gate->lock, &gate->changed);
  atomic_fetch_or (&gate->state, GATE_EMPTY);
}

void
gate_open (struct gate *gate)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&gate->lock);

  assert (gate->is_closing && gate_is_closed (gate));
  gate->is_closing = false;
  atomic_fetch_and (&gate->state, ~(uint32_t) (GATE_CLOSED | GATE_EMPTY));
  pthread_cond_broadcast (&gate->changed);
}

bool
gate_is_closed (const struct gate *gate)
{
  return atomic_load_explicit (&gate->state, memory_order_relaxed)
    & GATE_EMPTY;
}

bool
gate_is_entered (const struct gate *gate)
{
  return atomic_load_explicit (&gate->state, memory_order_relaxed)
    & GATE_NR_MASK;
}
