/* SPDX-License-Identifier: BSD-3-Clause */
/* Addresses, the sockets bound to them, and URIs that lead to those.
 *
 * Changed only before the service starts; afterwards read by any thread.
 */
#include "config.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "cleanup.h"
#include "listeners.h"
#include "log.h"
#include "vector.h"

DEFINE_VECTOR (listener_vector, struct listener);
DEFINE_VECTOR (address_vector, struct listener_address);

struct listeners {
  struct address_vector addresses;
  struct listener_vector sockets;
};

#define ADDRESS_STRING_MAX 300

static const char *
kind_name (enum service_listener kind)
{
  switch (kind) {
  case SERVICE_LIVE: return "live address";
  case SERVICE_BACKUP: return "backup address";
  case SERVICE_CONTROL: return "control address";
  }
  abort ();
}

int
listeners_new (struct listeners **ret)
{
  struct listeners *l = calloc (1, sizeof *l);

  if (l == NULL)
    return -ENOMEM;
  *ret = l;
  return 0;
}

/* Remove the file unless someone else has put his own there since. */
static void
remove_socket_file (const struct listener *s)
{
  struct stat st;

  if (lstat (s->path, &st) == 0 && st.st_dev == s->dev &&
      st.st_ino == s->ino && unlink (s->path) < 0)
    log_warning ("%s: cannot remove: %s", s->path, strerror (errno));
}

void
listeners_free (struct listeners *l)
{
  size_t i;

  if (l == NULL)
    return;
  for (i = 0; i < l->sockets.len; i++) {
    struct listener *s = &l->sockets.ptr[i];

    if (s->fd >= 0)
      close (s->fd);
    if (s->path)
      remove_socket_file (s);
    free (s->path);
  }
  listener_vector_reset (&l->sockets);
  address_vector_reset (&l->addresses);
  free (l);
}

/* A relative path means the directory that the user is in now, whatever the
 * process does later.
 */
static int
make_absolute (struct sock_address *addr, struct error *err)
{
  CLEANUP_FREE char *cwd = NULL, *path = NULL;

  if (!addr->is_unix || addr->path[0] == '/')
    return 0;
  cwd = getcwd (NULL, 0);
  if (cwd == NULL || asprintf (&path, "%s/%s", cwd, addr->path) < 0)
    return error_set_errno (err, errno, "%s", addr->path);
  if (strlen (path) >= sizeof addr->path)
    return error_set (err, ENAMETOOLONG, "socket path '%s' is too long "
                      "(at most %zu bytes)", path, sizeof addr->path - 1);
  strcpy (addr->path, path);
  return 0;
}

static bool
is_same_address (const struct sock_address *a, const struct sock_address *b)
{
  if (a->is_unix || b->is_unix)
    return a->is_unix == b->is_unix && strcmp (a->path, b->path) == 0;
  return strcmp (a->host, b->host) == 0 && strcmp (a->port, b->port) == 0 &&
    strcmp (a->port, "0") != 0;
}

int
listeners_add_address (struct listeners *l, enum service_listener kind,
                       const char *address, struct error *err)
{
  struct listener_address a = { .kind = kind };
  size_t i;
  int r;

  r = sock_address_parse (kind_name (kind), address,
                          kind == SERVICE_CONTROL ? "10811" : "10809",
                          &a.addr, err);
  if (r < 0)
    return r;
  r = make_absolute (&a.addr, err);
  if (r < 0)
    return r;
  for (i = 0; i < l->addresses.len; i++)
    if (is_same_address (&l->addresses.ptr[i].addr, &a.addr))
      return error_set (err, EINVAL, "%s '%s' is given twice",
                        kind_name (kind), address);
  if (address_vector_append (&l->addresses, a) < 0)
    return error_set_errno (err, ENOMEM, "%s", address);
  return 0;
}

/* Takes ownership of fd, on failure too.  path: as in struct listener. */
static int
add_socket (struct listeners *l, enum service_listener kind, int fd,
            const char *path, struct error *err)
{
  struct listener s = { .kind = kind, .fd = fd };
  socklen_t len = sizeof s.addr;
  struct stat st;
  int r;

  if (getsockname (fd, (struct sockaddr *) &s.addr, &len) < 0)
    goto fail;
  if (path) {
    if (lstat (path, &st) < 0)
      goto fail;
    s.dev = st.st_dev;
    s.ino = st.st_ino;
    s.path = strdup (path);
    if (s.path == NULL)
      goto fail;
  }
  if (listener_vector_append (&l->sockets, s) == 0)
    return 0;
 fail:
  r = error_set_errno (err, errno, "%s", kind_name (kind));
  free (s.path);
  close (fd);
  return r;
}

int
listeners_add_socket (struct listeners *l, enum service_listener kind,
                      int fd, struct error *err)
{
  int type = 0, is_listening = 0;
  socklen_t len = sizeof type;

  if (getsockopt (fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 ||
      getsockopt (fd, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &len) < 0 ||
      type != SOCK_STREAM || !is_listening) {
    error_set (err, EINVAL, "file descriptor %d is not a listening stream "
               "socket", fd);
    close (fd);
    return -EINVAL;
  }
  return add_socket (l, kind, fd, NULL, err);
}

int
listeners_bind (struct listeners *l, struct error *err)
{
  size_t i;

  for (i = 0; i < l->addresses.len; i++) {
    const struct listener_address *a = &l->addresses.ptr[i];
    int fds[SOCK_ADDRESS_MAX_FDS], nr, j, r = 0;

    nr = sock_address_listen (&a->addr, fds, err);
    if (nr < 0)
      return nr;
    for (j = 0; j < nr; j++)
      if (r < 0)
        close (fds[j]);
      else
        r = add_socket (l, a->kind, fds[j],
                        a->addr.is_unix ? a->addr.path : NULL, err);
    if (r < 0)
      return r;
  }
  return 0;
}

bool
listeners_has (const struct listeners *l, enum service_listener kind)
{
  size_t i;

  for (i = 0; i < l->addresses.len; i++)
    if (l->addresses.ptr[i].kind == kind)
      return true;
  for (i = 0; i < l->sockets.len; i++)
    if (l->sockets.ptr[i].kind == kind)
      return true;
  return false;
}

bool
listeners_has_tcp_control (const struct listeners *l, char *buf, size_t size)
{
  size_t i;

  for (i = 0; i < l->addresses.len; i++)
    if (l->addresses.ptr[i].kind == SERVICE_CONTROL &&
        !l->addresses.ptr[i].addr.is_unix) {
      sock_address_format (&l->addresses.ptr[i].addr, buf, size);
      return true;
    }
  for (i = 0; i < l->sockets.len; i++)
    if (l->sockets.ptr[i].kind == SERVICE_CONTROL &&
        l->sockets.ptr[i].addr.ss_family != AF_UNIX) {
      snprintf (buf, size, "socket %d", l->sockets.ptr[i].fd);
      return true;
    }
  return false;
}

size_t
listeners_nr (const struct listeners *l)
{
  return l->sockets.len;
}

int
listeners_take_fd (struct listeners *l, size_t i, enum service_listener kind)
{
  struct listener *s = &l->sockets.ptr[i];
  int fd = s->fd;

  if (s->kind != kind)
    return -1;
  s->fd = -1;
  return fd;
}

/* Percent-encode s; "/" stays. */
static char *
encode_path (const char *s)
{
  static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abcdefghijklmnopqrstuvwxyz0123456789-._~/";
  char *ret = malloc (3 * strlen (s) + 1), *p = ret;

  if (ret == NULL)
    return NULL;
  for (; *s; s++)
    if (strchr (plain, *s))
      *p++ = *s;
    else
      p += sprintf (p, "%%%02X", (unsigned char) *s);
  *p = '\0';
  return ret;
}

static char *
unix_uri (const struct listener *s, const char *export_name,
          struct error *err)
{
  const struct sockaddr_un *un = (const struct sockaddr_un *) &s->addr;
  CLEANUP_FREE char *export = encode_path (export_name);
  CLEANUP_FREE char *path = NULL;
  char *uri = NULL;

  if (un->sun_path[0] != '/') {
    error_set (err, ENOTSUP, "the backup listener's socket has no absolute "
               "path that a URI could name");
    return NULL;
  }
  path = encode_path (un->sun_path);
  if (export == NULL || path == NULL ||
      asprintf (&uri, "nbd+unix:///%s?socket=%s", export, path) < 0) {
    error_set_errno (err, ENOMEM, "URI");
    return NULL;
  }
  return uri;
}

static bool
is_wildcard (const struct sockaddr_storage *a)
{
  if (a->ss_family == AF_INET)
    return ((const struct sockaddr_in *) a)->sin_addr.s_addr ==
      htonl (INADDR_ANY);
  return IN6_IS_ADDR_UNSPECIFIED
    (&((const struct sockaddr_in6 *) a)->sin6_addr);
}

static unsigned
port_of (const struct sockaddr_storage *a)
{
  return ntohs (a->ss_family == AF_INET
                ? ((const struct sockaddr_in *) a)->sin_port
                : ((const struct sockaddr_in6 *) a)->sin6_port);
}

/* An IPv4 address in IPv6 clothes is shown as what it is. */
static int
host_string (const struct sockaddr_storage *a, char *host, size_t size)
{
  const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *) a;

  if (a->ss_family == AF_INET)
    return inet_ntop (AF_INET, &((const struct sockaddr_in *) a)->sin_addr,
                      host, (socklen_t) size) ? 0 : -errno;
  if (IN6_IS_ADDR_V4MAPPED (&in6->sin6_addr))
    return inet_ntop (AF_INET, &in6->sin6_addr.s6_addr[12], host,
                      (socklen_t) size) ? 0 : -errno;
  return inet_ntop (AF_INET6, &in6->sin6_addr, host, (socklen_t) size)
    ? 0 : -errno;
}

/* The host part of a URI for a client whose control connection has our end
 * at *local.
 */
static int
uri_host (const struct sockaddr_storage *bound,
          const struct sockaddr_storage *local, char *ret, size_t size)
{
  char host[INET6_ADDRSTRLEN];

  if (!is_wildcard (bound)) {
    if (host_string (bound, host, sizeof host) < 0)
      return -EINVAL;
  }
  else if (local->ss_family == AF_INET || local->ss_family == AF_INET6) {
    if (host_string (local, host, sizeof host) < 0)
      return -EINVAL;
  }
  else
    strcpy (host, bound->ss_family == AF_INET ? "127.0.0.1" : "::1");
  snprintf (ret, size, strchr (host, ':') ? "[%s]" : "%s", host);
  return 0;
}

static char *
tcp_uri (const struct listener *s, const struct sockaddr_storage *local,
         const char *export_name, bool is_tls, struct error *err)
{
  CLEANUP_FREE char *export = encode_path (export_name);
  char host[INET6_ADDRSTRLEN + 2], *uri = NULL;

  if (export == NULL ||
      uri_host (&s->addr, local, host, sizeof host) < 0 ||
      asprintf (&uri, "nbd%s://%s:%u/%s", is_tls ? "s" : "", host,
                port_of (&s->addr), export) < 0) {
    error_set_errno (err, ENOMEM, "URI");
    return NULL;
  }
  return uri;
}

/* How well a socket suits a client that came over family: higher is better. */
static int
suitability (const struct listener *s, sa_family_t family)
{
  if (s->addr.ss_family == family)
    return 3;
  if (family != AF_UNIX && s->addr.ss_family != AF_UNIX)
    return 2;
  return s->addr.ss_family == AF_INET;
}

char *
listeners_backup_uri (const struct listeners *l, const char *export_name,
                      int control_fd, bool is_tls, struct error *err)
{
  struct sockaddr_storage local = { .ss_family = AF_UNIX };
  socklen_t len = sizeof local;
  const struct listener *best = NULL;
  size_t i;

  if (control_fd >= 0 &&
      getsockname (control_fd, (struct sockaddr *) &local, &len) < 0)
    local.ss_family = AF_UNIX;
  for (i = 0; i < l->sockets.len; i++) {
    const struct listener *s = &l->sockets.ptr[i];

    if (s->kind == SERVICE_BACKUP &&
        (best == NULL || suitability (s, local.ss_family) >
         suitability (best, local.ss_family)))
      best = s;
  }
  if (best == NULL) {
    error_set (err, ENOTCONN, "there is no backup listener: a backup address "
               "must be given when the server is started");
    return NULL;
  }
  if (best->addr.ss_family == AF_UNIX)
    return unix_uri (best, export_name, err);
  return tcp_uri (best, &local, export_name, is_tls, err);
}
