/* SPDX-License-Identifier: BSD-3-Clause */
/* What to pull: runs of whole clusters, made of the extents that a server
 * reports.
 */
#ifndef TIDEMARK_DIRTYMAP_H
#define TIDEMARK_DIRTYMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk-nbd.h"
#include "error.h"
#include "extents.h"
#include "vector.h"

/* Begins at a cluster and ends at one, or at the end of the disk. */
struct dirty_run {
  uint64_t off;
  uint64_t len;
  bool is_zero;                 /* all of it reads as zero */
};

DEFINE_VECTOR (dirty_runs, struct dirty_run);

/* Feed extents in ascending order, get runs.  A cluster that holds a dirty
 * byte is dirty; one that is zero in all its bytes is zero.  Clean clusters
 * are left out, equal neighbours merged.
 */
struct dirty_rounder {
  uint64_t cluster_size;        /* set by the user; a power of two */
  bool skip_zero;               /* set by the user: zero clusters left out */
  uint64_t cluster;             /* offset of the one under construction */
  bool has_cluster, is_dirty, is_zero;
};

/* [off, off+len), len > 0, begins where the last one ended.  0 or -ENOMEM. */
int dirty_rounder_add (struct dirty_rounder *r, uint64_t off, uint64_t len,
                       bool is_dirty, bool is_zero, struct dirty_runs *runs);
/* No more will come: the last cluster ends at end.  0 or -ENOMEM. */
int dirty_rounder_end (struct dirty_rounder *r, uint64_t end,
                       struct dirty_runs *runs);

/* Reads a whole disk's map, piece by piece. */
struct dirty_map;

struct dirty_map_options {
  struct blk *blk;              /* a blk-nbd node; its first context besides
                                   base:allocation is the dirty one */
  bool is_incremental;          /* else everything is dirty */
  uint64_t cluster_size;
  bool skip_zero;
  uint64_t start;               /* leave out what is before; at a cluster */
  /* How to ask for it, as blk_nbd_block_status_many; NULL = that. */
  int (*status) (struct blk *blk, const struct blk_nbd_range *ranges,
                 size_t nr, size_t nr_lists);
  uint64_t max_status;          /* with status: as blk_nbd_max_status */
};

int dirty_map_new (const struct dirty_map_options *options,
                   struct dirty_map **ret);
void dirty_map_free (struct dirty_map *m);

/* Append the runs of the next part of the disk, as much as is asked for at
 * once.  1, or 0 at the end, -errno with *err set.  One thread at a time.
 */
int dirty_map_next (struct dirty_map *m, struct dirty_runs *runs,
                    struct error *err);

#endif /* TIDEMARK_DIRTYMAP_H */
