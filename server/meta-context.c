/* SPDX-License-Identifier: BSD-3-Clause */
/* Metadata contexts: queries, the selected set, block status in one of them.
 *
 * I7: in a dirty context doubt is dirty or an error, never clean.  A bitmap
 * that was removed or became inconsistent fails every later request for it,
 * and a reply that does not begin where it was asked to is not passed on.
 *
 * meta_contexts_*: the connection's own thread, during the handshake.
 * meta_context_extents: any worker.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta-context.h"

/* True if s (len bytes) begins with prefix; the rest is in *ret. */
static bool
skip_prefix (const char *s, size_t len, const char *prefix, const char **ret,
             size_t *ret_len)
{
  size_t n = strlen (prefix);

  if (len < n || memcmp (s, prefix, n) != 0)
    return false;
  *ret = s + n;
  *ret_len = len - n;
  return true;
}

static bool
is_equal (const char *s, size_t len, const char *to)
{
  return len == strlen (to) && memcmp (s, to, len) == 0;
}

void
meta_query_parse (const char *s, size_t len, bool is_list,
                  struct meta_query *ret)
{
  const char *rest;
  size_t rest_len;

  memset (ret, 0, sizeof *ret);
  if (s == NULL)
    ret->allocation = ret->depth = ret->all_bitmaps = is_list;
  else if (is_equal (s, len, "base:"))
    ret->allocation = is_list;
  else if (is_equal (s, len, "qemu:"))
    ret->depth = ret->all_bitmaps = is_list;
  else if (is_equal (s, len, META_BASE_ALLOCATION))
    ret->allocation = true;
  else if (is_equal (s, len, META_ALLOCATION_DEPTH))
    ret->depth = true;
  else if (skip_prefix (s, len, META_DIRTY_BITMAP, &rest, &rest_len)) {
    if (rest_len == 0)
      ret->all_bitmaps = is_list;
    else {
      ret->bitmap = rest;
      ret->bitmap_len = rest_len;
    }
  }
}

void
meta_contexts_reset (struct meta_contexts *set)
{
  size_t i;

  for (i = 0; i < set->len; ++i) {
    if (set->ptr[i].bitmap)
      dirty_unref (set->ptr[i].bitmap);
    free (set->ptr[i].name);
  }
  set->len = 0;
}

/* Add one context unless it is there.  Takes ownership of bitmap, on failure
 * too.
 */
static int
add_context (struct meta_contexts *set, enum meta_kind kind,
             const char *prefix, const char *leaf, struct dirty_bitmap *bitmap)
{
  struct meta_context *context = &set->ptr[set->len];
  char *name = NULL;
  size_t i;
  int r = 0;

  if (asprintf (&name, "%s%s", prefix, leaf) < 0) {
    if (bitmap)
      dirty_unref (bitmap);
    return -ENOMEM;
  }
  for (i = 0; i < set->len; ++i)
    if (strcmp (set->ptr[i].name, name) == 0)
      break;
  if (i == set->len && set->len < META_MAX_CONTEXTS) {
    context->kind = kind;
    context->bitmap = bitmap;
    context->name = name;
    set->len++;
    return 0;
  }
  if (i == set->len)
    r = -E2BIG;
  free (name);
  if (bitmap)
    dirty_unref (bitmap);
  return r;
}

static int
add_all_bitmaps (struct meta_contexts *set, struct export *e)
{
  struct dirty_bitmap **bitmaps;
  char **names;
  size_t nr, i;
  int r = export_bitmaps (e, &bitmaps, &names, &nr), r2;

  if (r < 0)
    return r;
  for (i = 0; i < nr; ++i) {
    r2 = add_context (set, META_BITMAP, META_DIRTY_BITMAP, names[i],
                      bitmaps[i]);
    if (r == 0)
      r = r2;
    free (names[i]);
  }
  free (bitmaps);
  free (names);
  return r;
}

static int
add_bitmap (struct meta_contexts *set, struct export *e,
            const struct meta_query *query)
{
  char name[DIRTY_NAME_MAX + 1];
  struct dirty_bitmap *bitmap;

  if (query->bitmap_len > DIRTY_NAME_MAX
      || memchr (query->bitmap, 0, query->bitmap_len))
    return 0;                   /* there can be none of that name */
  memcpy (name, query->bitmap, query->bitmap_len);
  name[query->bitmap_len] = '\0';
  bitmap = export_find_bitmap (e, name);
  if (bitmap == NULL)
    return 0;
  return add_context (set, META_BITMAP, META_DIRTY_BITMAP, name, bitmap);
}

int
meta_contexts_add (struct meta_contexts *set, struct export *e,
                   const struct meta_query *query)
{
  size_t i;
  int r = 0;

  if (query->allocation)
    r = add_context (set, META_ALLOCATION, META_BASE_ALLOCATION, "", NULL);
  if (r == 0 && query->depth)
    r = add_context (set, META_DEPTH, META_ALLOCATION_DEPTH, "", NULL);
  if (r == 0 && query->all_bitmaps)
    r = add_all_bitmaps (set, e);
  if (r == 0 && query->bitmap)
    r = add_bitmap (set, e, query);
  for (i = 0; i < set->len; ++i)
    set->ptr[i].is_frozen = export_shows_frozen (e);
  return r;
}

int
meta_context_extents (const struct meta_context *context, struct blk *blk,
                      uint64_t len, uint64_t off, unsigned flags,
                      struct extents *extents)
{
  int r = 0;

  switch (context->kind) {
  case META_ALLOCATION:
    r = blk_extents (blk, len, off, flags, BLK_STATUS_ALLOCATION, extents);
    break;
  case META_DEPTH:
    r = blk_extents (blk, len, off, flags, BLK_STATUS_DEPTH, extents);
    break;
  case META_BITMAP:
    if (context->is_frozen)
      r = dirty_frozen_extents (context->bitmap, len, off, extents);
    else
      r = dirty_extents (context->bitmap, len, off, extents);
    break;
  }
  if (r == 0 && (extents->len == 0 || extents->ptr[0].off != off))
    r = -EIO;
  return r;
}
