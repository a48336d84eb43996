/* SPDX-License-Identifier: BSD-3-Clause */
/* Random 128-bit ids: see point.h.  Any thread. */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "point.h"

int
point_id_random (struct point_id *ret)
{
  struct point_id id;
  ssize_t r;

  do {
    /* Up to 256 bytes are never cut short. */
    r = getrandom (id.bytes, sizeof id.bytes, 0);
    if (r < 0 && errno != EINTR)
      return -errno;
  } while (r != sizeof id.bytes || point_id_is_none (&id));
  *ret = id;
  return 0;
}

bool
point_id_is_none (const struct point_id *id)
{
  static const struct point_id none;

  return point_id_is_equal (id, &none);
}

bool
point_id_is_equal (const struct point_id *a, const struct point_id *b)
{
  return memcmp (a->bytes, b->bytes, sizeof a->bytes) == 0;
}

void
point_id_format (const struct point_id *id, char ret[POINT_ID_STRING_SIZE])
{
  static const char digits[] = "0123456789abcdef";
  size_t i;

  for (i = 0; i < sizeof id->bytes; i++) {
    ret[2 * i] = digits[id->bytes[i] >> 4];
    ret[2 * i + 1] = digits[id->bytes[i] & 15];
  }
  ret[2 * i] = '\0';
}

static int
hex_value (char c)
{
  if (c >= '0' && c <= '9')
    return c - '0';
  if (c >= 'a' && c <= 'f')
    return c - 'a' + 10;
  if (c >= 'A' && c <= 'F')
    return c - 'A' + 10;
  return -1;
}

int
point_id_parse (const char *s, struct point_id *ret)
{
  struct point_id id;
  size_t i;

  for (i = 0; i < sizeof id.bytes; i++) {
    int high = hex_value (s[2 * i]);
    int low = high < 0 ? -1 : hex_value (s[2 * i + 1]);

    if (low < 0)
      return -EINVAL;
    id.bytes[i] = (uint8_t) (high << 4 | low);
  }
  if (s[2 * i] != '\0')
    return -EINVAL;
  *ret = id;
  return 0;
}
