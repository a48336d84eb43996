/* SPDX-License-Identifier: BSD-3-Clause */
/* A client of the control protocol.  Calls come from the main thread and from
 * the keepalive thread; one call at a time has the connection.  Waiting for
 * an answer ends when the process is interrupted, when the server goes away
 * and when it stays silent for too long.
 */
#include "config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "blk-open.h"
#include "control.h"
#include "interrupt.h"
#include "lock.h"
#include "log.h"
#include "sockaddr.h"
#include "tls-options.h"

#define ANSWER_TIMEOUT 120      /* seconds */
#define MAX_ANSWER (64 * 1024 * 1024)
#define PLAIN_SCHEME "nbd://"
#define NBD_GREETING "NBDMAGIC"         /* how an NBD server begins */

struct control {
  /* Fixed after connect. */
  char *name;                   /* for messages */
  struct sock_address address;
  int end_fd;                   /* eventfd: it closes, wait for nothing */

  /* Who sets is_busy has the connection: fd's stream, buf, next_id, timeout. */
  unsigned timeout;             /* seconds */
  int fd;                       /* -1 = none */
  struct tls *tls;              /* over TCP */
  char *buf;
  size_t len, cap;
  unsigned next_id;

  struct lock lock;
  pthread_cond_t cond;          /* is_busy or is_stopping changed */
  /* Protected by lock. */
  bool is_busy;
  bool is_broken;               /* the stream is out of step */
  bool is_lasting;              /* connect again if it is */
  bool allows_plain_tcp;        /* for data, from elsewhere */
  bool is_stopping;             /* the keepalive thread */
  bool has_keepalive;

  pthread_t keepalive;
  /* Fixed while the thread runs. */
  unsigned interval_ms, keepalive_timeout;
  char id[64];
};

static int
set_path (struct sock_address *addr, const char *source, const char *path,
          struct error *err)
{
  if (strlen (path) >= sizeof addr->path)
    return error_set (err, ENAMETOOLONG, "%.120s: the path of a socket can "
                      "have %zu characters at most", source,
                      sizeof addr->path - 1);
  addr->is_unix = true;
  strcpy (addr->path, path);
  return 0;
}

/* 1: it is none of these. */
static int
parse_tidemark_uri (const char *source, struct sock_address *addr,
                    struct error *err)
{
  static const char unix_prefix[] = "tidemark+unix://";
  static const char tls_prefix[] = "tidemarks://";
  size_t len = sizeof unix_prefix - 1, tls_len = sizeof tls_prefix - 1;

  if (strncmp (source, "tidemark://", 11) == 0)
    return error_set (err, ENOTSUP, "%s: a control address over TCP needs TLS:"
                      " write tidemarks://HOST:PORT", source);
  if (strncmp (source, tls_prefix, tls_len) == 0) {
    if (sock_address_parse (source, source + tls_len, NULL, addr, err) < 0
        || addr->is_unix || addr->host[0] == '\0'
        || strchr (addr->host, '/') || strchr (addr->port, '/'))
      return error_set (err, EINVAL, "%s: write tidemarks://HOST:PORT",
                        source);
    return 0;
  }
  if (strncmp (source, unix_prefix, len) != 0)
    return 1;
  if (source[len] != '/')
    return error_set (err, EINVAL, "%s: write tidemark+unix:///PATH with the "
                      "absolute path of a socket", source);
  return set_path (addr, source, source + len, err);
}

/* -EINVAL if source is not a control address. */
static int
parse_source (const char *source, struct sock_address *addr,
              struct error *err)
{
  struct stat st;
  int r;

  *addr = (struct sock_address) { .is_unix = false };
  r = parse_tidemark_uri (source, addr, err);
  if (r <= 0)
    return r;
  if (strncmp (source, "unix:", 5) == 0 && source[5] != '\0')
    return set_path (addr, source, source + 5, err);
  if (strstr (source, "://") || stat (source, &st) < 0)
    return error_set (err, EINVAL, "%s: not a source; allowed are a control "
                      "socket (tidemarks://HOST:PORT, tidemark+unix:///PATH, "
                      "unix:/PATH, or the path of a socket) and an NBD URI "
                      "(nbd://, nbds://, nbd+unix://, nbds+unix://)", source);
  if (!S_ISSOCK (st.st_mode))
    return error_set (err, ENOTSOCK, "%s: not a socket", source);
  return set_path (addr, source, source, err);
}

int
control_source_kind (const char *source, enum source_kind *ret,
                     struct error *err)
{
  struct sock_address addr;
  int r;

  if (blk_is_nbd_uri (source)) {
    *ret = SOURCE_NBD;
    return 0;
  }
  r = parse_source (source, &addr, err);
  if (r == 0)
    *ret = SOURCE_CONTROL;
  return r;
}

static int
broken (struct control *c, int errnum, struct error *err, const char *what)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  c->is_broken = true;
  return error_set (err, errnum, "%s: %s", c->name, what);
}

/* Wait until the socket can be read (or written). */
static int
wait_socket (struct control *c, short events, bool is_final,
             struct error *err)
{
  struct pollfd fds[] = {
    { .fd = c->fd, .events = events },
    { .fd = is_final ? -1 : interrupt_fd (), .events = POLLIN },
    { .fd = c->end_fd, .events = POLLIN },
  };
  int n;

  do
    n = poll (fds, 3, (int) c->timeout * 1000);
  while (n < 0 && errno == EINTR);
  if (n < 0)
    return broken (c, errno, err, "poll failed");
  if (n == 0)
    return broken (c, ETIMEDOUT, err, "the server does not answer");
  if (fds[2].revents)
    return broken (c, ECANCELED, err, "the connection is closed");
  if (fds[1].revents) {
    /* An answer may still come: nothing else can be asked before it. */
    broken (c, ECANCELED, err, "interrupted");
    return interrupt_error (err);
  }
  return 0;
}

static ssize_t
send_some (struct control *c, const char *text, size_t len)
{
  const struct iovec v = { .iov_base = (char *) text, .iov_len = len };

  return c->tls ? tls_sendv (c->tls, &v, 1, MSG_DONTWAIT)
    : send (c->fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static ssize_t
receive_some (struct control *c, char *buf, size_t len)
{
  return c->tls ? tls_recv (c->tls, buf, len, MSG_DONTWAIT)
    : recv (c->fd, buf, len, MSG_DONTWAIT);
}

static int
send_text (struct control *c, const char *text, bool is_final,
           struct error *err)
{
  size_t len = strlen (text), done = 0;
  ssize_t n;
  int r;

  while (done < len) {
    n = send_some (c, text + done, len - done);
    if (n >= 0)
      done += (size_t) n;
    else if (errno == EAGAIN) {
      r = wait_socket (c, POLLOUT, is_final, err);
      if (r < 0)
        return r;
    }
    else if (errno != EINTR)
      return broken (c, errno, err, "the server has closed the connection");
  }
  return 0;
}

static int
receive_more (struct control *c, bool is_final, struct error *err)
{
  ssize_t n;
  int r;
  char *p;

  if (c->cap - c->len < 65536) {
    if (c->cap >= MAX_ANSWER)
      return broken (c, EMSGSIZE, err, "the server's answer is too long");
    p = realloc (c->buf, c->cap ? c->cap * 2 : 131072);
    if (!p)
      return broken (c, ENOMEM, err, "out of memory");
    c->buf = p;
    c->cap = c->cap ? c->cap * 2 : 131072;
  }
  for (;;) {
    r = c->tls && tls_has_pending (c->tls) ? 0
      : wait_socket (c, POLLIN, is_final, err);
    if (r < 0)
      return r;
    n = receive_some (c, c->buf + c->len, c->cap - c->len);
    if (n == 0)
      return broken (c, ECONNRESET, err,
                     "the server has closed the connection");
    if (n > 0) {
      c->len += (size_t) n;
      return 0;
    }
    /* ECONNRESET: it has closed without having read all. */
    if (errno != EAGAIN && errno != EINTR)
      return broken (c, errno, err, c->tls && tls_recv_error (c->tls)
                     ? tls_recv_error (c->tls) : errno == ECONNRESET
                     ? "the server has closed the connection"
                     : "the connection to the server failed");
  }
}

/* The next message of the server, a new reference in *ret.  Messages end with
 * a line break, and there is none inside.
 */
static int
receive_message (struct control *c, bool is_final, json_t **ret,
                 struct error *err)
{
  json_error_t jerr;
  json_t *msg;
  size_t searched = 0, len;
  char *end;
  int r;

  for (;;) {
    end = c->len > searched
      ? memchr (c->buf + searched, '\n', c->len - searched) : NULL;
    if (end)
      break;
    searched = c->len;
    r = receive_more (c, is_final, err);
    if (r < 0)
      return r;
    if (c->len >= strlen (NBD_GREETING)
        && memcmp (c->buf, NBD_GREETING, strlen (NBD_GREETING)) == 0)
      return broken (c, EPROTO, err, "this is an NBD socket of a server, not "
                     "its control socket");
  }
  len = (size_t) (end - c->buf) + 1;
  msg = json_loadb (c->buf, len, 0, &jerr);
  memmove (c->buf, c->buf + len, c->len - len);
  c->len -= len;
  if (!json_is_object (msg)) {
    json_decref (msg);
    return broken (c, EPROTO, err, "what answers is no Tidemark server");
  }
  *ret = msg;
  return 0;
}

/* Read on until the answer to request id; events are for others. */
static int
receive_answer (struct control *c, unsigned id, bool is_final, json_t **ret,
                struct error *err)
{
  json_t *msg, *v;
  int r;

  for (;;) {
    r = receive_message (c, is_final, &msg, err);
    if (r < 0)
      return r;
    v = json_object_get (msg, "id");
    if (json_is_integer (v) && json_integer_value (v) == (json_int_t) id) {
      *ret = msg;
      return 0;
    }
    if (!json_object_get (msg, "event"))
      log_debug ("%s: a message that answers nothing", c->name);
    json_decref (msg);
  }
}

static int
take_answer (struct control *c, struct control_call *call, json_t *msg,
             json_t **ret, struct error *err)
{
  json_t *e = json_object_get (msg, "error");
  json_t *v = json_object_get (msg, "return");
  const char *class = json_string_value (json_object_get (e, "class"));
  const char *desc = json_string_value (json_object_get (e, "desc"));

  if (e) {
    snprintf (call->error_class, sizeof call->error_class, "%s",
              class ? class : "GenericError");
    return error_set (err, EREMOTEIO, "%s: %s%s", call->command,
                      desc ? desc : "refused",
                      strcmp (call->error_class, "CommandNotFound") == 0
                      ? " (is this QEMU's monitor? its exports are read by"
                      " their NBD URIs)" : "");
  }
  if (!v)
    return error_set (err, EPROTO, "%s: %s: malformed answer", c->name,
                      call->command);
  if (ret)
    *ret = json_incref (v);
  return 0;
}

static int
call_connected (struct control *c, struct control_call *call, json_t **ret,
                struct error *err)
{
  unsigned id = ++c->next_id;
  json_t *request, *msg = NULL;
  char *text;
  int r;

  request = json_pack ("{s:s, s:I}", "execute", call->command,
                       "id", (json_int_t) id);
  if (request && call->args)
    json_object_set (request, "arguments", call->args);
  text = request ? json_dumps (request, JSON_COMPACT) : NULL;
  json_decref (request);
  if (!text)
    return error_set_errno (err, ENOMEM, "%s", call->command);
  r = send_text (c, text, call->is_final, err);
  if (r == 0)
    r = send_text (c, "\n", call->is_final, err);
  free (text);
  if (r == 0)
    r = receive_answer (c, id, call->is_final, &msg, err);
  if (r < 0)
    return r;
  r = take_answer (c, call, msg, ret, err);
  json_decref (msg);
  return r;
}

static int
negotiate (struct control *c, bool is_final, struct error *err)
{
  struct control_call call = {
    .command = "qmp_capabilities", .is_final = is_final,
  };
  json_t *greeting;
  int r = receive_message (c, is_final, &greeting, err);

  if (r < 0)
    return r;
  if (!json_is_object (json_object_get (greeting, "QMP")))
    r = error_set (err, EPROTO, "%s: what answers is no Tidemark server",
                   c->name);
  json_decref (greeting);
  return r < 0 ? r : call_connected (c, &call, NULL, err);
}

static int
start_tls (struct control *c, bool is_final, struct error *err)
{
  struct tls_creds *creds = tls_options_creds (err);
  struct error why = ERROR_INIT;
  short events;
  int r = creds ? tls_new (creds, c->fd, c->address.host, &c->tls, err)
    : -err->errnum;

  while (r == 0 && (r = tls_handshake (c->tls, &events, &why)) == -EAGAIN)
    r = wait_socket (c, events, is_final, err);
  return why.errnum ? error_set (err, why.errnum, "%s: %s", c->name, why.msg)
    : r;
}

static void
disconnect (struct control *c)
{
  if (c->tls)
    tls_end (c->tls);
  tls_free (c->tls);
  c->tls = NULL;
  if (c->fd >= 0)
    close (c->fd);
  c->fd = -1;
}

/* Who calls has the connection. */
static int
connect_now (struct control *c, bool is_final, struct error *err)
{
  int r = 0;

  disconnect (c);
  c->len = 0;
  c->fd = sock_address_connect (&c->address, is_final ? -1 : interrupt_fd (),
                                err);
  if (c->fd == -ECANCELED)
    return interrupt_error (err);
  if (c->fd < 0)
    return c->fd;
  if (!c->address.is_unix)
    r = start_tls (c, is_final, err);
  return r < 0 ? r : negotiate (c, is_final, err);
}

static int
connect_again (struct control *c, bool is_final, struct error *err)
{
  int r;

  lock_acquire (&c->lock);
  c->is_broken = false;
  lock_release (&c->lock);
  r = connect_now (c, is_final, err);
  if (r < 0) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
    c->is_broken = true;
  }
  return r;
}

void
control_set_lasting (struct control *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  c->is_lasting = true;
}

void
control_allow_plain_tcp (struct control *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  c->allows_plain_tcp = true;
}

int
control_call (struct control *c, struct control_call *call, json_t **ret,
              struct error *err)
{
  bool is_broken, is_usable;
  int r = 0;

  call->error_class[0] = '\0';
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
    while (c->is_busy)
      lock_wait (&c->lock, &c->cond);
    is_broken = c->is_broken;
    is_usable = !is_broken || c->is_lasting;
    c->is_busy = is_usable;
  }
  if (!is_usable)
    r = error_set (err, ENOTCONN, "%s: %s: the connection to the server is "
                   "lost", c->name, call->command);
  else {
    c->timeout = call->timeout ? call->timeout : ANSWER_TIMEOUT;
    if (is_broken)
      r = connect_again (c, call->is_final, err);
    if (r == 0)
      r = call_connected (c, call, ret, err);
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
    c->is_busy = false;
    pthread_cond_broadcast (&c->cond);
  }
  json_decref (call->args);
  call->args = NULL;
  return r;
}

int
control_connect (const char *source, struct control **ret, struct error *err)
{
  struct sock_address address;
  struct control *c;
  int r = parse_source (source, &address, err);

  if (r < 0)
    return r;
  c = calloc (1, sizeof *c);
  if (!c)
    return error_set_errno (err, ENOMEM, "%s", source);
  lock_init (&c->lock, LOCK_RANK_CONTROL);
  cond_init (&c->cond);
  c->fd = -1;
  c->timeout = ANSWER_TIMEOUT;
  c->address = address;
  c->name = strdup (source);
  c->end_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  r = !c->name || c->end_fd < 0 ? error_set_errno (err, errno, "%s", source)
    : connect_now (c, false, err);
  if (r < 0)
    control_close (c);
  else
    *ret = c;
  return r < 0 ? r : 0;
}

/* What it is waiting for it still gets. */
static void
stop_keepalive (struct control *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  c->is_stopping = true;
  pthread_cond_broadcast (&c->cond);
}

void
control_close (struct control *c)
{
  if (!c)
    return;
  stop_keepalive (c);
  if (c->end_fd >= 0)
    eventfd_write (c->end_fd, 1);
  control_keepalive_stop (c);
  disconnect (c);
  if (c->end_fd >= 0)
    close (c->end_fd);
  free (c->buf);
  free (c->name);
  pthread_cond_destroy (&c->cond);
  lock_destroy (&c->lock);
  free (c);
}

/* The numeric address that the connection goes to; "" if it is not known. */
static void
peer_host (const struct control *c, char *buf, size_t size)
{
  struct sockaddr_storage addr;
  socklen_t len = sizeof addr;

  if (getpeername (c->fd, (struct sockaddr *) &addr, &len) < 0
      || getnameinfo ((struct sockaddr *) &addr, len, buf, (socklen_t) size,
                      NULL, 0, NI_NUMERICHOST) != 0)
    buf[0] = '\0';
}

/* Certificates are for the name that the user knows the server by, which the
 * server does not know.
 */
static int
replace_host (const struct control *c, const char *uri, char **ret)
{
  static const char scheme[] = "nbds://";
  const char *host = uri + sizeof scheme - 1, *end;
  bool is_v6 = *host == '[', is_named_v6 = strchr (c->address.host, ':');
  char peer[NI_MAXHOST];

  host += is_v6;
  end = host + strcspn (host, is_v6 ? "]" : ":/?");
  peer_host (c, peer, sizeof peer);
  if (strlen (peer) != (size_t) (end - host)
      || memcmp (peer, host, strlen (peer)) != 0)
    *ret = strdup (uri);
  else if (asprintf (ret, "%s%s%s%s%s", scheme, is_named_v6 ? "[" : "",
                     c->address.host, is_named_v6 ? "]" : "",
                     end + (is_v6 && *end)) < 0)
    *ret = NULL;
  return *ret ? 0 : -ENOMEM;
}

/* Does data in clear stay on this machine? */
static bool
is_loopback_uri (const char *uri)
{
  const char *host = uri + strlen (PLAIN_SCHEME), *end;
  char name[INET6_ADDRSTRLEN];
  struct in6_addr in6;
  struct in_addr in;
  bool is_v6 = *host == '[';

  host += is_v6;
  end = host + strcspn (host, is_v6 ? "]" : ":/?");
  if ((size_t) (end - host) >= sizeof name)
    return false;
  memcpy (name, host, (size_t) (end - host));
  name[end - host] = '\0';
  if (is_v6)
    return inet_pton (AF_INET6, name, &in6) == 1 && IN6_IS_ADDR_LOOPBACK (&in6);
  return inet_pton (AF_INET, name, &in) == 1 &&
    ntohl (in.s_addr) >> 24 == IN_LOOPBACKNET;
}

/* A Unix socket is on this machine, but it may lead to another one. */
static int
check_plain (struct control *c, const char *uri, struct error *err)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  if (strncmp (uri, PLAIN_SCHEME, strlen (PLAIN_SCHEME)) != 0 ||
      c->allows_plain_tcp || is_loopback_uri (uri))
    return 0;
  return error_set (err, EPROTO, "%s: the server would send the data over TCP "
                    "without TLS (%.200s), which needs --plain-tcp", c->name,
                    uri);
}

int
control_check_uri (struct control *c, const char *uri, char **ret,
                   struct error *err)
{
  int r;

  *ret = NULL;
  if (uri == NULL)
    return 0;
  if (c->address.is_unix) {
    if (check_plain (c, uri, err) < 0)
      return -EPROTO;
    *ret = strdup (uri);
    r = *ret ? 0 : -ENOMEM;
  }
  else if (strncmp (uri, "nbds://", 7) == 0)
    r = replace_host (c, uri, ret);
  else if (strncmp (uri, PLAIN_SCHEME, strlen (PLAIN_SCHEME)) == 0)
    return error_set (err, EPROTO, "%s: the server wants data to go without "
                      "TLS (%.200s), which is refused", c->name, uri);
  else
    return error_set (err, EPROTO, "%s: the server has no backup address over "
                      "TCP (it says %.200s)", c->name, uri);
  return r < 0 ? error_set_errno (err, -r, "%s", c->name) : 0;
}

/* True if it is time to renew, false if the thread is to end. */
static bool
keepalive_wait (struct control *c)
{
  struct timespec deadline;

  clock_gettime (CLOCK_MONOTONIC, &deadline);
  deadline.tv_sec += c->interval_ms / 1000;
  deadline.tv_nsec += c->interval_ms % 1000 * 1000000L;
  if (deadline.tv_nsec >= 1000000000) {
    deadline.tv_sec++;
    deadline.tv_nsec -= 1000000000;
  }
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  while (!c->is_stopping)
    if (!lock_wait_until (&c->lock, &c->cond, &deadline))
      return !c->is_stopping;
  return false;
}

static bool
is_stopping (struct control *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  return c->is_stopping;
}

static void *
keepalive_thread (void *opaque)
{
  struct control *c = opaque;
  struct error err;

  while (keepalive_wait (c)) {
    struct control_call call = {
      .command = "backup-attach",
      .args = json_pack ("{s:s}", "id", c->id),
      /* An interrupt is answered with backup-end on this connection. */
      .is_final = true,
      .timeout = c->keepalive_timeout,
    };

    if (control_call (c, &call, NULL, &err) < 0) {
      if (is_stopping (c))
        break;
      log_warning ("cannot renew the session's lease: %s", err.msg);
      if (call.error_class[0])
        break;                  /* it has ended */
    }
  }
  return NULL;
}

int
control_keepalive_start (struct control *c, const char *id,
                         unsigned interval_ms, unsigned timeout,
                         struct error *err)
{
  int e;

  snprintf (c->id, sizeof c->id, "%s", id);
  c->interval_ms = interval_ms;
  c->keepalive_timeout = timeout;
  c->is_stopping = false;
  e = pthread_create (&c->keepalive, NULL, keepalive_thread, c);
  if (e)
    return error_set_errno (err, e, "thread");
  c->has_keepalive = true;
  return 0;
}

void
control_keepalive_stop (struct control *c)
{
  if (!c->has_keepalive)
    return;
  stop_keepalive (c);
  pthread_join (c->keepalive, NULL);
  c->has_keepalive = false;
}
