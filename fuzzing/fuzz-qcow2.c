/* SPDX-License-Identifier: BSD-3-Clause */
/* Fuzz target: the input is a qcow2 image.  It is read, checked, written to,
 * checked again; if it was not sound, it is mended and written to as well.
 *
 * Claims, besides that nothing crashes:
 *   - what an extent calls zero reads as zeroes;
 *   - what was written to one cluster is read back;
 *   - an image that the check finds sound is so after writing, and holds what
 *     was written when it is opened again;
 *   - what a repair says it has left is what the next check finds, and if that
 *     is nothing the image is sound from then on.
 *
 * The work for an input is bounded by the numbers below, whatever sizes its
 * header claims.
 */
#include "config.h"

#include <string.h>

#include "blk-mem.h"
#include "blk-qcow2.h"
#include "blk-window.h"
#include "byteorder.h"
#include "fuzz.h"
#include "log.h"
#include "qcow2-bitmap.h"
#include "qcow2-check.h"
#include "range.h"

/* Whether a mended image has to stay sound: false to look for other things. */
#ifndef CLAIM_MENDED
#define CLAIM_MENDED true
#endif

#define MAX_INPUT (UINT64_C (1) << 20)
#define MAX_EXTENTS 64          /* looked at */
#define MAX_PLACES 12           /* written to */
#define MAX_BITMAPS 4           /* loaded, stored */
#define MAX_BITMAP_BYTES (UINT64_C (1) << 20)
#define MAX_CLUSTER (UINT64_C (2) << 20)
#define MAX_WINDOWS 64          /* of a check */
#define BACKING_SIZE (UINT64_C (1) << 20)

/* The files that outlive a node over them. */
struct files {
  struct blk *image, *data, *backing;
  bool is_external, is_backed;  /* the header names a data file, a backing
                                   file */
};

/* What was written and is to be found. */
struct place {
  uint64_t off, len;
  int byte;                     /* -1: anything may be there */
};

struct places {
  struct place ptr[MAX_PLACES];
  size_t nr;
};

static uint8_t buffer[MAX_CLUSTER];

static void
no_log (enum log_level level, const char *msg)
{
}

int
LLVMFuzzerInitialize (int *argc, char ***argv)
{
  log_set_handler (no_log);
  return 0;
}

/* --- files */

static struct blk *
lend (struct blk *file, bool is_read_only)
{
  struct blk_window_options options = {
    .size = UINT64_MAX, .is_read_only = is_read_only, .is_borrowed = true,
  };
  struct blk *blk;

  if (blk_window_open (file, &options, &blk, NULL) < 0)
    abort ();
  return blk;
}

static struct blk *
new_file (uint64_t size)
{
  struct blk *blk;

  if (blk_mem_new (size, &blk) < 0)
    abort ();
  return blk;
}

static void
files_open (struct files *f, const uint8_t *data, size_t size)
{
  *f = (struct files) { .image = new_file (size), .data = new_file (0) };
  if (blk_pwrite (f->image, data, size, 0, 0) < 0)
    abort ();
  f->is_backed = size >= 16 && load_be64 (data + 8) != 0;
  f->is_external = size >= 80 && load_be32 (data + 4) >= 3
    && (load_be64 (data + 72) & 4);
  f->backing = new_file (BACKING_SIZE);
  memset (buffer, 0xb0, BACKING_SIZE / 2);
  if (blk_pwrite (f->backing, buffer, BACKING_SIZE / 2, 0, 0) < 0)
    abort ();
}

static void
files_close (struct files *f)
{
  blk_close (f->image);
  blk_close (f->data);
  blk_close (f->backing);
}

static struct blk *
open_image (struct files *f, bool is_read_only, bool is_append)
{
  struct qcow2_open_options options = {
    .is_read_only = is_read_only, .is_append = is_append,
    .backing = f->is_backed ? lend (f->backing, true) : NULL,
    .data = f->is_external ? lend (f->data, is_read_only) : NULL,
  };
  struct error err = ERROR_INIT;
  struct blk *blk;

  if (blk_qcow2_open (lend (f->image, is_read_only), &options, &blk,
                      &err) == 0)
    return blk;
  CLAIM (err.errnum != 0 && err.msg[0], "a failure without a message");
  return NULL;
}

/* --- reading */

static bool
is_all (const uint8_t *p, uint64_t len, int byte)
{
  return len == 0 || (p[0] == byte && memcmp (p, p + 1, len - 1) == 0);
}

static void
read_piece (struct blk *blk, uint64_t len, uint64_t off, bool is_zero)
{
  (void) blk_cache (blk, len, off);
  if (blk_pread (blk, buffer, len, off, 0) == 0 && is_zero)
    CLAIM (is_all (buffer, len, 0), "an extent of zeroes has data");
}

static void
read_extents (struct blk *blk, const struct extents *e)
{
  for (size_t i = 0; i < e->len; i++) {
    const struct extent *x = &e->ptr[i];
    uint64_t n = MIN (x->len, 65536);

    read_piece (blk, n, x->off, x->value & EXTENT_ZERO);
    read_piece (blk, n, x->off + x->len - n, x->value & EXTENT_ZERO);
  }
}

/* Where extents begin becomes a place to write to. */
static void
add_places (struct places *places, const struct extents *e)
{
  for (size_t i = 0; i < e->len && places->nr < MAX_PLACES; i++)
    places->ptr[places->nr++] = (struct place) { .off = e->ptr[i].off };
}

static void
read_all (struct blk *blk, struct places *places)
{
  uint64_t size = blk_size (blk), off = 0;
  unsigned nr = 0;
  struct extents e;
  int r;

  extents_init (&e, 16);
  while (off < size && nr < MAX_EXTENTS) {
    extents_clear (&e);
    r = blk_extents (blk, size - off, off, 0, BLK_STATUS_DEPTH, &e);
    extents_clear (&e);
    r = blk_extents (blk, size - off, off, 0, BLK_STATUS_ALLOCATION, &e);
    if (r < 0) {
      nr++;
      read_piece (blk, MIN (512, size - off), off, false);
      off += MIN (blk->cluster_size, size - off);
      continue;
    }
    CLAIM (e.len > 0 && e.ptr[0].off == off, "no extent");
    CLAIM (extents_length (&e) <= size - off, "extents beyond the end");
    read_extents (blk, &e);
    add_places (places, &e);
    nr += (unsigned) e.len;
    off += extents_length (&e);
  }
  extents_free (&e);
}

/* --- writing */

/* The part of the range from off on that is within one cluster. */
static uint64_t
in_cluster (struct blk *blk, uint64_t off, uint64_t len)
{
  uint64_t size = blk_size (blk);

  len = MIN (len, blk->cluster_size - (off & (blk->cluster_size - 1)));
  return off < size ? MIN (len, size - off) : 0;
}

static void
expect (struct blk *blk, const struct place *place)
{
  CLAIM (blk_pread (blk, buffer, place->len, place->off, 0) == 0,
         "what was written cannot be read");
  CLAIM (is_all (buffer, place->len, place->byte),
         "what was written is not there");
}

/* How what is done differs from place to place. */
enum { WRITE_PART, WRITE_CLUSTER, ZERO_PART, ZERO_CLUSTER, UNMAP, TRIM, PACK,
       NR_KINDS };

static int
change (struct blk *blk, struct place *p, unsigned kind)
{
  unsigned flags = 0;

  if (kind != WRITE_PART && kind != ZERO_PART)
    p->off = round_down (p->off, blk->cluster_size);
  p->len = in_cluster (blk, p->off, kind == WRITE_PART || kind == ZERO_PART
                       ? 700 : UINT64_MAX);
  if (p->len == 0)
    return -1;
  switch (kind) {
  case TRIM:
    p->byte = -1;
    return blk_trim (blk, p->len, p->off, 0);
  case ZERO_PART: case ZERO_CLUSTER: case UNMAP:
    p->byte = 0;
    return blk_zero (blk, p->len, p->off, kind == UNMAP ? BLK_MAY_UNMAP
                     : kind == ZERO_PART ? BLK_KEEP_ZERO : 0);
  case PACK:
    flags = blk->can & BLK_CAN_COMPRESS ? BLK_COMPRESS : 0;
  }
  p->byte = (int) (kind + 1);
  memset (buffer, p->byte, p->len);
  return blk_pwrite (blk, buffer, p->len, p->off, flags);
}

/* What an earlier change did in the same cluster counts no more. */
static void
forget_cluster (struct blk *blk, struct places *places, size_t nr,
                uint64_t off)
{
  for (size_t i = 0; i < nr; i++)
    if (places->ptr[i].off / blk->cluster_size == off / blk->cluster_size)
      places->ptr[i].byte = -1;
}

static void
write_places (struct blk *blk, struct places *places, unsigned first)
{
  for (size_t i = 0; i < places->nr; i++) {
    struct place *p = &places->ptr[i];

    forget_cluster (blk, places, i, p->off);
    if (change (blk, p, (unsigned) (first + i) % NR_KINDS) != 0)
      p->byte = -1;
    if (p->byte >= 0)
      expect (blk, p);
    if (i == places->nr / 2)
      blk_flush (blk);
  }
}

/* Grow by a little, write at the end, shrink by less. */
static void
resize (struct blk *blk, struct places *places)
{
  uint64_t size = blk_size (blk), step = blk->cluster_size;
  struct place p = { .off = size };

  if (places->nr == MAX_PLACES || blk_resize (blk, size + 2 * step) < 0)
    return;
  CLAIM (blk_size (blk) == size + 2 * step, "not as large as asked for");
  if (change (blk, &p, WRITE_PART) == 0 && p.byte >= 0) {
    forget_cluster (blk, places, places->nr, p.off);
    places->ptr[places->nr++] = p;
  }
  blk_resize (blk, size + step);
}

/* --- bitmaps */

/* Load what is of a reasonable size, and store it again. */
static void
handle_bitmaps (struct blk *blk)
{
  struct qcow2_bitmap_content content[MAX_BITMAPS];
  struct bitmap *bits[MAX_BITMAPS] = { NULL };
  struct qcow2_bitmaps bitmaps;
  size_t i, nr;

  if (!qcow2_can_hold_bitmaps (blk)
      || qcow2_bitmaps_read (blk, &bitmaps, NULL) < 0)
    return;
  nr = MIN (bitmaps.nr, MAX_BITMAPS);
  for (i = 0; i < nr; i++) {
    const struct qcow2_bitmap *bm = &bitmaps.ptr[i];

    if (!bm->unusable[0]
        && blk_size (blk) / bm->granularity / 8 <= MAX_BITMAP_BYTES
        && qcow2_bitmap_load (blk, bm, &bits[i], NULL) < 0)
      bits[i] = NULL;
    content[i] = (struct qcow2_bitmap_content) {
      .name = bm->name, .bits = bits[i],
      .is_auto = bm->flags & QCOW2_BITMAP_AUTO,
    };
  }
  if (!blk_is_read_only (blk) && qcow2_bitmaps_flag (blk, &bitmaps, NULL) == 0)
    qcow2_bitmaps_store (blk, content, nr, NULL);
  for (i = 0; i < nr; i++)
    bitmap_free (bits[i]);
  qcow2_bitmaps_free (&bitmaps);
}

/* --- checking */

struct checking {
  unsigned nr_asked;
  uint64_t nr_flags;            /* copied flags that are missing */
};

static bool
is_enough (void *opaque)
{
  struct checking *c = opaque;

  return ++c->nr_asked > MAX_WINDOWS * 1024;
}

static void
count_flags (void *opaque, bool is_leak, const char *msg)
{
  struct checking *c = opaque;

  c->nr_flags += strstr (msg, " lacks the copied flag, ") != NULL;
}

/* False if the check was not completed. */
static bool
check (struct files *f, enum qcow2_repair repair,
       struct qcow2_check_result *ret, uint64_t *ret_flags)
{
  struct checking c = { 0 };
  struct qcow2_check_options options = {
    .repair = repair, .window = 65536, .is_cancelled = is_enough,
    .report = count_flags, .opaque = &c,
  };
  struct error err = ERROR_INIT;

  if (blk_qcow2_check (lend (f->image, repair == QCOW2_REPAIR_NONE), &options,
                       ret, &err) == 0) {
    *ret_flags = c.nr_flags;
    return true;
  }
  CLAIM (err.errnum != 0 && err.msg[0], "a failure without a message");
  return false;
}

/* A cluster that two guest clusters share, which no program makes, loses one of
 * them by a write: that the other could have the copied flag then is no harm.
 * The flag on a cluster with other owners is: a write changes theirs.
 */
static bool
is_sound (struct files *f)
{
  struct qcow2_check_result result;
  uint64_t nr_flags;

  return check (f, QCOW2_REPAIR_NONE, &result, &nr_flags)
    && result.corruptions <= nr_flags;
}

/* False if it could not be mended. */
static bool
mend (struct files *f)
{
  struct qcow2_check_result mended, found;
  uint64_t nr_flags;

  if (!check (f, QCOW2_REPAIR_ALL, &mended, &nr_flags)
      || !check (f, QCOW2_REPAIR_NONE, &found, &nr_flags))
    return false;
  CLAIM (found.corruptions == mended.corruptions,
         "other corruptions than the repair has left");
  CLAIM (found.leaks == mended.leaks, "other leaks than the repair has left");
  return found.corruptions == 0;
}

/* --- the target */

static void
write_image (struct files *f, bool is_sound_before, bool is_append)
{
  struct places places = { .nr = 0 };
  struct blk *blk = open_image (f, false, is_append);
  int r;

  if (!blk)
    return;
  read_all (blk, &places);
  handle_bitmaps (blk);
  write_places (blk, &places, is_append);
  resize (blk, &places);
  r = blk_close (blk);
  if (!is_sound_before)
    return;
  CLAIM (is_sound (f), "a sound image was made unsound");
  blk = open_image (f, true, false);
  CLAIM (blk || r < 0, "the image cannot be opened any more");
  for (size_t i = 0; blk && r == 0 && i < places.nr; i++)
    if (places.ptr[i].byte >= 0)
      expect (blk, &places.ptr[i]);
  blk_close (blk);
}

static void
read_image (struct files *f)
{
  struct places places = { .nr = 0 };
  struct blk *blk = open_image (f, true, false);

  if (!blk)
    return;
  read_all (blk, &places);
  handle_bitmaps (blk);
  blk_close (blk);
}

/* --- mutation, of libFuzzer only */

/* The field at pos, or 0. */
static uint64_t
field (const uint8_t *data, size_t size, uint64_t pos)
{
  return size >= 8 && pos <= size - 8 ? load_be64 (data + pos) : 0;
}

/* Where a table is: the header's, an entry of L1 or of the refcount table's. */
static uint64_t
pick_table (const uint8_t *data, size_t size, unsigned random)
{
  static const uint64_t fields[] = { 40, 48, 64 };
  uint64_t table = field (data, size, fields[random % 3]);

  if (random & 4)
    table = field (data, size, table + 8 * ((random >> 3) & 3));
  return random & 32 ? 0 : table & UINT64_C (0x00fffffffffffe00);
}

/* Change one field of a table, or leave it to libFuzzer. */
size_t
LLVMFuzzerCustomMutator (uint8_t *data, size_t size, size_t max_size,
                         unsigned int seed)
{
  uint64_t pos = pick_table (data, size, seed) + 8 * ((seed >> 6) & 31);
  uint64_t other = 8 * ((seed >> 11) & 3), value;

  if (size < 512 || pos > size - 8 || (seed & (1u << 31)))
    return LLVMFuzzerMutate (data, size, max_size);
  value = load_be64 (data + pos);
  switch ((seed >> 13) & 7) {
  case 0: value = field (data, size, pos ^ (8 + other)); break;
  case 1: value = round_up (size, 512) - 512 * other; break;
  case 2: value = 0; break;
  case 3: value += UINT64_C (512) << (seed >> 16 & 15); break;
  case 4: value -= UINT64_C (512) << (seed >> 16 & 15); break;
  case 5: value ^= UINT64_C (1) << (63 - (seed >> 16 & 3)); break;
  default: value ^= UINT64_C (1) << (seed >> 16 & 63);
  }
  store_be64 (data + pos, value);
  return size;
}

/* --- all of it */

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct files f;
  bool was_sound;

  if (size > MAX_INPUT)
    return -1;
  files_open (&f, data, size);
  read_image (&f);
  was_sound = is_sound (&f);
  write_image (&f, was_sound, false);
  if (!was_sound) {
    files_close (&f);
    files_open (&f, data, size);
    was_sound = mend (&f);
    if (was_sound)
      write_image (&f, CLAIM_MENDED, false);
    was_sound = was_sound && CLAIM_MENDED;
  }
  if (was_sound)
    write_image (&f, true, true);
  files_close (&f);
  return 0;
}
