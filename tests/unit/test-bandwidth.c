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

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_rate), cmocka_unit_test (test_pause),
    cmocka_unit_test (test_no_limit), cmocka_unit_test (test_cancelled),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
