/* SPDX-License-Identifier: BSD-3-Clause */
/* common/keyval: KEY=VALUE,KEY=VALUE. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "keyval.h"
#include "unit/unit.h"

static void
expect_key (const char *s, const char *default_key, const char *key,
            const char *value)
{
  struct error err = ERROR_INIT;
  struct keyvals kv;

  if (keyvals_parse (s, default_key, &kv, &err) < 0)
    fail_msg ("%s: %s", s, err.msg);
  assert_non_null (keyvals_get (&kv, key));
  assert_string_equal (keyvals_get (&kv, key), value);
  assert_null (keyvals_get (&kv, "other"));
  keyvals_free (&kv);
}

static void
expect_error (const char *s, const char *default_key, const char *text)
{
  struct error err = ERROR_INIT;
  struct keyvals kv;

  assert_int_equal (keyvals_parse (s, default_key, &kv, &err), -EINVAL);
  if (!strstr (err.msg, text))
    fail_msg ("%s: no \"%s\" in: %s", s, text, err.msg);
}

static void
test_values (void **state)
{
  expect_key ("a=b", NULL, "a", "b");
  expect_key ("a=", NULL, "a", "");
  expect_key ("a=b,c=d", NULL, "c", "d");
  expect_key ("a=b=c,d=", NULL, "a", "b=c");
  expect_key ("vda,file=/x", "name", "name", "vda");
  expect_key ("vda,file=/x", "name", "file", "/x");
  expect_key ("name=vda", "name", "name", "vda");
}

static void
test_commas (void **state)
{
  expect_key ("a=b,,c", NULL, "a", "b,c");
  expect_key ("a=,,,,,c=d", NULL, "a", ",,");
  expect_key ("a=,,,,,c=d", NULL, "c", "d");
  expect_key ("x,,y,a=b", "name", "name", "x,y");
}

static void
test_errors (void **state)
{
  expect_error ("", NULL, "is empty");
  expect_error ("", "name", "is empty");
  expect_error ("a=b,", NULL, "is empty");
  expect_error (",a=b", "name", "is empty");
  expect_error ("a=b,c", NULL, "'c' has no value");
  expect_error ("vda", NULL, "'vda' has no value");
  expect_error ("vda,vdb", "name", "'vdb' has no value");
  expect_error ("=b", NULL, "not the name of an option");
  expect_error ("a b=c", NULL, "not the name of an option");
  expect_error ("a=b,a=c", NULL, "'a' is given twice");
  expect_error ("vda,name=x", "name", "'name' is given twice");
}

static void
test_check (void **state)
{
  static const char *const allowed[] = { "file", "format", NULL };
  struct error err = ERROR_INIT;
  struct keyvals kv;

  assert_int_equal (keyvals_parse ("file=x,format=raw", NULL, &kv, NULL), 0);
  assert_int_equal (keyvals_check (&kv, "disk", allowed, &err), 0);
  keyvals_free (&kv);
  assert_int_equal (keyvals_parse ("file=x,fromat=raw", NULL, &kv, NULL), 0);
  assert_int_equal (keyvals_check (&kv, "disk", allowed, &err), -EINVAL);
  assert_string_equal (err.msg, "disk: unknown option 'fromat'; allowed: "
                       "file, format");
  keyvals_free (&kv);
}

/* Whatever the text is: no crash, and a result or an error. */
static void
test_random (void **state)
{
  static const char alphabet[] = "a=,b,=,\\ ";
  uint64_t seed = 42;
  struct keyvals kv;
  char s[24];
  size_t i, len;
  unsigned n;

  for (n = 0; n < 20000; n++) {
    len = unit_random (&seed) % sizeof s;
    for (i = 0; i < len; i++)
      s[i] = alphabet[unit_random (&seed) % (sizeof alphabet - 1)];
    s[len] = '\0';
    if (keyvals_parse (s, n % 2 ? "d" : NULL, &kv, NULL) == 0) {
      assert_true (kv.len >= 1);
      keyvals_free (&kv);
    }
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_values),
    cmocka_unit_test (test_commas),
    cmocka_unit_test (test_errors),
    cmocka_unit_test (test_check),
    cmocka_unit_test (test_random),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
