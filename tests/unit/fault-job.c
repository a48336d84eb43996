/* SPDX-License-Identifier: BSD-3-Clause */
/* The Nth allocation of two jobs that begin at one point fails, for N = 1, 2,
 * 3 ... until none does.  After each nothing has changed, and the next jobs can
 * begin.  And the Nth of a command, which fails or is done.
 *
 * Linked with --wrap for the allocating functions.
 */
#include "config.h"

#include "fault-alloc.h"
#include "job-util.h"

static void
assert_unchanged (struct job_fixture *f, unsigned nr_begun)
{
  for (unsigned i = 0; i < 2; i++) {
    struct job_side *side = &f->sides[i];
    CLEANUP_FREE char *trace = NULL;

    assert_bitmap (side, 4096);
    assert_false (gate_is_closed (disk_gate (side->disk)));
    assert_true (side->nr_released <= nr_begun);
    /* No view is left that a write would have to preserve data for. */
    free (blk_debug_trace (disk_node (side->disk)));
    fill (side->disk, 0, 1, 'x');
    trace = blk_debug_trace (disk_node (side->disk));
    assert_string_equal (trace, "write 0+1");
    assert_int_equal (job_look (f, disk_name (side->disk), NULL), JOB_NULL);
  }
}

/* Both of a group, one with each kind of view. */
static void
begin (enum job_sync sync)
{
  struct job_fixture f;
  struct job_request r[2];
  unsigned n;
  int error;

  job_fixture_open (&f);
  r[0] = incremental (&f.sides[0]);
  r[1] = incremental (&f.sides[1]);
  r[1].sync = sync;
  if (sync != JOB_SYNC_BITMAP)
    r[1].bitmap = NULL;
  fill (f.sides[0].disk, 0, 1, 'x');
  fill (f.sides[1].disk, 0, 1, 'x');
  for (n = 1;; n++) {
    struct error err = ERROR_INIT;

    left = n;
    error = begin_jobs (&f, r, 2, true, &err);
    if (left > 0)
      break;
    assert_int_equal (error, -ENOMEM);
    assert_true (err.msg[0] != '\0');
    assert_unchanged (&f, n);
    assert_events (&f, "");
  }
  left = 0;
  assert_int_equal (error, 0);
  assert_true (n > 15);
  if (sync == JOB_SYNC_NONE)
    command (&f, JOB_VERB_CANCEL, "b");
  wait_status (&f, "a", JOB_NULL);
  wait_status (&f, "b", JOB_NULL);
  /* Every job_new gave its target back. */
  assert_in_range (f.sides[0].nr_released, n - 5, n);
  assert_true (has_event (&f, "b:null"));
  job_fixture_close (&f);
}

static void
test_begin (void **state)
{
  begin (JOB_SYNC_BITMAP);
  begin (JOB_SYNC_FULL);
  begin (JOB_SYNC_NONE);
}

/* A list for which there is no memory is none. */
static void
test_list (void **state)
{
  struct job_fixture f;
  struct job_info *infos;
  size_t nr;

  job_fixture_open (&f);
  left = 1;
  assert_int_equal (job_list (f.m, &infos, &nr), -ENOMEM);
  job_fixture_close (&f);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_begin),
    cmocka_unit_test (test_list),
  };

  limit_test_time ();
  log_set_handler (unit_ignore_log);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
