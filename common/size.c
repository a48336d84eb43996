/* SPDX-License-Identifier: BSD-3-Clause */
/* Sizes as people write them: see size.h.  Any thread. */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "size.h"

static const char suffixes[] = "kmgtpe";

/* Parse what follows the digits: *ret_shift is the power of two. */
static int
parse_suffix (const char *s, unsigned *ret_shift)
{
  const char *p;

  *ret_shift = 0;
  if (*s) {
    p = strchr (suffixes, tolower ((unsigned char) *s));
    if (p) {
      *ret_shift = 10 * (unsigned) (p - suffixes + 1);
      s++;
      if (s[0] == 'i' && (s[1] == 'B' || s[1] == 'b'))
        s++;
      else if (s[0] == 'i')
        return -EINVAL;
    }
  }
  if (*s == 'B' || *s == 'b')
    s++;
  return *s ? -EINVAL : 0;
}

int
size_parse (const char *what, const char *s, uint64_t *ret, struct error *err)
{
  const char *p = s;
  uint64_t n = 0, unit;
  bool is_too_large = false;
  unsigned shift;

  for (; *p >= '0' && *p <= '9'; p++)
    if (__builtin_mul_overflow (n, UINT64_C (10), &n)
        || __builtin_add_overflow (n, (uint64_t) (*p - '0'), &n))
      is_too_large = true;
  if (p == s || parse_suffix (p, &shift) < 0)
    return error_set (err, EINVAL, "%s: '%.64s' is not a size: a number of "
                      "bytes is expected, or a number with k, M, G, T, P or "
                      "E for powers of 1024", what, s);
  unit = UINT64_C (1) << shift;
  if (is_too_large || __builtin_mul_overflow (n, unit, &n))
    return error_set (err, ERANGE, "%s: '%.64s' is too large: at most "
                      "%llu bytes", what, s, (unsigned long long) UINT64_MAX);
  *ret = n;
  return 0;
}

const char *
size_format (uint64_t bytes, char buf[SIZE_STRING_MAX])
{
  static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB",
                                       "EiB" };
  double n = (double) bytes;
  size_t i = 0;

  /* 1023.6 would be shown as 1024 of its unit. */
  while (n >= (i == 0 ? 1024 : 1023.5)
         && i + 1 < sizeof units / sizeof *units) {
    n /= 1024;
    i++;
  }
  snprintf (buf, SIZE_STRING_MAX, "%.4g %s", n, units[i]);
  return buf;
}
