/* SPDX-License-Identifier: BSD-3-Clause */
/* Bitmaps in qcow2 images: stored and loaded against a model, the image counted
 * after every step; the in-use flags; damaged extensions; every write that
 * fails or is the last one before a crash.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "blk-debug.h"
#include "blk-qcow2.h"
#include "byteorder.h"
#include "qcow2-bitmap.h"
#include "qcow2-image.h"
#include "qcow2.h"
#include "range.h"
#include "unit.h"

#define CAPACITY (UINT64_C (64) << 20)
#define SMALL (UINT64_C (18) << 20)
#define EXT UINT32_C (0x23852875)

static struct error err;

static uint64_t
rnd (uint64_t n)
{
  static uint64_t state = UINT64_C (88172645463325252);

  return unit_random (&state) % n;
}

static void
must (int r)
{
  if (r < 0)
    fail_msg ("%d: %s", r, err.msg);
}

static struct blk *
open_node (struct blk *file, bool is_read_only)
{
  struct qcow2_open_options options = { .is_read_only = is_read_only };
  struct blk *blk;

  must (blk_qcow2_open (file, &options, &blk, &err));
  return blk;
}

static struct blk *
open_file (struct file *f)
{
  return open_node (file_node (f), false);
}

/* An image of that size in f; backing: in its header. */
static void
create (struct file *f, uint64_t size, uint32_t cluster, const char *backing)
{
  struct qcow2_create_options options = {
    .size = size, .cluster_size = cluster, .backing_file = backing,
    .backing_format = backing ? "raw" : NULL,
  };
  struct blk *blk;

  file_init (f, size > UINT64_C (1) << 30 ? CAPACITY : SMALL);
  must (blk_qcow2_create (file_node (f), &options, &blk, &err));
  must (blk_close (blk));
  if (cluster == 512 && !backing)
    /* The names of the features leave no room. */
    memset (f->bytes + load_be32 (f->bytes + 100), 0, 8);
}

static void
assert_sound (const struct file *f)
{
  struct image_report report;

  image_check (f->bytes, f->size, &report);
  if (report.error)
    fail_msg ("%s (%llu)", report.error, (unsigned long long) report.where);
  assert_int_equal (report.nr_leaks, 0);
}

static bool
is_equal (const struct bitmap *a, const struct bitmap *b)
{
  uint64_t size = bitmap_size (a), pos = 0;
  struct range x, y;
  bool has_x, has_y;

  if (size != bitmap_size (b)
      || bitmap_granularity (a) != bitmap_granularity (b))
    return false;
  while (pos < size) {
    has_x = bitmap_next_dirty (a, pos, size - pos, &x);
    has_y = bitmap_next_dirty (b, pos, size - pos, &y);
    if (has_x != has_y)
      return false;
    if (!has_x)
      return true;
    if (x.off != y.off || x.len != y.len)
      return false;
    pos = x.off + x.len;
  }
  return true;
}

/* Random bits: whole clusters of ones and of zeroes among them. */
static struct bitmap *
random_bits (uint64_t size, uint64_t granularity)
{
  struct bitmap *b;
  uint64_t off, max, n = rnd (20);

  assert_int_equal (bitmap_new (size, granularity, &b), 0);
  for (uint64_t i = 0; i < n; i++) {
    off = rnd (size);
    max = rnd (3) ? 4096 : size;
    bitmap_set (b, off, 1 + rnd (MIN (size - off, max)));
  }
  if (rnd (8) == 0)
    bitmap_set (b, 0, size);
  return b;
}

#define MAX_BITMAPS 5

/* Store random bitmaps, load them again, count the image, several times. */
static void
check_rounds (uint64_t size, uint32_t cluster, uint64_t granularity)
{
  struct qcow2_bitmap_content content[MAX_BITMAPS];
  struct bitmap *bits[MAX_BITMAPS], *loaded;
  struct qcow2_bitmaps stored;
  char names[MAX_BITMAPS][300];
  struct file f;
  struct blk *blk;
  size_t nr;

  create (&f, size, cluster, NULL);
  for (int round = 0; round < 6; round++) {
    nr = round == 3 ? 0 : 1 + rnd (MAX_BITMAPS);
    for (size_t i = 0; i < nr; i++) {
      snprintf (names[i], sizeof names[i], "b%zu%.*s", i, (int) rnd (280),
                "a name that is long: ---------------------------------------"
                "------------------------------------------------------------"
                "------------------------------------------------------------"
                "------------------------------------------------------------");
      bits[i] = random_bits (size, granularity << rnd (4));
      content[i] = (struct qcow2_bitmap_content) {
        .name = names[i], .is_auto = rnd (2), .bits = bits[i],
      };
    }
    blk = open_file (&f);
    must (qcow2_bitmaps_store (blk, content, nr, &err));
    must (blk_close (blk));
    assert_sound (&f);

    blk = open_node (file_node (&f), true);
    must (qcow2_bitmaps_read (blk, &stored, &err));
    assert_int_equal (stored.nr, nr);
    for (size_t i = 0; i < nr; i++) {
      assert_string_equal (stored.ptr[i].name, names[i]);
      assert_int_equal (stored.ptr[i].flags, content[i].is_auto ? 2 : 0);
      must (qcow2_bitmap_load (blk, &stored.ptr[i], &loaded, &err));
      assert_true (is_equal (bits[i], loaded));
      bitmap_free (loaded);
      bitmap_free (bits[i]);
    }
    qcow2_bitmaps_free (&stored);
    must (blk_close (blk));
  }
  file_destroy (&f);
}

static void
test_rounds (void **state)
{
  check_rounds (UINT64_C (1) << 20, 512, 512);
  check_rounds (UINT64_C (7) << 20, 1024, 4096);
  check_rounds ((UINT64_C (16) << 20) + 512, 512, 512);
  check_rounds (UINT64_C (3) << 30, 65536, 65536);
  check_rounds (UINT64_C (1) << 40, 4096, 65536);
  check_rounds (512, 65536, 65536);
}

static void
store_one (struct blk *blk, const char *name, uint64_t off, uint64_t len)
{
  struct qcow2_bitmap_content c = { .name = name, .is_auto = true };
  struct bitmap *b;

  assert_int_equal (bitmap_new (blk_size (blk), 65536, &b), 0);
  bitmap_set (b, off, len);
  c.bits = b;
  must (qcow2_bitmaps_store (blk, &c, 1, &err));
  bitmap_free (b);
}

/* The name of the backing file makes room for the extension. */
static void
test_backing_name (void **state)
{
  struct qcow2_open_options options = { .ignore_backing = true };
  struct qcow2_info info;
  struct file f;
  struct blk *blk;
  char name[200];

  for (size_t len = 1; len < 180; len += 13) {
    memset (name, 'n', len);
    name[len] = '\0';
    create (&f, 1 << 20, 1024, name);
    must (blk_qcow2_open (file_node (&f), &options, &blk, &err));
    store_one (blk, "b", 0, 65536);
    must (blk_close (blk));
    assert_sound (&f);
    must (blk_qcow2_open (file_node (&f), &options, &blk, &err));
    blk_qcow2_info (blk, &info);
    assert_string_equal (info.backing_file, name);
    assert_string_equal (info.backing_format, "raw");
    must (qcow2_bitmaps_store (blk, NULL, 0, &err));
    must (blk_close (blk));
    assert_sound (&f);
    file_destroy (&f);
  }
}

static void
test_no_room (void **state)
{
  struct qcow2_bitmap_content c = { .name = "b", .is_auto = true };
  struct qcow2_open_options options = { .ignore_backing = true };
  struct image_report report;
  struct file f;
  struct blk *blk;
  char name[372];

  memset (name, 'n', sizeof name - 1);
  name[sizeof name - 1] = '\0';
  create (&f, 1 << 20, 512, name);
  must (blk_qcow2_open (file_node (&f), &options, &blk, &err));
  must (bitmap_new (1 << 20, 65536, (struct bitmap **) &c.bits));
  assert_int_equal (qcow2_bitmaps_store (blk, &c, 1, &err), -ENOSPC);
  assert_non_null (strstr (err.msg, "no room"));
  bitmap_free ((struct bitmap *) c.bits);
  must (blk_close (blk));
  image_check (f.bytes, f.size, &report);
  assert_null (report.error);
  file_destroy (&f);
}

/* Flags of the bitmap at index i, 0xff if there is none. */
static unsigned
flags_of (struct file *f, size_t i)
{
  struct blk *blk = open_node (file_node (f), true);
  struct qcow2_bitmaps stored;
  unsigned flags;

  must (qcow2_bitmaps_read (blk, &stored, &err));
  flags = i < stored.nr ? stored.ptr[i].flags : 0xff;
  qcow2_bitmaps_free (&stored);
  must (blk_close (blk));
  return flags;
}

/* Who opens an image, and does not know that it has bitmaps, and writes:
 * those that record are in use before, and the others stay as they are.
 */
static void
test_unmaintained (void **state)
{
  struct qcow2_bitmap_content c[2] = {
    { .name = "auto", .is_auto = true }, { .name = "disabled" },
  };
  struct bitmap *bits;
  struct file f;
  struct blk *blk;
  char byte = 1;

  create (&f, 1 << 20, 4096, NULL);
  blk = open_file (&f);
  assert_int_equal (bitmap_new (1 << 20, 65536, &bits), 0);
  c[0].bits = c[1].bits = bits;
  must (qcow2_bitmaps_store (blk, c, 2, &err));
  bitmap_free (bits);
  must (blk_close (blk));

  blk = open_file (&f);
  must (blk_flush (blk));
  must (blk_close (blk));
  assert_int_equal (flags_of (&f, 0), QCOW2_BITMAP_AUTO);
  blk = open_file (&f);
  must (blk_pwrite (blk, &byte, 1, 0, 0));
  must (blk_close (blk));
  assert_int_equal (flags_of (&f, 0), QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
  assert_int_equal (flags_of (&f, 1), 0);
  assert_sound (&f);
  file_destroy (&f);
}

/* While they are flagged they stay so; storing none removes them. */
static void
test_flag (void **state)
{
  struct qcow2_bitmap_content keep = { .name = "b" };
  struct qcow2_bitmaps stored;
  struct file f;
  struct blk *blk;
  char byte = 1;

  create (&f, 1 << 20, 4096, NULL);
  blk = open_file (&f);
  store_one (blk, "b", 0, 65536);
  must (qcow2_bitmaps_read (blk, &stored, &err));
  must (qcow2_bitmaps_flag (blk, &stored, &err));
  qcow2_bitmaps_free (&stored);
  must (blk_pwrite (blk, &byte, 1, 0, 0));
  must (blk_close (blk));
  assert_int_equal (flags_of (&f, 0), QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
  assert_sound (&f);

  /* What cannot be trusted is kept as it is. */
  blk = open_file (&f);
  must (qcow2_bitmaps_store (blk, &keep, 1, &err));
  must (blk_close (blk));
  assert_int_equal (flags_of (&f, 0), QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
  assert_sound (&f);
  blk = open_file (&f);
  must (qcow2_bitmaps_store (blk, NULL, 0, &err));
  must (blk_close (blk));
  assert_int_equal (flags_of (&f, 0), 0xff);
  assert_sound (&f);
  file_destroy (&f);
}

/* --- damage */

/* Where the extension's data is. */
static uint8_t *
extension (struct file *f)
{
  uint8_t *p = f->bytes + load_be32 (f->bytes + 100);

  while (load_be32 (p) != EXT)
    p += 8 + round_up (load_be32 (p + 4), 8);
  return p + 8;
}

static uint8_t *
directory (struct file *f)
{
  return f->bytes + load_be64 (extension (f) + 16);
}

static void nr_zero (struct file *f) { store_be32 (extension (f), 0); }
static void nr_huge (struct file *f) { store_be32 (extension (f), 65536); }
static void nr_more (struct file *f) { store_be32 (extension (f), 3); }
static void nr_less (struct file *f) { store_be32 (extension (f), 1); }
static void reserved (struct file *f) { store_be32 (extension (f) + 4, 1); }
static void ext_len (struct file *f) { store_be32 (extension (f) - 4, 16); }
static void dir_small (struct file *f) { store_be64 (extension (f) + 8, 16); }
static void
dir_huge (struct file *f)
{
  store_be64 (extension (f) + 8, UINT64_MAX - 7);
}
static void
dir_unaligned (struct file *f)
{
  store_be64 (extension (f) + 16, load_be64 (extension (f) + 16) + 8);
}
static void dir_zero (struct file *f) { store_be64 (extension (f) + 16, 0); }
static void
dir_beyond (struct file *f)
{
  store_be64 (extension (f) + 16, UINT64_C (1) << 40);
}
static void
dir_over_l1 (struct file *f)
{
  store_be64 (extension (f) + 16, load_be64 (f->bytes + 40));
}
static void name_none (struct file *f) { store_be16 (directory (f) + 18, 0); }
static void
name_long (struct file *f)
{
  store_be16 (directory (f) + 18, 1024);
}
static void name_nul (struct file *f) { directory (f)[24] = 0; }
static void name_same (struct file *f) { directory (f)[32 + 24] = 'a'; }
static void
extra_huge (struct file *f)
{
  store_be32 (directory (f) + 20, UINT32_MAX);
}

static void type_0 (struct file *f) { directory (f)[16] = 0; }
static void flag_3 (struct file *f) { store_be32 (directory (f) + 12, 8); }
static void gran_8 (struct file *f) { directory (f)[17] = 8; }
static void gran_32 (struct file *f) { directory (f)[17] = 32; }
static void gran_255 (struct file *f) { directory (f)[17] = 255; }
static void table_len (struct file *f) { store_be32 (directory (f) + 8, 2); }
static void
table_beyond (struct file *f)
{
  store_be64 (directory (f), CAPACITY * 2);
}
static void table_zero (struct file *f) { store_be64 (directory (f), 0); }
static void
table_unaligned (struct file *f)
{
  store_be64 (directory (f), load_be64 (directory (f)) + 512);
}
static uint8_t *
table (struct file *f)
{
  return f->bytes + load_be64 (directory (f));
}
static void entry_2 (struct file *f) { store_be64 (table (f), 2); }
static void
entry_beyond (struct file *f)
{
  store_be64 (table (f), CAPACITY * 2);
}
static void
entry_header (struct file *f)
{
  store_be64 (table (f), load_be64 (f->bytes + 48));
}
static void
entry_both (struct file *f)
{
  store_be64 (table (f), load_be64 (table (f)) | 1);
}

static const struct damage {
  void (*damage) (struct file *f);
  bool is_whole;                /* nothing of the extension can be used */
  const char *message;
} damages[] = {
  { nr_zero, true, "0 bitmaps" }, { nr_huge, true, "65536 bitmaps" },
  { nr_more, true, "too small" }, { nr_less, true, "longer than" },
  { reserved, true, "reserved" }, { ext_len, true, "24 bytes" },
  { dir_small, true, "too small" }, { dir_huge, true, "too large" },
  { dir_unaligned, true, "not aligned" }, { dir_zero, true, "not aligned" },
  { dir_beyond, true, "beyond the end" },
  { dir_over_l1, true, "other metadata" },
  { name_none, true, "a name of 0" }, { name_long, true, "ends within" },
  { name_nul, true, "zero byte" }, { name_same, true, "two bitmaps" },
  { extra_huge, true, "ends within" },
  { type_0, false, "unknown type 0" }, { flag_3, false, "unknown flags (0x8)" },
  { gran_8, false, "2^8" }, { gran_32, false, "2^32" },
  { gran_255, false, "2^255" },
  { table_len, false, "2 entries" },
  { table_beyond, false, "where a table can be" },
  { table_zero, false, "where a table can be" },
  { table_unaligned, false, "where a table can be" },
  { entry_2, false, "damaged entry" }, { entry_beyond, false, "damaged entry" },
  { entry_header, false, "damaged entry" },
  { entry_both, false, "damaged entry" },
};

static void
create_two (struct file *f)
{
  struct qcow2_bitmap_content c[2] = {
    { .name = "a", .is_auto = true }, { .name = "b", .is_auto = true },
  };
  struct bitmap *bits;
  struct blk *blk;

  create (f, 4 << 20, 4096, NULL);
  blk = open_file (f);
  assert_int_equal (bitmap_new (4 << 20, 65536, &bits), 0);
  bitmap_set (bits, 65536, 65536);
  c[0].bits = c[1].bits = bits;
  must (qcow2_bitmaps_store (blk, c, 2, &err));
  bitmap_free (bits);
  must (blk_close (blk));
}

static void
assert_message (const struct damage *d)
{
  if (!strstr (err.msg, d->message))
    fail_msg ("no \"%s\" in \"%s\"", d->message, err.msg);
}

/* Damage is named; the data can be written whatever the bitmaps are; the other
 * bitmap is not harmed by that of its neighbour.
 */
static void
test_damage (void **state)
{
  const struct damage *d;
  struct qcow2_bitmaps stored;
  struct bitmap *bits;
  struct file f;
  struct blk *blk;
  char byte = 1;

  for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++) {
    d = &damages[i];
    create_two (&f);
    d->damage (&f);
    blk = open_file (&f);
    if (d->is_whole) {
      assert_int_equal (qcow2_bitmaps_read (blk, &stored, &err), -EINVAL);
      assert_message (d);
    } else {
      must (qcow2_bitmaps_read (blk, &stored, &err));
      assert_int_equal (stored.nr, 2);
      assert_int_equal (qcow2_bitmap_load (blk, &stored.ptr[0], &bits, &err),
                        -EINVAL);
      assert_message (d);
      must (qcow2_bitmap_load (blk, &stored.ptr[1], &bits, &err));
      bitmap_free (bits);
      qcow2_bitmaps_free (&stored);
    }
    must (blk_pwrite (blk, &byte, 1, 0, 0));
    must (blk_close (blk));
    if (!d->is_whole) {
      assert_true (flags_of (&f, 0) & QCOW2_BITMAP_IN_USE);
      assert_true (flags_of (&f, 1) & QCOW2_BITMAP_IN_USE);
    } else
      assert_int_equal (load_be64 (f.bytes + 88), 0);
    file_destroy (&f);
  }
}

/* Extra data and unknown types stay as they are, byte for byte. */
static void
test_foreign_kept (void **state)
{
  struct qcow2_bitmap_content c[2] = { { .name = "a" }, { .name = "b" } };
  uint8_t before[32];
  struct file f;
  struct blk *blk;

  create_two (&f);
  type_0 (&f);
  memcpy (before, directory (&f), sizeof before);
  before[15] |= QCOW2_BITMAP_IN_USE;
  blk = open_file (&f);
  must (qcow2_bitmaps_store (blk, c, 2, &err));
  must (blk_close (blk));
  assert_memory_equal (directory (&f), before, sizeof before);
  assert_sound (&f);
  file_destroy (&f);
}

/* A cluster of the disk that is on the directory, or on a table, is not
 * written, and the image is marked; where they were before is space like any
 * other.
 */
static void
test_watched (void **state)
{
  uint64_t places[2], entry, old;
  char byte = 1;

  for (unsigned i = 0; i < 2; i++) {
    struct qcow2_info info;
    struct file f;
    struct blk *blk;
    uint8_t *l2, before[512];

    create_two (&f);
    old = load_be64 (extension (&f) + 16);
    blk = open_file (&f);
    must (blk_pwrite (blk, &byte, 1, 0, 0));
    store_one (blk, "a", 65536, 65536);
    must (blk_flush (blk));
    places[0] = load_be64 (extension (&f) + 16);
    places[1] = load_be64 (directory (&f));
    assert_int_not_equal (places[0], old);
    /* The space of the old ones is good for data again. */
    for (uint64_t off = 0; off < 4 << 20; off += 4096)
      must (blk_pwrite (blk, &byte, 1, off, 0));
    must (blk_close (blk));
    assert_sound (&f);

    l2 = f.bytes + (load_be64 (f.bytes + load_be64 (f.bytes + 40))
                    & QCOW2_OFFSET_MASK);
    entry = load_be64 (l2);
    store_be64 (l2, places[i] | QCOW2_COPIED);
    blk = open_file (&f);
    must (blk_pwrite (blk, &byte, 1, 65536, 0));
    /* (Flagged by that.) */
    memcpy (before, f.bytes + places[i], sizeof before);
    assert_int_equal (blk_pwrite (blk, &byte, 1, 0, 0), -EIO);
    assert_int_equal (blk_pwrite (blk, &byte, 1, 65536, 0), -EIO);
    blk_qcow2_info (blk, &info);
    assert_true (info.is_corrupt);
    assert_int_equal (blk_close (blk), -EIO);
    assert_memory_equal (f.bytes + places[i], before, sizeof before);
    assert_true (load_be64 (f.bytes + 72) & QCOW2_INCOMPAT_CORRUPT);
    store_be64 (l2, entry);
    assert_sound (&f);
    file_destroy (&f);
  }
}

/* --- failures and crashes */

static void
replace (struct blk *blk, int *ret)
{
  struct qcow2_bitmap_content c[2] = {
    { .name = "a", .is_auto = true }, { .name = "new", .is_auto = true },
  };
  struct qcow2_bitmaps stored;
  struct bitmap *bits;

  *ret = qcow2_bitmaps_read (blk, &stored, &err);
  if (*ret == 0)
    *ret = qcow2_bitmaps_flag (blk, &stored, &err);
  qcow2_bitmaps_free (&stored);
  if (*ret < 0)
    return;
  assert_int_equal (bitmap_new (4 << 20, 65536, &bits), 0);
  bitmap_set (bits, 0, 3 * 65536);
  c[0].bits = c[1].bits = bits;
  *ret = qcow2_bitmaps_store (blk, c, 2, &err);
  bitmap_free (bits);
}

/* Whatever is valid in the image has the old bits or the new ones. */
static void
assert_old_or_new (struct file *f)
{
  struct image_report report;
  struct qcow2_bitmaps stored;
  struct bitmap *bits;
  struct blk *blk;
  uint64_t n;

  image_check (f->bytes, f->size, &report);
  if (report.error)
    fail_msg ("%s", report.error);
  blk = open_node (file_node (f), true);
  must (qcow2_bitmaps_read (blk, &stored, &err));
  for (size_t i = 0; i < stored.nr; i++)
    if (!(stored.ptr[i].flags & QCOW2_BITMAP_IN_USE)) {
      must (qcow2_bitmap_load (blk, &stored.ptr[i], &bits, &err));
      n = bitmap_count (bits);
      assert_int_equal (n, strcmp (stored.ptr[1].name, "new") ? 1 : 3);
      bitmap_free (bits);
    }
  qcow2_bitmaps_free (&stored);
  must (blk_close (blk));
}

static void
test_fail_nth (void **state)
{
  unsigned ops = BLK_DEBUG_READ | BLK_DEBUG_WRITE | BLK_DEBUG_ZERO
    | BLK_DEBUG_FLUSH;
  struct blk *blk, *debug;
  struct file f;
  bool has_fired = true;
  int r;

  for (uint64_t n = 1; has_fired; n++) {
    create_two (&f);
    must (blk_debug_open (file_node (&f), &debug, &err));
    blk = open_node (debug, false);
    blk_debug_fail_nth (debug, ops, n, EIO, false);
    replace (blk, &r);
    has_fired = blk_debug_has_fired (debug);
    if (!has_fired)
      assert_int_equal (r, 0);
    blk_debug_fail_nth (debug, ops, 0, EIO, false);
    must (blk_close (blk));
    assert_old_or_new (&f);
    file_destroy (&f);
  }
}

/* The power fails after every change of the file. */
static void
test_power_loss (void **state)
{
  uint8_t *start = malloc (SMALL);
  struct file f, crashed;
  struct blk *blk;
  uint64_t size;
  int r;

  create_two (&f);
  memcpy (start, f.bytes, f.size);
  size = f.size;
  memset (start + size, 0, SMALL - size);
  file_forget_changes (&f);
  f.is_recording = true;
  blk = open_file (&f);
  replace (blk, &r);
  must (r);
  must (blk_close (blk));
  assert_true (f.nr_changes > 10);
  file_init (&crashed, SMALL);
  memcpy (crashed.bytes, start, SMALL);
  crashed.size = size;
  for (size_t i = 0; i < f.nr_changes; i++) {
    change_apply (&f.changes[i], crashed.bytes, &crashed.size);
    assert_old_or_new (&crashed);
  }
  file_destroy (&crashed);
  file_destroy (&f);
  free (start);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_rounds),
    cmocka_unit_test (test_backing_name),
    cmocka_unit_test (test_no_room),
    cmocka_unit_test (test_unmaintained),
    cmocka_unit_test (test_flag),
    cmocka_unit_test (test_damage),
    cmocka_unit_test (test_foreign_kept),
    cmocka_unit_test (test_watched),
    cmocka_unit_test (test_fail_nth),
    cmocka_unit_test (test_power_loss),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
