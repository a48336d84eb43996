/* SPDX-License-Identifier: BSD-3-Clause */
/* The named dirty bitmaps of one disk.
 *
 * I1: A bit is set in every recording bitmap before its block can change.
 *     dirty_mark sets them and is called inside the gate before the change;
 *     which bitmaps record changes only while the gate is closed and empty.
 * I2: A bit is cleared only by dirty_clear, or by dirty_drop, which a backup
 *     that ended in success calls after its data is durable.
 *     dirty_merge_back loses none.  (dirty_remove forgets the whole bitmap,
 *     and whoever still holds it gets -ESTALE.)
 *
 * States of a bitmap, from -> to [function]:
 *
 *   (new)                -> RECORDING or DISABLED  [dirty_add, dirty_load]
 *   (new)                -> INCONSISTENT           [dirty_load]
 *   RECORDING            -> DISABLED               [dirty_disable]
 *   DISABLED             -> RECORDING              [dirty_enable]
 *   RECORDING, DISABLED  -> FROZEN                 [dirty_freeze]
 *   FROZEN               -> what it was before     [dirty_drop,
 *                                                   dirty_merge_back]
 *   RECORDING, DISABLED  -> INCONSISTENT           [dirty_invalidate]
 *   all but FROZEN       -> (removed)              [dirty_remove]
 *
 * dirty_mark: any thread that is inside the gate; no lock.  The array of
 * recording bitmaps is written while the gate is closed and empty, and the
 * gate orders that against those who enter later.
 * [gate closed] functions: one thread at a time, since a gate has one closer.
 * They take the lock only against those below.
 * Queries are in dirty-query.c, how bitmaps persist in dirty-store.c.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "dirty-private.h"

struct bits *
dirty_bits_ref (struct bits *bits)
{
  if (bits)
    atomic_fetch_add_explicit (&bits->refs, 1, memory_order_relaxed);
  return bits;
}

void
dirty_bits_unref (struct bits *bits)
{
  if (bits == NULL
      || atomic_fetch_sub_explicit (&bits->refs, 1, memory_order_acq_rel) > 1)
    return;
  bitmap_free (bits->bitmap);
  store_array_free (bits->array);
  free (bits);
}

int
dirty_new (uint64_t size, struct gate *gate, struct dirty **ret)
{
  struct dirty *d = calloc (1, sizeof *d);

  if (d == NULL)
    return -ENOMEM;
  d->gate = gate;
  d->size = size;
  atomic_init (&d->refs, 1);
  lock_init (&d->lock, LOCK_RANK_DIRTY);
  *ret = d;
  return 0;
}

static void
set_unref (struct dirty *d)
{
  if (atomic_fetch_sub_explicit (&d->refs, 1, memory_order_acq_rel) > 1)
    return;
  dirty_bitmap_list_reset (&d->bitmaps);
  lock_destroy (&d->lock);
  free (d);
}

struct dirty_bitmap *
dirty_ref (struct dirty_bitmap *bm)
{
  atomic_fetch_add_explicit (&bm->refs, 1, memory_order_relaxed);
  return bm;
}

void
dirty_unref (struct dirty_bitmap *bm)
{
  if (bm == NULL
      || atomic_fetch_sub_explicit (&bm->refs, 1, memory_order_acq_rel) > 1)
    return;
  dirty_bits_unref (bm->bits);
  dirty_bits_unref (bm->successor);
  dirty_bits_unref (bm->spare);
  if (bm->set)
    set_unref (bm->set);
  free (bm->name);
  free (bm);
}

void
dirty_assert_state (const struct dirty_bitmap *bm)
{
  assert (bm->bits != NULL);
  assert (bitmap_granularity (bm->bits->bitmap) == bm->granularity);
  assert ((bm->state == DIRTY_FROZEN) == (bm->successor != NULL));
  assert ((bm->state == DIRTY_INCONSISTENT) == (bm->reason[0] != '\0'));
  assert (!bm->is_removed || bm->state != DIRTY_FROZEN);
  assert (!bm->was_recording || bm->state == DIRTY_FROZEN);
}

void
dirty_publish_locked (struct dirty *d)
{
  struct store *store = d->store && !store_has_failed (d->store) ? d->store
    : NULL;
  struct dirty_bitmap *bm;
  bool is_persistent = false;
  size_t i, n = 0;

  lock_assert_held (&d->lock);
  assert (gate_is_closed (d->gate));
  for (i = 0; i < d->bitmaps.len; i++) {
    bm = d->bitmaps.ptr[i];
    dirty_assert_state (bm);
    if (bm->state == DIRTY_RECORDING)
      d->recording[n++] = bm->bits->bitmap;
    else if (bm->state == DIRTY_FROZEN && bm->was_recording)
      d->recording[n++] = bm->successor->bitmap;
    else
      continue;
    is_persistent |= bm->is_persistent;
  }
  d->nr_recording = n;
  d->intent = store && is_persistent ? store_intent (store) : NULL;
  atomic_store (&d->live, store);
}

static void
detach_locked (struct dirty *d, size_t i)
{
  struct dirty_bitmap *bm = d->bitmaps.ptr[i];

  lock_assert_held (&d->lock);
  assert (bm->state != DIRTY_FROZEN);
  bm->is_removed = true;
  dirty_bitmap_list_remove (&d->bitmaps, i);
}

void
dirty_free (struct dirty *d)
{
  struct dirty_bitmap *bm;

  if (d == NULL)
    return;
  for (;;) {
    lock_acquire (&d->lock);
    bm = d->bitmaps.len > 0 ? d->bitmaps.ptr[0] : NULL;
    if (bm)
      detach_locked (d, 0);
    lock_release (&d->lock);
    if (bm == NULL)
      break;
    dirty_unref (bm);
  }
  set_unref (d);
}

int
dirty_mark (struct dirty *d, uint64_t off, uint64_t len)
{
  struct store *live = atomic_load_explicit (&d->live, memory_order_relaxed);
  size_t i;

  assert (gate_is_entered (d->gate));
  if (live)
    store_change_begin (live);
  for (i = 0; i < d->nr_recording; i++)
    bitmap_set (d->recording[i], off, len);
  /* I6: the bits first, see intent.c. */
  if (d->intent)
    intent_mark (d->intent, off, len);
  return 0;
}

void
dirty_changed (struct dirty *d)
{
  struct store *live = atomic_load_explicit (&d->live, memory_order_relaxed);

  assert (gate_is_entered (d->gate));
  if (live)
    store_change_end (live);
}

/* Checks of the commands. */

static bool
is_utf8 (const char *s)
{
  const unsigned char *p = (const unsigned char *) s;
  static const uint32_t min[] = { 0, 0x80, 0x800, 0x10000 };
  unsigned i, n;
  uint32_t c;

  while (*p) {
    n = *p < 0x80 ? 0 : *p >> 5 == 6 ? 1 : *p >> 4 == 14 ? 2
      : *p >> 3 == 30 ? 3 : 4;
    if (n == 4)
      return false;
    c = n == 0 ? *p : *p & (0x3fu >> n);
    for (i = 1; i <= n; i++) {
      if ((p[i] & 0xc0) != 0x80)
        return false;
      c = c << 6 | (p[i] & 0x3f);
    }
    if (c < min[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
      return false;
    p += n + 1;
  }
  return true;
}

static int
check_name (const char *name, struct error *err)
{
  if (name[0] == '\0')
    return error_set (err, EINVAL, "Bitmap name cannot be empty");
  if (strlen (name) > DIRTY_NAME_MAX)
    return error_set (err, EINVAL, "Bitmap name too long: %s", name);
  if (!is_utf8 (name))
    return error_set (err, EILSEQ, "Bitmap name is not UTF-8");
  return 0;
}

static int
check_granularity (uint64_t granularity, struct error *err)
{
  if (!is_power_of_2 (granularity) || granularity < BITMAP_MIN_GRANULARITY)
    return error_set (err, EINVAL,
                      "Granularity must be power of 2 and at least %" PRIu64,
                      BITMAP_MIN_GRANULARITY);
  if (granularity > BITMAP_MAX_GRANULARITY)
    return error_set (err, EINVAL,
                      "Granularity must be at most %" PRIu64 ", not %" PRIu64,
                      BITMAP_MAX_GRANULARITY, granularity);
  return 0;
}

static int
error_not_found (const char *name, struct error *err)
{
  return error_set (err, ENOENT, "Dirty bitmap '%s' not found", name);
}

/* Neither removed, busy nor (unless allowed) inconsistent. */
static int
check_usable_locked (const struct dirty_bitmap *bm, bool allow_inconsistent,
                     struct error *err)
{
  lock_assert_held (&bm->set->lock);
  dirty_assert_state (bm);
  if (bm->is_removed)
    return error_not_found (bm->name, err);
  if (bm->state == DIRTY_FROZEN || bm->is_used)
    return error_set (err, EBUSY,
                      "Bitmap '%s' is currently in use by another operation"
                      " and cannot be used", bm->name);
  if (bm->state == DIRTY_INCONSISTENT && !allow_inconsistent)
    return error_set (err, EINVAL,
                      "Bitmap '%s' is inconsistent and cannot be used",
                      bm->name);
  return 0;
}

/* The index of name, or the length of the list. */
static size_t
find_locked (const struct dirty *d, const char *name)
{
  size_t i;

  lock_assert_held (&d->lock);
  for (i = 0; i < d->bitmaps.len; i++)
    if (strcmp (d->bitmaps.ptr[i]->name, name) == 0)
      break;
  return i;
}

static int
find_usable_locked (const struct dirty *d, const char *name,
                    bool allow_inconsistent, size_t *ret, struct error *err)
{
  size_t i = find_locked (d, name);
  int r;

  if (i == d->bitmaps.len)
    return error_not_found (name, err);
  r = check_usable_locked (d->bitmaps.ptr[i], allow_inconsistent, err);
  if (r == 0)
    *ret = i;
  return r;
}

/* The commands. */

struct dirty_bitmap *
dirty_object_new (struct dirty *d, const char *name, uint64_t granularity)
{
  struct dirty_bitmap *bm = calloc (1, sizeof *bm);

  if (bm == NULL)
    return NULL;
  atomic_init (&bm->refs, 1);
  bm->granularity = granularity;
  bm->name = strdup (name);
  if (bm->name == NULL) {
    dirty_unref (bm);
    return NULL;
  }
  bm->set = d;
  atomic_fetch_add_explicit (&d->refs, 1, memory_order_relaxed);
  return bm;
}

int
dirty_insert_locked (struct dirty *d, struct dirty_bitmap *bm,
                     struct error *err)
{
  lock_assert_held (&d->lock);
  if (find_locked (d, bm->name) < d->bitmaps.len)
    return error_set (err, EEXIST, "Bitmap already exists: %s", bm->name);
  if (d->bitmaps.len == DIRTY_MAX_BITMAPS)
    return error_set (err, ENOSPC, "Bitmap '%s': a disk can have at most %d"
                      " bitmaps", bm->name, DIRTY_MAX_BITMAPS);
  if (dirty_bitmap_list_append (&d->bitmaps, bm) < 0)
    return error_set_errno (err, ENOMEM, "Bitmap '%s'", bm->name);
  dirty_publish_locked (d);
  return 0;
}

/* A bitmap with clear bits that nobody knows yet. */
static int
make_bitmap (struct dirty *d, const char *name, uint64_t granularity,
             bool is_persistent, struct dirty_bitmap **ret, struct error *err)
{
  struct dirty_bitmap *bm;
  int r = check_name (name, err);

  if (r == 0)
    r = check_granularity (granularity, err);
  if (r < 0)
    return r;
  bm = dirty_object_new (d, name, granularity);
  r = bm ? dirty_bits_new (d, d->size, granularity, is_persistent, &bm->bits)
    : -ENOMEM;
  if (r < 0) {
    if (bm)
      dirty_unref (bm);
    if (r != -ENOMEM)
      return error_set_errno (err, -r, "Bitmap '%.100s': no room in the store",
                              name);
    return error_set (err, ENOMEM, "Bitmap '%s': not enough memory for a"
                      " granularity of %" PRIu64 " bytes", name, granularity);
  }
  bm->is_persistent = is_persistent;
  *ret = bm;
  return 0;
}

/* Takes ownership of bm. */
static int
publish_new (struct dirty *d, struct dirty_bitmap *bm, struct error *err)
{
  const bool is_persistent = bm->is_persistent;
  int r;

  lock_acquire (&d->lock);
  r = dirty_insert_locked (d, bm, err);
  lock_release (&d->lock);
  if (r < 0) {
    dirty_unref (bm);
    return r;
  }
  r = is_persistent ? dirty_commit_err (d, err) : 0;
  if (r < 0)
    dirty_remove (d, bm->name, NULL);
  return r;
}

int
dirty_add (struct dirty *d, const char *name, uint64_t granularity,
           unsigned flags, struct error *err)
{
  struct dirty_bitmap *bm;
  int r;

  if (granularity == 0)
    granularity = DIRTY_DEFAULT_GRANULARITY;
  r = make_bitmap (d, name, granularity, flags & DIRTY_IS_PERSISTENT, &bm,
                   err);
  if (r < 0)
    return r;
  bm->state = flags & DIRTY_IS_DISABLED ? DIRTY_DISABLED : DIRTY_RECORDING;
  return publish_new (d, bm, err);
}

#define NO_POINT ((struct point_id) { .bytes = { 0 } })

/* The bits of a bitmap have been changed other than by dirty_mark. */
static void
bits_changed (struct bits *bits)
{
  atomic_store (&bits->needs_sync, true);
}

int
dirty_load (struct dirty *d, const char *name, uint64_t granularity,
            const struct bitmap *bits, enum dirty_state state,
            const char *reason, bool is_persistent, struct error *err)
{
  struct dirty_bitmap *bm;
  int r;

  assert (state != DIRTY_FROZEN);
  r = make_bitmap (d, name, granularity, is_persistent, &bm, err);
  if (r < 0)
    return r;
  bm->state = state;
  if (state == DIRTY_INCONSISTENT)
    snprintf (bm->reason, sizeof bm->reason, "%s", reason);
  if (bits)
    bitmap_merge (bm->bits->bitmap, bits);
  bits_changed (bm->bits);
  return publish_new (d, bm, err);
}

int
dirty_remove (struct dirty *d, const char *name, struct error *err)
{
  struct dirty_bitmap *bm = NULL;
  size_t i;
  int r;

  lock_acquire (&d->lock);
  r = find_usable_locked (d, name, true, &i, err);
  if (r == 0) {
    bm = d->bitmaps.ptr[i];
    detach_locked (d, i);
    dirty_publish_locked (d);
  }
  lock_release (&d->lock);
  if (r == 0 && bm->is_persistent)
    dirty_commit (d);
  dirty_unref (bm);
  return r;
}

/* A reference to a bitmap that can be used. */
static int
ref_usable (struct dirty *d, const char *name, struct dirty_bitmap **ret,
            struct error *err)
{
  size_t i;
  int r;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  r = find_usable_locked (d, name, false, &i, err);
  if (r == 0)
    *ret = dirty_ref (d->bitmaps.ptr[i]);
  return r;
}

/* The bits are replaced: had they been cleared where they are, a power cut
 * could leave some of them under the old base point.
 */
int
dirty_clear (struct dirty *d, const char *name, struct error *err)
{
  struct dirty_bitmap *bm = NULL;
  struct bits *fresh, *old;
  int r;

  assert (gate_is_closed (d->gate));
  r = ref_usable (d, name, &bm, err);
  if (r < 0)
    return r;
  r = dirty_bits_new (d, d->size, bm->granularity, bm->is_persistent, &fresh);
  if (r < 0) {
    dirty_unref (bm);
    return error_set_errno (err, -r, "Bitmap '%s'", name);
  }
  lock_acquire (&d->lock);
  old = bm->bits;
  bm->bits = fresh;
  bm->over_estimate = 0;
  bm->base = NO_POINT;
  dirty_publish_locked (d);
  lock_release (&d->lock);
  r = bm->is_persistent ? dirty_commit_err (d, err) : 0;
  dirty_bits_unref (old);
  dirty_unref (bm);
  return r;
}

static int
change_recording (struct dirty *d, const char *name, enum dirty_state state,
                  bool *ret_is_persistent, struct error *err)
{
  size_t i;
  int r;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  r = find_usable_locked (d, name, false, &i, err);
  if (r < 0)
    return r;
  /* What it has missed while it was disabled is in no backup that would count
   * from its base point.
   */
  if (state == DIRTY_RECORDING && d->bitmaps.ptr[i]->state == DIRTY_DISABLED)
    d->bitmaps.ptr[i]->base = NO_POINT;
  d->bitmaps.ptr[i]->state = state;
  *ret_is_persistent = d->bitmaps.ptr[i]->is_persistent;
  dirty_publish_locked (d);
  return 0;
}

static int
set_recording (struct dirty *d, const char *name, enum dirty_state state,
               struct error *err)
{
  bool is_persistent;
  int r = change_recording (d, name, state, &is_persistent, err);

  return r == 0 && is_persistent ? dirty_commit_err (d, err) : r;
}

int
dirty_enable (struct dirty *d, const char *name, struct error *err)
{
  return set_recording (d, name, DIRTY_RECORDING, err);
}

int
dirty_disable (struct dirty *d, const char *name, struct error *err)
{
  return set_recording (d, name, DIRTY_DISABLED, err);
}

/* Take a reference to the bits of a merge's source, which may belong to
 * another disk: the locks of two disks are never held together.
 */
static int
merge_source (struct dirty_bitmap *bm, uint64_t size, struct bits **ret,
              struct error *err)
{
  int r;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&bm->set->lock);

  r = check_usable_locked (bm, false, err);
  if (r < 0)
    return r;
  if (bitmap_size (bm->bits->bitmap) != size)
    return error_set (err, EINVAL, "Bitmaps are of different sizes "
                      "(destination size is %" PRIu64 ", source size is %"
                      PRIu64 ") and can't be merged", size,
                      bitmap_size (bm->bits->bitmap));
  *ret = dirty_bits_ref (bm->bits);
  return 0;
}

static int
merge_all (struct dirty *d, const char *target, struct bits **sources,
           size_t nr, struct error *err)
{
  size_t i, t;
  int r;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  assert (gate_is_closed (d->gate));
  r = find_usable_locked (d, target, false, &t, err);
  if (r < 0)
    return r;
  for (i = 0; i < nr; i++)
    bitmap_merge (d->bitmaps.ptr[t]->bits->bitmap, sources[i]->bitmap);
  bits_changed (d->bitmaps.ptr[t]->bits);
  return 0;
}

int
dirty_merge (struct dirty *d, const char *target,
             struct dirty_bitmap *const *sources, size_t nr_sources,
             struct error *err)
{
  CLEANUP_FREE struct bits **bits = calloc (nr_sources + 1, sizeof *bits);
  size_t i;
  int r = 0;

  if (bits == NULL)
    return error_set_errno (err, ENOMEM, "Bitmap '%s'", target);
  /* The size changes only with the gate closed: no lock. */
  for (i = 0; i < nr_sources && r == 0; i++)
    r = merge_source (sources[i], d->size, &bits[i], err);
  if (r == 0)
    r = merge_all (d, target, bits, nr_sources, err);
  if (r == 0)
    r = dirty_commit_err (d, err);
  for (i = 0; i < nr_sources; i++)
    dirty_bits_unref (bits[i]);
  return r;
}

struct dirty_bitmap *
dirty_find (struct dirty *d, const char *name)
{
  size_t i;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  i = find_locked (d, name);
  return i < d->bitmaps.len ? dirty_ref (d->bitmaps.ptr[i]) : NULL;
}

void
dirty_invalidate (struct dirty *d, struct dirty_bitmap *bm,
                  const char *reason)
{
  assert (bm->set == d);
  assert (reason[0] != '\0');
  lock_acquire (&d->lock);
  assert (bm->state != DIRTY_FROZEN);
  bm->state = DIRTY_INCONSISTENT;
  snprintf (bm->reason, sizeof bm->reason, "%s", reason);
  dirty_publish_locked (d);
  lock_release (&d->lock);
  if (bm->is_persistent)
    dirty_commit (d);
}

/* Freezing and its two ends. */

int
dirty_use (struct dirty_bitmap *bm, bool is_read_only, struct error *err)
{
  int r;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&bm->set->lock);

  r = check_usable_locked (bm, false, err);
  if (r < 0)
    return r;
  if (is_read_only && bm->state == DIRTY_RECORDING)
    return error_set (err, EINVAL, "Enabled bitmap '%s' incompatible with "
                      "readonly export", bm->name);
  bm->is_used = true;
  return 0;
}

void
dirty_unuse (struct dirty_bitmap *bm)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&bm->set->lock);

  assert (bm->is_used);
  bm->is_used = false;
}

/* A bitmap that may soon be frozen, and has nothing to go on with then. */
static bool
needs_spare_locked (const struct dirty_bitmap *bm)
{
  lock_assert_held (&bm->set->lock);
  return bm->is_persistent && !bm->is_removed
    && bm->state == DIRTY_RECORDING
    && (bm->spare == NULL
        || bitmap_size (bm->spare->bitmap) != bm->set->size);
}

int
dirty_prepare_freeze (struct dirty *d, struct dirty_bitmap *bm)
{
  struct bits *bits = NULL, *old;
  bool is_needed;
  uint64_t size;
  int r;

  lock_acquire (&d->lock);
  is_needed = needs_spare_locked (bm);
  size = d->size;
  lock_release (&d->lock);
  if (!is_needed)
    return 0;
  r = dirty_bits_new (d, size, bm->granularity, true, &bits);
  if (r < 0)
    return r;
  lock_acquire (&d->lock);
  old = bits;
  if (needs_spare_locked (bm)) {
    old = bm->spare;
    bm->spare = bits;
  }
  lock_release (&d->lock);
  dirty_bits_unref (old);
  return 0;
}

/* The successor of a bitmap that is about to be frozen: the gate's closer alone
 * asks for one.
 */
static int
take_successor (struct dirty *d, struct dirty_bitmap *bm, struct bits **ret)
{
  lock_acquire (&d->lock);
  *ret = bm->spare;
  bm->spare = NULL;
  lock_release (&d->lock);
  if (*ret && bitmap_size ((*ret)->bitmap) == d->size)
    return 0;
  dirty_bits_unref (*ret);
  return dirty_bits_new (d, d->size, bm->granularity, bm->is_persistent, ret);
}

static int
freeze (struct dirty *d, struct dirty_bitmap *bm, struct bits *successor,
        struct error *err)
{
  int r;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  assert (gate_is_closed (d->gate));
  r = check_usable_locked (bm, false, err);
  if (r < 0) {
    dirty_bits_unref (successor);
    return r;
  }
  bm->successor = successor;
  bm->was_recording = bm->state == DIRTY_RECORDING;
  bm->state = DIRTY_FROZEN;
  dirty_publish_locked (d);
  return 0;
}

int
dirty_freeze_only (struct dirty *d, struct dirty_bitmap *bm,
                   struct error *err)
{
  struct bits *successor;
  int r;

  assert (bm->set == d);
  r = take_successor (d, bm, &successor);
  if (r < 0)
    return error_set_errno (err, -r, bm->is_persistent && r != -ENOMEM
                            ? "Bitmap '%.100s': no room in the store"
                            : "Bitmap '%.100s'", bm->name);
  return freeze (d, bm, successor, err);
}

/* Whatever is recorded from now on is found there after a crash. */
int
dirty_freeze_commit (struct dirty *d, struct dirty_bitmap *bm,
                     struct error *err)
{
  return bm->is_persistent ? dirty_commit_err (d, err) : 0;
}

int
dirty_freeze (struct dirty *d, struct dirty_bitmap *bm, struct error *err)
{
  int r = dirty_freeze_only (d, bm, err);

  if (r < 0)
    return r;
  r = dirty_freeze_commit (d, bm, err);
  if (r < 0)
    dirty_merge_back (d, bm);
  return r;
}

/* Leave FROZEN with bits; returns what the caller unrefs without the lock. */
static struct bits *
thaw_locked (struct dirty_bitmap *bm, bool keep_successor)
{
  struct bits *old = keep_successor ? bm->bits : bm->successor;

  lock_assert_held (&bm->set->lock);
  if (keep_successor)
    bm->bits = bm->successor;
  bm->successor = NULL;
  bm->state = bm->was_recording ? DIRTY_RECORDING : DIRTY_DISABLED;
  bm->was_recording = false;
  dirty_loss_locked (bm, bm->reason);
  if (bm->reason[0])
    bm->state = DIRTY_INCONSISTENT;
  dirty_publish_locked (bm->set);
  return old;
}

void
dirty_drop (struct dirty *d, struct dirty_bitmap *bm,
            const struct point_id *point)
{
  struct bits *old;

  assert (bm->set == d);
  lock_acquire (&d->lock);
  assert (bm->state == DIRTY_FROZEN);
  old = thaw_locked (bm, true);
  bm->base = *point;
  bm->over_estimate = 0;
  lock_release (&d->lock);
  dirty_bits_unref (old);
}

void
dirty_merge_back (struct dirty *d, struct dirty_bitmap *bm)
{
  struct bits *old;

  assert (bm->set == d);
  assert (gate_is_closed (d->gate));
  assert (bm->state == DIRTY_FROZEN);
  /* Readers of either see a superset of it, or of both. */
  bitmap_merge (bm->bits->bitmap, bm->successor->bitmap);
  bits_changed (bm->bits);
  lock_acquire (&d->lock);
  old = thaw_locked (bm, false);
  lock_release (&d->lock);
  dirty_bits_unref (old);
}

void
dirty_add_bits (struct dirty *d, struct dirty_bitmap *bm,
                const struct bitmap *bits)
{
  assert (bm->set == d);
  assert (gate_is_closed (d->gate));
  assert (bm->state != DIRTY_FROZEN);
  bitmap_merge (bm->bits->bitmap, bits);
  bits_changed (bm->bits);
}

const struct bitmap *
dirty_frozen_bits (const struct dirty_bitmap *bm)
{
  assert (bm->state == DIRTY_FROZEN);
  return bm->bits->bitmap;
}

const struct bitmap *
dirty_bits (const struct dirty_bitmap *bm)
{
  assert (gate_is_closed (bm->set->gate));
  assert (bm->state != DIRTY_FROZEN);
  return bm->bits->bitmap;
}

/* A copy of bm's bits over a new size, its tail dirty. */
static int
resized_bits (struct dirty *d, const struct dirty_bitmap *bm, uint64_t size,
              struct bits **ret)
{
  const uint64_t old_size = bitmap_size (bm->bits->bitmap);
  struct bits *bits;
  int r = dirty_bits_new (d, size, bm->granularity, bm->bits->array != NULL,
                          &bits);

  if (r < 0)
    return r;
  bitmap_merge_prefix (bits->bitmap, bm->bits->bitmap);
  if (size > old_size)
    bitmap_set (bits->bitmap, old_size, size - old_size);
  bits_changed (bits);
  *ret = bits;
  return 0;
}

static void
exchange_bits (struct dirty *d, uint64_t size, struct bits **bits)
{
  struct bits *old;
  size_t i;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  for (i = 0; i < d->bitmaps.len; i++) {
    old = d->bitmaps.ptr[i]->bits;
    d->bitmaps.ptr[i]->bits = bits[i];
    bits[i] = old;
  }
  d->size = size;
  dirty_publish_locked (d);
}

int
dirty_resize (struct dirty *d, uint64_t size)
{
  struct bits *bits[DIRTY_MAX_BITMAPS] = { NULL };
  size_t i, nr = d->bitmaps.len;
  int r = 0;

  /* The gate's closer alone changes the list: no lock. */
  assert (gate_is_closed (d->gate));
  for (i = 0; i < nr && r == 0; i++)
    if (d->bitmaps.ptr[i]->state == DIRTY_FROZEN)
      r = -EBUSY;
  for (i = 0; i < nr && r == 0; i++)
    r = resized_bits (d, d->bitmaps.ptr[i], size, &bits[i]);
  if (r == 0)
    exchange_bits (d, size, bits);
  for (i = 0; i < nr; i++)
    dirty_bits_unref (bits[i]);
  return r;
}
