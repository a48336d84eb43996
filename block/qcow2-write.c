/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes, zeroes and trims of qcow2 nodes, step by step: each step changes one
 * run of clusters of one type.
 *
 * Invariants:
 * - A step claims what it changes: the bytes, if it writes into clusters that
 *   stay where they are, else whole clusters.  So no cluster is moved, freed
 *   or allocated while another step writes to it, and two partial writes to
 *   one new cluster follow each other.
 * - No lock is held over data I/O.
 * - An L2 entry is changed after the data it will point to has been written.
 * - A step is an operation (qcow2_op_enter); commits happen between steps.
 *
 * Called from any thread.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "qcow2.h"

/* Pieces of freed space remembered until a commit. */
#define MAX_FREES 65536

/* --- before the first change */

/* Take back what the header promises and we do not keep. */
static int
clear_autoclear (struct qcow2 *q)
{
  uint64_t kept = 0;
  uint8_t field[8];
  bool keep;
  int error = 0;

  if (q->is_new || q->header.version < 3 || q->header.autoclear == 0)
    return 0;
  if (q->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS) {
    error = qcow2_bitmaps_before_write (q, &keep);
    kept = keep ? QCOW2_AUTOCLEAR_BITMAPS : 0;
  }
  if (error < 0 || kept == q->header.autoclear)
    return error;
  store_be64 (field, kept);
  error = blk_pwrite (q->file, field, sizeof field, 88, 0);
  if (error == 0)
    error = blk_flush (q->file);
  if (error == 0)
    q->header.autoclear = kept;
  return error;
}

/* Before each step: the first one takes back what the header promises and we
 * do not keep, and a cache full of changes is written back.
 */
static int
begin_step (struct qcow2 *q)
{
  bool is_full;
  int error = 0;

  lock_acquire (&q->lock);
  while (q->is_beginning)
    lock_wait (&q->lock, &q->changed);
  if (!q->is_writing_begun) {
    q->is_beginning = true;
    lock_release (&q->lock);
    error = clear_autoclear (q);
    lock_acquire (&q->lock);
    q->is_beginning = false;
    q->is_writing_begun = error == 0;
    pthread_cond_broadcast (&q->changed);
  }
  is_full = q->dirty.len >= q->max_dirty || q->frees.len >= MAX_FREES;
  lock_release (&q->lock);
  if (error == 0 && is_full)
    error = qcow2_commit (q, false);
  return error;
}

/* --- one step */

/* A step in progress: a claim and what was found under it. */
struct step {
  struct qcow2 *q;
  struct req req;
  unsigned epoch;
  struct qcow2_run run;         /* of the bytes asked for */
  uint64_t off, len;            /* those bytes */
  uint64_t start, nr;           /* the clusters that they touch */
};

static bool
is_in_place (const struct qcow2_run *run)
{
  return run->type == QCOW2_DATA && run->is_copied;
}

/* Look up what is at off, cut len to one run, and claim it.  On success the
 * step is an operation and the lock is held.  is_whole: claim whole clusters
 * whatever their type.
 */
static int
step_begin (struct step *s, struct qcow2 *q, uint64_t off, uint64_t len,
            bool is_whole)
{
  uint64_t claim_off, claim_len;
  int error;

  s->q = q;
  s->off = off;
  lock_acquire (&q->lock);
  s->epoch = qcow2_op_enter (q);
  do {
    error = qcow2_map (q, off, len, false, &s->run);
    if (error < 0) {
      qcow2_op_leave (q, s->epoch);
      lock_release (&q->lock);
      return error;
    }
    s->len = s->run.len;
    s->start = round_down (off, q->cluster_size);
    s->nr = div_round_up (off + s->len - s->start, q->cluster_size);
    claim_off = off;
    claim_len = s->len;
    if (is_whole || !is_in_place (&s->run)) {
      claim_off = s->start;
      claim_len = s->nr << q->cluster_bits;
    }
  } while (reqlist_wait (&q->claims, &q->lock, claim_off, claim_len));
  reqlist_add (&q->claims, &s->req, claim_off, claim_len);
  return 0;
}

static void
step_end (struct step *s)
{
  reqlist_remove (&s->q->claims, &s->req);
  qcow2_op_leave (s->q, s->epoch);
  lock_release (&s->q->lock);
}

/* One L2 table at a time. */
static void
cut_to_table (struct step *s)
{
  const struct qcow2 *q = s->q;
  uint64_t table = UINT64_C (1) << (q->l2_bits + q->cluster_bits);

  s->len = MIN (s->len, round_down (s->off, table) + table - s->off);
  s->nr = div_round_up (s->off + s->len - s->start, q->cluster_size);
}

/* Under the backing file or beyond it. */
static void
cut_to_backing (struct step *s)
{
  const struct qcow2 *q = s->q;
  uint64_t end;

  if (qcow2_is_unbacked (q, s->off) || q->backing_size == UINT64_MAX)
    return;
  end = round_up (q->backing_size, q->cluster_size);
  s->len = MIN (s->len, end - s->off);
  s->nr = div_round_up (s->off + s->len - s->start, q->cluster_size);
}

/* --- writing the data of a step */

/* Old content of guest bytes; beyond the disk's end zeroes. */
static int
read_old (struct qcow2 *q, uint8_t *buf, uint64_t len, uint64_t off)
{
  uint64_t size = blk_size (&q->blk);
  uint64_t n = off < size ? MIN (len, size - off) : 0;

  memset (buf + n, 0, len - n);
  return n ? qcow2_pread (&q->blk, buf, n, off, 0) : 0;
}

/* Write the part [off, off+len) of one cluster to its new place at host, the
 * rest of the cluster with its old content.
 */
static int
write_filled (struct qcow2 *q, const uint8_t *buf, uint64_t len, uint64_t off,
              uint64_t host)
{
  CLEANUP_FREE uint8_t *bounce = malloc (q->cluster_size);
  uint64_t head = off & (q->cluster_size - 1), tail = head + len;
  int error;

  if (!bounce)
    return -ENOMEM;
  blk_event (q->file, BLK_EVENT_COW_READ);
  error = read_old (q, bounce, head, off - head);
  if (error == 0)
    error = read_old (q, bounce + tail, q->cluster_size - tail, off + len);
  if (error < 0)
    return error;
  memcpy (bounce + head, buf, len);
  blk_event (q->file, BLK_EVENT_COW_WRITE);
  return blk_pwrite (q->file, bounce, q->cluster_size, host, 0);
}

/* Write the step's first len bytes to new clusters at host. */
static int
write_clusters (const struct step *s, const uint8_t *buf, uint64_t len,
                uint64_t host)
{
  struct qcow2 *q = s->q;
  uint64_t mask = q->cluster_size - 1, off = s->off, n;
  int error = 0;

  while (len > 0 && error == 0) {
    if ((off & mask) || len < q->cluster_size) {
      n = MIN (len, q->cluster_size - (off & mask));
      error = write_filled (q, buf, n, off, host);
      host += q->cluster_size;
    } else {
      n = len & ~mask;
      blk_event (q->file, BLK_EVENT_WRITE_AIO);
      error = blk_pwrite (q->file, buf, n, host, 0);
      host += n;
    }
    buf += n;
    off += n;
    len -= n;
  }
  return error;
}

/* True if nothing but the bytes to be written needs to go to new clusters that
 * read as zeroes.
 */
static bool
needs_no_fill (const struct step *s)
{
  switch (s->run.type) {
  case QCOW2_UNALLOCATED:
    return qcow2_is_unbacked (s->q, s->start);
  case QCOW2_ZERO_PLAIN:
  case QCOW2_ZERO_ALLOC:
    return true;
  default:
    return false;
  }
}

/* Into clusters that are there already. */
static int
write_in_place (struct step *s, const uint8_t *buf)
{
  struct qcow2 *q = s->q;
  uint64_t end = round_up (s->run.host + s->len, q->cluster_size);
  int error;

  /* Another program may have left the file shorter than its last cluster. */
  error = qcow2_grow_file (q, end);
  lock_release (&q->lock);
  blk_event (q->file, BLK_EVENT_WRITE_AIO);
  if (error == 0)
    error = blk_pwrite (q->file, buf, s->len, s->run.host, 0);
  lock_acquire (&q->lock);
  return error;
}

/* Find the step's new place: what a zero cluster has kept, or new space. */
static int
find_place (struct step *s, uint64_t *ret_host, bool *ret_is_fresh)
{
  struct qcow2 *q = s->q;

  if (s->run.type == QCOW2_ZERO_ALLOC && s->run.is_copied) {
    *ret_host = round_down (s->run.host, q->cluster_size);
    *ret_is_fresh = false;
    return qcow2_grow_file (q, *ret_host + (s->nr << q->cluster_bits));
  }
  return qcow2_alloc (q, s->start, &s->nr, ret_host, ret_is_fresh);
}

static int
write_new (struct step *s, const uint8_t *buf)
{
  struct qcow2 *q = s->q;
  uint64_t host, done = 0;
  bool is_fresh, is_kept;
  int error;

  is_kept = s->run.type == QCOW2_ZERO_ALLOC && s->run.is_copied;
  cut_to_table (s);
  error = qcow2_l2_prepare (q, s->off);
  if (error == 0)
    error = find_place (s, &host, &is_fresh);
  if (error < 0)
    return error;
  s->len = MIN (s->len, s->start + (s->nr << q->cluster_bits) - s->off);

  lock_release (&q->lock);
  blk_event (q->file, BLK_EVENT_WRITE_AIO);
  if (is_fresh && needs_no_fill (s))
    error = blk_pwrite (q->file, buf, s->len, host + (s->off - s->start), 0);
  else
    error = write_clusters (s, buf, s->len, host);
  lock_acquire (&q->lock);

  if (error == 0)
    error = qcow2_l2_set (q, s->start, s->nr, host | QCOW2_COPIED, &done);
  if (error < 0 && !is_kept)
    qcow2_unalloc (q, host + (done << q->cluster_bits), s->nr - done);
  return error;
}

/* Write a prefix of [off, off+len); *ret_done is its length. */
static int
write_step (struct qcow2 *q, const uint8_t *buf, uint64_t len, uint64_t off,
            uint64_t *ret_done)
{
  struct step s;
  int error;

  error = step_begin (&s, q, off, len, false);
  if (error < 0)
    return error;
  if (is_in_place (&s.run))
    error = write_in_place (&s, buf);
  else
    error = write_new (&s, buf);
  step_end (&s);
  *ret_done = s.len;
  return error;
}

int
qcow2_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
              unsigned flags)
{
  struct qcow2 *q = qcow2_of (blk);
  const uint8_t *p = buf;
  uint64_t done = 0;
  int error;

  for (; len > 0; p += done, off += done, len -= done) {
    error = begin_step (q);
    if (error == 0)
      error = write_step (q, p, len, off, &done);
    if (error < 0)
      return error;
  }
  return 0;
}

/* --- zero and trim */

enum change { ZERO_KEEP, ZERO_UNMAP, TRIM };

/* What the step's clusters are to be.  Returns false if they can stay, with
 * -EOPNOTSUPP in *ret_error if zeroes have to be written instead.
 */
static bool
choose_entry (const struct step *s, enum change how, uint64_t *ret_entry,
              int *ret_error)
{
  const struct qcow2 *q = s->q;
  bool is_unbacked = qcow2_is_unbacked (q, s->off);
  bool is_reserved = qcow2_is_reserved (q, s->off, s->len);

  *ret_entry = 0;
  *ret_error = 0;
  if (s->run.type == QCOW2_ZERO_PLAIN
      || (s->run.type == QCOW2_ZERO_ALLOC && how != TRIM))
    return false;
  if (s->run.type == QCOW2_UNALLOCATED && is_unbacked
      && (!is_reserved || how == TRIM))
    return false;
  if (q->header.version < 3) {
    /* There are no zero clusters: what has no base can go. */
    if (is_unbacked)
      return true;
    *ret_error = how == TRIM ? 0 : -EOPNOTSUPP;
    return false;
  }
  if (how == ZERO_KEEP && is_in_place (&s->run))
    *ret_entry = s->run.host | QCOW2_COPIED | QCOW2_ZERO;
  else if (how != TRIM || !is_unbacked)
    *ret_entry = QCOW2_ZERO;
  return true;
}

/* Zero or trim whole clusters: a prefix of [off, off+len). */
static int
change_step (struct qcow2 *q, uint64_t len, uint64_t off, enum change how,
             uint64_t *ret_done)
{
  uint64_t entry, done;
  struct step s;
  int error;

  error = step_begin (&s, q, off, len, true);
  if (error < 0)
    return error;
  cut_to_backing (&s);
  if (choose_entry (&s, how, &entry, &error)) {
    cut_to_table (&s);
    error = qcow2_l2_prepare (q, off);
    if (error == 0)
      error = qcow2_l2_set (q, off, s.nr, entry, &done);
  }
  if (error == 0 && q->reservations.len > 0)
    error = qcow2_reservation_drop (q, off, s.nr << q->cluster_bits);
  step_end (&s);
  *ret_done = s.len;
  return error;
}

/* True if the whole range reads as zeroes without a look at any data. */
static int
is_zero_already (struct qcow2 *q, uint64_t len, uint64_t off, bool *ret)
{
  struct step s;
  int error;

  error = step_begin (&s, q, off, len, true);
  if (error < 0)
    return error;
  *ret = s.len == len && needs_no_fill (&s);
  step_end (&s);
  return 0;
}

/* Zeroes within one cluster. */
static int
zero_part (struct qcow2 *q, uint64_t len, uint64_t off)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  bool is_zero;
  int error;

  error = is_zero_already (q, len, off, &is_zero);
  if (error < 0 || is_zero)
    return error;
  buf = calloc (1, len);
  return buf ? qcow2_pwrite (&q->blk, buf, len, off, 0) : -ENOMEM;
}

/* The bytes from off to the end of its cluster, at most len, if that is less
 * than the whole of it; else 0.
 */
static uint64_t
part_length (const struct qcow2 *q, uint64_t len, uint64_t off)
{
  uint64_t in_cluster = off & (q->cluster_size - 1);
  uint64_t n = MIN (len, q->cluster_size - in_cluster);
  bool is_whole = in_cluster == 0
    && (n == q->cluster_size || off + n == blk_size (&q->blk));

  return is_whole ? 0 : n;
}

/* The part of [off, off+len) that is whole clusters. */
static uint64_t
whole_length (const struct qcow2 *q, uint64_t len, uint64_t off)
{
  if (off + len == blk_size (&q->blk))
    return len;
  return round_down (len, q->cluster_size);
}

int
qcow2_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct qcow2 *q = qcow2_of (blk);
  enum change how = flags & BLK_MAY_UNMAP ? ZERO_UNMAP : ZERO_KEEP;
  uint64_t done = 0;
  int error;

  for (; len > 0; off += done, len -= done) {
    error = begin_step (q);
    if (error < 0)
      return error;
    done = part_length (q, len, off);
    if (done > 0)
      error = zero_part (q, done, off);
    else
      error = change_step (q, whole_length (q, len, off), off, how, &done);
    if (error == -EOPNOTSUPP && !(flags & BLK_FAST)) {
      done = MIN (len, q->cluster_size);
      error = zero_part (q, done, off);
    }
    if (error < 0)
      return error;
  }
  return 0;
}

int
qcow2_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct qcow2 *q = qcow2_of (blk);
  uint64_t done = 0;
  int error;

  for (; len > 0; off += done, len -= done) {
    error = begin_step (q);
    if (error < 0)
      return error;
    done = part_length (q, len, off);
    if (done == 0)
      error = change_step (q, whole_length (q, len, off), off, TRIM, &done);
    if (error < 0)
      return error;
  }
  return 0;
}
