/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk that takes everything and keeps nothing.
 *
 * Called from any thread.  No state, no locks.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blk-null.h"

static int
null_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  memset (buf, 0, len);
  return 0;
}

static int
null_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
             unsigned flags)
{
  return 0;
}

static int
null_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  return 0;
}

static int
null_flush (struct blk *blk)
{
  return 0;
}

static int
null_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
              enum blk_status status, struct extents *extents)
{
  int r = extents_add (extents, off, len, status == BLK_STATUS_DEPTH
                       ? 1 : EXTENT_HOLE | EXTENT_ZERO);

  return r < 0 ? r : 0;
}

static int
null_close (struct blk *blk)
{
  blk_fini (blk);
  free (blk);
  return 0;
}

static const struct blk_driver null_driver = {
  .name = "null-co",
  .close = null_close,
  .pread = null_pread,
  .pwrite = null_pwrite,
  .zero = null_zero,
  .trim = null_zero,
  .flush = null_flush,
  .extents = null_extents,
};

int
blk_null_open (const char *name, uint64_t size, unsigned flags,
               struct blk **ret, struct error *err)
{
  struct blk *blk = calloc (1, sizeof *blk);
  unsigned can = BLK_CAN_MULTI_CONN | BLK_CAN_NOWAIT;

  if (!(flags & BLK_NULL_OPAQUE))
    can |= BLK_CAN_EXTENTS;
  can |= flags & BLK_NULL_READ_ONLY ? BLK_IS_READ_ONLY
    : BLK_CAN_TRIM | BLK_CAN_ZERO | BLK_CAN_FAST_ZERO | BLK_CAN_FUA;
  if (!blk || blk_init (blk, &null_driver, name, "null-co://", size, can)
      < 0) {
    free (blk);
    return error_set_errno (err, ENOMEM, "%s", name);
  }
  *ret = blk;
  return 0;
}
