/* SPDX-License-Identifier: BSD-3-Clause */
/* Sessions whose ends, leases, failures and points meet. */
#include "config.h"

#include "disk-util.h"

#define SIZE (MiB)
#define NR_ENDS 5

struct fixture {
  struct session_manager *m;
  struct disk *disk;
  _Atomic unsigned nr_ended[NR_ENDS];
  /* A session whose ending is held up until go_on. */
  struct point_id held_up;
  _Atomic bool is_held_up, go_on;
};

static void
ending (void *opaque, struct session *s)
{
  struct fixture *f = opaque;

  if (point_id_is_equal (session_id (s), &f->held_up)) {
    atomic_store (&f->is_held_up, true);
    WAIT_FOR (atomic_load (&f->go_on));
  }
}

static void
ended (void *opaque, struct session *s, enum session_end how)
{
  struct fixture *f = opaque;

  atomic_fetch_add (&f->nr_ended[how], 1);
}

static const struct session_ops ops = { .ending = ending, .ended = ended };

static int
setup (void **state)
{
  struct fixture *f = calloc (1, sizeof *f);

  f->disk = debug_disk ("d", SIZE, CBW_BREAK_BACKUP);
  fill (f->disk, 0, SIZE, 'a');
  assert_int_equal (session_manager_new (&ops, f, &f->m), 0);
  *state = f;
  return 0;
}

static int
teardown (void **state)
{
  struct fixture *f = *state;

  session_manager_free (f->m);
  disk_close (f->disk);
  free (f);
  return 0;
}

static struct session *
begin (struct fixture *f, const char *bitmap, unsigned lease,
       uint64_t scratch_limit)
{
  struct session_disk_request rd = {
    .disk = f->disk, .bitmap = bitmap,
    .mode = bitmap ? SESSION_AUTO : SESSION_COPY,
  };
  struct session_request request = {
    .disks = &rd, .nr_disks = 1, .lease = lease,
    .scratch_limit = scratch_limit,
  };
  struct session *s;

  assert_int_equal (session_begin (f->m, &request, &s, NULL), 0);
  return s;
}

/* Both have a lease of two seconds; the one that was touched meanwhile lives
 * when the other, which began after it, has gone.
 */
static void
test_lease (void **state)
{
  struct fixture *f = *state;
  struct session *kept = begin (f, "kept", 2, 0);
  struct session *forgotten = begin (f, "forgotten", 2, 0);

  WAIT_FOR ((session_touch (kept),
             atomic_load (&f->nr_ended[SESSION_END_LEASE]) == 1));
  assert_int_equal (session_end (f->m, session_id (forgotten), true, NULL),
                    -ENOENT);
  assert_int_equal (session_end (f->m, session_id (kept), true, NULL), 0);
  /* As it was not a success its bitmap has gone. */
  assert_null (dirty_find (disk_dirty (f->disk), "forgotten"));
  session_unref (kept);
  session_unref (forgotten);
}

static void
test_broken_view_ends_the_session (void **state)
{
  struct fixture *f = *state;
  struct session *s = begin (f, "b", 0, BLOCK);

  fill (f->disk, 0, 8 * BLOCK, 'b');
  WAIT_FOR (atomic_load (&f->nr_ended[SESSION_END_SCRATCH]) == 1);
  assert_int_equal (session_end (f->m, session_id (s), true, NULL), -ENOENT);
  assert_false (session_uses_disk (f->m, f->disk));
  session_unref (s);
}

/* While the watcher is busy with another session, success of a broken one is
 * refused, and its bits are merged back.
 */
static void
test_success_of_broken_is_refused (void **state)
{
  struct fixture *f = *state;
  struct session *full = begin (f, "b", 0, 0), *other, *s;
  struct dirty_info *infos;
  struct error err = ERROR_INIT;
  size_t nr;

  assert_int_equal (session_end (f->m, session_id (full), true, NULL), 0);
  session_unref (full);
  fill (f->disk, 0, 1, 'b');
  other = begin (f, NULL, 0, BLOCK);
  f->held_up = *session_id (other);
  fill (f->disk, 0, 8 * BLOCK, 'b');
  WAIT_FOR (atomic_load (&f->is_held_up));

  s = begin (f, "b", 0, BLOCK);
  fill (f->disk, 0, 8 * BLOCK, 'c');
  assert_int_equal (session_end (f->m, session_id (s), true, &err), -EIO);
  assert_non_null (strstr (err.msg, "disk 'd'"));
  assert_non_null (strstr (err.msg, strerror (ENOSPC)));
  assert_int_equal (f->nr_ended[SESSION_END_ABORT], 1);
  assert_int_equal (dirty_list (disk_dirty (f->disk), &infos, &nr), 0);
  assert_int_equal (nr, 1);
  assert_int_equal (infos[0].state, DIRTY_RECORDING);
  assert_int_equal (infos[0].dirty_bytes, 65536);
  dirty_infos_free (infos, nr);
  atomic_store (&f->go_on, true);
  WAIT_FOR (atomic_load (&f->nr_ended[SESSION_END_SCRATCH]) == 1);
  session_unref (s);
  session_unref (other);
}

/* Many end it at once, some in success, while others attach: one way wins. */
struct racer {
  struct fixture *f;
  struct point_id id;
  unsigned number;
  _Atomic bool *go;
  int result;
  pthread_t thread;
};

static void *
race_to_end (void *arg)
{
  struct racer *r = arg;
  struct session *s;

  while (!atomic_load (r->go))
    ;
  if (r->number % 3 == 2) {
    r->result = session_attach (r->f->m, &r->id, &s, NULL);
    if (r->result == 0) {
      session_touch (s);
      session_unref (s);
    }
  }
  else
    r->result = session_end (r->f->m, &r->id, r->number % 3, NULL);
  return NULL;
}

static void
test_ends_race (void **state)
{
  enum { NR = 6, ROUNDS = 100 };
  struct fixture *f = *state;

  for (int round = 0; round < ROUNDS; round++) {
    struct session *s = begin (f, "b", 0, 0);
    struct racer racers[NR];
    _Atomic bool go = false;
    unsigned nr_won[2] = { 0, 0 };      /* aborts, successes */

    for (unsigned i = 0; i < NR; i++) {
      racers[i] = (struct racer) {
        .f = f, .id = *session_id (s), .number = i, .go = &go,
      };
      pthread_create (&racers[i].thread, NULL, race_to_end, &racers[i]);
    }
    atomic_store (&go, true);
    for (unsigned i = 0; i < NR; i++) {
      pthread_join (racers[i].thread, NULL);
      assert_true (racers[i].result == 0 || racers[i].result == -ENOENT);
      if (i % 3 != 2)
        nr_won[i % 3] += racers[i].result == 0;
    }
    /* A success may be said again. */
    assert_true (nr_won[0] == 0 ? nr_won[1] > 0
                 : nr_won[0] == 1 && nr_won[1] == 0);
    session_unref (s);
  }
  assert_int_equal (f->nr_ended[SESSION_END_SUCCESS]
                    + f->nr_ended[SESSION_END_ABORT], ROUNDS);
}

static int
run_end (struct task *task)
{
  struct fixture *f = task->opaque;

  return session_end (f->m, &f->held_up, true, NULL);
}

/* Whoever is told that a session has gone can begin the next at once. */
static void
test_end_waits_for_ending (void **state)
{
  struct fixture *f = *state;
  struct session *s = begin (f, "b", 0, BLOCK), *next;
  struct task end = { .run = run_end, .opaque = f };

  f->held_up = *session_id (s);
  fill (f->disk, 0, 8 * BLOCK, 'b');
  WAIT_FOR (atomic_load (&f->is_held_up));
  task_start (&end);
  for (int i = 0; i < 1000; i++)
    sched_yield ();
  assert_false (end.is_done);
  atomic_store (&f->go_on, true);
  assert_int_equal (task_join (&end), -ENOENT);
  assert_false (session_uses_disk (f->m, f->disk));
  next = begin (f, "b", 0, 0);
  session_unref (next);
  session_unref (s);
}

static int
run_begin (struct task *task)
{
  task->opaque = begin (task->opaque, "b", 0, 0);
  return 0;
}

/* I5 with bits: a write inside the gate is in the frozen bitmap, one that
 * waits outside is in its successor.
 */
static void
test_point_and_bits (void **state)
{
  struct fixture *f = *state;
  struct session *s = begin (f, "b", 0, 0);
  struct blk *node = disk_node (f->disk);
  struct gate *gate = disk_gate (f->disk);
  struct task inside = {
    .run = run_write, .disk = f->disk, .off = 0, .len = 1, .byte = 'b',
  };
  struct task outside = {
    .run = run_write, .disk = f->disk, .off = SIZE / 2, .len = 1,
    .byte = 'c',
  };
  struct task point = { .run = run_begin, .opaque = f };
  const struct session_disk *sd;
  const struct bitmap *frozen;
  size_t nr;

  assert_int_equal (session_end (f->m, session_id (s), true, NULL), 0);
  session_unref (s);
  blk_debug_break (node, BLK_DEBUG_WRITE, 0, 1, "inside");
  task_start (&inside);
  assert_int_equal (blk_debug_wait_paused (node, "inside"), 0);
  task_start (&point);
  WAIT_FOR ((atomic_load (&gate->state) & GATE_CLOSED) || point.is_done);
  assert_false (point.is_done);
  task_start (&outside);
  WAIT_FOR (nr_gate_waiters (gate) == 1 || outside.is_done);
  assert_false (outside.is_done);
  blk_debug_resume (node, "inside");
  task_join (&inside);
  task_join (&point);
  task_join (&outside);

  s = point.opaque;
  sd = session_disks (s, &nr);
  frozen = dirty_frozen_bits (sd->bitmap);
  assert_true (bitmap_get (frozen, 0));
  assert_false (bitmap_get (frozen, SIZE / 2));
  assert_int_equal (read_same (cbw_view_blk (sd->view), 0, 1), 'b');
  assert_int_equal (read_same (cbw_view_blk (sd->view), SIZE / 2, 1), 'a');
  assert_int_equal (session_end (f->m, session_id (s), true, NULL), 0);
  assert_int_equal (disk_bitmap_add (f->disk, "other", 0, false, NULL), 0);
  session_unref (s);
}

/* A guest writes a number to the first disk and then to the second.  At any
 * point the first has the number of the second or the next one.  Sessions name
 * the disks in either order, from two threads: no deadlock.
 */
struct pair {
  struct session_manager *m;
  struct disk *disks[2];
  _Atomic bool stop;
};

static void *
write_numbers (void *arg)
{
  struct pair *p = arg;

  for (uint64_t n = 1; !atomic_load (&p->stop); n++)
    for (int i = 0; i < 2; i++)
      if (disk_pwrite (p->disks[i], &n, sizeof n, 0, 0) < 0)
        abort ();
  return NULL;
}

static void
check_pair (struct pair *p, int first)
{
  struct session_disk_request rd[2] = {
    { .disk = p->disks[first], .mode = SESSION_COPY },
    { .disk = p->disks[!first], .mode = SESSION_COPY },
  };
  struct session_request request = { .disks = rd, .nr_disks = 2 };
  struct session *s;
  const struct session_disk *sd;
  uint64_t n[2];
  size_t nr;

  if (session_begin (p->m, &request, &s, NULL) < 0)
    abort ();
  sd = session_disks (s, &nr);
  for (int i = 0; i < 2; i++)
    if (blk_pread (cbw_view_blk (sd[i ^ first].view), &n[i], sizeof n[i], 0,
                   0) < 0)
      abort ();
  if (sd[0].disk != rd[0].disk || n[0] < n[1] || n[0] > n[1] + 1)
    abort ();
  if (session_end (p->m, session_id (s), true, NULL) < 0)
    abort ();
  session_unref (s);
}

static void *
check_reversed (void *arg)
{
  for (int i = 0; i < 100; i++)
    check_pair (arg, 1);
  return NULL;
}

static void
test_point_over_two_disks (void **state)
{
  struct pair p = { .stop = false };
  pthread_t writer, checker;

  for (int i = 0; i < 2; i++) {
    p.disks[i] = debug_disk ("x", SIZE, CBW_BREAK_BACKUP);
    fill (p.disks[i], 0, 8, 0);
  }
  assert_int_equal (session_manager_new (NULL, NULL, &p.m), 0);
  pthread_create (&writer, NULL, write_numbers, &p);
  pthread_create (&checker, NULL, check_reversed, &p);
  for (int i = 0; i < 100; i++)
    check_pair (&p, 0);
  pthread_join (checker, NULL);
  atomic_store (&p.stop, true);
  pthread_join (writer, NULL);
  session_manager_free (p.m);
  disk_close (p.disks[0]);
  disk_close (p.disks[1]);
}

#define TEST(f) cmocka_unit_test_setup_teardown (f, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_lease),
    TEST (test_broken_view_ends_the_session),
    TEST (test_success_of_broken_is_refused),
    TEST (test_ends_race),
    TEST (test_end_waits_for_ending),
    TEST (test_point_and_bits),
    cmocka_unit_test (test_point_over_two_disks),
  };

  limit_test_time ();
  log_set_handler (unit_ignore_log);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
