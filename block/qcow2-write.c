/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes of qcow2 nodes, step by step: each step changes one run of
 * (sub)clusters of one type.
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
  if (qcow2_is_external (q))
    kept |= q->header.autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW;
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
int
qcow2_step_prepare (struct qcow2 *q)
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
  if (q->is_corrupt)
    error = -EIO;
  is_full = qcow2_cache_is_full (q) || q->frees.len >= MAX_FREES;
  lock_release (&q->lock);
  if (error == 0 && is_full)
    error = qcow2_commit (q, false);
  return error;
}

/* --- one step */

bool
qcow2_run_is_in_place (const struct qcow2_run *run)
{
  return run->type == QCOW2_DATA && run->is_copied;
}

int
qcow2_step_begin (struct qcow2_step *s, struct qcow2 *q, uint64_t off,
                  uint64_t len, bool is_whole)
{
  uint64_t claim_off, claim_len;
  int error;

  s->q = q;
  s->off = off;
  s->start = round_down (off, q->cluster_size);
  lock_acquire (&q->lock);
  s->epoch = qcow2_op_enter (q);
  do {
    error = qcow2_map (q, off, len, false, &s->run);
    if (error < 0) {
      qcow2_op_leave (q, s->epoch);
      lock_release (&q->lock);
      return error;
    }
    qcow2_step_cut (s, s->run.len);
    claim_off = off;
    claim_len = s->len;
    if (is_whole || !qcow2_run_is_in_place (&s->run)) {
      claim_off = s->start;
      claim_len = s->nr << q->cluster_bits;
    }
  } while (reqlist_wait (&q->claims, &q->lock, claim_off, claim_len));
  reqlist_add (&q->claims, &s->req, claim_off, claim_len);
  return 0;
}

void
qcow2_step_end (struct qcow2_step *s)
{
  reqlist_remove (&s->q->claims, &s->req);
  qcow2_op_leave (s->q, s->epoch);
  lock_release (&s->q->lock);
}

void
qcow2_step_cut (struct qcow2_step *s, uint64_t len)
{
  s->len = len;
  s->nr = div_round_up (s->off + len - s->start, s->q->cluster_size);
}

void
qcow2_step_cut_to_table (struct qcow2_step *s)
{
  const struct qcow2 *q = s->q;
  uint64_t table = UINT64_C (1) << (q->l2_bits + q->cluster_bits);

  qcow2_step_cut (s, MIN (s->len,
                          round_down (s->off, table) + table - s->off));
}

bool
qcow2_step_is_zero (const struct qcow2_step *s)
{
  switch (s->run.type) {
  case QCOW2_UNALLOCATED:
  case QCOW2_UNALLOCATED_PLACED:
    return qcow2_is_unbacked (s->q, s->start);
  case QCOW2_ZERO_PLAIN:
  case QCOW2_ZERO_ALLOC:
    return true;
  default:
    return false;
  }
}

/* --- writing the data of a step */

/* Where the clusters of a step are to be. */
struct place {
  uint64_t host;                /* of the step's first cluster */
  unsigned unit_bits;           /* log2 of bytes that are written whole */
  bool is_fresh;                /* it reads as zeroes */
  bool is_kept;                 /* they were there before */
};

/* Old content of guest bytes; beyond the disk's end zeroes. */
static int
read_old (struct qcow2 *q, uint8_t *buf, uint64_t len, uint64_t off)
{
  uint64_t size = blk_size (&q->blk);
  uint64_t n = off < size ? MIN (len, size - off) : 0;

  memset (buf + n, 0, len - n);
  return n ? qcow2_pread (&q->blk, buf, n, off, 0) : 0;
}

/* A file of guest data alone is no longer than the disk. */
static uint64_t
length_to_write (const struct qcow2 *q, uint64_t len, uint64_t off)
{
  uint64_t size = blk_size (&q->blk);

  if (!qcow2_is_external (q))
    return len;
  return off < size ? MIN (len, size - off) : 0;
}

/* Write the part [off, off+len) of one unit, which goes to host, and the rest
 * of the unit with its old content.
 */
static int
write_filled (struct qcow2 *q, const uint8_t *buf, uint64_t len, uint64_t off,
              uint64_t host, uint64_t unit)
{
  CLEANUP_FREE uint8_t *bounce = malloc (unit);
  uint64_t head = off & (unit - 1), tail = head + len;
  int error;

  if (!bounce)
    return -ENOMEM;
  blk_event (q->file, BLK_EVENT_COW_READ);
  error = read_old (q, bounce, head, off - head);
  if (error == 0)
    error = read_old (q, bounce + tail, unit - tail, off + len);
  if (error < 0)
    return error;
  memcpy (bounce + head, buf, len);
  blk_event (q->file, BLK_EVENT_COW_WRITE);
  return blk_pwrite (q->data, bounce, length_to_write (q, unit, off - head),
                     host, 0);
}

/* Write the step to its new place. */
static int
write_units (const struct qcow2_step *s, const uint8_t *buf,
             const struct place *p)
{
  struct qcow2 *q = s->q;
  uint64_t unit = UINT64_C (1) << p->unit_bits, in, n;
  uint64_t off = s->off, len = s->len, host = p->host + (off - s->start);
  int error = 0;

  for (; len > 0 && error == 0; buf += n, off += n, host += n, len -= n) {
    in = off & (unit - 1);
    if (in || len < unit) {
      n = MIN (len, unit - in);
      error = write_filled (q, buf, n, off, host - in, unit);
    } else {
      n = round_down (len, unit);
      blk_event (q->file, BLK_EVENT_WRITE_AIO);
      error = blk_pwrite (q->data, buf, n, host, 0);
    }
  }
  return error;
}

/* Into clusters that are there already. */
static int
write_in_place (struct qcow2_step *s, const uint8_t *buf)
{
  struct qcow2 *q = s->q;
  uint64_t end = s->run.host + s->len;
  int error;

  /* Another program may have left the file shorter than its last cluster. */
  error = qcow2_grow_data (q, end);
  if (error == 0 && !qcow2_is_external (q))
    error = qcow2_overlap_check (q, s->run.host, s->len);
  lock_release (&q->lock);
  blk_event (q->file, BLK_EVENT_WRITE_AIO);
  if (error == 0)
    error = blk_pwrite (q->data, buf, s->len, s->run.host, 0);
  lock_acquire (&q->lock);
  return error;
}

/* Find the step's new place: what its clusters have already, or new space. */
static int
find_place (struct qcow2_step *s, struct place *ret)
{
  struct qcow2 *q = s->q;
  bool is_placed = qcow2_run_is_placed (&s->run);
  int error;

  ret->unit_bits = q->sub_bits;
  ret->is_fresh = false;
  ret->is_kept = true;
  if (qcow2_is_external (q)) {
    ret->host = s->start;
    return qcow2_grow_data (q, s->off + s->len);
  }
  if (is_placed && s->run.is_copied) {
    ret->host = s->run.host - (s->off - s->start);
    error = qcow2_overlap_check (q, ret->host, s->nr << q->cluster_bits);
    return error < 0 ? error
      : qcow2_grow_data (q, ret->host + (s->nr << q->cluster_bits));
  }
  /* The other subclusters are in the old place. */
  if (is_placed || s->run.type == QCOW2_PACKED)
    ret->unit_bits = q->cluster_bits;
  ret->is_kept = false;
  return qcow2_alloc (q, s->start, &s->nr, &ret->host, &ret->is_fresh);
}

/* What has been written becomes the clusters' content. */
static int
link_place (struct qcow2_step *s, const struct place *p)
{
  struct qcow2 *q = s->q;
  uint64_t unit = UINT64_C (1) << p->unit_bits, done = 0;
  struct qcow2_change c = {
    .off = round_down (s->off, unit), .entry = p->host | QCOW2_COPIED,
    .sub = QCOW2_SUB_ALLOC,
  };
  int error;

  c.len = round_up (s->off + s->len, unit) - c.off;
  error = qcow2_l2_set (q, &c, &done);
  if (error < 0 && !p->is_kept)
    qcow2_unalloc (q, p->host + (done << q->cluster_bits), s->nr - done);
  return error;
}

static int
write_new (struct qcow2_step *s, const uint8_t *buf)
{
  struct qcow2 *q = s->q;
  struct place p;
  int error;

  qcow2_step_cut_to_table (s);
  error = qcow2_l2_prepare (q, s->off);
  if (error == 0)
    error = find_place (s, &p);
  if (error < 0)
    return error;
  s->len = MIN (s->len, s->start + (s->nr << q->cluster_bits) - s->off);

  lock_release (&q->lock);
  blk_event (q->file, BLK_EVENT_WRITE_AIO);
  if (p.is_fresh && p.unit_bits == q->sub_bits && qcow2_step_is_zero (s))
    /* The rest of the clusters is right as it is. */
    error = blk_pwrite (q->data, buf, s->len, p.host + (s->off - s->start),
                        0);
  else
    error = write_units (s, buf, &p);
  lock_acquire (&q->lock);

  if (error == 0)
    return link_place (s, &p);
  if (!p.is_kept)
    qcow2_unalloc (q, p.host, s->nr);
  return error;
}

/* Write a prefix of [off, off+len); *ret_done is its length. */
static int
write_step (struct qcow2 *q, const uint8_t *buf, uint64_t len, uint64_t off,
            uint64_t *ret_done)
{
  struct qcow2_step s;
  int error;

  error = qcow2_step_begin (&s, q, off, len, false);
  if (error < 0)
    return error;
  if (qcow2_run_is_in_place (&s.run))
    error = write_in_place (&s, buf);
  else
    error = write_new (&s, buf);
  qcow2_step_end (&s);
  *ret_done = s.len;
  return error;
}

/* The length of the whole cluster at off, 0 if not all of it is written. */
static uint64_t
packable_length (const struct qcow2 *q, uint64_t len, uint64_t off)
{
  uint64_t n = MIN (q->cluster_size, blk_size (&q->blk) - off);

  return (off & (q->cluster_size - 1)) || len < n ? 0 : n;
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
    done = flags & BLK_COMPRESS ? packable_length (q, len, off) : 0;
    if (done > 0)
      error = qcow2_pwrite_packed (q, p, done, off);
    else {
      error = qcow2_step_prepare (q);
      if (error == 0)
        error = write_step (q, p, len, off, &done);
    }
    if (error < 0)
      return error;
  }
  return 0;
}
