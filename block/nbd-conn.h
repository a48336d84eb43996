/* SPDX-License-Identifier: BSD-3-Clause */
/* One connection of blk-nbd: commands are issued by any thread, and whoever
 * waits for one runs the connection's events.  For blk-nbd.c only.
 */
#ifndef TIDEMARK_NBD_CONN_H
#define TIDEMARK_NBD_CONN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <libnbd.h>

#include "error.h"
#include "lock.h"
#include "nbd-status.h"

struct nbd_conn;
struct nbd_op;

/* Who waits: a call, or a whole stream. */
struct nbd_waiter {
  /* Protected by the connection's lock. */
  pthread_cond_t cond;
  struct nbd_op *done_first, *done_last;        /* ended, in that order */
  bool is_asleep;
  struct nbd_waiter *next, *prev;               /* of those asleep */
};

/* One request, perhaps sent as several commands.  On the caller's stack or in
 * its slots: issuing allocates nothing of ours.
 */
struct nbd_op {
  /* Fixed while in flight. */
  struct nbd_conn *conn;
  struct nbd_waiter *waiter;
  uint64_t read_len;            /* bytes that must arrive; 0 = not a read */

  /* Protected by libnbd's lock of the handle. */
  uint64_t nr_read;

  /* Protected by the connection's lock. */
  unsigned pending;             /* commands in flight */
  int error;                    /* 0 or -errno; the first one */
  struct nbd_op *next;
};

struct nbd_conn {
  /* Fixed after open. */
  struct nbd_handle *h;
  int wake_fd;                  /* eventfd: look at the direction again */
  int cut_fd;                   /* a copy of the socket's, which libnbd closes
                                   when it likes */

  /* Atomic. */
  _Atomic unsigned nr_calls;    /* waiting for an answer here */
  _Atomic unsigned nr_streams;
  _Atomic bool is_dead;         /* no command can be sent any more */
  _Atomic bool is_cancelled;

  struct lock lock;
  /* Protected by lock. */
  bool is_polled;               /* somebody runs the events */
  struct nbd_waiter *asleep;    /* who waits for somebody else's polling */
};

enum nbd_command {
  NBD_CONN_READ, NBD_CONN_WRITE, NBD_CONN_ZERO, NBD_CONN_TRIM,
  NBD_CONN_FLUSH, NBD_CONN_CACHE, NBD_CONN_STATUS,
};

struct nbd_request {
  enum nbd_command command;
  void *buf;
  uint64_t len, off;
  uint32_t flags;               /* LIBNBD_CMD_FLAG_* */
  uint32_t max_piece;           /* split into commands of at most this; 0 =
                                   send one */
  struct nbd_status_sink *sink; /* of NBD_CONN_STATUS */
};

/* Takes ownership of h, which is connected, on failure too. */
int nbd_conn_new (struct nbd_handle *h, struct nbd_conn **ret);
/* Nothing is in flight. */
void nbd_conn_free (struct nbd_conn *c);

/* Cut the connection: what is in flight on it, and what will be, fails with
 * -ECANCELED.  From any thread.
 */
void nbd_conn_cancel (struct nbd_conn *c);

void nbd_waiter_init (struct nbd_waiter *w);
void nbd_waiter_destroy (struct nbd_waiter *w);

/* Send the request.  It always ends up in w's list, also if it cannot be
 * sent.  Does not block.
 */
void nbd_conn_issue (struct nbd_conn *c, struct nbd_op *op,
                     struct nbd_waiter *w, const struct nbd_request *request);

/* Wait until something of w's has ended.  Returns the list of what has,
 * linked by next, which is the caller's from then on.
 */
struct nbd_op *nbd_conn_wait (struct nbd_conn *c, struct nbd_waiter *w);

/* How long to wait for a server before the transmission phase. */
struct nbd_patience {
  int timeout_ms;
  int cancel_fd;                /* given up once it is readable; -1 = none */
};

/* Connect nr handles at once, each as its owner has prepared it, to uri.
 * Returns when all have ended their handshake one way or the other, or when
 * patience ends.  What is not ready then is closed and set to NULL, and *err
 * says why the last of those failed: ETIMEDOUT, ECANCELED if patience ended.
 */
void nbd_connect_all (struct nbd_handle **handles, size_t nr, const char *uri,
                      const struct nbd_patience *patience, struct error *err);

/* The rest of it: for handles whose handshake goes on. */
void nbd_handshake_all (struct nbd_handle **handles, size_t nr,
                        const struct nbd_patience *patience,
                        struct error *err);

#endif /* TIDEMARK_NBD_CONN_H */
