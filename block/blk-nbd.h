/* SPDX-License-Identifier: BSD-3-Clause */
/* A remote export over NBD, by libnbd.  Several connections, each with a
 * thread that runs its events; calls from many threads are in flight at once.
 */
#ifndef TIDEMARK_BLK_NBD_H
#define TIDEMARK_BLK_NBD_H

#include "blk.h"

struct blk_nbd_options {
  const char *uri;              /* nbd://, nbds://, nbd+unix://, nbds+unix://;
                                   QEMU's nbd:unix:PATH:exportname=NAME and
                                   nbd:HOST:PORT:exportname=NAME */
  unsigned nr_connections;      /* 0 = 4; 1 if the server is not multi-conn
                                   and the node is writable */
  bool is_read_only;
  /* Metadata contexts to ask for besides base:allocation; open fails, naming
   * it, if the server does not grant one of them.
   */
  const char *const *contexts;
  size_t nr_contexts;
  bool is_allocation_optional;  /* do not fail if base:allocation is not
                                   granted (everything is then data) */
};

int blk_nbd_open (const struct blk_nbd_options *options, struct blk **ret,
                  struct error *err);

/* The status of a prefix of [off, off+len) in several contexts, in one
 * request: lists[0] is base:allocation, lists[i] is contexts[i-1].  Each list
 * is appended to and gets at least one extent; they may end at different
 * offsets.  A list that the server left out is -EPROTO.
 */
int blk_nbd_block_status (struct blk *blk, uint64_t len, uint64_t off,
                          struct extents *lists, size_t nr_lists);

/* Metadata contexts that the export at uri offers and that begin with prefix
 * ("" = all).  The caller frees the strings and the array.
 */
int blk_nbd_list_contexts (const char *uri, const char *prefix,
                           char ***ret, size_t *ret_nr, struct error *err);

#endif /* TIDEMARK_BLK_NBD_H */
