/* SPDX-License-Identifier: BSD-3-Clause */
/* Socket addresses as options name them, and sockets made from them.
 *
 *   unix:PATH   PATH beginning with /   tcp:HOST:PORT   HOST:PORT
 *   [IPV6]:PORT   :PORT (every address)
 */
#ifndef TIDEMARK_SOCKADDR_H
#define TIDEMARK_SOCKADDR_H

#include <stdbool.h>
#include <stddef.h>

#include "error.h"

struct sock_address {
  bool is_unix;
  char path[108];               /* is_unix */
  char host[256];               /* else; "" = every address */
  char port[32];
};

/* Parse s; what names the option in messages; default_port (or NULL: a port
 * must be given).  0 or -errno with *err set.
 */
int sock_address_parse (const char *what, const char *s,
                        const char *default_port,
                        struct sock_address *ret, struct error *err);

/* Text that sock_address_parse accepts. */
void sock_address_format (const struct sock_address *addr, char *buf,
                          size_t size);

#define SOCK_ADDRESS_MAX_FDS 8

/* Listen (close-on-exec, non-blocking).  A host name or "" may give several
 * sockets (IPv4, IPv6).  A Unix socket file that nobody answers on is
 * replaced; one that answers is an error.  Returns how many were written to
 * fds, or -errno with *err set and nothing left open.
 */
int sock_address_listen (const struct sock_address *addr,
                         int fds[SOCK_ADDRESS_MAX_FDS], struct error *err);

/* Connect (close-on-exec, blocking, TCP_NODELAY).  A connection by TCP is given
 * up after 30 s, and with -ECANCELED once cancel_fd (-1 = none) is readable.
 * Returns the socket, or -errno with *err set.
 */
int sock_address_connect (const struct sock_address *addr, int cancel_fd,
                          struct error *err);

/* Sockets passed by systemd (LISTEN_PID, LISTEN_FDS): file descriptors 3 and
 * up.  Returns how many, 0 if none; clears the variables.  -errno with *err
 * set if the variables are malformed.
 */
int sock_activation_fds (struct error *err);

/* Is the socket a Unix one?  False for anything doubtful. */
bool sock_is_unix (int fd);

#define SOCK_PEER_MAX 64

/* The address of the socket's peer, for messages; returns buf. */
char *sock_peer_format (int fd, char *buf, size_t size);

#endif /* TIDEMARK_SOCKADDR_H */
