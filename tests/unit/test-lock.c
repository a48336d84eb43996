/* SPDX-License-Identifier: BSD-3-Clause */
/* common/lock: owner and order are checked, a breach aborts. */
#include "config.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "lock.h"
#include "unit/unit.h"

static struct lock low, high;

/* Run f in a child process; true if it was ended by SIGABRT. */
static bool
aborts (void (*f) (void))
{
  static const struct rlimit no_core = { 0, 0 };
  pid_t pid = fork ();
  int status;

  assert_true (pid >= 0);
  if (pid == 0) {
    signal (SIGABRT, SIG_DFL);
    setrlimit (RLIMIT_CORE, &no_core);
    dup2 (open ("/dev/null", O_WRONLY), STDERR_FILENO);
    f ();
    _exit (0);
  }
  assert_int_equal (waitpid (pid, &status, 0), pid);
  if (WIFEXITED (status))
    assert_int_equal (WEXITSTATUS (status), 0);
  return WIFSIGNALED (status) && WTERMSIG (status) == SIGABRT;
}

static void
right_io (void)
{
  struct lock copy, format;

  lock_init (&copy, LOCK_RANK_COPY);
  lock_init (&format, LOCK_RANK_FORMAT);
  lock_acquire (&copy);
  lock_acquire (&format);
  lock_assert_io ();
  lock_release (&format);
  lock_release (&copy);
  lock_assert_io ();
}

static void
right_order (void)
{
  lock_acquire (&low);
  lock_acquire (&high);
  lock_assert_held (&low);
  lock_release (&low);          /* any order of release */
  lock_assert_held (&high);
  lock_release (&high);
  lock_acquire (&high);
  lock_release (&high);
}

#ifndef NDEBUG
static void
wrong_order (void)
{
  lock_acquire (&high);
  lock_acquire (&low);
}

static void
same_rank (void)
{
  struct lock other;

  lock_init (&other, LOCK_RANK_DISK);
  lock_acquire (&low);
  lock_acquire (&other);
}

static void
twice (void)
{
  lock_acquire (&low);
  lock_acquire (&low);
}

static void
release_unheld (void)
{
  lock_release (&low);
}

static void
assert_unheld (void)
{
  lock_assert_held (&low);
}

static void
destroy_held (void)
{
  lock_acquire (&low);
  lock_destroy (&low);
}

static void
io_held (void)
{
  lock_acquire (&low);
  lock_assert_io ();
}

static void *
assert_in_thread (void *arg)
{
  lock_assert_held (&low);
  return arg;
}

static void
assert_held_by_other (void)
{
  pthread_t thread;

  lock_acquire (&low);
  if (pthread_create (&thread, NULL, assert_in_thread, NULL) == 0)
    pthread_join (thread, NULL);
}

static void
wait_unheld (void)
{
  pthread_cond_t cond;

  cond_init (&cond);
  lock_wait (&low, &cond);
}

#endif /* !NDEBUG */

static void
test_breaches (void **state)
{
  assert_false (aborts (right_order));
  assert_false (aborts (right_io));
#ifndef NDEBUG
  assert_true (aborts (wrong_order));
  assert_true (aborts (same_rank));
  assert_true (aborts (twice));
  assert_true (aborts (release_unheld));
  assert_true (aborts (assert_unheld));
  assert_true (aborts (destroy_held));
  assert_true (aborts (assert_held_by_other));
  assert_true (aborts (wait_unheld));
  assert_true (aborts (io_held));
#endif
}

static void
test_scope (void **state)
{
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&low);
    lock_assert_held (&low);
    {
      ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&high);
      lock_assert_held (&high);
    }
    assert_false (high.is_held);
  }
  assert_false (low.is_held);
}

struct counter {
  struct lock lock;
  pthread_cond_t changed;
  unsigned n;
};

static void *
count_up (void *arg)
{
  struct counter *c = arg;
  unsigned i;

  for (i = 0; i < 1000; i++) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
    c->n++;
    pthread_cond_broadcast (&c->changed);
  }
  return NULL;
}

static void
test_wait (void **state)
{
  struct counter c = { .n = 0 };
  pthread_t threads[4];
  size_t i;

  lock_init (&c.lock, LOCK_RANK_LEAF);
  cond_init (&c.changed);
  lock_acquire (&c.lock);
  for (i = 0; i < 4; i++)
    assert_int_equal (pthread_create (&threads[i], NULL, count_up, &c), 0);
  while (c.n < 4000) {
    lock_wait (&c.lock, &c.changed);
    lock_assert_held (&c.lock);
  }
  lock_release (&c.lock);
  for (i = 0; i < 4; i++)
    pthread_join (threads[i], NULL);
  pthread_cond_destroy (&c.changed);
  lock_destroy (&c.lock);
}

static void
test_wait_until (void **state)
{
  struct timespec before, after, deadline;
  pthread_cond_t cond;

  cond_init (&cond);
  clock_gettime (CLOCK_MONOTONIC, &before);
  deadline = before;
  deadline.tv_nsec += 20 * 1000 * 1000;
  if (deadline.tv_nsec >= 1000000000) {
    deadline.tv_nsec -= 1000000000;
    deadline.tv_sec++;
  }
  lock_acquire (&low);
  while (lock_wait_until (&low, &cond, &deadline))
    ;
  lock_assert_held (&low);
  lock_release (&low);
  clock_gettime (CLOCK_MONOTONIC, &after);
  assert_true (after.tv_sec > deadline.tv_sec
               || (after.tv_sec == deadline.tv_sec
                   && after.tv_nsec >= deadline.tv_nsec));
  pthread_cond_destroy (&cond);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_breaches),
    cmocka_unit_test (test_scope),
    cmocka_unit_test (test_wait),
    cmocka_unit_test (test_wait_until),
  };

  unit_start ();
  lock_init (&low, LOCK_RANK_DISK);
  lock_init (&high, LOCK_RANK_DIRTY);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
