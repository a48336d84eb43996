/* SPDX-License-Identifier: BSD-3-Clause */
/* QEMU's hash of a bitmap's bits. */
#ifndef TIDEMARK_BITMAP_HASH_H
#define TIDEMARK_BITMAP_HASH_H

#include "dirty.h"

#define BITMAP_HASH_STRING_SIZE 65

/* size: of the disk.  0 or -errno: -ESTALE if it is inconsistent or removed. */
int bitmap_hash (struct dirty_bitmap *bm, uint64_t size,
                 char ret[BITMAP_HASH_STRING_SIZE]);

#endif /* TIDEMARK_BITMAP_HASH_H */
