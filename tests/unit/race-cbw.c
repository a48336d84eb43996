/* SPDX-License-Identifier: BSD-3-Clause */
/* Readers, writers and points that meet, held still at pause points.
 *
 * The disk is filled with 'a' at the point; guests write 'b' and 'c'.  A test
 * that says "waits" has seen the other wait: it is counted where it waits.
 */
#include "config.h"

#include "disk-util.h"

#define SIZE (64 * BLOCK)

struct stage {
  struct disk *disk;
  struct blk *node;             /* blk-debug below the disk */
  struct blk *scratch;          /* blk-debug below the view */
  struct cbw_view *view;
  struct blk *blk;              /* the view's */
};

static int
setup (void **state)
{
  struct stage *s = calloc (1, sizeof *s);
  struct cbw_options options = { .scratch_limit = 0 };

  s->disk = debug_disk ("d", SIZE, CBW_BREAK_BACKUP);
  s->node = disk_node (s->disk);
  fill (s->disk, 0, SIZE, 'a');
  s->scratch = debug_node (SIZE);
  options.scratch = s->scratch;
  assert_int_equal (cbw_view_new (disk_cbw (s->disk), &options, &s->view,
                                  NULL), 0);
  start_view (s->disk, s->view, NULL);
  s->blk = cbw_view_blk (s->view);
  *state = s;
  return 0;
}

static int
teardown (void **state)
{
  struct stage *s = *state;

  if (s->view)
    end_view (s->disk, s->view);
  disk_close (s->disk);
  free (s);
  return 0;
}

static struct task
writer (struct stage *s, uint64_t off, uint64_t len, int byte)
{
  return (struct task) {
    .run = run_write, .disk = s->disk, .off = off, .len = len, .byte = byte,
  };
}

static struct task
reader (struct stage *s, uint64_t off, uint64_t len)
{
  return (struct task) {
    .run = run_read, .blk = s->blk, .off = off, .len = len,
  };
}

static void
set_break (struct blk *node, unsigned ops, uint64_t off, const char *tag)
{
  assert_int_equal (blk_debug_break (node, ops, off, BLOCK, tag), 0);
}

static void
wait_paused (struct blk *node, const char *tag)
{
  assert_int_equal (blk_debug_wait_paused (node, tag), 0);
}

/* Until the task waits for a claim.  It must not get past it. */
static void
wait_for_waiters (struct stage *s, unsigned nr, struct task *task)
{
  WAIT_FOR (nr_claim_waiters (s->view) == nr || task->is_done);
  assert_false (task->is_done);
}

/* I4: a view's reader is reading the disk, a writer of the block waits. */
static void
test_writer_waits_for_reader (void **state)
{
  struct stage *s = *state;
  struct task r = reader (s, 4 * BLOCK, 2 * BLOCK);
  struct task w = writer (s, 5 * BLOCK, BLOCK, 'b');

  set_break (s->node, BLK_DEBUG_READ, 4 * BLOCK, "reader");
  task_start (&r);
  wait_paused (s->node, "reader");
  task_start (&w);
  wait_for_waiters (s, 1, &w);
  assert_int_equal (read_same (s->node, 5 * BLOCK, BLOCK), 'a');
  assert_int_equal (blk_debug_resume (s->node, "reader"), 0);
  assert_int_equal (task_join (&r), 0);
  assert_int_equal (r.byte, 'a');
  assert_int_equal (task_join (&w), 0);
  assert_int_equal (read_same (s->node, 5 * BLOCK, BLOCK), 'b');
  assert_int_equal (read_same (s->blk, 0, SIZE), 'a');
}

/* Elsewhere it does not wait. */
static void
test_writer_elsewhere_goes_on (void **state)
{
  struct stage *s = *state;
  struct task r = reader (s, 4 * BLOCK, BLOCK);

  set_break (s->node, BLK_DEBUG_READ, 4 * BLOCK, "reader");
  task_start (&r);
  wait_paused (s->node, "reader");
  fill (s->disk, 0, 4 * BLOCK, 'b');
  fill (s->disk, 5 * BLOCK, SIZE - 5 * BLOCK, 'b');
  blk_debug_resume (s->node, "reader");
  assert_int_equal (task_join (&r), 0);
  assert_int_equal (r.byte, 'a');
}

/* I3: the old data is on its way to scratch, a second writer of the block, and
 * a reader of it, wait until it is there.
 */
static void
copier_paused (struct stage *s, struct blk *where, unsigned op)
{
  struct task w1 = writer (s, 8 * BLOCK, 100, 'b');
  struct task w2 = writer (s, 8 * BLOCK + 50, 100, 'c');
  struct task r = reader (s, 8 * BLOCK, BLOCK);

  set_break (where, op, 8 * BLOCK, "copier");
  task_start (&w1);
  wait_paused (where, "copier");
  task_start (&w2);
  wait_for_waiters (s, 1, &w2);
  task_start (&r);
  wait_for_waiters (s, 2, &r);
  assert_false (w1.is_done);
  assert_false (w2.is_done);
  assert_int_equal (read_same (s->node, 8 * BLOCK, BLOCK), 'a');
  /* A reader gets what lies before the claim. */
  assert_int_equal (read_same (s->blk, 7 * BLOCK, BLOCK), 'a');
  blk_debug_resume (where, "copier");
  assert_int_equal (task_join (&w1), 0);
  assert_int_equal (task_join (&w2), 0);
  assert_int_equal (task_join (&r), 0);
  assert_int_equal (r.byte, 'a');
  assert_int_equal (read_same (s->blk, 0, SIZE), 'a');
  assert_int_equal (read_same (s->node, 8 * BLOCK + 150, 100), 'a');
}

static void
test_copier_reading (void **state)
{
  struct stage *s = *state;

  copier_paused (s, s->node, BLK_DEBUG_READ);
}

static void
test_copier_writing (void **state)
{
  struct stage *s = *state;

  copier_paused (s, s->scratch, BLK_DEBUG_WRITE);
}

/* The old data is in scratch, the new data not yet on the disk: readers take
 * it from scratch and do not touch the disk.
 */
static void
test_read_between_copy_and_write (void **state)
{
  struct stage *s = *state;
  struct task w = writer (s, 8 * BLOCK, BLOCK, 'b');

  set_break (s->node, BLK_DEBUG_WRITE, 8 * BLOCK, "write");
  task_start (&w);
  wait_paused (s->node, "write");
  free (blk_debug_trace (s->node));
  assert_int_equal (read_same (s->blk, 8 * BLOCK, BLOCK), 'a');
  CLEANUP_FREE char *trace = blk_debug_trace (s->node);
  assert_string_equal (trace, "");
  blk_debug_resume (s->node, "write");
  assert_int_equal (task_join (&w), 0);
}

/* A waiting writer is not overtaken by readers that come after it. */
static void
test_readers_do_not_starve_the_writer (void **state)
{
  struct stage *s = *state;
  struct task r1 = reader (s, 4 * BLOCK, BLOCK);
  struct task r2 = reader (s, 4 * BLOCK, BLOCK);
  struct task w = writer (s, 4 * BLOCK, BLOCK, 'b');

  set_break (s->node, BLK_DEBUG_READ, 4 * BLOCK, "first");
  task_start (&r1);
  wait_paused (s->node, "first");
  task_start (&w);
  wait_for_waiters (s, 1, &w);
  task_start (&r2);
  wait_for_waiters (s, 2, &r2);
  blk_debug_resume (s->node, "first");
  assert_int_equal (task_join (&r1), 0);
  assert_int_equal (task_join (&w), 0);
  assert_int_equal (task_join (&r2), 0);
  assert_int_equal (r1.byte, 'a');
  assert_int_equal (r2.byte, 'a');
}

/* Giving up waits for whoever reads there, on the disk and in scratch. */
static void
trim_waits (struct stage *s, struct blk *where)
{
  struct task r = reader (s, 4 * BLOCK, BLOCK);
  struct task t = {
    .run = run_trim, .blk = s->blk, .off = 4 * BLOCK, .len = BLOCK,
  };

  set_break (where, BLK_DEBUG_READ, 4 * BLOCK, "reader");
  task_start (&r);
  wait_paused (where, "reader");
  task_start (&t);
  wait_for_waiters (s, 1, &t);
  blk_debug_resume (where, "reader");
  assert_int_equal (task_join (&r), 0);
  assert_int_equal (r.byte, 'a');
  assert_int_equal (task_join (&t), 0);
  assert_int_equal (blk_pread (s->blk, &(char) { 0 }, 1, 4 * BLOCK, 0),
                    -EIO);
}

static void
test_trim_waits_for_reader_of_disk (void **state)
{
  struct stage *s = *state;

  trim_waits (s, s->node);
  fill (s->disk, 4 * BLOCK, BLOCK, 'b');
}

static void
test_trim_waits_for_reader_of_scratch (void **state)
{
  struct stage *s = *state;

  fill (s->disk, 4 * BLOCK, BLOCK, 'b');
  trim_waits (s, s->scratch);
}

/* The copy fails while a reader elsewhere reads the disk.  The view is broken,
 * the next writer does not wait for the reader, which must then fail.
 */
static void
test_broken_while_reading (void **state)
{
  struct stage *s = *state;
  struct task r = reader (s, 4 * BLOCK, BLOCK);
  struct cbw_view_info info;

  set_break (s->node, BLK_DEBUG_READ, 4 * BLOCK, "reader");
  task_start (&r);
  wait_paused (s->node, "reader");
  blk_debug_fail_nth (s->scratch, BLK_DEBUG_WRITE, 1, ENOSPC, false);
  fill (s->disk, 20 * BLOCK, BLOCK, 'b');
  cbw_view_get_info (s->view, &info);
  assert_int_equal (info.error, -ENOSPC);
  fill (s->disk, 4 * BLOCK, BLOCK, 'c');
  assert_int_equal (read_same (s->node, 20 * BLOCK, BLOCK), 'b');
  blk_debug_resume (s->node, "reader");
  assert_int_equal (task_join (&r), -EIO);
}

/* What the disk says of its extents counts only where nothing has changed since
 * the point: the guest need not wait for the answer.
 */
static int
run_extents (struct task *task)
{
  struct extents extents;
  int r;

  extents_init (&extents, 100);
  r = blk_extents (task->blk, task->len, task->off, 0, BLK_STATUS_ALLOCATION,
                   &extents);
  task->byte = r == 0 && extents.len == 1 ? (int) extents.ptr[0].value : -1;
  extents_free (&extents);
  return r;
}

static int
run_discard (struct task *task)
{
  return disk_trim (task->disk, task->len, task->off, 0);
}

static void
test_trim_of_guest_during_extents (void **state)
{
  struct stage *s = *state;
  struct task e = { .run = run_extents, .blk = s->blk, .len = SIZE };
  struct task w = {
    .run = run_discard, .disk = s->disk, .off = 4 * BLOCK, .len = BLOCK,
  };

  set_break (s->node, BLK_DEBUG_EXTENTS, 0, "extents");
  task_start (&e);
  wait_paused (s->node, "extents");
  task_start (&w);
  assert_int_equal (task_join (&w), 0);
  blk_debug_resume (s->node, "extents");
  assert_int_equal (task_join (&e), 0);
  assert_int_equal (e.byte, 0);
}

static int
run_stop_view (struct task *task)
{
  stop_view (task->disk, task->view);
  return 0;
}

/* The view ends while a read is in flight: the end waits for it. */
static void
test_stop_waits_for_reader (void **state)
{
  struct stage *s = *state;
  struct task r = reader (s, 4 * BLOCK, BLOCK);
  struct task stop = {
    .run = run_stop_view, .disk = s->disk, .view = s->view,
  };

  set_break (s->node, BLK_DEBUG_READ, 4 * BLOCK, "reader");
  task_start (&r);
  wait_paused (s->node, "reader");
  task_start (&stop);
  WAIT_FOR (gate_is_closed (disk_gate (s->disk)));
  WAIT_FOR (blk_pread (s->blk, &(char) { 0 }, 1, 0, 0) == -ESHUTDOWN);
  assert_false (stop.is_done);
  blk_debug_resume (s->node, "reader");
  assert_int_equal (task_join (&r), 0);
  assert_int_equal (r.byte, 'a');
  task_join (&stop);
  cbw_view_free (s->view);
  s->view = NULL;
}

static int
run_take_view (struct task *task)
{
  task->opaque = full_view (task->disk);
  return 0;
}

/* I5: a write that is inside the gate is wholly before the point. */
static void
test_point_waits_for_write_inside (void **state)
{
  struct stage *s = *state;
  struct task w = writer (s, 4 * BLOCK, 2 * BLOCK, 'b');
  struct task w2 = writer (s, 20 * BLOCK, BLOCK, 'c');
  struct task point = { .run = run_take_view, .disk = s->disk };
  struct gate *gate = disk_gate (s->disk);

  set_break (s->node, BLK_DEBUG_WRITE, 4 * BLOCK, "write");
  task_start (&w);
  wait_paused (s->node, "write");
  task_start (&point);
  WAIT_FOR ((atomic_load (&gate->state) & GATE_CLOSED) || point.is_done);
  assert_false (point.is_done);
  /* One that comes now waits, and is wholly after it. */
  task_start (&w2);
  WAIT_FOR (nr_gate_waiters (gate) == 1 || w2.is_done);
  assert_false (w2.is_done);
  assert_false (gate_is_closed (gate));
  blk_debug_resume (s->node, "write");
  assert_int_equal (task_join (&w), 0);
  task_join (&point);
  assert_int_equal (task_join (&w2), 0);
  assert_int_equal (read_same (cbw_view_blk (point.opaque), 4 * BLOCK,
                               2 * BLOCK), 'b');
  assert_int_equal (read_same (cbw_view_blk (point.opaque), 20 * BLOCK,
                               BLOCK), 'a');
  end_view (s->disk, point.opaque);
}

/* I1: the bits are set before the data can change: the write is held just
 * above the disk, and the bit is there.
 */
static void
test_bit_is_set_before_the_write (void **state)
{
  struct stage *s = *state;
  struct task w = writer (s, 4 * BLOCK, 1, 'b');
  struct dirty_info *infos;
  size_t nr;

  assert_int_equal (disk_bitmap_add (s->disk, "b", 4096, false, NULL), 0);
  set_break (s->node, BLK_DEBUG_WRITE, 4 * BLOCK, "write");
  task_start (&w);
  wait_paused (s->node, "write");
  assert_int_equal (dirty_list (disk_dirty (s->disk), &infos, &nr), 0);
  assert_int_equal (infos[0].dirty_bytes, 4096);
  dirty_infos_free (infos, nr);
  assert_int_equal (read_same (s->node, 4 * BLOCK, BLOCK), 'a');
  blk_debug_resume (s->node, "write");
  assert_int_equal (task_join (&w), 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown (f, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_writer_waits_for_reader),
    TEST (test_writer_elsewhere_goes_on),
    TEST (test_copier_reading),
    TEST (test_copier_writing),
    TEST (test_read_between_copy_and_write),
    TEST (test_readers_do_not_starve_the_writer),
    TEST (test_trim_waits_for_reader_of_disk),
    TEST (test_trim_waits_for_reader_of_scratch),
    TEST (test_broken_while_reading),
    TEST (test_trim_of_guest_during_extents),
    TEST (test_stop_waits_for_reader),
    TEST (test_point_waits_for_write_inside),
    TEST (test_bit_is_set_before_the_write),
  };

  limit_test_time ();
  log_set_handler (unit_ignore_log);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
