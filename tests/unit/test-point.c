/* SPDX-License-Identifier: BSD-3-Clause */
/* common/point: 128-bit ids and their text. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "point.h"
#include "unit/unit.h"

static void
test_random_ids (void **state)
{
  struct point_id a, b, c;
  char text[POINT_ID_STRING_SIZE];

  assert_int_equal (point_id_random (&a), 0);
  assert_int_equal (point_id_random (&b), 0);
  assert_false (point_id_is_none (&a));
  assert_false (point_id_is_equal (&a, &b));
  point_id_format (&a, text);
  assert_int_equal (strlen (text), 32);
  assert_int_equal (point_id_parse (text, &c), 0);
  assert_true (point_id_is_equal (&a, &c));
}

static void
test_text (void **state)
{
  static const char text[] = "00112233445566778899aabbccddeeff";
  struct point_id id;
  char again[POINT_ID_STRING_SIZE];
  size_t i;

  assert_int_equal (point_id_parse (text, &id), 0);
  for (i = 0; i < 16; i++)
    assert_int_equal (id.bytes[i], i * 0x11);
  point_id_format (&id, again);
  assert_string_equal (again, text);
  assert_int_equal (point_id_parse ("00112233445566778899AABBCCDDEEFF", &id),
                    0);
  point_id_format (&id, again);
  assert_string_equal (again, text);
  assert_int_equal (point_id_parse ("00000000000000000000000000000000", &id),
                    0);
  assert_true (point_id_is_none (&id));
}

static void
test_bad_text (void **state)
{
  static const char *const bad[] = {
    "", "0", "00112233445566778899aabbccddeef",
    "00112233445566778899aabbccddeeff0", "00112233445566778899aabbccddeefg",
    "0x112233445566778899aabbccddeeff", "00112233-445566778899aabbccddeef",
    " 0112233445566778899aabbccddeeff",
  };
  struct point_id id, before;
  size_t i;

  assert_int_equal (point_id_random (&before), 0);
  id = before;
  for (i = 0; i < sizeof bad / sizeof *bad; i++)
    assert_int_equal (point_id_parse (bad[i], &id), -EINVAL);
  assert_true (point_id_is_equal (&id, &before));
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_random_ids),
    cmocka_unit_test (test_text),
    cmocka_unit_test (test_bad_text),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
