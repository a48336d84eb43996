/* SPDX-License-Identifier: BSD-3-Clause */
/* Push jobs and what happens beside them, by pause points: guests that write
 * where the job reads, pauses and cancels in the middle of a request, a group
 * whose members end in either order.
 */
#include "config.h"

#include "job-util.h"

#define A(f) (&(f)->sides[0])
#define B(f) (&(f)->sides[1])
#define UNIT (64 * KiB)

static int
setup (void **state)
{
  struct job_fixture *f = malloc (sizeof *f);

  job_fixture_open (f);
  fill (A (f)->disk, 0, JOB_SIZE, 'n');
  fill (B (f)->disk, 0, JOB_SIZE, 'n');
  *state = f;
  return 0;
}

static int
teardown (void **state)
{
  job_fixture_close (*state);
  free (*state);
  return 0;
}

/* Begin a job that pauses at a request. */
static void
begin_at (struct job_fixture *f, const struct job_request *r, struct blk *node,
          unsigned op)
{
  assert_int_equal (blk_debug_break (node, op, 0, UNIT, "t"), 0);
  begin_job (f, r);
  assert_int_equal (blk_debug_wait_paused (node, "t"), 0);
}

/* I4: the guest waits for the read; the target has the old data. */
static void
test_write_under_read (void **state)
{
  struct job_fixture *f = *state;
  const struct job_request r = incremental (A (f));
  struct blk *node = disk_node (A (f)->disk);
  struct task guest = { .run = run_write, .disk = A (f)->disk, .off = 4096,
                        .len = 8192, .byte = 'g' };

  begin_at (f, &r, node, BLK_DEBUG_READ);
  task_start (&guest);
  /* Nothing else of the disk waits. */
  sched_yield ();
  assert_false (guest.is_done);
  assert_int_equal (blk_debug_resume (node, "t"), 0);
  assert_int_equal (task_join (&guest), 0);
  wait_status (f, "a", JOB_NULL);
  assert_int_equal (read_same (A (f)->target, 0, JOB_SIZE), 'n');
  assert_int_equal (read_same (disk_blk (A (f)->disk), 4096, 8192), 'g');
  assert_bitmap (A (f), 8192);
}

/* The guest does not wait for the target. */
static void
test_write_under_write (void **state)
{
  struct job_fixture *f = *state;
  const struct job_request r = incremental (A (f));

  begin_at (f, &r, A (f)->target, BLK_DEBUG_WRITE);
  fill (A (f)->disk, 0, JOB_SIZE, 'g');
  assert_int_equal (blk_debug_resume (A (f)->target, "t"), 0);
  wait_status (f, "a", JOB_NULL);
  assert_int_equal (read_same (A (f)->target, 0, JOB_SIZE), 'n');
  assert_bitmap (A (f), JOB_SIZE);
}

/* Asked to pause with a request in flight: it is running until that is over,
 * then copies nothing, and does not end either.
 */
static void
pause_at (struct job_fixture *f, struct blk *node, unsigned op)
{
  const struct job_request r = incremental (A (f));
  struct job_info before, after;

  begin_at (f, &r, node, op);
  assert_int_equal (command (f, JOB_VERB_PAUSE, "a"), 0);
  assert_int_equal (job_look (f, "a", &before), JOB_RUNNING);
  assert_true (before.is_paused);
  assert_int_equal (command (f, JOB_VERB_PAUSE, "a"), -EINVAL);
  assert_int_equal (blk_debug_resume (node, "t"), 0);
  wait_status (f, "a", JOB_PAUSED);
  job_look (f, "a", &before);
  free (blk_debug_trace (A (f)->target));
  fill (A (f)->disk, 0, JOB_SIZE, 'g');
  job_look (f, "a", &after);
  assert_int_equal (after.current, before.current);
  assert_int_equal (after.total, JOB_SIZE);
  CLEANUP_FREE char *trace = blk_debug_trace (A (f)->target);
  assert_string_equal (trace, "");
  assert_true (bitmap_of (A (f)).is_busy);
  assert_int_equal (command (f, JOB_VERB_RESUME, "a"), 0);
  wait_status (f, "a", JOB_NULL);
  assert_true (has_event (f, "a:running a:paused a:running a:waiting"));
  assert_int_equal (read_same (A (f)->target, 0, JOB_SIZE), 'n');
  assert_bitmap (A (f), JOB_SIZE);
}

static void
test_pause_in_read (void **state)
{
  struct job_fixture *f = *state;

  pause_at (f, disk_node (A (f)->disk), BLK_DEBUG_READ);
}

static void
test_pause_in_write (void **state)
{
  struct job_fixture *f = *state;

  pause_at (f, A (f)->target, BLK_DEBUG_WRITE);
}

/* Resumed before it has come to its pause point: it never pauses. */
static void
test_pause_and_resume (void **state)
{
  struct job_fixture *f = *state;
  const struct job_request r = incremental (A (f));

  begin_at (f, &r, A (f)->target, BLK_DEBUG_WRITE);
  assert_int_equal (command (f, JOB_VERB_PAUSE, "a"), 0);
  assert_int_equal (command (f, JOB_VERB_RESUME, "a"), 0);
  assert_int_equal (blk_debug_resume (A (f)->target, "t"), 0);
  wait_status (f, "a", JOB_NULL);
  assert_events (f, "a:created a:running a:waiting a:pending a:COMPLETED"
                 " a:concluded a:null");
  assert_int_equal (read_same (A (f)->target, 0, JOB_SIZE), 'n');
}

/* Cancelled in the middle of a request, also in the last one, the flush. */
static void
cancel_at (struct job_fixture *f, struct blk *node, unsigned op)
{
  const struct job_request r = incremental (A (f));
  unsigned before = A (f)->nr_released;

  begin_at (f, &r, node, op);
  assert_int_equal (command (f, JOB_VERB_CANCEL, "a"), 0);
  /* It holds on to what it has until the request is over. */
  assert_int_equal (A (f)->nr_released, before);
  assert_true (bitmap_of (A (f)).is_busy);
  assert_int_equal (blk_debug_resume (node, "t"), 0);
  wait_status (f, "a", JOB_NULL);
  assert_events (f, "a:created a:running a:aborting a:CANCELLED a:concluded"
                 " a:null");
  assert_int_equal (A (f)->nr_released, before + 1);
  assert_bitmap (A (f), JOB_SIZE);
}

static void
test_cancel (void **state)
{
  struct job_fixture *f = *state;

  cancel_at (f, disk_node (A (f)->disk), BLK_DEBUG_READ);
  cancel_at (f, A (f)->target, BLK_DEBUG_WRITE);
  cancel_at (f, A (f)->target, BLK_DEBUG_FLUSH);
}

/* One member is at its last request, and one of both is cancelled then. */
static void
cancel_group_at (struct job_fixture *f, unsigned op, const char *id)
{
  const struct job_request r[2] = { incremental (A (f)), incremental (B (f)) };

  f->events[0] = '\0';
  assert_int_equal (blk_debug_break (A (f)->target, op, 0, UNIT, "t"), 0);
  assert_int_equal (begin_jobs (f, r, 2, true, NULL), 0);
  assert_int_equal (blk_debug_wait_paused (A (f)->target, "t"), 0);
  wait_status (f, "b", JOB_WAITING);
  if (id)
    blk_debug_resume (A (f)->target, "t");
  else
    blk_debug_fail_nth (A (f)->target, op, 1, EIO, false);
  if (id)
    command (f, JOB_VERB_CANCEL, id);   /* it may have ended by now */
  else
    blk_debug_resume (A (f)->target, "t");
  wait_status (f, "a", JOB_NULL);
  wait_status (f, "b", JOB_NULL);
  blk_debug_fail_nth (A (f)->target, 0, 0, 0, false);
}

/* A cancel and the end of the last member meet: all or none. */
static void
test_group_race (void **state)
{
  static const char *const ids[] = { "a", "b", NULL };
  struct job_fixture *f = *state;

  for (unsigned i = 0; i < 3; i++)
    for (unsigned n = 0; n < 5; n++) {
      bool is_cancelled, was_dirty;

      fill (A (f)->disk, 0, JOB_SIZE, 'n');
      fill (B (f)->disk, 0, JOB_SIZE, 'n');
      cancel_group_at (f, n % 2 ? BLK_DEBUG_WRITE : BLK_DEBUG_FLUSH, ids[i]);
      is_cancelled = has_event (f, "b:CANCELLED");
      was_dirty = bitmap_of (A (f)).dirty_bytes > 0;
      if (is_cancelled != was_dirty
          || is_cancelled != (bitmap_of (B (f)).dirty_bytes > 0))
        fail_msg ("of one group: %s", f->events);
      if (!ids[i])
        assert_true (is_cancelled);
    }
}

/* A view that breaks, for scratch is full, ends the job. */
static void
test_broken_view (void **state)
{
  struct job_fixture *f = *state;
  struct job_request r = incremental (A (f));
  struct disk_options options = { .name = "c", .scratch_limit = 4096 };
  struct job_info info = { .current = 0 };
  struct disk *disk;

  assert_int_equal (disk_new (debug_node (JOB_SIZE), &options, &disk, NULL),
                    0);
  assert_int_equal (disk_bitmap_add (disk, "m", 4096, 0, NULL), 0);
  fill (disk, 0, JOB_SIZE, 'n');
  r.disk = disk;
  r.id = "a";
  r.speed = 1;                  /* the second unit after 18 hours */
  begin_job (f, &r);
  WAIT_FOR (job_look (f, "a", &info) == JOB_RUNNING && info.current == UNIT);
  fill (disk, 0, JOB_SIZE, 'g');
  wait_status (f, "a", JOB_NULL);
  assert_true (has_event (f, "a:ERROR(read) a:aborting a:COMPLETED"));
  job_manager_free (f->m);
  f->m = NULL;
  disk_close (disk);
}

int
main (void)
{
#define T(name) cmocka_unit_test_setup_teardown (name, setup, teardown)
  const struct CMUnitTest tests[] = {
    T (test_write_under_read),
    T (test_write_under_write),
    T (test_pause_in_read),
    T (test_pause_in_write),
    T (test_pause_and_resume),
    T (test_cancel),
    T (test_group_race),
    T (test_broken_view),
  };

  limit_test_time ();
  log_set_handler (unit_ignore_log);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
