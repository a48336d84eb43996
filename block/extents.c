/* SPDX-License-Identifier: BSD-3-Clause */
/* A contiguous list of extents: see extents.h.  One list is used by one thread
 * at a time.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "extents.h"
#include "vector.h"

void
extents_init (struct extents *e, size_t max)
{
  assert (max >= 1);
  *e = (struct extents) { .max = max };
}

void
extents_clear (struct extents *e)
{
  e->len = 0;
}

void
extents_free (struct extents *e)
{
  free (e->ptr);
  e->ptr = NULL;
  e->len = e->cap = 0;
}

int
extents_add (struct extents *e, uint64_t off, uint64_t len, uint32_t value)
{
  struct extent *last = e->len ? &e->ptr[e->len - 1] : NULL;

  if (len == 0)
    return 0;
  assert (!last || off == last->off + last->len);
  if (last && last->value == value) {
    last->len += len;
    return 0;
  }
  if (e->len >= e->max)
    return 1;
  if (e->len == e->cap
      && vector_reserve ((void **) &e->ptr, e->len, &e->cap, 1,
                         sizeof *e->ptr) < 0)
    return -ENOMEM;
  e->ptr[e->len++] = (struct extent) { .off = off, .len = len,
                                       .value = value };
  return 0;
}

uint64_t
extents_length (const struct extents *e)
{
  const struct extent *last;

  if (e->len == 0)
    return 0;
  last = &e->ptr[e->len - 1];
  return last->off + last->len - e->ptr[0].off;
}

void
extents_truncate (struct extents *e, uint64_t end)
{
  struct extent *last;

  while (e->len > 0 && e->ptr[e->len - 1].off >= end)
    e->len--;
  if (e->len > 0) {
    last = &e->ptr[e->len - 1];
    if (last->len > end - last->off)
      last->len = end - last->off;
  }
}

const struct extent *
extents_find (const struct extents *e, uint64_t off)
{
  size_t low = 0, high = e->len, mid;

  while (low < high) {
    mid = low + (high - low) / 2;
    if (off < e->ptr[mid].off)
      high = mid;
    else if (off - e->ptr[mid].off >= e->ptr[mid].len)
      low = mid + 1;
    else
      return &e->ptr[mid];
  }
  return NULL;
}
