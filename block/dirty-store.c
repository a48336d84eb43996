/* SPDX-License-Identifier: BSD-3-Clause */
/* How the bitmaps of a disk persist: what of them is in its store, and when.
 *
 * I1, I6 (part): a state that lets bits go to another array than before is in
 *     the store's table before anything is recorded there (dirty_freeze commits
 *     with the gate closed); one that forgets an array is committed once what
 *     takes its place is on disk (commit_claimed).
 *
 * Commits come from the gate's closer, and after a session's end from its
 * thread with the gate open: the store's claim puts them in order, and each
 * takes the states as they are once it has the claim.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "dirty-private.h"
#include "log.h"

struct store *
dirty_ref_store (struct dirty *d)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  return d->store ? store_ref (d->store) : NULL;
}

/* A reference to the store if it works, or NULL.  It may be replaced at any
 * time, but only after it has failed: what is done to it then does nothing.
 */
static struct store *
ref_working_store (struct dirty *d)
{
  struct store *s = dirty_ref_store (d);

  if (s == NULL || !store_has_failed (s))
    return s;
  store_unref (s);
  return NULL;
}

bool
dirty_can_persist (struct dirty *d)
{
  struct store *s = ref_working_store (d);

  if (s)
    store_unref (s);
  return s != NULL;
}

/* Of the store's pages only those are looked at that may have bits set. */
static int
bitmap_over (uint64_t size, uint64_t granularity,
             const struct store_array *array, bool is_new,
             struct bitmap **ret)
{
  struct range part = { 0, 0 };
  int r;

  if (array == NULL)
    return bitmap_new (size, granularity, ret);
  r = bitmap_new_at (size, granularity, store_array_words (array), ret);
  if (r < 0 || is_new)
    return r;
  while (store_array_next_data (array, part.off + part.len, &part))
    bitmap_summarize (*ret, part.off / 8, part.len / 8);
  return 0;
}

/* Takes ownership of array. */
static int
bits_over (uint64_t size, uint64_t granularity, struct store_array *array,
           bool is_new, struct bits **ret)
{
  struct bits *bits = calloc (1, sizeof *bits);
  int r;

  if (bits == NULL) {
    store_array_free (array);
    return -ENOMEM;
  }
  r = bitmap_over (size, granularity, array, is_new, &bits->bitmap);
  if (r < 0) {
    store_array_free (array);
    free (bits);
    return r;
  }
  bits->array = array;
  atomic_init (&bits->refs, 1);
  *ret = bits;
  return 0;
}

int
dirty_bits_new (struct dirty *d, uint64_t size, uint64_t granularity,
                bool is_persistent, struct bits **ret)
{
  struct store *s = is_persistent ? ref_working_store (d) : NULL;
  struct store_array *array = NULL;
  int r = 0;

  if (s) {
    r = store_array_new (s, div_round_up (size, granularity), &array);
    store_unref (s);
  }
  return r < 0 ? r : bits_over (size, granularity, array, true, ret);
}

/*---- Commit ----*/

/* The set as it is at one moment. */
struct snapshot {
  struct store_entry entries[DIRTY_MAX_BITMAPS];
  struct bits *bits[2 * DIRTY_MAX_BITMAPS];     /* references */
  size_t nr, nr_bits;
};

static struct store_array *
take_bits (struct snapshot *snap, struct bits *bits)
{
  if (bits == NULL || bits->array == NULL)
    return NULL;
  snap->bits[snap->nr_bits++] = dirty_bits_ref (bits);
  return bits->array;
}

static enum store_state
stored_state (const struct dirty_bitmap *bm)
{
  switch (bm->state) {
  case DIRTY_RECORDING: return STORE_RECORDING;
  case DIRTY_DISABLED: return STORE_DISABLED;
  case DIRTY_FROZEN:
    return bm->was_recording ? STORE_RECORDING : STORE_DISABLED;
  case DIRTY_INCONSISTENT: return STORE_INCONSISTENT;
  }
  return STORE_INCONSISTENT;
}

static int
take_entry_locked (struct snapshot *snap, const struct dirty_bitmap *bm)
{
  struct store_entry *entry = &snap->entries[snap->nr++];

  dirty_assert_state (bm);
  entry->name = strdup (bm->name);
  if (entry->name == NULL)
    return -ENOMEM;
  entry->granularity = bm->granularity;
  /* One that a store has no place for can only be reported missing. */
  entry->state = bm->bits->array ? stored_state (bm) : STORE_INCONSISTENT;
  entry->base = bm->base;
  entry->over_estimate = bm->over_estimate;
  memcpy (entry->reason, bm->reason, sizeof entry->reason);
  if (entry->state == STORE_INCONSISTENT)
    return 0;
  entry->bits = take_bits (snap, bm->bits);
  entry->successor = take_bits (snap, bm->successor);
  return 0;
}

static int
take_snapshot (struct dirty *d, struct snapshot *snap)
{
  size_t i;
  int r = 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  for (i = 0; i < d->bitmaps.len && r == 0; i++)
    if (d->bitmaps.ptr[i]->is_persistent)
      r = take_entry_locked (snap, d->bitmaps.ptr[i]);
  return r;
}

static void
release_snapshot (struct snapshot *snap)
{
  size_t i;

  for (i = 0; i < snap->nr; i++)
    free (snap->entries[i].name);
  for (i = 0; i < snap->nr_bits; i++)
    dirty_bits_unref (snap->bits[i]);
  free (snap);
}

static int
commit_claimed (struct dirty *d, struct store *s, struct snapshot *snap)
{
  size_t i;
  int r = take_snapshot (d, snap);

  /* Else the snapshot is perhaps of what has taken its place. */
  if (r == 0 && store_has_failed (s))
    return -EIO;
  for (i = 0; i < snap->nr_bits && r == 0; i++)
    if (atomic_exchange (&snap->bits[i]->needs_sync, false))
      r = store_array_sync (snap->bits[i]->array);
  if (r < 0) {
    store_fail (s, "the bits", r);
    return r;
  }
  return store_commit (s, snap->entries, snap->nr);
}

int
dirty_commit (struct dirty *d)
{
  struct store *s = ref_working_store (d);
  struct snapshot *snap;
  int r;

  if (s == NULL)
    return 0;
  snap = calloc (1, sizeof *snap);
  store_claim (s);
  if (snap)
    r = commit_claimed (d, s, snap);
  else
    store_fail (s, "the table", r = -ENOMEM);
  store_unclaim (s);
  if (snap)
    release_snapshot (snap);
  store_unref (s);
  return r;
}

int
dirty_commit_err (struct dirty *d, struct error *err)
{
  int r = dirty_commit (d);
  struct store *s;

  if (r == 0)
    return 0;
  s = dirty_ref_store (d);
  r = error_set_errno (err, -r, "store '%.100s': cannot write",
                       store_path (s));
  store_unref (s);
  return r;
}

/*---- Attaching ----*/

/* A bitmap from the store, with its array. */
static int
load_entry (struct dirty *d, const struct store_entry *entry)
{
  struct dirty_bitmap *bm = dirty_object_new (d, entry->name,
                                              entry->granularity);
  int r;

  if (bm == NULL)
    return -ENOMEM;
  r = bits_over (d->size, entry->granularity, store_array_ref (entry->bits),
                 false, &bm->bits);
  if (r < 0) {
    dirty_unref (bm);
    return r;
  }
  bm->state = entry->state == STORE_RECORDING ? DIRTY_RECORDING
    : entry->state == STORE_DISABLED ? DIRTY_DISABLED : DIRTY_INCONSISTENT;
  bm->is_persistent = true;
  bm->base = entry->base;
  bm->over_estimate = entry->over_estimate;
  if (bm->state == DIRTY_INCONSISTENT)
    snprintf (bm->reason, sizeof bm->reason, "%s",
              entry->reason[0] ? entry->reason : "it was so in the store");
  lock_acquire (&d->lock);
  r = dirty_insert_locked (d, bm, NULL);
  lock_release (&d->lock);
  if (r < 0)
    dirty_unref (bm);
  else if (bm->state == DIRTY_INCONSISTENT)
    log_warning ("store '%s': bitmap '%s' is inconsistent: %s",
                 store_path (d->store), bm->name, bm->reason);
  /* One of that name that is in memory only stays. */
  return r == -EEXIST ? 0 : r;
}

/* What a store that has failed has of bitmaps is lost. */
static void
give_up_bitmaps_locked (struct dirty *d)
{
  struct dirty_bitmap *bm;
  size_t i;

  lock_assert_held (&d->lock);
  for (i = 0; i < d->bitmaps.len; i++) {
    bm = d->bitmaps.ptr[i];
    if (!bm->is_persistent || bm->state == DIRTY_FROZEN
        || bm->state == DIRTY_INCONSISTENT)
      continue;
    bm->state = DIRTY_INCONSISTENT;
    dirty_loss_locked (bm, bm->reason);
  }
}

/* The store has failed: say so in every state that it concerns.  It is not
 * replaced before this has returned.
 */
static void
store_failed (void *opaque)
{
  struct dirty *d = opaque;
  struct dirty_info *infos;
  char reason[STORE_REASON_SIZE];
  size_t i, nr;

  store_failure (d->store, reason);
  gate_close (d->gate);
  lock_acquire (&d->lock);
  give_up_bitmaps_locked (d);
  dirty_publish_locked (d);
  lock_release (&d->lock);
  gate_open (d->gate);

  if (d->on_inconsistent == NULL || dirty_list (d, &infos, &nr) < 0)
    return;
  for (i = 0; i < nr; i++)
    if (infos[i].is_persistent)
      d->on_inconsistent (d->opaque, infos[i].name, reason);
  dirty_infos_free (infos, nr);
}

void
dirty_loss_locked (const struct dirty_bitmap *bm, char ret[STORE_REASON_SIZE])
{
  char failure[STORE_REASON_SIZE];

  ret[0] = '\0';
  if (!bm->is_persistent || !bm->set->store
      || !store_has_failed (bm->set->store))
    return;
  store_failure (bm->set->store, failure);
  snprintf (ret, STORE_REASON_SIZE, "the store failed: %.100s", failure);
}

/* Those of the store that are inconsistent, or those that are not. */
static int
load_entries (struct dirty *d, bool is_inconsistent)
{
  const struct store_entry *entries;
  size_t nr, i;
  int r = 0, error;

  entries = store_entries (d->store, &nr);
  for (i = 0; i < nr; i++) {
    if ((entries[i].state == STORE_INCONSISTENT) != is_inconsistent)
      continue;
    error = load_entry (d, &entries[i]);
    if (error < 0)
      r = error;
  }
  return r;
}

/* Give a persistent bitmap that has been in memory a place in the store. */
static int
move_to_store (struct dirty *d, struct dirty_bitmap *bm)
{
  struct bits *bits, *old;
  int r;

  if (!bm->is_persistent || bm->bits->array || bm->state == DIRTY_INCONSISTENT)
    return 0;
  assert (bm->state != DIRTY_FROZEN);
  r = dirty_bits_new (d, d->size, bm->granularity, true, &bits);
  if (r < 0)
    return r;
  bitmap_merge (bits->bitmap, bm->bits->bitmap);
  atomic_store (&bits->needs_sync, true);
  lock_acquire (&d->lock);
  old = bm->bits;
  bm->bits = bits;
  lock_release (&d->lock);
  dirty_bits_unref (old);
  return 0;
}

/* So that the next point need not wait for room in the store.  What fails here
 * fails there again.
 */
static void
make_spares (void *opaque)
{
  struct dirty *d = opaque;
  struct dirty_bitmap *bm;
  size_t i;

  for (i = 0; ; i++) {
    lock_acquire (&d->lock);
    bm = i < d->bitmaps.len ? dirty_ref (d->bitmaps.ptr[i]) : NULL;
    lock_release (&d->lock);
    if (bm == NULL)
      break;
    (void) dirty_prepare_freeze (d, bm);
    dirty_unref (bm);
  }
}

int
dirty_attach_store (struct dirty *d, struct store *s)
{
  size_t i;
  int r = 0;

  assert (gate_is_closed (d->gate));
  assert (d->store == NULL || store_has_failed (d->store));
  lock_acquire (&d->lock);
  d->store = s;
  lock_release (&d->lock);
  for (i = 0; i < d->bitmaps.len && r == 0; i++)
    r = move_to_store (d, d->bitmaps.ptr[i]);
  if (r == 0)
    r = load_entries (d, false);
  lock_acquire (&d->lock);
  dirty_publish_locked (d);
  lock_release (&d->lock);
  store_on_failure (s, store_failed, d);
  store_on_pass (s, make_spares, d);
  return r;
}

int
dirty_attach_rest (struct dirty *d)
{
  int r = load_entries (d, true);

  store_forget_entries (d->store);
  return r < 0 ? r : dirty_commit (d);
}

/*---- Letting go ----*/

bool
dirty_holds_store (struct dirty *d)
{
  size_t i;

  /* The gate's closer alone changes the list and the states: no lock. */
  assert (gate_is_closed (d->gate));
  for (i = 0; i < d->bitmaps.len; i++)
    if (d->bitmaps.ptr[i]->is_persistent
        && d->bitmaps.ptr[i]->state == DIRTY_FROZEN)
      return true;
  return false;
}

/* Bits in memory, for all that are in the store. */
static int
make_substitutes (struct dirty *d, struct bits **ret)
{
  struct dirty_bitmap *bm;
  size_t i;
  int r = 0;

  for (i = 0; i < d->bitmaps.len && r == 0; i++) {
    bm = d->bitmaps.ptr[i];
    if (bm->is_persistent)
      r = bits_over (d->size, bm->granularity, NULL, true, &ret[i]);
  }
  return r;
}

/* old: what is to be given back without the lock, two for each bitmap. */
static void
exchange_locked (struct dirty *d, struct bits **bits, struct bits **old)
{
  struct dirty_bitmap *bm;
  size_t i;

  lock_assert_held (&d->lock);
  for (i = 0; i < d->bitmaps.len; i++) {
    bm = d->bitmaps.ptr[i];
    if (bits[i] == NULL)
      continue;
    old[2 * i] = bm->spare;
    old[2 * i + 1] = bm->bits;
    bm->spare = NULL;
    bm->bits = bits[i];
    bits[i] = NULL;
  }
}

int
dirty_detach_store (struct dirty *d)
{
  struct bits *bits[DIRTY_MAX_BITMAPS] = { NULL };
  struct bits *old[2 * DIRTY_MAX_BITMAPS] = { NULL };
  size_t i;
  int r;

  assert (store_has_failed (d->store));
  if (dirty_holds_store (d))
    return -EBUSY;
  r = make_substitutes (d, bits);
  if (r == 0) {
    lock_acquire (&d->lock);
    give_up_bitmaps_locked (d);
    exchange_locked (d, bits, old);
    dirty_publish_locked (d);
    lock_release (&d->lock);
  }
  for (i = 0; i < DIRTY_MAX_BITMAPS; i++)
    dirty_bits_unref (bits[i]);
  for (i = 0; i < 2 * DIRTY_MAX_BITMAPS; i++)
    dirty_bits_unref (old[i]);
  return r;
}

/*---- Changes outside the gate ----*/

bool
dirty_store_knows (struct dirty *d, const char *name)
{
  const struct store_entry *entries;
  size_t nr, i;

  if (d->store == NULL)
    return false;
  entries = store_entries (d->store, &nr);
  for (i = 0; i < nr; i++)
    if (strcmp (entries[i].name, name) == 0)
      return true;
  return store_is_believed (d->store);
}

/* It may fail and be replaced before the change ends. */
struct store *
dirty_begin_change (struct dirty *d)
{
  struct store *s;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  s = atomic_load (&d->live);
  if (s)
    store_change_begin (store_ref (s));
  return s;
}

void
dirty_end_change (struct store *s)
{
  if (s == NULL)
    return;
  store_change_end (s);
  store_unref (s);
}

uint64_t
dirty_size (const struct dirty *d)
{
  return d->size;
}

void
dirty_on_inconsistent (struct dirty *d, dirty_inconsistent_function function,
                       void *opaque)
{
  d->on_inconsistent = function;
  d->opaque = opaque;
}
