/* SPDX-License-Identifier: BSD-3-Clause */
/* All references of a qcow2 image: header, L1 and L2 tables, data, packed
 * data, snapshots, refcount structures, bitmaps.
 *
 * Every reference is counted once for each cluster that it touches, as the
 * specification defines refcounts, and only if the cluster lies within the
 * window of the pass.
 *
 * I10: every offset is checked before it is followed; memory is a cluster, and
 * pieces of tables.
 *
 * Called by the thread that checks.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "qcow2-bitmap-private.h"
#include "qcow2-check-private.h"

/* Entries of a table read at once. */
#define PIECE 8192

#define SNAPSHOT_SIZE 40        /* without extra data, id and name */
#define SNAPSHOT_MAX_EXTRA 1024

static bool
is_aligned (const struct check *c, uint64_t off)
{
  return (off & (c->q->cluster_size - 1)) == 0;
}

void
check_refer (struct check *c, uint64_t off, uint64_t len, const char *what)
{
  unsigned bits = c->q->cluster_bits;
  uint64_t i, end;

  if (len == 0)
    return;
  i = off >> bits;
  end = off > QCOW2_MAX_HOST_OFFSET || len > QCOW2_MAX_HOST_OFFSET
    ? UINT64_MAX : div_round_up (off + len, c->q->cluster_size);
  if (end > c->file_clusters) {
    if (c->is_first)
      check_found (c, false, "the %s at %" PRIu64 " is beyond the end of the"
                   " file", what, off);
    return;
  }
  c->highest = MAX (c->highest, end);
  if (c->is_first)
    for (uint64_t w = i / c->window; w <= (end - 1) / c->window; w++)
      c->is_used[w] = true;
  i = MAX (i, c->first);
  end = MIN (end, c->first + c->len);
  for (; i < end; i++)
    if (c->counts[i - c->first] < UINT32_MAX)
      c->counts[i - c->first]++;
}

/* A table of clusters at off: whether it can be followed. */
static bool
is_sound_table (struct check *c, uint64_t off, uint64_t len, const char *what)
{
  uint64_t size = c->file_clusters << c->q->cluster_bits;

  if (off != 0 && is_aligned (c, off) && range_is_within (off, len, size))
    return true;
  if (c->is_first)
    check_found (c, false, "the %s at %" PRIu64 " is not aligned, or beyond"
                 " the end of the file", what, off);
  c->is_incomplete = true;
  return false;
}

/* --- L1 and L2 */

static int
walk_l1_entry (struct check *c, uint64_t i, uint64_t entry,
               int (*each) (struct check *c, uint64_t i, uint64_t entry))
{
  struct qcow2 *q = c->q;
  uint64_t off = entry & QCOW2_OFFSET_MASK;
  int error;

  if (c->options->is_cancelled
      && c->options->is_cancelled (c->options->opaque))
    return error_set (c->err, ECANCELED, "%s: interrupted", q->blk.name);
  if ((entry & QCOW2_L1_RESERVED) && c->is_first)
    check_found (c, false, "L1 entry %" PRIu64 " (0x%016" PRIx64 ") has"
                 " reserved bits set", i, entry);
  if (off == 0)
    return 0;
  if (!is_sound_table (c, off, q->cluster_size, "L2 table"))
    return 0;
  error = qcow2_file_read (q, c->l2, q->cluster_size, off);
  if (error < 0)
    return check_failed (c, error, "an L2 table");
  return each (c, i, entry);
}

int
check_each_l2 (struct check *c, uint64_t l1_offset, uint64_t l1_size,
               int (*each) (struct check *c, uint64_t i, uint64_t entry))
{
  CLEANUP_FREE uint64_t *piece = malloc (PIECE * 8);
  uint64_t n;
  int error;

  if (!piece)
    return check_failed (c, -ENOMEM, "an L1 table");
  for (uint64_t i = 0; i < l1_size; i += n) {
    n = MIN (l1_size - i, PIECE);
    error = qcow2_file_read (c->q, piece, n * 8, l1_offset + i * 8);
    if (error < 0)
      return check_failed (c, error, "an L1 table");
    for (uint64_t k = 0; k < n; k++) {
      error = walk_l1_entry (c, i + k, load_be64 (&piece[k]), each);
      if (error < 0)
        return error;
    }
  }
  return 0;
}

static void
bad_entry (struct check *c, uint64_t guest, uint64_t entry, const char *what)
{
  if (c->is_first)
    check_found (c, false, "the L2 entry of guest cluster %" PRIu64 " (0x%016"
                 PRIx64 ") %s", guest, entry, what);
}

static void
walk_packed (struct check *c, uint64_t guest, uint64_t entry)
{
  uint64_t off, len;

  if (entry & QCOW2_COPIED)
    bad_entry (c, guest, entry, "is compressed and has the copied flag");
  qcow2_packed_place (c->q, entry, &off, &len);
  check_refer (c, off, len, "compressed data");
  if (c->is_first) {
    c->result->allocated_clusters++;
    c->result->compressed_clusters++;
  }
}

/* bitmap: of the subclusters, 0 without them. */
static void
walk_l2_entry (struct check *c, uint64_t guest, uint64_t entry,
               uint64_t bitmap)
{
  struct qcow2 *q = c->q;
  uint64_t host = entry & QCOW2_OFFSET_MASK;
  bool is_extended = check_l2_entry_size (q) == 16;
  uint64_t reserved = QCOW2_L2_RESERVED | (is_extended ? QCOW2_ZERO : 0);

  if (entry & QCOW2_COMPRESSED) {
    if (bitmap)
      bad_entry (c, guest, entry, "is compressed and has subclusters");
    walk_packed (c, guest, entry);
    return;
  }
  if (entry & reserved)
    bad_entry (c, guest, entry, "has reserved bits set");
  if ((bitmap >> 32) & bitmap)
    bad_entry (c, guest, entry, "has subclusters both allocated and zero");
  /* In a data file 0 is a place as any other. */
  if (host == 0 && (!(q->header.incompatible & QCOW2_INCOMPAT_DATA_FILE)
                    || !(entry & QCOW2_COPIED)))
    return;
  if (!is_aligned (c, host)) {
    bad_entry (c, guest, entry, "is not aligned to a cluster");
    return;
  }
  if (c->is_first)
    c->result->allocated_clusters++;
  if (!(q->header.incompatible & QCOW2_INCOMPAT_DATA_FILE))
    check_refer (c, host, q->cluster_size, "data cluster");
}

static int
walk_l2 (struct check *c, uint64_t i, uint64_t l1_entry)
{
  unsigned size = check_l2_entry_size (c->q);
  uint64_t nr = c->q->cluster_size / size;

  check_refer (c, l1_entry & QCOW2_OFFSET_MASK, c->q->cluster_size,
               "L2 table");
  for (uint64_t k = 0; k < nr; k++)
    walk_l2_entry (c, i * nr + k, load_be64 (c->l2 + k * size),
                   size == 16 ? load_be64 (c->l2 + k * size + 8) : 0);
  return 0;
}

/* --- snapshots */

/* A snapshot's L1 table, whose fields nobody has checked yet. */
static int
walk_snapshot (struct check *c, uint64_t l1_offset, uint32_t l1_size)
{
  uint64_t len = (uint64_t) l1_size * 8, allocated, packed;
  int error;

  if (l1_size == 0)
    return 0;
  if (len > QCOW2_MAX_L1_BYTES) {
    if (c->is_first)
      check_found (c, false, "a snapshot's L1 table of %" PRIu32 " entries is"
                   " too large", l1_size);
    c->is_incomplete = true;
    return 0;
  }
  if (!is_sound_table (c, l1_offset, len, "snapshot's L1 table"))
    return 0;
  check_refer (c, l1_offset, len, "snapshot's L1 table");
  /* The figures are the active disk's. */
  allocated = c->result->allocated_clusters;
  packed = c->result->compressed_clusters;
  error = check_each_l2 (c, l1_offset, l1_size, walk_l2);
  c->result->allocated_clusters = allocated;
  c->result->compressed_clusters = packed;
  return error;
}

static int
walk_snapshots (struct check *c)
{
  const struct qcow2_header *h = &c->q->header;
  uint64_t pos = h->snapshots_offset, len;
  uint8_t p[SNAPSHOT_SIZE];
  uint32_t extra;
  int error;

  for (uint32_t i = 0; i < h->nr_snapshots; i++) {
    if (!range_is_within (pos, sizeof p, blk_size (c->q->file)))
      goto bad;
    error = qcow2_file_read (c->q, p, sizeof p, pos);
    if (error < 0)
      return check_failed (c, error, "the snapshot table");
    extra = load_be32 (p + 36);
    len = round_up ((uint64_t) sizeof p + extra + load_be16 (p + 12)
                    + load_be16 (p + 14), 8);
    if (extra > SNAPSHOT_MAX_EXTRA
        || !range_is_within (pos, len, blk_size (c->q->file)))
      goto bad;
    error = walk_snapshot (c, load_be64 (p), load_be32 (p + 8));
    if (error < 0)
      return error;
    pos += len;
  }
  check_refer (c, h->snapshots_offset, pos - h->snapshots_offset,
               "snapshot table");
  return 0;

 bad:
  if (c->is_first)
    check_found (c, false, "the snapshot table is damaged");
  c->is_incomplete = true;
  return 0;
}

/* --- refcount structures */

static void
walk_refcounts (struct check *c)
{
  const struct qcow2_header *h = &c->q->header;
  const struct qcow2_table *t = &c->q->reftable;
  uint64_t size = c->file_clusters << c->q->cluster_bits, off;

  check_refer (c, h->reftable_offset,
               (uint64_t) h->reftable_clusters << c->q->cluster_bits,
               "refcount table");
  for (uint64_t i = 0; i < t->len; i++) {
    if ((off = t->entries[i]) == 0)
      continue;
    if ((off & QCOW2_REFTABLE_RESERVED) || !is_aligned (c, off)
        || off >= size) {
      if (c->is_first)
        check_found (c, false, "entry %" PRIu64 " of the refcount table (0x%"
                     PRIx64 ") is damaged", i, off);
      c->needs_rebuild = true;
    } else
      check_refer (c, off, c->q->cluster_size, "refcount block");
  }
}

/* --- bitmaps */

static int
walk_bitmap_entry (void *opaque, uint64_t index, uint64_t entry)
{
  struct check *c = opaque;

  if (!qcow2_bitmap_entry_is_sound (c->q, entry)) {
    if (c->is_first)
      check_found (c, false, "entry %" PRIu64 " (0x%" PRIx64 ") of a bitmap's"
                   " table is damaged", index, entry);
  } else if (entry & QCOW2_OFFSET_MASK)
    check_refer (c, entry & QCOW2_OFFSET_MASK, c->q->cluster_size, "bitmap");
  return 0;
}

/* What is not understood may refer to something. */
static int
walk_bitmap (struct check *c, const struct qcow2_bitmap *bm)
{
  int error;

  if (bm->unusable[0]) {
    if (c->is_first)
      check_found (c, false, "bitmap '%.64s': %s", bm->name, bm->unusable);
    c->is_incomplete = true;
    return 0;
  }
  check_refer (c, bm->table, (uint64_t) bm->table_len * 8, "bitmap's table");
  error = qcow2_bitmap_walk (c->q, bm, walk_bitmap_entry, c);
  return error < 0 ? check_failed (c, error, "a bitmap's table") : 0;
}

static int
walk_bitmaps (struct check *c)
{
  struct error why = ERROR_INIT;
  struct qcow2_bitmaps b;
  int error;

  error = qcow2_bitmaps_read (&c->q->blk, &b, &why);
  if (error == -EINVAL) {
    if (c->is_first)
      check_found (c, false, "%s", why.msg);
    c->is_incomplete = true;
    return 0;
  }
  if (error < 0)
    return check_failed (c, error, "the bitmap directory");
  check_refer (c, b.dir_off, b.dir_len, "bitmap directory");
  for (size_t i = 0; i < b.nr && error == 0; i++)
    error = walk_bitmap (c, &b.ptr[i]);
  qcow2_bitmaps_free (&b);
  return error;
}

int
check_walk (struct check *c)
{
  const struct qcow2_header *h = &c->q->header;
  int error;

  check_refer (c, 0, c->q->cluster_size, "header");
  check_refer (c, h->l1_offset, (uint64_t) h->l1_size * 8, "L1 table");
  error = check_each_l2 (c, h->l1_offset, h->l1_size, walk_l2);
  if (error == 0)
    error = walk_snapshots (c);
  if (error == 0)
    error = walk_bitmaps (c);
  if (!c->is_rebuilding)
    walk_refcounts (c);
  return error;
}
