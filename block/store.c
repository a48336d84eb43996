/* SPDX-License-Identifier: BSD-3-Clause */
/* A store at work: who may change it, its failure, its thread, its size.
 *
 * I6 (part): after any crash, recovered bits are a superset of the blocks that
 *     changed since the base point.  Here: once something could not be written
 *     the file says that its bitmaps are not to be trusted, before anybody goes
 *     on as if it had been (fail); the intents stay until the bits are on disk,
 *     also across a change of the size (store_set_size) and a clean close
 *     (seal).  What lies where in the file: store-layout.c.
 *
 * Failure, has_failed: false -> true [record_failure], for good: what works
 *     again is another store, in its place (store_options.is_new).
 *
 * store_claim to store_unclaim: any thread without locks, or one that has
 * closed the gate; the claim is never kept while waiting for the gate.  The
 * write path: store_change_begin and _end, and the intents' callbacks.  The
 * thread retires regions.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "log.h"
#include "store-private.h"

#define NSEC_PER_SEC INT64_C (1000000000)
#define RETIRE_INTERVAL (3 * NSEC_PER_SEC)
/* See sync_live_if_older, and UNSYNCED_SLACK in store-recover.c. */
#define LIVE_AGE (20 * NSEC_PER_SEC)

/*---- Claim ----*/

void
store_claim (struct store *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  while (s->is_claimed)
    lock_wait (&s->lock, &s->changed);
  s->is_claimed = true;
}

void
store_unclaim (struct store *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  assert (s->is_claimed);
  s->is_claimed = false;
  pthread_cond_broadcast (&s->changed);
}

/*---- Failure ----*/

/* Say in the file that the bitmaps are not to be trusted; or, if it cannot be
 * written at all, have no file; or note it elsewhere, and go on trying.  A
 * trouble that passes may have passed at the second attempt; after that,
 * writers wait no longer.
 */
static bool
make_failure_durable (struct store *s)
{
  if (store_mark_or_remove (s) || store_mark_or_remove (s))
    return true;
  if (!s->is_noted)
    s->is_noted = store_note_failure (s) == 0;
  return false;
}

/* There is nothing that the next start of the machine would tell it by. */
static void
say_it_may_be_hidden (struct store *s)
{
  size_t len;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  len = strlen (s->failure);
  snprintf (s->failure + len, sizeof s->failure - len,
            "; a crash of the host may hide this");
}

static void
record_failure (struct store *s)
{
  bool is_durable;

  /* For whoever opens it before the machine starts again. */
  atomic_store (&s->live->is_failed, 1);
  is_durable = make_failure_durable (s);
  if (!is_durable && !s->is_noted)
    say_it_may_be_hidden (s);
  log_error ("store '%s': %s%s", s->path, s->failure, is_durable ? "" :
             "; this could not be recorded in it and will be tried again");
  lock_acquire (&s->lock);
  s->is_failure_durable = is_durable;
  atomic_store (&s->has_failed, true);
  pthread_cond_broadcast (&s->changed);
  lock_release (&s->lock);
}

/* what could not be written.  Returns when that has been recorded.  While it is
 * being opened that is the business of whoever does so: what it had is there.
 */
static void
fail (struct store *s, const char *what, int error, bool is_claimed)
{
  bool is_first;

  if (!s->is_open)
    return;
  lock_acquire (&s->lock);
  is_first = !s->is_failing;
  if (is_first) {
    s->is_failing = true;
    snprintf (s->failure, sizeof s->failure, "%s could not be written: %s",
              what, strerror (-error));
  }
  lock_release (&s->lock);
  if (is_first) {
    if (!is_claimed)
      store_claim (s);
    record_failure (s);
    if (!is_claimed)
      store_unclaim (s);
    return;
  }
  /* The other may be waiting for the claim that we have: its failure is
   * recorded once we give that back, and the caller goes on to no write.
   */
  if (is_claimed)
    return;
  lock_acquire (&s->lock);
  while (!atomic_load (&s->has_failed))
    lock_wait (&s->lock, &s->changed);
  lock_release (&s->lock);
}

bool
store_has_failed (const struct store *s)
{
  return atomic_load (&s->has_failed);
}

void
store_failure (struct store *s, char ret[STORE_REASON_SIZE])
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  memcpy (ret, s->failure, STORE_REASON_SIZE);
}

void
store_fail (struct store *s, const char *what, int error)
{
  fail (s, what, error, true);
}

void
store_on_failure (struct store *s, void (*function) (void *opaque),
                  void *opaque)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  s->on_failure = function;
  s->opaque = opaque;
  s->is_failure_known = s->is_failure_told = false;
  pthread_cond_broadcast (&s->changed);
}

void
store_on_pass (struct store *s, void (*function) (void *opaque), void *opaque)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  s->on_pass = function;
  s->pass_opaque = opaque;
}

static void
call_on_pass (struct store *s)
{
  void (*function) (void *opaque);
  void *opaque;

  lock_acquire (&s->lock);
  function = s->on_pass;
  opaque = s->pass_opaque;
  lock_release (&s->lock);
  if (function)
    function (opaque);
}

/* What is left to do after a failure, outside the write path. */
static void
follow_up_failure (struct store *s)
{
  void (*function) (void *opaque) = NULL;
  void *opaque = NULL;
  bool is_durable;

  lock_acquire (&s->lock);
  if (!s->is_failure_known) {
    function = s->on_failure;
    opaque = s->opaque;
    s->is_failure_known = true;
  }
  is_durable = s->is_failure_durable;
  lock_release (&s->lock);
  if (function)
    function (opaque);
  lock_acquire (&s->lock);
  s->is_failure_told = true;
  pthread_cond_broadcast (&s->changed);
  lock_release (&s->lock);
  if (is_durable)
    return;
  store_claim (s);
  is_durable = make_failure_durable (s);
  store_unclaim (s);
  lock_acquire (&s->lock);
  s->is_failure_durable = is_durable;
  lock_release (&s->lock);
}

static bool
is_to_be_told_locked (const struct store *s)
{
  lock_assert_held (&s->lock);
  return s->has_thread && !s->is_stopping && !s->is_failure_told;
}

void
store_await_failure (struct store *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  while (atomic_load (&s->has_failed) && is_to_be_told_locked (s))
    lock_wait (&s->lock, &s->changed);
}

bool
store_is_over (struct store *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  return atomic_load (&s->has_failed) && !is_to_be_told_locked (s);
}

/*---- Changes in progress ----*/

static int64_t
now (clockid_t clock)
{
  struct timespec ts;

  clock_gettime (clock, &ts);
  return ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}

/* Threads spread over the slots, so that they do not share cache lines. */
static struct store_live_slot *
live_slot (struct store *s)
{
  static _Atomic unsigned next;
  static __thread unsigned mine;

  if (mine == 0)
    mine = atomic_fetch_add (&next, 1) % STORE_LIVE_SLOTS + 1;
  return &s->live->slots[mine - 1];
}

static void
stamp (struct store_live_slot *slot, clockid_t clock)
{
  uint64_t t = (uint64_t) now (clock);
  uint64_t old = atomic_load_explicit (&slot->last_change,
                                       memory_order_relaxed);

  while (old < t && !atomic_compare_exchange_weak_explicit (
           &slot->last_change, &old, t, memory_order_relaxed,
           memory_order_relaxed))
    ;
}

/* Before a change, so that one in progress is not later by more than it takes
 * to get going.
 */
void
store_change_begin (struct store *s)
{
  struct store_live_slot *slot = live_slot (s);

  atomic_fetch_add_explicit (&slot->nr_changes, 1, memory_order_relaxed);
  stamp (slot, CLOCK_REALTIME_COARSE);
}

/* The system gives a file times of this clock, or older ones, up to a tick: so
 * the change has none that is later, and what another program does has, unless
 * it is within the same tick.
 */
void
store_change_end (struct store *s)
{
  struct store_live_slot *slot = live_slot (s);

  stamp (slot, CLOCK_REALTIME);
  atomic_fetch_sub_explicit (&slot->nr_changes, 1, memory_order_release);
}

uint64_t
store_last_change (const struct store *s)
{
  uint64_t last = 0, t;
  size_t i;

  for (i = 0; i < STORE_LIVE_SLOTS; i++) {
    t = atomic_load (&s->live->slots[i].last_change);
    last = MAX (last, t);
  }
  return last;
}

/* What a power cut leaves of the live page is not older than the last change
 * by much more than LIVE_AGE: a change after a rest is announced by an intent,
 * and while there are changes the thread comes by.  An error is not to be
 * ignored, although correctness does not depend on the page: the system reports
 * each only once, and it may be of another part of the file.
 */
static int
sync_live_if_older (struct store *s, int64_t age)
{
  const uint64_t last = store_last_change (s);
  const uint64_t synced = atomic_load (&s->live_synced);
  int r;

  if (last <= synced || last - synced <= (uint64_t) age)
    return 0;
  r = store_sync_map (s, &s->live_map);
  if (r == 0)
    atomic_store (&s->live_synced, last);
  return r;
}

/* A long change, of many pieces perhaps, is still in progress. */
static void
stamp_long_changes (struct store *s)
{
  size_t i;

  for (i = 0; i < STORE_LIVE_SLOTS; i++)
    if (atomic_load (&s->live->slots[i].nr_changes) > 0)
      stamp (&s->live->slots[i], CLOCK_REALTIME_COARSE);
}

/*---- Intents ----*/

static int
intents_sync_map (void *opaque, size_t off, size_t len)
{
  struct store *s = opaque;
  int r = sync_live_if_older (s, LIVE_AGE);

  return r < 0 ? r : s->io->sync_map (s->io, s->file,
                                      (char *) s->intent_map.addr + off, len);
}

/* All of the file: one flush of the disk, however many arrays there are. */
static int
intents_sync_arrays (void *opaque)
{
  struct store *s = opaque;

  return s->io->sync (s->io, s->file);
}

static void
intents_failed (void *opaque, const char *what, int error)
{
  fail (opaque, what, error, false);
}

int
store_start_intents (struct store *s)
{
  static const struct intent_ops ops = {
    .sync_map = intents_sync_map,
    .sync_arrays = intents_sync_arrays,
    .failed = intents_failed,
  };

  return intent_new (s->header.disk_size, s->header.region_size,
                     s->max_active, s->intent_map.addr,
                     (size_t) s->intent_map.len, &ops, s, &s->intent);
}

struct intent *
store_intent (struct store *s)
{
  return s->intent;
}

static void
begin_retiring (struct store *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  while (s->is_retiring)
    lock_wait (&s->lock, &s->changed);
  s->is_retiring = true;
}

static void
end_retiring (struct store *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  s->is_retiring = false;
  pthread_cond_broadcast (&s->changed);
}

int
store_retire (struct store *s, bool is_all)
{
  int r;

  begin_retiring (s);
  store_copy_table (s);
  r = store_has_failed (s) ? -EIO : intent_retire (s->intent, is_all);
  if (r == 0)
    r = sync_live_if_older (s, 0);
  if (r < 0 && !store_has_failed (s))
    fail (s, "the live page", r, false);
  if (!is_all)
    call_on_pass (s);
  end_retiring (s);
  /* It closes the gate, and whoever has that may wait to retire. */
  if (store_has_failed (s))
    follow_up_failure (s);
  return r;
}

/* Until there is a table to copy, a failure to follow up, or the time has come
 * for the next pass.  False: it is time to stop.
 */
static bool
wait_for_work (struct store *s, int64_t next)
{
  const struct timespec ts = {
    .tv_sec = next / NSEC_PER_SEC, .tv_nsec = next % NSEC_PER_SEC
  };
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  while (!s->is_stopping
         && !(atomic_load (&s->has_failed) ? !s->is_failure_known
              : atomic_load (&s->is_copy_due))
         && lock_wait_until (&s->lock, &s->changed, &ts))
    ;
  return !s->is_stopping;
}

static void *
retire_now_and_then (void *opaque)
{
  struct store *s = opaque;
  int64_t next = now (CLOCK_MONOTONIC) + RETIRE_INTERVAL;

  while (wait_for_work (s, next)) {
    if (now (CLOCK_MONOTONIC) < next && !store_has_failed (s)) {
      store_copy_table (s);
      continue;
    }
    stamp_long_changes (s);
    store_retire (s, false);
    next = now (CLOCK_MONOTONIC) + RETIRE_INTERVAL;
  }
  return NULL;
}

/* Now and from now on.  Locks do not survive a fork. */
static void
lock_maps (struct store *s)
{
  const struct store_map *map;
  size_t i;

  store_claim (s);
  s->locks_maps = true;
  s->io->lock_map (s->io, s->file, s->live_map.addr, s->live_map.len);
  s->io->lock_map (s->io, s->file, s->intent_map.addr, s->intent_map.len);
  lock_acquire (&s->lock);
  for (i = 0; i < s->arrays.len; i++) {
    map = &s->arrays.ptr[i]->map;
    s->io->lock_map (s->io, s->file, map->addr, map->len);
  }
  lock_release (&s->lock);
  store_unclaim (s);
}

static bool
has_thread (struct store *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  return s->has_thread;
}

static void
set_thread (struct store *s, bool has_thread, bool is_stopping)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  s->has_thread = has_thread;
  s->is_stopping = is_stopping;
  pthread_cond_broadcast (&s->changed);
}

int
store_start (struct store *s)
{
  int r;

  if (has_thread (s))
    return 0;
  lock_maps (s);
  set_thread (s, true, false);
  r = pthread_create (&s->thread, NULL, retire_now_and_then, s);
  if (r != 0)
    set_thread (s, false, false);
  return -r;
}

void
store_stop (struct store *s)
{
  if (!has_thread (s))
    return;
  set_thread (s, true, true);
  pthread_join (s->thread, NULL);
  set_thread (s, false, false);
}

/*---- Size ----*/

/* New intents, none active, over another size. */
static int
replace_intents (struct store *s, uint64_t disk_size)
{
  const struct store_map old_map = s->intent_map;
  struct intent *old = s->intent;
  struct store_map map = { .addr = NULL };
  uint64_t old_size = s->header.disk_size;
  int r;

  r = store_allocate (s, intent_map_size (disk_size, s->header.region_size),
                      &map);
  if (r < 0)
    return r;
  s->intent_map = map;
  s->header.disk_size = disk_size;
  r = store_start_intents (s);
  if (r < 0) {
    s->intent_map = old_map;
    s->intent = old;
    s->header.disk_size = old_size;
    store_unmap (s, &map);
    return r;
  }
  map = old_map;
  store_unmap (s, &map);
  intent_free (old);
  return 0;
}

/* No bit is left that only an intent protects, then none of the old intents. */
static int
change_size (struct store *s, uint64_t disk_size)
{
  int r;

  begin_retiring (s);
  r = store_has_failed (s) ? -EIO : intent_retire (s->intent, true);
  if (r == 0) {
    store_claim (s);
    r = replace_intents (s, disk_size);
    store_unclaim (s);
  }
  end_retiring (s);
  return r;
}

/* The gate is closed: a failure is followed up by the thread, not here. */
int
store_set_size (struct store *s, uint64_t disk_size, uint64_t other_size)
{
  int r = 0;

  if (disk_size != s->header.disk_size)
    r = change_size (s, disk_size);
  if (r == 0) {
    store_claim (s);
    s->header.other_size = other_size;
    store_unclaim (s);
  }
  return r;
}

/*---- The whole ----*/

int
store_new (const struct store_options *options, struct store **ret)
{
  struct store *s = calloc (1, sizeof *s);

  if (s == NULL)
    return -ENOMEM;
  s->io = options->io ? options->io : &store_io_system;
  s->max_active = options->max_active ? options->max_active
    : STORE_DEFAULT_MAX_ACTIVE;
  atomic_init (&s->refs, 1);
  lock_init (&s->lock, LOCK_RANK_STORE);
  cond_init (&s->changed);
  s->path = strdup (options->path);
  s->slot = calloc (1, STORE_SLOT_SIZE);
  if (s->path == NULL || s->slot == NULL
      || store_copy_places (s, options) < 0) {
    store_unref (s);
    return -ENOMEM;
  }
  *ret = s;
  return 0;
}

struct store *
store_ref (struct store *s)
{
  atomic_fetch_add_explicit (&s->refs, 1, memory_order_relaxed);
  return s;
}

void
store_unref (struct store *s)
{
  if (atomic_fetch_sub_explicit (&s->refs, 1, memory_order_acq_rel) > 1)
    return;
  intent_free (s->intent);
  store_unmap (s, &s->intent_map);
  store_unmap (s, &s->live_map);
  if (s->file)
    s->io->close (s->io, s->file);
  store_records_free (s->records, s->header.nr_bitmaps);
  store_array_list_reset (&s->arrays);
  range_list_reset (&s->committed);
  pthread_cond_destroy (&s->changed);
  lock_destroy (&s->lock);
  store_free_places (s);
  free (s->slot);
  free (s->path);
  free (s);
}

/* The sum of the array at off, which is mapped. */
static uint32_t
sum_at (struct store *s, uint64_t off)
{
  size_t i;

  for (i = 0; i < s->arrays.len; i++)
    if (s->arrays.ptr[i]->map.off == off)
      return store_array_sum (s->arrays.ptr[i]);
  return 0;
}

/* What makes the next open believe the bits as they are on disk. */
static int
seal (struct store *s, const struct store_identity *identity)
{
  size_t i;
  int r;

  r = intent_retire (s->intent, true);
  if (r == 0)
    r = s->io->sync (s->io, s->file);
  if (r < 0)
    return r;
  for (i = 0; i < s->header.nr_bitmaps; i++) {
    s->records[i].bits.sum = sum_at (s, s->records[i].bits.off);
    s->records[i].successor.sum = sum_at (s, s->records[i].successor.off);
  }
  s->header.flags &= ~(uint32_t) STORE_IS_OPEN;
  s->header.identity = *identity;
  return store_write_slots (s);
}

int
store_close (struct store *s, const struct store_identity *identity)
{
  int r = 0;

  store_stop (s);
  if (!store_has_failed (s)) {
    r = seal (s, identity);
    if (r < 0)
      fail (s, "the store", r, false);
  }
  store_forget_entries (s);
  store_unref (s);
  return r;
}

void
store_abandon (struct store *s)
{
  store_stop (s);
  store_forget_entries (s);
  store_unref (s);
}

const struct store_entry *
store_entries (const struct store *s, size_t *ret_nr)
{
  *ret_nr = s->nr_entries;
  return s->entries;
}

void
store_forget_entries (struct store *s)
{
  size_t i;

  for (i = 0; i < s->nr_entries; i++) {
    store_array_free (s->entries[i].bits);
    store_array_free (s->entries[i].successor);
    free (s->entries[i].name);
  }
  free (s->entries);
  s->entries = NULL;
  s->nr_entries = 0;
}

void
store_get_info (struct store *s, struct store_info *ret)
{
  store_claim (s);
  *ret = (struct store_info) {
    .generation = s->header.generation,
    .region_size = s->header.region_size,
    .nr_active = intent_nr_active (s->intent),
    .max_active = intent_max_active (s->intent),
    .over_estimate = intent_active_bytes (s->intent),
    .recovered_regions = s->recovered_regions,
    .was_unclean = s->was_unclean,
    .intent_off = s->intent_map.off,
    .intent_len = s->intent_map.len,
  };
  store_unclaim (s);
}
