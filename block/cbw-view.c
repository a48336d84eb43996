/* SPDX-License-Identifier: BSD-3-Clause */
/* A copy-before-write view as a node: the reader's side.
 *
 * cbw.c says how I3 and I4 are kept; here: every read, of the disk or of
 * scratch, holds a shared claim; giving up blocks takes an exclusive one.
 *
 * Called through blk.c from the threads of an NBD server's backup listener.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>

#include "cbw-private.h"

/* Giving up looks at this much at a time with the lock held. */
#define RELEASE_STEP (UINT64_C (64) << 20)

/* One question to the disk below gets at most this many extents. */
#define MAX_EXTENTS_STEP 256

static int
check_usable_locked (struct cbw_view *v)
{
  lock_assert_held (&v->lock);
  if (v->state != CBW_HOLDING)
    return -ESHUTDOWN;
  return atomic_load (&v->error) ? -EIO : 0;
}

static int
enter_view (struct cbw_view *v)
{
  int ret;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&v->lock);
  ret = check_usable_locked (v);
  if (ret == 0)
    v->nr_users++;
  return ret;
}

static void
leave_view (struct cbw_view *v)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&v->lock);
  if (--v->nr_users == 0)
    pthread_cond_broadcast (&v->idle);
}

/* Claim a prefix of [off, off+*len) that is all COPIED or all LIVE, for
 * reading; *len becomes its length.  -EIO outside the held set.
 */
static int
claim_shared_locked (struct cbw_view *v, struct req *claim, uint64_t off,
                     uint64_t *len, unsigned flags, enum cbw_part *ret_part)
{
  uint64_t n;
  int ret;

  for (;;) {
    ret = check_usable_locked (v);
    if (ret < 0)
      return ret;
    *ret_part = cbw_find_part (v, off, *len, &n);
    if (*ret_part == CBW_PART_OUTSIDE)
      return -EIO;
    n = reqlist_free_prefix (&v->exclusive, off, n);
    if (n > 0)
      break;
    if (flags & BLK_NOWAIT)
      return -EAGAIN;
    reqlist_wait (&v->exclusive, &v->lock, off, 1);
  }
  *len = n;
  reqlist_add (&v->shared, claim, off, n);
  return 0;
}

/* Read a prefix of [off, off+*len); *len becomes its length. */
static int
read_piece (struct cbw_view *v, void *buf, uint64_t off, uint64_t *len,
            unsigned flags)
{
  struct blk *from;
  struct req claim;
  enum cbw_part part;
  int ret;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&v->lock);
  *len = MIN (*len, CBW_PIECE_SIZE);
  ret = claim_shared_locked (v, &claim, off, len, flags, &part);
  if (ret < 0)
    return ret;
  lock_release (&v->lock);

  from = part == CBW_PART_COPIED ? v->scratch : v->node;
  if (!(from->can & BLK_CAN_NOWAIT))
    flags &= ~(unsigned) BLK_NOWAIT;
  ret = blk_pread (from, buf, *len, off, flags);

  lock_acquire (&v->lock);
  reqlist_remove (&v->shared, &claim);
  /* If the view broke meanwhile, no write waited for the claim. */
  if (ret == 0 && atomic_load (&v->error))
    ret = -EIO;
  return ret;
}

static int
view_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  struct cbw_view *v = (struct cbw_view *) blk;
  char *p = buf;
  uint64_t n;
  int ret = enter_view (v);

  if (ret < 0)
    return ret;
  for (; ret == 0 && len > 0; p += n, off += n, len -= n) {
    n = len;
    ret = read_piece (v, p, off, &n, flags);
  }
  leave_view (v);
  return ret;
}

/* Give up a prefix of [off, off+*len), whole units of the map; *len becomes
 * its length.
 */
static int
release_piece (struct cbw_view *v, uint64_t off, uint64_t unit,
               uint64_t *len)
{
  uint64_t bytes = 0, n;
  struct req claim;
  int ret;

  lock_acquire (&v->lock);
  ret = check_usable_locked (v);
  if (ret < 0) {
    lock_release (&v->lock);
    return ret;
  }
  *len = MIN (*len, RELEASE_STEP);
  cbw_claim_exclusive (v, &claim, off, unit, len);
  for (uint64_t i = 0; i < *len; i += n)
    if (cbw_find_part (v, off + i, *len - i, &n) == CBW_PART_COPIED)
      bytes += cbw_stored_bytes (v, off + i, n);
  bitmap_set (v->released, off, *len);
  reqlist_remove (&v->exclusive, &claim);
  lock_release (&v->lock);

  /* Nobody reads or writes this part of scratch any more. */
  if (bytes > 0 && blk_trim (v->scratch, *len, off, 0) == 0)
    atomic_fetch_sub (&v->scratch_bytes, bytes);
  return 0;
}

static int
view_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct cbw_view *v = (struct cbw_view *) blk;
  uint64_t end = off + len, unit, n;
  int ret = enter_view (v);

  if (ret < 0)
    return ret;
  unit = bitmap_granularity (v->released);
  if (end != v->size)
    end = round_down (end, unit);
  for (off = round_up (off, unit); ret == 0 && off < end; off += n) {
    n = end - off;
    ret = release_piece (v, off, unit, &n);
  }
  leave_view (v);
  return ret;
}

static int
view_flush (struct blk *blk)
{
  return 0;
}

/* Extents of a range that is all in scratch. */
static int
add_copied (struct cbw_view *v, uint64_t off, uint64_t len,
            enum blk_status status, struct extents *extents)
{
  const uint64_t end = off + len;
  struct range r;
  int ret;

  /* Which layer it came from is not known; it reads as this disk's own. */
  if (status == BLK_STATUS_DEPTH)
    return extents_add (extents, off, len, 1);
  for (; off < end; off = r.off + r.len) {
    if (!bitmap_next_dirty (v->stored, off, end - off, &r))
      r = (struct range) { end, 0 };
    ret = extents_add (extents, off, r.off - off, EXTENT_HOLE | EXTENT_ZERO);
    if (ret == 0)
      ret = extents_add (extents, r.off, r.len, 0);
    if (ret != 0)
      return ret;
  }
  return 0;
}

/* What the disk below said, without a claim, of a range.  It is true of a block
 * that is LIVE after it was said: such a block has not changed since the point.
 * One question serves many pieces, for a file may have to be searched far for
 * the end of its data.
 */
struct below {
  struct extents extents;
  size_t next;                  /* index */
};

/* Ask the disk below for the status of a prefix of [off, off+len). */
static int
ask_below (struct cbw_view *v, struct below *below, uint64_t off,
           uint64_t len, unsigned flags, enum blk_status status)
{
  int ret;

  extents_clear (&below->extents);
  below->next = 0;
  ret = blk_extents (v->node, len, off, flags, status, &below->extents);
  if (ret == 0)
    extents_truncate (&below->extents, off + len);
  return ret;
}

/* Add what is known of a prefix of [off, off+*len), which was found to be LIVE;
 * *len becomes its length, 0 if nothing is known.  off does not go back between
 * two questions.
 */
static int
add_below (struct below *below, uint64_t off, uint64_t *len,
           struct extents *extents)
{
  const uint64_t end = off + *len;
  uint64_t pos = off, n;
  int ret = 0;

  for (; ret == 0 && pos < end && below->next < below->extents.len; pos += n) {
    const struct extent *e = &below->extents.ptr[below->next];

    n = 0;
    if (e->off + e->len <= pos) {
      below->next++;
      continue;
    }
    n = MIN (end, e->off + e->len) - pos;
    ret = extents_add (extents, pos, n, e->value);
  }
  *len = pos - off;
  return ret;
}

/* Add extents of a prefix of [off, off+*len); *len becomes its length, 0 if
 * the disk below has to be asked first.  Returns 1 if the list is full.
 */
static int
extents_piece (struct cbw_view *v, struct below *below, uint64_t off,
               uint64_t *len, enum blk_status status, struct extents *extents)
{
  struct req claim;
  enum cbw_part part;
  int ret;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&v->lock);
  ret = check_usable_locked (v);
  if (ret < 0)
    return ret;
  switch (cbw_find_part (v, off, *len, len)) {
  case CBW_PART_OUTSIDE:
    return extents_add (extents, off, *len,
                        status == BLK_STATUS_DEPTH ? 1 : 0);
  case CBW_PART_LIVE:
    return add_below (below, off, len, extents);
  case CBW_PART_COPIED:
    break;
  }

  /* It can only be given up meanwhile, which is an error. */
  ret = claim_shared_locked (v, &claim, off, len, 0, &part);
  if (ret < 0)
    return ret;
  lock_release (&v->lock);
  ret = add_copied (v, off, *len, status, extents);
  lock_acquire (&v->lock);
  reqlist_remove (&v->shared, &claim);
  if (ret >= 0 && atomic_load (&v->error))
    ret = -EIO;
  return ret;
}

static int
view_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
              enum blk_status status, struct extents *extents)
{
  struct cbw_view *v = (struct cbw_view *) blk;
  const size_t before = extents->len;
  struct below below = { 0 };
  uint64_t n;
  int ret = enter_view (v);

  if (ret < 0)
    return ret;
  extents_init (&below.extents, MAX_EXTENTS_STEP);
  for (; ret == 0 && len > 0; off += n, len -= n) {
    n = len;
    ret = extents_piece (v, &below, off, &n, status, extents);
    if (ret == 0 && n == 0)
      ret = ask_below (v, &below, off, len, flags, status);
    if ((flags & BLK_ONE) && extents->len > before + 1)
      break;
  }
  extents_free (&below.extents);
  leave_view (v);
  return MIN (ret, 0);
}

/* A view is freed by cbw_view_free, not closed. */
static int
view_close (struct blk *blk)
{
  assert (!"a view's node is not to be closed");
  return -EINVAL;
}

const struct blk_driver cbw_view_driver = {
  .name = "view",
  .close = view_close,
  .pread = view_pread,
  .trim = view_trim,
  .flush = view_flush,
  .extents = view_extents,
};
