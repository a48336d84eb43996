/* SPDX-License-Identifier: BSD-3-Clause */
/* Moments in the life of a request, by QEMU's names, for nodes that inject
 * faults (blk-inject.h): who is about to do something with a child tells it.
 */
#ifndef TIDEMARK_BLK_EVENT_H
#define TIDEMARK_BLK_EVENT_H

/* X (NAME, "name"): those that requests of ours pass. */
#define BLK_EVENTS \
  X (READ_AIO, "read_aio") \
  X (READ_BACKING_AIO, "read_backing_aio") \
  X (READ_COMPRESSED, "read_compressed") \
  X (WRITE_AIO, "write_aio") \
  X (COW_READ, "cow_read") \
  X (COW_WRITE, "cow_write") \
  X (FLUSH_TO_OS, "flush_to_os") \
  X (FLUSH_TO_DISK, "flush_to_disk") \
  X (PWRITEV, "pwritev") \
  X (PWRITEV_ZERO, "pwritev_zero") \
  X (PWRITEV_DONE, "pwritev_done") \
  X (L1_UPDATE, "l1_update") \
  X (L2_LOAD, "l2_load") \
  X (L2_UPDATE, "l2_update") \
  X (L2_ALLOC_COW_READ, "l2_alloc_cow_read") \
  X (L2_ALLOC_WRITE, "l2_alloc_write") \
  X (REFTABLE_LOAD, "reftable_load") \
  X (REFTABLE_GROW, "reftable_grow") \
  X (REFTABLE_UPDATE, "reftable_update") \
  X (REFBLOCK_LOAD, "refblock_load") \
  X (REFBLOCK_UPDATE_PART, "refblock_update_part") \
  X (REFBLOCK_ALLOC, "refblock_alloc") \
  X (CLUSTER_ALLOC, "cluster_alloc") \
  X (CLUSTER_FREE, "cluster_free")

enum blk_event {
#define X(name, string) BLK_EVENT_##name,
  BLK_EVENTS
#undef X
  NR_BLK_EVENTS,
  BLK_EVENT_OPEN = NR_BLK_EVENTS, /* who opens the node as its child will tell
                                     of events: no rule waits for this one */
};

#endif /* TIDEMARK_BLK_EVENT_H */
