/* SPDX-License-Identifier: BSD-3-Clause */
/* Metadata contexts: queries for them, and the set that a client selected
 * (nbd: "Metadata querying"; qemu: docs/interop/nbd).
 */
#ifndef TIDEMARK_META_CONTEXT_H
#define TIDEMARK_META_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk.h"
#include "dirty.h"
#include "export.h"
#include "extents.h"

#define META_BASE_ALLOCATION "base:allocation"
#define META_ALLOCATION_DEPTH "qemu:allocation-depth"
#define META_DIRTY_BITMAP "qemu:dirty-bitmap:"

/* At most this many can be selected: each bitmap and the other two. */
#define META_MAX_CONTEXTS (DIRTY_MAX_BITMAPS + 2)

/* What a query asks for; any number of them may be set. */
struct meta_query {
  bool allocation;
  bool depth;
  bool all_bitmaps;             /* a wildcard */
  const char *bitmap;           /* exact, into the query; or NULL */
  size_t bitmap_len;
};

/* Parse a query of an option.  Only is_list has wildcards (including "no
 * query", s NULL).  Unknown namespaces and leaves select nothing, as does
 * anything that is not a query.  s need not be NUL terminated.
 */
void meta_query_parse (const char *s, size_t len, bool is_list,
                       struct meta_query *ret);

enum meta_kind { META_ALLOCATION, META_DEPTH, META_BITMAP };

struct meta_context {
  enum meta_kind kind;
  struct dirty_bitmap *bitmap;  /* a reference; META_BITMAP */
  bool is_frozen;               /* show its frozen bits alone */
  char *name;                   /* the whole name */
};

/* The context at index i has the id i + 1 on the wire. */
struct meta_contexts {
  struct meta_context ptr[META_MAX_CONTEXTS];
  size_t len;
};

void meta_contexts_reset (struct meta_contexts *set);

/* Add what the query selects of the export, unless it is there already: in
 * the order base:allocation, allocation-depth, bitmaps.  Between export_enter
 * and export_leave.  -E2BIG if there are too many, -ENOMEM; the set is then
 * incomplete.
 */
int meta_contexts_add (struct meta_contexts *set, struct export *e,
                       const struct meta_query *query);

/* Append the status of a prefix of [off, off+len) in one context: at least
 * one extent on success.  Between export_enter and export_leave.  I7: a
 * bitmap that cannot be trusted any more is an error.
 */
int meta_context_extents (const struct meta_context *context,
                          struct blk *blk, uint64_t len, uint64_t off,
                          unsigned flags, struct extents *extents);

#endif /* TIDEMARK_META_CONTEXT_H */
