/* SPDX-License-Identifier: BSD-3-Clause */
/* An NBD server over listening sockets: newstyle, structured replies, extended
 * headers, metadata contexts (nbd: doc/proto.md).
 */
#ifndef TIDEMARK_NBD_SERVER_H
#define TIDEMARK_NBD_SERVER_H

#include <stddef.h>

#include "error.h"
#include "export.h"
#include "server-tls.h"

struct nbd_server;

struct nbd_server_options {
  struct export_table *exports; /* outlives the server */
  unsigned handshake_timeout;   /* seconds; 0 = 10 */
  unsigned max_connections;     /* 0 = 100 */
  unsigned nr_workers;          /* threads for requests that may wait for a
                                   disk, shared by all connections; 0 = 16 */
  const struct server_tls *tls; /* loaded, outlives the server; NULL = none */
  /* In place of those of tls, which must be given then, to all clients, on Unix
   * sockets too; NULL = none.  The server takes a reference.
   */
  struct tls_creds *creds;
  enum tls_role role;           /* what its clients do */
};

/* Starts no threads yet. */
int nbd_server_new (const struct nbd_server_options *options,
                    struct nbd_server **ret, struct error *err);
/* Takes ownership of a listening socket, on failure too.  Before start. */
int nbd_server_add_socket (struct nbd_server *s, int fd, struct error *err);
/* Accept connections from now on, on a thread of its own. */
int nbd_server_start (struct nbd_server *s, struct error *err);
/* Stop accepting; connections finish the requests in progress and close.
 * Frees s.  NULL is allowed.
 */
void nbd_server_free (struct nbd_server *s);

unsigned nbd_server_nr_connections (const struct nbd_server *s);

#endif /* TIDEMARK_NBD_SERVER_H */
