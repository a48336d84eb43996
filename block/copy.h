/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine: moves listed ranges from one node to another with many
 * reads in flight.  Used by pulls, restores and push jobs.
 */
#ifndef TIDEMARK_COPY_H
#define TIDEMARK_COPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk.h"
#include "error.h"

/* A range to copy.  The engine asks for them in ascending order. */
struct copy_item {
  uint64_t off;
  uint64_t len;                 /* > 0; at most copy_options.max_item, any
                                   length if is_zero */
  bool is_zero;                 /* known to be zero: not read */
};

struct copy_ops {
  /* The next item: 1, 0 at the end, -errno.  Called under the engine's lock,
   * from any of its threads, never twice at once.
   */
  int (*next) (void *opaque, struct copy_item *ret);
  /* Optional.  As next, right after it: the target may allocate in order. */
  int (*reserve) (void *opaque, const struct copy_item *item);
  /* Optional.  The item has been read (buf NULL: it is zero) and is about to
   * be written.  From several threads at once.  0 or -errno.
   */
  int (*data) (void *opaque, const struct copy_item *item, const void *buf);
  /* Optional.  The item has been written.  From several threads at once. */
  void (*done) (void *opaque, const struct copy_item *item);
};

#define COPY_DEFAULT_THREADS 2

struct copy_options {
  unsigned nr_threads;          /* 0 = COPY_DEFAULT_THREADS */
  unsigned depth;               /* reads in flight per thread; 0 = 16 */
  uint64_t memory;              /* instead of depth, unless 0: buffers take no
                                   more than this, but two items at least, and
                                   so much is in flight as the bandwidth needs
                                   (window.h); perhaps with fewer threads */
  size_t max_item;              /* bytes; 0 = 1 MiB */
  bool detect_zeroes;           /* read data that is zero is blk_zero'ed */
  size_t zero_unit;             /* looked for in aligned units of this many
                                   bytes; 0 = only whole items */
  bool compress;                /* data is written with BLK_COMPRESS */
  bool target_is_zero;          /* zero items need not be written */
  bool keeps_zeroes;            /* they are written with BLK_KEEP_ZERO */
  const volatile bool *cancel;  /* stops with -ECANCELED when it turns true */
};

struct copy_stats {
  uint64_t read_bytes;          /* that came from the source */
  uint64_t written_bytes;       /* data */
  uint64_t zero_bytes;          /* zeroed, or skipped as already zero */
  bool is_write_error;          /* what failed first was the target */
};

/* Copy until next returns 0.  Blocks.  On failure *err names the node, the
 * operation and the offset of the first error, and no callback runs any more.
 * The target is not flushed.  options, ret and err may be NULL.
 */
int copy_run (struct blk *source, struct blk *target,
              const struct copy_options *options, const struct copy_ops *ops,
              void *opaque, struct copy_stats *ret, struct error *err);

#endif /* TIDEMARK_COPY_H */
