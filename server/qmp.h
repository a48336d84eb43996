/* SPDX-License-Identifier: BSD-3-Clause */
/* The control server: QMP over listening sockets, a thread per connection.
 * Commands are tables in qmp-*.c.  Protocol: docs/control.md.
 */
#ifndef TIDEMARK_QMP_H
#define TIDEMARK_QMP_H

#include <stdbool.h>

#include <jansson.h>

#include "error.h"
#include "qmp-args.h"
#include "service.h"

#define QMP_MAX_REQUEST (1024 * 1024)   /* bytes of one JSON value */
#define QMP_MAX_DEPTH 64
/* Members of one JSON value, at any depth: jansson needs up to 250 bytes for
 * "{}," and that must not multiply QMP_MAX_REQUEST by 80.
 */
#define QMP_MAX_VALUES 16384
#define QMP_DEFAULT_MAX_CONNECTIONS 32
#define QMP_MAX_BACKLOG (4 * 1024 * 1024)       /* bytes of unread output */

struct qmp_server;

/* One command's call.  args is an object (borrowed, possibly empty). */
struct qmp_call {
  struct service *service;
  json_t *args;
  int fd;                       /* the connection */
  const struct tls *tls;        /* whose peer calls; NULL = a local one */
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
extern const struct qmp_command qmp_blockdev_commands[];
extern const struct qmp_command qmp_export_commands[];
extern const struct qmp_command qmp_job_commands[];
extern const struct qmp_command qmp_object_commands[];
extern const struct qmp_command qmp_query_commands[];
extern const struct qmp_command qmp_resize_commands[];
extern const struct qmp_command qmp_transaction_commands[];
/* All tables; ends with NULL. */
extern const struct qmp_command *const qmp_command_tables[];

/* qmp-dispatch.c: the greeting, and the reply to one request, which is of any
 * JSON type.  New references; NULL if there is no memory.
 */
json_t *qmp_greeting (void);
json_t *qmp_dispatch (struct service *service, int fd, const struct tls *tls,
                      bool *is_negotiated, json_t *request);
json_t *qmp_error_reply (const char *error_class, const char *desc);
json_t *qmp_version (void);

/* May the caller know of this disk and back it up? */
bool qmp_may_back_up (const struct qmp_call *call, const char *disk);
/* May a client do everything?  tls NULL: a local one. */
bool qmp_is_admin (struct service *service, const struct tls *tls);

/* QEMU's rule and message for the six bitmap commands and our own (those that
 * say "device" use nodes_find_device).
 */
struct disk *qmp_find_disk (struct qmp_call *call, const char *node,
                            struct error *err);

/* qmp-bitmap.c, for transactions: arguments of the bitmap commands (the four
 * that take just a bitmap have the same), and what two of them do.
 */
extern const struct qmp_arg qmp_bitmap_add_args[];
extern const struct qmp_arg qmp_bitmap_merge_args[];
extern const struct qmp_arg qmp_bitmap_args[];
/* args have been checked against the table.  What takes time; then the rest.
 * [add: gate closed]
 */
int qmp_bitmap_prepare_add (struct disk *disk, const json_t *args,
                            struct error *err);
int qmp_bitmap_add (struct disk *disk, const json_t *args, struct error *err);
/* References to the sources of a merge; the caller unrefs them and frees the
 * array.
 */
int qmp_bitmap_find_sources (struct qmp_call *call, struct disk *target_disk,
                             const json_t *args, struct dirty_bitmap ***ret,
                             size_t *ret_nr, struct error *err);

/* qmp-job.c: tell all connections.  Does not wait. */
struct job_event;
void qmp_job_event (struct qmp_server *q, const struct job_event *event);

/* max_connections 0 = the default. */
int qmp_server_new (struct service *service, unsigned max_connections,
                    struct qmp_server **ret);
/* Takes ownership of fd, on failure too.  Before start. */
int qmp_server_add_socket (struct qmp_server *q, int fd, struct error *err);
int qmp_server_start (struct qmp_server *q, struct error *err);
/* No further connection or command starts; returns when the commands in
 * progress have ended.  Events still go out.
 */
void qmp_server_stop (struct qmp_server *q);
/* Sends what is left to send to peers that read it, closes connections, joins
 * threads, frees.  NULL is allowed.
 */
void qmp_server_free (struct qmp_server *q);

/* Send an event to every connection past qmp_capabilities.  data is borrowed.
 * Never blocks on a slow peer: one that does not read loses its connection.
 */
void qmp_event (struct qmp_server *q, const char *name, json_t *data);

#endif /* TIDEMARK_QMP_H */
