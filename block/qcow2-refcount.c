/* SPDX-License-Identifier: BSD-3-Clause */
/* Host clusters: their refcounts, allocation, and reservations of new images.
 *
 * Invariants: the in-memory refcount of a cluster is raised before anything in
 * memory points to it, under one hold of the lock with the choice of the
 * cluster; it is lowered only by qcow2_refcount_drop after the tables without
 * it are on stable storage, or if nothing ever pointed to it.  Hence a cluster
 * with refcount 0 may be taken at once.  Only one thread chooses at a time
 * (is_allocating), because slices may have to be read meanwhile.
 *
 * A new image, and one that is opened to be appended to, hands out host space
 * by a bump pointer, in the order of the reservations; another one searches
 * from next_host on.
 *
 * Called from threads that write, with the lock.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "qcow2.h"

/* Step by which a growing file is extended; close cuts off the rest. */
#define GROW_STEP (UINT64_C (16) << 20)

static uint64_t
cluster_of (const struct qcow2 *q, uint64_t host)
{
  return host >> q->cluster_bits;
}

/* --- one slice of refcounts */

static uint64_t
get_refcount (const uint8_t *p, uint64_t i, unsigned order)
{
  switch (order) {
  case 3: return p[i];
  case 4: return load_be16 (p + i * 2);
  case 5: return load_be32 (p + i * 4);
  case 6: return load_be64 (p + i * 8);
  default:
    i <<= order;                /* in bits; the lowest come first */
    return (p[i / 8] >> (i % 8)) & ((1u << (1u << order)) - 1);
  }
}

static void
set_refcount (uint8_t *p, uint64_t i, unsigned order, uint64_t value)
{
  unsigned mask;

  switch (order) {
  case 3: p[i] = (uint8_t) value; return;
  case 4: store_be16 (p + i * 2, (uint16_t) value); return;
  case 5: store_be32 (p + i * 4, (uint32_t) value); return;
  case 6: store_be64 (p + i * 8, value); return;
  default:
    i <<= order;
    mask = ((1u << (1u << order)) - 1) << (i % 8);
    p[i / 8] = (uint8_t) ((p[i / 8] & ~mask)
                          | (((unsigned) value << (i % 8)) & mask));
  }
}

uint64_t
qcow2_refcount_get (const uint8_t *p, uint64_t i, unsigned order)
{
  return get_refcount (p, i, order);
}

void
qcow2_refcount_set (uint8_t *p, uint64_t i, unsigned order, uint64_t value)
{
  set_refcount (p, i, order, value);
}

/* log2 of the refcounts of a slice. */
static unsigned
slice_refcount_bits (const struct qcow2 *q)
{
  return q->slice_bits + 3 - q->header.refcount_order;
}

/* Mark refcounts [i, i+nr) of the slice as about to change. */
static int
dirty_refcounts (struct qcow2 *q, struct qcow2_slice *s, uint64_t i,
                 uint64_t nr)
{
  unsigned order = q->header.refcount_order;

  return qcow2_meta_dirty (q, s, (uint32_t) ((i << order) / 8),
                           (uint32_t) div_round_up ((i + nr) << order, 8));
}

/* The cluster is free: packed data must not be added to it. */
static void
forget_packed (struct qcow2 *q, uint64_t cluster)
{
  if (q->packed_end == (cluster + 1) << q->cluster_bits)
    q->packed_pos = q->packed_end = 0;
}

/* Change the refcounts of [cluster, cluster+nr) from 0 to 1 (is_taken) or take
 * one off.  What has none (a damaged image) is left alone.  May release the
 * lock between slices; *ret_done counts what was changed.
 */
static int
change_refcounts (struct qcow2 *q, uint64_t cluster, uint64_t nr,
                  bool is_taken, uint64_t *ret_done)
{
  unsigned bits = slice_refcount_bits (q), order = q->header.refcount_order;
  uint64_t i, n, old;
  struct qcow2_slice *s;
  int error;

  for (*ret_done = 0; *ret_done < nr; *ret_done += n, cluster += n) {
    i = cluster & ((UINT64_C (1) << bits) - 1);
    n = MIN (nr - *ret_done, (UINT64_C (1) << bits) - i);
    error = qcow2_meta_get (q, QCOW2_REFCOUNT, cluster >> bits, &s);
    if (error == 0 && !s)
      error = -EIO;
    if (error == 0)
      error = dirty_refcounts (q, s, i, n);
    if (error < 0)
      return error;
    for (uint64_t k = i; k < i + n; k++) {
      old = get_refcount (s->buf->bytes, k, order);
      if (is_taken)
        set_refcount (s->buf->bytes, k, order, 1);
      else if (old > 0)
        set_refcount (s->buf->bytes, k, order, old - 1);
      if (!is_taken && old == 1)
        forget_packed (q, cluster - i + k);
      if (!is_taken && old == 1 && !q->is_appending)
        q->next_host = MIN (q->next_host,
                            (cluster - i + k) << q->cluster_bits);
    }
  }
  return 0;
}

/* From 0 to 1; all or, as far as the lock's release allows, none. */
static int
take_refcounts (struct qcow2 *q, uint64_t host, uint64_t nr)
{
  uint64_t done;
  int error;

  error = change_refcounts (q, cluster_of (q, host), nr, true, &done);
  if (error < 0 && done > 0)
    qcow2_unalloc (q, host, done);
  return error;
}

/* The lowest and highest refcount of the clusters. */
static int
refcount_bounds (struct qcow2 *q, uint64_t cluster, uint64_t nr,
                 uint64_t *ret_min, uint64_t *ret_max)
{
  unsigned bits = slice_refcount_bits (q);
  struct qcow2_slice *s;
  uint64_t n;
  int error;

  *ret_min = UINT64_MAX;
  *ret_max = 0;
  for (; nr > 0; nr--, cluster++) {
    error = qcow2_meta_get (q, QCOW2_REFCOUNT, cluster >> bits, &s);
    if (error < 0)
      return error;
    n = s ? get_refcount (s->buf->bytes,
                          cluster & ((UINT64_C (1) << bits) - 1),
                          q->header.refcount_order) : 0;
    *ret_min = MIN (*ret_min, n);
    *ret_max = MAX (*ret_max, n);
  }
  return 0;
}

/* --- the file and its space */

bool
qcow2_is_metadata (const struct qcow2 *q, uint64_t host, uint64_t len)
{
  const struct qcow2_header *h = &q->header;

  return host < q->cluster_size
    || range_overlaps (host, len, h->l1_offset, (uint64_t) h->l1_size * 8)
    || range_overlaps (host, len, h->reftable_offset,
                       (uint64_t) h->reftable_clusters << q->cluster_bits);
}

int
qcow2_grow_file (struct qcow2 *q, uint64_t end)
{
  uint64_t size = blk_size (q->file), step = GROW_STEP;
  int error;

  if (end > q->file_end)
    q->file_end = end;
  if (end <= size)
    return 0;
  if (!q->is_growable)
    return -ENOSPC;
  error = blk_resize (q->file, round_up (end, step));
  if (error == -EFBIG || error == -ENOSPC)
    error = blk_resize (q->file, end);
  return error;
}

int
qcow2_grow_data (struct qcow2 *q, uint64_t end)
{
  if (!qcow2_is_external (q))
    return qcow2_grow_file (q, round_up (end, q->cluster_size));
  return end <= blk_size (q->data) ? 0 : blk_resize (q->data, end);
}

static void
allocating_begin (struct qcow2 *q)
{
  lock_assert_held (&q->lock);
  while (q->is_allocating)
    lock_wait (&q->lock, &q->changed);
  q->is_allocating = true;
}

static void
allocating_end (struct qcow2 *q)
{
  q->is_allocating = false;
  pthread_cond_broadcast (&q->changed);
}

/* Make [host, host+len) exist in the file and read as zeroes. */
static int
make_zero_space (struct qcow2 *q, uint64_t host, uint64_t len)
{
  bool is_fresh = host >= q->fresh_from;
  int error;

  error = qcow2_grow_file (q, host + len);
  if (error < 0)
    return error;
  q->fresh_from = MAX (q->fresh_from, q->is_growable ? host + len : 0);
  if (is_fresh)
    return 0;
  lock_release (&q->lock);
  error = blk_zero (q->file, len, host, 0);
  lock_acquire (&q->lock);
  return error;
}

/* --- refcount blocks and their table */

/* Put a refcount block for clusters that have none at host, a free cluster. */
static int
make_refblock (struct qcow2 *q, uint64_t i, uint64_t host)
{
  int error;

  blk_event (q->file, BLK_EVENT_REFBLOCK_ALLOC);
  error = qcow2_overlap_check (q, host, q->cluster_size);
  if (error < 0)
    return error;
  error = make_zero_space (q, host, q->cluster_size);
  if (error < 0)
    return error;
  q->reftable.entries[i] = host;
  error = take_refcounts (q, host, 1);
  if (error < 0) {
    q->reftable.entries[i] = 0;
    return error;
  }
  qcow2_table_mark (&q->reftable, i);
  qcow2_overlap_add (q, host);
  return 0;
}

static int grow_reftable (struct qcow2 *q, uint64_t *pos, uint64_t entries);

/* Find room for nr contiguous clusters at *pos or after it, where everything
 * is free, with refcount blocks for all of it: these are put in front.  *pos
 * moves to the end of what was taken.
 */
static int
bump (struct qcow2 *q, uint64_t *pos, uint64_t nr, uint64_t *ret_host)
{
  uint64_t i, last;
  int error;

  for (;;) {
    if (*pos >= QCOW2_MAX_HOST_OFFSET
        || nr > (QCOW2_MAX_HOST_OFFSET - *pos) >> q->cluster_bits)
      return -ENOSPC;
    last = (cluster_of (q, *pos) + nr - 1) >> q->refblock_bits;
    if (last >= q->reftable.len) {
      error = grow_reftable (q, pos, last + 1);
      if (error < 0)
        return error;
      continue;
    }
    i = cluster_of (q, *pos) >> q->refblock_bits;
    while (i <= last && q->reftable.entries[i])
      i++;
    if (i > last)
      break;
    error = make_refblock (q, i, *pos);
    if (error < 0)
      return error;
    *pos += q->cluster_size;
  }
  *ret_host = *pos;
  *pos += nr << q->cluster_bits;
  return qcow2_grow_file (q, *pos);
}

/* A larger refcount table at *pos or after it, beyond everything in use.  The
 * old one's space is free once a commit has written the header.
 */
static int
grow_reftable (struct qcow2 *q, uint64_t *pos, uint64_t entries)
{
  struct qcow2_table *t = &q->reftable;
  uint64_t len, host, clusters, *new_entries;
  int error;

  blk_event (q->file, BLK_EVENT_REFTABLE_GROW);
  len = MAX (entries + entries / 2, t->len * 2) + 8;
  clusters = div_round_up (len * 8, q->cluster_size);
  if (clusters << q->cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
    return -ENOSPC;
  len = (clusters << q->cluster_bits) / 8;
  new_entries = realloc (t->entries, len * 8);
  if (!new_entries || qcow2_frees_reserve (&q->frees, 1) < 0) {
    t->entries = new_entries ? new_entries : t->entries;
    return -ENOMEM;
  }
  memset (new_entries + t->len, 0, (len - t->len) * 8);
  t->entries = new_entries;
  t->len = len;
  error = bump (q, pos, clusters, &host);
  if (error == 0)
    error = take_refcounts (q, host, clusters);
  if (error < 0)
    return error;
  q->fresh_from = MAX (q->fresh_from, q->is_growable ? *pos : 0);
  if (qcow2_frees_reserve (&q->frees, 1) < 0)
    return -ENOMEM;
  qcow2_free_later (q, q->header.reftable_offset,
                    (uint64_t) q->header.reftable_clusters << q->cluster_bits);
  q->header.reftable_offset = host;
  q->header.reftable_clusters = (uint32_t) clusters;
  q->is_reftable_moved = true;
  qcow2_table_mark (t, 0);
  qcow2_table_mark (t, len - 1);
  return 0;
}

/* --- allocation */

/* The first free clusters of an existing image. */
static int
search (struct qcow2 *q, uint64_t *nr, uint64_t *ret_host)
{
  unsigned bits = slice_refcount_bits (q), order = q->header.refcount_order;
  uint64_t cluster, per_slice = UINT64_C (1) << bits, i, n, pos;
  struct qcow2_slice *s;
  int error;

  for (;;) {
    cluster = cluster_of (q, q->next_host);
    if (cluster >> q->refblock_bits >= q->reftable.len
        || q->reftable.entries[cluster >> q->refblock_bits] == 0) {
      /* From here to the end of the block everything is free. */
      pos = q->next_host;
      error = bump (q, &pos, 1, ret_host);
      if (error < 0)
        return error;
      if (q->next_host == cluster << q->cluster_bits)
        q->next_host = *ret_host;
      continue;
    }
    error = qcow2_meta_get (q, QCOW2_REFCOUNT, cluster >> bits, &s);
    if (error < 0)
      return error;
    if (!s)
      return -EIO;
    if (cluster != cluster_of (q, q->next_host))
      continue;                 /* something was freed meanwhile */
    i = cluster & (per_slice - 1);
    while (i < per_slice && get_refcount (s->buf->bytes, i, order) != 0)
      i++;
    cluster = round_down (cluster, per_slice) + i;
    q->next_host = cluster << q->cluster_bits;
    if (i == per_slice)
      continue;
    n = 1;
    while (n < *nr && i + n < per_slice
           && get_refcount (s->buf->bytes, i + n, order) == 0)
      n++;
    *nr = n;
    *ret_host = q->next_host;
    return 0;
  }
}

static int
search_and_take (struct qcow2 *q, uint64_t *nr, uint64_t *ret_host)
{
  int error;

  error = search (q, nr, ret_host);
  if (error < 0)
    return error;
  if (*ret_host >= QCOW2_MAX_HOST_OFFSET)
    return -ENOSPC;
  error = qcow2_overlap_check (q, *ret_host, *nr << q->cluster_bits);
  if (error < 0)
    return error;               /* damaged: in use, but refcount 0 */
  error = qcow2_grow_file (q, *ret_host + (*nr << q->cluster_bits));
  if (error < 0)
    return error;
  error = take_refcounts (q, *ret_host, *nr);
  if (error == 0)
    q->next_host = *ret_host + (*nr << q->cluster_bits);
  return error;
}

/* Reservations are few and in order: the index of the first that ends after
 * off.
 */
static size_t
reservation_index (const struct qcow2 *q, uint64_t off)
{
  size_t lo = 0, hi = q->reservations.len, mid;
  const struct qcow2_reservation *r;

  while (lo < hi) {
    mid = (lo + hi) / 2;
    r = &q->reservations.ptr[mid];
    if (r->off + r->len <= off)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

bool
qcow2_is_reserved (const struct qcow2 *q, uint64_t off, uint64_t len)
{
  size_t i = reservation_index (q, off);

  return i < q->reservations.len && q->reservations.ptr[i].off < off + len;
}

int
qcow2_reservation_drop (struct qcow2 *q, uint64_t off, uint64_t len)
{
  struct qcow2_reservation *r, tail;
  uint64_t end = off + len;
  size_t i;

  if (q->reservations.len == 0)
    return 0;
  if (qcow2_reservations_reserve (&q->reservations, 1) < 0)
    return -ENOMEM;
  i = reservation_index (q, off);
  while (i < q->reservations.len && q->reservations.ptr[i].off < end) {
    r = &q->reservations.ptr[i];
    tail = *r;
    if (r->off < off) {
      r->len = off - r->off;
      i++;
    } else
      qcow2_reservations_remove (&q->reservations, i);
    if (tail.off + tail.len > end) {
      memmove (&q->reservations.ptr[i + 1], &q->reservations.ptr[i],
               (q->reservations.len - i) * sizeof tail);
      q->reservations.len++;
      q->reservations.ptr[i] = (struct qcow2_reservation) {
        .off = end, .len = tail.off + tail.len - end,
        .host = tail.host + (end - tail.off),
      };
      return 0;
    }
  }
  return 0;
}

int
qcow2_reserve_locked (struct qcow2 *q, uint64_t len, uint64_t off)
{
  uint64_t nr = div_round_up (len, q->cluster_size), host;
  struct qcow2_reservation *r;
  size_t i;
  int error;

  allocating_begin (q);
  error = -EINVAL;
  if (!qcow2_is_reserved (q, off, len)) {
    error = qcow2_reservations_reserve (&q->reservations, 1);
    if (error == 0)
      error = bump (q, &q->next_host, nr, &host);
  }
  /* The lock may have been released. */
  if (error == 0)
    error = qcow2_reservations_reserve (&q->reservations, 1);
  if (error == 0) {
    i = reservation_index (q, off);
    r = &q->reservations.ptr[i];
    memmove (r + 1, r, (q->reservations.len - i) * sizeof *r);
    q->reservations.len++;
    *r = (struct qcow2_reservation) {
      .off = off, .len = nr << q->cluster_bits, .host = host,
    };
  }
  allocating_end (q);
  return error;
}

/* For an image that only grows. */
static int
take_reserved_or_bump (struct qcow2 *q, uint64_t off, uint64_t *nr,
                       uint64_t *ret_host)
{
  const struct qcow2_reservation *r;
  size_t i = reservation_index (q, off);
  int error = 0;

  r = i < q->reservations.len ? &q->reservations.ptr[i] : NULL;
  if (r && r->off <= off) {
    *nr = MIN (*nr, (r->off + r->len - off) >> q->cluster_bits);
    *ret_host = r->host + (off - r->off);
  } else {
    if (r)
      *nr = MIN (*nr, (r->off - off) >> q->cluster_bits);
    error = bump (q, &q->next_host, *nr, ret_host);
    r = NULL;
  }
  if (error == 0)
    error = take_refcounts (q, *ret_host, *nr);
  if (error == 0 && r)
    error = qcow2_reservation_drop (q, off, *nr << q->cluster_bits);
  return error;
}

int
qcow2_alloc (struct qcow2 *q, uint64_t off, uint64_t *nr, uint64_t *ret_host,
             bool *ret_is_fresh)
{
  int error;

  blk_event (q->file, BLK_EVENT_CLUSTER_ALLOC);
  allocating_begin (q);
  if (q->is_appending) {
    error = take_reserved_or_bump (q, off, nr, ret_host);
    *ret_is_fresh = q->is_growable;
  } else {
    error = search_and_take (q, nr, ret_host);
    *ret_is_fresh = *ret_host >= q->fresh_from;
    if (error == 0 && q->is_growable)
      q->fresh_from = MAX (q->fresh_from,
                           *ret_host + (*nr << q->cluster_bits));
  }
  allocating_end (q);
  return error;
}

/* One more reference to the cluster that packed data is being added to; false
 * if it can have no more.
 */
static bool
share_packed (struct qcow2 *q)
{
  unsigned bits = slice_refcount_bits (q), order = q->header.refcount_order;
  uint64_t end = q->packed_end, cluster = cluster_of (q, end) - 1, old;
  uint64_t max = order == 6 ? UINT64_MAX
    : (UINT64_C (1) << (1u << order)) - 1;
  uint64_t i = cluster & ((UINT64_C (1) << bits) - 1);
  struct qcow2_slice *s;

  if (end == 0 || qcow2_meta_get (q, QCOW2_REFCOUNT, cluster >> bits, &s) < 0
      || !s || q->packed_end != end)
    return false;
  old = get_refcount (s->buf->bytes, i, order);
  if (old == 0 || old == max || dirty_refcounts (q, s, i, 1) < 0)
    return false;
  set_refcount (s->buf->bytes, i, order, old + 1);
  return true;
}

/* A new cluster, which begins where the last one ends or stands alone. */
static int
extend_packed (struct qcow2 *q, uint64_t len, uint64_t *ret_host)
{
  uint64_t nr = 1, host, pos = q->packed_pos, end = q->packed_end;
  int error;

  if (q->is_appending) {
    error = bump (q, &q->next_host, 1, &host);
    if (error == 0)
      error = take_refcounts (q, host, 1);
  } else
    error = search_and_take (q, &nr, &host);
  if (error < 0)
    return error;
  if (!q->is_appending && q->is_growable)
    q->fresh_from = MAX (q->fresh_from, host + q->cluster_size);
  /* The lock may have been released. */
  if (pos == end || host != end || q->packed_end != end
      || !share_packed (q))
    pos = host;
  *ret_host = pos;
  q->packed_pos = pos + len;
  q->packed_end = host + q->cluster_size;
  return 0;
}

int
qcow2_alloc_packed (struct qcow2 *q, uint64_t len, uint64_t *ret_host)
{
  int error = 0;

  assert (len < q->cluster_size);
  blk_event (q->file, BLK_EVENT_CLUSTER_ALLOC);
  allocating_begin (q);
  if (q->packed_end - q->packed_pos >= len && share_packed (q)) {
    *ret_host = q->packed_pos;
    q->packed_pos += len;
  } else
    error = extend_packed (q, len, ret_host);
  allocating_end (q);
  return error;
}

void
qcow2_unalloc_packed (struct qcow2 *q, uint64_t host, uint64_t len)
{
  uint64_t first = cluster_of (q, host);

  qcow2_unalloc (q, first << q->cluster_bits,
                 cluster_of (q, host + len - 1) - first + 1);
}

int
qcow2_alloc_table (struct qcow2 *q, uint64_t *ret_host)
{
  uint64_t nr = 1, host = 0;
  int error;

  allocating_begin (q);
  if (q->is_appending) {
    error = bump (q, &q->next_host, 1, &host);
    if (error == 0)
      error = take_refcounts (q, host, 1);
  } else
    error = search_and_take (q, &nr, &host);
  if (error == 0) {
    error = make_zero_space (q, host, q->cluster_size);
    if (error < 0)
      qcow2_unalloc (q, host, 1);
  }
  allocating_end (q);
  *ret_host = host;
  return error;
}

/* The number of clusters up to the last of [0, nr) that is in use. */
static int
find_last (struct qcow2 *q, uint64_t nr, uint64_t *ret)
{
  unsigned bits = slice_refcount_bits (q), order = q->header.refcount_order;
  struct qcow2_slice *s;
  uint64_t first;
  int error;

  for (; nr > 0; nr = first) {
    first = round_down (nr - 1, UINT64_C (1) << bits);
    error = qcow2_meta_get (q, QCOW2_REFCOUNT, first >> bits, &s);
    if (error < 0)
      return error;
    for (; s && nr > first; nr--)
      if (get_refcount (s->buf->bytes, nr - 1 - first, order) != 0) {
        *ret = nr;
        return 0;
      }
  }
  *ret = 0;
  return 0;
}

/* Where nothing is in use from on: with a file that grows its end, on a device
 * that has to be looked for.
 */
static int
find_end (struct qcow2 *q, uint64_t *ret)
{
  uint64_t nr = div_round_up (q->file_end, q->cluster_size);
  int error = q->is_growable ? 0 : find_last (q, nr, &nr);

  *ret = MAX (nr << q->cluster_bits, round_up (q->next_host,
                                               q->cluster_size));
  return error;
}

int
qcow2_alloc_run (struct qcow2 *q, uint64_t nr, uint64_t *ret_host)
{
  uint64_t end, *pos = &q->next_host;
  int error = 0;

  allocating_begin (q);
  if (!q->is_appending) {
    error = find_end (q, &end);
    pos = &end;
  }
  if (error == 0)
    error = bump (q, pos, nr, ret_host);
  if (error == 0)
    error = take_refcounts (q, *ret_host, nr);
  if (error == 0)
    q->fresh_from = MAX (q->fresh_from, q->is_growable ? *pos : 0);
  allocating_end (q);
  return error;
}

int
qcow2_shrink_file (struct qcow2 *q)
{
  uint64_t nr = 0;
  int error;

  allocating_begin (q);
  error = find_last (q, div_round_up (q->file_end, q->cluster_size), &nr);
  if (error == 0 && nr << q->cluster_bits < q->file_end)
    q->file_end = nr << q->cluster_bits;
  allocating_end (q);
  return error;
}

int
qcow2_take_first (struct qcow2 *q, uint64_t end)
{
  uint64_t nr = cluster_of (q, end), nr_blocks = 0;
  int error;

  while (nr_blocks << q->refblock_bits < nr + nr_blocks)
    nr_blocks++;
  if (nr_blocks > q->reftable.len)
    return -EFBIG;
  error = make_zero_space (q, end, nr_blocks << q->cluster_bits);
  if (error < 0)
    return error;
  for (uint64_t i = 0; i < nr_blocks; i++) {
    q->reftable.entries[i] = end + (i << q->cluster_bits);
    qcow2_table_mark (&q->reftable, i);
    qcow2_overlap_add (q, end + (i << q->cluster_bits));
  }
  q->next_host = end + (nr_blocks << q->cluster_bits);
  return take_refcounts (q, 0, nr + nr_blocks);
}

int
qcow2_check_refcounts (struct qcow2 *q, struct error *err)
{
  const struct qcow2_header *h = &q->header;
  const struct {
    const char *what;
    uint64_t off, len;
  } tables[] = {
    { "header", 0, 1 },
    { "L1 table", h->l1_offset, (uint64_t) h->l1_size * 8 },
    { "refcount table", h->reftable_offset,
      (uint64_t) h->reftable_clusters << q->cluster_bits },
  };
  uint64_t nr, min, max;
  int error = 0;

  lock_acquire (&q->lock);
  for (size_t i = 0; i < 3 && error == 0; i++) {
    nr = div_round_up (tables[i].len, q->cluster_size);
    if (refcount_bounds (q, cluster_of (q, tables[i].off), nr, &min, &max) < 0
        || min == 0)
      error = error_set (err, EINVAL, "%s: the refcounts of the %s are wrong,"
                         " the image can only be read (qemu-img check -r all"
                         " mends it)", q->blk.name, tables[i].what);
  }
  lock_release (&q->lock);
  return error;
}

void
qcow2_unalloc (struct qcow2 *q, uint64_t host, uint64_t nr)
{
  uint64_t done;

  /* If this fails the clusters are leaked, which harms nobody. */
  (void) change_refcounts (q, cluster_of (q, host), nr, false, &done);
}

void
qcow2_free_later (struct qcow2 *q, uint64_t host, uint64_t len)
{
  struct qcow2_free *last;

  last = q->frees.len ? &q->frees.ptr[q->frees.len - 1] : NULL;
  if (last && last->host + last->len == host) {
    last->len += len;
    return;
  }
  assert (q->frees.len < q->frees.cap);
  q->frees.ptr[q->frees.len++] = (struct qcow2_free) { host, len };
}

int
qcow2_refcount_drop (struct qcow2 *q, uint64_t host, uint64_t len)
{
  uint64_t nr = div_round_up (len, q->cluster_size), done, min, max;

  blk_event (q->file, BLK_EVENT_CLUSTER_FREE);
  /* While the refcount is not yet 0 nobody takes the space. */
  if ((q->file->can & BLK_CAN_TRIM)
      && host + len <= blk_size (q->file)
      && refcount_bounds (q, cluster_of (q, host), nr, &min, &max) == 0
      && min == 1 && max == 1) {
    lock_release (&q->lock);
    (void) blk_trim (q->file, len, host, 0);
    lock_acquire (&q->lock);
  }
  return change_refcounts (q, cluster_of (q, host), nr, false, &done);
}
