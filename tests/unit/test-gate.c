/* SPDX-License-Identifier: BSD-3-Clause */
/* The gate: who waits for whom, and that nobody is inside a closed one. */
#include "config.h"

#include "disk-util.h"

struct actor {
  struct gate *gate;
  _Atomic bool is_done;
  pthread_t thread;
};

static void *
enter_and_leave (void *arg)
{
  struct actor *a = arg;

  gate_enter (a->gate);
  atomic_store (&a->is_done, true);
  gate_leave (a->gate);
  return NULL;
}

static void *
close_and_open (void *arg)
{
  struct actor *a = arg;

  gate_close (a->gate);
  atomic_store (&a->is_done, true);
  gate_open (a->gate);
  return NULL;
}

static bool
is_closing (struct gate *gate)
{
  return atomic_load (&gate->state) & GATE_CLOSED;
}

static void
test_states (void **state)
{
  struct gate gate;

  gate_init (&gate);
  assert_false (gate_is_entered (&gate));
  gate_enter (&gate);
  gate_enter (&gate);
  assert_true (gate_is_entered (&gate));
  gate_leave (&gate);
  assert_true (gate_is_entered (&gate));
  gate_leave (&gate);
  assert_false (gate_is_entered (&gate));
  assert_false (gate_is_closed (&gate));
  gate_close (&gate);
  assert_true (gate_is_closed (&gate));
  gate_open (&gate);
  assert_false (gate_is_closed (&gate));
  gate_destroy (&gate);
}

static void
test_closer_waits_for_those_inside (void **state)
{
  struct gate gate;
  struct actor closer = { .gate = &gate };

  gate_init (&gate);
  gate_enter (&gate);
  gate_enter (&gate);
  pthread_create (&closer.thread, NULL, close_and_open, &closer);
  WAIT_FOR (is_closing (&gate));
  assert_false (gate_is_closed (&gate));
  gate_leave (&gate);
  assert_false (closer.is_done);
  assert_false (gate_is_closed (&gate));
  gate_leave (&gate);
  pthread_join (closer.thread, NULL);
  assert_true (closer.is_done);
  gate_destroy (&gate);
}

static void
test_newcomers_wait_for_open (void **state)
{
  struct gate gate;
  struct actor actors[4];

  gate_init (&gate);
  gate_close (&gate);
  for (int i = 0; i < 4; i++) {
    actors[i] = (struct actor) { .gate = &gate };
    pthread_create (&actors[i].thread, NULL, enter_and_leave, &actors[i]);
  }
  WAIT_FOR (nr_gate_waiters (&gate) == 4);
  for (int i = 0; i < 4; i++)
    assert_false (actors[i].is_done);
  assert_true (gate_is_closed (&gate));
  gate_open (&gate);
  for (int i = 0; i < 4; i++)
    pthread_join (actors[i].thread, NULL);
  assert_false (gate_is_entered (&gate));
  gate_destroy (&gate);
}

/* Newcomers wait for a closer that is itself still waiting. */
static void
test_newcomer_does_not_overtake_closer (void **state)
{
  struct gate gate;
  struct actor closer = { .gate = &gate }, newcomer = { .gate = &gate };

  gate_init (&gate);
  gate_enter (&gate);
  pthread_create (&closer.thread, NULL, close_and_open, &closer);
  WAIT_FOR (is_closing (&gate));
  pthread_create (&newcomer.thread, NULL, enter_and_leave, &newcomer);
  WAIT_FOR (nr_gate_waiters (&gate) == 1);
  assert_false (newcomer.is_done);
  gate_leave (&gate);
  pthread_join (closer.thread, NULL);
  pthread_join (newcomer.thread, NULL);
  gate_destroy (&gate);
}

static void
test_second_closer_waits (void **state)
{
  struct gate gate;
  struct actor closer = { .gate = &gate };

  gate_init (&gate);
  gate_close (&gate);
  pthread_create (&closer.thread, NULL, close_and_open, &closer);
  /* Whatever it has come to, it has not closed the gate. */
  for (int i = 0; i < 1000; i++)
    sched_yield ();
  assert_false (closer.is_done);
  gate_open (&gate);
  pthread_join (closer.thread, NULL);
  assert_true (closer.is_done);
  gate_destroy (&gate);
}

/* Plain memory that only the gate protects: a breach shows as a torn pair,
 * and as a race under the thread sanitizer.
 */
struct stress {
  struct gate gate;
  uint64_t a, b;
  _Atomic bool stop;
  _Atomic uint64_t nr_entered;
};

static void *
stress_enter (void *arg)
{
  struct stress *s = arg;

  while (!atomic_load (&s->stop)) {
    gate_enter (&s->gate);
    if (s->a != s->b)
      abort ();
    gate_leave (&s->gate);
    atomic_fetch_add (&s->nr_entered, 1);
  }
  return NULL;
}

static void *
stress_close (void *arg)
{
  struct stress *s = arg;

  for (int i = 0; i < 2000; i++) {
    gate_close (&s->gate);
    s->a++;
    s->b++;
    gate_open (&s->gate);
  }
  return NULL;
}

static void
test_stress (void **state)
{
  struct stress s = { .a = 0 };
  pthread_t enter[3], closers[2];

  gate_init (&s.gate);
  for (int i = 0; i < 3; i++)
    pthread_create (&enter[i], NULL, stress_enter, &s);
  for (int i = 0; i < 2; i++)
    pthread_create (&closers[i], NULL, stress_close, &s);
  for (int i = 0; i < 2; i++)
    pthread_join (closers[i], NULL);
  WAIT_FOR (atomic_load (&s.nr_entered) > 0);
  atomic_store (&s.stop, true);
  for (int i = 0; i < 3; i++)
    pthread_join (enter[i], NULL);
  assert_int_equal (s.a, 4000);
  assert_int_equal (s.b, 4000);
  assert_int_equal (atomic_load (&s.gate.state), 0);
  gate_destroy (&s.gate);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_states),
    cmocka_unit_test (test_closer_waits_for_those_inside),
    cmocka_unit_test (test_newcomers_wait_for_open),
    cmocka_unit_test (test_newcomer_does_not_overtake_closer),
    cmocka_unit_test (test_second_closer_waits),
    cmocka_unit_test (test_stress),
  };

  limit_test_time ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
