/* SPDX-License-Identifier: BSD-3-Clause */
/* block/blk-debug: the Nth failure, pause points, the trace. */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "blk-debug.h"
#include "blk-mem.h"
#include "log.h"
#include "unit/unit.h"

#define SIZE 65536

static struct blk *blk;
static char buf[SIZE];

static void
no_log (enum log_level level, const char *msg)
{
}

static int
set_up (void **state)
{
  struct error err = ERROR_INIT;
  struct blk *child;

  assert_int_equal (blk_mem_new (SIZE, &child), 0);
  assert_int_equal (blk_debug_open (child, &blk, &err), 0);
  memset (buf, 1, sizeof buf);
  return 0;
}

static int
tear_down (void **state)
{
  return blk_close (blk);
}

static void
expect_trace (const char *expected)
{
  char *trace = blk_debug_trace (blk);

  assert_non_null (trace);
  assert_string_equal (trace, expected);
  free (trace);
}

static void
test_pass_through (void **state)
{
  struct extents e;

  assert_int_equal (blk_pwrite (blk, buf, 4096, 0, 0), 0);
  expect_trace ("");            /* recording begins here */
  assert_int_equal (blk_pwrite (blk, buf, 4096, 4096, BLK_FUA), 0);
  assert_int_equal (blk_pread (blk, buf, 10, 4090, 0), 0);
  assert_int_equal (buf[9], 1);
  assert_int_equal (blk_zero (blk, 5, 6, BLK_MAY_UNMAP | BLK_FAST), 0);
  assert_int_equal (blk_trim (blk, 5, 6, 0), 0);
  assert_int_equal (blk_flush (blk), 0);
  extents_init (&e, 10);
  assert_int_equal (blk_extents (blk, SIZE, 0, BLK_ONE, BLK_STATUS_ALLOCATION,
                                 &e), 0);
  assert_int_equal (e.len, 1);
  assert_int_equal (e.ptr[0].len, 8192);
  extents_free (&e);
  expect_trace ("write 4096+4096 fua\nread 4090+10\nzero 6+5 unmap fast\n"
                "trim 6+5\nflush\nextents 0+65536 one");
  expect_trace ("");
  assert_int_equal (blk_pread (blk, buf, 10, 0, BLK_NOWAIT), -EAGAIN);
  assert_int_equal (blk_resize (blk, 4096), 0);
  assert_int_equal (blk_size (blk), 4096);
}

static void
test_nth (void **state)
{
  unsigned i;

  expect_trace ("");
  blk_debug_fail_nth (blk, BLK_DEBUG_WRITE | BLK_DEBUG_ZERO, 3, ENOSPC,
                      false);
  assert_int_equal (blk_pwrite (blk, buf, 1, 0, 0), 0);
  assert_int_equal (blk_pread (blk, buf, 1, 0, 0), 0);
  assert_int_equal (blk_zero (blk, 1, 1, 0), 0);
  assert_false (blk_debug_has_fired (blk));
  assert_int_equal (blk_pwrite (blk, buf, 1, 2, 0), -ENOSPC);
  assert_true (blk_debug_has_fired (blk));
  assert_int_equal (blk_pwrite (blk, buf, 1, 3, 0), 0);
  expect_trace ("write 0+1\nread 0+1\nzero 1+1\nwrite 3+1");

  blk_debug_fail_nth (blk, BLK_DEBUG_ANY, 2, EIO, true);
  assert_false (blk_debug_has_fired (blk));
  assert_int_equal (blk_flush (blk), 0);
  for (i = 0; i < 3; i++) {
    assert_int_equal (blk_flush (blk), -EIO);
    assert_int_equal (blk_trim (blk, 1, 0, 0), -EIO);
  }
  blk_debug_fail_nth (blk, BLK_DEBUG_ANY, 0, 0, false);
  assert_int_equal (blk_flush (blk), 0);
}

struct thread {
  pthread_t thread;
  uint64_t off;
  int result;
  bool is_flush;
};

static void *
write_in_thread (void *arg)
{
  struct thread *t = arg;

  t->result = t->is_flush ? blk_flush (blk)
    : blk_pwrite (blk, buf, 4096, t->off, 0);
  return NULL;
}

static void
start (struct thread *t, uint64_t off, bool is_flush)
{
  *t = (struct thread) { .off = off, .result = 1, .is_flush = is_flush };
  assert_int_equal (pthread_create (&t->thread, NULL, write_in_thread, t), 0);
}

static void
test_pause (void **state)
{
  struct thread a, b;

  expect_trace ("");
  assert_int_equal (blk_debug_break (blk, BLK_DEBUG_WRITE, 4096, 1, "A"), 0);
  assert_int_equal (blk_debug_break (blk, BLK_DEBUG_WRITE, 0, 1, "A"),
                    -EEXIST);
  assert_int_equal (blk_debug_break (blk, BLK_DEBUG_FLUSH, 0, 0, "F"), 0);
  assert_false (blk_debug_is_paused (blk, "A"));
  start (&a, 4096, false);
  start (&b, 0, true);
  assert_int_equal (blk_debug_wait_paused (blk, "A"), 0);
  assert_int_equal (blk_debug_wait_paused (blk, "F"), 0);
  assert_true (blk_debug_is_paused (blk, "A"));
  /* Others pass: another range, another operation, the same once more. */
  assert_int_equal (blk_pwrite (blk, buf, 4096, 0, 0), 0);
  assert_int_equal (blk_pread (blk, buf, 4096, 4096, 0), 0);
  assert_int_equal (blk_pwrite (blk, buf, 1, 4096, 0), 0);
  expect_trace ("write 0+4096\nread 4096+4096\nwrite 4096+1");
  assert_int_equal (blk_debug_resume (blk, "F"), 0);
  pthread_join (b.thread, NULL);
  expect_trace ("flush");
  assert_int_equal (blk_debug_resume (blk, "A"), 0);
  pthread_join (a.thread, NULL);
  assert_int_equal (a.result, 0);
  assert_int_equal (b.result, 0);
  expect_trace ("write 4096+4096");
  assert_int_equal (blk_debug_resume (blk, "A"), -ENOENT);
  assert_int_equal (blk_debug_wait_paused (blk, "A"), -ENOENT);
}

/* One that nothing reached is removed; the rule is applied after a pause. */
static void
test_pause_and_fail (void **state)
{
  struct thread a;

  assert_int_equal (blk_debug_break (blk, BLK_DEBUG_ANY, 0, SIZE, "A"), 0);
  assert_int_equal (blk_debug_resume (blk, "A"), 0);
  assert_int_equal (blk_pwrite (blk, buf, 1, 0, 0), 0);

  assert_int_equal (blk_debug_break (blk, BLK_DEBUG_ANY, 0, SIZE, "A"), 0);
  start (&a, 0, false);
  assert_int_equal (blk_debug_wait_paused (blk, "A"), 0);
  blk_debug_fail_nth (blk, BLK_DEBUG_WRITE, 1, EIO, false);
  assert_int_equal (blk_debug_resume (blk, "A"), 0);
  pthread_join (a.thread, NULL);
  assert_int_equal (a.result, -EIO);
}

/* A request that reaches two points stops at both. */
static void
test_two_points (void **state)
{
  struct thread a;

  assert_int_equal (blk_debug_break (blk, BLK_DEBUG_WRITE, 0, 1, "A"), 0);
  assert_int_equal (blk_debug_break (blk, BLK_DEBUG_WRITE, 1, 1, "B"), 0);
  start (&a, 0, false);
  assert_int_equal (blk_debug_wait_paused (blk, "A"), 0);
  assert_false (blk_debug_is_paused (blk, "B"));
  assert_int_equal (blk_debug_resume (blk, "A"), 0);
  assert_int_equal (blk_debug_wait_paused (blk, "B"), 0);
  assert_int_equal (blk_debug_resume (blk, "B"), 0);
  pthread_join (a.thread, NULL);
  assert_int_equal (a.result, 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown (test_pass_through, set_up, tear_down),
    cmocka_unit_test_setup_teardown (test_nth, set_up, tear_down),
    cmocka_unit_test_setup_teardown (test_pause, set_up, tear_down),
    cmocka_unit_test_setup_teardown (test_pause_and_fail, set_up, tear_down),
    cmocka_unit_test_setup_teardown (test_two_points, set_up, tear_down),
  };

  unit_start ();
  log_set_handler (no_log);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
