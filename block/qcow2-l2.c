/* SPDX-License-Identifier: BSD-3-Clause */
/* Guest clusters to host clusters: L1 and L2 tables looked up and changed.
 *
 * Invariants: an entry with QCOW2_COPIED points to a cluster with refcount one
 * that nothing else uses; an L2 table is changed only if its L1 entry has
 * QCOW2_COPIED; an entry is changed only by the holder of a claim on its
 * guest cluster (qcow2-write.c).
 * I10: every entry is checked before its offset is used.
 *
 * Called from every thread that does I/O, with the lock.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "byteorder.h"
#include "cleanup.h"
#include "qcow2.h"

/* log2 of the entries of a slice. */
static unsigned
entries_bits (const struct qcow2 *q)
{
  return q->slice_bits - q->l2_entry_bits;
}

bool
qcow2_is_unbacked (const struct qcow2 *q, uint64_t off)
{
  return !q->has_backing || off >= q->backing_size;
}

/* Decoding: what is wrong with an entry, NULL = nothing. */

/* The host cluster that a standard entry names for the guest cluster at guest
 * is where data can be.
 */
static const char *
check_host (const struct qcow2 *q, uint64_t host, uint64_t guest)
{
  if (qcow2_is_external (q))
    return host == guest ? NULL
      : "in a data file a cluster is at its guest offset";
  if (host & (q->cluster_size - 1))
    return "its offset is not aligned to a cluster";
  if (host >= blk_size (q->file))
    return "it points beyond the end of the file";
  if (qcow2_is_metadata (q, host, q->cluster_size))
    return "it points to the header, the L1 or the refcount table";
  return NULL;
}

static const char *
decode_packed (const struct qcow2 *q, uint64_t entry, struct qcow2_run *run)
{
  uint64_t off, len;

  run->type = QCOW2_PACKED;
  run->is_copied = false;
  run->host = entry;
  qcow2_packed_place (q, entry, &off, &len);
  if (entry & QCOW2_COPIED)
    return "a compressed cluster has no copied flag";
  if (qcow2_is_external (q))
    return "a data file has no compressed clusters";
  if (off < q->cluster_size)
    return "its compressed data would be in the header";
  return off >= blk_size (q->file)
    ? "its compressed data would be beyond the end of the file" : NULL;
}

/* Where a standard entry places its cluster: DATA, or UNALLOCATED for
 * nowhere.
 */
static const char *
decode_place (const struct qcow2 *q, uint64_t entry, uint64_t guest,
              struct qcow2_run *run)
{
  uint64_t host = entry & QCOW2_OFFSET_MASK;
  bool is_first = qcow2_is_external (q) && (entry & QCOW2_COPIED);

  run->type = QCOW2_UNALLOCATED;
  run->is_copied = false;
  run->host = host;
  if (host == 0 && !is_first)
    return entry & QCOW2_COPIED ? "the copied flag needs an offset" : NULL;
  run->type = QCOW2_DATA;
  /* Nothing else can use a cluster of a data file. */
  run->is_copied = (entry & QCOW2_COPIED) || qcow2_is_external (q);
  return check_host (q, host, guest);
}

/* What the bitmap of an extended entry says of a subcluster. */
static const char *
decode_subcluster (uint64_t bitmap, unsigned i, struct qcow2_run *run)
{
  bool is_placed = run->type == QCOW2_DATA;

  if ((bitmap >> (32 + i)) & 1)
    run->type = is_placed ? QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
  else if (!((bitmap >> i) & 1))
    run->type = is_placed ? QCOW2_UNALLOCATED_PLACED : QCOW2_UNALLOCATED;
  if (!((bitmap >> i) & 1))
    return NULL;
  if (!is_placed)
    return "a subcluster has data, but the cluster has no offset";
  return run->type == QCOW2_DATA ? NULL
    : "a subcluster is both data and zeroes";
}

/* What the slice says of subcluster i, which is guest's; run->len is not
 * set.
 */
static const char *
decode (const struct qcow2 *q, const struct qcow2_slice *s, uint64_t i,
        uint64_t guest, struct qcow2_run *run)
{
  unsigned bits = q->cluster_bits - q->sub_bits;
  const uint8_t *p = s->buf->bytes + ((i >> bits) << q->l2_entry_bits);
  uint64_t entry = load_be64 (p), in_cluster = guest & (q->cluster_size - 1);
  const char *fault;

  if (entry & QCOW2_COMPRESSED)
    return decode_packed (q, entry, run);
  if (entry & QCOW2_L2_RESERVED)
    return "reserved bits are set";
  if ((entry & QCOW2_ZERO) && (q->header.version < 3 || qcow2_is_extended (q)))
    return "only a standard entry of version 3 has a zero flag";
  fault = decode_place (q, entry, guest - in_cluster, run);
  if (fault)
    return fault;
  if (qcow2_is_extended (q))
    fault = decode_subcluster (load_be64 (p + 8), i & ((1u << bits) - 1), run);
  else if (entry & QCOW2_ZERO)
    run->type = run->type == QCOW2_DATA ? QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
  run->host += in_cluster;
  return fault;
}

/* Without a table: all of its guest space and that of its neighbours that
 * have none either.
 */
static void
map_tableless (const struct qcow2 *q, uint64_t off, uint64_t len,
               struct qcow2_run *run)
{
  unsigned span_bits = q->cluster_bits + q->l2_bits;
  uint64_t i = off >> span_bits, end = off + len;

  do
    i++;
  while (i < q->l1.len && (i << span_bits) < end && q->l1.entries[i] == 0);
  run->type = QCOW2_UNALLOCATED;
  run->is_copied = false;
  run->host = 0;
  run->len = MIN (end, i << span_bits) - off;
}

/* True if run, len bytes long, can be continued by the next subcluster.
 * is_same: it is of the same cluster.
 */
static bool
is_continued (const struct qcow2_run *run, const struct qcow2_run *next,
              uint64_t len, bool is_same)
{
  if (run->type != next->type || run->is_copied != next->is_copied)
    return false;
  if (run->type == QCOW2_PACKED)
    return is_same;
  return !qcow2_run_is_placed (run) || next->host == run->host + len;
}

static int
map_slice (struct qcow2 *q, const struct qcow2_slice *s, uint64_t off,
           uint64_t len, struct qcow2_run *run)
{
  uint64_t nr = UINT64_C (1) << (entries_bits (q) + q->cluster_bits
                                 - q->sub_bits);
  uint64_t i = (off >> q->sub_bits) & (nr - 1), n;
  uint64_t sub_size = UINT64_C (1) << q->sub_bits;
  uint64_t in_sub = off & (sub_size - 1), guest = off - in_sub;
  struct qcow2_run next;
  const char *fault;

  fault = decode (q, s, i, guest, run);
  if (fault)
    return qcow2_damaged (q, "the L2 entry of guest offset %" PRIu64 ": %s",
                          round_down (guest, q->cluster_size), fault);
  for (n = sub_size; ++i < nr && n < in_sub + len; n += sub_size)
    /* A damaged entry is reported to who asks for it. */
    if (decode (q, s, i, guest + n, &next) != NULL
        || !is_continued (run, &next, n,
                          (guest + n) & (q->cluster_size - 1)))
      break;
  if (qcow2_run_is_placed (run))
    run->host += in_sub;
  run->len = MIN (len, n - in_sub);
  return 0;
}

int
qcow2_map (struct qcow2 *q, uint64_t off, uint64_t len, bool is_nowait,
           struct qcow2_run *ret)
{
  uint64_t index = off >> (q->cluster_bits + entries_bits (q));
  struct qcow2_slice *s;
  int error;

  if (is_nowait)
    error = qcow2_meta_get_cached (q, QCOW2_L2, index, &s);
  else
    error = qcow2_meta_get (q, QCOW2_L2, index, &s);
  if (error < 0)
    return error;
  if (!s) {
    map_tableless (q, off, len, ret);
    return 0;
  }
  return map_slice (q, s, off, len, ret);
}

/* Copy a table that others use too into the cluster at host. */
static int
copy_table (struct qcow2 *q, uint64_t from, uint64_t host)
{
  CLEANUP_FREE uint8_t *buf = malloc (q->cluster_size);
  int error;

  if (!buf)
    return -ENOMEM;
  lock_release (&q->lock);
  blk_event (q->file, BLK_EVENT_L2_ALLOC_COW_READ);
  error = qcow2_file_read (q, buf, q->cluster_size, from);
  if (error == 0)
    error = blk_pwrite (q->file, buf, q->cluster_size, host, 0);
  lock_acquire (&q->lock);
  return error;
}

/* Give L1 entry i a table of its own. */
static int
make_table (struct qcow2 *q, uint64_t i)
{
  uint64_t old, host;
  unsigned shift = q->cluster_bits - q->slice_bits;
  int error;

  error = qcow2_meta_place (q, QCOW2_L2, i << shift, &old);
  if (error < 0)
    return error;
  if (qcow2_frees_reserve (&q->frees, 1) < 0)
    return -ENOMEM;
  blk_event (q->file, BLK_EVENT_L2_ALLOC_WRITE);
  error = qcow2_alloc_table (q, &host);
  if (error < 0)
    return error;
  if (old)
    error = copy_table (q, old, host);
  if (error == 0 && qcow2_frees_reserve (&q->frees, 1) < 0)
    error = -ENOMEM;
  if (error < 0) {
    qcow2_unalloc (q, host, 1);
    return error;
  }
  if (old) {
    qcow2_overlap_remove (q, old);
    qcow2_free_later (q, old, q->cluster_size);
  }
  qcow2_overlap_add (q, host);
  q->l1.entries[i] = host | QCOW2_COPIED;
  qcow2_table_mark (&q->l1, i);
  return 0;
}

int
qcow2_l2_prepare (struct qcow2 *q, uint64_t off)
{
  uint64_t i = off >> (q->cluster_bits + q->l2_bits);
  int error = 0;

  lock_assert_held (&q->lock);
  if (q->l1.entries[i] & QCOW2_COPIED)
    return 0;
  while (q->is_making_l2)
    lock_wait (&q->lock, &q->changed);
  if (q->l1.entries[i] & QCOW2_COPIED)
    return 0;
  q->is_making_l2 = true;
  error = make_table (q, i);
  q->is_making_l2 = false;
  pthread_cond_broadcast (&q->changed);
  return error;
}

/* What the entry pointed to is no longer used by it. */
static void
release_old (struct qcow2 *q, uint64_t entry, uint64_t new_entry)
{
  uint64_t host = entry & QCOW2_OFFSET_MASK, off, len, end;

  if (qcow2_is_external (q))
    return;
  if (entry & QCOW2_COMPRESSED) {
    qcow2_packed_place (q, entry, &off, &len);
    end = round_up (off + len, q->cluster_size);
    off = round_down (off, q->cluster_size);
    qcow2_free_later (q, off, end - off);
  } else if (host && host != (new_entry & QCOW2_OFFSET_MASK))
    qcow2_free_later (q, host, q->cluster_size);
}

/* The bitmap of the extended entry of the cluster at guest. */
static uint64_t
change_bitmap (const struct qcow2 *q, const struct qcow2_change *c,
               uint64_t guest, uint64_t bitmap)
{
  uint64_t lo = MAX (c->off, guest) - guest;
  uint64_t hi = MIN (c->off + c->len, guest + q->cluster_size) - guest;
  unsigned first = (unsigned) (lo >> q->sub_bits);
  unsigned nr = (unsigned) ((hi + (1u << q->sub_bits) - 1) >> q->sub_bits)
    - first;
  uint64_t mask = ((UINT64_C (1) << nr) - 1) << first;

  bitmap &= ~(mask | mask << 32);
  switch (c->sub) {
  case QCOW2_SUB_ALLOC: return bitmap | mask;
  case QCOW2_SUB_ZERO: return bitmap | mask << 32;
  default: return bitmap;
  }
}

/* Change the nr entries of the slice that are of the clusters from guest
 * on.
 */
static int
set_in_slice (struct qcow2 *q, struct qcow2_slice *s,
              const struct qcow2_change *c, uint64_t guest, uint64_t nr)
{
  uint64_t first = round_down (c->off, q->cluster_size), entry = c->entry;
  uint64_t i = (guest >> q->cluster_bits)
    & ((UINT64_C (1) << entries_bits (q)) - 1), old;
  bool has_host = (entry & QCOW2_OFFSET_MASK)
    || (qcow2_is_external (q) && (entry & QCOW2_COPIED));
  uint8_t *p;

  if (qcow2_frees_reserve (&q->frees, nr) < 0
      || qcow2_meta_dirty (q, s, (uint32_t) (i << q->l2_entry_bits),
                           (uint32_t) ((i + nr) << q->l2_entry_bits)) < 0)
    return -ENOMEM;
  if (has_host)
    entry += guest - first;
  p = s->buf->bytes + (i << q->l2_entry_bits);
  for (; nr > 0; nr--, p += 1u << q->l2_entry_bits, guest += q->cluster_size) {
    old = load_be64 (p);
    if (qcow2_is_extended (q))
      store_be64 (p + 8, change_bitmap (q, c, guest, old & QCOW2_COMPRESSED
                                        ? 0 : load_be64 (p + 8)));
    if (c->keeps_entry)
      continue;
    release_old (q, old, entry);
    store_be64 (p, entry);
    if (has_host)
      entry += q->cluster_size;
  }
  return 0;
}

int
qcow2_l2_set (struct qcow2 *q, const struct qcow2_change *c,
              uint64_t *ret_done)
{
  uint64_t span = UINT64_C (1) << (entries_bits (q) + q->cluster_bits);
  uint64_t guest = round_down (c->off, q->cluster_size), end = c->off + c->len;
  struct qcow2_slice *s;
  uint64_t n;
  int error;

  for (*ret_done = 0; guest < end; *ret_done += n,
         guest += n << q->cluster_bits) {
    n = MIN (round_down (guest, span) + span, end) - guest;
    n = div_round_up (n, q->cluster_size);
    error = qcow2_meta_get (q, QCOW2_L2, guest / span, &s);
    if (error == 0 && !s)
      error = -EIO;
    if (error == 0)
      error = set_in_slice (q, s, c, guest, n);
    if (error < 0)
      return error;
  }
  return 0;
}
