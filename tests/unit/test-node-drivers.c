/* SPDX-License-Identifier: BSD-3-Clause */
/* blk-window.c, blk-null.c and blk-inject.c. */
#include "config.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "blk-inject.h"
#include "blk-mem.h"
#include "blk-null.h"
#include "blk-window.h"

#define SIZE 65536

static struct blk *
window (struct blk *child, const struct blk_window_options *options)
{
  struct error err = ERROR_INIT;
  struct blk *blk = NULL;

  if (blk_window_open (child, options, &blk, &err) < 0)
    fail_msg ("%s", err.msg);
  return blk;
}

static void
test_window (void **state)
{
  const struct blk_window_options options = { .off = 4096, .size = 8192 };
  struct blk *mem, *w;
  struct extents extents;
  char buf[512];

  assert_int_equal (blk_mem_new (SIZE, &mem), 0);
  memset (buf, 7, sizeof buf);
  assert_int_equal (blk_pwrite (mem, buf, sizeof buf, 4096 + 1024, 0), 0);
  w = window (mem, &options);
  assert_int_equal (blk_size (w), 8192);
  memset (buf, 0, sizeof buf);
  assert_int_equal (blk_pread (w, buf, sizeof buf, 1024, 0), 0);
  assert_int_equal (buf[511], 7);
  assert_int_equal (blk_pread (w, buf, sizeof buf, 8192, 0), -EINVAL);
  assert_int_equal (blk_pwrite (w, buf, sizeof buf, 8000, 0), -ENOSPC);
  assert_int_equal (blk_resize (w, 4096), -ENOTSUP);

  /* Extents begin where they are asked for, not where they are in mem. */
  extents_init (&extents, 10);
  assert_int_equal (blk_extents (w, 8192, 0, 0, BLK_STATUS_ALLOCATION,
                                 &extents), 0);
  assert_int_equal (extents.ptr[0].off, 0);
  assert_true (extents_length (&extents) <= 8192);
  extents_free (&extents);
  assert_int_equal (blk_close (w), 0);
}

static void
test_window_limits (void **state)
{
  static const struct {
    uint64_t off, size;
    int error;
  } cases[] = {
    { 0, UINT64_MAX, 0 }, { SIZE, UINT64_MAX, 0 }, { SIZE, 0, 0 },
    { SIZE + 1, UINT64_MAX, -EINVAL }, { 0, SIZE + 1, -EINVAL },
    { 512, SIZE, -EINVAL }, { 0, 513, -EINVAL },
    { UINT64_MAX, 1, -EINVAL }, { 512, UINT64_MAX - 1, -EINVAL },
  };
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    const struct blk_window_options options = {
      .off = cases[i].off, .size = cases[i].size,
    };
    struct error err = ERROR_INIT;
    struct blk *mem, *w;

    assert_int_equal (blk_mem_new (SIZE, &mem), 0);
    assert_int_equal (blk_window_open (mem, &options, &w, &err),
                      cases[i].error);
    if (cases[i].error == 0)
      blk_close (w);
  }
}

/* A borrowed child stays, and follows what is written and grown. */
static void
test_borrowed (void **state)
{
  const struct blk_window_options options = {
    .size = UINT64_MAX, .is_borrowed = true,
  };
  const struct blk_window_options read_only = {
    .size = UINT64_MAX, .is_borrowed = true, .is_read_only = true,
  };
  struct blk *mem, *w;
  char buf[512] = { 1 };

  assert_int_equal (blk_mem_new (SIZE, &mem), 0);
  w = window (mem, &options);
  assert_int_equal (blk_resize (w, 2 * SIZE), 0);
  assert_int_equal (blk_size (w), 2 * SIZE);
  assert_int_equal (blk_pwrite (w, buf, sizeof buf, SIZE, BLK_FUA), 0);
  assert_int_equal (blk_close (w), 0);
  w = window (mem, &read_only);
  buf[0] = 0;
  assert_int_equal (blk_pwrite (w, buf, sizeof buf, SIZE, 0), -EPERM);
  assert_int_equal (blk_pread (w, buf, sizeof buf, SIZE, 0), 0);
  assert_int_equal (buf[0], 1);
  assert_int_equal (blk_close (w), 0);
  assert_int_equal (blk_size (mem), 2 * SIZE);
  blk_close (mem);
}

static void
test_null (void **state)
{
  struct extents extents;
  char buf[512] = { 1 };
  struct blk *blk;

  assert_int_equal (blk_null_open ("n", SIZE, 0, &blk, NULL), 0);
  assert_int_equal (blk_pwrite (blk, buf, sizeof buf, 0, 0), 0);
  assert_int_equal (blk_pread (blk, buf, sizeof buf, 0, 0), 0);
  assert_int_equal (buf[0], 0);
  extents_init (&extents, 2);
  assert_int_equal (blk_extents (blk, SIZE, 0, 0, BLK_STATUS_ALLOCATION,
                                 &extents), 0);
  assert_int_equal (extents.ptr[0].value, EXTENT_HOLE | EXTENT_ZERO);
  extents_free (&extents);
  blk_close (blk);
}

static struct blk *
inject (const struct blk_inject_rule *rules, size_t nr)
{
  struct error err = ERROR_INIT;
  struct blk *mem, *blk = NULL;

  assert_int_equal (blk_mem_new (SIZE, &mem), 0);
  if (blk_inject_open (mem, "d", rules, nr, &blk, &err) < 0)
    fail_msg ("%s", err.msg);
  return blk;
}

static int
read_at (struct blk *blk, uint64_t off)
{
  char buf[512];

  return blk_pread (blk, buf, sizeof buf, off, 0);
}

/* States, and rules that take each other's place. */
static void
test_inject (void **state)
{
  const struct blk_inject_rule rules[] = {
    { .event = BLK_EVENT_L2_LOAD, .state = 1, .is_set_state = true,
      .new_state = 2 },
    { .event = BLK_EVENT_L2_LOAD, .state = 2, .errnum = ENOSPC,
      .ops = BLK_INJECT_READ, .off = 1024 },
    { .event = BLK_EVENT_L1_UPDATE, .errnum = EIO,
      .ops = BLK_INJECT_DEFAULT, .off = UINT64_MAX, .is_once = true },
  };
  struct blk *blk = inject (rules, 3);

  assert_int_equal (read_at (blk, 1024), 0);
  blk_event (blk, BLK_EVENT_L2_LOAD);           /* state 2, no error yet */
  assert_int_equal (read_at (blk, 1024), 0);
  blk_event (blk, BLK_EVENT_L2_LOAD);
  assert_int_equal (read_at (blk, 1024), -ENOSPC);
  assert_int_equal (read_at (blk, 1024), -ENOSPC);
  assert_int_equal (read_at (blk, 512), 0);
  assert_int_equal (read_at (blk, 1536), 0);
  assert_int_equal (blk_zero (blk, 4096, 0, 0), 0);
  blk_event (blk, BLK_EVENT_L1_UPDATE);
  assert_int_equal (read_at (blk, 0), -EIO);
  assert_int_equal (read_at (blk, 1024), 0);    /* displaced, and spent */
  blk_event (blk, BLK_EVENT_L1_UPDATE);
  assert_int_equal (blk_flush (blk), 0);
  blk_close (blk);
}

/* Rules of "none" apply from the start; unknown names never. */
static void
test_inject_always (void **state)
{
  const struct blk_inject_rule rules[] = {
    { .event = blk_inject_event ("none"), .errnum = EIO,
      .ops = BLK_INJECT_FLUSH, .off = UINT64_MAX },
    { .event = blk_inject_event ("vmstate_load"), .errnum = EIO,
      .ops = BLK_INJECT_DEFAULT, .off = UINT64_MAX },
  };
  struct blk *blk = inject (rules, 2);

  assert_int_equal (read_at (blk, 0), 0);
  assert_int_equal (blk_flush (blk), -EIO);
  assert_int_equal (blk_flush (blk), -EIO);
  assert_int_equal (blk_pread (blk, &(char) { 0 }, 1, 0, BLK_NOWAIT),
                    -EAGAIN);
  blk_close (blk);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_window),
    cmocka_unit_test (test_window_limits),
    cmocka_unit_test (test_borrowed),
    cmocka_unit_test (test_null),
    cmocka_unit_test (test_inject),
    cmocka_unit_test (test_inject_always),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
