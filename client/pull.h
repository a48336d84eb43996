/* SPDX-License-Identifier: BSD-3-Clause */
/* One disk's pull: from an NBD export into a new qcow2 image with its
 * checksums.
 */
#ifndef TIDEMARK_PULL_H
#define TIDEMARK_PULL_H

#include <stdbool.h>
#include <stdint.h>

#include "bandwidth.h"
#include "blk-nbd.h"
#include "blk-qcow2.h"
#include "error.h"
#include "point.h"
#include "sums.h"

struct pull_options {
  struct blk *source;           /* blk-nbd; with is_incremental its first
                                   context is the dirty bitmap */
  bool is_incremental;          /* only what is dirty */
  int dirfd;                    /* the disk's folder */
  const char *folder;           /* its path, for messages */
  unsigned number;
  bool is_full;                 /* names the files; no backing file */
  const char *backing;          /* name of the backing image, or NULL */
  uint32_t cluster_size;
  bool compress;                /* with these: */
  enum qcow2_compression compression;
  int compression_level;        /* 0 = default */
  struct point_id point;
  unsigned nr_threads;          /* each has a connection if there are enough;
                                   0 = the copy engine's default */
  uint64_t memory;              /* bytes, for the buffers of the copy engine */
  const volatile bool *cancel;
  struct bandwidth *bandwidth;  /* of what is read */
  /* Unless NULL: told of waits for the bandwidth, as wire_hold. */
  void (*hold) (struct blk *source, bool is_held);
  /* How to ask for the map, as blk_nbd_block_status_many; NULL = that. */
  int (*status) (struct blk *blk, const struct blk_nbd_range *ranges,
                 size_t nr, size_t nr_lists);
  uint64_t max_status;          /* with status: as blk_nbd_max_status */

  /* NULL, or go on: the two files are there and in this state. */
  const struct sums_state *resume;
  /* Unless NULL: called now and then when what *state says, and at least that,
   * is on stable storage, from a thread of the pull's.  On failure the files
   * are then left as they are.  0 or -errno.
   */
  int (*save) (void *opaque, const struct sums_state *state,
               struct error *err);
  void *opaque;
  uint64_t save_step;           /* bytes after which that is due */
  /* Unless NULL: called by another thread after a save: nobody will read this
   * range of source again, and it has not been named before.
   */
  void (*trim) (struct blk *source, uint64_t len, uint64_t off);
};

struct pull_result {
  uint64_t read_bytes;          /* moved from the server */
  uint64_t data_bytes, zero_bytes; /* stored */
  uint64_t image_bytes;         /* length of the image file */
  uint8_t root[SUMS_HASH_SIZE];
};

/* Blocks.  On success NUMBER-KIND.qcow2.partial and .sums.partial are complete
 * and on stable storage; on failure they have been removed, unless there is a
 * function to save with.
 */
int pull_run (const struct pull_options *options, struct pull_result *ret,
              struct error *err);

/* Remove the two files, whole or not. */
void pull_discard (const struct pull_options *options);

#endif /* TIDEMARK_PULL_H */
