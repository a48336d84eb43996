/* SPDX-License-Identifier: BSD-3-Clause */
/* Backup with sync "none": the target gets the old data of what the guest
 * overwrites, before the guest does.
 *
 * Copy-before-write of such a job has this node as its scratch: what is written
 * to it goes to the same place of the target, in whole units, so that the
 * target never needs to fill up a cluster from a backing file, and zeroes too,
 * for there may be one.  Nothing is ever read back: the job has no reader.
 *
 * Called from guests' threads, inside the gate, through cbw.c.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "job-private.h"
#include "range.h"

struct job_none {
  struct blk blk;               /* must be first */
  struct job *job;              /* outlives this */
};

static void
count (struct job *job, uint64_t len, uint64_t off)
{
  lock_acquire (&job->progress_lock);
  bitmap_clear (job->remaining, off, len);
  lock_release (&job->progress_lock);
  atomic_fetch_add (&job->current, round_up (len, job->unit));
}

static int
none_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  return -EIO;
}

static int
none_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
             unsigned flags)
{
  struct job *job = ((struct job_none *) blk)->job;
  int r = blk_pwrite (job->target, buf, len, off,
                      job->compress ? BLK_COMPRESS : 0);

  if (r == 0)
    count (job, len, off);
  return r;
}

static int
none_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct job *job = ((struct job_none *) blk)->job;
  int r = blk_zero (job->target, len, off, BLK_MAY_UNMAP | BLK_KEEP_ZERO);

  if (r == 0)
    count (job, len, off);
  return r;
}

static int
none_flush (struct blk *blk)
{
  return 0;
}

static int
none_close (struct blk *blk)
{
  blk_fini (blk);
  free (blk);
  return 0;
}

static const struct blk_driver none_driver = {
  .name = "job",
  .close = none_close,
  .pread = none_pread,
  .pwrite = none_pwrite,
  .zero = none_zero,
  .flush = none_flush,
};

int
job_none_open (struct job *job, struct blk **ret)
{
  struct job_none *none = calloc (1, sizeof *none);
  int r;

  if (none == NULL)
    return -ENOMEM;
  r = blk_init (&none->blk, &none_driver, job->id, NULL, job->size,
                BLK_CAN_ZERO);
  if (r < 0) {
    free (none);
    return r;
  }
  none->job = job;
  *ret = &none->blk;
  return 0;
}
