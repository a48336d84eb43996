/* SPDX-License-Identifier: BSD-3-Clause */
/* Growable arrays: see vector.h.  Any thread, one vector by one at a time. */
#include "config.h"

#include "vector.h"

int
vector_reserve (void **ptr, size_t len, size_t *cap, size_t n,
                size_t elem_size)
{
  size_t want, bytes, grown;
  void *p;

  if (__builtin_add_overflow (len, n, &want))
    return -ENOMEM;
  if (want <= *cap)
    return 0;
  /* By half, so that appending costs O(1) each. */
  if (!__builtin_add_overflow (*cap, *cap / 2 + 4, &grown) && grown > want)
    want = grown;
  if (__builtin_mul_overflow (want, elem_size, &bytes))
    return -ENOMEM;
  p = realloc (*ptr, bytes);
  if (!p)
    return -ENOMEM;
  *ptr = p;
  *cap = want;
  return 0;
}
