/* SPDX-License-Identifier: BSD-3-Clause */
/* A window on another node: QEMU's "raw" with its offset and size, and the way
 * in which one node uses another that it does not own.
 *
 * I10: the choke point has checked a request against the window's size, so it
 * lies within the child; a child that has shrunk since fails the request in
 * its own choke point.
 *
 * A borrowing window stands for the child itself: whoever is above it tells of
 * events.
 *
 * Called from any thread.  No locks.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "blk-window.h"
#include "range.h"

struct window {
  struct blk blk;               /* must be first */

  /* Fixed after open. */
  struct blk *child;
  uint64_t off;
  bool is_whole;
  bool is_borrowed;
};

static struct window *
window_of (struct blk *blk)
{
  return (struct window *) blk;
}

static int
window_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
              unsigned flags)
{
  struct window *w = window_of (blk);

  if (!w->is_borrowed)
    blk_event (w->child, BLK_EVENT_READ_AIO);
  return blk_pread (w->child, buf, len, w->off + off, flags);
}

static int
window_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
               unsigned flags)
{
  struct window *w = window_of (blk);

  if (!w->is_borrowed)
    blk_event (w->child, BLK_EVENT_WRITE_AIO);
  return blk_pwrite (w->child, buf, len, w->off + off, flags);
}

static int
window_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct window *w = window_of (blk);

  return blk_zero (w->child, len, w->off + off, flags);
}

static int
window_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct window *w = window_of (blk);

  return blk_trim (w->child, len, w->off + off, flags);
}

static int
window_flush (struct blk *blk)
{
  struct window *w = window_of (blk);

  if (!w->is_borrowed) {
    blk_event (w->child, BLK_EVENT_FLUSH_TO_OS);
    blk_event (w->child, BLK_EVENT_FLUSH_TO_DISK);
  }
  return blk_flush (w->child);
}

static int
window_cache (struct blk *blk, uint64_t len, uint64_t off)
{
  struct window *w = window_of (blk);

  return blk_cache (w->child, len, w->off + off);
}

/* The child's extents, moved. */
static int
window_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
                enum blk_status status, struct extents *extents)
{
  struct window *w = window_of (blk);
  struct extents list;
  size_t i;
  int r;

  if (w->off == 0)
    return blk_extents (w->child, len, off, flags, status, extents);
  extents_init (&list, extents->max);
  r = blk_extents (w->child, len, w->off + off, flags, status, &list);
  for (i = 0; r == 0 && i < list.len; i++)
    r = extents_add (extents, list.ptr[i].off - w->off, list.ptr[i].len,
                     list.ptr[i].value);
  extents_free (&list);
  return r < 0 ? r : 0;
}

static int
window_resize (struct blk *blk, uint64_t size)
{
  struct window *w = window_of (blk);
  int r;

  if (!w->is_whole)
    return -ENOTSUP;
  r = blk_resize (w->child, size);
  atomic_store_explicit (&blk->size, blk_size (w->child),
                         memory_order_release);
  return r;
}

static int
window_close (struct blk *blk)
{
  struct window *w = window_of (blk);
  int r = 0;

  if (w->is_borrowed) {
    /* Its owner has no reason to write back what was written here. */
    if (!blk_is_read_only (blk))
      r = blk_flush (w->child);
  }
  else
    r = blk_close (w->child);
  blk_fini (blk);
  free (w);
  return r;
}

static void
window_event (struct blk *blk, enum blk_event event)
{
  blk_event (window_of (blk)->child, event);
}

static const struct blk_driver window_driver = {
  .name = "raw",
  .close = window_close,
  .pread = window_pread,
  .pwrite = window_pwrite,
  .zero = window_zero,
  .trim = window_trim,
  .flush = window_flush,
  .extents = window_extents,
  .cache = window_cache,
  .resize = window_resize,
  .event = window_event,
};

/* *ret_size: the window's size. */
static int
check_place (const struct blk *child, const struct blk_window_options *o,
             uint64_t *ret_size, struct error *err)
{
  uint64_t size = blk_size (child);

  if (o->off > size)
    return error_set (err, EINVAL, "Offset (%" PRIu64 ") cannot be greater "
                      "than size of the containing file (%" PRIu64 ")",
                      o->off, size);
  *ret_size = size - o->off;
  if (o->size == UINT64_MAX)
    return 0;
  if (!range_is_within (o->off, o->size, size))
    return error_set (err, EINVAL, "The sum of offset (%" PRIu64 ") and size "
                      "(%" PRIu64 ") has to be smaller or equal to the  "
                      "actual size of the containing file (%" PRIu64 ")",
                      o->off, o->size, size);
  if (o->size % 512 != 0)
    return error_set (err, EINVAL, "Specified size is not multiple of 512");
  *ret_size = o->size;
  return 0;
}

static int
window_new (struct blk *child, const struct blk_window_options *o,
            struct blk **ret, struct error *err)
{
  unsigned can = child->can;
  struct window *w;
  uint64_t size = 0;
  int r = check_place (child, o, &size, err);

  if (r < 0)
    return r;
  if (o->is_read_only)
    can = (can & ~(unsigned) (BLK_CAN_TRIM | BLK_CAN_ZERO
                              | BLK_CAN_FAST_ZERO | BLK_CAN_FUA))
      | BLK_IS_READ_ONLY;
  w = calloc (1, sizeof *w);
  if (!w || blk_init (&w->blk, &window_driver, o->name ? o->name : child->name,
                      child->filename, size, can) < 0) {
    free (w);
    return error_set_errno (err, ENOMEM, "%s", child->name);
  }
  w->child = child;
  w->off = o->off;
  w->is_whole = o->off == 0 && o->size == UINT64_MAX;
  w->is_borrowed = o->is_borrowed;
  w->blk.block_size = child->block_size;
  w->blk.max_request = child->max_request;
  *ret = &w->blk;
  return 0;
}

int
blk_window_open (struct blk *child, const struct blk_window_options *options,
                 struct blk **ret, struct error *err)
{
  int r = window_new (child, options, ret, err);

  if (r < 0 && !options->is_borrowed)
    blk_close (child);
  return r;
}
