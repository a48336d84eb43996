/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk that forgets: QEMU's null-co, for measuring and for tests. */
#ifndef TIDEMARK_BLK_NULL_H
#define TIDEMARK_BLK_NULL_H

#include "blk.h"

enum {
  BLK_NULL_READ_ONLY = 1 << 0,
  BLK_NULL_OPAQUE = 1 << 1,     /* does not say that it is all zeroes */
};

/* Takes all writes, reads as zeroes. */
int blk_null_open (const char *name, uint64_t size, unsigned flags,
                   struct blk **ret, struct error *err);

#endif /* TIDEMARK_BLK_NULL_H */
