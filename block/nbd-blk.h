/* SPDX-License-Identifier: BSD-3-Clause */
/* What blk-nbd.c (I/O) and nbd-open.c (making the node) share. */
#ifndef TIDEMARK_NBD_BLK_H
#define TIDEMARK_NBD_BLK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk-nbd.h"
#include "lock.h"
#include "nbd-conn.h"
#include "reqlist.h"

/* The most that one read or write is sent as: what every server takes (nbd:
 * doc/proto.md, "Block size constraints").
 */
#define NBD_MAX_PAYLOAD (UINT32_C (32) << 20)
/* Other requests: what fits 32 bits and is a multiple of any block size. */
#define NBD_MAX_LENGTH UINT32_C (0xffff0000)
#define NBD_MAX_BLOCK_SIZE UINT32_C (65536)
#define NBD_MAX_CONTEXTS 65     /* base:allocation and 64 more */
#define NBD_MAX_DEPTH 1024

struct nbd_blk {
  struct blk blk;               /* first */

  /* Fixed after open. */
  struct nbd_conn **conns;
  size_t nr_conns;
  char **contexts;              /* [0] is base:allocation */
  size_t nr_contexts;
  bool is_foreign;              /* the URI */
  bool has_allocation;
  bool has_status;              /* any context at all */
  bool can_flush;
  uint32_t min_block;           /* power of 2; 1 = any alignment */
  uint32_t max_payload;         /* bytes of one read or write */
  uint64_t max_status;          /* that one block status can be about */

  struct lock lock;
  /* Protected by lock; in use only if min_block > 1. */
  struct reqlist writes;        /* claims of all writes in progress */
};

extern const struct blk_driver nbd_blk_driver;

/* Accepts a half-built node.  Nothing is in flight. */
void nbd_blk_free (struct nbd_blk *s);

#endif /* TIDEMARK_NBD_BLK_H */
