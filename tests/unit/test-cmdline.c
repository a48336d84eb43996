/* SPDX-License-Identifier: BSD-3-Clause */
/* cmdline.c: every way to write an option, and every way to get it wrong. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "cmdline.h"
#include "unit.h"

static const struct option_spec specs[] = {
  { "disk", 'd', "NAME", "help" },
  { "force", 'f', NULL, "help" },
  { "quiet", 'q', NULL, "help" },
  { "size", 0, "SIZE", "help" },
  { NULL }
};

#define PARSE(o, err, ...) \
  options_parse (specs, \
                 (int) (sizeof ((const char *[]) { __VA_ARGS__ }) \
                        / sizeof (char *)), \
                 (char *[]) { __VA_ARGS__ }, o, err)

static void
test_forms (void **state)
{
  struct error err = ERROR_INIT;
  struct options o;

  assert_int_equal (PARSE (&o, &err, "a", "--disk", "x", "--disk=y", "-dz",
                           "-fq", "-d", "w", "b", "-", "--", "--force"), 0);
  assert_int_equal (o.nr_args, 4);
  assert_string_equal (o.args[0], "a");
  assert_string_equal (o.args[1], "b");
  assert_string_equal (o.args[2], "-");
  assert_string_equal (o.args[3], "--force");
  assert_string_equal (options_get (&o, "disk"), "w");
  assert_string_equal (options_get_nth (&o, "disk", 0), "x");
  assert_string_equal (options_get_nth (&o, "disk", 1), "y");
  assert_string_equal (options_get_nth (&o, "disk", 2), "z");
  assert_string_equal (options_get_nth (&o, "disk", 3), "w");
  assert_null (options_get_nth (&o, "disk", 4));
  assert_true (options_has (&o, "force"));
  assert_true (options_has (&o, "quiet"));
  assert_false (options_has (&o, "size"));
  assert_null (options_get (&o, "size"));
  options_free (&o);
  /* An empty value, and a value that looks like an option. */
  assert_int_equal (PARSE (&o, &err, "--disk=", "-qd", "--force"), 0);
  assert_string_equal (options_get_nth (&o, "disk", 0), "");
  assert_string_equal (options_get (&o, "disk"), "--force");
  assert_false (options_has (&o, "force"));
  options_free (&o);
}

static void
test_errors (void **state)
{
  struct error err = ERROR_INIT;
  struct options o;

  assert_int_equal (PARSE (&o, &err, "--dis", "x"), -EINVAL);
  assert_string_equal (err.msg, "unknown option '--dis'");
  assert_int_equal (PARSE (&o, &err, "--diskx=1"), -EINVAL);
  assert_string_equal (err.msg, "unknown option '--diskx'");
  assert_int_equal (PARSE (&o, &err, "-fx"), -EINVAL);
  assert_string_equal (err.msg, "unknown option '-x'");
  assert_int_equal (PARSE (&o, &err, "--disk"), -EINVAL);
  assert_string_equal (err.msg, "--disk needs a value: --disk NAME");
  assert_int_equal (PARSE (&o, &err, "-qd"), -EINVAL);
  assert_string_equal (err.msg, "--disk needs a value: --disk NAME");
  assert_int_equal (PARSE (&o, &err, "--force=yes"), -EINVAL);
  assert_string_equal (err.msg, "--force takes no value (it was given "
                       "'yes')");
}

static void
check_number (const char *value, bool is_size, uint64_t expected)
{
  struct error err = ERROR_INIT;
  struct options o;
  uint64_t n = 12345;

  assert_int_equal (PARSE (&o, &err, "--size", (char *) value), 0);
  if (expected) {
    assert_int_equal (options_get_number (&o, "size", is_size, 2, 1 << 20,
                                          &n, &err), 0);
    assert_int_equal (n, expected);
  }
  else {
    assert_true (options_get_number (&o, "size", is_size, 2, 1 << 20, &n,
                                     &err) < 0);
    assert_non_null (strstr (err.msg, "--size"));
    assert_int_equal (n, 12345);
  }
  options_free (&o);
}

static void
test_numbers (void **state)
{
  static const char *const bad[] = {
    "", "1", "0", "-5", "+5", " 5", "5 ", "5x", "0x10", "1048577",
    "18446744073709551618", "99999999999999999999999999",
  };
  struct error err = ERROR_INIT;
  struct options o;
  uint64_t n = 77;
  size_t i;

  check_number ("2", false, 2);
  check_number ("1048576", false, 1048576);
  check_number ("0002", false, 2);
  for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
    check_number (bad[i], false, 0);
  check_number ("64k", true, 65536);
  check_number ("1M", true, 1048576);
  check_number ("2M", true, 0);
  check_number ("1", true, 0);
  check_number ("k", true, 0);
  assert_int_equal (PARSE (&o, &err, "x"), 0);
  assert_int_equal (options_get_number (&o, "size", true, 1, 2, &n, &err), 0);
  assert_int_equal (n, 77);
  options_free (&o);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_forms),
    cmocka_unit_test (test_errors),
    cmocka_unit_test (test_numbers),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
