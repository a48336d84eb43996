/* SPDX-License-Identifier: BSD-3-Clause */
/* Preallocation: places for all clusters of a new image.
 *
 * Without extended L2 entries a cluster that has a place is data, zeroes at
 * first; with them its subclusters stay unallocated.
 *
 * Called by the thread that creates or grows the image, which no one else
 * uses meanwhile.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "cleanup.h"
#include "qcow2.h"

#define PIECE (UINT64_C (1) << 20)

/* The space itself. */
static int
fill_space (struct qcow2 *q, uint64_t host, uint64_t len,
            enum qcow2_preallocation how, bool is_fresh)
{
  CLEANUP_FREE uint8_t *zeroes = NULL;
  uint64_t n;
  int error = 0;

  if (how == QCOW2_PREALLOCATION_METADATA && (is_fresh
                                              || qcow2_is_external (q)))
    return 0;
  if (how != QCOW2_PREALLOCATION_FULL)
    return blk_zero (q->data, len, host, 0);
  zeroes = calloc (1, PIECE);
  if (!zeroes)
    return -ENOMEM;
  for (; len > 0 && error == 0; host += n, len -= n) {
    n = MIN (len, PIECE);
    error = blk_pwrite (q->data, zeroes, n, host, 0);
  }
  return error;
}

/* Places for a prefix of [off, end). */
static int
place_some (struct qcow2 *q, uint64_t off, uint64_t end,
            enum qcow2_preallocation how, uint64_t *ret_done)
{
  uint64_t table = UINT64_C (1) << (q->l2_bits + q->cluster_bits), nr, done;
  struct qcow2_change c = { .off = off };
  bool is_fresh = false;
  uint64_t host = off;
  int error;

  end = MIN (end, round_down (off, table) + table);
  nr = div_round_up (end - off, q->cluster_size);
  error = qcow2_l2_prepare (q, off);
  if (error == 0 && qcow2_is_external (q))
    error = qcow2_grow_data (q, end);
  else if (error == 0)
    error = qcow2_alloc (q, off, &nr, &host, &is_fresh);
  if (error < 0)
    return error;
  c.len = nr << q->cluster_bits;
  lock_release (&q->lock);
  error = fill_space (q, host, qcow2_is_external (q) ? end - off : c.len, how,
                      is_fresh);
  lock_acquire (&q->lock);
  c.entry = host | QCOW2_COPIED;
  if (error == 0)
    error = qcow2_l2_set (q, &c, &done);
  *ret_done = MIN (c.len, end - off);
  return error;
}

int
qcow2_preallocate (struct qcow2 *q, enum qcow2_preallocation how)
{
  uint64_t size = blk_size (&q->blk), done;
  unsigned epoch;
  int error;

  for (uint64_t off = 0; off < size; off += done) {
    error = qcow2_step_prepare (q);
    if (error < 0)
      return error;
    lock_acquire (&q->lock);
    epoch = qcow2_op_enter (q);
    error = place_some (q, off, size, how, &done);
    qcow2_op_leave (q, epoch);
    lock_release (&q->lock);
    if (error < 0)
      return error;
  }
  return qcow2_commit (q, true);
}
