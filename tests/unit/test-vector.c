/* SPDX-License-Identifier: BSD-3-Clause */
/* common/vector: growable arrays. */
#include "config.h"

#include <errno.h>

#include "unit/unit.h"
#include "vector.h"

DEFINE_VECTOR (numbers, uint32_t);

static void
test_append_and_remove (void **state)
{
  struct numbers v = VECTOR_INIT;
  uint32_t i;

  for (i = 0; i < 1000; i++)
    assert_int_equal (numbers_append (&v, i), 0);
  assert_int_equal (v.len, 1000);
  for (i = 0; i < 1000; i++)
    assert_int_equal (v.ptr[i], i);
  numbers_remove (&v, 0);
  numbers_remove (&v, 998);
  numbers_remove (&v, 500);
  assert_int_equal (v.len, 997);
  assert_int_equal (v.ptr[0], 1);
  assert_int_equal (v.ptr[499], 500);
  assert_int_equal (v.ptr[500], 502);
  assert_int_equal (v.ptr[996], 998);
  numbers_reset (&v);
  assert_int_equal (v.len, 0);
}

static void
test_reserve (void **state)
{
  struct numbers v = VECTOR_INIT;
  const uint32_t *ptr;
  uint32_t i;

  assert_int_equal (numbers_reserve (&v, 100), 0);
  assert_true (v.cap >= 100);
  ptr = v.ptr;
  for (i = 0; i < 100; i++)
    assert_int_equal (numbers_append (&v, i), 0);
  assert_ptr_equal (v.ptr, ptr);
  assert_int_equal (numbers_reserve (&v, 1), 0);
  assert_true (v.cap >= 101);
  numbers_reset (&v);
}

static void
test_overflow (void **state)
{
  struct numbers v = VECTOR_INIT;

  assert_int_equal (numbers_append (&v, 7), 0);
  assert_int_equal (numbers_reserve (&v, SIZE_MAX), -ENOMEM);
  assert_int_equal (numbers_reserve (&v, SIZE_MAX / 2), -ENOMEM);
  assert_int_equal (v.ptr[0], 7);
  numbers_reset (&v);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_append_and_remove),
    cmocka_unit_test (test_reserve),
    cmocka_unit_test (test_overflow),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
