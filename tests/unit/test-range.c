/* SPDX-License-Identifier: BSD-3-Clause */
/* common/range: arithmetic at its limits; zero detection. */
#include "config.h"

#include <string.h>

#include "range.h"
#include "unit/unit.h"

static void
test_within (void **state)
{
  assert_true (range_is_within (0, 0, 0));
  assert_true (range_is_within (10, 0, 10));
  assert_true (range_is_within (0, 10, 10));
  assert_false (range_is_within (1, 10, 10));
  assert_false (range_is_within (11, 0, 10));
  assert_false (range_is_within (1, UINT64_MAX, 10));
  assert_false (range_is_within (UINT64_MAX, 1, 10));
  assert_false (range_is_within (UINT64_MAX, 0, 10));
  assert_true (range_is_within (0, UINT64_MAX, UINT64_MAX));
}

static void
test_overlaps (void **state)
{
  assert_true (range_overlaps (0, 2, 1, 2));
  assert_false (range_overlaps (0, 2, 2, 2));
  assert_false (range_overlaps (0, 0, 0, 2));
  assert_false (range_overlaps (1, 1, 0, 0));
  assert_true (range_overlaps (5, 1, 0, 10));
  assert_true (range_overlaps (0, RANGE_MAX_SIZE, RANGE_MAX_SIZE - 1, 1));
}

static void
test_rounding (void **state)
{
  assert_int_equal (round_up (0, 512), 0);
  assert_int_equal (round_up (1, 512), 512);
  assert_int_equal (round_up (512, 512), 512);
  assert_int_equal (round_down (511, 512), 0);
  assert_int_equal (round_down (513, 512), 512);
  assert_true (round_up (RANGE_MAX_SIZE, UINT64_C (1) << 31)
               == RANGE_MAX_SIZE);
  assert_true (div_round_up (UINT64_MAX, 2) == UINT64_C (1) << 63);
  assert_int_equal (div_round_up (0, 7), 0);
  assert_int_equal (div_round_up (7, 7), 1);
  assert_int_equal (div_round_up (8, 7), 2);
  assert_int_equal (log2_exact (65536), 16);
  assert_true (is_power_of_2 (1));
  assert_false (is_power_of_2 (0));
  assert_false (is_power_of_2 (3));
}

/* Every length and alignment, one byte set at every place. */
static void
test_zero_buffer (void **state)
{
  unsigned char buf[200];
  size_t start, len, i;

  memset (buf, 0xff, sizeof buf);
  for (start = 0; start < 9; start++)
    for (len = 0; len < 100; len++) {
      memset (buf + start, 0, len);
      assert_true (is_zero_buffer (buf + start, len));
      for (i = 0; i < len; i++) {
        buf[start + i] = 1u << (i % 8);
        assert_false (is_zero_buffer (buf + start, len));
        buf[start + i] = 0;
      }
      memset (buf, 0xff, sizeof buf);
    }
}

static void
test_large_zero_buffer (void **state)
{
  size_t len = 1 << 20, i;
  unsigned char *buf = calloc (1, len);

  assert_non_null (buf);
  assert_true (is_zero_buffer (buf, len));
  for (i = 0; i < len; i += 4093) {
    buf[i] = 0x80;
    assert_false (is_zero_buffer (buf, len));
    buf[i] = 0;
  }
  buf[len - 1] = 1;
  assert_false (is_zero_buffer (buf, len));
  assert_true (is_zero_buffer (buf, len - 1));
  free (buf);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_within),
    cmocka_unit_test (test_overlaps),
    cmocka_unit_test (test_rounding),
    cmocka_unit_test (test_zero_buffer),
    cmocka_unit_test (test_large_zero_buffer),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
