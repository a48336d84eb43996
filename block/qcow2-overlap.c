/* SPDX-License-Identifier: BSD-3-Clause */
/* Where metadata lies, so that no write of data goes there: in a damaged image
 * two things may claim one cluster.
 *
 * Known are the header, L1 and the refcount table (qcow2_is_metadata), L2
 * tables and refcount blocks (a set of clusters), the snapshot table and the
 * L1 tables of snapshots, the directory and the tables of bitmaps (ranges).
 * Who finds an overlap marks the image
 * corrupt, in its header too: from then on nothing is written to it.
 *
 * Called from threads that write, with the lock.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "byteorder.h"
#include "cleanup.h"
#include "log.h"
#include "qcow2.h"

/* --- the set: open addressing, at most half full; 0 is no member */

static size_t
slot_of (const struct qcow2_set *set, uint64_t cluster)
{
  size_t i = (size_t) ((cluster * UINT64_C (0x9e3779b97f4a7c15)) >> 20);

  for (i &= set->cap - 1; set->slots[i] && set->slots[i] != cluster;
       i = (i + 1) & (set->cap - 1))
    ;
  return i;
}

static bool
has (const struct qcow2_set *set, uint64_t cluster)
{
  return set->cap && set->slots[slot_of (set, cluster)] == cluster;
}

static int
set_grow (struct qcow2_set *set)
{
  struct qcow2_set bigger = { .cap = MAX (set->cap * 2, 64),
                              .len = set->len };

  bigger.slots = calloc (bigger.cap, sizeof *bigger.slots);
  if (!bigger.slots)
    return -ENOMEM;
  for (size_t i = 0; i < set->cap; i++)
    if (set->slots[i])
      bigger.slots[slot_of (&bigger, set->slots[i])] = set->slots[i];
  free (set->slots);
  *set = bigger;
  return 0;
}

void
qcow2_overlap_add (struct qcow2 *q, uint64_t host)
{
  uint64_t cluster = host >> q->cluster_bits;
  struct qcow2_set *set = &q->tables;
  size_t i;

  /* Without memory the cluster is not watched, and all else works. */
  if (cluster == 0 || (set->len * 2 >= set->cap && set_grow (set) < 0))
    return;
  i = slot_of (set, cluster);
  set->len += set->slots[i] == 0;
  set->slots[i] = cluster;
}

void
qcow2_overlap_remove (struct qcow2 *q, uint64_t host)
{
  uint64_t cluster = host >> q->cluster_bits, moved;
  struct qcow2_set *set = &q->tables;
  size_t i;

  if (cluster == 0 || !has (set, cluster))
    return;
  i = slot_of (set, cluster);
  set->slots[i] = 0;
  set->len--;
  /* Those behind it may have been put there because it was in the way. */
  for (i = (i + 1) & (set->cap - 1); set->slots[i];
       i = (i + 1) & (set->cap - 1)) {
    moved = set->slots[i];
    set->slots[i] = 0;
    set->slots[slot_of (set, moved)] = moved;
  }
}

/* --- snapshots */

static int
compare (const void *va, const void *vb)
{
  const struct qcow2_range *a = va, *b = vb;

  return a->off < b->off ? -1 : a->off > b->off;
}

/* Sort, and join those that touch, so that they can be searched. */
static void
join_ranges (struct qcow2_ranges *v)
{
  size_t n = 0;

  if (v->len == 0)
    return;
  qsort (v->ptr, v->len, sizeof *v->ptr, compare);
  for (size_t i = 1; i < v->len; i++)
    if (v->ptr[i].off <= v->ptr[n].off + v->ptr[n].len)
      v->ptr[n].len = MAX (v->ptr[n].len, v->ptr[i].off + v->ptr[i].len
                           - v->ptr[n].off);
    else
      v->ptr[++n] = v->ptr[i];
  v->len = n + 1;
}

/* One entry of the snapshot table at pos; *ret_len is its length. */
static int
load_snapshot (struct qcow2 *q, uint64_t pos, uint64_t *ret_len)
{
  uint64_t size = blk_size (q->file), off, len;
  uint8_t buf[40];
  int error;

  if (!range_is_within (pos, sizeof buf, size))
    return -EINVAL;
  error = blk_pread (q->file, buf, sizeof buf, pos, 0);
  if (error < 0)
    return error;
  off = load_be64 (buf);
  len = (uint64_t) load_be32 (buf + 8) * 8;
  *ret_len = round_up (sizeof buf + load_be16 (buf + 12) + load_be16 (buf + 14)
                       + (uint64_t) load_be32 (buf + 36), 8);
  if (len > QCOW2_MAX_L1_BYTES || (off & (q->cluster_size - 1))
      || !range_is_within (off, len, size)
      || !range_is_within (pos, *ret_len, round_up (size, 8)))
    return -EINVAL;
  return len ? qcow2_ranges_append (&q->protected,
                                    (struct qcow2_range) { off, len }) : 0;
}

static int
load_snapshots (struct qcow2 *q, struct error *err)
{
  const struct qcow2_header *h = &q->header;
  uint64_t pos = h->snapshots_offset, len = 0;
  int error = 0;

  for (uint32_t i = 0; i < h->nr_snapshots; i++, pos += len) {
    error = load_snapshot (q, pos, &len);
    if (error == -EINVAL)
      return error_set (err, EINVAL, "%s: entry %u of the snapshot table is"
                        " damaged, the image can only be read", q->blk.name,
                        i);
    if (error < 0)
      return error_set_errno (err, -error, "%s: reading the snapshot table",
                              q->blk.name);
  }
  if (h->nr_snapshots > 0
      && qcow2_ranges_append (&q->protected, (struct qcow2_range) {
          h->snapshots_offset, pos - h->snapshots_offset }) < 0)
    return error_set_errno (err, ENOMEM, "%s", q->blk.name);
  join_ranges (&q->protected);
  return 0;
}

int
qcow2_overlap_load (struct qcow2 *q, struct error *err)
{
  int error;

  error = load_snapshots (q, err);
  if (error == 0)
    error = qcow2_bitmaps_watch (q, err);
  if (error < 0)
    return error;
  lock_acquire (&q->lock);
  for (uint64_t i = 0; i < q->l1.len; i++)
    qcow2_overlap_add (q, q->l1.entries[i] & QCOW2_OFFSET_MASK);
  for (uint64_t i = 0; i < q->reftable.len; i++)
    qcow2_overlap_add (q, q->reftable.entries[i] & ~QCOW2_REFTABLE_RESERVED);
  lock_release (&q->lock);
  return 0;
}

/* --- bitmaps */

void
qcow2_overlap_set_bitmaps (struct qcow2 *q, struct qcow2_ranges *ranges)
{
  join_ranges (ranges);
  lock_acquire (&q->lock);
  qcow2_ranges_reset (&q->bitmaps);
  q->bitmaps = *ranges;
  lock_release (&q->lock);
}

/* --- the check */

static bool
is_in_ranges (const struct qcow2_ranges *v, uint64_t off, uint64_t len)
{
  size_t lo = 0, hi = v->len, mid;

  while (lo < hi) {
    mid = (lo + hi) / 2;
    if (v->ptr[mid].off + v->ptr[mid].len <= off)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo < v->len && v->ptr[lo].off < off + len;
}

static bool
hits (const struct qcow2 *q, uint64_t host, uint64_t len)
{
  uint64_t i = host >> q->cluster_bits, end = (host + len - 1)
    >> q->cluster_bits;

  if (qcow2_is_metadata (q, host, len)
      || is_in_ranges (&q->protected, host, len)
      || is_in_ranges (&q->bitmaps, host, len))
    return true;
  for (; i <= end; i++)
    if (has (&q->tables, i))
      return true;
  return false;
}

/* Nothing else is written to the image any more. */
static void
mark_corrupt (struct qcow2 *q)
{
  uint8_t field[8];

  q->is_corrupt = true;
  if (q->header.version < 3 || !q->is_valid)
    return;
  q->header.incompatible |= QCOW2_INCOMPAT_CORRUPT;
  store_be64 (field, q->header.incompatible);
  lock_release (&q->lock);
  if (blk_pwrite (q->file, field, sizeof field, 72, 0) == 0)
    (void) blk_flush (q->file);
  lock_acquire (&q->lock);
}

int
qcow2_overlap_check (struct qcow2 *q, uint64_t host, uint64_t len)
{
  lock_assert_held (&q->lock);
  if (!hits (q, host, len))
    return 0;
  if (!q->is_corrupt) {
    log_error ("%s: corrupt: %" PRIu64 " bytes of new data would go to %"
               PRIu64 ", where metadata is; nothing more is written to it",
               q->blk.name, len, host);
    mark_corrupt (q);
  }
  return -EIO;
}
