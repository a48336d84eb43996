/* SPDX-License-Identifier: BSD-3-Clause */
/* Power is lost while a qcow2 image of any kind is at work: at every change of
 * its files, with any of the changes that were not synced lost or torn, those
 * of an external data file independently of the image's.
 *
 * Claims, for each state that the files can be left in: a check finds no
 * corruption, though it may find leaks; the image opens; each sector holds what
 * was flushed or one of its contents since; the size is an old or the new one;
 * what it grows by then is zeroes; an internal snapshot holds all that it did;
 * and it can be worked with.  test-qcow2-fault
 * looks at plain images in the same way, with a check of its own.
 *
 * usage: test-qcow2-crash [DIRECTORY [SEED]]
 * DIRECTORY: a sample of the states is kept there, for qemu-img check; "" =
 * nowhere.
 */
#include "config.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "blk-mem.h"
#include "byteorder.h"
#include "log.h"
#include "qcow2-check.h"
#include "qcow2-image.h"
#include "qcow2.h"
#include "range.h"
#include "unit.h"

#define KIB 1024
#define MAX_SECTORS 1024
#define NR_VALUES 16            /* of a sector; 0 = zeroes */
#define CAPACITY (UINT64_C (4) << 20)
#define NR_STEPS 30
#define BACKING_VALUE 15
#define LATER_VALUE 14          /* written after the crash */

/* How many states of every how manyth moment: one thread is at work, which the
 * sanitizers make many times slower.
 */
#if defined __SANITIZE_THREAD__
enum { STATES = 1, STRIDE = 13 };
#elif defined __SANITIZE_ADDRESS__
enum { STATES = 1, STRIDE = 5 };
#else
enum { STATES = 3, STRIDE = 1 };
#endif
enum { KEEP_STRIDE = STATES * 40 / STRIDE };    /* for qemu-img */

/* A kind of image, and what is done with it. */
struct kind {
  uint32_t cluster_size;
  unsigned nr_sectors;
  unsigned refcount_bits;
  enum qcow2_compression compression;
  bool is_extended;
  bool is_external, is_raw;     /* data file */
  bool is_lazy;
  bool is_backed;
  bool is_compressed;           /* some writes are */
  bool is_resized;
  bool is_appended;             /* one ascending pass, and resumed */
  bool is_shared;               /* with an internal snapshot */
};

static const struct kind *kind;

enum { IMAGE, DATA, NR_FILES };

static struct file files[NR_FILES];
static struct blk *node;
static const char *directory;
static unsigned nr_states;
static uint8_t patterns[MAX_SECTORS][NR_VALUES][512];

static uint64_t random_state, seed;

static uint64_t
rnd (uint64_t n)
{
  return (unit_random (&random_state) >> 11) % n;
}

/* --- what sectors hold: their place shows in it, and half of it can be
 * compressed
 */

static void
make_patterns (void)
{
  for (uint32_t i = 0; i < MAX_SECTORS; i++)
    for (uint32_t v = 1; v < NR_VALUES; v++) {
      uint32_t x = i * 256 + v;

      memset (patterns[i][v], (int) v, 512);
      for (unsigned k = 0; k < 256; k++) {
        x = x * 1664525 + 1013904223;
        patterns[i][v][k] = (uint8_t) (x >> 24);
      }
    }
}

/* Which of the values may, a set, sector i at p has. */
static unsigned
value_of (const uint8_t *p, unsigned i, uint32_t may, const char *what)
{
  unsigned v = p[511];

  if (v >= NR_VALUES || memcmp (p, patterns[i][v], 512) != 0)
    fail_msg ("%s: sector %u is mixed or of another place", what, i);
  if (!(may & 1u << v))
    fail_msg ("%s: sector %u is %u, allowed 0x%x", what, i, v, may);
  return v;
}

/* Sets of values, a bit each: what each sector may read as, and what it may be
 * after a crash.  Beyond the size both are zero.
 */
struct model {
  unsigned size;                /* sectors */
  bool is_flushed;              /* a flush has succeeded */
  unsigned piece, stable_piece; /* is_appended: the next; the first that is
                                   not flushed */
  uint32_t now[MAX_SECTORS], stable[MAX_SECTORS];
};

static struct model model;

static struct blk *
open_backing (void)
{
  unsigned nr = kind->nr_sectors / 2;
  struct blk *blk;

  assert_int_equal (blk_mem_new (nr * 512, &blk), 0);
  for (unsigned i = 0; i < nr; i += 3)
    assert_int_equal (blk_pwrite (blk, patterns[i][BACKING_VALUE], 512, i * 512,
                                  0), 0);
  return blk;
}

/* Sectors of a new image: so few that the L1 table has to grow. */
static unsigned
first_size (void)
{
  return kind->is_resized ? kind->nr_sectors / 4 : kind->nr_sectors;
}

enum how { NEW, AGAIN, APPEND };

static void
open_image (enum how how)
{
  struct blk *backing = kind->is_backed ? open_backing () : NULL;
  struct blk *data = kind->is_external ? file_node (&files[DATA]) : NULL;
  struct qcow2_create_options create = {
    .size = first_size () * 512, .cluster_size = kind->cluster_size,
    .refcount_bits = kind->refcount_bits, .compression = kind->compression,
    .has_lazy_refcounts = kind->is_lazy, .is_extended = kind->is_extended,
    .data_file = data ? "data" : NULL, .data = data,
    .is_data_file_raw = kind->is_raw, .backing = backing,
    .backing_file = backing ? "backing" : NULL, .backing_format = "raw",
  };
  struct qcow2_open_options options = {
    .is_append = how == APPEND, .backing = backing, .data = data,
  };
  struct error err = ERROR_INIT;
  struct blk *file = file_node (&files[IMAGE]);
  int r;

  r = how == NEW ? blk_qcow2_create (file, &create, &node, &err)
    : blk_qcow2_open (file, &options, &node, &err);
  if (r < 0)
    fail_msg ("%s", err.msg);
}

static void
new_model (void)
{
  memset (&model, 0, sizeof model);
  model.size = first_size ();
  for (unsigned i = 0; i < MAX_SECTORS; i++)
    model.now[i] = kind->is_backed && i % 3 == 0
      && i < MIN (model.size, kind->nr_sectors / 2) ? 1u << BACKING_VALUE : 1;
  memcpy (model.stable, model.now, sizeof model.now);
}

/* --- changes */

enum op { WRITE, PACK, ZERO, TRIM };

/* Of the nr sectors from first on, at once. */
static void
change (enum op op, unsigned first, unsigned nr, unsigned value)
{
  static uint8_t buf[MAX_SECTORS * 512];
  unsigned flags = 0;
  int r;

  value = op == ZERO || op == TRIM ? 0 : value;
  for (unsigned i = 0; i < nr; i++) {
    memcpy (buf + i * 512, patterns[first + i][value], 512);
    model.stable[first + i] |= 1u << value;
    /* Part of a trim may be ignored. */
    model.now[first + i] = 1u << value | (op == TRIM ? model.now[first + i]
                                          : 0);
  }
  switch (op) {
  case ZERO:
    flags = (unsigned) rnd (2) * BLK_MAY_UNMAP
      | (unsigned) rnd (2) * BLK_KEEP_ZERO;
    r = blk_zero (node, nr * 512, first * 512, flags);
    break;
  case TRIM:
    r = blk_trim (node, nr * 512, first * 512, 0);
    break;
  default:
    r = blk_pwrite (node, buf, nr * 512, first * 512,
                    op == PACK ? BLK_COMPRESS : 0);
  }
  assert_int_equal (r, 0);
}

static void
flush (void)
{
  assert_int_equal (blk_flush (node), 0);
  memcpy (model.stable, model.now, sizeof model.now);
  model.stable_piece = model.piece;
  model.is_flushed = true;
}

static void
resize (unsigned size)
{
  assert_int_equal (blk_resize (node, size * 512), 0);
  for (unsigned i = MIN (size, model.size); i < MAX_SECTORS; i++)
    model.now[i] = model.stable[i] = 1;
  model.size = size;
}

/* Whole clusters, few. */
static void
pack (unsigned value)
{
  unsigned per_cluster = kind->cluster_size / 512;
  unsigned nr = model.size / per_cluster, first;

  if (nr == 0)
    return;
  first = (unsigned) rnd (nr);
  nr = (unsigned) (1 + rnd (MIN (4, nr - first)));
  change (PACK, first * per_cluster, nr * per_cluster, value);
}

/* One change of any kind. */
static void
random_step (unsigned i)
{
  unsigned value = 1 + i % 13, first, nr;
  unsigned what = (unsigned) rnd (kind->is_resized ? 9 : 7);

  first = (unsigned) rnd (model.size);
  nr = (unsigned) (1 + rnd (MIN (70, model.size - first)));
  switch (what) {
  case 0: case 1:
    change (WRITE, first, nr, value);
    break;
  case 2: case 3:
    if (kind->is_compressed)
      pack (value);
    else
      change (WRITE, first, nr, value);
    break;
  case 4:
    change (ZERO, first, nr, 0);
    break;
  case 5:
    change (TRIM, first, nr, 0);
    break;
  case 6:
    flush ();
    break;
  default:
    resize ((unsigned) (1 + rnd (kind->nr_sectors - 1)));
  }
}

/* --- one ascending pass */

enum { PIECE = 3 };             /* clusters */

static void
append_piece (unsigned value)
{
  unsigned len = PIECE * kind->cluster_size / 512;
  unsigned first = model.piece++ * len;
  unsigned what = value % 5;

  if (first + len > model.size)
    return;
  /* As the client: how long packed clusters are shows only later. */
  if (!kind->is_compressed && what != 0)
    assert_int_equal (qcow2_reserve (node, len * 512, first * 512), 0);
  if (what == 0)
    change (ZERO, first, len, 0);
  else if (what == 1)           /* of the rest nothing comes */
    change (kind->is_compressed ? PACK : WRITE, first, len / PIECE, value);
  else
    change (kind->is_compressed ? PACK : WRITE, first, len, value);
}

static void
step (unsigned i)
{
  if (!kind->is_appended)
    random_step (i);
  else if (i % 4 == 3)
    flush ();
  else
    append_piece (1 + i % 13);
}

/* --- looking at what a crash has left */

/* What the external data file holds by itself. */
static void
check_raw (const uint32_t *may)
{
  const struct file *f = &files[DATA];

  if (!kind->is_raw)
    return;
  assert_true (f->size >= model.size * 512);
  for (unsigned i = 0; i < model.size; i++)
    value_of (f->bytes + i * 512, i, may[i], "data file");
}

/* The disk when the snapshot was taken. */
static struct {
  uint8_t data[MAX_SECTORS * 512];
  unsigned size;                /* sectors */
} snapshot;

static void
take_snapshot (void)
{
  open_image (AGAIN);
  snapshot.size = model.size;
  assert_int_equal (blk_pread (node, snapshot.data, model.size * 512, 0, 0),
                    0);
  assert_int_equal (blk_close (node), 0);
  image_take_snapshot (&files[IMAGE]);
}

static void
check_snapshot (void)
{
  static const uint8_t zeroes[4 * KIB];
  const uint8_t *p;
  uint64_t n;

  if (!kind->is_shared)
    return;
  for (uint64_t off = 0; off < snapshot.size * 512; off += n) {
    n = MIN (kind->cluster_size, snapshot.size * 512 - off);
    p = image_snapshot_data (&files[IMAGE], off / kind->cluster_size);
    if (memcmp (p ? p : zeroes, snapshot.data + off, n) != 0)
      fail_msg ("the snapshot has changed at %d", (int) off);
  }
}

/* From here on each sector has one value. */
static void
check_sectors (const uint32_t *may)
{
  static uint8_t buf[MAX_SECTORS * 512];

  assert_int_equal (blk_size (node), model.size * 512);
  assert_int_equal (blk_pread (node, buf, model.size * 512, 0, 0), 0);
  for (unsigned i = 0; i < model.size; i++)
    model.now[i] = 1u << value_of (buf + i * 512, i, may[i], "image");
}

static void
note_fault (void *opaque, bool is_leak, const char *msg)
{
  char *message = opaque;

  if (!is_leak && message[0] == '\0')
    snprintf (message, 256, "%s", msg);
}

static bool
is_marked_dirty (void)
{
  return load_be64 (files[IMAGE].bytes + 72) & QCOW2_INCOMPAT_DIRTY;
}

static void
check_image (enum qcow2_repair repair)
{
  char message[256] = "";
  const struct qcow2_check_options options = {
    .repair = repair, .report = note_fault, .opaque = message, .window = 4096,
  };
  struct qcow2_check_result result;
  struct error err = ERROR_INIT;

  if (blk_qcow2_check (file_node (&files[IMAGE]), &options, &result, &err) < 0)
    fail_msg ("%s", err.msg);
  if (result.corruptions > 0)
    fail_msg ("%s", message);
}

static void
write_file (const char *folder, const char *name, const void *data,
            uint64_t len)
{
  char path[4096];
  FILE *f;

  snprintf (path, sizeof path, "%s/%s", folder, name);
  f = fopen (path, "w");
  assert_non_null (f);
  assert_int_equal (fwrite (data, 1, len, f), len);
  assert_int_equal (fclose (f), 0);
}

/* Every now and then, for qemu-img. */
static void
keep_state (void)
{
  char folder[2048];

  if (nr_states++ % KEEP_STRIDE != 0 || !directory)
    return;
  snprintf (folder, sizeof folder, "%s/%u%s", directory, nr_states,
            is_marked_dirty () ? "-dirty" : "");
  assert_int_equal (mkdir (folder, 0777), 0);
  write_file (folder, "image", files[IMAGE].bytes, files[IMAGE].size);
  write_file (folder, "data", files[DATA].bytes, files[DATA].size);
  write_file (folder, "backing", "", 0);
}

/* Work with the image that is open. */
static void
go_on (void)
{
  unsigned half;

  if (kind->is_appended) {
    while ((model.piece + 1) * PIECE * kind->cluster_size <= model.size * 512)
      append_piece (LATER_VALUE);
    return;
  }
  if (kind->is_resized && model.size < kind->nr_sectors)
    resize (kind->nr_sectors);
  half = model.size / 2;
  change (WRITE, 0, half, LATER_VALUE);
  if (kind->is_compressed)
    pack (LATER_VALUE);
  if (half > 9)
    change (ZERO, half - 9, 9, 0);
}

/* The files are an image whose sectors may be so.  Those of a raw data file may
 * be so by themselves, until they are written again.
 */
static void
check_reopened (const uint32_t *may)
{
  static uint32_t raw[MAX_SECTORS];

  memcpy (raw, may, sizeof raw);
  check_raw (raw);
  check_snapshot ();
  if (!is_marked_dirty ())
    check_image (kind->is_appended ? QCOW2_REPAIR_LEAKS : QCOW2_REPAIR_NONE);
  open_image (kind->is_appended ? APPEND : AGAIN);
  check_sectors (may);
  memset (model.stable, 0, sizeof model.stable);
  go_on ();
  /* What was written now, and not what could be there. */
  for (unsigned i = 0; i < MAX_SECTORS; i++)
    raw[i] = model.stable[i] ? model.now[i] : raw[i];
  assert_int_equal (blk_close (node), 0);
  assert_false (is_marked_dirty ());
  check_raw (raw);
  check_snapshot ();
  check_image (QCOW2_REPAIR_NONE);
  open_image (AGAIN);
  check_sectors (model.now);
  assert_int_equal (blk_close (node), 0);
}

/* --- a run, recorded */

/* What the image may hold when power is lost during a step. */
struct moment {
  uint64_t end;                 /* changes of the files by its end */
  bool is_flushed;              /* a flush has succeeded before it */
  unsigned before, after;       /* sizes */
  unsigned piece;               /* to be resumed from */
  uint32_t stable[MAX_SECTORS];
};

static struct moment moments[NR_STEPS + 1];

static void
record_step (struct moment *m, unsigned i)
{
  static uint32_t before[MAX_SECTORS];

  memcpy (before, model.stable, sizeof before);
  m->before = model.size;
  m->piece = model.stable_piece;
  m->is_flushed = model.is_flushed;
  if (i < NR_STEPS)
    step (i);
  else
    assert_int_equal (blk_close (node), 0);
  m->after = model.size;
  m->end = files[IMAGE].nr_changes + files[DATA].nr_changes;
  memcpy (m->stable, before, sizeof before);
  /* Until a flush has returned the former set is what counts; as is what a
   * shrink takes away.
   */
  if (m->before == m->after)
    for (unsigned k = 0; k < MAX_SECTORS; k++)
      m->stable[k] |= model.stable[k];
}

static void
copy_file (struct file *to, const struct file *from)
{
  memcpy (to->bytes, from->bytes, from->size);
  if (to->size > from->size)
    memset (to->bytes + from->size, 0, to->size - from->size);
  to->size = from->size;
}

/* Run all steps with the changes of the files recorded, from base on. */
static void
record (bool is_new, struct file *base)
{
  for (unsigned i = 0; i < NR_FILES; i++)
    file_init (&files[i], CAPACITY);
  new_model ();
  open_image (NEW);
  if (!is_new) {
    for (unsigned i = 0; i < 20; i++)
      random_step (i);
    flush ();
    assert_int_equal (blk_close (node), 0);
    if (kind->is_shared)
      take_snapshot ();
    open_image (AGAIN);
  }
  for (unsigned i = 0; i < NR_FILES; i++) {
    file_init (&base[i], CAPACITY);
    copy_file (&base[i], &files[i]);
    files[i].is_recording = true;
  }
  for (unsigned i = 0; i <= NR_STEPS; i++)
    record_step (&moments[i], i);
}

/* --- power is lost */

/* Only some sectors of a change reached the disk. */
static void
apply_torn (const struct change *c, struct file *f)
{
  struct change part = *c;

  for (uint64_t i = 0, n; i < c->len; i += n) {
    n = MIN (512 - (c->off + i) % 512, c->len - i);
    part.off = c->off + i;
    part.len = n;
    part.data = c->data ? c->data + i : NULL;
    if (rnd (2)) {
      f->size = MAX (f->size, part.off + n);
      change_apply (&part, f->bytes, &f->size);
    }
  }
}

/* Any of the changes [first, end) is lost, whole or torn.  Sizes change in
 * order; what is written behind the end moves it.
 */
static void
lose_some (struct file *f, const struct change *changes, size_t first,
           size_t end)
{
  unsigned odds = (unsigned) rnd (4);
  bool is_cut = false;

  for (size_t i = first; i < end; i++) {
    const struct change *c = &changes[i];
    bool is_whole = odds == 3 || rnd (3) < odds;

    if (c->what == CHANGE_RESIZE) {
      is_cut |= !is_whole;
      if (!is_cut)
        change_apply (c, f->bytes, &f->size);
    } else if (c->what != CHANGE_FLUSH && is_whole) {
      f->size = MAX (f->size, c->off + c->len);
      change_apply (c, f->bytes, &f->size);
    } else if (c->what != CHANGE_FLUSH && rnd (2))
      apply_torn (c, f);
  }
}

static void
check_crashed (const struct moment *m)
{
  const struct file *f = &files[IMAGE];
  uint64_t size;

  if (f->size < 104 || load_be32 (f->bytes) != QCOW2_MAGIC) {
    assert_false (m->is_flushed);
    return;
  }
  size = load_be64 (f->bytes + 24) / 512;
  assert_true (size == m->before || size == m->after);
  model.size = (unsigned) size;
  model.piece = m->piece;
  keep_state ();
  check_reopened (m->stable);
}

/* A run that is played again: what is durable of each file, and the changes
 * that are not yet, [first, next) of the file's.
 */
struct replay {
  struct file base[NR_FILES], recorded[NR_FILES];
  size_t first[NR_FILES], next[NR_FILES];
};

/* One more change.  False if there is none. */
static bool
advance (struct replay *r)
{
  const struct change *c, *earliest = NULL;
  unsigned which = 0;

  for (unsigned i = 0; i < NR_FILES; i++) {
    c = r->next[i] < r->recorded[i].nr_changes
      ? &r->recorded[i].changes[r->next[i]] : NULL;
    if (c && (!earliest || c->number < earliest->number)) {
      earliest = c;
      which = i;
    }
  }
  if (!earliest)
    return false;
  r->next[which]++;
  if (earliest->what == CHANGE_FLUSH)
    for (size_t *i = &r->first[which]; *i < r->next[which]; ++*i)
      change_apply (&r->recorded[which].changes[*i], r->base[which].bytes,
                    &r->base[which].size);
  return true;
}

static void
lose_power (bool is_new)
{
  const struct moment *m = moments;
  struct replay r = { .first = { 0 } };
  uint64_t n = 0;

  record (is_new, r.base);
  for (unsigned i = 0; i < NR_FILES; i++) {
    r.recorded[i] = files[i];
    file_init (&files[i], CAPACITY);
  }
  do {
    while (m < &moments[NR_STEPS] && m->end < n)
      m++;
    for (unsigned k = 0; k < STATES && n % STRIDE == 0; k++) {
      for (unsigned i = 0; i < NR_FILES; i++) {
        copy_file (&files[i], &r.base[i]);
        lose_some (&files[i], r.recorded[i].changes, r.first[i], r.next[i]);
      }
      check_crashed (m);
    }
    n++;
  } while (advance (&r));
  for (unsigned i = 0; i < NR_FILES; i++) {
    file_destroy (&r.recorded[i]);
    file_destroy (&r.base[i]);
    file_destroy (&files[i]);
  }
}

/* --- the kinds */

static const struct kind extended = {
  .cluster_size = 16 * KIB, .nr_sectors = 500, .is_extended = true,
};
static const struct kind extended_backed = {
  .cluster_size = 16 * KIB, .nr_sectors = 500, .is_extended = true,
  .is_backed = true, .is_lazy = true,
};
static const struct kind data_file = {
  .cluster_size = 4 * KIB, .nr_sectors = 500, .is_external = true,
};
static const struct kind data_file_raw = {
  .cluster_size = 4 * KIB, .nr_sectors = 500, .is_external = true,
  .is_raw = true,
};
static const struct kind data_file_extended = {
  .cluster_size = 16 * KIB, .nr_sectors = 500, .is_external = true,
  .is_extended = true, .is_backed = true,
};
static const struct kind compressed = {
  .cluster_size = 4 * KIB, .nr_sectors = 500, .is_compressed = true,
};
static const struct kind compressed_narrow = {
  .cluster_size = 2 * KIB, .nr_sectors = 300, .is_compressed = true,
  .refcount_bits = 2, .compression = QCOW2_COMPRESSION_ZSTD, .is_lazy = true,
};
static const struct kind resized = {
  .cluster_size = 512, .nr_sectors = 700, .is_resized = true,
};
static const struct kind resized_backed = {
  .cluster_size = 2 * KIB, .nr_sectors = 700, .is_resized = true,
  .is_backed = true, .is_lazy = true, .is_compressed = true,
};
static const struct kind resized_raw = {
  .cluster_size = 4 * KIB, .nr_sectors = 700, .is_resized = true,
  .is_external = true, .is_raw = true,
};
static const struct kind appended = {
  .cluster_size = 4 * KIB, .nr_sectors = 600, .is_appended = true,
};
static const struct kind appended_compressed = {
  .cluster_size = 4 * KIB, .nr_sectors = 600, .is_appended = true,
  .is_compressed = true,
};
static const struct kind appended_small = {
  .cluster_size = 512, .nr_sectors = 72, .is_appended = true,
  .refcount_bits = 64,
};

static const struct kind shared = {
  .cluster_size = 4 * KIB, .nr_sectors = 500, .is_shared = true,
};
static const struct kind shared_narrow = {
  .cluster_size = 2 * KIB, .nr_sectors = 500, .is_shared = true,
  .refcount_bits = 2, .is_lazy = true,
};
static const struct kind shared_resized = {
  .cluster_size = 2 * KIB, .nr_sectors = 700, .is_shared = true,
  .is_resized = true,
};

static void
test_kind (void **state)
{
  kind = *state;
  random_state = 88172645463325252 + seed * 7919;
  if (!kind->is_shared)
    lose_power (true);
  if (!kind->is_appended)
    lose_power (false);
}

#define KIND(k) { .name = #k, .test_func = test_kind, \
                  .initial_state = (void *) &k }

int
main (int argc, char *argv[])
{
  const struct CMUnitTest tests[] = {
    KIND (extended), KIND (extended_backed), KIND (data_file),
    KIND (data_file_raw), KIND (data_file_extended), KIND (compressed),
    KIND (compressed_narrow), KIND (resized), KIND (resized_backed),
    KIND (resized_raw), KIND (appended), KIND (appended_compressed),
    KIND (appended_small), KIND (shared), KIND (shared_narrow),
    KIND (shared_resized),
  };

  directory = argc > 1 && *argv[1] ? argv[1] : NULL;
  seed = argc > 2 ? strtoul (argv[2], NULL, 0) : 0;
  log_set_handler (unit_ignore_log);
  make_patterns ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
