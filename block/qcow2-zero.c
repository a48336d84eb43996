/* SPDX-License-Identifier: BSD-3-Clause */
/* Zeroes and trims of qcow2 nodes: steps as in qcow2-write.c that change
 * metadata only, as far as the image can say "zero" there.
 *
 * A trim lets go of whole clusters; zeroes are made for whole subclusters, and
 * for less by writing.  An external data file that has to be a raw image gets
 * its zeroes first.
 *
 * Called from any thread.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "cleanup.h"
#include "qcow2.h"

enum how {
  ZERO_KEEP,                    /* what is allocated stays so */
  ZERO_UNMAP,
  ZERO_EXPLICIT,                /* as UNMAP; this layer says so in any case */
  TRIM,
};

/* A step that zeroes or trims. */
struct zeroing {
  struct qcow2_step s;
  enum how how;
  bool is_whole;                /* whole clusters */
  bool is_mixed;                /* one cluster of more than one type */
};

/* Under the backing file or beyond it. */
static void
cut_to_backing (struct qcow2_step *s)
{
  const struct qcow2 *q = s->q;
  uint64_t end;

  if (qcow2_is_unbacked (q, s->off) || q->backing_size == UINT64_MAX)
    return;
  end = round_up (q->backing_size, q->cluster_size);
  qcow2_step_cut (s, MIN (s->len, end - s->off));
}

/* Of the len bytes asked for: whole clusters, the first one whatever its
 * subclusters are, or a part of one.
 */
static void
cut_to_clusters (struct zeroing *z, uint64_t len)
{
  struct qcow2_step *s = &z->s;
  const struct qcow2 *q = s->q;
  uint64_t first = MIN (q->cluster_size, blk_size (&q->blk) - s->start);

  z->is_whole = s->off == s->start && len >= first;
  z->is_mixed = z->is_whole && s->len < first;
  if (z->is_mixed)
    qcow2_step_cut (s, first);
  else if (!z->is_whole)
    qcow2_step_cut (s, MIN (s->len, s->start + q->cluster_size - s->off));
  else if (s->off + s->len != blk_size (&q->blk))
    qcow2_step_cut (s, MAX (round_down (s->len, q->cluster_size), first));
}

/* True if the clusters can stay as they are. */
static bool
is_done_already (const struct zeroing *z)
{
  const struct qcow2_step *s = &z->s;

  if (z->is_mixed)
    return false;
  switch (s->run.type) {
  case QCOW2_ZERO_PLAIN:
    return true;
  case QCOW2_ZERO_ALLOC:
    return z->how != TRIM;
  case QCOW2_UNALLOCATED:
    return z->how != ZERO_EXPLICIT && qcow2_is_unbacked (s->q, s->off)
      && (z->how == TRIM || !qcow2_is_reserved (s->q, s->off, s->len));
  default:
    return false;
  }
}

/* What the clusters of a version 2 image are to be: there are no zero
 * clusters, but what has no base can go.  1 = leave them alone.
 */
static int
choose_v2 (const struct zeroing *z)
{
  if (z->how != ZERO_EXPLICIT && qcow2_is_unbacked (z->s.q, z->s.off))
    return 0;
  return z->how == TRIM ? 1 : -EOPNOTSUPP;
}

/* Fill in what the step's clusters are to be.  0, 1 if they can stay, or
 * -EOPNOTSUPP if zeroes have to be written instead.
 */
static int
choose (const struct zeroing *z, struct qcow2_change *c)
{
  const struct qcow2_step *s = &z->s;
  const struct qcow2 *q = s->q;
  bool is_kept = z->how == ZERO_KEEP && qcow2_run_is_placed (&s->run)
    && s->run.is_copied;

  *c = (struct qcow2_change) { .off = s->off, .len = s->len };
  if (is_done_already (z))
    return 1;
  if (q->header.version < 3)
    return choose_v2 (z);
  if (!z->is_whole && s->run.type == QCOW2_PACKED)
    return -EOPNOTSUPP;
  c->sub = QCOW2_SUB_ZERO;
  if (z->how == TRIM && qcow2_is_unbacked (q, s->off))
    c->sub = QCOW2_SUB_NONE;
  else if (qcow2_is_extended (q))
    c->keeps_entry = is_kept || !z->is_whole;
  else
    c->entry = QCOW2_ZERO | (is_kept ? s->run.host | QCOW2_COPIED : 0);
  return 0;
}

/* What an external data file has to say. */
static int
zero_external (const struct zeroing *z)
{
  const struct qcow2_step *s = &z->s;
  struct qcow2 *q = s->q;
  uint64_t size = blk_size (q->data), n;
  int error = 0;

  n = s->off < size ? MIN (s->len, size - s->off) : 0;
  if (n == 0 || !qcow2_is_external (q))
    return 0;
  lock_release (&q->lock);
  if (qcow2_is_raw_external (q))
    error = blk_zero (q->data, n, s->off,
                      z->how == ZERO_KEEP ? 0 : BLK_MAY_UNMAP);
  else if (z->how != ZERO_KEEP && z->is_whole)
    /* No trim: until the entry is on stable storage this is what is read. */
    (void) blk_zero (q->data, n, s->off, BLK_MAY_UNMAP | BLK_FAST);
  lock_acquire (&q->lock);
  return error;
}

static int
zero_found (struct zeroing *z)
{
  struct qcow2_step *s = &z->s;
  struct qcow2_change c;
  uint64_t done;
  int error;

  error = choose (z, &c);
  if (error == -EOPNOTSUPP)
    return error;
  if (error == 0) {
    qcow2_step_cut_to_table (s);
    /* The last cluster goes with what lies beyond the disk's end. */
    c.len = z->is_whole ? s->nr << s->q->cluster_bits : s->len;
    error = zero_external (z);
    if (error == 0)
      error = qcow2_l2_prepare (s->q, s->off);
    if (error == 0)
      error = qcow2_l2_set (s->q, &c, &done);
  }
  if (error >= 0 && s->q->reservations.len > 0)
    error = qcow2_reservation_drop (s->q, s->start,
                                    s->nr << s->q->cluster_bits);
  return MIN (error, 0);
}

/* Zero or trim a prefix of [off, off+len), which is whole subclusters. */
static int
zero_step (struct qcow2 *q, uint64_t len, uint64_t off, enum how how,
           uint64_t *ret_done)
{
  struct zeroing z = { .how = how };
  int error;

  error = qcow2_step_begin (&z.s, q, off, len, true);
  if (error < 0)
    return error;
  cut_to_clusters (&z, len);
  cut_to_backing (&z.s);
  error = zero_found (&z);
  qcow2_step_end (&z.s);
  *ret_done = z.s.len;
  return error;
}

/* True if the whole range reads as zeroes without a look at any data. */
static int
is_zero_already (struct qcow2 *q, uint64_t len, uint64_t off, bool *ret)
{
  struct qcow2_step s;
  int error;

  error = qcow2_step_begin (&s, q, off, len, true);
  if (error < 0)
    return error;
  *ret = s.len == len && qcow2_step_is_zero (&s);
  qcow2_step_end (&s);
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

/* The bytes from off to the end of its unit, at most len, if that is less than
 * the whole of it; else 0.
 */
static uint64_t
part_length (const struct qcow2 *q, uint64_t len, uint64_t off,
             unsigned unit_bits)
{
  uint64_t unit = UINT64_C (1) << unit_bits, in = off & (unit - 1);
  uint64_t n = MIN (len, unit - in);
  bool is_whole = in == 0 && (n == unit || off + n == blk_size (&q->blk));

  return is_whole ? 0 : n;
}

/* The part of [off, off+len) that is whole units. */
static uint64_t
whole_length (const struct qcow2 *q, uint64_t len, uint64_t off,
              unsigned unit_bits)
{
  if (off + len == blk_size (&q->blk))
    return len;
  return round_down (len, UINT64_C (1) << unit_bits);
}

int
qcow2_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct qcow2 *q = qcow2_of (blk);
  enum how how = flags & BLK_KEEP_ZERO ? ZERO_EXPLICIT
    : flags & BLK_MAY_UNMAP ? ZERO_UNMAP : ZERO_KEEP;
  uint64_t done = 0;
  int error;

  for (; len > 0; off += done, len -= done) {
    error = qcow2_step_prepare (q);
    if (error < 0)
      return error;
    done = part_length (q, len, off, q->sub_bits);
    if (done > 0)
      error = zero_part (q, done, off);
    else
      error = zero_step (q, whole_length (q, len, off, q->sub_bits), off, how,
                         &done);
    if (error == -EOPNOTSUPP && !(flags & BLK_FAST)) {
      done = MIN (len, q->cluster_size - (off & (q->cluster_size - 1)));
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
    error = qcow2_step_prepare (q);
    if (error < 0)
      return error;
    done = part_length (q, len, off, q->cluster_bits);
    if (done == 0)
      error = zero_step (q, whole_length (q, len, off, q->cluster_bits), off,
                         TRIM, &done);
    if (error < 0)
      return error;
  }
  return 0;
}
