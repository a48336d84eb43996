/* SPDX-License-Identifier: BSD-3-Clause */
/* block/blk-mem against an array of bytes; sparseness; many threads. */
#include "config.h"

#include <errno.h>
#include <pthread.h>

#include "blk-mem.h"
#include "unit/disk-model.h"

static void
test_model (void **state)
{
  struct disk_model m;
  struct blk *blk;
  unsigned i;

  assert_int_equal (blk_mem_new (100000, &blk), 0);
  disk_model_init (&m, blk, 1);
  disk_model_check (&m);
  for (i = 0; i < 500; i++) {
    disk_model_step (&m);
    disk_model_check (&m);
  }
  disk_model_free (&m);
  assert_int_equal (blk_close (blk), 0);
}

static void
expect_extents (struct blk *blk, uint64_t len, uint64_t off, size_t nr,
                const struct extent *expected)
{
  struct extents e;
  size_t i;

  extents_init (&e, 100);
  assert_int_equal (blk_extents (blk, len, off, 0, BLK_STATUS_ALLOCATION,
                                 &e), 0);
  assert_int_equal (e.len, nr);
  for (i = 0; i < nr; i++) {
    assert_true (e.ptr[i].off == expected[i].off);
    assert_true (e.ptr[i].len == expected[i].len);
    assert_int_equal (e.ptr[i].value, expected[i].value);
  }
  extents_free (&e);
}

/* The largest disk: pages at both ends, one hole between them, found without
 * walking through it.
 */
static void
test_huge (void **state)
{
  const uint64_t size = RANGE_MAX_SIZE;
  const struct extent expected[] = {
    { 0, 4096, 0 },
    { 4096, size - 8192, EXTENT_HOLE | EXTENT_ZERO },
    { size - 4096, 4096, 0 },
  };
  const struct extent empty = { 0, size, EXTENT_HOLE | EXTENT_ZERO };
  struct blk *blk;
  char c = 'x';

  assert_int_equal (blk_mem_new (size, &blk), 0);
  expect_extents (blk, size, 0, 1, &empty);
  assert_int_equal (blk_pwrite (blk, &c, 1, 0, 0), 0);
  assert_int_equal (blk_pwrite (blk, &c, 1, size - 1, 0), 0);
  expect_extents (blk, size, 0, 3, expected);
  expect_extents (blk, size - 4096, 4096, 2, expected + 1);
  assert_int_equal (blk_zero (blk, size, 0, BLK_MAY_UNMAP | BLK_FAST), 0);
  expect_extents (blk, size, 0, 1, &empty);
  assert_int_equal (blk_close (blk), 0);
}

static void
test_unmap (void **state)
{
  const struct extent data = { 0, 16384, 0 };
  const struct extent holes[] = {
    { 0, 4096, 0 }, { 4096, 8192, EXTENT_HOLE | EXTENT_ZERO },
    { 12288, 4096, 0 },
  };
  struct blk *blk;

  assert_int_equal (blk_mem_new (16384, &blk), 0);
  /* Without leave to unmap zeroes are allocated. */
  assert_int_equal (blk_zero (blk, 16384, 0, 0), 0);
  expect_extents (blk, 16384, 0, 1, &data);
  /* Whole pages only. */
  assert_int_equal (blk_trim (blk, 8192 + 4095 + 4095, 1, 0), 0);
  expect_extents (blk, 16384, 0, 3, holes);
  assert_int_equal (blk_close (blk), 0);
}

static void
test_resize (void **state)
{
  const struct extent expected[] = {
    { 0, 8192, 0 }, { 8192, 92160, EXTENT_HOLE | EXTENT_ZERO },
  };
  struct blk *blk;
  static char buf[16384];

  assert_int_equal (blk_mem_new (16384, &blk), 0);
  memset (buf, 1, sizeof buf);
  assert_int_equal (blk_pwrite (blk, buf, 16384, 0, 0), 0);
  assert_int_equal (blk_resize (blk, 5000), 0);
  assert_int_equal (blk_pread (blk, buf, 1, 5000, 0), -EINVAL);
  assert_int_equal (blk_resize (blk, 100352), 0);
  /* What was cut off does not come back. */
  assert_int_equal (blk_pread (blk, buf, 16384, 0, 0), 0);
  assert_int_equal (buf[4999], 1);
  assert_true (is_zero_buffer (buf + 5000, 16384 - 5000));
  expect_extents (blk, 100352, 0, 2, expected);
  assert_int_equal (blk_close (blk), 0);
}

/* Threads over one small disk, all kinds of requests: nothing but values that
 * somebody wrote, a page never torn.
 */
#define NR_THREADS 4
#define SHARED_SIZE 65536

static void *
hammer (void *arg)
{
  static _Atomic uint64_t nr_threads;
  uint64_t seed = ++nr_threads * 77;
  struct blk *blk = arg;
  unsigned char buf[4096];
  struct extents e;
  unsigned i;

  extents_init (&e, 100);
  for (i = 0; i < 3000; i++) {
    uint64_t off = unit_random (&seed) % (SHARED_SIZE / 4096) * 4096;

    switch (unit_random (&seed) % 5) {
    case 0:
      memset (buf, (int) (unit_random (&seed) & 0xff), sizeof buf);
      if (blk_pwrite (blk, buf, sizeof buf, off, 0) != 0)
        return "write failed";
      break;
    case 1:
      if (blk_trim (blk, sizeof buf, off, 0) != 0)
        return "trim failed";
      break;
    case 2:
      extents_clear (&e);
      if (blk_extents (blk, SHARED_SIZE, 0, 0, BLK_STATUS_ALLOCATION, &e) != 0
          || extents_length (&e) != SHARED_SIZE)
        return "extents failed";
      break;
    default:
      if (blk_pread (blk, buf, sizeof buf, off, 0) != 0)
        return "read failed";
      if (memcmp (buf, buf + 1, sizeof buf - 1) != 0)
        return "a page is torn";
      break;
    }
  }
  extents_free (&e);
  return NULL;
}

static void
test_threads (void **state)
{
  pthread_t threads[NR_THREADS];
  struct blk *blk;
  unsigned i;
  void *text;

  assert_int_equal (blk_mem_new (SHARED_SIZE, &blk), 0);
  for (i = 0; i < NR_THREADS; i++)
    assert_int_equal (pthread_create (&threads[i], NULL, hammer, blk), 0);
  for (i = 0; i < NR_THREADS; i++) {
    pthread_join (threads[i], &text);
    if (text)
      fail_msg ("%s", (char *) text);
  }
  assert_int_equal (blk_close (blk), 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_model),
    cmocka_unit_test (test_huge),
    cmocka_unit_test (test_unmap),
    cmocka_unit_test (test_resize),
    cmocka_unit_test (test_threads),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
