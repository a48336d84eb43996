/* SPDX-License-Identifier: BSD-3-Clause */
/* The write gate of a disk: every write is inside it, a point in time is taken
 * while it is closed and empty.
 */
#ifndef TIDEMARK_GATE_H
#define TIDEMARK_GATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "lock.h"

enum {
  GATE_CLOSED = 1u << 30,       /* newcomers wait */
  GATE_EMPTY = 1u << 29,        /* closed, and everybody has left */
  GATE_NR_MASK = GATE_EMPTY - 1,
};

struct gate {
  /* Atomic. */
  _Atomic uint32_t state;       /* GATE_CLOSED | GATE_EMPTY | number inside */

  struct lock lock;
  /* Protected by lock. */
  pthread_cond_t changed;
  bool is_closing;              /* somebody closes or has closed the gate */
  unsigned nr_waiting;          /* to enter */
};

void gate_init (struct gate *gate);
void gate_destroy (struct gate *gate);

/* Enter; waits while the gate is closed.  One atomic operation otherwise. */
void gate_enter (struct gate *gate);
void gate_leave (struct gate *gate);

/* Close the gate to newcomers and wait until it is empty.  Waits for another
 * closer first.  Several gates are closed in ascending order of their disks'
 * numbers (disk.h), so that two closers cannot wait for each other.  The
 * caller must not be inside.
 */
void gate_close (struct gate *gate);
void gate_open (struct gate *gate);

/* For assertions: closed and empty; somebody inside (or about to wait, if the
 * gate is closed).
 */
bool gate_is_closed (const struct gate *gate);
bool gate_is_entered (const struct gate *gate);

#endif /* TIDEMARK_GATE_H */
