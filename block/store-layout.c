/* SPDX-License-Identifier: BSD-3-Clause */
/* What lies where in a store's file, and how the table that says so changes.
 *
 * I6 (part): after any crash, recovered bits are a superset of the blocks that
 *     changed since the base point.  Here:
 *
 *   (1) A table becomes valid as a whole or not at all: it is written over the
 *       slot that does not hold, while the one that holds has been durable for
 *       long (write_slot, store_mark_or_remove).
 *   (2) Space that the valid table refers to, or that an array alive has, is
 *       not used for anything else (store_allocate).
 *   (3) A record refers to an array only once that is on disk: new ones are
 *       zeroes, synced (store_allocate); the others are the caller's business.
 *
 * Called by whoever has the store's claim, and by those who open or close the
 * store; the arrays' functions without a claim: by any thread.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "store-private.h"

/*---- Parts of the file ----*/

int
store_map (struct store *s, uint64_t off, uint64_t len, struct store_map *ret)
{
  int r = s->io->map (s->io, s->file, off, (size_t) len, &ret->addr);

  if (r < 0)
    return r;
  ret->off = off;
  ret->len = len;
  if (s->locks_maps)
    s->io->lock_map (s->io, s->file, ret->addr, (size_t) len);
  return 0;
}

void
store_unmap (struct store *s, struct store_map *map)
{
  if (map->addr)
    s->io->unmap (s->io, s->file, map->addr, (size_t) map->len);
  map->addr = NULL;
}

int
store_sync_map (struct store *s, const struct store_map *map)
{
  return s->io->sync_map (s->io, s->file, map->addr, (size_t) map->len);
}

int
store_map_existing (struct store *s, uint64_t off, uint64_t len,
                    struct store_map *ret)
{
  int r = s->io->reserve (s->io, s->file, off, len);

  return r < 0 ? r : store_map (s, off, len, ret);
}

/* The end of the first part in use that overlaps [off, off+len), or 0. */
static uint64_t
end_of_conflict_locked (const struct store *s, uint64_t off, uint64_t len)
{
  const struct store_map *map;
  size_t i;

  lock_assert_held (&s->lock);
  for (i = 0; i < s->arrays.len; i++) {
    map = &s->arrays.ptr[i]->map;
    if (range_overlaps (off, len, map->off, map->len))
      return map->off + map->len;
  }
  for (i = 0; i < s->committed.len; i++)
    if (range_overlaps (off, len, s->committed.ptr[i].off,
                        s->committed.ptr[i].len))
      return s->committed.ptr[i].off + s->committed.ptr[i].len;
  map = &s->intent_map;
  if (map->addr && range_overlaps (off, len, map->off, map->len))
    return map->off + map->len;
  return 0;
}

int
store_allocate (struct store *s, uint64_t len, struct store_map *ret)
{
  uint64_t off = STORE_DATA_OFF, end;
  int r;

  lock_acquire (&s->lock);
  while ((end = end_of_conflict_locked (s, off, len)) != 0)
    off = end;
  lock_release (&s->lock);
  r = s->io->allocate (s->io, s->file, off, len);
  if (r == 0)
    r = store_map (s, off, len, ret);
  if (r < 0)
    return r;
  r = store_sync_map (s, ret);
  if (r < 0)
    store_unmap (s, ret);
  return r;
}

/*---- Arrays ----*/

static int
add_array (struct store *s, struct store_map *map, uint64_t nr_bits,
           struct store_array **ret)
{
  struct store_array *a = calloc (1, sizeof *a);
  int r = 0;

  if (a == NULL) {
    store_unmap (s, map);
    return -ENOMEM;
  }
  a->map = *map;
  a->nr_bits = nr_bits;
  atomic_init (&a->refs, 1);
  lock_acquire (&s->lock);
  r = store_array_list_append (&s->arrays, a);
  lock_release (&s->lock);
  if (r < 0) {
    store_unmap (s, map);
    free (a);
    return r;
  }
  a->store = s;
  atomic_fetch_add (&s->refs, 1);
  *ret = a;
  return 0;
}

int
store_array_new (struct store *s, uint64_t nr_bits, struct store_array **ret)
{
  struct store_map map = { .addr = NULL };
  int r;

  /* One at a time: a place is taken only once it is in the list. */
  store_claim (s);
  r = store_allocate (s, store_array_bytes (nr_bits), &map);
  if (r == 0)
    r = add_array (s, &map, nr_bits, ret);
  store_unclaim (s);
  return r;
}

int
store_array_at (struct store *s, uint64_t off, uint64_t nr_bits,
                struct store_array **ret)
{
  struct store_map map = { .addr = NULL };
  int r = store_map_existing (s, off, store_array_bytes (nr_bits), &map);

  return r < 0 ? r : add_array (s, &map, nr_bits, ret);
}

struct store_array *
store_array_ref (struct store_array *a)
{
  if (a)
    atomic_fetch_add_explicit (&a->refs, 1, memory_order_relaxed);
  return a;
}

void
store_array_free (struct store_array *a)
{
  struct store *s;
  size_t i;

  if (a == NULL
      || atomic_fetch_sub_explicit (&a->refs, 1, memory_order_acq_rel) > 1)
    return;
  s = a->store;
  lock_acquire (&s->lock);
  for (i = 0; s->arrays.ptr[i] != a; i++)
    ;
  store_array_list_remove (&s->arrays, i);
  lock_release (&s->lock);
  store_unmap (s, &a->map);
  free (a);
  store_unref (s);
}

void *
store_array_words (const struct store_array *a)
{
  return a->map.addr;
}

int
store_array_sync (struct store_array *a)
{
  return store_sync_map (a->store, &a->map);
}

bool
store_array_next_data (const struct store_array *a, uint64_t pos,
                       struct range *ret)
{
  struct store *s = a->store;
  const uint64_t end = a->map.off + a->map.len;

  if (pos >= a->map.len)
    return false;
  if (s->io->next_data (s->io, s->file, a->map.off + pos, end, ret) < 0)
    *ret = (struct range) { a->map.off + pos, a->map.len - pos };
  ret->off -= a->map.off;
  return ret->len > 0;
}

uint32_t
store_array_sum (const struct store_array *a)
{
  struct range r = { 0, 0 };
  uint32_t sum = 0;

  while (store_array_next_data (a, r.off + r.len, &r))
    sum = store_sum_add (sum, a->map.addr, r.off, r.len);
  return sum;
}

/*---- The table ----*/

/* A new table goes over the older one: until it is whole the other slot holds,
 * which has been durable for long; from then on this one does.
 */
static int
write_slot (struct store *s)
{
  int r;

  s->header.generation++;
  s->slot_len = store_encode (&s->header, s->records, s->slot);
  r = s->io->pwrite (s->io, s->file, s->slot, s->slot_len, s->older_slot,
                     STORE_IO_DURABLE);
  if (r < 0)
    return r;
  s->older_slot = STORE_SLOT_SIZE - s->older_slot;
  atomic_store (&s->is_copy_due, true);
  return 0;
}

/* The older slot says the same again, so that either may be damaged. */
static int
copy_slot (struct store *s)
{
  int r;

  if (!atomic_load (&s->is_copy_due))
    return 0;
  r = s->io->pwrite (s->io, s->file, s->slot, s->slot_len, s->older_slot,
                     STORE_IO_DURABLE);
  if (r == 0)
    atomic_store (&s->is_copy_due, false);
  return r;
}

int
store_write_slots (struct store *s)
{
  int r = write_slot (s);

  return r < 0 ? r : copy_slot (s);
}

static int
note_range (struct range_list *list, uint64_t off, uint64_t len)
{
  return range_list_append (list, (struct range) { off, len });
}

int
store_note_committed (struct store *s)
{
  struct range_list list = VECTOR_INIT, old;
  const struct store_record *record;
  uint64_t len;
  size_t i;
  int r;

  r = note_range (&list, s->header.intent_off, s->header.intent_len);
  for (i = 0; i < s->header.nr_bitmaps && r == 0; i++) {
    record = &s->records[i];
    len = store_array_bytes (record->bits.nr_bits);
    if (record->bits.off)
      r = note_range (&list, record->bits.off, len);
    if (r == 0 && record->successor.off)
      r = note_range (&list, record->successor.off, len);
  }
  if (r < 0) {
    range_list_reset (&list);
    return r;
  }
  lock_acquire (&s->lock);
  old = s->committed;
  s->committed = list;
  lock_release (&s->lock);
  range_list_reset (&old);
  return 0;
}

static void
note_end (struct store *s, const struct store_map *map)
{
  s->header.file_len = MAX (s->header.file_len, map->off + map->len);
}

static int
make_record (struct store *s, const struct store_entry *entry,
             struct store_record *record)
{
  record->name = strdup (entry->name);
  if (record->name == NULL)
    return -ENOMEM;
  record->granularity = entry->granularity;
  record->state = (uint8_t) entry->state;
  record->base = entry->base;
  record->over_estimate = entry->over_estimate;
  memcpy (record->reason, entry->reason, sizeof record->reason);
  if (entry->bits) {
    record->bits.off = entry->bits->map.off;
    record->bits.nr_bits = entry->bits->nr_bits;
    note_end (s, &entry->bits->map);
  }
  if (entry->successor) {
    record->successor.off = entry->successor->map.off;
    record->successor.nr_bits = entry->successor->nr_bits;
    note_end (s, &entry->successor->map);
  }
  return 0;
}

int
store_commit (struct store *s, const struct store_entry *entries, size_t nr)
{
  struct store_record *records = calloc (nr + 1, sizeof *records);
  size_t i;
  int r = records ? 0 : -ENOMEM;

  assert (nr <= STORE_MAX_BITMAPS);
  if (store_has_failed (s)) {
    free (records);
    return -EIO;
  }
  note_end (s, &s->intent_map);
  for (i = 0; i < nr && r == 0; i++)
    r = make_record (s, &entries[i], &records[i]);
  if (r < 0) {
    store_records_free (records, nr);
    store_fail (s, "the table", r);
    return r;
  }
  store_records_free (s->records, s->header.nr_bitmaps);
  s->records = records;
  s->header.nr_bitmaps = (uint32_t) nr;
  s->header.intent_off = s->intent_map.off;
  s->header.intent_len = s->intent_map.len;
  r = write_slot (s);
  if (r == 0)
    r = store_note_committed (s);
  if (r < 0)
    store_fail (s, "the table", r);
  return r;
}

/* Not by the one who commits: the gate may be closed meanwhile. */
void
store_copy_table (struct store *s)
{
  int r;

  store_claim (s);
  r = store_has_failed (s) ? 0 : copy_slot (s);
  if (r < 0)
    store_fail (s, "the table", r);
  store_unclaim (s);
}

/* One slot is enough: it has the newer generation.  What must not happen is
 * that the slot that holds is torn while the other has an older table.
 */
bool
store_mark_or_remove (struct store *s)
{
  const uint64_t older = s->older_slot;
  size_t len;
  int a, b = -1;

  s->header.flags |= STORE_IS_FAILED;
  memcpy (s->header.reason, s->failure, sizeof s->header.reason);
  s->header.generation++;
  len = store_encode (&s->header, s->records, s->slot);
  a = s->io->pwrite (s->io, s->file, s->slot, len, older, STORE_IO_DURABLE);
  if (a == 0 || !atomic_load (&s->is_copy_due))
    b = s->io->pwrite (s->io, s->file, s->slot, len, STORE_SLOT_SIZE - older,
                       STORE_IO_DURABLE);
  if (a == 0 || b == 0)
    return true;
  s->is_removed = s->io->unlink (s->io, s->path) == 0;
  return s->is_removed;
}
