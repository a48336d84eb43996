/* SPDX-License-Identifier: BSD-3-Clause */
/* A fixed pool of threads: see workers.h.
 *
 * workers_submit is for any thread, also for one of the pool's own.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "lock.h"
#include "workers.h"

struct workers {
  /* Fixed after workers_new. */
  char name[16];                /* the longest that the kernel keeps */
  size_t nr_threads;
  pthread_t *threads;

  struct lock lock;
  /* Protected by lock. */
  pthread_cond_t submitted;     /* or stopping */
  struct work *first, *last;
  size_t nr_idle;
  bool is_stopping;
};

/* The next work, or NULL: the pool stops and the queue is empty. */
static struct work *
take_work (struct workers *w)
{
  struct work *work;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  while (!w->first && !w->is_stopping) {
    w->nr_idle++;
    lock_wait (&w->lock, &w->submitted);
    w->nr_idle--;
  }
  work = w->first;
  if (work) {
    w->first = work->next;
    if (!w->first)
      w->last = NULL;
  }
  return work;
}

static void *
run_thread (void *opaque)
{
  struct workers *w = opaque;
  struct work *work;

  pthread_setname_np (pthread_self (), w->name);
  while ((work = take_work (w)) != NULL)
    work->run (work);
  return NULL;
}

/* Start the threads with all signals blocked: they belong to the threads of
 * the program that wait for them.
 */
static int
start_threads (struct workers *w, size_t nr_threads)
{
  sigset_t all, old;
  int r = 0;

  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  while (r == 0 && w->nr_threads < nr_threads) {
    r = pthread_create (&w->threads[w->nr_threads], NULL, run_thread, w);
    if (r == 0)
      w->nr_threads++;
  }
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  return -r;
}

int
workers_new (size_t nr_threads, const char *name, struct workers **ret)
{
  struct workers *w = calloc (1, sizeof *w);
  int r;

  assert (nr_threads > 0);
  if (!w)
    return -ENOMEM;
  w->threads = calloc (nr_threads, sizeof *w->threads);
  if (!w->threads) {
    free (w);
    return -ENOMEM;
  }
  snprintf (w->name, sizeof w->name, "%s", name);
  lock_init (&w->lock, LOCK_RANK_WORKERS);
  cond_init (&w->submitted);

  r = start_threads (w, nr_threads);
  if (r < 0) {
    workers_free (w);
    return r;
  }
  *ret = w;
  return 0;
}

void
workers_free (struct workers *w)
{
  size_t i;

  if (!w)
    return;
  lock_acquire (&w->lock);
  w->is_stopping = true;
  pthread_cond_broadcast (&w->submitted);
  lock_release (&w->lock);

  for (i = 0; i < w->nr_threads; i++)
    pthread_join (w->threads[i], NULL);
  assert (!w->first);
  pthread_cond_destroy (&w->submitted);
  lock_destroy (&w->lock);
  free (w->threads);
  free (w);
}

void
workers_submit (struct workers *w, struct work *work)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  work->next = NULL;
  if (w->last)
    w->last->next = work;
  else
    w->first = work;
  w->last = work;
  if (w->nr_idle > 0)
    pthread_cond_signal (&w->submitted);
}
