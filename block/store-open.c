/* SPDX-License-Identifier: BSD-3-Clause */
/* How a store is found, made, or replaced; what is in it is the business of
 * store-recover.c.
 *
 * A store appears under its name only when it is complete.  What is no store,
 * or one of a newer version, is left alone; one that is damaged is renamed to
 * "PATH.damaged" and a new one takes its place.  A new one is put over one that
 * has failed in one step, too: until it has a table nobody believes it.
 *
 * Called by whoever opens the disk.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "log.h"
#include "store-private.h"

/*---- Making one ----*/

static int
open_new_file (struct store *s, const char *path)
{
  void *stale;
  int r = s->io->open (s->io, path, STORE_IO_CREATE, &s->file);

  if (r != -EEXIST)
    return r;
  /* Left by one that has died, unless it is locked. */
  r = s->io->open (s->io, path, STORE_IO_EXISTING, &stale);
  if (r < 0)
    return r;
  r = s->io->unlink (s->io, path);
  s->io->close (s->io, stale);
  return r < 0 ? r : s->io->open (s->io, path, STORE_IO_CREATE, &s->file);
}

static void
fill_header (struct store *s, const struct store_options *options)
{
  const uint32_t nr_bitmaps = s->header.nr_bitmaps;

  memset (&s->header, 0, sizeof s->header);
  s->header.nr_bitmaps = nr_bitmaps;
  s->header.flags = STORE_IS_OPEN;
  s->header.disk_size = options->disk_size;
  s->header.region_size = options->region_size ? options->region_size
    : STORE_DEFAULT_REGION;
  s->header.identity = options->identity;
}

/* Everything of an empty store, in the file that is open. */
static int
fill_file (struct store *s, const struct store_options *options)
{
  int r;

  fill_header (s, options);
  r = point_id_random (&s->header.id);
  if (r == 0)
    r = s->io->boot_id (s->io, s->header.boot_id);
  if (r == 0)
    r = s->io->allocate (s->io, s->file, 0, STORE_DATA_OFF);
  if (r == 0)
    r = store_map (s, STORE_LIVE_OFF, STORE_PAGE, &s->live_map);
  if (r < 0)
    return r;
  s->live = s->live_map.addr;
  memcpy (s->live->magic, STORE_LIVE_MAGIC, sizeof s->live->magic);
  r = store_allocate (s, intent_map_size (s->header.disk_size,
                                          s->header.region_size),
                      &s->intent_map);
  if (r < 0)
    return r;
  s->header.intent_off = s->intent_map.off;
  s->header.intent_len = s->intent_map.len;
  s->header.file_len = s->intent_map.off + s->intent_map.len;
  r = store_write_slots (s);
  return r < 0 ? r : s->io->sync (s->io, s->file);
}

static int
create (struct store *s, const struct store_options *options)
{
  CLEANUP_FREE char *path = NULL;
  int r;

  if (asprintf (&path, "%s.new", s->path) < 0)
    return -ENOMEM;
  r = open_new_file (s, path);
  if (r < 0)
    return r;
  r = fill_file (s, options);
  if (r == 0)
    r = s->io->rename (s->io, path, s->path);
  if (r < 0)
    s->io->unlink (s->io, path);
  return r;
}

/* Give up what has been opened so far. */
static void
forget_file (struct store *s)
{
  store_unmap (s, &s->live_map);
  store_unmap (s, &s->intent_map);
  s->live = NULL;
  s->io->close (s->io, s->file);
  s->file = NULL;
}

/* A new store in the place of one that is damaged as loss says.  Bitmaps that
 * are known by name stay known, as inconsistent ones.
 */
static int
replace (struct store *s, const struct store_options *options,
         const char *loss)
{
  CLEANUP_FREE char *path = NULL;
  size_t i;
  int r;

  if (asprintf (&path, "%s.damaged", s->path) < 0)
    return -ENOMEM;
  r = s->io->rename (s->io, s->path, path);
  if (r < 0)
    return r;
  log_warning ("store '%s': %s; it has been renamed to '%s'", s->path, loss,
               path);
  snprintf (s->loss, sizeof s->loss, "the store was damaged: %.90s", loss);
  forget_file (s);
  for (i = 0; i < s->header.nr_bitmaps; i++) {
    struct store_record *record = &s->records[i];

    record->state = STORE_INCONSISTENT;
    record->bits.off = record->successor.off = 0;
    memcpy (record->reason, s->loss, sizeof record->reason);
  }
  return create (s, options);
}

/*---- Finding one ----*/

struct slot {
  struct store_header header;
  struct store_record *records;
  int error;                    /* of store_decode */
  struct error err;
};

static int
read_slot (struct store *s, uint64_t off, struct slot *slot)
{
  int r = s->io->pread (s->io, s->file, s->slot, STORE_SLOT_SIZE, off);

  if (r < 0)
    return r;
  slot->error = store_decode (s->slot, &slot->header, &slot->records,
                              &slot->err);
  return slot->error == -ENOMEM ? -ENOMEM : 0;
}

/* The newer of two valid slots, or NULL. */
static struct slot *
choose (struct slot slots[2])
{
  if (slots[0].error && slots[1].error)
    return NULL;
  if (slots[0].error || slots[1].error)
    return slots[0].error ? &slots[1] : &slots[0];
  return slots[0].header.generation >= slots[1].header.generation
    ? &slots[0] : &slots[1];
}

static int
use_slots (struct store *s, struct slot slots[2], struct error *err)
{
  struct slot *slot = choose (slots);
  size_t i;

  /* A newer version may have written one of them only. */
  for (i = 0; i < 2; i++)
    if (slots[i].error == -ENOTSUP)
      return error_set (err, EINVAL, "store '%.100s': %.120s; it has been left"
                        " alone", s->path, slots[i].err.msg);
  if (slot) {
    s->older_slot = slot == &slots[0] ? STORE_SLOT_SIZE : 0;
    /* Or they are equal: then it does no harm. */
    atomic_store (&s->is_copy_due, true);
    s->header = slot->header;
    s->records = slot->records;
    slot->records = NULL;
    return 0;
  }
  if (slots[0].error == -ENOENT && slots[1].error == -ENOENT)
    return error_set (err, EINVAL, "store '%.100s': %.120s; it has been left"
                      " alone", s->path, slots[0].err.msg);
  i = slots[0].error == -ENOENT;
  return error_set (err, EBADMSG, "%s", slots[i].err.msg);
}

static int
read_slots (struct store *s, struct error *err)
{
  struct slot slots[2] = { { .err = ERROR_INIT }, { .err = ERROR_INIT } };
  int r, i;

  r = read_slot (s, 0, &slots[0]);
  if (r == 0)
    r = read_slot (s, STORE_SLOT_SIZE, &slots[1]);
  if (r < 0)
    error_set_errno (err, -r, "store '%.100s': cannot read", s->path);
  else
    r = use_slots (s, slots, err);
  for (i = 0; i < 2; i++)
    if (slots[i].records)
      store_records_free (slots[i].records, slots[i].header.nr_bitmaps);
  return r;
}

/* A file that is too short even for the slots: a store's beginning, or not. */
static int
judge_short (struct store *s, uint64_t size, struct error *err)
{
  uint8_t magic[8] = { 0 };
  int r = 0;

  if (size > 0)
    r = s->io->pread (s->io, s->file, magic, (size_t) MIN (size, 8), 0);
  if (r < 0)
    return error_set_errno (err, -r, "store '%.100s': cannot read", s->path);
  if (memcmp (magic, STORE_MAGIC, (size_t) MIN (size, 8)) != 0)
    return error_set (err, EINVAL, "store '%.100s': it is not a Tidemark"
                      " store; it has been left alone", s->path);
  return error_set (err, EBADMSG, "it is truncated to %" PRIu64 " bytes",
                    size);
}

/* -EBADMSG: damaged, see *err. */
static int
find (struct store *s, struct error *err)
{
  uint64_t size;
  int r = s->io->size (s->io, s->file, &size);

  if (r < 0)
    return error_set_errno (err, -r, "store '%.100s'", s->path);
  if (size < STORE_DATA_OFF)
    return judge_short (s, size, err);
  r = read_slots (s, err);
  if (r == 0 && size < s->header.file_len)
    r = error_set (err, EBADMSG, "it is truncated to %" PRIu64 " of %" PRIu64
                   " bytes", size, s->header.file_len);
  if (r < 0)
    return r;
  r = store_map_existing (s, STORE_LIVE_OFF, STORE_PAGE, &s->live_map);
  if (r == 0)
    r = store_map_existing (s, s->header.intent_off, s->header.intent_len,
                            &s->intent_map);
  if (r < 0)
    return error_set_errno (err, -r, "store '%.100s': cannot map", s->path);
  s->live = s->live_map.addr;
  return 0;
}

static int
error_busy (const struct store *s, struct error *err)
{
  return error_set (err, EBUSY, "store '%.150s' is in use by another process"
                    " or disk", s->path);
}

/* -EBUSY: another process has what is there. */
static int
check_place (struct store *s, const struct store_options *options)
{
  void *file;
  int r;

  if (options->replaces && !options->replaces->is_removed)
    return 0;
  r = s->io->open (s->io, s->path, STORE_IO_EXISTING, &file);
  if (r == 0)
    s->io->close (s->io, file);
  return r == -EBUSY ? r : 0;
}

static int
open_new (struct store *s, const struct store_options *options,
          struct error *err)
{
  int r = check_place (s, options);

  if (r < 0)
    return error_busy (s, err);
  r = create (s, options);
  if (r < 0)
    return error_set_errno (err, -r, "store '%.100s': cannot be made anew",
                            s->path);
  store_forget_notes (s, options->replaces ? &options->replaces->header.id
                      : NULL);
  return 0;
}

static int
open_file (struct store *s, const struct store_options *options,
           struct error *err)
{
  struct error damage = ERROR_INIT;
  int r;

  if (options->is_new)
    return open_new (s, options, err);
  r = s->io->open (s->io, s->path, STORE_IO_EXISTING, &s->file);
  if (r == -EBUSY)
    return error_busy (s, err);
  if (r == -ENOENT && options->must_exist)
    return r;
  if (r < 0 && r != -ENOENT)
    return error_set_errno (err, -r, "store '%.150s'", s->path);
  if (r == 0) {
    r = find (s, &damage);
    if (r != -EBADMSG) {
      if (r < 0)
        error_set (err, -r, "%s", damage.msg);
      return r;
    }
    r = replace (s, options, damage.msg);
  }
  else
    r = create (s, options);
  return r < 0 ? error_set_errno (err, -r, "store '%.150s': cannot create",
                                  s->path) : 0;
}

int
store_open (const struct store_options *options, struct store **ret,
            struct error *err)
{
  struct store *s;
  int r;

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
  return error_set (err, ENOTSUP, "store '%s': only little-endian machines"
                    " can have one", options->path);
#endif
  r = store_new (options, &s);
  if (r < 0)
    return error_set_errno (err, -r, "store '%s'", options->path);
  r = open_file (s, options, err);
  if (r == 0)
    r = store_recover (s, options, err);
  if (r < 0) {
    store_abandon (s);
    return r;
  }
  s->is_open = true;
  *ret = s;
  return 0;
}

bool
store_is_believed (const struct store *s)
{
  return s->is_believed;
}

const char *
store_loss (const struct store *s)
{
  return s->loss;
}

const char *
store_path (const struct store *s)
{
  return s->path;
}
