/* SPDX-License-Identifier: BSD-3-Clause */
/* The bitmaps extension written.
 *
 *   1 bits and tables of every bitmap to new clusters; the new directory;
 *     their refcounts; sync
 *   2 autoclear bit 0 off; sync; header extension; sync; autoclear bit 0 on;
 *     sync
 *   3 the old directory, tables and bits lose their references
 *
 * Invariant: the extension is valid on stable storage only together with a
 * directory that is whole and says the truth: a crash before step 2 leaves the
 * old one, flagged as in use, one within step 2 no valid bitmaps (and leaks).
 *
 * Extra data is never written.  Entries that are not understood are copied as
 * they are, with their in-use flag.
 *
 * Called by the thread that closes the image, after all I/O.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "qcow2-bitmap-private.h"

/* Host clusters in a row. */
struct piece {
  uint64_t host;
  uint64_t nr;
};

DEFINE_VECTOR (pieces, struct piece);

struct storing {
  struct qcow2 *q;
  struct qcow2_bitmaps old;
  size_t next_old;              /* where the next is looked for first */
  struct pieces taken;          /* new clusters, given back on failure */
  uint8_t *dir;                 /* the new directory */
  uint64_t dir_len, dir_cap;
  uint32_t nr;                  /* its entries */
  uint64_t dir_off;
  uint8_t *buf;                 /* a cluster */
};

/* --- space */

/* nr clusters in a row.  What is found free but too short is held until there
 * is a run that is long enough, then given back.
 */
static int
take (struct storing *s, uint64_t nr, uint64_t *ret_host)
{
  struct qcow2 *q = s->q;
  struct pieces short_ones = VECTOR_INIT;
  uint64_t n = 0, host = 0;
  bool is_fresh;
  int error;

  lock_acquire (&q->lock);
  for (;;) {
    error = pieces_reserve (&s->taken, 1);
    if (error == 0)
      error = pieces_reserve (&short_ones, 1);
    n = nr;
    if (error == 0)
      error = qcow2_alloc (q, 0, &n, &host, &is_fresh);
    if (error < 0 || n >= nr)
      break;
    pieces_append (&short_ones, (struct piece) { host, n });
  }
  if (error == 0)
    pieces_append (&s->taken, (struct piece) { host, n });
  for (size_t i = 0; i < short_ones.len; i++)
    qcow2_unalloc (q, short_ones.ptr[i].host, short_ones.ptr[i].nr);
  lock_release (&q->lock);
  pieces_reset (&short_ones);
  *ret_host = host;
  return error;
}

static void
give_back (struct storing *s)
{
  struct qcow2 *q = s->q;

  lock_acquire (&q->lock);
  for (size_t i = 0; i < s->taken.len; i++)
    qcow2_unalloc (q, s->taken.ptr[i].host, s->taken.ptr[i].nr);
  lock_release (&q->lock);
}

/* --- bits and tables */

/* True if the bits of [off, off+len) are all alike, as *ret_entry says. */
static bool
is_uniform (const struct bitmap *bits, uint64_t off, uint64_t len,
            uint64_t *ret_entry)
{
  struct range run;

  *ret_entry = 0;
  if (!bitmap_next_dirty (bits, off, len, &run))
    return true;
  *ret_entry = 1;
  return !bitmap_next_clean (bits, off, len, &run);
}

static void
pack_bits (const struct bitmap *bits, uint64_t off, uint64_t len, uint8_t *buf)
{
  uint64_t granularity = bitmap_granularity (bits), pos = off, i, end;
  struct range run;

  while (pos < off + len
         && bitmap_next_dirty (bits, pos, off + len - pos, &run)) {
    i = (run.off - off) / granularity;
    pos = run.off + run.len;
    end = div_round_up (pos - off, granularity);
    while (i < end) {
      if (i % 8 == 0 && i + 8 <= end) {
        buf[i / 8] = 0xff;
        i += 8;
      } else {
        buf[i / 8] |= (uint8_t) (1 << (i % 8));
        i++;
      }
    }
  }
}

/* Write cluster index of the bits, unless all are alike. */
static int
write_bits (struct storing *s, const struct bitmap *bits, uint64_t index,
            uint64_t *ret_entry)
{
  struct qcow2 *q = s->q;
  uint64_t span = ((uint64_t) q->cluster_size << 3)
    * bitmap_granularity (bits);
  uint64_t off = index * span, len = MIN (span, bitmap_size (bits) - off);
  int error;

  if (is_uniform (bits, off, len, ret_entry))
    return 0;
  memset (s->buf, 0, q->cluster_size);
  pack_bits (bits, off, len, s->buf);
  error = take (s, 1, ret_entry);
  if (error < 0)
    return error;
  return blk_pwrite (q->file, s->buf, q->cluster_size, *ret_entry, 0);
}

static int
write_bitmap (struct storing *s, const struct bitmap *bits,
              uint64_t *ret_table, uint32_t *ret_len)
{
  struct qcow2 *q = s->q;
  uint64_t nr = qcow2_bitmap_clusters (q, bitmap_granularity (bits)), entry;
  uint64_t nr_table = div_round_up (nr * 8, q->cluster_size);
  CLEANUP_FREE uint8_t *table = NULL;
  int error;

  *ret_table = 0;
  *ret_len = (uint32_t) nr;
  if (nr << q->cluster_bits > QCOW2_MAX_BITMAP_BYTES)
    return -EFBIG;
  if (nr == 0)
    return 0;
  table = calloc (nr_table, q->cluster_size);
  if (!table)
    return -ENOMEM;
  for (uint64_t i = 0; i < nr; i++) {
    error = write_bits (s, bits, i, &entry);
    if (error < 0)
      return error;
    store_be64 (table + i * 8, entry);
  }
  error = take (s, nr_table, ret_table);
  if (error < 0)
    return error;
  return blk_pwrite (q->file, table, nr_table << q->cluster_bits, *ret_table,
                     0);
}

/* --- the directory */

/* Room for an entry of len bytes, zeroed. */
static uint8_t *
append (struct storing *s, size_t len)
{
  uint64_t cap = MAX (s->dir_cap, s->q->cluster_size);
  uint8_t *p;

  while (cap < s->dir_len + len)
    cap *= 2;
  if (cap > s->dir_cap) {
    p = realloc (s->dir, cap);
    if (!p)
      return NULL;
    memset (p + s->dir_cap, 0, cap - s->dir_cap);
    s->dir = p;
    s->dir_cap = cap;
  }
  p = s->dir + s->dir_len;
  s->dir_len += len;
  s->nr++;
  return p;
}

static struct qcow2_bitmap *
find_old (struct storing *s, const char *name)
{
  /* As a rule it comes after the one that was found before. */
  for (size_t n = 0; n < s->old.nr; n++) {
    size_t i = (s->next_old + n) % s->old.nr;

    if (strcmp (s->old.ptr[i].name, name) == 0) {
      s->next_old = i + 1;
      return &s->old.ptr[i];
    }
  }
  return NULL;
}

/* The entry stays as it is; it is no longer the caller's to give up. */
static int
keep_entry (struct storing *s, struct qcow2_bitmap *bm, bool is_left)
{
  uint8_t *p = append (s, bm->len);

  if (!p)
    return -ENOMEM;
  memcpy (p, s->old.dir + bm->pos, bm->len);
  if (!is_left || bm->unusable[0])
    store_be32 (p + 12, bm->flags | QCOW2_BITMAP_IN_USE);
  bm->table_len = 0;            /* nothing of it is freed */
  return 0;
}

static int
add_entry (struct storing *s, const struct qcow2_bitmap_content *c)
{
  size_t name_len = strlen (c->name);
  uint64_t table;
  uint32_t len;
  uint8_t *p;
  int error;

  if (name_len == 0 || name_len > QCOW2_MAX_BITMAP_NAME)
    return -EINVAL;
  error = write_bitmap (s, c->bits, &table, &len);
  if (error < 0)
    return error;
  p = append (s, round_up (QCOW2_BITMAP_ENTRY_SIZE + name_len, 8));
  if (!p)
    return -ENOMEM;
  store_be64 (p, table);
  store_be32 (p + 8, len);
  store_be32 (p + 12, c->is_auto ? QCOW2_BITMAP_AUTO : 0);
  p[16] = 1;
  p[17] = (uint8_t) log2_exact (bitmap_granularity (c->bits));
  store_be16 (p + 18, (uint16_t) name_len);
  memcpy (p + QCOW2_BITMAP_ENTRY_SIZE, c->name, name_len);
  return 0;
}

static int
write_directory (struct storing *s)
{
  struct qcow2 *q = s->q;
  uint64_t nr = div_round_up (s->dir_len, q->cluster_size);
  int error;

  if (s->nr == 0)
    return 0;
  error = take (s, nr, &s->dir_off);
  if (error < 0)
    return error;
  /* append has made the array a multiple of the cluster size. */
  return blk_pwrite (q->file, s->dir, nr << q->cluster_bits, s->dir_off, 0);
}

/* --- the switch */

static int
set_autoclear (struct qcow2 *q, bool is_on)
{
  uint64_t value = q->header.autoclear & ~QCOW2_AUTOCLEAR_BITMAPS;
  uint8_t field[8];
  int error;

  if (is_on)
    value |= QCOW2_AUTOCLEAR_BITMAPS;
  if (value == q->header.autoclear)
    return 0;
  store_be64 (field, value);
  error = blk_pwrite (q->file, field, sizeof field, 88, 0);
  if (error == 0)
    error = blk_flush (q->file);
  if (error == 0)
    q->header.autoclear = value;
  return error;
}

static int
switch_over (struct storing *s)
{
  uint8_t ext[QCOW2_BITMAP_EXT_SIZE];
  struct qcow2 *q = s->q;
  int error;

  error = set_autoclear (q, false);
  if (error < 0)
    return error;
  if (s->nr == 0)
    return qcow2_extension_remove (q, QCOW2_EXT_BITMAPS);
  store_be32 (ext, s->nr);
  store_be32 (ext + 4, 0);
  store_be64 (ext + 8, s->dir_len);
  store_be64 (ext + 16, s->dir_off);
  error = qcow2_extension_set (q, QCOW2_EXT_BITMAPS, ext, sizeof ext);
  return error < 0 ? error : set_autoclear (q, true);
}

/* --- what is given up */

static void
free_place (struct qcow2 *q, uint64_t host, uint64_t len)
{
  lock_acquire (&q->lock);
  /* Without memory they are leaked, which harms nobody. */
  if (qcow2_frees_reserve (&q->frees, 1) == 0)
    qcow2_free_later (q, host, round_up (len, q->cluster_size));
  lock_release (&q->lock);
}

static int
free_bits (void *opaque, uint64_t index, uint64_t entry)
{
  struct qcow2 *q = opaque;

  if ((entry & QCOW2_OFFSET_MASK) && qcow2_bitmap_entry_is_sound (q, entry))
    free_place (q, entry & QCOW2_OFFSET_MASK, q->cluster_size);
  return 0;
}

/* Space that cannot be found, because a table is damaged, is leaked. */
static void
free_old (struct storing *s)
{
  struct qcow2 *q = s->q;

  for (size_t i = 0; i < s->old.nr; i++) {
    struct qcow2_bitmap *bm = &s->old.ptr[i];

    if (bm->unusable[0] || bm->table_len == 0)
      continue;
    (void) qcow2_bitmap_walk (q, bm, free_bits, q);
    free_place (q, bm->table, (uint64_t) bm->table_len * 8);
  }
  if (s->old.nr > 0)
    free_place (q, s->old.dir_off, s->old.dir_len);
}

/* --- all of it */

static int
compose (struct storing *s, const struct qcow2_bitmap_content *content,
         size_t nr, struct error *err)
{
  struct qcow2_bitmap *old;
  int error;

  for (size_t i = 0; i < nr; i++) {
    old = content[i].bits ? NULL : find_old (s, content[i].name);
    error = 0;
    if (content[i].bits)
      error = add_entry (s, &content[i]);
    else if (old)
      error = keep_entry (s, old, content[i].is_left);
    if (error == 0 && s->dir_len > QCOW2_MAX_BITMAP_DIR)
      error = -EFBIG;
    if (error < 0)
      return error_set_errno (err, -error, "%s: storing bitmap '%.64s'",
                              s->q->blk.name, content[i].name);
  }
  return 0;
}

/* A directory that cannot be read is given up with all that it names. */
static int
read_old (struct storing *s, struct error *err)
{
  int error = qcow2_bitmaps_read (&s->q->blk, &s->old, err);

  return error == -EINVAL ? 0 : error;
}

/* Step 1.  On failure nothing has changed. */
static int
prepare (struct storing *s, const struct qcow2_bitmap_content *content,
         size_t nr, struct error *err)
{
  struct qcow2 *q = s->q;
  int error;

  error = compose (s, content, nr, err);
  if (error == 0) {
    error = write_directory (s);
    if (error == 0)
      error = qcow2_commit (q, true);
    if (error < 0)
      error_set_errno (err, -error, "%s: storing its bitmaps", q->blk.name);
  }
  if (error < 0)
    give_back (s);
  return error;
}

/* Steps 2 and 3. */
static int
finish (struct storing *s, struct error *err)
{
  struct qcow2 *q = s->q;
  int error = switch_over (s);

  if (error == -ENOSPC)
    return error_set (err, ENOSPC, "%s: there is no room for the bitmaps"
                      " extension in the first cluster", q->blk.name);
  if (error == 0) {
    /* (What cannot be read again is not watched.) */
    (void) qcow2_bitmaps_watch (q, NULL);
    free_old (s);
    error = qcow2_commit (q, true);
  }
  if (error < 0)
    error_set_errno (err, -error, "%s: storing its bitmaps", q->blk.name);
  return error;
}

int
qcow2_bitmaps_store (struct blk *blk,
                     const struct qcow2_bitmap_content *content, size_t nr,
                     struct error *err)
{
  struct qcow2 *q = qcow2_of (blk);
  struct storing s = { .q = q };
  int error;

  assert (qcow2_can_hold_bitmaps (blk) && !blk_is_read_only (blk));
  if (nr > QCOW2_MAX_BITMAPS)
    return error_set (err, EINVAL, "%s: %zu bitmaps, at most %d are allowed",
                      blk->name, nr, QCOW2_MAX_BITMAPS);
  s.buf = malloc (q->cluster_size);
  error = s.buf ? read_old (&s, err)
    : error_set_errno (err, ENOMEM, "%s", blk->name);
  if (error == 0 && (nr > 0 || s.old.nr > 0)) {
    error = prepare (&s, content, nr, err);
    if (error == 0)
      error = finish (&s, err);
  }
  pieces_reset (&s.taken);
  qcow2_bitmaps_free (&s.old);
  free (s.dir);
  free (s.buf);
  return error;
}
