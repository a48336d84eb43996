/* SPDX-License-Identifier: BSD-3-Clause */
/* The Nth operation on the disk or on scratch fails, for N = 1, 2, 3 ... until
 * none does.  After each: the guest's data is right, bits are a superset of
 * what changed, the view is right wherever it can be read, and if a read of it
 * fails although nothing fails any more then it says that it is broken.
 */
#include "config.h"

#include "disk-util.h"

#define NR 72
#define SIZE (NR * BLOCK - 512)

struct run {
  struct disk *disk;
  struct blk *node, *scratch;
  struct cbw_view *view;
  unsigned char *point;         /* the disk at the point */
  unsigned char *now;           /* as far as writes succeeded */
  bool unsure[NR];              /* a change failed: old or new data */
  bool changed[NR];             /* touched since the point */
};

static void
begin_run (struct run *run, enum cbw_on_error on_error)
{
  struct cbw_options options = { .on_error = on_error };
  uint64_t seed = 1;

  memset (run, 0, sizeof *run);
  run->disk = debug_disk ("d", SIZE, on_error);
  run->node = disk_node (run->disk);
  run->scratch = debug_node (SIZE);
  run->point = malloc (SIZE);
  run->now = malloc (SIZE);
  for (int i = 0; i < NR; i++)
    if (i % 4 != 3)
      fill (run->disk, i * BLOCK, MIN (BLOCK, SIZE - i * BLOCK),
            1 + (int) (rnd (&seed) % 255));
  assert_int_equal (disk_pread (run->disk, run->point, SIZE, 0, 0), 0);
  memcpy (run->now, run->point, SIZE);
  options.scratch = run->scratch;
  assert_int_equal (cbw_view_new (disk_cbw (run->disk), &options, &run->view,
                                  NULL), 0);
  assert_int_equal (disk_bitmap_add (run->disk, "b", BLOCK, false, NULL), 0);
  start_view (run->disk, run->view, NULL);
}

static void
end_run (struct run *run)
{
  end_view (run->disk, run->view);
  disk_close (run->disk);
  free (run->point);
  free (run->now);
}

static void
note_change (struct run *run, uint64_t off, uint64_t len, int result,
             int byte)
{
  if (result == 0)
    memset (run->now + off, byte, len);
  for (uint64_t i = off / BLOCK; i * BLOCK < off + len; i++) {
    run->changed[i] = true;
    if (result < 0)
      run->unsure[i] = true;
  }
}

static int
change (struct run *run, int kind, uint64_t off, uint64_t len, int byte)
{
  static char buf[SIZE];
  int r;

  memset (buf, byte, sizeof buf);
  switch (kind) {
  case 0:
    r = disk_zero (run->disk, len, off, 0);
    byte = 0;
    break;
  case 1:
    r = disk_trim (run->disk, len, off, 0);
    byte = 0;
    break;
  default:
    r = disk_pwrite (run->disk, buf, len, off, 0);
  }
  note_change (run, off, len, r, byte);
  return r;
}

/* A fixed mixture of everything.  Wrong data is a failure at once. */
static void
work (struct run *run)
{
  CLEANUP_FREE unsigned char *buf = malloc (SIZE);
  struct extents extents;
  uint64_t seed = 7;

  for (int step = 0; step < 12; step++) {
    uint64_t off = rnd (&seed) % SIZE;
    uint64_t len = 1 + rnd (&seed) % MIN (SIZE - off, 5 * BLOCK);
    int kind = (int) (rnd (&seed) % 5);

    if (kind == 1) {
      /* Whole blocks, which memory turns into zeroes. */
      off = round_down (off, BLOCK);
      len = BLOCK * (len / BLOCK + 1);
      len = MIN (len, SIZE - off);
    }
    change (run, kind, off, len, 1 + (int) (rnd (&seed) % 255));
    off = rnd (&seed) % SIZE;
    len = 1 + rnd (&seed) % (SIZE - off);
    if (blk_pread (cbw_view_blk (run->view), buf, len, off, 0) == 0)
      assert_memory_equal (buf, run->point + off, len);
    extents_init (&extents, 1000);
    if (blk_extents (cbw_view_blk (run->view), SIZE, 0, 0,
                     BLK_STATUS_ALLOCATION, &extents) == 0)
      for (size_t i = 0; i < extents.len; i++)
        if (extents.ptr[i].value & EXTENT_ZERO)
          assert_true (is_zero_buffer (run->point + extents.ptr[i].off,
                                       extents.ptr[i].len));
    extents_free (&extents);
  }
  /* Longer than a piece of a copy. */
  change (run, 0, 0, SIZE, 0);
}

static void
check_guest (struct run *run)
{
  CLEANUP_FREE unsigned char *buf = malloc (SIZE);

  assert_int_equal (disk_pread (run->disk, buf, SIZE, 0, 0), 0);
  for (uint64_t i = 0; i < NR; i++)
    if (!run->unsure[i])
      assert_memory_equal (buf + i * BLOCK, run->now + i * BLOCK,
                           MIN (BLOCK, SIZE - i * BLOCK));
}

static void
check_bits (struct run *run)
{
  struct dirty_bitmap *bm = dirty_find (disk_dirty (run->disk), "b");
  struct extents extents;

  extents_init (&extents, NR + 1);
  assert_int_equal (dirty_extents (bm, SIZE, 0, &extents), 0);
  for (uint64_t i = 0; i < NR; i++)
    if (run->changed[i]) {
      const struct extent *e = extents_find (&extents, i * BLOCK);

      assert_non_null (e);
      assert_int_equal (e->value, EXTENT_DIRTY);
    }
  extents_free (&extents);
  dirty_unref (bm);
}

static void
check_view (struct run *run, bool may_break)
{
  CLEANUP_FREE unsigned char *buf = malloc (SIZE);
  struct cbw_view_info info;
  int r = blk_pread (cbw_view_blk (run->view), buf, SIZE, 0, 0);

  cbw_view_get_info (run->view, &info);
  if (!may_break)
    assert_int_equal (info.error, 0);
  assert_int_equal (r, info.error ? -EIO : 0);
  if (r == 0)
    assert_memory_equal (buf, run->point, SIZE);
}

static void
fail_each (bool in_scratch, unsigned ops, bool is_sticky,
           enum cbw_on_error on_error)
{
  unsigned n, nr_broken = 0;
  bool has_fired = true;

  for (n = 1; has_fired; n++) {
    struct run run;
    struct blk *where;
    struct cbw_view_info info;

    begin_run (&run, on_error);
    where = in_scratch ? run.scratch : run.node;
    blk_debug_fail_nth (where, ops, n, ENOSPC, is_sticky);
    work (&run);
    has_fired = blk_debug_has_fired (where);
    blk_debug_fail_nth (where, 0, 0, 0, false);
    check_guest (&run);
    check_bits (&run);
    check_view (&run, on_error == CBW_BREAK_BACKUP);
    cbw_view_get_info (run.view, &info);
    nr_broken += info.error != 0;
    end_run (&run);
  }
  /* The test did reach what it is about. */
  assert_true (n > 5);
  if (on_error == CBW_BREAK_BACKUP
      && (in_scratch ? ops & BLK_DEBUG_WRITE : ops & BLK_DEBUG_READ))
    assert_true (nr_broken > 0);
}

static void
test_disk (void **state)
{
  for (int sticky = 0; sticky < 2; sticky++) {
    fail_each (false, BLK_DEBUG_READ, sticky, CBW_BREAK_BACKUP);
    fail_each (false, BLK_DEBUG_ANY, sticky, CBW_BREAK_BACKUP);
    fail_each (false, BLK_DEBUG_ANY, sticky, CBW_BREAK_GUEST_WRITE);
  }
}

static void
test_scratch_writes (void **state)
{
  for (int sticky = 0; sticky < 2; sticky++) {
    fail_each (true, BLK_DEBUG_WRITE, sticky, CBW_BREAK_BACKUP);
    fail_each (true, BLK_DEBUG_WRITE, sticky, CBW_BREAK_GUEST_WRITE);
  }
}

static void
test_scratch_anything (void **state)
{
  for (int sticky = 0; sticky < 2; sticky++) {
    fail_each (true, BLK_DEBUG_ANY, sticky, CBW_BREAK_BACKUP);
    fail_each (true, BLK_DEBUG_READ, sticky, CBW_BREAK_GUEST_WRITE);
  }
}

static void
count_call (void *opaque)
{
  ++*(unsigned *) opaque;
}

/* The one who has to know is told, once, and the guest is not. */
static void
test_broken_is_told_once (void **state)
{
  unsigned nr_calls = 0;
  struct cbw_options options = { .broken = count_call, .opaque = &nr_calls };
  struct disk *disk = debug_disk ("d", SIZE, CBW_BREAK_BACKUP);
  struct cbw_view *view;

  fill (disk, 0, SIZE, 'a');
  options.scratch = debug_node (SIZE);
  blk_debug_fail_nth (options.scratch, BLK_DEBUG_WRITE, 2, EIO, true);
  assert_int_equal (cbw_view_new (disk_cbw (disk), &options, &view, NULL), 0);
  start_view (disk, view, NULL);
  fill (disk, 0, BLOCK, 'b');
  assert_int_equal (nr_calls, 0);
  fill (disk, BLOCK, BLOCK, 'b');
  assert_int_equal (nr_calls, 1);
  fill (disk, 2 * BLOCK, BLOCK, 'b');
  assert_int_equal (nr_calls, 1);
  end_view (disk, view);
  disk_close (disk);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_disk),
    cmocka_unit_test (test_scratch_writes),
    cmocka_unit_test (test_scratch_anything),
    cmocka_unit_test (test_broken_is_told_once),
  };

  limit_test_time ();
  log_set_handler (unit_ignore_log);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
