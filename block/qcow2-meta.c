/* SPDX-License-Identifier: BSD-3-Clause */
/* Metadata in memory: slices of L2 tables and refcount blocks in a cache of
 * bounded size, L1 and refcount table whole.
 *
 * I10: a table is allocated only after the header check has bounded it and
 * only as far as it lies within the file.
 *
 * Called from every thread that does I/O, with the lock of struct qcow2,
 * which is released while a slice is read.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "qcow2.h"

int
qcow2_file_read (struct qcow2 *q, void *buf, uint64_t len, uint64_t off)
{
  uint64_t size = blk_size (q->file);
  uint64_t n = off < size ? MIN (len, size - off) : 0;

  memset ((uint8_t *) buf + n, 0, len - n);
  return n ? blk_pread (q->file, buf, n, off, 0) : 0;
}

int
qcow2_table_load (struct qcow2 *q, const char *what, uint64_t off,
                  uint64_t nr, struct qcow2_table *ret, struct error *err)
{
  CLEANUP_FREE uint64_t *entries = NULL;
  int error;

  if (!range_is_within (off, nr * 8, blk_size (q->file)))
    return error_set (err, EINVAL, "%s: the %s is beyond the end of the file",
                      q->blk.name, what);
  entries = malloc (MAX (nr, 1) * 8);
  if (!entries)
    return error_set_errno (err, ENOMEM, "%s: the %s", q->blk.name, what);
  error = blk_pread (q->file, entries, nr * 8, off, 0);
  if (error < 0)
    return error_set_errno (err, -error, "%s: reading the %s", q->blk.name,
                            what);
  for (uint64_t i = 0; i < nr; i++)
    entries[i] = load_be64 (&entries[i]);
  ret->entries = entries;
  ret->len = nr;
  ret->dirty_lo = ret->dirty_hi = 0;
  entries = NULL;
  return 0;
}

void
qcow2_table_mark (struct qcow2_table *t, uint64_t index)
{
  if (t->dirty_lo == t->dirty_hi) {
    t->dirty_lo = index;
    t->dirty_hi = index + 1;
  } else {
    t->dirty_lo = MIN (t->dirty_lo, index);
    t->dirty_hi = MAX (t->dirty_hi, index + 1);
  }
}

void
qcow2_meta_list_add (struct qcow2_slice_list *list, struct qcow2_slice *s)
{
  s->prev = NULL;
  s->next = list->first;
  if (list->first)
    list->first->prev = s;
  else
    list->last = s;
  list->first = s;
  list->len++;
}

void
qcow2_meta_list_remove (struct qcow2_slice_list *list, struct qcow2_slice *s)
{
  if (s->prev)
    s->prev->next = s->next;
  else
    list->first = s->next;
  if (s->next)
    s->next->prev = s->prev;
  else
    list->last = s->prev;
  list->len--;
}

static struct qcow2_slice **
bucket (const struct qcow2 *q, enum qcow2_kind kind, uint64_t index)
{
  uint64_t key = (index * 2 + kind) * UINT64_C (0x9e3779b97f4a7c15);

  return &q->hash[(key >> 32) & (q->nr_buckets - 1)];
}

static struct qcow2_slice *
find (const struct qcow2 *q, enum qcow2_kind kind, uint64_t index)
{
  struct qcow2_slice *s = *bucket (q, kind, index);

  while (s && (s->index != index || s->kind != kind))
    s = s->hash_next;
  return s;
}

static void
hash_remove (struct qcow2 *q, struct qcow2_slice *s)
{
  struct qcow2_slice **p = bucket (q, s->kind, s->index);

  while (*p != s)
    p = &(*p)->hash_next;
  *p = s->hash_next;
}

void
qcow2_buf_unref (struct qcow2_buf *buf)
{
  if (buf && --buf->refs == 0)
    free (buf);
}

static void
slice_free (struct qcow2_slice *s)
{
  qcow2_buf_unref (s->buf);
  free (s);
}

/* Out of the cache. */
static void
forget (struct qcow2 *q, struct qcow2_slice *s)
{
  hash_remove (q, s);
  q->nr_slices[s->kind]--;
  slice_free (s);
}

static struct qcow2_buf *
buf_new (const struct qcow2 *q)
{
  struct qcow2_buf *buf;

  buf = malloc (sizeof *buf + (UINT64_C (1) << q->slice_bits));
  if (buf)
    buf->refs = 1;
  return buf;
}

/* Make room for one more: drop the clean slices that were not used for
 * longest.
 */
static void
shrink (struct qcow2 *q, enum qcow2_kind kind)
{
  struct qcow2_slice *s;

  while (q->nr_slices[kind] >= q->limits.max_slices[kind]
         && (s = q->clean[kind].last)) {
    qcow2_meta_list_remove (&q->clean[kind], s);
    forget (q, s);
  }
}

/* What is wrong with an entry of L1 or the refcount table that is not 0; NULL =
 * nothing.
 */
static const char *
entry_fault (const struct qcow2 *q, enum qcow2_kind kind, uint64_t entry)
{
  uint64_t reserved = kind == QCOW2_L2 ? QCOW2_L1_RESERVED
    : QCOW2_REFTABLE_RESERVED;
  uint64_t place = kind == QCOW2_L2 ? entry & QCOW2_OFFSET_MASK
    : entry & ~QCOW2_REFTABLE_RESERVED;

  if (place & (q->cluster_size - 1))
    return "its offset is not aligned to a cluster";
  if (entry & reserved)
    return "reserved bits are set";
  if (place == 0)
    return "it points to the header";
  if (place >= QCOW2_MAX_HOST_OFFSET || place >= blk_size (q->file))
    return "it points beyond the end of the file";
  if (qcow2_is_metadata (q, place, q->cluster_size))
    return "it points to the L1 or the refcount table";
  return NULL;
}

int
qcow2_meta_place (const struct qcow2 *q, enum qcow2_kind kind, uint64_t index,
                  uint64_t *ret)
{
  const struct qcow2_table *t = kind == QCOW2_L2 ? &q->l1 : &q->reftable;
  unsigned shift = q->cluster_bits - q->slice_bits;
  uint64_t i = index >> shift;

  *ret = 0;
  if (i >= t->len || t->entries[i] == 0)
    return 0;
  if (entry_fault (q, kind, t->entries[i]))
    return -EIO;
  *ret = (t->entries[i] & QCOW2_OFFSET_MASK)
    + ((index & ((UINT64_C (1) << shift) - 1)) << q->slice_bits);
  return 0;
}

/* Say why qcow2_meta_place has failed. */
static int
misplaced (struct qcow2 *q, enum qcow2_kind kind, uint64_t index)
{
  const struct qcow2_table *t = kind == QCOW2_L2 ? &q->l1 : &q->reftable;
  uint64_t i = index >> (q->cluster_bits - q->slice_bits);

  return qcow2_damaged (q, "entry %" PRIu64 " of the %s table: %s", i,
                        kind == QCOW2_L2 ? "L1" : "refcount",
                        entry_fault (q, kind, t->entries[i]));
}

static struct qcow2_slice *
slice_new (struct qcow2 *q, enum qcow2_kind kind, uint64_t index)
{
  struct qcow2_slice *s = calloc (1, sizeof *s), **p;

  if (!s)
    return NULL;
  s->buf = buf_new (q);
  if (!s->buf) {
    free (s);
    return NULL;
  }
  s->kind = kind;
  s->index = index;
  p = bucket (q, kind, index);
  s->hash_next = *p;
  *p = s;
  q->nr_slices[kind]++;
  return s;
}

/* Read the slice from place, without the lock meanwhile. */
static int
load (struct qcow2 *q, enum qcow2_kind kind, uint64_t index, uint64_t place,
      struct qcow2_slice **ret)
{
  struct qcow2_slice *s;
  int error;

  shrink (q, kind);
  s = slice_new (q, kind, index);
  if (!s)
    return -ENOMEM;
  s->is_loading = true;
  lock_release (&q->lock);
  blk_event (q->file, kind == QCOW2_L2 ? BLK_EVENT_L2_LOAD
             : BLK_EVENT_REFBLOCK_LOAD);
  error = qcow2_file_read (q, s->buf->bytes, UINT64_C (1) << q->slice_bits,
                           place);
  lock_acquire (&q->lock);
  s->is_loading = false;
  pthread_cond_broadcast (&q->changed);
  if (error < 0) {
    forget (q, s);
    return error;
  }
  qcow2_meta_list_add (&q->clean[kind], s);
  *ret = s;
  return 0;
}

static void
touch (struct qcow2 *q, struct qcow2_slice *s)
{
  struct qcow2_slice_list *clean = &q->clean[s->kind];

  if (s->is_dirty || s->is_writing || clean->first == s)
    return;
  qcow2_meta_list_remove (clean, s);
  qcow2_meta_list_add (clean, s);
}

int
qcow2_meta_get_cached (struct qcow2 *q, enum qcow2_kind kind, uint64_t index,
                       struct qcow2_slice **ret)
{
  struct qcow2_slice *s = find (q, kind, index);
  uint64_t place;

  if (s && !s->is_loading) {
    touch (q, s);
    *ret = s;
    return 0;
  }
  if (qcow2_meta_place (q, kind, index, &place) < 0)
    return misplaced (q, kind, index);
  *ret = NULL;
  return place ? -EAGAIN : 0;
}

int
qcow2_meta_get (struct qcow2 *q, enum qcow2_kind kind, uint64_t index,
                struct qcow2_slice **ret)
{
  struct qcow2_slice *s;
  uint64_t place;

  lock_assert_held (&q->lock);
  while ((s = find (q, kind, index)) && s->is_loading)
    lock_wait (&q->lock, &q->changed);
  if (s) {
    touch (q, s);
    *ret = s;
    return 0;
  }
  if (qcow2_meta_place (q, kind, index, &place) < 0)
    return misplaced (q, kind, index);
  *ret = NULL;
  return place ? load (q, kind, index, place, ret) : 0;
}

int
qcow2_meta_dirty (struct qcow2 *q, struct qcow2_slice *s, uint32_t lo,
                  uint32_t hi)
{
  struct qcow2_buf *buf;

  lock_assert_held (&q->lock);
  if (s->buf->refs > 1) {
    /* A commit is writing this one as it was. */
    buf = buf_new (q);
    if (!buf)
      return -ENOMEM;
    memcpy (buf->bytes, s->buf->bytes, UINT64_C (1) << q->slice_bits);
    qcow2_buf_unref (s->buf);
    s->buf = buf;
  }
  if (s->is_dirty) {
    s->dirty_lo = MIN (s->dirty_lo, lo);
    s->dirty_hi = MAX (s->dirty_hi, hi);
    return 0;
  }
  if (!s->is_writing)
    qcow2_meta_list_remove (&q->clean[s->kind], s);
  qcow2_meta_list_add (&q->dirty[s->kind], s);
  s->is_dirty = true;
  s->dirty_lo = lo;
  s->dirty_hi = hi;
  return 0;
}

void
qcow2_meta_free_all (struct qcow2 *q)
{
  struct qcow2_slice *s;

  for (size_t i = 0; i < q->nr_buckets; i++)
    while ((s = q->hash[i])) {
      assert (!s->is_loading && !s->is_writing);
      q->hash[i] = s->hash_next;
      slice_free (s);
    }
  free (q->hash);
  q->hash = NULL;
  q->nr_buckets = 0;
}

unsigned
qcow2_op_enter (struct qcow2 *q)
{
  lock_assert_held (&q->lock);
  q->nr_ops[q->epoch & 1]++;
  return q->epoch & 1;
}

void
qcow2_op_leave (struct qcow2 *q, unsigned epoch)
{
  lock_assert_held (&q->lock);
  assert (q->nr_ops[epoch] > 0);
  if (--q->nr_ops[epoch] == 0 && epoch != (q->epoch & 1))
    pthread_cond_broadcast (&q->changed);
}
