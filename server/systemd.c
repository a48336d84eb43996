/* SPDX-License-Identifier: BSD-3-Clause */
/* Socket activation and readiness: sd_listen_fds(3), sd_notify(3).
 *
 * Called by the main thread.
 */
#include "config.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "cleanup.h"
#include "log.h"
#include "sockaddr.h"
#include "systemd.h"

#define FIRST_FD 3              /* SD_LISTEN_FDS_START */
#define NR_KINDS 3

/* In the order of enum service_listener. */
static const char *const kind_names[NR_KINDS] =
  { "live", "backup", "control" };

/* The kind of the i-th name in a list with colons, -1 if it is none. */
static int
named_kind (const char *names, int i)
{
  size_t len;
  int kind;

  for (; i > 0 && names; i--) {
    names = strchr (names, ':');
    if (names)
      names++;
  }
  if (names == NULL)
    return -1;
  len = strcspn (names, ":");
  for (kind = 0; kind < NR_KINDS; kind++)
    if (strlen (kind_names[kind]) == len &&
        strncmp (kind_names[kind], names, len) == 0)
      return kind;
  return -1;
}

static int
choose_kind (const char *names, int i, bool is_named, struct error *err)
{
  int kind = is_named ? named_kind (names, i) : i;

  if (kind < 0)
    return error_set (err, EINVAL, "socket activation: socket %d: the name "
                      "must be 'live', 'backup' or 'control'", i + 1);
  if (kind >= NR_KINDS)
    return error_set (err, EINVAL, "socket activation: more than %d sockets "
                      "need names ('live', 'backup', 'control')", NR_KINDS);
  return kind;
}

int
systemd_add_sockets (struct service *s, struct error *err)
{
  const char *variable = getenv ("LISTEN_FDNAMES");
  CLEANUP_FREE char *names = strdup (variable ? variable : "");
  bool is_named = false;
  int nr, i, kind, r;

  if (names == NULL)
    return error_set_errno (err, ENOMEM, "socket activation");
  nr = sock_activation_fds (err);
  if (nr < 0)
    return nr;
  for (i = 0; i < nr; i++)
    is_named |= named_kind (names, i) >= 0;
  for (i = 0; i < nr; i++) {
    kind = choose_kind (names, i, is_named, err);
    if (kind < 0)
      return kind;
    r = service_add_socket (s, (enum service_listener) kind, FIRST_FD + i,
                            err);
    if (r < 0) {
      error_prefix (err, "socket activation");
      return r;
    }
  }
  return nr;
}

void
systemd_notify (const char *state)
{
  const char *path = getenv ("NOTIFY_SOCKET");
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  CLEANUP_CLOSE int fd = -1;
  socklen_t len;

  if (path == NULL || (path[0] != '/' && path[0] != '@') ||
      strlen (path) >= sizeof addr.sun_path)
    return;
  strcpy (addr.sun_path, path);
  len = (socklen_t) (offsetof (struct sockaddr_un, sun_path) + strlen (path));
  /* An abstract name. */
  if (path[0] == '@')
    addr.sun_path[0] = '\0';
  fd = socket (AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0 ||
      sendto (fd, state, strlen (state), MSG_NOSIGNAL,
              (struct sockaddr *) &addr, len) < 0)
    log_warning ("NOTIFY_SOCKET=%s: %s", path, strerror (errno));
}
