/* SPDX-License-Identifier: BSD-3-Clause */
/* A session's export as a read-only node that outlives its connections: when
 * they are lost it connects again and asks again for what has not arrived.
 */
#ifndef TIDEMARK_WIRE_H
#define TIDEMARK_WIRE_H

#include "blk-nbd.h"
#include "error.h"

struct wire_options {
  const char *uri;
  const char *context;          /* NULL = none */
  unsigned nr_connections;      /* 0 = blk-nbd's default */
  unsigned retry;               /* seconds after which it gives up if nothing
                                   has arrived; 0 = a loss is the end */
  unsigned timeout;             /* seconds without an answer after which a
                                   connection is lost; > 0 */
  /* Called before it connects again, by the thread that does: is what was read
   * still there, unchanged?  0; -EREMOTEIO if not, which is the end; another
   * -errno if that could not be found out.
   */
  int (*attach) (void *opaque, struct error *err);
  void *opaque;
};

/* Connects once. */
int wire_open (const struct wire_options *options, struct blk **ret,
               struct error *err);

/* For interrupt_watch_start: opaque is the node; what is waited for, and all
 * later calls, fail with -ECANCELED.
 */
void wire_cancel (void *opaque);

/* As blk_nbd_max_status, of the first connections; what came later may have
 * less, and then answers for less.
 */
uint64_t wire_max_status (struct blk *blk);

/* What is going on is held up, or is not any more, by something else than the
 * server, whose silence is no loss meanwhile.  A thread holds once at a time.
 */
void wire_hold (struct blk *blk, bool is_held);

/* As blk_nbd_block_status_many, of lists that are empty. */
int wire_block_status (struct blk *blk, const struct blk_nbd_range *ranges,
                       size_t nr, size_t nr_lists);

/* What was read of this range is stored and will not be asked for again: the
 * server need not keep it.  Advice, whose failure does not show.
 */
void wire_trim (struct blk *blk, uint64_t len, uint64_t off);

/* If the node has given up: why, as 0 or -errno and *err; -ENOTCONN if nobody
 * knows what became of the session.
 */
int wire_error (struct blk *blk, struct error *err);

#endif /* TIDEMARK_WIRE_H */
