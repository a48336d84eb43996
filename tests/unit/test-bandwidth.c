/* SPDX-License-Identifier: BSD-3-Clause */
/* bandwidth.c: at no time has more passed than the bucket and the rate allow,
 * and whoever always has something to move gets all of it.
 */
#include "config.h"

#include <errno.h>

#include "bandwidth.h"
#include "unit.h"

#define MS INT64_C (1000000)

static void
test_rate (void **state)
{
  static const uint64_t sizes[] = { 1, 4096, 65536, 262144, 5000000 };
  const uint64_t rate = 1000000, burst = rate / 10;
  size_t i;

  for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    struct bandwidth b = { .rate = rate };
    const int64_t start = 123 * MS;
    int64_t now = start;
    uint64_t moved = 0;

    while (now < start + 20000 * MS) {
      now += bandwidth_take (&b, sizes[i], now);
      moved += sizes[i];
      assert_true (moved <= sizes[i] + burst
                   + (uint64_t) (now - start) / 1000 + 1);
      assert_true (moved + sizes[i] + 1 >= (uint64_t) (now - start) / 1000);
    }
  }
}

/* A pause does not fill more than the bucket. */
static void
test_pause (void **state)
{
  struct bandwidth b = { .rate = 1000000 };

  assert_int_equal (bandwidth_take (&b, 50000, 0), 0);
  assert_int_equal (bandwidth_take (&b, 50000, 3600000 * MS), 0);
  assert_int_equal (bandwidth_take (&b, 100000, 3600000 * MS), 0);
  assert_int_equal (bandwidth_take (&b, 1, 3600000 * MS), 50 * MS);
}

static void
test_no_limit (void **state)
{
  struct bandwidth b = { .rate = 0 };
  const bool cancel = false;

  assert_int_equal (bandwidth_take (&b, UINT64_MAX, 5), 0);
  assert_int_equal (bandwidth_wait (&b, UINT64_MAX, &cancel), 0);
}

static void
test_cancelled (void **state)
{
  struct bandwidth b = { .rate = 1 };
  const bool cancel = true;

  assert_int_equal (bandwidth_wait (&b, 1000, &cancel), 0);
  assert_int_equal (bandwidth_wait (&b, 1000, &cancel), -ECANCELED);
}

/* What is asked for ahead: half a second's, in pieces of an eighth or less, but
 * no smaller than a cluster.
 */
static void
test_ahead (void **state)
{
  static const struct { uint64_t rate, piece, window; } rows[] = {
    { 0, 262144, 1 << 28 }, { 1 << 30, 262144, 1 << 28 },
    { 1 << 22, 262144, 1 << 21 }, { 2097152, 262144, 1048576 },
    { 2097151, 131072, 1048575 }, { 1000000, 65536, 500000 },
    { 50000, 65536, 25000 }, { 1, 65536, 1 },
  };
  size_t i;

  for (i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    const struct bandwidth b = { .rate = rows[i].rate };

    assert_int_equal (bandwidth_piece (&b, 65536, 262144), rows[i].piece);
    assert_int_equal (bandwidth_window (&b, 1 << 28), rows[i].window);
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_rate), cmocka_unit_test (test_pause),
    cmocka_unit_test (test_no_limit), cmocka_unit_test (test_cancelled),
    cmocka_unit_test (test_ahead),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
