/* SPDX-License-Identifier: BSD-3-Clause */
/* common/error: messages of a fixed size. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "error.h"
#include "unit/unit.h"

static void
test_set (void **state)
{
  struct error err = ERROR_INIT;

  assert_int_equal (error_set (&err, EINVAL, "%s: %d", "x", 5), -EINVAL);
  assert_int_equal (err.errnum, EINVAL);
  assert_string_equal (err.msg, "x: 5");
  assert_int_equal (error_set_errno (&err, ENOENT, "%s", "f"), -ENOENT);
  assert_string_equal (err.msg, "f: No such file or directory");
}

static void
test_null (void **state)
{
  assert_int_equal (error_set (NULL, EINVAL, "x"), -EINVAL);
  assert_int_equal (error_set_errno (NULL, EIO, "x"), -EIO);
  error_prefix (NULL, "x");
}

static void
test_truncation (void **state)
{
  struct error err = ERROR_INIT;
  char text[1000];

  memset (text, 'x', sizeof text);
  text[sizeof text - 1] = '\0';
  error_set (&err, EINVAL, "%s", text);
  assert_int_equal (strlen (err.msg), sizeof err.msg - 1);

  /* The reason is still there. */
  error_set_errno (&err, ENOENT, "%s", text);
  assert_int_equal (strlen (err.msg), sizeof err.msg - 1);
  assert_non_null (strstr (err.msg, "xx: No such file or directory"));

  error_prefix (&err, "%s", text);
  assert_int_equal (strlen (err.msg), sizeof err.msg - 1);
}

static void
test_one_line (void **state)
{
  struct error err = ERROR_INIT;

  error_set (&err, EINVAL, "a\nb\tc\x7f" "d");
  assert_string_equal (err.msg, "a b c d");
  error_prefix (&err, "p\nq");
  assert_string_equal (err.msg, "p q: a b c d");
  assert_int_equal (err.errnum, EINVAL);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_set),
    cmocka_unit_test (test_null),
    cmocka_unit_test (test_truncation),
    cmocka_unit_test (test_one_line),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
