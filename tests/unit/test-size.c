/* SPDX-License-Identifier: BSD-3-Clause */
/* common/size: sizes as people write them. */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "size.h"
#include "unit/unit.h"

static void
expect_size (const char *s, uint64_t size)
{
  struct error err = ERROR_INIT;
  uint64_t n;

  if (size_parse ("--size", s, &n, &err) < 0)
    fail_msg ("%s: %s", s, err.msg);
  if (n != size)
    fail_msg ("%s: %llu", s, (unsigned long long) n);
}

static void
expect_error (const char *s, int errnum, const char *text)
{
  struct error err = ERROR_INIT;
  uint64_t n = 4711;

  if (size_parse ("--size", s, &n, &err) != -errnum)
    fail_msg ("%s: not refused as %d", s, errnum);
  assert_int_equal (n, 4711);
  if (strncmp (err.msg, "--size: ", 8) != 0 || !strstr (err.msg, text))
    fail_msg ("%s: %s", s, err.msg);
}

static void
test_parse (void **state)
{
  expect_size ("0", 0);
  expect_size ("4096", 4096);
  expect_size ("64k", 65536);
  expect_size ("64K", 65536);
  expect_size ("64KiB", 65536);
  expect_size ("64KB", 65536);
  expect_size ("512B", 512);
  expect_size ("1M", UINT64_C (1) << 20);
  expect_size ("10G", UINT64_C (10) << 30);
  expect_size ("2T", UINT64_C (2) << 40);
  expect_size ("1P", UINT64_C (1) << 50);
  expect_size ("15E", UINT64_C (15) << 60);
  expect_size ("18446744073709551615", UINT64_MAX);
}

static void
test_bad (void **state)
{
  static const char *const bad[] = {
    "", "k", "-1", "+1", " 1", "1 ", "1x", "1kk", "1ki", "1iB", "0x10",
    "1.5G", "1k1", "B", "1BB",
  };
  size_t i;

  for (i = 0; i < sizeof bad / sizeof *bad; i++)
    expect_error (bad[i], EINVAL, "is not a size");
  expect_error ("18446744073709551616", ERANGE, "is too large");
  expect_error ("99999999999999999999999999", ERANGE, "is too large");
  expect_error ("16E", ERANGE, "is too large");
  expect_error ("18446744073709551615k", ERANGE, "is too large");
}

static void
expect_text (uint64_t n, const char *text)
{
  char buf[SIZE_STRING_MAX];

  assert_string_equal (size_format (n, buf), text);
}

static void
test_format (void **state)
{
  expect_text (0, "0 B");
  expect_text (512, "512 B");
  expect_text (1023, "1023 B");
  expect_text (1024, "1 KiB");
  expect_text (1536, "1.5 KiB");
  expect_text (UINT64_C (12) << 30, "12 GiB");
  expect_text ((UINT64_C (1) << 20) - 1, "1 MiB");
  expect_text (UINT64_C (1023) << 20, "1023 MiB");
  expect_text (1234567, "1.177 MiB");
  expect_text (UINT64_MAX, "16 EiB");
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_parse),
    cmocka_unit_test (test_bad),
    cmocka_unit_test (test_format),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
