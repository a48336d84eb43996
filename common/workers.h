/* SPDX-License-Identifier: BSD-3-Clause */
/* A fixed pool of threads that run submitted work in order of submission. */
#ifndef TIDEMARK_WORKERS_H
#define TIDEMARK_WORKERS_H

#include <stddef.h>

struct workers;

/* One piece of work, embedded in the submitter's object: submitting allocates
 * nothing.  Not touched by the pool once run has been called.
 */
struct work {
  void (*run) (struct work *work);
  struct work *next;            /* private to the pool */
};

/* 0 or -errno. */
int workers_new (size_t nr_threads, const char *name, struct workers **ret);

/* Runs what is queued, then joins the threads. */
void workers_free (struct workers *w);

/* Never blocks on the work itself, never fails. */
void workers_submit (struct workers *w, struct work *work);

#endif /* TIDEMARK_WORKERS_H */
