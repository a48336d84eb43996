/* SPDX-License-Identifier: BSD-3-Clause */
/* A remote export over NBD, by libnbd.  Several connections; calls from many
 * threads are in flight at once.  No threads of its own: whoever waits for a
 * reply runs the connection's events, so a node may be opened before a fork.
 */
#ifndef TIDEMARK_BLK_NBD_H
#define TIDEMARK_BLK_NBD_H

#include "blk.h"

/* For servers that are reached over TLS, by libnbd: one of the two, and the
 * user whose key it is.
 */
struct blk_nbd_tls {
  const char *certificates;     /* a directory, see tls.h */
  const char *psk;              /* a file of keys */
  const char *user;
};

struct blk_nbd_options {
  const char *uri;              /* nbd://, nbds://, nbd+unix://, nbds+unix://;
                                   QEMU's nbd:unix:PATH:exportname=NAME and
                                   nbd:HOST:PORT:exportname=NAME */
  unsigned nr_connections;      /* at most; 0 = 4.  Just one if the server is
                                   not multi-conn, fewer if it does not accept
                                   as many. */
  bool is_read_only;
  bool is_foreign;              /* a peer has named the URI, not our user: it
                                   may not choose files of ours (TLS keys) */
  const struct blk_nbd_tls *tls;        /* NULL = the URI says all */
  int cancel_fd;                /* once it is readable, open gives up with
                                   -ECANCELED; 0 or -1 = none */
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

/* Give up, without waiting for the server: what is in flight and all later
 * calls but close fail with -ECANCELED.  From any thread while the node is
 * open.  Nothing happens to a node of another driver.
 */
void blk_nbd_cancel (struct blk *blk);

/* The status of a prefix of [off, off+len) in several contexts, in one
 * request: lists[0] is base:allocation, lists[i] is contexts[i-1].  Each list
 * is empty, or ends at off or beyond; it is appended to and then reaches beyond
 * off (if it was not full).  They may end at different offsets, so that the
 * next call's off is where the shortest ends.  A context that the server left
 * out, and anything else that breaks the protocol, is -EPROTO.
 */
int blk_nbd_block_status (struct blk *blk, uint64_t len, uint64_t off,
                          struct extents *lists, size_t nr_lists);

/* The same for nr ranges, all of which are asked for at once, over one
 * connection: it takes about as long as the slowest of them.  On failure,
 * which is that of the first range that failed, the lists hold anything.
 */
struct blk_nbd_range {
  uint64_t off, len;
  struct extents *lists;        /* nr_lists of them */
};

int blk_nbd_block_status_many (struct blk *blk,
                               const struct blk_nbd_range *ranges, size_t nr,
                               size_t nr_lists);

/* What one request can be about, in bytes: the status of what is beyond is not
 * in its answer.  Less than 4 GiB unless libnbd and the server have extended
 * headers.
 */
uint64_t blk_nbd_max_status (const struct blk *blk);

/* Metadata contexts that the export offers and that begin with prefix ("" =
 * all).  Of the options uri, tls and cancel_fd count.  The caller frees the
 * strings and the array.
 */
int blk_nbd_list_contexts (const struct blk_nbd_options *options,
                           const char *prefix, char ***ret, size_t *ret_nr,
                           struct error *err);

#endif /* TIDEMARK_BLK_NBD_H */
