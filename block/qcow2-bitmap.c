/* SPDX-License-Identifier: BSD-3-Clause */
/* The bitmaps extension read: header extension, directory, tables, bits; and
 * the in-use flags.  qcow2-bitmap-store.c writes them.
 *
 * Invariants:
 * - The extension is believed only if autoclear bit 0 is set.
 * - Before the first change of the disk's data every bitmap that records is
 *   flagged as in use, or the autoclear bit is gone: nobody ever takes a
 *   bitmap for valid that has missed a change.
 * - An entry of a kind that is not known is left as it is.
 * I10: every field is checked before it is used; a bitmap takes memory as its
 * bits are set, the directory at most 64 MiB.
 *
 * Called by the thread that opens or closes the image; the flags by the first
 * write too, which keeps all others waiting.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "log.h"
#include "qcow2-bitmap-private.h"

#define MIN_GRANULARITY_BITS 9
#define MAX_GRANULARITY_BITS 31
#define TYPE_DIRTY 1
#define FLAGS_RESERVED (~(uint32_t) 7)
#define TABLE_RESERVED UINT64_C (0xff000000000001fe)

/* Table entries read at once. */
#define TABLE_PIECE 8192

bool
qcow2_can_hold_bitmaps (const struct blk *blk)
{
  return blk->driver == &qcow2_driver
    && ((const struct qcow2 *) blk)->header.version >= 3;
}

uint64_t
qcow2_bitmap_clusters (const struct qcow2 *q, uint64_t granularity)
{
  uint64_t bits = div_round_up (blk_size (&q->blk), granularity);

  return div_round_up (div_round_up (bits, 8), q->cluster_size);
}

/* --- the directory */

#define BAD(q, err, ...) bad ((q), (err), __VA_ARGS__)

static int bad (const struct qcow2 *q, struct error *err, const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));

static int
bad (const struct qcow2 *q, struct error *err, const char *fmt, ...)
{
  char msg[160];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (msg, sizeof msg, fmt, ap);
  va_end (ap);
  return error_set (err, EINVAL, "%s: bitmaps extension: %s", q->blk.name,
                    msg);
}

/* len bytes at off are where a table of clusters can lie. */
static bool
is_place (const struct qcow2 *q, uint64_t off, uint64_t len)
{
  uint64_t size = MIN (round_up (blk_size (q->file), q->cluster_size),
                       QCOW2_MAX_HOST_OFFSET);

  return off != 0 && (off & (q->cluster_size - 1)) == 0
    && range_is_within (off, len, size) && !qcow2_is_metadata (q, off, len);
}

static int
check_extension (const struct qcow2 *q, const struct qcow2_bitmap_ext *ext,
                 struct error *err)
{
  if (ext->nr == 0 || ext->nr > QCOW2_MAX_BITMAPS)
    return BAD (q, err, "%" PRIu32 " bitmaps, allowed are 1 to %d", ext->nr,
                QCOW2_MAX_BITMAPS);
  if (ext->reserved != 0)
    return BAD (q, err, "a reserved field is not zero");
  if (ext->dir_len < (uint64_t) ext->nr * QCOW2_BITMAP_ENTRY_SIZE
      || ext->dir_len > QCOW2_MAX_BITMAP_DIR)
    return BAD (q, err, "a directory of %" PRIu64 " bytes for %" PRIu32
                " bitmaps is too small, or too large", ext->dir_len, ext->nr);
  if (!is_place (q, ext->dir_off, ext->dir_len))
    return BAD (q, err, "the directory (%" PRIu64 " bytes at %" PRIu64
                ") is not aligned, over other metadata or beyond the end of"
                " the file", ext->dir_len, ext->dir_off);
  return 0;
}

int
qcow2_bitmap_ext_read (struct qcow2 *q, struct qcow2_bitmap_ext *ret,
                       struct error *err)
{
  uint8_t buf[QCOW2_BITMAP_EXT_SIZE];
  int r;

  memset (ret, 0, sizeof *ret);
  if (q->header.version < 3 || !(q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
    return 0;
  r = qcow2_extension_get (q, QCOW2_EXT_BITMAPS, buf, sizeof buf);
  if (r == -EINVAL)
    return BAD (q, err, "it is not %zu bytes long", sizeof buf);
  if (r < 0)
    return error_set_errno (err, -r, "%s: reading the bitmaps extension",
                            q->blk.name);
  if (r == 0)
    return 0;                   /* promised, and yet not there: none */
  ret->nr = load_be32 (buf);
  ret->reserved = load_be32 (buf + 4);
  ret->dir_len = load_be64 (buf + 8);
  ret->dir_off = load_be64 (buf + 16);
  return check_extension (q, ret, err);
}

static void unusable (struct qcow2_bitmap *bm, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

static void
unusable (struct qcow2_bitmap *bm, const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (bm->unusable, sizeof bm->unusable, fmt, ap);
  va_end (ap);
}

/* Whether an entry that is whole can be used.  p: its first bytes. */
static void
judge_entry (const struct qcow2 *q, const uint8_t *p, struct qcow2_bitmap *bm)
{
  unsigned bits = p[17];
  uint64_t nr;

  if (p[16] != TYPE_DIRTY)
    unusable (bm, "it is of the unknown type %u", p[16]);
  else if (bm->flags & FLAGS_RESERVED)
    unusable (bm, "it has unknown flags (0x%" PRIx32 ")", bm->flags);
  else if (load_be32 (p + 20) != 0)
    unusable (bm, "it has extra data that is not understood");
  else if (bits < MIN_GRANULARITY_BITS || bits > MAX_GRANULARITY_BITS)
    unusable (bm, "its granularity of 2^%u bytes is not allowed", bits);
  else {
    bm->granularity = UINT64_C (1) << bits;
    nr = qcow2_bitmap_clusters (q, bm->granularity);
    if (nr != bm->table_len)
      unusable (bm, "its table has %" PRIu32 " entries, not the %" PRIu64
                " of a disk of this size", bm->table_len, nr);
    else if (nr << q->cluster_bits > QCOW2_MAX_BITMAP_BYTES)
      unusable (bm, "it is larger than %" PRIu64 " bytes",
                QCOW2_MAX_BITMAP_BYTES);
    else if (nr > 0 && !is_place (q, bm->table, nr * 8))
      unusable (bm, "its table at %" PRIu64 " is not where a table can be",
                bm->table);
  }
}

/* The entry at pos of the directory. */
static int
parse_entry (const struct qcow2 *q, const struct qcow2_bitmaps *b, size_t pos,
             struct qcow2_bitmap *bm, struct error *err)
{
  uint64_t left = b->dir_len - pos, len;
  const uint8_t *p = b->dir + pos;
  uint32_t extra, name_len;

  if (left < QCOW2_BITMAP_ENTRY_SIZE)
    return BAD (q, err, "the directory ends within an entry");
  extra = load_be32 (p + 20);
  name_len = load_be16 (p + 18);
  len = round_up ((uint64_t) QCOW2_BITMAP_ENTRY_SIZE + extra + name_len, 8);
  if (len > left)
    return BAD (q, err, "the directory ends within an entry");
  if (name_len == 0 || name_len > QCOW2_MAX_BITMAP_NAME)
    return BAD (q, err, "a name of %" PRIu32 " bytes, allowed are 1 to %d",
                name_len, QCOW2_MAX_BITMAP_NAME);
  if (memchr (p + QCOW2_BITMAP_ENTRY_SIZE + extra, 0, name_len))
    return BAD (q, err, "a name holds a zero byte");
  bm->name = strndup ((const char *) p + QCOW2_BITMAP_ENTRY_SIZE + extra,
                      name_len);
  if (!bm->name)
    return error_set_errno (err, ENOMEM, "%s", q->blk.name);
  bm->table = load_be64 (p);
  bm->table_len = load_be32 (p + 8);
  bm->flags = load_be32 (p + 12);
  bm->pos = pos;
  bm->len = len;
  judge_entry (q, p, bm);
  return 0;
}

static int
compare_names (const void *a, const void *b)
{
  return strcmp (*(char *const *) a, *(char *const *) b);
}

static int
check_names (const struct qcow2 *q, const struct qcow2_bitmaps *b,
             struct error *err)
{
  CLEANUP_FREE const char **names = calloc (b->nr + 1, sizeof *names);

  if (!names)
    return error_set_errno (err, ENOMEM, "%s", q->blk.name);
  for (size_t i = 0; i < b->nr; i++)
    names[i] = b->ptr[i].name;
  qsort (names, b->nr, sizeof *names, compare_names);
  for (size_t i = 1; i < b->nr; i++)
    if (strcmp (names[i - 1], names[i]) == 0)
      return BAD (q, err, "two bitmaps have the name \"%.64s\"", names[i]);
  return 0;
}

static int
parse_directory (const struct qcow2 *q, struct qcow2_bitmaps *b, uint32_t nr,
                 struct error *err)
{
  size_t pos = 0;
  int error;

  b->ptr = calloc (nr, sizeof *b->ptr);
  if (!b->ptr)
    return error_set_errno (err, ENOMEM, "%s", q->blk.name);
  while (b->nr < nr) {
    error = parse_entry (q, b, pos, &b->ptr[b->nr], err);
    if (error < 0)
      return error;
    pos += b->ptr[b->nr++].len;
  }
  if (pos != b->dir_len)
    return BAD (q, err, "the directory is longer than its %" PRIu32
                " entries", nr);
  return check_names (q, b, err);
}

int
qcow2_bitmaps_read (struct blk *blk, struct qcow2_bitmaps *ret,
                    struct error *err)
{
  struct qcow2 *q = qcow2_of (blk);
  struct qcow2_bitmap_ext ext;
  int error;

  memset (ret, 0, sizeof *ret);
  error = qcow2_bitmap_ext_read (q, &ext, err);
  if (error < 0 || ext.nr == 0)
    return error;
  ret->dir_off = ext.dir_off;
  ret->dir_len = ext.dir_len;
  ret->dir = malloc (ext.dir_len);
  if (!ret->dir)
    return error_set_errno (err, ENOMEM, "%s: the bitmap directory",
                            q->blk.name);
  error = qcow2_file_read (q, ret->dir, ext.dir_len, ext.dir_off);
  if (error < 0)
    error_set_errno (err, -error, "%s: reading the bitmap directory",
                     q->blk.name);
  else
    error = parse_directory (q, ret, ext.nr, err);
  if (error < 0)
    qcow2_bitmaps_free (ret);
  return error;
}

void
qcow2_bitmaps_free (struct qcow2_bitmaps *b)
{
  for (size_t i = 0; i < b->nr; i++)
    free (b->ptr[i].name);
  free (b->ptr);
  free (b->dir);
  memset (b, 0, sizeof *b);
}

/* Where the directory and the tables are. */
static int
collect (const struct qcow2_bitmaps *b, struct qcow2_ranges *ret)
{
  struct qcow2_range r = { b->dir_off, b->dir_len };
  int error = 0;

  if (b->nr > 0)
    error = qcow2_ranges_append (ret, r);
  for (size_t i = 0; i < b->nr && error == 0; i++) {
    r = (struct qcow2_range) { b->ptr[i].table,
                               (uint64_t) b->ptr[i].table_len * 8 };
    if (!b->ptr[i].unusable[0] && r.len > 0)
      error = qcow2_ranges_append (ret, r);
  }
  return error;
}

int
qcow2_bitmaps_watch (struct qcow2 *q, struct error *err)
{
  struct qcow2_ranges ranges = VECTOR_INIT;
  struct qcow2_bitmaps b;
  struct error why = ERROR_INIT;
  int error;

  error = qcow2_bitmaps_read (&q->blk, &b, &why);
  if (error == 0 && collect (&b, &ranges) < 0)
    error = error_set_errno (&why, ENOMEM, "%s", q->blk.name);
  qcow2_bitmaps_free (&b);
  if (error < 0)
    qcow2_ranges_reset (&ranges);
  qcow2_overlap_set_bitmaps (q, &ranges);
  /* What is damaged as a whole is given up before the first write. */
  if (error == 0 || error == -EINVAL)
    return 0;
  if (err)
    *err = why;
  return error;
}

/* --- the bits */

int
qcow2_bitmap_walk (struct qcow2 *q, const struct qcow2_bitmap *bm,
                   int (*each) (void *opaque, uint64_t index, uint64_t entry),
                   void *opaque)
{
  CLEANUP_FREE uint64_t *piece = malloc (TABLE_PIECE * 8);
  uint64_t n;
  int error;

  if (!piece)
    return -ENOMEM;
  for (uint64_t i = 0; i < bm->table_len; i += n) {
    n = MIN (bm->table_len - i, TABLE_PIECE);
    error = qcow2_file_read (q, piece, n * 8, bm->table + i * 8);
    for (uint64_t k = 0; k < n && error == 0; k++)
      error = each (opaque, i + k, load_be64 (&piece[k]));
    if (error < 0)
      return error;
  }
  return 0;
}

bool
qcow2_bitmap_entry_is_sound (const struct qcow2 *q, uint64_t entry)
{
  uint64_t host = entry & QCOW2_OFFSET_MASK;

  if (entry & TABLE_RESERVED)
    return false;
  return host == 0 || (!(entry & 1) && is_place (q, host, q->cluster_size));
}

struct loading {
  struct qcow2 *q;
  struct bitmap *bits;
  uint8_t *buf;                 /* a cluster */
};

/* Set the bits [first, end), of which bit 0 stands for off. */
static void
set_run (struct bitmap *bits, uint64_t first, uint64_t end, uint64_t off)
{
  uint64_t granularity = bitmap_granularity (bits);

  off += first * granularity;
  bitmap_set (bits, off, MIN ((end - first) * granularity,
                              bitmap_size (bits) - off));
}

/* Set the bits that are set in buf.  Those beyond the disk's end are not. */
static void
set_runs (struct bitmap *bits, const uint8_t *buf, uint64_t nr_bytes,
          uint64_t off)
{
  uint64_t start = 0, i = 0, end = nr_bytes * 8;
  bool is_set, was_set = false;

  while (i < end) {
    is_set = (buf[i / 8] >> (i % 8)) & 1;
    if (is_set && !was_set)
      start = i;
    if (!is_set && was_set)
      set_run (bits, start, i, off);
    was_set = is_set;
    /* All of a byte alike is the rule. */
    i += i % 8 == 0 && buf[i / 8] == (is_set ? 0xff : 0) ? 8 : 1;
  }
  if (was_set)
    set_run (bits, start, end, off);
}

static int
load_cluster (void *opaque, uint64_t index, uint64_t entry)
{
  struct loading *l = opaque;
  struct qcow2 *q = l->q;
  uint64_t granularity = bitmap_granularity (l->bits);
  uint64_t size = bitmap_size (l->bits);
  uint64_t off = (index << (q->cluster_bits + 3)) * granularity;
  uint64_t len = MIN (((uint64_t) q->cluster_size << 3) * granularity,
                      size - off);
  uint64_t nr_bits = div_round_up (len, granularity);
  int error;

  if (!qcow2_bitmap_entry_is_sound (q, entry))
    return -EINVAL;
  if (entry == 0)
    return 0;
  if (entry & 1) {
    bitmap_set (l->bits, off, len);
    return 0;
  }
  error = qcow2_file_read (q, l->buf, q->cluster_size,
                           entry & QCOW2_OFFSET_MASK);
  if (error < 0)
    return error;
  if (nr_bits % 8)
    l->buf[nr_bits / 8] &= (uint8_t) ((1 << (nr_bits % 8)) - 1);
  set_runs (l->bits, l->buf, div_round_up (nr_bits, 8), off);
  return 0;
}

int
qcow2_bitmap_load (struct blk *blk, const struct qcow2_bitmap *bm,
                   struct bitmap **ret, struct error *err)
{
  struct qcow2 *q = qcow2_of (blk);
  struct loading l = { .q = q };
  int error;

  if (bm->unusable[0])
    return error_set (err, EINVAL, "%s: bitmap '%.64s': %s", q->blk.name,
                      bm->name, bm->unusable);
  l.buf = malloc (q->cluster_size);
  error = l.buf ? bitmap_new (blk_size (blk), bm->granularity, &l.bits)
    : -ENOMEM;
  if (error == 0)
    error = qcow2_bitmap_walk (q, bm, load_cluster, &l);
  free (l.buf);
  if (error == 0) {
    *ret = l.bits;
    return 0;
  }
  bitmap_free (l.bits);
  if (error == -EINVAL)
    return error_set (err, EINVAL, "%s: bitmap '%.64s': its table has a"
                      " damaged entry", q->blk.name, bm->name);
  return error_set_errno (err, -error, "%s: reading bitmap '%.64s'",
                          q->blk.name, bm->name);
}

/* --- flags */

/* Change the flags of the directory's entries in place: any part of it that
 * reaches the disk is right.  is_all: disabled ones too, which do not miss a
 * change but may be about to change.
 */
static int
flag_entries (struct qcow2 *q, struct qcow2_bitmaps *b, bool is_all)
{
  struct qcow2_bitmap *bm;
  bool is_changed = false;
  int error;

  for (size_t i = 0; i < b->nr; i++) {
    bm = &b->ptr[i];
    if ((bm->flags & QCOW2_BITMAP_IN_USE)
        || ((!is_all || bm->is_left) && !bm->unusable[0]
            && !(bm->flags & QCOW2_BITMAP_AUTO)))
      continue;
    bm->flags |= QCOW2_BITMAP_IN_USE;
    store_be32 (b->dir + bm->pos + 12, bm->flags);
    is_changed = true;
  }
  if (!is_changed)
    return 0;
  error = blk_pwrite (q->file, b->dir, b->dir_len, b->dir_off, 0);
  return error < 0 ? error : blk_flush (q->file);
}

int
qcow2_bitmaps_flag (struct blk *blk, struct qcow2_bitmaps *bitmaps,
                    struct error *err)
{
  struct qcow2 *q = qcow2_of (blk);
  int error = flag_entries (q, bitmaps, true);

  if (error < 0)
    return error_set_errno (err, -error, "%s: flagging its bitmaps as in use",
                            q->blk.name);
  lock_acquire (&q->lock);
  q->are_bitmaps_flagged = true;
  lock_release (&q->lock);
  return 0;
}

int
qcow2_bitmaps_before_write (struct qcow2 *q, bool *ret_keep)
{
  struct qcow2_bitmaps b;
  struct error err = ERROR_INIT;
  int error;

  *ret_keep = q->are_bitmaps_flagged;
  if (*ret_keep)
    return 0;
  error = qcow2_bitmaps_read (&q->blk, &b, &err);
  if (error == -EINVAL) {
    log_warning ("%s; they are given up", err.msg);
    return 0;
  }
  if (error < 0)
    return error;
  if (b.nr > 0)
    log_warning ("%s: its bitmaps that record are not kept up to date and no"
                 " longer valid", q->blk.name);
  error = flag_entries (q, &b, false);
  *ret_keep = error == 0 && b.nr > 0;
  qcow2_bitmaps_free (&b);
  return error;
}
