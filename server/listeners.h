/* SPDX-License-Identifier: BSD-3-Clause */
/* The addresses and listening sockets of a service. */
#ifndef TIDEMARK_LISTENERS_H
#define TIDEMARK_LISTENERS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "error.h"
#include "service.h"
#include "sockaddr.h"

struct listener {
  enum service_listener kind;
  int fd;                       /* -1: not open, or given away */
  struct sockaddr_storage addr; /* that it is bound to */
  /* A Unix socket file of ours, to be removed at the end; else NULL. */
  char *path;
  dev_t dev;
  ino_t ino;
};

struct listener_address {
  enum service_listener kind;
  struct sock_address addr;
};

/* Sockets of all kinds, in the order that they were given. */
struct listeners;

int listeners_new (struct listeners **ret);
/* Closes what has not been given away, removes socket files.  NULL is
 * allowed.
 */
void listeners_free (struct listeners *l);

int listeners_add_address (struct listeners *l, enum service_listener kind,
                           const char *address, struct error *err);
/* Takes ownership of fd, on failure too. */
int listeners_add_socket (struct listeners *l, enum service_listener kind,
                          int fd, struct error *err);
/* A TCP address or socket for control: true, and the first one in words. */
bool listeners_has_tcp_control (const struct listeners *l, char *buf,
                                size_t size);
/* Listen on every address. */
int listeners_bind (struct listeners *l, struct error *err);

/* Any addresses or sockets of this kind? */
bool listeners_has (const struct listeners *l, enum service_listener kind);
size_t listeners_nr (const struct listeners *l);
/* Give the i-th socket away if it is of this kind and has not been; or -1. */
int listeners_take_fd (struct listeners *l, size_t i,
                       enum service_listener kind);

/* NBD URI of an export on one of the backup sockets, best for the peer of
 * control_fd; over TCP with TLS if is_tls.  Caller frees.  NULL with *err set
 * if there is none.
 */
char *listeners_backup_uri (const struct listeners *l,
                            const char *export_name, int control_fd,
                            bool is_tls, struct error *err);

#endif /* TIDEMARK_LISTENERS_H */
