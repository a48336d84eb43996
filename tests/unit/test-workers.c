/* SPDX-License-Identifier: BSD-3-Clause */
/* common/workers: order, parallel runs, draining at the end. */
#include "config.h"

#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#include "lock.h"
#include "unit/unit.h"
#include "workers.h"

struct job {
  struct work work;
  unsigned number;
  struct workers *pool;         /* resubmit this often */
  unsigned nr_again;
};

static atomic_uint nr_run;
static unsigned order[1000];

static void
run_in_order (struct work *work)
{
  struct job *job = (struct job *) work;

  order[atomic_fetch_add (&nr_run, 1)] = job->number;
}

/* One thread: the order of submission; free runs all that is queued. */
static void
test_order (void **state)
{
  static struct job jobs[1000];
  struct workers *w;
  unsigned i;

  nr_run = 0;
  assert_int_equal (workers_new (1, "a name that is too long", &w), 0);
  for (i = 0; i < 1000; i++) {
    jobs[i] = (struct job) { .work.run = run_in_order, .number = i };
    workers_submit (w, &jobs[i].work);
  }
  workers_free (w);
  assert_int_equal (nr_run, 1000);
  for (i = 0; i < 1000; i++)
    assert_int_equal (order[i], i);
}

static pthread_barrier_t barrier;

static void
run_barrier (struct work *work)
{
  sigset_t blocked;

  pthread_sigmask (SIG_SETMASK, NULL, &blocked);
  if (sigismember (&blocked, SIGTERM))
    atomic_fetch_add (&nr_run, 1);
  pthread_barrier_wait (&barrier);
}

/* Four works that all wait for each other: only four threads can run them. */
static void
test_parallel (void **state)
{
  struct job jobs[4];
  struct workers *w;
  unsigned i;

  nr_run = 0;
  pthread_barrier_init (&barrier, NULL, 5);
  assert_int_equal (workers_new (4, "test", &w), 0);
  for (i = 0; i < 4; i++) {
    jobs[i] = (struct job) { .work.run = run_barrier };
    workers_submit (w, &jobs[i].work);
  }
  pthread_barrier_wait (&barrier);
  workers_free (w);
  pthread_barrier_destroy (&barrier);
  /* With signals blocked, each. */
  assert_int_equal (nr_run, 4);
}

static void
run_again (struct work *work)
{
  struct job *job = (struct job *) work;

  atomic_fetch_add (&nr_run, 1);
  if (job->nr_again > 0) {
    job->nr_again--;
    workers_submit (job->pool, work);
  }
}

/* A work may submit itself again; free waits for that too. */
static void
test_resubmit (void **state)
{
  struct job jobs[8];
  struct workers *w;
  unsigned i;

  nr_run = 0;
  assert_int_equal (workers_new (3, "test", &w), 0);
  for (i = 0; i < 8; i++) {
    jobs[i] = (struct job) { .work.run = run_again, .pool = w,
                             .nr_again = 500 };
    workers_submit (w, &jobs[i].work);
  }
  workers_free (w);
  assert_int_equal (nr_run, 8 * 501);
}

static void
test_unused (void **state)
{
  struct workers *w;

  assert_int_equal (workers_new (8, "test", &w), 0);
  workers_free (w);
  workers_free (NULL);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_order),
    cmocka_unit_test (test_parallel),
    cmocka_unit_test (test_resubmit),
    cmocka_unit_test (test_unused),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
