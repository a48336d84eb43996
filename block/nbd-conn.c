/* SPDX-License-Identifier: BSD-3-Clause */
/* One connection of blk-nbd.
 *
 * There is no thread behind a connection.  A thread that waits runs the
 * connection's events (poll, receive, send) if nobody else does, for its own
 * commands and everybody's; the others sleep until their own command has
 * ended, or until the one that polls leaves and hands over to one of them.  So
 * a single caller, and a stream with a connection to itself, never pay for a
 * switch between threads; and a node may be opened before a fork.
 *
 * Rules:
 * 1. nbd_* is never called with the lock held: libnbd calls back with the lock
 *    of its handle held, and we take ours in there.
 * 2. Events are only run for a socket that poll says is ready: libnbd stops
 *    sending commands after a receive that found nothing.
 * 3. Every op that is issued ends exactly once: libnbd's completion, or the
 *    failure to issue it.  A dead connection completes all its commands.
 *
 * Called from any thread.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "nbd-conn.h"
#include "range.h"

/* A peer whose machine vanished is noticed after about this long. */
#define KEEPALIVE_IDLE 15       /* seconds without traffic */
#define KEEPALIVE_INTERVAL 5
#define KEEPALIVE_PROBES 3
#define UNACKED_TIMEOUT 30000   /* milliseconds */

/* No effect on Unix sockets, where the kernel tells at once. */
static void
set_keepalive (int fd)
{
  const int on = 1, idle = KEEPALIVE_IDLE, interval = KEEPALIVE_INTERVAL;
  const int probes = KEEPALIVE_PROBES;
  const unsigned timeout = UNACKED_TIMEOUT;

  if (setsockopt (fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) < 0 ||
      setsockopt (fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle) < 0)
    return;
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
  setsockopt (fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof timeout);
}

int
nbd_conn_new (struct nbd_handle *h, struct nbd_conn **ret)
{
  struct nbd_conn *c = calloc (1, sizeof *c);

  if (!c) {
    nbd_close (h);
    return -ENOMEM;
  }
  c->h = h;
  c->wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  c->cut_fd = fcntl (nbd_aio_get_fd (h), F_DUPFD_CLOEXEC, 0);
  if (c->wake_fd < 0 || c->cut_fd < 0) {
    int r = -errno;

    if (c->wake_fd >= 0)
      close (c->wake_fd);
    if (c->cut_fd >= 0)
      close (c->cut_fd);
    nbd_close (h);
    free (c);
    return r;
  }
  set_keepalive (c->cut_fd);
  lock_init (&c->lock, LOCK_RANK_PROTOCOL);
  *ret = c;
  return 0;
}

void
nbd_conn_free (struct nbd_conn *c)
{
  if (!c)
    return;
  /* Best effort, without waiting for the server: tell it that this is no
   * accident.
   */
  if (nbd_aio_is_ready (c->h))
    nbd_aio_disconnect (c->h, 0);
  nbd_close (c->h);
  close (c->cut_fd);
  close (c->wake_fd);
  lock_destroy (&c->lock);
  free (c);
}

/* libnbd has closed its socket, or will; the server is to see the end now. */
static void
set_dead (struct nbd_conn *c)
{
  if (!atomic_exchange (&c->is_dead, true))
    shutdown (c->cut_fd, SHUT_RDWR);
}

void
nbd_conn_cancel (struct nbd_conn *c)
{
  atomic_store (&c->is_cancelled, true);
  shutdown (c->cut_fd, SHUT_RDWR);
}

void
nbd_waiter_init (struct nbd_waiter *w)
{
  *w = (struct nbd_waiter) { .is_asleep = false };
  cond_init (&w->cond);
}

void
nbd_waiter_destroy (struct nbd_waiter *w)
{
  pthread_cond_destroy (&w->cond);
}

/* n commands of op have ended; errnum positive or 0. */
static void
op_finish (struct nbd_op *op, unsigned n, int errnum)
{
  struct nbd_waiter *w = op->waiter;
  /* Once the lock is released the op may be gone. */
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&op->conn->lock);

  if (errnum && atomic_load (&op->conn->is_cancelled))
    errnum = ECANCELED;
  if (errnum && !op->error)
    op->error = -errnum;
  op->pending -= n;
  if (op->pending)
    return;
  if (!op->error && op->nr_read != op->read_len)
    op->error = -EPROTO;        /* a reply with pieces missing */
  op->next = NULL;
  if (w->done_last)
    w->done_last->next = op;
  else
    w->done_first = op;
  w->done_last = op;
  if (w->is_asleep)
    pthread_cond_signal (&w->cond);
}

static int
command_completed (void *user_data, int *error)
{
  struct nbd_op *op = user_data;

  if (*error == ENOTCONN)
    set_dead (op->conn);
  op_finish (op, 1, *error);
  return 1;                     /* libnbd forgets the command */
}

static int
chunk_arrived (void *user_data, const void *subbuf, size_t count,
               uint64_t offset, unsigned status, int *error)
{
  struct nbd_op *op = user_data;

  if (status != LIBNBD_READ_ERROR)
    op->nr_read += count;
  return 0;
}

/* Send one command.  The cookie, or -1. */
static int64_t
issue_piece (struct nbd_conn *c, struct nbd_op *op,
             const struct nbd_request *rq, uint64_t len, uint64_t done)
{
  nbd_completion_callback cb = {
    .callback = command_completed, .user_data = op
  };
  uint64_t off = rq->off + done;

  switch (rq->command) {
  case NBD_CONN_READ:
    return nbd_aio_pread_structured (c->h, (char *) rq->buf + done, len, off,
                                     (nbd_chunk_callback) {
                                       .callback = chunk_arrived,
                                       .user_data = op
                                     }, cb, rq->flags);
  case NBD_CONN_WRITE:
    return nbd_aio_pwrite (c->h, (char *) rq->buf + done, len, off, cb,
                           rq->flags);
  case NBD_CONN_ZERO:
    return nbd_aio_zero (c->h, len, off, cb, rq->flags);
  case NBD_CONN_TRIM:
    return nbd_aio_trim (c->h, len, off, cb, rq->flags);
  case NBD_CONN_FLUSH:
    return nbd_aio_flush (c->h, cb, rq->flags);
  case NBD_CONN_CACHE:
    return nbd_aio_cache (c->h, len, off, cb, rq->flags);
  case NBD_CONN_STATUS:
    return nbd_status_issue (c->h, len, off, rq->sink, cb, rq->flags);
  }
  return -1;
}

/* Why a command could not be issued. */
static int
issue_errno (struct nbd_conn *c)
{
  int errnum = nbd_get_errno ();

  if (nbd_aio_is_dead (c->h) || nbd_aio_is_closed (c->h)) {
    set_dead (c);
    return ENOTCONN;
  }
  return errnum ? errnum : EIO;
}

/* Somebody who polls must look at the direction again if there is now
 * something to send.
 */
static void
wake_poller (struct nbd_conn *c)
{
  const uint64_t one = 1;
  ssize_t r;

  if (!(nbd_aio_get_direction (c->h) & LIBNBD_AIO_DIRECTION_WRITE))
    return;
  lock_acquire (&c->lock);
  if (c->is_polled)
    r = write (c->wake_fd, &one, sizeof one);
  else
    r = 0;
  lock_release (&c->lock);
  (void) r;                     /* EAGAIN: it is awake as can be */
}

void
nbd_conn_issue (struct nbd_conn *c, struct nbd_op *op, struct nbd_waiter *w,
                const struct nbd_request *rq)
{
  uint64_t done = 0, len = rq->len;
  unsigned nr = 1, i;

  if (len > rq->max_piece && rq->max_piece)
    nr = div_round_up (len, rq->max_piece);
  *op = (struct nbd_op) {
    .conn = c, .waiter = w, .pending = nr,
    .read_len = rq->command == NBD_CONN_READ ? len : 0,
  };
  for (i = 0; i < nr; i++) {
    uint64_t piece = nr > 1 ? MIN (len - done, rq->max_piece) : len;

    if (issue_piece (c, op, rq, piece, done) == -1) {
      op_finish (op, nr - i, issue_errno (c));
      return;
    }
    done += piece;
  }
  wake_poller (c);
}

/* Wait for the socket and run its events once.  The caller is the one that
 * polls; the lock is not held.
 */
static void
poll_once (struct nbd_conn *c)
{
  /* Not the handle's own descriptor: another thread, in whose call the
   * connection dies, makes libnbd close that one, and its number may be given
   * to another file before we poll it.
   */
  struct pollfd fds[2] = {
    { .fd = c->cut_fd },
    { .fd = c->wake_fd, .events = POLLIN },
  };
  unsigned dir = nbd_aio_get_direction (c->h);
  uint64_t n;

  if (dir == 0) {
    /* Dead: another thread is just completing all commands. */
    poll (NULL, 0, 1);
    return;
  }
  if (dir & LIBNBD_AIO_DIRECTION_READ)
    fds[0].events |= POLLIN;
  if (dir & LIBNBD_AIO_DIRECTION_WRITE)
    fds[0].events |= POLLOUT;
  if (poll (fds, 2, -1) <= 0)
    return;                     /* EINTR */
  if (fds[1].revents && read (c->wake_fd, &n, sizeof n) < 0 && errno != EAGAIN)
    return;
  if (!fds[0].revents)
    return;
  /* The direction can only have gained WRITE meanwhile.  An error or hangup
   * is found by whichever call the state allows.
   */
  if ((dir & LIBNBD_AIO_DIRECTION_READ) &&
      (fds[0].revents & (POLLIN | POLLHUP | POLLERR)))
    nbd_aio_notify_read (c->h);
  else if (dir & LIBNBD_AIO_DIRECTION_WRITE)
    nbd_aio_notify_write (c->h);
}

/* Sleep while somebody else polls.  The lock is held. */
static void
sleep_locked (struct nbd_conn *c, struct nbd_waiter *w)
{
  lock_assert_held (&c->lock);
  w->is_asleep = true;
  w->prev = NULL;
  w->next = c->asleep;
  if (w->next)
    w->next->prev = w;
  c->asleep = w;
  lock_wait (&c->lock, &w->cond);
  if (w->prev)
    w->prev->next = w->next;
  else
    c->asleep = w->next;
  if (w->next)
    w->next->prev = w->prev;
  w->is_asleep = false;
}

struct nbd_op *
nbd_conn_wait (struct nbd_conn *c, struct nbd_waiter *w)
{
  struct nbd_op *ops;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  while (!w->done_first) {
    if (c->is_polled) {
      sleep_locked (c, w);
      continue;
    }
    c->is_polled = true;
    lock_release (&c->lock);
    poll_once (c);
    lock_acquire (&c->lock);
    c->is_polled = false;
  }
  ops = w->done_first;
  w->done_first = w->done_last = NULL;
  if (!c->is_polled && c->asleep)
    pthread_cond_signal (&c->asleep->cond);
  return ops;
}

static void
handle_failed (struct nbd_handle **h, struct error *err)
{
  const char *msg = nbd_get_error ();
  int errnum = nbd_get_errno ();

  error_set (err, errnum ? errnum : EIO, "%s",
             msg ? msg : "connection failed");
  nbd_close (*h);
  *h = NULL;
}

/* Run the events of those handles that are still in their handshake, once.
 * fds has a place for each and one for cancel_fd.  False: there are none, or
 * it is time to give up.
 */
static bool
handshake_step (struct nbd_handle **handles, size_t nr, struct pollfd *fds,
                const struct nbd_patience *patience, struct error *err)
{
  size_t i, n = 0;

  for (i = 0; i < nr; i++) {
    unsigned dir;

    fds[i] = (struct pollfd) { .fd = -1 };
    if (!handles[i] || !nbd_aio_is_connecting (handles[i]))
      continue;
    dir = nbd_aio_get_direction (handles[i]);
    fds[i].fd = nbd_aio_get_fd (handles[i]);
    fds[i].events = (dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                    (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
    n++;
  }
  fds[nr] = (struct pollfd) { .fd = patience->cancel_fd, .events = POLLIN };
  if (n == 0)
    return false;
  if (poll (fds, nr + 1, patience->timeout_ms) <= 0)
    return true;
  for (i = 0; i < nr; i++) {
    bool is_read = (fds[i].events & POLLIN) &&
                   (fds[i].revents & (POLLIN | POLLHUP | POLLERR));

    if (fds[i].fd < 0 || !fds[i].revents)
      continue;
    if ((is_read ? nbd_aio_notify_read (handles[i]) :
         nbd_aio_notify_write (handles[i])) < 0)
      handle_failed (&handles[i], err);
  }
  return !fds[nr].revents;
}

void
nbd_handshake_all (struct nbd_handle **handles, size_t nr,
                   const struct nbd_patience *patience, struct error *err)
{
  const int64_t deadline = clock_ms () + patience->timeout_ms;
  struct pollfd *fds = calloc (nr + 1, sizeof *fds);
  struct nbd_patience left = *patience;
  size_t i;

  while (fds && left.timeout_ms > 0 &&
         handshake_step (handles, nr, fds, &left, err))
    left.timeout_ms = (int) (deadline - clock_ms ());
  for (i = 0; i < nr; i++) {
    if (!handles[i] || nbd_aio_is_ready (handles[i]) ||
        nbd_aio_is_negotiating (handles[i]))
      continue;
    if (fds && fds[nr].revents)
      error_set (err, ECANCELED, "given up");
    else if (nbd_aio_is_connecting (handles[i]))
      error_set (err, ETIMEDOUT, "the server does not answer");
    else
      error_set (err, ECONNRESET, "the server closed the connection");
    nbd_close (handles[i]);
    handles[i] = NULL;
  }
  free (fds);
}

void
nbd_connect_all (struct nbd_handle **handles, size_t nr, const char *uri,
                 const struct nbd_patience *patience, struct error *err)
{
  size_t i;

  for (i = 0; i < nr; i++)
    if (nbd_aio_connect_uri (handles[i], uri) < 0)
      handle_failed (&handles[i], err);
  nbd_handshake_all (handles, nr, patience, err);
}
