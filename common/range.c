/* SPDX-License-Identifier: BSD-3-Clause */
/* Byte ranges: see range.h.  Any thread. */
#include "config.h"

#include <string.h>

#include "range.h"

bool
is_zero_buffer (const void *buf, size_t len)
{
  const unsigned char *p = buf;
  uint64_t first[2];
  size_t i;

  if (len < sizeof first) {
    for (i = 0; i < len; i++)
      if (p[i])
        return false;
    return true;
  }

  /* Data is rarely zero at its beginning: that answers most calls.  Then a
   * buffer that begins with 16 zeroes and equals itself moved by 16 bytes is
   * all zero, and memcmp is the fastest loop there is.
   */
  memcpy (first, p, sizeof first);
  if (first[0] | first[1])
    return false;
  return memcmp (p, p + sizeof first, len - sizeof first) == 0;
}
