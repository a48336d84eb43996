/* SPDX-License-Identifier: BSD-3-Clause */
/* The socket of an NBD connection: the only place that receives from it and
 * sends to it.
 *
 * Receiving and the exact reads and writes of the handshake: the connection's
 * receiving thread.  conn_sendmsg: whoever has the sender's role.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>

#include "conn.h"
#include "log.h"
#include "sockaddr.h"

static ssize_t
plain_recvmsg (int fd, struct msghdr *msg, int flags)
{
  return recvmsg (fd, msg, flags);
}

static ssize_t
plain_sendmsg (int fd, const struct msghdr *msg, int flags)
{
  return sendmsg (fd, msg, flags);
}

static const struct socket_ops plain_ops = {
  .recvmsg = plain_recvmsg,
  .sendmsg = plain_sendmsg,
};
const struct socket_ops *socket_ops = &plain_ops;

ssize_t
conn_recvmsg (struct conn *c, struct msghdr *msg, int flags)
{
  if (c->tls)
    return tls_recv (c->tls, msg->msg_iov[0].iov_base, msg->msg_iov[0].iov_len,
                     flags);
  return socket_ops->recvmsg (c->fd, msg, flags);
}

ssize_t
conn_sendmsg (struct conn *c, const struct msghdr *msg, int flags)
{
  if (c->tls)
    return tls_sendv (c->tls, msg->msg_iov, msg->msg_iovlen, flags);
  return socket_ops->sendmsg (c->fd, msg, flags | MSG_NOSIGNAL);
}

/* Handshake: exact reads and writes until the deadline. */

static int
wait_until_deadline (struct conn *c, short events)
{
  struct pollfd pfd = { .fd = c->fd, .events = events };
  struct timespec now;
  int64_t ms;
  int r;

  do {
    clock_gettime (CLOCK_MONOTONIC, &now);
    ms = (int64_t) (c->deadline.tv_sec - now.tv_sec) * 1000
      + (c->deadline.tv_nsec - now.tv_nsec) / 1000000;
    if (ms <= 0)
      return -ETIMEDOUT;
    r = poll (&pfd, 1, ms);
  } while (r == 0 || (r < 0 && errno == EINTR));
  return r < 0 ? -errno : 0;
}

int
conn_recv_all (struct conn *c, void *buf, size_t len)
{
  struct iovec v = { .iov_base = buf, .iov_len = len };
  struct msghdr msg = { .msg_iov = &v, .msg_iovlen = 1 };
  ssize_t n;
  int r;

  while (v.iov_len > 0) {
    if (c->tls == NULL || !tls_has_pending (c->tls)) {
      r = wait_until_deadline (c, POLLIN);
      if (r < 0)
        return r;
    }
    n = conn_recvmsg (c, &msg, MSG_DONTWAIT);
    if (n == 0)
      return -ECONNRESET;
    if (n < 0 && errno != EAGAIN && errno != EINTR)
      return -errno;
    if (n > 0) {
      v.iov_base = (uint8_t *) v.iov_base + n;
      v.iov_len -= n;
    }
  }
  return 0;
}

int
conn_send_all (struct conn *c, const void *buf, size_t len)
{
  struct iovec v = { .iov_base = (void *) buf, .iov_len = len };
  struct msghdr msg = { .msg_iov = &v, .msg_iovlen = 1 };
  ssize_t n;
  int r;

  while (v.iov_len > 0) {
    n = conn_sendmsg (c, &msg, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) {
      r = wait_until_deadline (c, POLLOUT);
      if (r < 0)
        return r;
    }
    else if (n < 0 && errno != EINTR)
      return -errno;
    if (n > 0) {
      v.iov_base = (uint8_t *) v.iov_base + n;
      v.iov_len -= n;
    }
  }
  return 0;
}

static int
tls_failed (struct conn *c, const struct error *err)
{
  char peer[SOCK_PEER_MAX];

  /* Who goes away is no news. */
  if (err->errnum == ECONNRESET)
    log_info ("nbd: %s: %s", sock_peer_format (c->fd, peer, sizeof peer),
              err->msg);
  else
    refusals_log (server_tls_refusals (c->env.tls), "nbd", c->fd, err->msg);
  return -ECONNRESET;
}

int
conn_start_tls (struct conn *c)
{
  struct tls_creds *creds = c->env.creds;
  struct error err = ERROR_INIT;
  struct tls *tls;
  short events;
  int r = tls_new (creds, c->fd, NULL, &tls, &err);

  if (r < 0)
    return tls_failed (c, &err);
  while ((r = tls_handshake (tls, &events, &err)) == -EAGAIN) {
    r = wait_until_deadline (c, events);
    if (r < 0) {
      error_set (&err, -r, "TLS: the handshake was not finished in time");
      break;
    }
  }
  if (r < 0) {
    tls_free (tls);
    return tls_failed (c, &err);
  }
  c->tls = tls;
  if (server_tls_allows (c->env.tls, tls, c->is_local, c->env.role, NULL))
    return 0;
  error_set (&err, EACCES, "TLS: '%.150s' is not on the list of those who may "
             "connect here (tls-allow)", tls_peer (tls));
  tls_refuse (tls);
  return tls_failed (c, &err);
}

bool
conn_needs_tls (const struct conn *c)
{
  if (c->env.must_use_tls)
    return !c->tls;
  return c->env.tls && !c->tls && !c->is_local &&
    server_tls_mode (c->env.tls) == TLS_REQUIRE;
}
