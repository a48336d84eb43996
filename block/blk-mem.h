/* SPDX-License-Identifier: BSD-3-Clause */
/* A sparse disk in memory, for tests and for measuring. */
#ifndef TIDEMARK_BLK_MEM_H
#define TIDEMARK_BLK_MEM_H

#include "blk.h"

/* All zeroes, a hole.  0 or -ENOMEM. */
int blk_mem_new (uint64_t size, struct blk **ret);

#endif /* TIDEMARK_BLK_MEM_H */
