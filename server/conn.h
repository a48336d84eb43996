/* SPDX-License-Identifier: BSD-3-Clause */
/* One NBD connection, as the parts of the server see it: conn.c (its life, its
 * receiving thread), handshake.c, request.c and reply.c.  Nobody else includes
 * this.
 */
#ifndef TIDEMARK_CONN_H
#define TIDEMARK_CONN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#include "export.h"
#include "inline-policy.h"
#include "lock.h"
#include "meta-context.h"
#include "reply.h"
#include "request.h"
#include "server-tls.h"
#include "workers.h"

/* In flight on one connection, from decoding until the reply has gone out:
 * what bounds the memory that a client can make us use.  One request is
 * always allowed, whatever its size.
 */
#define CONN_MAX_REQUESTS 128
#define CONN_MAX_BYTES REQUEST_MAX_PAYLOAD

/* Buffers kept for reuse on one connection: none larger than the first, not
 * more than the second together, and none after it was idle for a while.
 */
#define CONN_KEEP_BUFFER (UINT32_C (4) << 20)
#define CONN_KEEP_BYTES (UINT32_C (16) << 20)
#define CONN_IDLE_SECONDS 1

/* Received bytes; a write with payload up to CONN_INLINE_WRITE is taken
 * from here without a copy.
 */
#define CONN_RX_SIZE (256 * 1024)
#define CONN_INLINE_WRITE (64 * 1024)

/* Zeroing or trimming of more is for a worker in any case. */
#define CONN_INLINE_ZERO (1024 * 1024)

/* Replies without payload, not yet sent: from the receiving thread it stops
 * at the first number; each request of a worker may add one more.
 */
#define CONN_SMALL_LIMIT (16 * 1024)
#define CONN_RX_SMALL 4096
#define CONN_SMALL_SIZE \
  (CONN_SMALL_LIMIT + CONN_RX_SMALL + CONN_MAX_REQUESTS * REPLY_SMALL_MAX)

/* What both are in: only pages in use cost memory. */
#define CONN_MEMORY (CONN_RX_SIZE + 2 * CONN_SMALL_SIZE)

/* The receiving thread reads no further ahead of a client that is slower: what
 * is read should still be in the processor's cache when it is sent.
 */
#define CONN_MAX_UNSENT (512 * 1024)

/* Pieces in one sendmsg. */
#define CONN_SEND_IOV 256

/* A request in progress and its reply.  Used by one thread at a time: the
 * receiving one, a worker, the sender.
 */
struct slot {
  struct work work;
  struct conn *conn;            /* fixed */
  struct slot *next;            /* in the free list or the list of replies */

  struct request_head head;
  uint64_t cost;                /* counted in the connection's nr_bytes */
  uint64_t status_len;          /* block status: effect length */
  bool wanted[META_MAX_CONTEXTS]; /* and contexts */

  uint8_t *buf;                 /* payload of the request or the reply */
  size_t cap;

  struct iovec iov[REPLY_MAX_IOV]; /* the reply, if it has a payload */
  unsigned nr_iov;
  uint64_t reply_bytes;         /* in iov */
  uint8_t heads[REPLY_HEADS_SIZE]; /* headers of its chunks */
};

/* What a connection needs of the server that it belongs to. */
struct conn_env {
  struct export_table *exports;
  struct workers *workers;
  unsigned handshake_timeout;   /* seconds */
  const struct server_tls *tls; /* or NULL */
  struct tls_creds *creds;      /* NULL: TLS is not offered */
  bool must_use_tls;            /* on Unix sockets too */
  enum tls_role role;           /* of its clients */
  /* The connection's thread is about to end; conn_join may be called. */
  void (*finished) (void *opaque, struct conn *conn);
  void *opaque;
};

struct conn {
  /* Fixed after start. */
  struct conn_env env;
  int fd;
  pthread_t thread;             /* receives; handshake, then requests */

  /* Of the receiving thread during the handshake, then fixed. */
  struct timespec deadline;     /* of the whole handshake */
  bool is_local;                /* a Unix socket: TLS is no must */
  struct tls *tls;              /* in use; or NULL */
  bool is_fixed_newstyle;
  bool no_zeroes;
  struct export *export;        /* a reference */
  struct export *meta_export;   /* that the contexts were selected for */
  struct meta_contexts contexts;
  struct request_env request_env; /* all but size */
  unsigned can;                 /* the node's */
  uint8_t *memory;              /* mapped: rx and small */
  pthread_t sender;             /* sends what others could not without
                                   waiting */

  /* Of the receiving thread. */
  uint8_t *rx;                  /* received, from rx_pos to rx_end */
  size_t rx_pos, rx_end;
  uint8_t rx_small[CONN_RX_SMALL]; /* small replies of its own */
  size_t rx_small_len;
  size_t rx_queued;             /* bytes of replies since it last flushed */
  bool is_timed;                /* receiving times out when idle */
  struct inline_policy inline_write, inline_zero, inline_status;

  struct lock lock;
  /* Protected by lock. */
  struct slot *free_slots;
  size_t kept_bytes;            /* of buffers in free_slots */
  unsigned nr_requests;         /* slots in use */
  unsigned nr_working;          /* requests given to workers, until the worker
                                   touches the connection no more */
  uint64_t nr_bytes;
  struct slot *replies, **replies_tail; /* to be sent */
  uint8_t *small[2];            /* CONN_SMALL_SIZE each; [small_index] fills
                                   while the other is being sent */
  unsigned small_index;
  size_t small_len;
  uint64_t unsent_bytes;        /* of replies with payload */
  bool is_sending;              /* somebody has the sender's role */
  bool is_handed_over;          /* it is the sender thread's to take */
  bool is_ending;               /* the sender thread ends */
  pthread_cond_t room;          /* less in use, or nobody is sending */
  pthread_cond_t handed_over;   /* or is_ending */

  /* Of whoever has the sender's role. */
  struct iovec iov[CONN_SEND_IOV];
  unsigned iov_pos, nr_iov;
  struct slot *sent;            /* slots in iov */

  /* Atomic. */
  _Atomic bool is_dead;         /* nothing can be sent any more */
  _Atomic bool is_stopping;     /* take no more requests */
};

/* Socket calls, so that tests can make them fail. */
struct socket_ops {
  ssize_t (*recvmsg) (int fd, struct msghdr *msg, int flags);
  ssize_t (*sendmsg) (int fd, const struct msghdr *msg, int flags);
};
extern const struct socket_ops *socket_ops;

/* Serve the connected socket fd on a thread of its own.  Takes ownership of
 * fd, on failure too.
 */
int conn_start (const struct conn_env *env, int fd, struct conn **ret);
/* Take no more requests, finish those in progress, close.  is_now: do not wait
 * for the client to read its replies.  Returns at once.
 */
void conn_stop (struct conn *c, bool is_now);
/* Wait for its thread and free it. */
void conn_join (struct conn *c);

/* Receive into msg, send it: as the calls of a socket. */
ssize_t conn_recvmsg (struct conn *c, struct msghdr *msg, int flags);
ssize_t conn_sendmsg (struct conn *c, const struct msghdr *msg, int flags);

/* Exactly len bytes, until the handshake's deadline.  0 or -errno;
 * -ECONNRESET if the client is gone.
 */
int conn_recv_all (struct conn *c, void *buf, size_t len);
int conn_send_all (struct conn *c, const void *buf, size_t len);
/* Everything is encrypted from now on.  0 or -errno (it has been logged). */
int conn_start_tls (struct conn *c);
/* Is TLS needed before anything else? */
bool conn_needs_tls (const struct conn *c);

/* Until transmission begins.  0, or -errno if the connection is to be closed.
 */
int handshake_run (struct conn *c);

/* Make room for len bytes in the slot's buffer, keeping used.  0 or -ENOMEM.
 */
int slot_reserve (struct slot *slot, size_t len, size_t used);
/* Give a slot back.  The caller holds the lock. */
void slot_release_locked (struct slot *slot);

#endif /* TIDEMARK_CONN_H */
