/* SPDX-License-Identifier: BSD-3-Clause */
/* The NBD server: accepts connections, limits their number, and ends them.
 *
 * One thread accepts.  A connection that has ended tells it so, and it joins
 * that connection's thread; nothing of the server runs after
 * nbd_server_free, so that a plugin can be unloaded.
 *
 * nbd_server_*: the thread that configures the process.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn.h"
#include "log.h"
#include "nbd-server.h"
#include "vector.h"

#define DEFAULT_HANDSHAKE_TIMEOUT 10
#define DEFAULT_MAX_CONNECTIONS 100
#define DEFAULT_WORKERS 16

/* Listening sockets of one server. */
#define MAX_SOCKETS 64

/* At the end clients get this long to read the last replies. */
#define GRACE_SECONDS 5

/* After running out of descriptors or memory, wait so long. */
#define RETRY_MS 100

DEFINE_VECTOR (fd_vector, int);
DEFINE_VECTOR (conn_vector, struct conn *);

struct nbd_server {
  /* Fixed after start. */
  struct conn_env env;
  unsigned max_connections;
  unsigned nr_workers;
  struct fd_vector sockets;     /* listening */
  int wake_fd;                  /* eventfd: something in finished, or stop */
  pthread_t thread;
  bool is_started;

  /* Of the accepting thread. */
  bool is_full;                 /* a client was refused; say so once */

  struct lock lock;
  /* Protected by lock. */
  struct conn_vector conns;     /* running */
  struct conn_vector finished;  /* to be joined; has room for all */
  bool is_stopping;
  pthread_cond_t changed;       /* a connection finished */
};

static void
wake (struct nbd_server *s)
{
  uint64_t one = 1;

  while (write (s->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
    ;
}

/* The last thing that a connection's thread does. */
static void
conn_finished (void *opaque, struct conn *conn)
{
  struct nbd_server *s = opaque;
  size_t i;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  for (i = 0; s->conns.ptr[i] != conn; ++i)
    ;
  conn_vector_remove (&s->conns, i);
  s->finished.ptr[s->finished.len++] = conn;
  pthread_cond_broadcast (&s->changed);
  wake (s);
}

static void
join_finished (struct nbd_server *s)
{
  struct conn *conn;

  for (;;) {
    lock_acquire (&s->lock);
    conn = s->finished.len > 0 ? s->finished.ptr[--s->finished.len] : NULL;
    lock_release (&s->lock);
    if (conn == NULL)
      return;
    conn_join (conn);
  }
}

/* Answers are not held back, and a client whose machine has gone is noticed
 * within minutes.  (These fail harmlessly on a Unix socket.)
 */
static void
tune_socket (int fd)
{
  const int on = 1, idle = 60, interval = 15, count = 4;

  setsockopt (fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt (fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

static bool
is_full (struct nbd_server *s)
{
  bool full;

  lock_acquire (&s->lock);
  full = s->conns.len >= s->max_connections;
  lock_release (&s->lock);
  if (full && !s->is_full)
    log_warning ("nbd: all %u connections are in use; refusing more",
                 s->max_connections);
  s->is_full = full;
  return full;
}

/* Serve fd, which it takes ownership of. */
static void
start_conn (struct nbd_server *s, int fd)
{
  struct conn *conn;
  int r;

  if (is_full (s)) {
    close (fd);
    return;
  }
  tune_socket (fd);
  /* Held until the connection is in the list: it may finish at once. */
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  if (conn_vector_reserve (&s->conns, 1) < 0
      || conn_vector_reserve (&s->finished, s->conns.len + 1) < 0) {
    close (fd);
    return;
  }
  r = conn_start (&s->env, fd, &conn);
  if (r < 0)
    log_warning ("nbd: cannot serve a connection: %s", strerror (-r));
  else
    s->conns.ptr[s->conns.len++] = conn;
}

/* False if it makes no sense to try again at once. */
static bool
accept_one (struct nbd_server *s, int listen_fd)
{
  int fd = accept4 (listen_fd, NULL, NULL, SOCK_CLOEXEC);

  if (fd >= 0) {
    start_conn (s, fd);
    return true;
  }
  switch (errno) {
  case EMFILE:
  case ENFILE:
  case ENOBUFS:
  case ENOMEM:
    log_warning ("nbd: cannot accept a connection: %s", strerror (errno));
    return false;
  default:                      /* the client is gone, or nothing to do */
    return true;
  }
}

static bool
is_stopping (struct nbd_server *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  return s->is_stopping;
}

/* Accept from each socket that is ready (pfds[1] and up).  False if out of
 * resources.
 */
static bool
accept_ready (struct nbd_server *s, const struct pollfd *pfds)
{
  bool go_on = true;
  size_t i;

  for (i = 0; i < s->sockets.len; ++i)
    if (pfds[1+i].revents)
      go_on = accept_one (s, s->sockets.ptr[i]) && go_on;
  return go_on;
}

static void *
accept_thread (void *opaque)
{
  struct nbd_server *s = opaque;
  struct pollfd pfds[1 + MAX_SOCKETS];
  bool accepting = true;
  uint64_t n;
  size_t i;
  int r;

  while (!is_stopping (s)) {
    pfds[0] = (struct pollfd) { .fd = s->wake_fd, .events = POLLIN };
    for (i = 0; i < s->sockets.len; ++i)
      pfds[1+i] = (struct pollfd) {
        .fd = s->sockets.ptr[i], .events = POLLIN,
      };
    r = poll (pfds, accepting ? 1 + s->sockets.len : 1,
              accepting ? -1 : RETRY_MS);
    if (r < 0)
      continue;
    if (pfds[0].revents && read (s->wake_fd, &n, sizeof n) < 0
        && errno != EAGAIN && errno != EINTR)
      log_error ("nbd: eventfd: %s", strerror (errno));
    join_finished (s);
    accepting = !accepting || accept_ready (s, pfds);
  }
  return NULL;
}

int
nbd_server_new (const struct nbd_server_options *options,
                struct nbd_server **ret, struct error *err)
{
  struct nbd_server *s = calloc (1, sizeof *s);

  if (s == NULL)
    return error_set_errno (err, ENOMEM, "NBD server");
  s->wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (s->wake_fd < 0) {
    int r = error_set_errno (err, errno, "NBD server: eventfd");

    free (s);
    return r;
  }
  s->env.exports = options->exports;
  s->env.handshake_timeout = options->handshake_timeout
    ? options->handshake_timeout : DEFAULT_HANDSHAKE_TIMEOUT;
  s->env.tls = options->tls;
  s->env.creds = options->creds ? options->creds
    : options->tls ? server_tls_creds (options->tls) : NULL;
  if (s->env.creds)
    tls_creds_ref (s->env.creds);
  s->env.must_use_tls = options->creds != NULL;
  s->env.role = options->role;
  s->env.finished = conn_finished;
  s->env.opaque = s;
  s->max_connections = options->max_connections
    ? options->max_connections : DEFAULT_MAX_CONNECTIONS;
  s->nr_workers = options->nr_workers ? options->nr_workers : DEFAULT_WORKERS;
  lock_init (&s->lock, LOCK_RANK_LEAF);
  cond_init (&s->changed);
  *ret = s;
  return 0;
}

int
nbd_server_add_socket (struct nbd_server *s, int fd, struct error *err)
{
  int flags = fcntl (fd, F_GETFL);
  int r = 0;

  if (s->sockets.len == MAX_SOCKETS)
    r = error_set (err, E2BIG, "NBD server: more than %d listening sockets",
                   MAX_SOCKETS);
  /* The accepting thread must not wait for one of several sockets. */
  else if (flags < 0 || fcntl (fd, F_SETFL, flags | O_NONBLOCK) < 0)
    r = error_set_errno (err, errno, "NBD server: socket %d", fd);
  else if (fd_vector_append (&s->sockets, fd) < 0)
    r = error_set_errno (err, ENOMEM, "NBD server");
  if (r < 0)
    close (fd);
  return r;
}

int
nbd_server_start (struct nbd_server *s, struct error *err)
{
  int r = workers_new (s->nr_workers, "nbd-worker", &s->env.workers);
  sigset_t all, old;

  if (r < 0)
    return error_set_errno (err, -r, "NBD server: worker threads");
  /* Signals are for the program's own threads.  The connections' threads
   * inherit this.
   */
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  r = pthread_create (&s->thread, NULL, accept_thread, s);
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  if (r > 0)
    return error_set_errno (err, r, "NBD server: thread");
  s->is_started = true;
  return 0;
}

static void
stop_conns (struct nbd_server *s)
{
  struct timespec deadline;
  size_t i;

  clock_gettime (CLOCK_MONOTONIC, &deadline);
  deadline.tv_sec += GRACE_SECONDS;
  lock_acquire (&s->lock);
  for (i = 0; i < s->conns.len; ++i)
    conn_stop (s->conns.ptr[i], false);
  while (s->conns.len > 0
         && lock_wait_until (&s->lock, &s->changed, &deadline))
    ;
  for (i = 0; i < s->conns.len; ++i)
    conn_stop (s->conns.ptr[i], true);
  while (s->conns.len > 0)
    lock_wait (&s->lock, &s->changed);
  lock_release (&s->lock);
  join_finished (s);
}

void
nbd_server_free (struct nbd_server *s)
{
  size_t i;

  if (s == NULL)
    return;
  if (s->is_started) {
    lock_acquire (&s->lock);
    s->is_stopping = true;
    lock_release (&s->lock);
    wake (s);
    pthread_join (s->thread, NULL);
    stop_conns (s);
  }
  workers_free (s->env.workers);
  for (i = 0; i < s->sockets.len; ++i)
    close (s->sockets.ptr[i]);
  fd_vector_reset (&s->sockets);
  conn_vector_reset (&s->conns);
  conn_vector_reset (&s->finished);
  tls_creds_free (s->env.creds);
  close (s->wake_fd);
  pthread_cond_destroy (&s->changed);
  lock_destroy (&s->lock);
  free (s);
}

unsigned
nbd_server_nr_connections (const struct nbd_server *s)
{
  struct lock *lock = (struct lock *) &s->lock;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (lock);
  return s->conns.len;
}
