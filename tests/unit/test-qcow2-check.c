/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks and repairs of qcow2 images with random wrong refcounts, against
 * another count; with windows of all sizes; every operation of a repair fails,
 * or is the last one before a crash.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "blk-debug.h"
#include "blk-qcow2.h"
#include "byteorder.h"
#include "qcow2-check.h"
#include "qcow2-image.h"
#include "range.h"
#include "unit.h"

#define CAPACITY (UINT64_C (20) << 20)
#define CLUSTER 512

static struct error err;

static uint64_t
rnd (uint64_t n)
{
  static uint64_t state = UINT64_C (88172645463325252);

  return unit_random (&state) % n;
}

static void
create (struct file *f, uint64_t size, uint64_t data)
{
  struct qcow2_create_options options = {
    .size = size, .cluster_size = CLUSTER,
  };
  uint8_t *buf = malloc (data);
  struct blk *blk;

  memset (buf, 0x55, data);
  file_init (f, CAPACITY);
  assert_int_equal (blk_qcow2_create (file_node (f), &options, &blk, &err), 0);
  assert_int_equal (blk_pwrite (blk, buf, data, 0, 0), 0);
  assert_int_equal (blk_close (blk), 0);
  free (buf);
}

/* The 16-bit refcount of a host cluster. */
static uint8_t *
refcount (struct file *f, uint64_t cluster)
{
  uint64_t per = CLUSTER / 2;
  uint8_t *table = f->bytes + load_be64 (f->bytes + 48);

  return f->bytes + load_be64 (table + cluster / per * 8) + cluster % per * 2;
}

static void
damage (struct file *f, unsigned nr)
{
  uint8_t *p;

  while (nr-- > 0) {
    p = refcount (f, rnd (f->size / CLUSTER));
    store_be16 (p, (uint16_t) rnd (4));
  }
}

static int
check_node (struct blk *node, enum qcow2_repair repair, uint64_t window,
            struct qcow2_check_result *ret)
{
  struct qcow2_check_options options = { .repair = repair, .window = window };

  return blk_qcow2_check (node, &options, ret, &err);
}

static void
check (struct file *f, enum qcow2_repair repair, uint64_t window,
       struct qcow2_check_result *ret)
{
  if (check_node (file_node (f), repair, window, ret) < 0)
    fail_msg ("%s", err.msg);
}

static void
assert_sound (struct file *f)
{
  struct image_report report;

  image_check (f->bytes, f->size, &report);
  if (report.error)
    fail_msg ("%s (%llu)", report.error, (unsigned long long) report.where);
  assert_int_equal (report.nr_leaks, 0);
}

/* Windows make no difference; what a repair has fixed is what was found. */
static void
test_windows (void **state)
{
  struct qcow2_check_result small, large, after;
  struct image_report report;
  struct file f;

  for (unsigned round = 0; round < 30; round++) {
    create (&f, 1 << 20, 1 + rnd (1 << 20));
    damage (&f, (unsigned) rnd (20));
    check (&f, QCOW2_REPAIR_NONE, 1, &small);
    check (&f, QCOW2_REPAIR_NONE, 0, &large);
    assert_memory_equal (&small, &large, sizeof small);
    image_check (f.bytes, f.size, &report);
    assert_int_equal (report.error != NULL, small.corruptions > 0);
    if (!report.error)
      assert_int_equal (report.nr_leaks, small.leaks);

    check (&f, QCOW2_REPAIR_LEAKS, rnd (2), &after);
    assert_int_equal (after.leaks, 0);
    assert_int_equal (after.leaks_fixed, small.leaks);
    check (&f, QCOW2_REPAIR_ALL, rnd (2), &after);
    assert_int_equal (after.corruptions + after.leaks, 0);
    assert_sound (&f);
    file_destroy (&f);
  }
}

/* The refcount table is gone: a new one, in one window and in many. */
static void
test_rebuild (void **state)
{
  struct qcow2_check_result result;
  struct file f;

  for (uint64_t window = 0; window < 2; window++) {
    create (&f, 1 << 20, 600000);
    memset (f.bytes + load_be64 (f.bytes + 48), 0, CLUSTER);
    check (&f, QCOW2_REPAIR_LEAKS, window, &result);
    assert_true (result.corruptions > 1000);
    check (&f, QCOW2_REPAIR_ALL, window, &result);
    assert_int_equal (result.corruptions + result.leaks, 0);
    assert_true (result.corruptions_fixed > 1000);
    assert_sound (&f);
    file_destroy (&f);
  }
}

/* Every operation fails once; the next repair does it all the same. */
static bool
fail_nth (uint64_t n, bool is_rebuild)
{
  unsigned ops = BLK_DEBUG_READ | BLK_DEBUG_WRITE | BLK_DEBUG_FLUSH;
  struct qcow2_check_result result;
  struct blk *debug;
  struct file f;
  int r;

  create (&f, 1 << 18, 100000);
  if (is_rebuild)
    memset (f.bytes + load_be64 (f.bytes + 48), 0, CLUSTER);
  else
    damage (&f, 10);
  assert_int_equal (blk_debug_open (file_node (&f), &debug, &err), 0);
  blk_debug_fail_nth (debug, ops, n, EIO, false);
  r = check_node (debug, QCOW2_REPAIR_ALL, 1, &result);
  if (r < 0)
    assert_int_equal (r, -EIO);
  check (&f, QCOW2_REPAIR_ALL, 0, &result);
  assert_sound (&f);
  file_destroy (&f);
  return r < 0;
}

static void
test_fail_nth (void **state)
{
  uint64_t n;

  for (int is_rebuild = 0; is_rebuild < 2; is_rebuild++) {
    for (n = 1; fail_nth (n, is_rebuild); n++)
      ;
    assert_true (n > 10);
  }
}

/* The power fails after every change of a repair: the data is there. */
static void
test_power_loss (void **state)
{
  struct qcow2_open_options options = { .is_read_only = true };
  uint8_t *start = malloc (CAPACITY), buf[CLUSTER];
  struct qcow2_check_result result;
  struct file f, crashed;
  struct blk *blk;
  uint64_t size;

  create (&f, 1 << 18, 100000);
  memset (f.bytes + load_be64 (f.bytes + 48), 0, CLUSTER);
  size = f.size;
  memset (start, 0, CAPACITY);
  memcpy (start, f.bytes, size);
  file_forget_changes (&f);
  f.is_recording = true;
  check (&f, QCOW2_REPAIR_ALL, 0, &result);
  file_init (&crashed, CAPACITY);
  memcpy (crashed.bytes, start, CAPACITY);
  crashed.size = size;
  for (size_t i = 0; i < f.nr_changes; i++) {
    change_apply (&f.changes[i], crashed.bytes, &crashed.size);
    assert_int_equal (blk_qcow2_open (file_node (&crashed), &options, &blk,
                                      &err), 0);
    assert_int_equal (blk_pread (blk, buf, CLUSTER, 50000, 0), 0);
    assert_int_equal (buf[0], 0x55);
    assert_int_equal (blk_close (blk), 0);
  }
  check (&crashed, QCOW2_REPAIR_NONE, 0, &result);
  assert_int_equal (result.corruptions + result.leaks, 0);
  file_destroy (&crashed);
  file_destroy (&f);
  free (start);
}

/* A sparse file of absurd size costs neither memory nor time. */
static void
test_huge_table (void **state)
{
  struct qcow2_check_result result;
  struct file f;

  create (&f, 1 << 18, 1000);
  store_be64 (f.bytes + load_be64 (f.bytes + 48) + CLUSTER - 8,
              UINT64_C (1) << 55);
  check (&f, QCOW2_REPAIR_NONE, 0, &result);
  assert_true (result.corruptions > 0);
  check (&f, QCOW2_REPAIR_ALL, 0, &result);
  assert_sound (&f);
  file_destroy (&f);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_windows),
    cmocka_unit_test (test_rebuild),
    cmocka_unit_test (test_fail_nth),
    cmocka_unit_test (test_power_loss),
    cmocka_unit_test (test_huge_table),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
