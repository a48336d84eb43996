/* SPDX-License-Identifier: BSD-3-Clause */
/* The control server: QMP over listening sockets, a thread per connection.
 * Commands are tables in qmp-*.c.
 */
#ifndef TIDEMARK_QMP_H
#define TIDEMARK_QMP_H

#include <jansson.h>

#include "error.h"
#include "service.h"

#define QMP_MAX_REQUEST (1024 * 1024)   /* bytes of one JSON value */
#define QMP_MAX_DEPTH 64
#define QMP_MAX_CONNECTIONS 32

struct qmp_server;

/* One command's call.  args is an object (borrowed, possibly empty). */
struct qmp_call {
  struct service *service;
  json_t *args;
  int fd;                       /* the connection */
  const char *error_class;      /* set for one other than GenericError */
};

/* Returns 0 with *ret a new reference (NULL = {}), or -errno with *err set. */
typedef int (*qmp_handler) (struct qmp_call *call, json_t **ret,
                            struct error *err);

struct qmp_command {
  const char *name;
  qmp_handler handler;
};

/* Tables end with a NULL name. */
extern const struct qmp_command qmp_bitmap_commands[];
extern const struct qmp_command qmp_backup_commands[];
extern const struct qmp_command qmp_query_commands[];

int qmp_server_new (struct service *service, struct qmp_server **ret);
/* Takes ownership of fd, on failure too.  Before start. */
int qmp_server_add_socket (struct qmp_server *q, int fd, struct error *err);
int qmp_server_start (struct qmp_server *q, struct error *err);
/* Closes connections, joins threads, frees.  NULL is allowed. */
void qmp_server_free (struct qmp_server *q);

/* Send an event to every connection past qmp_capabilities.  data is borrowed.
 * Never blocks on a slow peer: one that does not read loses its connection.
 */
void qmp_event (struct qmp_server *q, const char *name, json_t *data);

#endif /* TIDEMARK_QMP_H */
