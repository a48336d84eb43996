/* SPDX-License-Identifier: BSD-3-Clause */
/* The control server's sockets and threads.
 *
 * One thread accepts; each connection has a thread that reads requests, carries
 * them out and is the only one to write to the socket.  qmp_event, from any
 * thread, only appends to connections' output and wakes their threads.
 *
 * I10: a connection holds at most one read buffer, one unfinished request, and
 * QMP_MAX_BACKLOG of output and one reply: while OUTPUT_HIGH bytes are unread
 * no further request is read, and events beyond the limit close it.  When all
 * places are taken, one that has not passed qmp_capabilities gives way.
 *
 * States of the server: configured -> running [qmp_server_start] -> stopping
 * [qmp_server_stop] -> closing [qmp_server_free].
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>

#include "cleanup.h"
#include "clock.h"
#include "lock.h"
#include "log.h"
#include "qmp.h"
#include "qmp-parser.h"
#include "sockaddr.h"
#include "vector.h"

#define READ_SIZE 16384
#define OUTPUT_HIGH 65536       /* unread output that stops reading */
#define FLUSH_TIMEOUT 2000      /* ms for a peer to read at the end */
#define ACCEPT_PAUSE 100        /* ms without descriptors or memory */
#define TLS_TIMEOUT 10000       /* ms for its handshake */

DEFINE_VECTOR (byte_vector, char);
DEFINE_VECTOR (fd_vector, int);

struct qmp_conn {
  /* Fixed after creation. */
  struct qmp_server *server;
  int fd;
  int wake_fd;                  /* eventfd */
  pthread_t thread;

  struct lock lock;             /* LOCK_RANK_CONTROL */
  /* Protected by lock. */
  struct byte_vector output;
  size_t nr_unsent;             /* output, and what is left of sending */
  bool is_negotiated;
  bool is_limited;              /* no admin: few events */
  bool is_doomed;               /* to be closed without further ado */

  /* Atomic. */
  _Atomic bool is_done;         /* the thread is about to end */

  /* The connection's thread alone. */
  struct tls *tls;              /* over TCP; NULL = a Unix socket */
  struct qmp_parser *parser;
  struct byte_vector sending;
  size_t nr_sent;               /* of sending */
  size_t input_pos, input_len;
  bool is_eof;
  char input[READ_SIZE];
};

DEFINE_VECTOR (conn_vector, struct qmp_conn *);

struct qmp_server {
  /* Fixed after start. */
  struct service *service;
  unsigned max_connections;
  struct fd_vector listeners;
  int wake_fd;                  /* eventfd: the accepting thread */
  pthread_t thread;
  bool is_started;

  struct lock lock;             /* LOCK_RANK_SERVICE */
  pthread_cond_t idle;          /* nr_busy became 0 */
  /* Protected by lock. */
  struct conn_vector conns;
  unsigned nr_busy;             /* commands in progress */
  bool is_stopping;             /* no further command */
  bool is_closing;              /* connections send what is left, and end */
};

static void
clear_wake (int fd)
{
  eventfd_t n;

  eventfd_read (fd, &n);
}

/* Append one message to the output.  False: there was no memory. */
static bool
output_locked (struct qmp_conn *c, const char *text)
{
  size_t len = strlen (text);

  lock_assert_held (&c->lock);
  if (byte_vector_reserve (&c->output, len + 2) < 0)
    return false;
  memcpy (&c->output.ptr[c->output.len], text, len);
  memcpy (&c->output.ptr[c->output.len + len], "\r\n", 2);
  c->output.len += len + 2;
  c->nr_unsent += len + 2;
  return true;
}

/* Takes the reference.  NULL: there was no memory for it.  From the
 * connection's own thread.
 */
static void
send_reply (struct qmp_conn *c, json_t *message, bool is_negotiated)
{
  CLEANUP_FREE char *text = NULL;

  if (message)
    text = json_dumps (message, JSON_ENSURE_ASCII);
  json_decref (message);
  lock_acquire (&c->lock);
  c->is_negotiated = is_negotiated;
  if (text == NULL || !output_locked (c, text))
    c->is_doomed = true;
  lock_release (&c->lock);
}

static void
doom (struct qmp_conn *c)
{
  lock_acquire (&c->lock);
  c->is_doomed = true;
  lock_release (&c->lock);
  eventfd_write (c->wake_fd, 1);
}

static ssize_t
send_some (struct qmp_conn *c, char *buf, size_t len)
{
  const struct iovec v = { .iov_base = buf, .iov_len = len };

  return c->tls ? tls_sendv (c->tls, &v, 1, MSG_DONTWAIT)
    : send (c->fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static ssize_t
receive_some (struct qmp_conn *c, char *buf, size_t len)
{
  return c->tls ? tls_recv (c->tls, buf, len, MSG_DONTWAIT)
    : recv (c->fd, buf, len, MSG_DONTWAIT);
}

/* Write what the socket takes now. */
static void
write_output (struct qmp_conn *c)
{
  for (;;) {
    ssize_t n;

    if (c->nr_sent == c->sending.len) {
      byte_vector_reset (&c->sending);
      c->nr_sent = 0;
      lock_acquire (&c->lock);
      c->sending = c->output;
      c->output = (struct byte_vector) VECTOR_INIT;
      lock_release (&c->lock);
      if (c->sending.len == 0)
        return;
    }
    n = send_some (c, &c->sending.ptr[c->nr_sent],
                   c->sending.len - c->nr_sent);
    if (n < 0) {
      if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
        doom (c);
      return;
    }
    c->nr_sent += (size_t) n;
    lock_acquire (&c->lock);
    c->nr_unsent -= (size_t) n;
    lock_release (&c->lock);
  }
}

static bool
begin_command (struct qmp_server *q)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&q->lock);

  if (q->is_stopping)
    return false;
  q->nr_busy++;
  return true;
}

static void
end_command (struct qmp_server *q)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&q->lock);

  if (--q->nr_busy == 0)
    pthread_cond_broadcast (&q->idle);
}

static bool
is_negotiated (struct qmp_conn *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  return c->is_negotiated;
}

/* Takes the reference. */
static void
handle_request (struct qmp_conn *c, json_t *request)
{
  struct qmp_server *q = c->server;
  bool negotiated = is_negotiated (c);

  if (begin_command (q)) {
    json_t *reply = qmp_dispatch (q->service, c->fd, c->tls, &negotiated,
                                  request);

    send_reply (c, reply, negotiated);
    end_command (q);
  }
  json_decref (request);
}

/* Up to the end of one request in the input. */
static void
handle_input (struct qmp_conn *c)
{
  struct error err = ERROR_INIT;
  json_t *request = NULL;
  enum qmp_parse r;
  size_t used;

  r = qmp_parser_feed (c->parser, &c->input[c->input_pos],
                       c->input_len - c->input_pos, &used, &request, &err);
  c->input_pos += used;
  if (r == QMP_PARSE_VALUE)
    handle_request (c, request);
  else if (r == QMP_PARSE_ERROR)
    send_reply (c, qmp_error_reply ("GenericError", err.msg),
                is_negotiated (c));
}

static void
read_input (struct qmp_conn *c)
{
  ssize_t n = receive_some (c, c->input, sizeof c->input);

  c->input_pos = c->input_len = 0;
  if (n > 0)
    c->input_len = (size_t) n;
  else if (n == 0)
    c->is_eof = true;
  else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
    doom (c);
}

/* Wait for the socket or a wake-up; -1: for ever. */
static void
wait_for_socket (struct qmp_conn *c, short events, int timeout)
{
  struct pollfd fds[2] = {
    { .fd = c->fd, .events = events },
    { .fd = c->wake_fd, .events = POLLIN },
  };

  if (c->tls && (events & POLLIN) && tls_has_pending (c->tls))
    return;
  if (poll (fds, 2, timeout) <= 0)
    return;
  if (fds[1].revents)
    clear_wake (c->wake_fd);
  /* Gone, and nothing of it is left to be read. */
  if (!(events & POLLIN) && (fds[0].revents & (POLLHUP | POLLERR)))
    doom (c);
}

/* One step.  False: the connection ends. */
static bool
serve_step (struct qmp_conn *c)
{
  struct qmp_server *q = c->server;
  bool is_stopping, can_read;
  size_t nr_unsent;
  short events;

  lock_acquire (&q->lock);
  is_stopping = q->is_stopping;
  lock_release (&q->lock);
  write_output (c);
  lock_acquire (&c->lock);
  nr_unsent = c->nr_unsent;
  can_read = !c->is_doomed;
  lock_release (&c->lock);
  if (!can_read)
    return false;

  can_read = !is_stopping && nr_unsent < OUTPUT_HIGH;
  if (can_read && c->input_pos < c->input_len) {
    handle_input (c);
    return true;
  }
  can_read = can_read && !c->is_eof;
  if (c->is_eof && nr_unsent == 0)
    return false;
  events = (short) ((can_read ? POLLIN : 0) | (nr_unsent ? POLLOUT : 0));
  wait_for_socket (c, events, -1);
  if (can_read)
    read_input (c);
  return true;
}

static bool
is_server_closing (struct qmp_server *q)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&q->lock);

  return q->is_closing;
}

/* The server ends: the peer has a moment to read the last reply and events. */
static void
flush_output (struct qmp_conn *c)
{
  int64_t deadline = clock_ms () + FLUSH_TIMEOUT, left;
  bool is_over;

  for (;;) {
    write_output (c);
    lock_acquire (&c->lock);
    is_over = c->is_doomed || c->nr_unsent == 0;
    lock_release (&c->lock);
    left = deadline - clock_ms ();
    if (is_over || left <= 0)
      return;
    wait_for_socket (c, POLLOUT, (int) left);
  }
}

static bool
is_doomed (struct qmp_conn *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  return c->is_doomed;
}

/* Shake hands, until it is done, fails, or the server or the connection is to
 * end.  0 or -errno.
 */
static int
shake_hands (struct qmp_conn *c, struct tls *tls, struct error *err)
{
  int64_t deadline = clock_ms () + TLS_TIMEOUT, left;
  short events;
  int r;

  while ((r = tls_handshake (tls, &events, err)) == -EAGAIN) {
    left = deadline - clock_ms ();
    if (left <= 0)
      return error_set (err, ETIMEDOUT, "TLS: the handshake was not finished "
                        "in time");
    if (is_server_closing (c->server) || is_doomed (c))
      return error_set (err, ECANCELED, "TLS: the handshake was given up");
    wait_for_socket (c, events, (int) left);
  }
  return r;
}

/* A client over TCP shows who it is before anything else.  False: it is not
 * served.
 */
static bool
start_tls (struct qmp_conn *c)
{
  const struct server_tls *st = service_tls (c->server->service);
  struct error err = ERROR_INIT;
  struct tls *tls = NULL;
  char peer[SOCK_PEER_MAX];
  int r;

  if (sock_is_unix (c->fd))
    return true;
  r = tls_new (server_tls_creds (st), c->fd, NULL, &tls, &err);
  if (r == 0)
    r = shake_hands (c, tls, &err);
  if (r == 0 && !server_tls_allows (st, tls, false, TLS_ROLE_BACKUP, NULL)) {
    r = error_set (&err, EACCES, "TLS: '%.150s' is not on the list of those "
                   "who may connect here (tls-allow)", tls_peer (tls));
    tls_refuse (tls);
  }
  if (r < 0) {
    if (err.errnum == ECONNRESET)
      log_info ("control: %s: %s", sock_peer_format (c->fd, peer, sizeof peer),
                err.msg);
    else
      refusals_log (server_tls_refusals (st), "control", c->fd, err.msg);
    tls_free (tls);
    return false;
  }
  c->tls = tls;
  lock_acquire (&c->lock);
  c->is_limited = !qmp_is_admin (c->server->service, tls);
  lock_release (&c->lock);
  return true;
}

static void *
conn_thread (void *opaque)
{
  struct qmp_conn *c = opaque;
  struct qmp_server *q = c->server;

  if (start_tls (c)) {
    send_reply (c, qmp_greeting (), false);
    while (!is_server_closing (q) && serve_step (c))
      ;
    flush_output (c);
    if (c->tls)
      tls_end (c->tls);
  }
  /* The peer learns it now, not when the thread is joined. */
  shutdown (c->fd, SHUT_RDWR);
  atomic_store (&c->is_done, true);
  eventfd_write (q->wake_fd, 1);
  return NULL;
}

/* Its thread has ended, or was never started. */
static void
conn_free (struct qmp_conn *c)
{
  if (c == NULL)
    return;
  tls_free (c->tls);
  close (c->fd);
  if (c->wake_fd >= 0)
    close (c->wake_fd);
  qmp_parser_free (c->parser);
  byte_vector_reset (&c->output);
  byte_vector_reset (&c->sending);
  lock_destroy (&c->lock);
  free (c);
}

/* Takes ownership of fd, on failure too. */
static int
conn_new (struct qmp_server *q, int fd, struct qmp_conn **ret)
{
  struct qmp_conn *c = calloc (1, sizeof *c);
  int r;

  if (c == NULL) {
    close (fd);
    return -ENOMEM;
  }
  c->server = q;
  c->fd = fd;
  lock_init (&c->lock, LOCK_RANK_CONTROL);
  c->wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  r = c->wake_fd < 0 ? -errno : qmp_parser_new (&c->parser);
  if (r < 0) {
    conn_free (c);
    return r;
  }
  *ret = c;
  return 0;
}

/* Takes ownership of fd, on failure too. */
static int
add_connection (struct qmp_server *q, int fd)
{
  struct qmp_conn *c = NULL;
  int r = conn_new (q, fd, &c);

  if (r < 0)
    return r;
  lock_acquire (&q->lock);
  r = conn_vector_append (&q->conns, c);
  if (r == 0) {
    r = -pthread_create (&c->thread, NULL, conn_thread, c);
    if (r < 0)
      q->conns.len--;
  }
  lock_release (&q->lock);
  if (r < 0)
    conn_free (c);
  return r;
}

/* Free connections whose threads have ended; how many are left. */
static size_t
reap_connections (struct qmp_server *q)
{
  for (;;) {
    struct qmp_conn *c = NULL;
    size_t i, nr;

    lock_acquire (&q->lock);
    for (i = 0; i < q->conns.len && c == NULL; i++)
      if (atomic_load (&q->conns.ptr[i]->is_done)) {
        c = q->conns.ptr[i];
        conn_vector_remove (&q->conns, i);
      }
    nr = q->conns.len;
    lock_release (&q->lock);
    if (c == NULL)
      return nr;
    pthread_join (c->thread, NULL);
    conn_free (c);
  }
}

/* Make the oldest connection that has not negotiated give way.  False: all
 * have.
 */
static bool
evict_connection (struct qmp_server *q)
{
  size_t i;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&q->lock);

  for (i = 0; i < q->conns.len; i++)
    if (!is_negotiated (q->conns.ptr[i])) {
      doom (q->conns.ptr[i]);
      return true;
    }
  return false;
}

/* Over TCP it would be no TLS. */
static void
refuse_connection (int fd)
{
  static const char message[] = "{\"error\": {\"class\": \"GenericError\", "
    "\"desc\": \"Too many control connections\"}}\r\n";

  if (sock_is_unix (fd) &&
      send (fd, message, sizeof message - 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
    log_debug ("control: refused connection: %s", strerror (errno));
  close (fd);
}

/* One step of the accepting thread: a connection on listener. */
static void
accept_connection (struct qmp_server *q, int listener)
{
  int fd = accept4 (listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  int r;

  if (fd < 0) {
    r = -errno;
    if (r == -EAGAIN || r == -EINTR || r == -ECONNABORTED)
      return;
  }
  else if (reap_connections (q) >= q->max_connections) {
    refuse_connection (fd);
    return;
  }
  else
    r = add_connection (q, fd);
  if (r < 0) {
    log_warning ("control: cannot accept a connection: %s", strerror (-r));
    poll (NULL, 0, ACCEPT_PAUSE);
  }
}

/* False: the server stops. */
static bool
accept_step (struct qmp_server *q, struct pollfd *fds)
{
  size_t i, nr = q->listeners.len;
  bool is_stopping, is_full;

  lock_acquire (&q->lock);
  is_stopping = q->is_stopping;
  lock_release (&q->lock);
  if (is_stopping)
    return false;
  if (poll (fds, nr + 1, -1) < 0)
    return errno == EINTR;
  if (fds[nr].revents)
    clear_wake (q->wake_fd);
  is_full = reap_connections (q) >= q->max_connections;
  for (i = 0; i < nr; i++)
    if (fds[i].revents && !(is_full && evict_connection (q)))
      accept_connection (q, fds[i].fd);
  return true;
}

static void *
accept_thread (void *opaque)
{
  struct qmp_server *q = opaque;
  CLEANUP_FREE struct pollfd *fds = NULL;
  size_t i;

  fds = calloc (q->listeners.len + 1, sizeof *fds);
  if (fds == NULL) {
    log_error ("control: no memory: not listening");
    return NULL;
  }
  for (i = 0; i < q->listeners.len; i++)
    fds[i] = (struct pollfd) { .fd = q->listeners.ptr[i], .events = POLLIN };
  fds[i] = (struct pollfd) { .fd = q->wake_fd, .events = POLLIN };
  while (accept_step (q, fds))
    ;
  return NULL;
}

int
qmp_server_new (struct service *service, unsigned max_connections,
                struct qmp_server **ret)
{
  struct qmp_server *q = calloc (1, sizeof *q);

  if (q == NULL)
    return -ENOMEM;
  q->service = service;
  q->max_connections = max_connections ? max_connections
    : QMP_DEFAULT_MAX_CONNECTIONS;
  q->wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (q->wake_fd < 0) {
    int r = -errno;

    free (q);
    return r;
  }
  lock_init (&q->lock, LOCK_RANK_SERVICE);
  cond_init (&q->idle);
  *ret = q;
  return 0;
}

int
qmp_server_add_socket (struct qmp_server *q, int fd, struct error *err)
{
  int flags = fcntl (fd, F_GETFL);

  assert (!q->is_started);
  if (flags < 0 || fcntl (fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
      fd_vector_append (&q->listeners, fd) < 0) {
    int errnum = errno;

    close (fd);
    return error_set_errno (err, errnum, "control socket");
  }
  return 0;
}

int
qmp_server_start (struct qmp_server *q, struct error *err)
{
  int r = pthread_create (&q->thread, NULL, accept_thread, q);

  if (r)
    return error_set_errno (err, r, "control server: thread");
  q->is_started = true;
  return 0;
}

static void
wake_all_locked (struct qmp_server *q)
{
  size_t i;

  lock_assert_held (&q->lock);
  eventfd_write (q->wake_fd, 1);
  for (i = 0; i < q->conns.len; i++)
    eventfd_write (q->conns.ptr[i]->wake_fd, 1);
}

void
qmp_server_stop (struct qmp_server *q)
{
  lock_acquire (&q->lock);
  q->is_stopping = true;
  wake_all_locked (q);
  while (q->nr_busy)
    lock_wait (&q->lock, &q->idle);
  lock_release (&q->lock);
}

void
qmp_server_free (struct qmp_server *q)
{
  size_t i;

  if (q == NULL)
    return;
  qmp_server_stop (q);
  if (q->is_started)
    pthread_join (q->thread, NULL);
  lock_acquire (&q->lock);
  q->is_closing = true;
  wake_all_locked (q);
  lock_release (&q->lock);
  /* No other thread changes the list any more. */
  for (i = 0; i < q->conns.len; i++) {
    pthread_join (q->conns.ptr[i]->thread, NULL);
    conn_free (q->conns.ptr[i]);
  }
  conn_vector_reset (&q->conns);
  for (i = 0; i < q->listeners.len; i++)
    close (q->listeners.ptr[i]);
  fd_vector_reset (&q->listeners);
  close (q->wake_fd);
  pthread_cond_destroy (&q->idle);
  lock_destroy (&q->lock);
  free (q);
}

static json_t *
event_message (const char *name, json_t *data)
{
  struct timespec now;

  clock_gettime (CLOCK_REALTIME, &now);
  return json_pack ("{sss{sIsI}sO}", "event", name, "timestamp", "seconds",
                    (json_int_t) now.tv_sec, "microseconds",
                    (json_int_t) now.tv_nsec / 1000, "data", data);
}

void
qmp_event (struct qmp_server *q, const char *name, json_t *data)
{
  json_t *message = event_message (name, data);
  CLEANUP_FREE char *text = NULL;
  size_t i;

  if (message)
    text = json_dumps (message, JSON_ENSURE_ASCII);
  json_decref (message);
  if (text == NULL) {
    log_warning ("control: no memory for event %s", name);
    return;
  }
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&q->lock);
  for (i = 0; i < q->conns.len; i++) {
    struct qmp_conn *c = q->conns.ptr[i];

    lock_acquire (&c->lock);
    if (c->is_negotiated &&
        !(c->is_limited && strcmp (name, "BACKUP_ENDED") != 0) &&
        (c->nr_unsent > QMP_MAX_BACKLOG || !output_locked (c, text)))
      c->is_doomed = true;
    lock_release (&c->lock);
    eventfd_write (c->wake_fd, 1);
  }
}
