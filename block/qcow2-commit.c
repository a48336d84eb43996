/* SPDX-License-Identifier: BSD-3-Clause */
/* Writing metadata back, in the order that survives a crash at any moment.
 *
 *   1 refcount blocks; sync; refcount table; sync     (raised refcounts)
 *   2 L2 slices, L1, the header of a new image; sync
 *   3 refcounts of what the tables no longer use are lowered; refcount blocks
 *
 * Invariants: on stable storage nothing is referenced that has no refcount, at
 * any moment (leaks are possible between 2 and 3); data is stable before the
 * entry that points to it, because the snapshot of step 1 is taken before its
 * sync and an entry is made after its data was written.  A new image has no
 * header before its first flush, so until then there is nothing to order.
 *
 * An image with lazy refcounts is marked dirty before the first flush that
 * leaves step 1 and the writing of step 3 out, and until all has been written
 * at close: whoever opens it for writing before that counts all references
 * again (blk-qcow2.c).  The refcounts in memory are always right.
 *
 * I/O goes on meanwhile: the snapshot shares the slices' buffers, and a slice
 * that is changed gets a new buffer first.
 *
 * Called by flush and close, and by writers when the cache is full of changed
 * slices; one commit at a time.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "qcow2.h"

#define HEADER_SECTOR 512

struct dirty_slice {
  struct qcow2_slice *slice;
  struct qcow2_buf *buf;        /* a reference */
  uint64_t place;
  uint32_t lo, hi;
};

/* A changed range of a table, big-endian. */
struct dirty_table {
  uint64_t *entries;
  uint64_t first, nr;
};

/* What a commit writes. */
struct commit {
  struct dirty_slice *slices;
  size_t nr;
  struct dirty_table l1, reftable;
  uint64_t l1_offset, reftable_offset;
  uint32_t reftable_clusters;
  bool is_reftable_moved;
  bool is_lowering;             /* step 3: refcount blocks only */
  bool is_lazy;                 /* no refcount blocks */
  bool is_ordered;              /* somebody may see the image: sync */
  bool is_header_due;
  struct qcow2_frees frees;
};

/* To make room in the cache; for a flush; for the last time. */
enum extent_of_commit { COMMIT_ROOM, COMMIT_FLUSH, COMMIT_LAST };

/* --- the snapshot */

static int
copy_table (const struct qcow2_table *t, struct dirty_table *ret)
{
  uint64_t nr = t->dirty_hi - t->dirty_lo;

  if (nr == 0)
    return 0;
  ret->entries = malloc (nr * 8);
  if (!ret->entries)
    return -ENOMEM;
  ret->first = t->dirty_lo;
  ret->nr = nr;
  for (uint64_t i = 0; i < nr; i++)
    store_be64 (&ret->entries[i], t->entries[t->dirty_lo + i]);
  return 0;
}

/* By kind, then by place, so that the file is written in one direction. */
static int
compare (const void *va, const void *vb)
{
  const struct dirty_slice *a = va, *b = vb;

  if (a->slice->kind != b->slice->kind)
    return a->slice->kind == QCOW2_REFCOUNT ? -1 : 1;
  return a->place < b->place ? -1 : a->place > b->place;
}

static int
snapshot_slices (const struct qcow2 *q, enum qcow2_kind kind,
                 struct commit *c)
{
  struct qcow2_slice *s;
  struct dirty_slice *d;
  int error;

  for (s = q->dirty[kind].first; s; s = s->next) {
    d = &c->slices[c->nr++];
    *d = (struct dirty_slice) {
      .slice = s, .buf = s->buf, .lo = s->dirty_lo, .hi = s->dirty_hi,
    };
    error = qcow2_meta_place (q, kind, s->index, &d->place);
    if (error < 0)
      return error;
    assert (d->place != 0);
  }
  return 0;
}

/* Nothing has changed if this fails. */
static int
snapshot (struct qcow2 *q, struct commit *c)
{
  size_t nr = q->dirty[QCOW2_L2].len + q->dirty[QCOW2_REFCOUNT].len;
  int error = 0;

  lock_assert_held (&q->lock);
  c->slices = malloc (MAX (nr, 1) * sizeof *c->slices);
  if (!c->slices)
    return -ENOMEM;
  if (!c->is_lazy)
    error = snapshot_slices (q, QCOW2_REFCOUNT, c);
  if (error < 0 || c->is_lowering)
    return error;
  error = snapshot_slices (q, QCOW2_L2, c);
  if (error < 0)
    return error;
  if (copy_table (&q->l1, &c->l1) < 0
      || copy_table (&q->reftable, &c->reftable) < 0)
    return -ENOMEM;
  qsort (c->slices, c->nr, sizeof *c->slices, compare);
  return 0;
}

/* The snapshot's contents count as written from here on. */
static void
take_snapshot (struct qcow2 *q, struct commit *c)
{
  for (size_t i = 0; i < c->nr; i++) {
    struct qcow2_slice *s = c->slices[i].slice;

    c->slices[i].buf->refs++;
    qcow2_meta_list_remove (&q->dirty[s->kind], s);
    s->is_dirty = false;
    s->is_writing = true;
  }
  if (c->is_lowering)
    return;
  q->l1.dirty_lo = q->l1.dirty_hi = 0;
  q->reftable.dirty_lo = q->reftable.dirty_hi = 0;
  c->l1_offset = q->header.l1_offset;
  c->reftable_offset = q->header.reftable_offset;
  c->reftable_clusters = q->header.reftable_clusters;
  c->is_reftable_moved = q->is_reftable_moved;
  q->is_reftable_moved = false;
  c->frees = q->frees;
  q->frees = (struct qcow2_frees) VECTOR_INIT;
}

/* --- writing */

static int
write_slices (struct qcow2 *q, const struct commit *c, enum qcow2_kind kind)
{
  uint32_t lo, hi;
  int error;

  for (size_t i = 0; i < c->nr; i++) {
    const struct dirty_slice *d = &c->slices[i];

    if (d->slice->kind != kind)
      continue;
    blk_event (q->file, kind == QCOW2_L2 ? BLK_EVENT_L2_UPDATE
               : BLK_EVENT_REFBLOCK_UPDATE_PART);
    lo = (uint32_t) round_down (d->lo, 512);
    hi = (uint32_t) round_up (d->hi, 512);
    error = blk_pwrite (q->file, d->buf->bytes + lo, hi - lo, d->place + lo,
                        0);
    if (error < 0)
      return error;
  }
  return 0;
}

static bool
has_slices (const struct commit *c, enum qcow2_kind kind)
{
  for (size_t i = 0; i < c->nr; i++)
    if (c->slices[i].slice->kind == kind)
      return true;
  return false;
}

static int
write_table (struct qcow2 *q, const struct dirty_table *t, uint64_t off,
             enum blk_event event)
{
  blk_event (q->file, event);
  return blk_pwrite (q->file, t->entries, t->nr * 8, off + t->first * 8, 0);
}

int
qcow2_sync (struct qcow2 *q)
{
  int error = qcow2_is_external (q) ? blk_flush (q->data) : 0;

  return error < 0 ? error : blk_flush (q->file);
}

static int
sync_if_ordered (struct qcow2 *q, const struct commit *c)
{
  return c->is_ordered ? qcow2_sync (q) : 0;
}

static int
write_refcounts (struct qcow2 *q, const struct commit *c)
{
  uint8_t fields[12];
  int error;

  error = write_slices (q, c, QCOW2_REFCOUNT);
  if (error == 0 && c->reftable.nr > 0) {
    error = sync_if_ordered (q, c);
    if (error == 0)
      error = write_table (q, &c->reftable, c->reftable_offset,
                           BLK_EVENT_REFTABLE_UPDATE);
  }
  if (error == 0)
    error = sync_if_ordered (q, c);
  if (error < 0 || !c->is_reftable_moved || !q->is_valid)
    return error;
  /* Offset and length change in one write within a sector. */
  store_be64 (fields, c->reftable_offset);
  store_be32 (fields + 8, c->reftable_clusters);
  error = blk_pwrite (q->file, fields, sizeof fields, 48, 0);
  return error < 0 ? error : blk_flush (q->file);
}

/* The header of a new image makes it valid: last, after a sync, and its first
 * sector, which a disk writes as a whole, behind the others.
 */
static int
write_header (struct qcow2 *q, const struct commit *c)
{
  CLEANUP_FREE uint8_t *buf = calloc (1, q->cluster_size);
  struct qcow2_header h = q->header;
  int error;

  if (!buf)
    return -ENOMEM;
  h.reftable_offset = c->reftable_offset;
  h.reftable_clusters = c->reftable_clusters;
  error = qcow2_header_compose (&h, buf, q->cluster_size);
  if (error == 0 && q->cluster_size > HEADER_SECTOR)
    error = blk_pwrite (q->file, buf + HEADER_SECTOR,
                        q->cluster_size - HEADER_SECTOR, HEADER_SECTOR, 0);
  if (error == 0)
    error = qcow2_sync (q);
  if (error == 0)
    error = blk_pwrite (q->file, buf, HEADER_SECTOR, 0, 0);
  return error;
}

static int
write_all (struct qcow2 *q, const struct commit *c)
{
  int error;

  error = write_refcounts (q, c);
  if (error == 0)
    error = write_slices (q, c, QCOW2_L2);
  if (error == 0 && c->l1.nr > 0)
    error = write_table (q, &c->l1, c->l1_offset, BLK_EVENT_L1_UPDATE);
  if (error == 0 && c->is_header_due)
    error = write_header (q, c);
  if (error == 0 && (c->is_header_due || c->l1.nr > 0
                     || has_slices (c, QCOW2_L2)))
    error = c->is_header_due ? blk_flush (q->file) : sync_if_ordered (q, c);
  return error;
}

/* --- afterwards */

static void
slice_written (struct qcow2 *q, const struct dirty_slice *d, bool is_failed)
{
  struct qcow2_slice *s = d->slice;

  s->is_writing = false;
  qcow2_buf_unref (d->buf);
  if (is_failed && !s->is_dirty) {
    qcow2_meta_list_add (&q->dirty[s->kind], s);
    s->is_dirty = true;
    s->dirty_lo = d->lo;
    s->dirty_hi = d->hi;
  } else if (is_failed) {
    s->dirty_lo = MIN (s->dirty_lo, d->lo);
    s->dirty_hi = MAX (s->dirty_hi, d->hi);
  } else if (!s->is_dirty)
    qcow2_meta_list_add (&q->clean[s->kind], s);
}

static void
mark_range (struct qcow2_table *t, const struct dirty_table *d)
{
  if (d->nr > 0) {
    qcow2_table_mark (t, d->first);
    qcow2_table_mark (t, d->first + d->nr - 1);
  }
}

/* Put the frees that were not done back in front of newer ones. */
static void
keep_frees (struct qcow2 *q, struct commit *c, size_t from)
{
  for (size_t i = from; i < c->frees.len; i++) {
    if (qcow2_frees_reserve (&q->frees, 1) < 0)
      return;                   /* leaked in the file, which harms nobody */
    qcow2_free_later (q, c->frees.ptr[i].host, c->frees.ptr[i].len);
  }
}

static void
take_back (struct qcow2 *q, struct commit *c)
{
  mark_range (&q->l1, &c->l1);
  mark_range (&q->reftable, &c->reftable);
  q->is_reftable_moved |= c->is_reftable_moved;
  keep_frees (q, c, 0);
}

static void
commit_free (struct commit *c)
{
  free (c->slices);
  free (c->l1.entries);
  free (c->reftable.entries);
  qcow2_frees_reset (&c->frees);
}

static bool
is_clean (const struct qcow2 *q, bool is_flush)
{
  return q->dirty[QCOW2_L2].len == 0 && q->dirty[QCOW2_REFCOUNT].len == 0
    && q->l1.dirty_lo == q->l1.dirty_hi
    && q->reftable.dirty_lo == q->reftable.dirty_hi && q->frees.len == 0
    && (q->is_valid || !is_flush);
}

/* Take the snapshot and write it. */
static int
write_snapshot (struct qcow2 *q, struct commit *c)
{
  int error;

  error = snapshot (q, c);
  if (error < 0)
    return error;
  take_snapshot (q, c);
  lock_release (&q->lock);
  error = c->is_lowering ? write_slices (q, c, QCOW2_REFCOUNT)
    : write_all (q, c);
  lock_acquire (&q->lock);
  for (size_t i = 0; i < c->nr; i++)
    slice_written (q, &c->slices[i], error < 0);
  if (error < 0)
    take_back (q, c);
  else
    q->is_valid |= c->is_header_due;
  return error;
}

/* Give back the clusters from *next on, and write it, as far as the cache has
 * room for what that changes.
 */
static int
lower_some (struct qcow2 *q, const struct commit *c, size_t *next)
{
  const size_t max = q->limits.max_dirty[QCOW2_REFCOUNT];
  struct commit lowering = { .is_lowering = true, .is_lazy = c->is_lazy };
  const struct qcow2_free *f;
  int error = 0;

  do {
    f = &c->frees.ptr[*next];
    error = qcow2_refcount_drop (q, f->host, f->len);
    if (error < 0)
      return error;
  } while (++*next < c->frees.len
           && (c->is_lazy || q->dirty[QCOW2_REFCOUNT].len < max));
  error = write_snapshot (q, &lowering);
  commit_free (&lowering);
  return error;
}

/* Nothing on stable storage uses them any more, and no operation that began
 * before that was so is left: give the clusters back.
 */
static int
apply_frees (struct qcow2 *q, struct commit *c)
{
  unsigned old = q->epoch & 1;
  size_t next = 0;
  int error = 0;

  q->epoch++;
  while (q->nr_ops[old] > 0)
    lock_wait (&q->lock, &q->changed);
  while (error == 0 && next < c->frees.len)
    error = lower_some (q, c, &next);
  keep_frees (q, c, next);
  return error;
}

/* Say in the header whether the refcounts in the file can be wrong. */
static int
mark_dirty (struct qcow2 *q, bool is_dirty)
{
  uint64_t before, features;
  uint8_t field[8];
  int error = 0;

  do {
    before = q->header.incompatible;
    features = before & ~(uint64_t) QCOW2_INCOMPAT_DIRTY;
    if (is_dirty)
      features |= QCOW2_INCOMPAT_DIRTY;
    if (features == before)
      return 0;
    store_be64 (field, features);
    lock_release (&q->lock);
    error = blk_pwrite (q->file, field, sizeof field, 72, 0);
    if (error == 0)
      error = blk_flush (q->file);
    lock_acquire (&q->lock);
    /* It may have been found corrupt meanwhile. */
  } while (error == 0 && q->header.incompatible != before);
  if (error == 0)
    q->header.incompatible = features;
  return error;
}

/* A new refcount table must not become known before its blocks, nor may the old
 * one be given back before that: then nothing is left out.  Nor is it if that
 * could change more blocks than the cache has room for.
 */
static bool
can_be_lazy (const struct qcow2 *q)
{
  return q->is_lazy && !q->is_reftable_moved
    && q->frees.len <= q->limits.max_dirty[QCOW2_REFCOUNT]
    && q->reftable.dirty_lo == q->reftable.dirty_hi;
}

static int
commit_locked (struct qcow2 *q, enum extent_of_commit how)
{
  bool is_flush = how != COMMIT_ROOM;
  struct commit c = {
    .is_ordered = q->is_valid, .is_header_due = !q->is_valid && is_flush,
    .is_lazy = how == COMMIT_FLUSH && can_be_lazy (q),
  };
  int error = 0;

  if (c.is_lazy && (q->frees.len > 0 || q->dirty[QCOW2_REFCOUNT].len > 0))
    error = mark_dirty (q, true);
  if (error == 0 && c.is_lazy)
    c.is_lazy = can_be_lazy (q);
  if (error == 0)
    error = write_snapshot (q, &c);
  if (error == 0 && c.frees.len > 0)
    error = apply_frees (q, &c);
  commit_free (&c);
  return error;
}

static int
commit (struct qcow2 *q, enum extent_of_commit how)
{
  bool is_flush = how != COMMIT_ROOM;
  int error;

  lock_acquire (&q->lock);
  while (q->is_committing)
    lock_wait (&q->lock, &q->changed);
  if (q->is_corrupt) {
    lock_release (&q->lock);
    return -EIO;
  }
  if (is_clean (q, is_flush)) {
    lock_release (&q->lock);
    return is_flush ? qcow2_sync (q) : 0;
  }
  q->is_committing = true;
  error = commit_locked (q, how);
  q->is_committing = false;
  pthread_cond_broadcast (&q->changed);
  lock_release (&q->lock);
  return error;
}

int
qcow2_commit (struct qcow2 *q, bool is_flush)
{
  return commit (q, is_flush ? COMMIT_FLUSH : COMMIT_ROOM);
}

int
qcow2_commit_last (struct qcow2 *q)
{
  int error = commit (q, COMMIT_LAST);

  if (error < 0 || !q->is_lazy)
    return error;
  /* What step 3 has lowered, if nothing has been written since. */
  error = qcow2_sync (q);
  lock_acquire (&q->lock);
  if (error == 0)
    error = mark_dirty (q, false);
  lock_release (&q->lock);
  return error;
}
