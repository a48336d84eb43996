/* SPDX-License-Identifier: BSD-3-Clause */
/* The handshake of an NBD client up to TLS, to learn what is wrong with it
 * (nbd: "Newstyle negotiation", NBD_OPT_STARTTLS).  Nothing is read or written
 * but that: no export is opened.
 *
 * I10: one deadline; of the server's answers only heads are kept.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "byteorder.h"
#include "cleanup.h"
#include "clock.h"
#include "nbd-protocol.h"
#include "nbd-why.h"
#include "sockaddr.h"
#include "tls.h"

#define TIME_LIMIT 10000        /* milliseconds */
#define GREETING_SIZE 18        /* two magics, flags */

struct probe {
  int fd, cancel_fd;
  int64_t deadline;
};

/* False when the time is over, and when it is time to give up. */
static bool
wait_for (struct probe *p, short events)
{
  struct pollfd fds[2] = {
    { .fd = p->fd, .events = events },
    { .fd = p->cancel_fd, .events = POLLIN },
  };
  int64_t left = p->deadline - clock_ms ();

  return left > 0 && poll (fds, 2, (int) left) > 0 && !fds[1].revents;
}

static bool
receive (struct probe *p, uint8_t *buf, size_t len)
{
  ssize_t n;

  while (len > 0) {
    if (!wait_for (p, POLLIN))
      return false;
    n = recv (p->fd, buf, len, MSG_DONTWAIT);
    if (n <= 0)
      return false;
    buf += n;
    len -= (size_t) n;
  }
  return true;
}

/* It is little, and the first that is sent: it goes at once. */
static bool
transmit (struct probe *p, const uint8_t *buf, size_t len)
{
  return send (p->fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t) len;
}

static void
encode_option (uint8_t *p, uint32_t option)
{
  store_be64 (p, NBD_OPTION_MAGIC);
  store_be32 (p + 8, option);
  store_be32 (p + 12, 0);
}

/* The greeting, and the answer to one option.  False if that cannot be had. */
static bool
ask (struct probe *p, uint32_t option, uint32_t *ret_answer)
{
  uint8_t greeting[GREETING_SIZE], reply[NBD_OPTION_REPLY_SIZE];
  uint8_t request[4 + NBD_OPTION_SIZE];

  if (!receive (p, greeting, sizeof greeting) ||
      load_be64 (greeting) != NBD_MAGIC ||
      load_be64 (greeting + 8) != NBD_OPTION_MAGIC ||
      !(load_be16 (greeting + 16) & NBD_FLAG_FIXED_NEWSTYLE))
    return false;
  store_be32 (request, NBD_FLAG_FIXED_NEWSTYLE);
  encode_option (request + 4, option);
  if (!transmit (p, request, sizeof request) ||
      !receive (p, reply, sizeof reply) ||
      load_be64 (reply) != NBD_OPTION_REPLY_MAGIC ||
      load_be32 (reply + 8) != option)
    return false;
  *ret_answer = load_be32 (reply + 12);
  return true;
}

/* With TLS 1.3 the client has finished before it hears that it is refused: the
 * answer to an option tells.
 */
static void
listen_for_refusal (struct probe *p, struct tls *tls, const char *uri,
                    struct error *err)
{
  uint8_t buf[NBD_OPTION_SIZE];
  struct iovec v = { .iov_base = buf, .iov_len = sizeof buf };

  encode_option (buf, NBD_OPT_ABORT);
  /* Whether or not it can be sent: what has been received may say why. */
  (void) tls_sendv (tls, &v, 1, MSG_DONTWAIT);
  while (tls_recv (tls, buf, sizeof buf, MSG_DONTWAIT) < 0) {
    if (errno == EAGAIN && wait_for (p, POLLIN))
      continue;
    if (errno == EACCES && tls_recv_error (tls))
      error_set (err, EACCES, "%s: TLS: %s", uri, tls_recv_error (tls));
    return;
  }
}

static void
try_tls (struct probe *p, const char *uri, const char *host,
         const struct blk_nbd_tls *tls, struct error *err)
{
  const struct tls_creds_options o = {
    .certificates = tls ? tls->certificates : NULL,
    .psk = tls ? tls->psk : NULL, .user = tls ? tls->user : NULL,
  };
  struct error why = ERROR_INIT;
  struct tls_creds *creds;
  struct tls *session;
  short events;
  int r;

  if (tls_creds_new (&o, &creds, &why) < 0)
    return;
  r = tls_new (creds, p->fd, host, &session, &why);
  if (r == 0) {
    while ((r = tls_handshake (session, &events, &why)) == -EAGAIN &&
           wait_for (p, events))
      ;
    if (r == 0)
      listen_for_refusal (p, session, uri, err);
    else if (r == -EACCES || r == -EPROTO)
      error_set (err, -r, "%s: %s", uri, why.msg);
    tls_free (session);
  }
  tls_creds_free (creds);
}

/* The address of a URI of TCP. */
static bool
parse_uri (const char *uri, bool *ret_is_tls, struct sock_address *ret)
{
  struct error err = ERROR_INIT;
  char buf[sizeof ret->host + sizeof ret->port];
  const char *start, *at;
  size_t len;

  *ret_is_tls = strncmp (uri, "nbds://", 7) == 0;
  if (!*ret_is_tls && strncmp (uri, "nbd://", 6) != 0)
    return false;
  /* Its own files and user would have to be taken apart, too. */
  if (strchr (uri, '?'))
    return false;
  start = uri + (*ret_is_tls ? 7 : 6);
  len = strcspn (start, "/");
  at = memchr (start, '@', len);
  if (at || len == 0 || len >= sizeof buf)
    return false;
  memcpy (buf, start, len);
  buf[len] = '\0';
  return sock_address_parse ("NBD", buf, "10809", ret, &err) == 0 &&
    !ret->is_unix;
}

void
nbd_why (const char *uri, const struct blk_nbd_tls *tls, int cancel_fd,
         struct error *err)
{
  struct error ignored = ERROR_INIT;
  struct sock_address address;
  uint32_t answer;
  bool is_tls;
  struct probe p = { .cancel_fd = cancel_fd };

  /* Not to be reached is not to be refused. */
  if (err == NULL || err->errnum == ECONNREFUSED || err->errnum == ETIMEDOUT ||
      !parse_uri (uri, &is_tls, &address))
    return;
  p.fd = sock_address_connect (&address, cancel_fd, &ignored);
  if (p.fd < 0)
    return;
  p.deadline = clock_ms () + TIME_LIMIT;
  if (ask (&p, is_tls ? NBD_OPT_STARTTLS : NBD_OPT_STRUCTURED_REPLY,
           &answer)) {
    if (!is_tls && answer == NBD_REP_ERR_TLS_REQD)
      error_set (err, EACCES, "%s: the server needs TLS: write nbds://HOST",
                 uri);
    else if (is_tls && answer != NBD_REP_ACK)
      error_set (err, EPROTO, "%s: the server refuses to use TLS, without "
                 "which nothing goes to nbds://", uri);
    else if (is_tls)
      try_tls (&p, uri, address.host, tls, err);
  }
  close (p.fd);
}
