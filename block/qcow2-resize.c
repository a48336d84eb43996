/* SPDX-License-Identifier: BSD-3-Clause */
/* Growing and shrinking the disk of an image.
 *
 * Invariants:
 * - New space reads as zeroes: what tables still hold for it (a shrink that
 *   was cut off), the rest of the last cluster and a longer backing file are
 *   hidden before the header has the new size.
 * - A shrink lowers the size in the header first.  Space that is then not
 *   given back is in use by the refcounts, and goes at the next growth.
 * - A larger L1 table is complete on stable storage before the header names
 *   it; size, place and length of L1 lie in one sector of the header.
 *
 * Called by the thread that resizes; nobody writes to the disk meanwhile
 * (disk.c has closed the gate), reads may go on.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "qcow2.h"

/* Size, encryption (none), L1: bytes 24 to 47 of the header. */
static int
write_fields (struct qcow2 *q, uint64_t size, uint64_t l1_size,
              uint64_t l1_offset)
{
  uint8_t buf[24] = { 0 };
  int error;

  if (!q->is_valid)
    return 0;                   /* its first flush writes the header */
  store_be64 (buf, size);
  store_be32 (buf + 12, (uint32_t) l1_size);
  store_be64 (buf + 16, l1_offset);
  error = blk_pwrite (q->file, buf, sizeof buf, 24, 0);
  return error < 0 ? error : blk_flush (q->file);
}

/* The disk has the size, in the header too. */
static int
set_size (struct qcow2 *q, uint64_t size)
{
  int error = write_fields (q, size, q->header.l1_size, q->header.l1_offset);

  if (error < 0)
    return error;
  lock_acquire (&q->lock);
  q->header.size = size;
  lock_release (&q->lock);
  return 0;
}

/* --- L1 */

/* Load entries that the table in the file has beyond what was needed so
 * far.
 */
static int
load_more_l1 (struct qcow2 *q, uint64_t len)
{
  CLEANUP_FREE uint64_t *buf = calloc (len, 8);
  uint64_t old = q->l1.len;
  int error = 0;

  if (!buf)
    return -ENOMEM;
  if (q->is_valid)
    error = qcow2_file_read (q, buf, (len - old) * 8,
                             q->header.l1_offset + old * 8);
  if (error < 0)
    return error;
  memmove (buf + old, buf, (len - old) * 8);
  for (uint64_t i = old; i < len; i++)
    buf[i] = load_be64 (&buf[i]);
  lock_acquire (&q->lock);
  memcpy (buf, q->l1.entries, old * 8);
  free (q->l1.entries);
  q->l1.entries = buf;
  q->l1.len = len;
  buf = NULL;
  lock_release (&q->lock);
  return 0;
}

/* Write all entries to a new place, where the table has len. */
static int
write_l1 (struct qcow2 *q, uint64_t host, uint64_t len)
{
  uint64_t bytes = round_up (len * 8, q->cluster_size);
  CLEANUP_FREE uint8_t *buf = calloc (1, bytes);
  int error;

  if (!buf)
    return -ENOMEM;
  lock_acquire (&q->lock);
  for (uint64_t i = 0; i < q->l1.len; i++)
    store_be64 (buf + i * 8, q->l1.entries[i]);
  lock_release (&q->lock);
  error = blk_pwrite (q->file, buf, bytes, host, 0);
  return error < 0 ? error : blk_flush (q->file);
}

/* From here on the table is at host and has len entries. */
static int
switch_l1 (struct qcow2 *q, uint64_t host, uint64_t len)
{
  uint64_t *entries;
  int error;

  error = write_fields (q, q->header.size, len, host);
  if (error < 0)
    return error;
  lock_acquire (&q->lock);
  entries = realloc (q->l1.entries, len * 8);
  if (entries) {
    memset (entries + q->l1.len, 0, (len - q->l1.len) * 8);
    q->l1.entries = entries;
    q->l1.len = len;
  } else
    error = -ENOMEM;
  /* If there is no memory the old table is leaked, which harms nobody. */
  if (q->header.l1_size > 0 && qcow2_frees_reserve (&q->frees, 1) == 0)
    qcow2_free_later (q, q->header.l1_offset,
                      round_up ((uint64_t) q->header.l1_size * 8,
                                q->cluster_size));
  q->header.l1_offset = host;
  q->header.l1_size = (uint32_t) len;
  lock_release (&q->lock);
  return error;
}

/* A larger table. */
static int
move_l1 (struct qcow2 *q, uint64_t len)
{
  uint64_t nr, host;
  int error;

  /* Some more, for the next time. */
  len = MIN (len + len / 8, QCOW2_MAX_L1_BYTES / 8);
  nr = div_round_up (len * 8, q->cluster_size);
  lock_acquire (&q->lock);
  error = qcow2_alloc_run (q, nr, &host);
  lock_release (&q->lock);
  /* Its refcounts, and what is to be copied from the old one. */
  if (error == 0 && q->is_valid)
    error = qcow2_commit (q, true);
  if (error == 0)
    error = write_l1 (q, host, len);
  return error < 0 ? error : switch_l1 (q, host, len);
}

static int
grow_l1 (struct qcow2 *q, uint64_t needed)
{
  int error = 0;

  if (needed > QCOW2_MAX_L1_BYTES / 8)
    return -EFBIG;
  if (q->l1.len < MIN (needed, q->header.l1_size))
    error = load_more_l1 (q, MIN (needed, q->header.l1_size));
  if (error == 0 && needed > q->header.l1_size)
    error = move_l1 (q, needed);
  return error;
}

/* --- what lies beyond the size */

/* Clear the entries of [off, end), which is in one table. */
static int
clear_entries (struct qcow2 *q, uint64_t off, uint64_t end)
{
  struct qcow2_change c = { .off = off, .len = end - off };
  uint64_t done;
  unsigned epoch;
  int error;

  error = qcow2_step_prepare (q);
  if (error < 0)
    return error;
  lock_acquire (&q->lock);
  epoch = qcow2_op_enter (q);
  error = qcow2_l2_prepare (q, off);
  if (error == 0)
    error = qcow2_l2_set (q, &c, &done);
  qcow2_op_leave (q, epoch);
  lock_release (&q->lock);
  return error;
}

/* Give up table i, which holds nothing more. */
static int
drop_table (struct qcow2 *q, uint64_t i)
{
  int error;

  lock_acquire (&q->lock);
  error = qcow2_frees_reserve (&q->frees, 1);
  if (error == 0) {
    qcow2_free_later (q, q->l1.entries[i] & QCOW2_OFFSET_MASK,
                      q->cluster_size);
    qcow2_overlap_remove (q, q->l1.entries[i] & QCOW2_OFFSET_MASK);
    q->l1.entries[i] = 0;
    qcow2_table_mark (&q->l1, i);
  }
  lock_release (&q->lock);
  return error;
}

/* Nothing is left of what tables hold from off on. */
static int
drop_beyond (struct qcow2 *q, uint64_t off)
{
  uint64_t span = UINT64_C (1) << (q->l2_bits + q->cluster_bits), i, first;
  bool is_any = false;
  int error = 0;

  off = round_up (off, q->cluster_size);
  first = off / span;
  for (i = first; i < q->l1.len && error == 0; i++)
    if (q->l1.entries[i]) {
      is_any = true;
      error = clear_entries (q, MAX (off, i * span), (i + 1) * span);
    }
  if (!is_any || error < 0)
    return error;
  /* No changed slice may be left of a table that goes. */
  error = qcow2_commit (q, q->is_valid);
  for (i = div_round_up (off, span); i < q->l1.len && error == 0; i++)
    if (q->l1.entries[i])
      error = drop_table (q, i);
  return error;
}

/* --- resize */

static void
show_size (struct qcow2 *q, uint64_t size)
{
  atomic_store_explicit (&q->blk.size, size, memory_order_release);
}

/* The range beyond the old size that would not read as zeroes by itself. */
static int
hide_old (struct qcow2 *q, uint64_t old, uint64_t size)
{
  uint64_t end = MIN (round_up (old, q->cluster_size), size);

  if (q->has_backing)
    end = MAX (end, MIN (q->backing_size, size));
  return end > old ? qcow2_zero (&q->blk, end - old, old, 0) : 0;
}

/* Make the external data file as long as the disk.  One that has to be the disk
 * as a raw image may hold, behind its end, what a shrink has left.
 */
static int
grow_external (struct qcow2 *q, uint64_t old, uint64_t size)
{
  uint64_t end = MIN (blk_size (q->data), size);
  int error = 0;

  if (qcow2_is_raw_external (q) && end > old)
    error = blk_zero (q->data, end - old, old, BLK_MAY_UNMAP);
  if (error == 0 && blk_size (q->data) < size)
    error = blk_resize (q->data, size);
  return error;
}

static int
grow (struct qcow2 *q, uint64_t size)
{
  uint64_t old = blk_size (&q->blk);
  int error;

  error = grow_l1 (q, div_round_up (size, qcow2_l1_span (&q->header)));
  if (error == 0)
    error = drop_beyond (q, old);
  if (error == 0 && qcow2_is_external (q))
    error = grow_external (q, old, size);
  if (error < 0)
    return error;
  show_size (q, size);
  error = hide_old (q, old, size);
  if (error == 0 && q->is_valid)
    error = qcow2_commit (q, true);
  if (error == 0)
    error = set_size (q, size);
  if (error < 0)
    show_size (q, old);
  return error;
}

/* Give back what the disk no longer has. */
static int
give_back (struct qcow2 *q, uint64_t size)
{
  int error;

  error = drop_beyond (q, size);
  if (error == 0 && q->is_valid)
    error = qcow2_commit (q, true);
  if (error == 0 && qcow2_is_external (q) && blk_size (q->data) > size)
    error = blk_resize (q->data, size);
  if (error < 0 || q->is_appending)
    return error;
  lock_acquire (&q->lock);
  error = qcow2_shrink_file (q);
  lock_release (&q->lock);
  return error;
}

static int
shrink (struct qcow2 *q, uint64_t size)
{
  uint64_t old = blk_size (&q->blk);
  int error = 0;

  if (q->is_valid)
    error = qcow2_commit (q, true);
  if (error < 0)
    return error;
  show_size (q, size);
  error = set_size (q, size);
  if (error < 0) {
    show_size (q, old);
    return error;
  }
  /* The disk is smaller now, whatever becomes of the space. */
  (void) give_back (q, size);
  return 0;
}

int
qcow2_resize (struct blk *blk, uint64_t size)
{
  struct qcow2 *q = qcow2_of (blk);
  uint64_t old = blk_size (blk);
  int error;

  if (size % 512 != 0)
    return -EINVAL;
  if (size > RANGE_MAX_SIZE)
    return -EFBIG;
  /* The snapshots of version 2 do not know how large they are. */
  if (q->header.version < 3 && q->header.nr_snapshots > 0)
    return -ENOTSUP;
  if (size == old)
    return 0;
  error = qcow2_step_prepare (q);
  if (error < 0)
    return error;
  return size > old ? grow (q, size) : shrink (q, size);
}
