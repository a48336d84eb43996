/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "jitter.h"

#define ONE_IN 4
#define NANOSECONDS 20000

struct jitter {
  struct blk blk;
  struct blk *child;
  _Atomic unsigned count;
};

static struct blk *
after_a_while (struct blk *blk)
{
  struct jitter *j = (struct jitter *) blk;
  const struct timespec t = { .tv_nsec = NANOSECONDS };

  if (atomic_fetch_add (&j->count, 1) % ONE_IN == 0)
    nanosleep (&t, NULL);
  return j->child;
}

static int
jitter_close (struct blk *blk)
{
  int r = blk_close (((struct jitter *) blk)->child);

  blk_fini (blk);
  free (blk);
  return r;
}

static int
jitter_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
              unsigned flags)
{
  return blk_pread (after_a_while (blk), buf, len, off, flags);
}

static int
jitter_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
               unsigned flags)
{
  return blk_pwrite (after_a_while (blk), buf, len, off, flags);
}

static int
jitter_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  return blk_zero (after_a_while (blk), len, off, flags);
}

static int
jitter_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  return blk_trim (after_a_while (blk), len, off, flags);
}

static int
jitter_flush (struct blk *blk)
{
  return blk_flush (after_a_while (blk));
}

static int
jitter_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
                enum blk_status status, struct extents *extents)
{
  return blk_extents (after_a_while (blk), len, off, flags, status, extents);
}

static const struct blk_driver jitter_driver = {
  .name = "jitter",
  .close = jitter_close,
  .pread = jitter_pread,
  .pwrite = jitter_pwrite,
  .zero = jitter_zero,
  .trim = jitter_trim,
  .flush = jitter_flush,
  .extents = jitter_extents,
};

struct blk *
jitter_new (struct blk *child)
{
  struct jitter *j = calloc (1, sizeof *j);

  if (j == NULL
      || blk_init (&j->blk, &jitter_driver, child->name, NULL,
                   blk_size (child), child->can) < 0) {
    fprintf (stderr, "oracle: no memory\n");
    exit (1);
  }
  j->child = child;
  return &j->blk;
}
