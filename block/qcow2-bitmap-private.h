/* SPDX-License-Identifier: BSD-3-Clause */
/* Shared by qcow2-bitmap.c, qcow2-bitmap-store.c and qcow2-check.c. */
#ifndef TIDEMARK_QCOW2_BITMAP_PRIVATE_H
#define TIDEMARK_QCOW2_BITMAP_PRIVATE_H

#include "qcow2-bitmap.h"
#include "qcow2.h"

#define QCOW2_EXT_BITMAPS UINT32_C (0x23852875)
#define QCOW2_BITMAP_EXT_SIZE 24
#define QCOW2_BITMAP_ENTRY_SIZE 24      /* without extra data and name */

/* The header extension, in host byte order. */
struct qcow2_bitmap_ext {
  uint32_t nr;                  /* 0 = there is none */
  uint32_t reserved;
  uint64_t dir_len, dir_off;
};

/* Read and check it; none if its autoclear bit is not set. */
int qcow2_bitmap_ext_read (struct qcow2 *q, struct qcow2_bitmap_ext *ret,
                           struct error *err);
/* Clusters of bits, hence entries of the table, of a bitmap of the disk. */
uint64_t qcow2_bitmap_clusters (const struct qcow2 *q, uint64_t granularity);
/* Call each for every entry of bm's table, whose place has been checked, until
 * it returns an error.
 */
int qcow2_bitmap_walk (struct qcow2 *q, const struct qcow2_bitmap *bm,
                       int (*each) (void *opaque, uint64_t index,
                                    uint64_t entry),
                       void *opaque);
/* No reserved bits, and its cluster is where one can be. */
bool qcow2_bitmap_entry_is_sound (const struct qcow2 *q, uint64_t entry);

#endif /* TIDEMARK_QCOW2_BITMAP_PRIVATE_H */
