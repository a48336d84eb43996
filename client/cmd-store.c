/* SPDX-License-Identifier: BSD-3-Clause */
/* tidemark store: look at a store of bitmaps, or check it, without changing it
 * or waiting for whoever has it open.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "client.h"
#include "range.h"
#include "store-format.h"
#include "store-io.h"

static const struct option_spec options[] = { { NULL } };

struct slot {
  struct store_header header;
  struct store_record *records;
  int error;                    /* of store_decode */
  struct error err;
};

struct view {
  const struct store_io *io;
  const char *path;
  void *file;
  uint64_t size;
  struct slot slots[2];
  const struct slot *valid;     /* the newer one that is valid, or NULL */
  unsigned nr_damages;
};

static void damaged (struct view *v, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

static void
damaged (struct view *v, const char *fmt, ...)
{
  va_list args;

  printf ("damaged: ");
  va_start (args, fmt);
  vprintf (fmt, args);
  va_end (args);
  printf ("\n");
  v->nr_damages++;
}

static int
read_slots (struct view *v, struct error *err)
{
  CLEANUP_FREE void *buf = malloc (STORE_SLOT_SIZE);
  int i, r = buf ? 0 : -ENOMEM;

  for (i = 0; i < 2 && r == 0; i++) {
    struct slot *slot = &v->slots[i];

    memset (buf, 0, STORE_SLOT_SIZE);
    if ((uint64_t) (i + 1) * STORE_SLOT_SIZE <= v->size)
      r = v->io->pread (v->io, v->file, buf, STORE_SLOT_SIZE,
                        (uint64_t) i * STORE_SLOT_SIZE);
    if (r == 0)
      slot->error = store_decode (buf, &slot->header, &slot->records,
                                  &slot->err);
    if (slot->error == 0
        && (!v->valid
            || slot->header.generation > v->valid->header.generation))
      v->valid = slot;
  }
  return r < 0 ? error_set_errno (err, -r, "%s", v->path) : 0;
}

static int
view_open (const char *path, struct view *v, struct error *err)
{
  int r;

  v->io = &store_io_system;
  v->path = path;
  r = v->io->open (v->io, path, STORE_IO_LOOK, &v->file);
  if (r == 0)
    r = v->io->size (v->io, v->file, &v->size);
  if (r < 0)
    return error_set_errno (err, -r, "%s", path);
  return read_slots (v, err);
}

static void
view_close (struct view *v)
{
  int i;

  for (i = 0; i < 2; i++)
    if (v->slots[i].error == 0)
      store_records_free (v->slots[i].records, v->slots[i].header.nr_bitmaps);
  if (v->file)
    v->io->close (v->io, v->file);
}

/* Read len bytes at off, which take a buffer that the caller frees. */
static int
read_part (struct view *v, uint64_t off, uint64_t len, void **ret)
{
  int r;

  if (!range_is_within (off, len, v->size))
    return -ENODATA;
  *ret = malloc (len);
  if (*ret == NULL)
    return -ENOMEM;
  r = v->io->pread (v->io, v->file, *ret, len, off);
  if (r < 0) {
    free (*ret);
    *ret = NULL;
  }
  return r;
}

static uint64_t
count_bits (const uint8_t *p, uint64_t len)
{
  uint64_t i, n = 0;

  for (i = 0; i < len; i++)
    n += (unsigned) __builtin_popcount (p[i]);
  return n;
}

/*---- info ----*/

static void
print_record (struct view *v, const struct store_record *r)
{
  static const char *const states[] = {
    "records", "disabled", "inconsistent"
  };
  char base[POINT_ID_STRING_SIZE];
  CLEANUP_FREE void *bits = NULL;
  const uint64_t len = store_array_bytes (r->bits.nr_bits);

  printf ("bitmap: %s\n  state: %s%s\n", r->name, states[r->state],
          r->successor.off ? ", held by a backup" : "");
  if (r->reason[0])
    printf ("  reason: %s\n", r->reason);
  printf ("  granularity: %" PRIu64 " bytes\n", r->granularity);
  if (r->bits.off && read_part (v, r->bits.off, len, &bits) == 0)
    printf ("  dirty: %" PRIu64 " of %" PRIu64 " granules\n",
            count_bits (bits, len), r->bits.nr_bits);
  if (r->over_estimate)
    printf ("  of these for a crash: at most %" PRIu64 " bytes\n",
            r->over_estimate);
  if (!point_id_is_none (&r->base)) {
    point_id_format (&r->base, base);
    printf ("  counts from point: %s\n", base);
  }
}

static void
print_info (struct view *v)
{
  const struct store_header *h = &v->valid->header;
  CLEANUP_FREE void *map = NULL;
  size_t i;

  printf ("store: %s\n", v->path);
  printf ("state: %s\n", h->flags & STORE_IS_FAILED ? "failed"
          : h->flags & STORE_IS_OPEN ? "open, or not closed cleanly"
          : "closed cleanly");
  if (h->reason[0])
    printf ("reason: %s\n", h->reason);
  printf ("generation: %" PRIu64 "\n", h->generation);
  printf ("disk size: %" PRIu64 " bytes\n", h->disk_size);
  if (h->other_size)
    printf ("disk size (being resized): %" PRIu64 " bytes\n", h->other_size);
  printf ("region size: %" PRIu64 " bytes\n", h->region_size);
  if (read_part (v, h->intent_off, h->intent_len, &map) == 0)
    printf ("active regions: %" PRIu64 "\n", count_bits (map, h->intent_len));
  for (i = 0; i < h->nr_bitmaps; i++)
    print_record (v, &v->valid->records[i]);
}

/*---- check ----*/

/* The bits of a store that is open change all the time, and have no sum. */
static void
check_array (struct view *v, const struct store_record *record)
{
  const uint64_t len = store_array_bytes (record->bits.nr_bits);
  CLEANUP_FREE void *bits = NULL;
  int r;

  if (record->bits.off == 0 || (v->valid->header.flags & STORE_IS_OPEN))
    return;
  r = read_part (v, record->bits.off, len, &bits);
  if (r < 0)
    damaged (v, "the bits of bitmap '%s' cannot be read: %s", record->name,
             strerror (-r));
  else if (store_sum_add (0, bits, 0, len) != record->bits.sum)
    damaged (v, "the checksum of the bits of bitmap '%s' is wrong",
             record->name);
}

static void
check (struct view *v)
{
  const struct store_header *h = &v->valid->header;
  size_t i;

  for (i = 0; i < 2; i++)
    if (v->slots[i].error)
      damaged (v, "slot %c: %s", "AB"[i], v->slots[i].err.msg);
  if (v->slots[0].error == 0 && v->slots[1].error == 0
      && v->slots[0].header.generation != v->slots[1].header.generation)
    printf ("note: a change of the table was interrupted; the newer one is"
            " used\n");
  if (h->file_len > v->size)
    damaged (v, "the file is truncated to %" PRIu64 " of %" PRIu64 " bytes",
             v->size, h->file_len);
  for (i = 0; i < h->nr_bitmaps; i++)
    check_array (v, &v->valid->records[i]);
  if (h->flags & STORE_IS_OPEN)
    printf ("note: the store is open, or was not closed cleanly: its bits"
            " have no checksums\n");
  if (v->nr_damages == 0)
    printf ("%s: sound, %" PRIu32 " bitmaps\n", v->path, h->nr_bitmaps);
}

static int
cmd_store_run (const struct options *o)
{
  struct error err = ERROR_INIT;
  struct view v = { .file = NULL };
  const bool is_check = strcmp (o->args[0], "check") == 0;
  int status = STATUS_OK;

  if (!is_check && strcmp (o->args[0], "info") != 0)
    return client_usage (&cmd_store, "unknown action '%s'; allowed are info,"
                         " check", o->args[0]);
  v.slots[0].error = v.slots[1].error = -ENOENT;
  if (view_open (o->args[1], &v, &err) < 0)
    status = client_fail (&err);
  else if (v.valid == NULL) {
    const struct slot *slot = &v.slots[v.slots[0].error == -ENOENT];

    error_set (&err, EINVAL, "%.100s: %.120s", v.path, slot->err.msg);
    status = client_fail (&err);
    if (is_check && slot->error == -EINVAL)
      status = STATUS_DAMAGED;
  }
  else if (is_check) {
    check (&v);
    status = v.nr_damages ? STATUS_DAMAGED : STATUS_OK;
  }
  else
    print_info (&v);
  view_close (&v);
  return status;
}

const struct command cmd_store = {
  .name = "store",
  .synopsis = "info|check FILE",
  .summary = "look at the file that holds a disk's bitmaps, or check it",
  .options = options,
  .min_args = 2,
  .max_args = 2,
  .run = cmd_store_run,
};
