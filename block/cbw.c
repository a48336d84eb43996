/* SPDX-License-Identifier: BSD-3-Clause */
/* Copy-before-write: the engine and the guest's side.  The reader's side is
 * cbw-view.c.
 *
 * I3: while a view is held, a block in its held set changes only after its old
 *     content is in scratch; a block outside it cannot be read.
 * I4: no read of the disk for a view overlaps a write to it.
 *
 * How they are kept.  A block of a view goes LIVE -> COPIED -> OUTSIDE or
 * LIVE -> OUTSIDE, never back (enum cbw_part).  Whoever makes such a step holds
 * an exclusive claim on the block; whoever reads it (from the disk if LIVE,
 * from scratch if COPIED) holds a shared one, taken while the block was in that
 * state and nobody claimed it exclusively.  Hence, when a block has become
 * COPIED or OUTSIDE nobody reads it from the disk any more, nor begins to, and
 * the guest may change it.  Claims are held over I/O, locks are not.
 *
 * A view that cannot copy breaks (or fails the guest's write, as it was told).
 * A broken view protects nothing: a read looks at the error again after the
 * data has come, and fails.
 *
 * States of a view:
 *   NEW      -> HOLDING   [cbw_view_start]
 *   HOLDING  -> STOPPED   [cbw_view_stop]
 *   HOLDING stays HOLDING when error is set [break_view]
 *
 * cbw_before_write is called by disk.c from the guests' threads, inside the
 * gate; start and stop by session.c with the gate closed.  The list of views
 * changes only while the gate is closed, so that the writers follow it without
 * a lock.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blk-scratch.h"
#include "cbw-private.h"

/* Above CBW_PIECE_SIZE a range is first asked for holes, and one answer is
 * used for at most this much.
 */
#define MAX_ZERO_STEP (UINT64_C (1) << 30)

/* The map of what the reader gave up has at most this many bits, 32 MiB. */
#define MAX_RELEASED_BITS (UINT64_C (1) << 28)

struct cbw {
  /* Fixed after cbw_new. */
  struct blk *node;
  struct gate *gate;

  /* Changes only while the gate is closed. */
  struct cbw_view *first;
};

/* A view's piece_size bytes; the link is kept in it while it is free. */
struct cbw_buffer {
  struct cbw_buffer *next;
};

int
cbw_new (struct blk *node, struct gate *gate, struct cbw **ret)
{
  struct cbw *cbw = calloc (1, sizeof *cbw);

  if (!cbw)
    return -ENOMEM;
  cbw->node = node;
  cbw->gate = gate;
  *ret = cbw;
  return 0;
}

void
cbw_free (struct cbw *cbw)
{
  if (!cbw)
    return;
  assert (cbw->first == NULL);
  free (cbw);
}

bool
cbw_is_in_use (const struct cbw *cbw)
{
  assert (gate_is_closed (cbw->gate));
  return cbw->first != NULL;
}

static void
free_maps (struct cbw_view *v)
{
  bitmap_free (v->copied);
  bitmap_free (v->released);
  bitmap_free (v->stored);
  v->copied = v->released = v->stored = NULL;
}

static int
new_maps (struct cbw_view *v)
{
  uint64_t unit = v->block_size;

  while (div_round_up (v->size, unit) > MAX_RELEASED_BITS)
    unit *= 2;
  if (bitmap_new (v->size, v->block_size, &v->copied) < 0
      || bitmap_new (v->size, unit, &v->released) < 0
      || bitmap_new (v->size, v->block_size, &v->stored) < 0)
    return -ENOMEM;
  return 0;
}

static int
init_view (struct cbw_view *v, struct cbw *cbw,
           const struct cbw_options *options, struct error *err)
{
  unsigned can = BLK_IS_READ_ONLY | BLK_CAN_TRIM | BLK_CAN_EXTENTS
    | BLK_CAN_MULTI_CONN | (cbw->node->can & BLK_CAN_NOWAIT);
  char name[100];
  int r;

  snprintf (name, sizeof name, "%s (view)", cbw->node->name);
  r = blk_init (&v->blk, &cbw_view_driver, name, NULL,
                blk_size (cbw->node), can);
  if (r < 0)
    return error_set_errno (err, -r, "view");
  v->blk.block_size = cbw->node->block_size;
  v->cbw = cbw;
  v->node = cbw->node;
  v->on_error = options->on_error;
  v->scratch_limit = options->scratch_limit ? options->scratch_limit
    : UINT64_MAX;
  v->size = blk_size (cbw->node);
  v->block_size = MAX (options->block_size, CBW_BLOCK_SIZE);
  v->piece_size = MAX (CBW_PIECE_SIZE, v->block_size);
  v->stores_zeroes = options->stores_zeroes;
  v->held_unit = MAX (options->cluster_size, v->block_size);
  v->broken = options->broken;
  v->opaque = options->opaque;
  v->state = CBW_NEW;
  lock_init (&v->lock, LOCK_RANK_CBW);
  reqlist_init (&v->shared);
  reqlist_init (&v->exclusive);
  cond_init (&v->idle);
  return 0;
}

int
cbw_view_new (struct cbw *cbw, const struct cbw_options *options,
              struct cbw_view **ret, struct error *err)
{
  struct blk *scratch = options->scratch;
  struct cbw_view *v = NULL;
  int r;

  if (options->cluster_size
      && (!is_power_of_2 (options->cluster_size)
          || options->cluster_size > CBW_MAX_CLUSTER))
    r = error_set (err, EINVAL, "cluster size %llu: must be a power of two"
                   " of at most 64 MiB",
                   (unsigned long long) options->cluster_size);
  else if ((v = calloc (1, sizeof *v)) == NULL)
    r = error_set_errno (err, ENOMEM, "view");
  else
    r = init_view (v, cbw, options, err);
  if (r < 0) {
    free (v);
    blk_close (scratch);
    return r;
  }
  v->scratch = scratch;
  if (new_maps (v) < 0)
    r = error_set_errno (err, ENOMEM, "view");
  else if (!scratch)
    r = blk_scratch_open (options->scratch_dir, v->size, &v->scratch, err);
  if (r < 0) {
    cbw_view_free (v);
    return r;
  }
  *ret = v;
  return 0;
}

void
cbw_view_start (struct cbw_view *v, const struct bitmap *held)
{
  struct cbw *cbw = v->cbw;

  assert (gate_is_closed (cbw->gate));
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&v->lock);
  assert (v->state == CBW_NEW);
  v->held = held;
  v->state = CBW_HOLDING;
  v->next = cbw->first;
  cbw->first = v;
}

void
cbw_view_stop (struct cbw_view *v)
{
  struct cbw_view **p = &v->cbw->first;

  assert (gate_is_closed (v->cbw->gate));
  while (*p != v)
    p = &(*p)->next;
  *p = v->next;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&v->lock);
  assert (v->state == CBW_HOLDING);
  v->state = CBW_STOPPED;
  while (v->nr_users > 0)
    lock_wait (&v->lock, &v->idle);
  v->held = NULL;
}

void
cbw_view_discard (struct cbw_view *v)
{
  struct cbw_buffer *b;

  assert (v->state != CBW_HOLDING);
  while ((b = v->buffers) != NULL) {
    v->buffers = b->next;
    free (b);
  }
  free_maps (v);
  blk_close (v->scratch);
  v->scratch = NULL;
  atomic_store (&v->scratch_bytes, 0);
}

void
cbw_view_free (struct cbw_view *v)
{
  if (!v)
    return;
  cbw_view_discard (v);
  pthread_cond_destroy (&v->idle);
  reqlist_destroy (&v->exclusive);
  reqlist_destroy (&v->shared);
  lock_destroy (&v->lock);
  blk_fini (&v->blk);
  free (v);
}

struct blk *
cbw_view_blk (struct cbw_view *v)
{
  return &v->blk;
}

void
cbw_view_get_info (struct cbw_view *v, struct cbw_view_info *ret)
{
  ret->scratch_bytes = atomic_load (&v->scratch_bytes);
  ret->copied_bytes = atomic_load (&v->copied_bytes);
  ret->error = atomic_load (&v->error);
}

/* The first part of [off, off+len) that is held, given up or not. */
static bool
next_held (const struct cbw_view *v, uint64_t off, uint64_t len,
           struct range *ret)
{
  uint64_t start, end;

  if (!v->held) {
    *ret = (struct range) { off, len };
    return true;
  }
  start = round_down (off, v->held_unit);
  end = MIN (round_up (off + len, v->held_unit), v->size);
  if (!bitmap_next_dirty (v->held, start, end - start, ret))
    return false;
  end = MIN (round_up (ret->off + ret->len, v->held_unit), off + len);
  start = MAX (round_down (ret->off, v->held_unit), off);
  *ret = (struct range) { start, end - start };
  return true;
}

enum cbw_part
cbw_find_part (const struct cbw_view *v, uint64_t off, uint64_t len,
               uint64_t *ret_len)
{
  struct range r;

  *ret_len = len;
  if (bitmap_next_dirty (v->released, off, len, &r)) {
    if (r.off == off) {
      *ret_len = r.len;
      return CBW_PART_OUTSIDE;
    }
    len = r.off - off;
  }
  if (!next_held (v, off, len, &r)) {
    *ret_len = len;
    return CBW_PART_OUTSIDE;
  }
  if (r.off > off) {
    *ret_len = r.off - off;
    return CBW_PART_OUTSIDE;
  }
  len = r.len;
  *ret_len = len;
  if (!bitmap_next_dirty (v->copied, off, len, &r))
    return CBW_PART_LIVE;
  if (r.off > off) {
    *ret_len = r.off - off;
    return CBW_PART_LIVE;
  }
  *ret_len = r.len;
  return CBW_PART_COPIED;
}

void
cbw_claim_exclusive (struct cbw_view *v, struct req *claim, uint64_t off,
                     uint64_t unit, uint64_t *len)
{
  uint64_t n;

  reqlist_wait (&v->exclusive, &v->lock, off, MIN (unit, *len));
  n = reqlist_free_prefix (&v->exclusive, off, *len);
  if (n < *len)
    *len = round_down (n, unit);
  reqlist_add (&v->exclusive, claim, off, *len);
  reqlist_wait (&v->shared, &v->lock, off, *len);
}

uint64_t
cbw_stored_bytes (const struct cbw_view *v, uint64_t off, uint64_t len)
{
  const uint64_t end = off + len;
  uint64_t bytes = 0;
  struct range r;

  while (off < end && bitmap_next_dirty (v->stored, off, end - off, &r)) {
    bytes += r.len;
    off = r.off + r.len;
  }
  return bytes;
}

/* Take len bytes of the scratch limit. */
static int
reserve_scratch (struct cbw_view *v, uint64_t len)
{
  uint64_t old = atomic_fetch_add (&v->scratch_bytes, len);

  if (old > v->scratch_limit || len > v->scratch_limit - old) {
    atomic_fetch_sub (&v->scratch_bytes, len);
    return -ENOSPC;
  }
  return 0;
}

/* Length of the run of blocks at p that are all zero, or all not. */
static uint64_t
find_run (const char *p, uint64_t len, uint64_t block, bool *ret_is_zero)
{
  uint64_t n = MIN (len, block);

  *ret_is_zero = is_zero_buffer (p, n);
  while (n < len
         && is_zero_buffer (p + n, MIN (len - n, block)) == *ret_is_zero)
    n += MIN (len - n, block);
  return n;
}

/* Zeroes are not written: scratch reads as zeroes where nothing is stored. */
static int
store_zeroes (struct cbw_view *v, uint64_t off, uint64_t len)
{
  return v->stores_zeroes ? blk_zero (v->scratch, len, off, BLK_MAY_UNMAP) : 0;
}

/* Copy a claimed range of at most a piece to scratch. */
static int
copy_piece (struct cbw_view *v, char *buf, uint64_t off, uint64_t len)
{
  uint64_t stored = 0, n;
  bool is_zero;
  int ret = blk_pread (v->node, buf, len, off, 0);

  for (uint64_t i = 0; ret == 0 && i < len; i += n) {
    n = find_run (buf + i, len - i, v->block_size, &is_zero);
    if (is_zero) {
      ret = store_zeroes (v, off + i, n);
      continue;
    }
    ret = reserve_scratch (v, n);
    if (ret < 0)
      break;
    stored += n;
    ret = blk_pwrite (v->scratch, buf + i, n, off + i, 0);
    if (ret == 0)
      bitmap_set (v->stored, off + i, n);
  }
  /* If the guest's write fails and is tried again, all of it is counted
   * again.
   */
  if (ret < 0)
    atomic_fetch_sub (&v->scratch_bytes, stored);
  return ret;
}

/* How much at the start of a long claimed range is known to be zero, in whole
 * blocks.  0 if it is not, or cannot be told.
 */
static uint64_t
find_zeroes (struct cbw_view *v, uint64_t off, uint64_t len)
{
  struct extents extents;
  uint64_t ret = 0;

  extents_init (&extents, 1);
  if (blk_extents (v->node, len, off, BLK_ONE, BLK_STATUS_ALLOCATION,
                   &extents) == 0
      && (extents.ptr[0].value & EXTENT_ZERO))
    ret = MIN (extents.ptr[0].len, len);
  extents_free (&extents);
  return ret == len ? len : round_down (ret, v->block_size);
}

static struct cbw_buffer *
get_buffer_locked (struct cbw_view *v)
{
  struct cbw_buffer *b = v->buffers;
  void *p;

  lock_assert_held (&v->lock);
  if (b) {
    v->buffers = b->next;
    return b;
  }
  return posix_memalign (&p, CBW_BLOCK_SIZE, v->piece_size) == 0 ? p : NULL;
}

static void
put_buffer_locked (struct cbw_view *v, struct cbw_buffer *b)
{
  lock_assert_held (&v->lock);
  b->next = v->buffers;
  v->buffers = b;
}

/* Make a claim shorter, the lock held, and let the others at the rest. */
static void
shrink_claim (struct cbw_view *v, struct req *claim, uint64_t len)
{
  uint64_t off = claim->off;

  if (claim->len == len)
    return;
  reqlist_remove (&v->exclusive, claim);
  reqlist_add (&v->exclusive, claim, off, len);
}

/* Copy the first piece of a claimed range, the lock not held.  *len becomes
 * its length.
 */
static int
copy_claimed (struct cbw_view *v, struct req *claim, struct cbw_buffer *buf,
              uint64_t off, uint64_t *len)
{
  if (*len > v->piece_size) {
    uint64_t n = find_zeroes (v, off, *len);

    if (n > 0) {
      *len = n;
      return store_zeroes (v, off, n);
    }
    *len = v->piece_size;
    lock_acquire (&v->lock);
    shrink_claim (v, claim, *len);
    lock_release (&v->lock);
  }
  return copy_piece (v, (char *) buf, off, *len);
}

/* [off, off+*len) was found LIVE.  Copy a prefix of it, unless somebody else
 * has done so meanwhile; *len becomes the length that needs no further care.
 */
static int
preserve (struct cbw_view *v, uint64_t off, uint64_t *len)
{
  struct cbw_buffer *buf;
  struct req claim;
  int ret = 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&v->lock);
  *len = MIN (*len, MAX_ZERO_STEP);
  cbw_claim_exclusive (v, &claim, off, v->block_size, len);
  if (cbw_find_part (v, off, *len, len) == CBW_PART_LIVE) {
    shrink_claim (v, &claim, *len);
    buf = get_buffer_locked (v);
    lock_release (&v->lock);

    ret = buf ? copy_claimed (v, &claim, buf, off, len) : -ENOMEM;

    lock_acquire (&v->lock);
    if (ret == 0) {
      bitmap_set (v->copied, off, *len);
      atomic_fetch_add (&v->copied_bytes, *len);
    }
    if (buf)
      put_buffer_locked (v, buf);
  }
  reqlist_remove (&v->exclusive, &claim);
  return ret;
}

/* A block could not be copied.  0: the view is broken, the write may go on. */
static int
break_view (struct cbw_view *v, int error)
{
  int old;

  if (v->on_error == CBW_BREAK_GUEST_WRITE)
    return error;
  lock_acquire (&v->lock);
  old = atomic_load (&v->error);
  if (!old)
    atomic_store (&v->error, error);
  lock_release (&v->lock);
  if (!old && v->broken)
    v->broken (v->opaque);
  return 0;
}

static int
before_write (struct cbw_view *v, uint64_t off, uint64_t len)
{
  uint64_t end, n;

  if (off >= v->size)
    return 0;
  end = MIN (round_up (off + len, v->block_size), v->size);
  off = round_down (off, v->block_size);
  for (; off < end; off += n) {
    if (atomic_load (&v->error))
      return 0;
    if (cbw_find_part (v, off, end - off, &n) == CBW_PART_LIVE) {
      int ret = preserve (v, off, &n);

      if (ret < 0)
        return break_view (v, ret);
    }
  }
  return 0;
}

int
cbw_before_write (struct cbw *cbw, uint64_t off, uint64_t len)
{
  if (__builtin_expect (cbw->first == NULL, 1))
    return 0;
  assert (gate_is_entered (cbw->gate));
  for (struct cbw_view *v = cbw->first; v; v = v->next) {
    int ret = before_write (v, off, len);

    if (ret < 0)
      return ret;
  }
  return 0;
}
