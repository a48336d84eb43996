/* SPDX-License-Identifier: BSD-3-Clause */
/* What the NBD server offers: names for nodes and their dirty bitmaps. */
#ifndef TIDEMARK_EXPORT_H
#define TIDEMARK_EXPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk.h"
#include "dirty.h"
#include "disk.h"
#include "error.h"

#define EXPORT_NAME_MAX 4096    /* NBD protocol, "String values" */

struct export;
struct export_table;            /* one per listener kind: live, backup */

struct export_bitmap {
  struct dirty_bitmap *bitmap;
  const char *name;             /* in the context */
};

struct export_options {
  const char *name;             /* "" is the default export */
  const char *description;      /* NULL = none */
  struct blk *blk;              /* not owned; valid until export_remove */
  const char *disk_name;        /* whose content it is; NULL = unknown */
  bool is_read_only;
  /* Its bitmaps: all of a live disk's, whatever they are at the time ... */
  struct disk *disk;            /* or NULL */
  /* ... or just this one, of a session: its frozen bits alone are shown
   * (dirty_frozen_extents), never those of its successor.  A reference is
   * taken.
   */
  struct dirty_bitmap *bitmap;  /* or NULL */
  const char *bitmap_name;
  /* ... or these, as they are at the time.  References are taken. */
  const struct export_bitmap *bitmaps;
  size_t nr_bitmaps;
  /* Optional: called for every request. */
  void (*touch) (void *opaque);
  void *opaque;
};

int export_table_new (struct export_table **ret);
void export_table_free (struct export_table *t);        /* is empty */

/* -EEXIST if the name is taken. */
int export_add (struct export_table *t, const struct export_options *options,
                struct error *err);
/* No new request enters it; returns when those in progress have left.  Their
 * clients get ESHUTDOWN for the next ones.  -ENOENT.
 */
int export_remove (struct export_table *t, const char *name);
/* The same, but -EBUSY, and nothing has changed, if clients are connected. */
int export_remove_unused (struct export_table *t, const char *name);

/* A reference, or NULL.  A client that asks for "" gets the only export of a
 * table that has just one.
 */
struct export *export_find (struct export_table *t, const char *name);
void export_unref (struct export *e);
/* References to all, in order of creation.  Free with export_list_free. */
int export_list (struct export_table *t, struct export ***ret,
                 size_t *ret_nr);
void export_list_free (struct export **exports, size_t nr);

/* Around every use of the node.  False once the export has been removed. */
bool export_enter (struct export *e);
void export_leave (struct export *e);

const char *export_name (const struct export *e);
const char *export_description (const struct export *e);        /* or NULL */
const char *export_disk_name (const struct export *e);  /* or NULL */
bool export_is_read_only (const struct export *e);
struct blk *export_blk (struct export *e);      /* between enter and leave */

/* References to its bitmaps and their names.  The caller unrefs each, frees
 * each name, and frees both arrays.
 */
int export_bitmaps (struct export *e, struct dirty_bitmap ***ret,
                    char ***ret_names, size_t *ret_nr);
/* One by name: a reference, or NULL. */
struct dirty_bitmap *export_find_bitmap (struct export *e, const char *name);
/* True if it was given a session's bitmap: its frozen bits are to be shown. */
bool export_shows_frozen (const struct export *e);

#endif /* TIDEMARK_EXPORT_H */
