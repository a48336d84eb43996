/* SPDX-License-Identifier: BSD-3-Clause */
/* What a store that has been found is worth.
 *
 * I6: After any crash, recovered bits are a superset of the blocks that
 *     changed since the base point.
 *
 *   closed cleanly      the bits are what they were, if the disk is what it
 *                       was and the sums are right
 *   the process died    the kernel still has the pages: the bits are exact;
 *                       intents stay, for not all of it is on disk
 *   the machine died    the bits on disk, and all of each intended region
 *
 * A bitmap that was frozen becomes its bits or its successor's.  If another
 * program may have changed the disk, or the store says that it failed, nothing
 * is believed: every bitmap is INCONSISTENT, with the reason.
 *
 * The order of what is written: arrays, then header and table, then the
 * intents are cleared; to be interrupted anywhere means to start again.
 *
 * Called by store_open.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "log.h"
#include "store-private.h"

#define NSEC_PER_SEC INT64_C (1000000000)

/* With a change in progress when the process died, the file's time may be so
 * much later than what was noted every few seconds.
 */
#define IN_PROGRESS_SLACK (10 * NSEC_PER_SEC)
/* When the machine died, the note may be so much older than the change. */
#define UNSYNCED_SLACK (60 * NSEC_PER_SEC)

enum found {
  FOUND_NEW,
  FOUND_CLEAN,
  FOUND_SAME_BOOT,
  FOUND_OTHER_BOOT,
};

struct recovery {
  enum found found;
  bool is_same_boot;            /* the kernel may have what the disk has not */
  enum store_note note;         /* that there is elsewhere */
  char reason[STORE_REASON_SIZE];       /* why nothing is believed; "" = is */
  uint64_t disk_size;           /* as it is */
};

/*---- The disk ----*/

static int64_t
last_change (const struct store *s)
{
  const uint64_t last = MIN (store_last_change (s), (uint64_t) INT64_MAX / 2);

  return MAX ((int64_t) last, s->header.identity.mtime_ns);
}

static bool
is_change_in_progress (const struct store *s)
{
  size_t i;

  for (i = 0; i < STORE_LIVE_SLOTS; i++)
    if (atomic_load (&s->live->slots[i].nr_changes) != 0)
      return true;
  return false;
}

static void
format_time (int64_t ns, char ret[32])
{
  time_t t = (time_t) (ns / NSEC_PER_SEC);
  struct tm tm;

  if (localtime_r (&t, &tm) == NULL
      || strftime (ret, 32, "%Y-%m-%d %H:%M:%S", &tm) == 0)
    snprintf (ret, 32, "?");
}

/* The disk changed at the time mtime although we last changed it at ours. */
static void
say_changed (struct recovery *rc, int64_t mtime, int64_t ours)
{
  char a[32], b[32];

  format_time (mtime, a);
  format_time (ours, b);
  snprintf (rc->reason, sizeof rc->reason, "another program has changed the"
            " disk at %s, after %s", a, b);
}

static void
check_times (const struct store *s, const struct store_identity *disk,
             struct recovery *rc)
{
  struct timespec real, boot;
  int64_t ours = last_change (s), limit = ours, booted;

  if (rc->found == FOUND_CLEAN) {
    if (disk->mtime_ns != s->header.identity.mtime_ns)
      say_changed (rc, disk->mtime_ns, s->header.identity.mtime_ns);
    return;
  }
  if (rc->found == FOUND_SAME_BOOT && is_change_in_progress (s))
    limit += IN_PROGRESS_SLACK;
  else if (rc->found == FOUND_OTHER_BOOT) {
    clock_gettime (CLOCK_REALTIME, &real);
    clock_gettime (CLOCK_BOOTTIME, &boot);
    booted = (real.tv_sec - boot.tv_sec) * NSEC_PER_SEC;
    /* Nobody of ours has run since. */
    limit = MIN (limit + UNSYNCED_SLACK, booted);
  }
  if (disk->mtime_ns > limit
      || disk->mtime_ns < s->header.identity.mtime_ns)
    say_changed (rc, disk->mtime_ns, ours);
}

/* Is the disk the one that the store knows, and as it left it? */
static void
check_disk (const struct store *s, const struct store_options *options,
            struct recovery *rc)
{
  const struct store_identity *disk = &options->identity;
  const struct store_identity *known = &s->header.identity;

  if (options->disk_size != s->header.disk_size
      && (s->header.other_size == 0
          || options->disk_size != s->header.other_size))
    snprintf (rc->reason, sizeof rc->reason, "the disk has %" PRIu64
              " bytes now, the store is of one of %" PRIu64,
              options->disk_size, s->header.disk_size);
  else if (known->inode != disk->inode
           || (known->birth_ns && disk->birth_ns
               && known->birth_ns != disk->birth_ns))
    snprintf (rc->reason, sizeof rc->reason, "the store belongs to another"
              " file (inode %" PRIu64 ") than the disk (inode %" PRIu64 ")",
              known->inode, disk->inode);
  else if (disk->inode != 0)
    check_times (s, disk, rc);
}

/* Whether the disk has changed without the store is known only if that was
 * closed and the disk's time can be held against what it was then.
 */
static void
check_failure (const struct store *s, struct recovery *rc)
{
  if (s->header.flags & STORE_IS_FAILED)
    snprintf (rc->reason, sizeof rc->reason, "the store failed: %.100s",
              s->header.reason);
  else if (rc->found != FOUND_CLEAN && atomic_load (&s->live->is_failed))
    snprintf (rc->reason, sizeof rc->reason, "the store failed");
  else if (rc->note == STORE_NOTE_FAILED)
    snprintf (rc->reason, sizeof rc->reason, "the store failed, which could"
              " only be noted elsewhere");
  else if (rc->note == STORE_NOTE_MISSING
           && (rc->found != FOUND_CLEAN || s->header.identity.inode == 0
               || rc->reason[0] != '\0'))
    snprintf (rc->reason, sizeof rc->reason, "the disk was in use when the"
              " store could not be opened");
}

/* The arrays are about to lose what is beyond the size that the disk is seen
 * to have: a process that was killed while it shrank it may not have come to
 * make that durable.
 */
static void
settle_size (const struct store *s, const struct store_options *options,
             struct recovery *rc)
{
  int r;

  if (s->header.other_size == 0 || options->sync_disk == NULL)
    return;
  r = options->sync_disk (options->opaque);
  if (r < 0)
    snprintf (rc->reason, sizeof rc->reason, "the disk's new size could not"
              " be made durable: %s", strerror (-r));
}

static int
judge (struct store *s, const struct store_options *options,
       struct recovery *rc)
{
  uint8_t boot_id[16];
  int r = s->io->boot_id (s->io, boot_id);

  if (r < 0)
    return r;
  rc->disk_size = options->disk_size;
  rc->note = store_find_note (s);
  rc->is_same_boot =
    memcmp (boot_id, s->header.boot_id, sizeof boot_id) == 0;
  if (s->header.generation == 1)
    rc->found = FOUND_NEW;
  else if (!(s->header.flags & STORE_IS_OPEN))
    rc->found = FOUND_CLEAN;
  else
    rc->found = rc->is_same_boot ? FOUND_SAME_BOOT : FOUND_OTHER_BOOT;
  s->was_unclean = rc->found >= FOUND_SAME_BOOT;
  memcpy (s->header.boot_id, boot_id, sizeof boot_id);
  if (rc->found != FOUND_NEW) {
    check_disk (s, options, rc);
    check_failure (s, rc);
    settle_size (s, options, rc);
  }
  return 0;
}

/*---- Bits ----*/

/* Set the bits [first, end); how many of them were clear. */
static uint64_t
set_bits (uint64_t *words, uint64_t first, uint64_t end)
{
  uint64_t mask, n = 0, w;

  for (; first < end; first = (w + 1) * 64) {
    w = first / 64;
    mask = UINT64_MAX << (first % 64);
    if (end - w * 64 < 64)
      mask &= (UINT64_C (1) << (end - w * 64)) - 1;
    n += (unsigned) __builtin_popcountll (mask & ~words[w]);
    words[w] |= mask;
  }
  return n;
}

/* All of the intended regions are dirty; by how many bytes more than before. */
static uint64_t
apply_intents (const struct store *s, const struct recovery *rc,
               uint64_t granularity, uint64_t *words)
{
  const uint8_t *map = s->intent_map.addr;
  const uint64_t region = s->header.region_size;
  const uint64_t nr = div_round_up (rc->disk_size, region);
  uint64_t r, end, n = 0;

  for (r = 0; r < nr; r++) {
    if (!(map[r / 8] >> (r % 8) & 1))
      continue;
    end = MIN (region, rc->disk_size - r * region) + r * region;
    n += set_bits (words, r * region / granularity,
                   div_round_up (end, granularity));
  }
  return MIN (n * granularity, rc->disk_size);
}

static uint64_t
count_intents (const struct store *s)
{
  const uint8_t *map = s->intent_map.addr;
  uint64_t i, n = 0;

  for (i = 0; i < s->intent_map.len; i++)
    n += (unsigned) __builtin_popcount (map[i]);
  return n;
}

/*---- Bitmaps ----*/

static void
distrust (struct store_entry *entry, const char *reason)
{
  store_array_free (entry->bits);
  store_array_free (entry->successor);
  entry->bits = entry->successor = NULL;
  if (entry->state != STORE_INCONSISTENT) {
    entry->state = STORE_INCONSISTENT;
    snprintf (entry->reason, sizeof entry->reason, "%s", reason);
  }
}

/* No bit beyond the end, also if the disk is still of the smaller size. */
static void
clear_tail (struct store_array *a, uint64_t nr_bits)
{
  uint64_t *words = a->map.addr;
  uint64_t w = nr_bits / 64, nr = a->map.len / 8;

  if (nr_bits % 64 != 0)
    words[w++] &= (UINT64_C (1) << (nr_bits % 64)) - 1;
  for (; w < nr; w++)
    if (words[w] != 0)
      words[w] = 0;
  a->nr_bits = nr_bits;
}

/* What an earlier attempt has merged, but could not sync, is written again. */
static void
merge_successor (struct store_entry *entry)
{
  uint64_t *to = entry->bits->map.addr;
  const uint64_t *from = entry->successor->map.addr;
  struct range r = { 0, 0 };
  uint64_t i;

  while (store_array_next_data (entry->successor, r.off + r.len, &r))
    for (i = r.off / 8; i < (r.off + r.len) / 8; i++)
      if (from[i] != 0)
        to[i] |= from[i];
  clear_tail (entry->bits, entry->bits->nr_bits);
  store_array_free (entry->successor);
  entry->successor = NULL;
}

static int
recover_bits (struct store *s, const struct recovery *rc,
              const struct store_record *record, struct store_entry *entry)
{
  const uint64_t nr_bits = div_round_up (rc->disk_size, record->granularity);

  if (rc->found == FOUND_CLEAN
      && store_array_sum (entry->bits) != record->bits.sum) {
    distrust (entry, "the checksum of its bits in the store is wrong");
    return 0;
  }
  clear_tail (entry->bits, nr_bits);
  if (rc->found == FOUND_OTHER_BOOT)
    entry->over_estimate +=
      apply_intents (s, rc, record->granularity, entry->bits->map.addr);
  else if (entry->successor == NULL)
    return 0;
  if (entry->successor)
    merge_successor (entry);
  /* Soon the table has no successor any more, or no intents. */
  return store_array_sync (entry->bits);
}

static int
recover_entry (struct store *s, const struct recovery *rc,
               const struct store_record *record, struct store_entry *entry)
{
  int r = 0;

  entry->name = strdup (record->name);
  if (entry->name == NULL)
    return -ENOMEM;
  entry->granularity = record->granularity;
  entry->state = record->state;
  entry->base = record->base;
  entry->over_estimate = record->over_estimate;
  memcpy (entry->reason, record->reason, sizeof entry->reason);
  if (rc->reason[0] || record->state == STORE_INCONSISTENT) {
    distrust (entry, rc->reason);
    return 0;
  }
  r = store_array_at (s, record->bits.off, record->bits.nr_bits, &entry->bits);
  if (r == 0 && record->successor.off)
    r = store_array_at (s, record->successor.off, record->bits.nr_bits,
                        &entry->successor);
  return r < 0 ? r : recover_bits (s, rc, record, entry);
}

static void
log_over_estimate (const struct store *s, const struct store_entry *entry)
{
  /* Of one that is inconsistent there may be another in the disk's image. */
  if (entry->state != STORE_INCONSISTENT && entry->over_estimate > 0)
    log_warning ("store '%s': bitmap '%s' has up to %" PRIu64 " bytes too many"
                 " dirty after a crash", s->path, entry->name,
                 entry->over_estimate);
}

static int
recover_entries (struct store *s, const struct recovery *rc)
{
  size_t i;
  int r;

  s->entries = calloc (s->header.nr_bitmaps + 1, sizeof *s->entries);
  if (s->entries == NULL)
    return -ENOMEM;
  for (i = 0; i < s->header.nr_bitmaps; i++) {
    s->nr_entries = i + 1;
    r = recover_entry (s, rc, &s->records[i], &s->entries[i]);
    if (r < 0)
      return r;
    log_over_estimate (s, &s->entries[i]);
  }
  return 0;
}

/*---- The new table ----*/

/* A map for a disk that has grown behind our back: nothing is believed then. */
static int
make_room_for_intents (struct store *s, const struct store_options *options)
{
  const uint64_t len = intent_map_size (options->disk_size,
                                        s->header.region_size);

  if (s->intent_map.len >= len)
    return 0;
  store_unmap (s, &s->intent_map);
  return store_allocate (s, len, &s->intent_map);
}

/* Intents of a process that died may not be on disk yet, but count as active
 * from now on.  Those of a machine that died have been applied.
 */
static int
renew_intents (struct store *s, const struct recovery *rc)
{
  uint64_t *words = s->intent_map.addr;
  uint64_t i;

  if (rc->found == FOUND_SAME_BOOT && rc->reason[0] == '\0')
    return s->io->sync_map (s->io, s->file, s->intent_map.addr,
                            (size_t) s->intent_map.len);
  /* What is clear has no need to be written. */
  for (i = 0; i < s->intent_map.len / sizeof *words; i++)
    if (words[i] != 0)
      words[i] = 0;
  return 0;
}

/* Of a disk of its smaller size the map of intents is long enough.  Nothing
 * that has been noted concerns it from then on, also if that stays.
 */
static int
renew_header (struct store *s, const struct store_options *options,
              const struct recovery *rc)
{
  s->header.flags = STORE_IS_OPEN;
  s->header.disk_size = options->disk_size;
  s->header.other_size = 0;
  s->header.identity = options->identity;
  memset (s->header.reason, 0, sizeof s->header.reason);
  return rc->note == STORE_NOTE_NONE ? 0 : point_id_random (&s->header.id);
}

static int
reset_live (struct store *s)
{
  const bool was_failed = atomic_load (&s->live->is_failed);
  size_t i;

  memcpy (s->live->magic, STORE_LIVE_MAGIC, sizeof s->live->magic);
  atomic_store (&s->live->is_failed, 0);
  for (i = 0; i < STORE_LIVE_SLOTS; i++) {
    atomic_store (&s->live->slots[i].nr_changes, 0);
    atomic_store (&s->live->slots[i].last_change, 0);
  }
  /* An old failure must not come back after a power cut. */
  return was_failed ? store_sync_map (s, &s->live_map) : 0;
}

/* The slot that is believed may be in the kernel only: whoever wrote it was
 * killed, perhaps while it closed the store, or has synced it in vain.  The
 * power may fail while the other one is replaced.  (A new store was durable
 * before it had its name.)
 */
static int
make_slot_durable (struct store *s)
{
  const uint64_t off = STORE_SLOT_SIZE - s->older_slot;
  int r = s->io->pread (s->io, s->file, s->slot, STORE_SLOT_SIZE, off);

  return r < 0 ? r : s->io->pwrite (s->io, s->file, s->slot, STORE_SLOT_SIZE,
                                    off, STORE_IO_DURABLE);
}

int
store_recover (struct store *s, const struct store_options *options,
               struct error *err)
{
  const struct point_id old_id = s->header.id;
  struct recovery rc = { .reason = "" };
  int r;

  r = store_note_committed (s);
  if (r == 0)
    r = judge (s, options, &rc);
  s->is_believed = rc.found != FOUND_NEW && rc.reason[0] == '\0';
  if (r == 0 && rc.is_same_boot && rc.found != FOUND_NEW)
    r = make_slot_durable (s);
  if (r == 0)
    r = recover_entries (s, &rc);
  if (r < 0)
    return error_set_errno (err, -r, "store '%s': cannot recover", s->path);
  if (rc.found == FOUND_OTHER_BOOT && rc.reason[0] == '\0')
    s->recovered_regions = count_intents (s);
  /* With the arrays on disk, but before intents are cleared. */
  r = make_room_for_intents (s, options);
  if (r == 0)
    r = renew_header (s, options, &rc);
  if (r == 0)
    r = store_commit (s, s->entries, s->nr_entries);
  if (r == 0)
    r = renew_intents (s, &rc);
  if (r == 0)
    r = reset_live (s);
  if (r < 0)
    return error_set_errno (err, -r, "store '%s': cannot write", s->path);
  if (rc.note != STORE_NOTE_NONE)
    store_forget_notes (s, &old_id);
  r = store_start_intents (s);
  return r < 0 ? error_set_errno (err, -r, "store '%s'", s->path) : 0;
}
