/* SPDX-License-Identifier: BSD-3-Clause */
/* Push jobs: states and events of every end, which command goes in which state,
 * the Nth request of a disk or a target fails, groups.
 */
#include "config.h"

#include "job-util.h"

#define A(f) (&(f)->sides[0])
#define B(f) (&(f)->sides[1])

static int
setup (void **state)
{
  struct job_fixture *f = malloc (sizeof *f);

  job_fixture_open (f);
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

static void
test_success (void **state)
{
  struct job_fixture *f = *state;
  const struct job_request r = incremental (A (f));

  fill (A (f)->disk, 0, 4096, 'n');
  begin_job (f, &r);
  wait_status (f, "a", JOB_NULL);
  assert_events (f, "a:created a:running a:waiting a:pending a:COMPLETED"
                 " a:concluded a:null");
  assert_int_equal (A (f)->nr_released, 1);
  assert_bitmap (A (f), 0);
  assert_int_equal (read_same (A (f)->target, 0, 4096), 'n');
  /* Whole units, and nothing else. */
  assert_int_equal (read_same (A (f)->target, 4096, 60 * KiB), 'o');
  assert_int_equal (read_same (A (f)->target, 64 * KiB, 192 * KiB), 0);

  /* Again, with nothing to copy. */
  begin_job (f, &r);
  wait_status (f, "a", JOB_NULL);
  assert_int_equal (A (f)->nr_released, 2);
  assert_bitmap (A (f), 0);
}

/* finalize and dismiss by hand, and what can be said to a job meanwhile. */
static void
test_verbs (void **state)
{
  /* Indexed by verb: pause, resume of one that is not paused, ... */
  static const struct {
    enum job_status status;
    const char *allowed;        /* letters of CPRSKFD, by verb */
  } rows[] = {
    { JOB_PENDING, "CF" },
    { JOB_CONCLUDED, "D" },
  };
  static const char letters[] = "CPRSKFD";
  struct job_fixture *f = *state;
  struct job_request r = incremental (A (f));

  r.is_manual_finalize = r.is_manual_dismiss = true;
  for (size_t i = 0; i < 2; i++)
    for (enum job_verb verb = 0; letters[verb]; verb++) {
      bool is_allowed = strchr (rows[i].allowed, letters[verb]);

      fill (A (f)->disk, 0, 4096, 'n');
      begin_job (f, &r);
      wait_status (f, "a", JOB_PENDING);
      if (rows[i].status == JOB_CONCLUDED)
        assert_int_equal (command (f, JOB_VERB_FINALIZE, "a"), 0);
      wait_status (f, "a", rows[i].status);
      assert_int_equal (command (f, verb, "a"), is_allowed ? 0 : -EINVAL);
      if (!is_allowed)
        assert_int_equal (job_look (f, "a", NULL), rows[i].status);
      if (job_look (f, "a", NULL) == JOB_PENDING)
        assert_int_equal (command (f, JOB_VERB_CANCEL, "a"), 0);
      if (job_look (f, "a", NULL) == JOB_CONCLUDED)
        assert_int_equal (command (f, JOB_VERB_DISMISS, "a"), 0);
      wait_status (f, "a", JOB_NULL);
      assert_int_equal (bitmap_of (A (f)).is_busy, false);
    }
  assert_int_equal (command (f, JOB_VERB_PAUSE, "a"), -ENOENT);
}

static void
test_requests (void **state)
{
  struct job_fixture *f = *state;
  struct job_request r[2] = { incremental (A (f)), incremental (B (f)) };
  struct error err = ERROR_INIT;

  r[0].id = "0 bad";
  assert_int_equal (begin_jobs (f, r, 1, false, &err), -EINVAL);
  assert_string_equal (err.msg, "Invalid job ID '0 bad'");
  r[0].id = "a";
  r[1].id = "a";
  assert_int_equal (begin_jobs (f, r, 2, false, &err), -EEXIST);
  assert_string_equal (err.msg, "Job ID 'a' already in use");
  r[1].id = "b";
  r[1].bitmap = "none";
  assert_int_equal (begin_jobs (f, r, 2, true, &err), -ENOENT);
  assert_string_equal (err.msg, "Bitmap 'none' could not be found");
  assert_int_equal (A (f)->nr_released, 3);
  assert_int_equal (B (f)->nr_released, 2);
  assert_bitmap (A (f), 0);
  assert_int_equal (job_look (f, "a", NULL), JOB_NULL);
}

/* What the target has when a job succeeded is what the disk had. */
static void
assert_copied (struct job_side *side)
{
  for (uint64_t off = 0; off < JOB_SIZE; off += 64 * KiB)
    assert_int_equal (read_same (side->target, off, 64 * KiB),
                      read_same (disk_blk (side->disk), off, 64 * KiB));
}

static void
dirty_all (struct job_side *side)
{
  static _Atomic int c = 'a';

  for (uint64_t off = 0; off < JOB_SIZE; off += 64 * KiB)
    fill (side->disk, off, 64 * KiB, 'a' + atomic_fetch_add (&c, 1) % 26);
}

/* The Nth request of the node fails, until the job makes fewer. */
static void
fail_nth (struct job_fixture *f, struct blk *node, enum job_bitmap_mode mode,
          const char *event)
{
  struct job_request r = incremental (A (f));
  unsigned n;

  r.bitmap_mode = mode;
  for (n = 1;; n++) {
    bool has_fired;

    dirty_all (A (f));
    f->events[0] = '\0';
    blk_debug_fail_nth (node, BLK_DEBUG_ANY & ~(unsigned) BLK_DEBUG_EXTENTS, n,
                        EIO, false);
    begin_job (f, &r);
    wait_status (f, "a", JOB_NULL);
    has_fired = blk_debug_has_fired (node);
    blk_debug_fail_nth (node, 0, 0, 0, false);
    if (!has_fired)
      break;
    if (!has_event (f, event))
      fail_msg ("request %u: %s", n, f->events);
    assert_true (has_event (f, "a:aborting a:COMPLETED a:concluded a:null"));
    assert_false (bitmap_of (A (f)).is_busy);
    /* Nothing that is not in a good backup is clean; and then all is. */
    if (mode == JOB_BITMAP_ON_SUCCESS)
      assert_bitmap (A (f), JOB_SIZE);
    begin_job (f, &r);
    wait_status (f, "a", JOB_NULL);
    assert_copied (A (f));
    assert_bitmap (A (f), 0);
  }
  assert_true (n > 1);
  assert_copied (A (f));
}

static void
test_failing_target (void **state)
{
  struct job_fixture *f = *state;

  fail_nth (f, A (f)->target, JOB_BITMAP_ON_SUCCESS, "a:ERROR(write)");
  fail_nth (f, A (f)->target, JOB_BITMAP_ALWAYS, "a:ERROR(write)");
}

static void
test_failing_disk (void **state)
{
  struct job_fixture *f = *state;
  struct blk *node = disk_node (A (f)->disk);

  fail_nth (f, node, JOB_BITMAP_ON_SUCCESS, "a:ERROR(read)");
  fail_nth (f, node, JOB_BITMAP_ALWAYS, "a:ERROR(read)");
}

/* Every request fails for a while: ignore goes on trying, stop pauses. */
static void
test_policies (void **state)
{
  struct job_fixture *f = *state;
  struct job_request r = incremental (A (f));
  struct job_info info;

  dirty_all (A (f));
  r.on_target_error = JOB_ON_ERROR_ENOSPC;
  r.on_source_error = JOB_ON_ERROR_IGNORE;
  blk_debug_fail_nth (A (f)->target, BLK_DEBUG_WRITE, 1, ENOSPC, true);
  blk_debug_fail_nth (disk_node (A (f)->disk), BLK_DEBUG_READ, 1, EIO, false);
  begin_job (f, &r);
  wait_status (f, "a", JOB_PAUSED);
  assert_events (f, "a:created a:running a:ERROR(read) a:ERROR(write)"
                 " a:paused");
  job_look (f, "a", &info);
  assert_true (info.is_paused);
  assert_int_equal (info.io_status, JOB_IO_NOSPACE);
  /* In vain. */
  assert_int_equal (command (f, JOB_VERB_RESUME, "a"), 0);
  WAIT_FOR (has_event (f, "a:running a:ERROR(write) a:paused"));
  assert_int_equal (read_same (A (f)->target, 0, JOB_SIZE), 0);
  blk_debug_fail_nth (A (f)->target, 0, 0, 0, false);
  assert_int_equal (command (f, JOB_VERB_RESUME, "a"), 0);
  wait_status (f, "a", JOB_NULL);
  assert_copied (A (f));
  assert_bitmap (A (f), 0);
}

/*---- Groups ----*/

/* One fails while the other waits, or has yet to copy. */
static void
test_group (void **state)
{
  struct job_fixture *f = *state;
  const struct job_request r[2] = { incremental (A (f)), incremental (B (f)) };

  for (unsigned i = 0; i < 2; i++) {
    dirty_all (A (f));
    if (i)
      dirty_all (B (f));
    blk_debug_fail_nth (A (f)->target, BLK_DEBUG_WRITE, 1, EIO, false);
    assert_int_equal (begin_jobs (f, r, 2, true, NULL), 0);
    wait_status (f, "a", JOB_NULL);
    wait_status (f, "b", JOB_NULL);
    assert_true (has_event (f, "a:ERROR(write)"));
    assert_true (has_event (f, "a:COMPLETED"));
    assert_true (has_event (f, "b:CANCELLED"));
    assert_false (has_event (f, "b:COMPLETED"));
    assert_false (has_event (f, "pending"));
    f->events[0] = '\0';
    assert_bitmap (A (f), JOB_SIZE);
    assert_bitmap (B (f), i ? JOB_SIZE : 0);
  }
  assert_int_equal (begin_jobs (f, r, 2, true, NULL), 0);
  wait_status (f, "a", JOB_NULL);
  wait_status (f, "b", JOB_NULL);
  for (unsigned i = 0; i < 2; i++) {
    assert_copied (&f->sides[i]);
    assert_bitmap (&f->sides[i], 0);
  }
}

/* Alone each goes its way. */
static void
test_no_group (void **state)
{
  struct job_fixture *f = *state;
  const struct job_request r[2] = { incremental (A (f)), incremental (B (f)) };

  dirty_all (A (f));
  dirty_all (B (f));
  blk_debug_fail_nth (A (f)->target, BLK_DEBUG_WRITE, 1, EIO, false);
  assert_int_equal (begin_jobs (f, r, 2, false, NULL), 0);
  wait_status (f, "a", JOB_NULL);
  wait_status (f, "b", JOB_NULL);
  assert_bitmap (A (f), JOB_SIZE);
  assert_bitmap (B (f), 0);
  assert_copied (B (f));
}

/* A group that waits for finalize is cancelled as a whole. */
static void
test_cancel_pending_group (void **state)
{
  struct job_fixture *f = *state;
  struct job_request r[2] = { incremental (A (f)), incremental (B (f)) };

  dirty_all (A (f));
  r[1].is_manual_finalize = true;
  assert_int_equal (begin_jobs (f, r, 2, true, NULL), 0);
  wait_status (f, "b", JOB_PENDING);
  assert_true (has_event (f, "b:PENDING"));
  assert_false (has_event (f, "a:PENDING"));
  assert_int_equal (command (f, JOB_VERB_CANCEL, "a"), 0);
  wait_status (f, "a", JOB_NULL);
  wait_status (f, "b", JOB_NULL);
  assert_true (has_event (f, "a:CANCELLED"));
  assert_true (has_event (f, "b:CANCELLED"));
  assert_bitmap (A (f), JOB_SIZE);
}

/* The end of the process: paused, pending and concluded ones go too. */
static void
test_manager_free (void **state)
{
  struct job_fixture *f = *state;
  struct job_request r[2] = { incremental (A (f)), incremental (B (f)) };

  dirty_all (B (f));
  r[0].is_manual_finalize = r[0].is_manual_dismiss = true;
  r[1].speed = 1;
  assert_int_equal (begin_jobs (f, r, 2, false, NULL), 0);
  wait_status (f, "a", JOB_PENDING);
  assert_int_equal (command (f, JOB_VERB_PAUSE, "b"), 0);
  wait_status (f, "b", JOB_PAUSED);
  job_manager_free (f->m);
  f->m = NULL;
  assert_true (has_event (f, "a:CANCELLED"));
  assert_true (has_event (f, "b:CANCELLED"));
  assert_int_equal (A (f)->nr_released, 1);
  assert_int_equal (B (f)->nr_released, 1);
  assert_bitmap (B (f), JOB_SIZE);
}

int
main (void)
{
#define T(name) cmocka_unit_test_setup_teardown (name, setup, teardown)
  const struct CMUnitTest tests[] = {
    T (test_success),
    T (test_verbs),
    T (test_requests),
    T (test_failing_target),
    T (test_failing_disk),
    T (test_policies),
    T (test_group),
    T (test_no_group),
    T (test_cancel_pending_group),
    T (test_manager_free),
  };

  limit_test_time ();
  log_set_handler (unit_ignore_log);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
