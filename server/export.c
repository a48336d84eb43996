/* SPDX-License-Identifier: BSD-3-Clause */
/* Names for nodes and their dirty bitmaps, and who is using them.
 *
 * A table holds one reference to each export, every connection that chose one
 * holds another.  What an export points to is used only between export_enter
 * and export_leave, so that export_remove can wait for the last user and the
 * node can go while clients are still connected.
 *
 * export_add, export_remove: the control thread, sessions' threads.
 * Everything else: any connection's threads and the workers.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "export.h"
#include "lock.h"
#include "vector.h"

/* Bit of struct export's users; the rest counts who is inside. */
#define REMOVED (UINT32_C (1) << 31)

struct named_bitmap {
  struct dirty_bitmap *bitmap;
  char *name;
};

struct export {
  /* Fixed after add. */
  char *name;
  char *description;            /* NULL = none */
  char *disk_name;              /* NULL = unknown */
  struct blk *blk;
  bool is_read_only;
  struct disk *disk;            /* its bitmaps are offered; or NULL */
  struct dirty_bitmap *bitmap;  /* the only one offered; a reference, or NULL */
  char *bitmap_name;
  struct named_bitmap *bitmaps; /* or these, references */
  size_t nr_bitmaps;
  void (*touch) (void *opaque);
  void *opaque;
  struct export_table *table;   /* outlives all references */

  /* Atomic. */
  _Atomic uint32_t users;       /* REMOVED | number inside */
  _Atomic uint32_t refs;
};

DEFINE_VECTOR (export_vector, struct export *);

struct export_table {
  struct lock lock;
  /* Protected by lock. */
  struct export_vector exports; /* in order of creation */
  pthread_cond_t left;          /* a removed export's last user left */
};

int
export_table_new (struct export_table **ret)
{
  struct export_table *t = calloc (1, sizeof *t);

  if (t == NULL)
    return -ENOMEM;
  lock_init (&t->lock, LOCK_RANK_EXPORTS);
  cond_init (&t->left);
  *ret = t;
  return 0;
}

void
export_table_free (struct export_table *t)
{
  if (t == NULL)
    return;
  export_vector_reset (&t->exports);
  pthread_cond_destroy (&t->left);
  lock_destroy (&t->lock);
  free (t);
}

static struct export *
find_locked (struct export_table *t, const char *name)
{
  size_t i;

  lock_assert_held (&t->lock);
  for (i = 0; i < t->exports.len; ++i)
    if (strcmp (t->exports.ptr[i]->name, name) == 0)
      return t->exports.ptr[i];
  return NULL;
}

static struct export *
export_ref (struct export *e)
{
  atomic_fetch_add_explicit (&e->refs, 1, memory_order_relaxed);
  return e;
}

static void
free_bitmaps (struct export *e)
{
  while (e->nr_bitmaps > 0) {
    struct named_bitmap *b = &e->bitmaps[--e->nr_bitmaps];

    dirty_unref (b->bitmap);
    free (b->name);
  }
  free (e->bitmaps);
}

void
export_unref (struct export *e)
{
  if (e == NULL
      || atomic_fetch_sub_explicit (&e->refs, 1, memory_order_acq_rel) != 1)
    return;
  if (e->bitmap)
    dirty_unref (e->bitmap);
  free_bitmaps (e);
  free (e->bitmap_name);
  free (e->description);
  free (e->disk_name);
  free (e->name);
  free (e);
}

static int
copy_bitmaps (struct export *e, const struct export_options *options)
{
  size_t i;

  e->bitmaps = calloc (options->nr_bitmaps + 1, sizeof *e->bitmaps);
  for (i = 0; e->bitmaps && i < options->nr_bitmaps; i++) {
    e->bitmaps[i].name = strdup (options->bitmaps[i].name);
    if (e->bitmaps[i].name == NULL)
      return -ENOMEM;
    e->bitmaps[i].bitmap = dirty_ref (options->bitmaps[i].bitmap);
    e->nr_bitmaps++;
  }
  return e->bitmaps ? 0 : -ENOMEM;
}

/* An export that nobody else knows yet, with one reference. */
static struct export *
new_export (struct export_table *t, const struct export_options *options)
{
  struct export *e = calloc (1, sizeof *e);

  if (e == NULL)
    return NULL;
  atomic_init (&e->refs, 1);
  e->table = t;
  e->blk = options->blk;
  e->is_read_only = options->is_read_only || blk_is_read_only (options->blk);
  e->disk = options->disk;
  e->touch = options->touch;
  e->opaque = options->opaque;
  if (options->bitmap)
    e->bitmap = dirty_ref (options->bitmap);
  e->name = strdup (options->name);
  if (options->description)
    e->description = strdup (options->description);
  if (options->disk_name)
    e->disk_name = strdup (options->disk_name);
  if (options->bitmap)
    e->bitmap_name = strdup (options->bitmap_name);
  if (e->name == NULL || (options->description && e->description == NULL)
      || (options->disk_name && e->disk_name == NULL)
      || (options->bitmap && e->bitmap_name == NULL)
      || copy_bitmaps (e, options) < 0) {
    export_unref (e);
    return NULL;
  }
  return e;
}

static int
check_options (const struct export_options *options, struct error *err)
{
  if (strlen (options->name) > EXPORT_NAME_MAX)
    return error_set (err, EINVAL, "export name is %zu bytes long; at most %d "
                      "are allowed", strlen (options->name), EXPORT_NAME_MAX);
  if (options->description && strlen (options->description) > EXPORT_NAME_MAX)
    return error_set (err, EINVAL, "description of export '%s' is %zu bytes "
                      "long; at most %d are allowed", options->name,
                      strlen (options->description), EXPORT_NAME_MAX);
  return 0;
}

int
export_add (struct export_table *t, const struct export_options *options,
            struct error *err)
{
  struct export *e;
  int r = check_options (options, err);

  if (r < 0)
    return r;
  e = new_export (t, options);
  if (e == NULL)
    return error_set_errno (err, ENOMEM, "export '%s'", options->name);
  lock_acquire (&t->lock);
  if (find_locked (t, options->name))
    r = -EEXIST;
  else
    r = export_vector_append (&t->exports, e);
  lock_release (&t->lock);
  if (r < 0)
    export_unref (e);
  if (r == -EEXIST)
    return error_set (err, EEXIST, "an export named '%s' exists already",
                      options->name);
  if (r < 0)
    return error_set_errno (err, -r, "export '%s'", options->name);
  return 0;
}

static int
remove_export (struct export_table *t, const char *name, bool is_safe)
{
  struct export *e;
  size_t i;

  lock_acquire (&t->lock);
  e = find_locked (t, name);
  if (e == NULL || (is_safe && atomic_load (&e->refs) > 1)) {
    lock_release (&t->lock);
    return e ? -EBUSY : -ENOENT;
  }
  for (i = 0; t->exports.ptr[i] != e; ++i)
    ;
  export_vector_remove (&t->exports, i);
  atomic_fetch_or (&e->users, REMOVED);
  while (atomic_load (&e->users) != REMOVED)
    lock_wait (&t->lock, &t->left);
  lock_release (&t->lock);
  export_unref (e);
  return 0;
}

int
export_remove (struct export_table *t, const char *name)
{
  return remove_export (t, name, false);
}

int
export_remove_unused (struct export_table *t, const char *name)
{
  return remove_export (t, name, true);
}

struct export *
export_find (struct export_table *t, const char *name)
{
  struct export *e;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&t->lock);
  e = find_locked (t, name);
  if (e == NULL && *name == '\0' && t->exports.len == 1)
    e = t->exports.ptr[0];
  return e ? export_ref (e) : NULL;
}

int
export_list (struct export_table *t, struct export ***ret, size_t *ret_nr)
{
  struct export **list;
  size_t i;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&t->lock);
  list = calloc (t->exports.len + 1, sizeof *list);
  if (list == NULL)
    return -ENOMEM;
  for (i = 0; i < t->exports.len; ++i)
    list[i] = export_ref (t->exports.ptr[i]);
  *ret = list;
  *ret_nr = t->exports.len;
  return 0;
}

void
export_list_free (struct export **exports, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; ++i)
    export_unref (exports[i]);
  free (exports);
}

bool
export_enter (struct export *e)
{
  if (atomic_fetch_add (&e->users, 1) & REMOVED) {
    export_leave (e);
    return false;
  }
  if (e->touch)
    e->touch (e->opaque);
  return true;
}

void
export_leave (struct export *e)
{
  struct export_table *t = e->table;
  uint32_t users = atomic_load (&e->users);

  while ((users & REMOVED) == 0)
    if (atomic_compare_exchange_weak (&e->users, &users, users - 1))
      return;
  /* Under the lock, so that export_remove cannot miss it. */
  lock_acquire (&t->lock);
  atomic_fetch_sub (&e->users, 1);
  pthread_cond_broadcast (&t->left);
  lock_release (&t->lock);
}

const char *
export_name (const struct export *e)
{
  return e->name;
}

const char *
export_description (const struct export *e)
{
  return e->description;
}

const char *
export_disk_name (const struct export *e)
{
  return e->disk_name;
}

bool
export_is_read_only (const struct export *e)
{
  return e->is_read_only;
}

struct blk *
export_blk (struct export *e)
{
  return e->blk;
}

struct dirty_bitmap *
export_find_bitmap (struct export *e, const char *name)
{
  size_t i;

  for (i = 0; i < e->nr_bitmaps; i++)
    if (strcmp (e->bitmaps[i].name, name) == 0)
      return dirty_ref (e->bitmaps[i].bitmap);
  if (e->bitmap)
    return strcmp (e->bitmap_name, name) == 0 ? dirty_ref (e->bitmap) : NULL;
  if (e->disk)
    return dirty_find (disk_dirty (e->disk), name);
  return NULL;
}

bool
export_shows_frozen (const struct export *e)
{
  return e->bitmap != NULL;
}

/* Append a reference to the bitmap called name; nothing if it has just been
 * removed.
 */
static int
append_bitmap (struct export *e, const char *name, struct dirty_bitmap **list,
               char **names, size_t *nr)
{
  struct dirty_bitmap *bm = export_find_bitmap (e, name);

  if (bm == NULL)
    return 0;
  names[*nr] = strdup (name);
  if (names[*nr] == NULL) {
    dirty_unref (bm);
    return -ENOMEM;
  }
  list[(*nr)++] = bm;
  return 0;
}

int
export_bitmaps (struct export *e, struct dirty_bitmap ***ret,
                char ***ret_names, size_t *ret_nr)
{
  struct dirty_info *infos = NULL;
  size_t nr_infos = 0, nr = 0, i;
  struct dirty_bitmap **list;
  char **names;
  int r = 0;

  if (e->bitmap == NULL && e->disk) {
    r = dirty_list (disk_dirty (e->disk), &infos, &nr_infos);
    if (r < 0)
      return r;
  }
  list = calloc (nr_infos + e->nr_bitmaps + 1, sizeof *list);
  names = calloc (nr_infos + e->nr_bitmaps + 1, sizeof *names);
  if (list == NULL || names == NULL)
    r = -ENOMEM;
  else if (e->bitmap)
    r = append_bitmap (e, e->bitmap_name, list, names, &nr);
  for (i = 0; i < e->nr_bitmaps && r == 0; ++i)
    r = append_bitmap (e, e->bitmaps[i].name, list, names, &nr);
  for (i = 0; i < nr_infos && r == 0; ++i)
    if (infos[i].state != DIRTY_INCONSISTENT)
      r = append_bitmap (e, infos[i].name, list, names, &nr);
  dirty_infos_free (infos, nr_infos);
  if (r < 0) {
    for (i = 0; i < nr; ++i) {
      dirty_unref (list[i]);
      free (names[i]);
    }
    free (list);
    free (names);
    return r;
  }
  *ret = list;
  *ret_names = names;
  *ret_nr = nr;
  return 0;
}
