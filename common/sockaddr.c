/* SPDX-License-Identifier: BSD-3-Clause */
/* Socket addresses and sockets made from them: see sockaddr.h.
 *
 * sock_activation_fds changes the environment: call it before threads start.
 * Everything else is for any thread.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "sockaddr.h"

#define LISTEN_BACKLOG 128
#define CONNECT_SECONDS 30
#define SYSTEMD_FIRST_FD 3
#define SYSTEMD_MAX_FDS 64

#define ADDRESS_FORMS "unix:PATH, a path beginning with /, HOST:PORT, " \
  "[IPV6]:PORT or :PORT"

/* Long enough for "[HOST]:PORT" and for a path. */
#define ADDRESS_TEXT_MAX 320

static int
parse_unix (const char *what, const char *path, struct sock_address *addr,
            struct error *err)
{
  if (*path == '\0')
    return error_set (err, EINVAL, "%s: the path of the Unix socket is empty",
                      what);
  if (strlen (path) >= sizeof addr->path)
    return error_set (err, ENAMETOOLONG, "%s: '%.100s…' is too long for a "
                      "Unix socket: %zu bytes, at most %zu are possible",
                      what, path, strlen (path), sizeof addr->path - 1);
  addr->is_unix = true;
  strcpy (addr->path, path);
  return 0;
}

static int
parse_port (const char *what, const char *s, struct sock_address *addr,
            struct error *err)
{
  size_t len = strlen (s);

  if (len == 0 || len > 5 || strspn (s, "0123456789") != len
      || strtoul (s, NULL, 10) > 65535)
    return error_set (err, EINVAL, "%s: '%.32s' is not a port: a number up "
                      "to 65535 is expected", what, s);
  strcpy (addr->port, s);
  return 0;
}

static int
set_host (const char *what, const char *host, size_t len,
          struct sock_address *addr, struct error *err)
{
  if (len >= sizeof addr->host)
    return error_set (err, EINVAL, "%s: the host name is too long: %zu "
                      "bytes, at most %zu are possible", what, len,
                      sizeof addr->host - 1);
  memcpy (addr->host, host, len);
  addr->host[len] = '\0';
  return 0;
}

/* HOST:PORT, [IPV6]:PORT, :PORT, and with a default port HOST and [IPV6]. */
static int
parse_tcp (const char *what, const char *s, const char *default_port,
           struct sock_address *addr, struct error *err)
{
  const char *host = s, *end;
  size_t len;
  int r;

  if (*s == '[') {
    host = s + 1;
    end = strchr (host, ']');
    if (!end || end == host || (end[1] != ':' && end[1] != '\0'))
      return error_set (err, EINVAL, "%s: '%.64s' is not an address: "
                        "[IPV6]:PORT is expected", what, s);
    len = (size_t) (end - host);
    end++;
  }
  else {
    end = s + strcspn (s, ":");
    if (*end && strchr (end + 1, ':'))
      return error_set (err, EINVAL, "%s: '%.64s': write an IPv6 address in "
                        "brackets, [IPV6]:PORT", what, s);
    len = (size_t) (end - s);
  }
  r = set_host (what, host, len, addr, err);
  if (r < 0)
    return r;
  if (*end == ':')
    return parse_port (what, end + 1, addr, err);
  if (!default_port)
    return error_set (err, EINVAL, "%s: '%.64s' has no port: " ADDRESS_FORMS
                      " is expected", what, s);
  return parse_port (what, default_port, addr, err);
}

int
sock_address_parse (const char *what, const char *s, const char *default_port,
                    struct sock_address *ret, struct error *err)
{
  struct sock_address addr = { .is_unix = false };
  int r;

  if (*s == '\0')
    r = error_set (err, EINVAL, "%s: the address is empty: " ADDRESS_FORMS
                   " is expected", what);
  else if (strncmp (s, "unix:", 5) == 0)
    r = parse_unix (what, s + 5, &addr, err);
  else if (*s == '/')
    r = parse_unix (what, s, &addr, err);
  else if (strncmp (s, "tcp:", 4) == 0)
    r = parse_tcp (what, s + 4, default_port, &addr, err);
  else
    r = parse_tcp (what, s, default_port, &addr, err);
  if (r == 0)
    *ret = addr;
  return r;
}

void
sock_address_format (const struct sock_address *addr, char *buf, size_t size)
{
  if (addr->is_unix)
    snprintf (buf, size, "unix:%s", addr->path);
  else if (strchr (addr->host, ':'))
    snprintf (buf, size, "[%s]:%s", addr->host, addr->port);
  /* A host that happens to be called "unix" or "tcp" needs the prefix. */
  else if (strcmp (addr->host, "unix") == 0 || strcmp (addr->host, "tcp") == 0)
    snprintf (buf, size, "tcp:%s:%s", addr->host, addr->port);
  else
    snprintf (buf, size, "%s:%s", addr->host, addr->port);
}

static void
close_all (const int *fds, int nr)
{
  while (nr > 0)
    close (fds[--nr]);
}

static struct sockaddr_un
unix_sockaddr (const struct sock_address *addr)
{
  struct sockaddr_un sun = { .sun_family = AF_UNIX };

  memcpy (sun.sun_path, addr->path, sizeof sun.sun_path);
  return sun;
}

/* Who binds and then listens on a socket file holds the lock of its directory
 * meanwhile, so that another process of ours, starting at the same moment,
 * does not take it for a stale one.  The lock dies with the descriptor.
 * Returns it, or -1: an unreadable directory, or a foreign lock that lasts,
 * must not keep a server from starting.
 */
static int
lock_directory (const char *path)
{
  char copy[sizeof ((struct sock_address *) 0)->path];
  unsigned tries;
  int fd;

  strcpy (copy, path);
  fd = open (dirname (copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    return -1;
  for (tries = 0; tries < 200; tries++) {
    if (flock (fd, LOCK_EX | LOCK_NB) == 0)
      return fd;
    if (errno != EWOULDBLOCK && errno != EINTR)
      break;
    nanosleep (&(struct timespec) { .tv_nsec = 10000000 }, NULL);
  }
  close (fd);
  return -1;
}

/* Remove the socket file if nobody answers on it. */
static int
remove_stale (const struct sock_address *addr, struct error *err)
{
  struct sockaddr_un sun = unix_sockaddr (addr);
  CLEANUP_CLOSE int fd = -1;
  struct stat st;

  if (lstat (addr->path, &st) < 0)
    return errno == ENOENT ? 0
      : error_set_errno (err, errno, "%s", addr->path);
  if (!S_ISSOCK (st.st_mode))
    return error_set (err, EEXIST, "%s: exists and is not a socket",
                      addr->path);
  fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0)
    return error_set_errno (err, errno, "socket");
  if (connect (fd, (struct sockaddr *) &sun, sizeof sun) == 0
      || errno == EAGAIN || errno == EPROTOTYPE)
    return error_set (err, EADDRINUSE, "%s: another process is listening on "
                      "this socket", addr->path);
  if (errno != ECONNREFUSED && errno != ENOENT)
    return error_set_errno (err, errno, "%s: cannot find out whether the "
                            "socket is in use", addr->path);
  if (unlink (addr->path) < 0 && errno != ENOENT)
    return error_set_errno (err, errno, "%s: cannot remove the stale socket",
                            addr->path);
  return 0;
}

static int
listen_unix (const struct sock_address *addr, int *ret, struct error *err)
{
  struct sockaddr_un sun = unix_sockaddr (addr);
  __attribute__ ((unused)) CLEANUP_CLOSE int dir = lock_directory (addr->path);
  CLEANUP_CLOSE int fd = -1;
  int r;

  fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0)
    return error_set_errno (err, errno, "socket");
  if (bind (fd, (struct sockaddr *) &sun, sizeof sun) < 0) {
    if (errno != EADDRINUSE)
      return error_set_errno (err, errno, "%s: cannot listen", addr->path);
    r = remove_stale (addr, err);
    if (r < 0)
      return r;
    if (bind (fd, (struct sockaddr *) &sun, sizeof sun) < 0)
      return error_set_errno (err, errno, "%s: cannot listen", addr->path);
  }
  if (listen (fd, LISTEN_BACKLOG) < 0)
    return error_set_errno (err, errno, "%s: cannot listen", addr->path);
  *ret = fd;
  fd = -1;
  return 1;
}

static int
resolve (const struct sock_address *addr, int flags, struct addrinfo **ret,
         struct error *err)
{
  struct addrinfo hints = {
    .ai_flags = flags | AI_NUMERICSERV,
    .ai_family = AF_UNSPEC,
    .ai_socktype = SOCK_STREAM,
  };
  int r;

  r = getaddrinfo (*addr->host ? addr->host : NULL, addr->port, &hints, ret);
  if (r == EAI_SYSTEM)
    return error_set_errno (err, errno, "%s", addr->host);
  if (r == EAI_MEMORY)
    return error_set_errno (err, ENOMEM, "%s", addr->host);
  if (r != 0)
    return error_set (err, EADDRNOTAVAIL, "%s: %s", addr->host,
                      gai_strerror (r));
  return 0;
}

static void
set_port (struct sockaddr *sa, in_port_t port)
{
  if (sa->sa_family == AF_INET)
    ((struct sockaddr_in *) sa)->sin_port = port;
  else
    ((struct sockaddr_in6 *) sa)->sin6_port = port;
}

/* The port that the socket is bound to, in network order; 0 if unknown. */
static in_port_t
bound_port (int fd)
{
  struct sockaddr_storage ss;
  socklen_t len = sizeof ss;

  if (getsockname (fd, (struct sockaddr *) &ss, &len) < 0)
    return 0;
  return ss.ss_family == AF_INET ? ((struct sockaddr_in *) &ss)->sin_port
    : ((struct sockaddr_in6 *) &ss)->sin6_port;
}

/* Returns the socket or -errno. */
static int
listen_one (const struct addrinfo *ai)
{
  CLEANUP_CLOSE int fd = -1;
  int on = 1, r;

  fd = socket (ai->ai_family, ai->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
               ai->ai_protocol);
  if (fd < 0)
    return -errno;
  setsockopt (fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  /* Else the IPv6 wildcard takes the IPv4 one as well, and which of the two
   * can be bound depends on their order.
   */
  if (ai->ai_family == AF_INET6
      && setsockopt (fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) < 0)
    return -errno;
  if (bind (fd, ai->ai_addr, ai->ai_addrlen) < 0
      || listen (fd, LISTEN_BACKLOG) < 0)
    return -errno;
  r = fd;
  fd = -1;
  return r;
}

/* Listen on every address of the list, all with one port.  Returns the number
 * of sockets or -errno.
 */
static int
listen_list (struct addrinfo *list, bool is_any_port,
             int fds[SOCK_ADDRESS_MAX_FDS])
{
  int nr = 0, fd, error = -EADDRNOTAVAIL;
  struct addrinfo *ai;

  for (ai = list; ai && nr < SOCK_ADDRESS_MAX_FDS; ai = ai->ai_next) {
    if (ai->ai_family != AF_INET && ai->ai_family != AF_INET6)
      continue;
    if (is_any_port)
      set_port (ai->ai_addr, nr > 0 ? bound_port (fds[0]) : 0);
    fd = listen_one (ai);
    if (fd >= 0) {
      fds[nr++] = fd;
      continue;
    }
    error = fd;
    /* A machine without one of the two protocols is no error. */
    if (fd != -EAFNOSUPPORT && fd != -EADDRNOTAVAIL) {
      close_all (fds, nr);
      return fd;
    }
  }
  return nr > 0 ? nr : error;
}

static int
listen_tcp (const struct sock_address *addr, int fds[SOCK_ADDRESS_MAX_FDS],
            struct error *err)
{
  bool is_any_port = strtoul (addr->port, NULL, 10) == 0;
  char text[ADDRESS_TEXT_MAX];
  struct addrinfo *list;
  unsigned tries = 0;
  int r;

  r = resolve (addr, AI_PASSIVE, &list, err);
  if (r < 0)
    return r;
  /* A port that the kernel chose for IPv4 may be taken for IPv6. */
  do
    r = listen_list (list, is_any_port, fds);
  while (r == -EADDRINUSE && is_any_port && ++tries < 20);
  freeaddrinfo (list);
  if (r < 0) {
    sock_address_format (addr, text, sizeof text);
    return error_set_errno (err, -r, "%s: cannot listen", text);
  }
  return r;
}

int
sock_address_listen (const struct sock_address *addr,
                     int fds[SOCK_ADDRESS_MAX_FDS], struct error *err)
{
  return addr->is_unix ? listen_unix (addr, &fds[0], err)
    : listen_tcp (addr, fds, err);
}

/* Wait for a connection that has begun.  0 or -errno. */
static int
wait_connected (int fd, int cancel_fd)
{
  struct pollfd fds[2] = {
    { .fd = fd, .events = POLLOUT },
    { .fd = cancel_fd, .events = POLLIN },
  };
  int error = 0, n;
  socklen_t len = sizeof error;

  do
    n = poll (fds, 2, CONNECT_SECONDS * 1000);
  while (n < 0 && errno == EINTR);
  if (n < 0)
    return -errno;
  if (fds[1].revents)
    return -ECANCELED;
  if (n == 0)
    return -ETIMEDOUT;
  return getsockopt (fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0 ? -errno
    : -error;
}

/* Give the socket, which does not block, its connection; then it blocks. */
static int
connect_fd (int fd, const struct addrinfo *ai, int cancel_fd)
{
  int r = connect (fd, ai->ai_addr, ai->ai_addrlen) < 0 ? -errno : 0;

  if (r == -EINPROGRESS)
    r = wait_connected (fd, cancel_fd);
  if (r == 0 && fcntl (fd, F_SETFL, 0) < 0)
    r = -errno;
  return r;
}

static int
connect_unix (const struct sock_address *addr, struct error *err)
{
  struct sockaddr_un sun = unix_sockaddr (addr);
  int fd, r;

  fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return error_set_errno (err, errno, "socket");
  if (connect (fd, (struct sockaddr *) &sun, sizeof sun) < 0) {
    r = error_set_errno (err, errno, "%s: cannot connect", addr->path);
    close (fd);
    return r;
  }
  return fd;
}

static int
connect_tcp (const struct sock_address *addr, int cancel_fd, struct error *err)
{
  int on = 1, fd = -1, r;
  char text[ADDRESS_TEXT_MAX];
  struct addrinfo *list, *ai;

  r = resolve (addr, 0, &list, err);
  if (r < 0)
    return r;
  r = -EADDRNOTAVAIL;
  for (ai = list; ai && r < 0 && r != -ECANCELED; ai = ai->ai_next) {
    fd = socket (ai->ai_family,
                 ai->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
                 ai->ai_protocol);
    r = fd < 0 ? -errno : connect_fd (fd, ai, cancel_fd);
    if (fd >= 0 && r < 0)
      close (fd);
  }
  freeaddrinfo (list);
  if (r < 0) {
    sock_address_format (addr, text, sizeof text);
    return error_set_errno (err, -r, "%s: cannot connect", text);
  }
  setsockopt (fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

int
sock_address_connect (const struct sock_address *addr, int cancel_fd,
                      struct error *err)
{
  return addr->is_unix ? connect_unix (addr, err)
    : connect_tcp (addr, cancel_fd, err);
}

/* A decimal number from 1 to max; 0 if s is not one. */
static unsigned long
parse_variable (const char *s, unsigned long max)
{
  unsigned long n;
  char *end;

  if (*s < '0' || *s > '9')
    return 0;
  errno = 0;
  n = strtoul (s, &end, 10);
  return errno || *end || n > max ? 0 : n;
}

static int
check_activation_fd (int fd, struct error *err)
{
  int is_listening = 0, flags;
  socklen_t len = sizeof is_listening;

  if (getsockopt (fd, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &len) < 0
      || !is_listening)
    return error_set (err, EINVAL, "socket activation: file descriptor %d is "
                      "not a listening socket", fd);
  flags = fcntl (fd, F_GETFL);
  if (flags < 0 || fcntl (fd, F_SETFL, flags | O_NONBLOCK) < 0
      || fcntl (fd, F_SETFD, FD_CLOEXEC) < 0)
    return error_set_errno (err, errno, "socket activation: file descriptor "
                            "%d", fd);
  return 0;
}

int
sock_activation_fds (struct error *err)
{
  const char *pid_text = getenv ("LISTEN_PID");
  const char *fds_text = getenv ("LISTEN_FDS");
  unsigned long pid, nr, i;
  int r;

  if (!pid_text || !fds_text)
    return 0;
  pid = parse_variable (pid_text, INT32_MAX);
  if (pid == 0)
    return error_set (err, EINVAL, "LISTEN_PID='%.32s' is not a process id",
                      pid_text);
  /* Meant for the process that started us. */
  if (pid != (unsigned long) getpid ())
    return 0;
  nr = parse_variable (fds_text, SYSTEMD_MAX_FDS);
  if (nr == 0)
    return error_set (err, EINVAL, "LISTEN_FDS='%.32s' is not a number from "
                      "1 to %d", fds_text, SYSTEMD_MAX_FDS);
  for (i = 0; i < nr; i++) {
    r = check_activation_fd (SYSTEMD_FIRST_FD + (int) i, err);
    if (r < 0)
      return r;
  }
  unsetenv ("LISTEN_PID");
  unsetenv ("LISTEN_FDS");
  unsetenv ("LISTEN_FDNAMES");
  return (int) nr;
}

bool
sock_is_unix (int fd)
{
  int domain = 0;
  socklen_t len = sizeof domain;

  return getsockopt (fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0
    && domain == AF_UNIX;
}

char *
sock_peer_format (int fd, char *buf, size_t size)
{
  struct sockaddr_storage ss;
  socklen_t len = sizeof ss;
  char host[INET6_ADDRSTRLEN + 20], port[8];

  if (getpeername (fd, (struct sockaddr *) &ss, &len) < 0)
    snprintf (buf, size, "a client that is gone");
  else if (ss.ss_family == AF_UNIX)
    snprintf (buf, size, "a local client");
  else if (getnameinfo ((struct sockaddr *) &ss, len, host, sizeof host, port,
                        sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    snprintf (buf, size, "an unknown client");
  else
    snprintf (buf, size, ss.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host,
              port);
  return buf;
}
