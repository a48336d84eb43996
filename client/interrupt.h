/* SPDX-License-Identifier: BSD-3-Clause */
/* SIGINT, SIGTERM and SIGHUP as a flag and a readable file descriptor. */
#ifndef TIDEMARK_INTERRUPT_H
#define TIDEMARK_INTERRUPT_H

#include <pthread.h>
#include <stdbool.h>

#include "error.h"

/* Once, before threads start; it starts one.  A second signal, a second after
 * the first or later, ends the process at once.
 */
int interrupt_init (struct error *err);

/* The process is about to end: signals have no effect any more. */
void interrupt_fini (void);

/* In a child process: signals are again as they were before interrupt_init. */
void interrupt_before_exec (void);

/* Turns true with the first signal; never back. */
const volatile bool *interrupt_flag (void);
bool interrupt_is_set (void);

/* Becomes readable with the first signal and stays so; -1 before init. */
int interrupt_fd (void);

/* Milliseconds, or until there is a signal.  Any thread. */
void interrupt_sleep (int ms);

/* -ECANCELED and a message that names the signal. */
int interrupt_error (struct error *err);

/* A call of fn (opaque), from a thread of its own, when a signal comes: for
 * what waits for somebody who may never answer.  At most once, and not after
 * interrupt_watch_stop has returned, which accepts a watch that was not
 * started and is all zeroes.
 */
struct interrupt_watch {
  void (*fn) (void *opaque);
  void *opaque;
  pthread_t thread;
  int stop_fds[2];              /* closing [1] ends the thread */
  bool is_started;
};

int interrupt_watch_start (struct interrupt_watch *w,
                           void (*fn) (void *opaque), void *opaque,
                           struct error *err);
void interrupt_watch_stop (struct interrupt_watch *w);

#endif /* TIDEMARK_INTERRUPT_H */
