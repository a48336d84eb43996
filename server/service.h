/* SPDX-License-Identifier: BSD-3-Clause */
/* All that a process needs to serve disks: used by tidemarkd and by the nbdkit
 * plugin.  Configure, start (after any fork: threads begin here), stop, free.
 */
#ifndef TIDEMARK_SERVICE_H
#define TIDEMARK_SERVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "disk.h"
#include "error.h"
#include "export.h"
#include "job.h"
#include "nodes.h"
#include "server-tls.h"
#include "session.h"

struct service;

int service_new (struct service **ret);

/* "NAME,file=PATH[,format=raw|qcow2][,readonly=on|off][,backing=allow|deny]
 * [,scratch-dir=DIR][,scratch-limit=SIZE][,cache-size=SIZE]
 * [,l2-cache-size=SIZE][,refcount-cache-size=SIZE][,l2-cache-entry-size=SIZE]
 * [,on-scratch-error=break-backup|break-guest-write][,store=PATH|none]".
 * Checked here, opened by service_open.
 */
int service_add_disk (struct service *s, const char *spec,
                      struct error *err);
/* "DISK/NAME[,granularity=SIZE][,disabled=on|off][,persistent=on|off]" of a
 * disk given before.
 */
int service_add_bitmap (struct service *s, const char *spec,
                        struct error *err);
/* Options for all disks that do not set their own. */
int service_set_scratch_dir (struct service *s, const char *dir,
                             struct error *err);
int service_set_scratch_limit (struct service *s, uint64_t bytes);
/* Clients at once on all addresses of a kind; the default is 100 each of live
 * and backup and 32 of control.  what names the option in messages.
 */
int service_set_max_connections (struct service *s, const char *what,
                                 const char *value, struct error *err);

/* TLS over TCP: keys and values as server_tls_set. */
int service_set_tls (struct service *s, const char *key, const char *value,
                     struct error *err);
/* All options have been given: reads the files of TLS, checks what depends on
 * several options.
 */
int service_complete (struct service *s, struct error *err);

enum service_listener {
  SERVICE_LIVE,                 /* NBD, the disks, writable */
  SERVICE_BACKUP,               /* NBD, sessions' views, read-only */
  SERVICE_CONTROL,              /* QMP; over TCP with TLS alone */
};
/* An address (sockaddr.h).  May be given several times. */
int service_add_address (struct service *s, enum service_listener kind,
                         const char *address, struct error *err);
/* An open listening socket (socket activation); takes ownership.  After
 * service_complete.
 */
int service_add_socket (struct service *s, enum service_listener kind,
                        int fd, struct error *err);

/* Any addresses or sockets? */
bool service_has_listeners (const struct service *s);

bool service_has_live_listener (const struct service *s);

/* Open the disks and create the bitmaps.  Before a fork if errors are to reach
 * the terminal: starts no threads.
 */
int service_open (struct service *s, struct error *err);
/* Bind the addresses (no threads either). */
int service_bind (struct service *s, struct error *err);
/* Start the listeners. */
int service_start (struct service *s, struct error *err);
/* Stop listeners, end sessions, flush and close the disks.  Frees s.  0, or
 * -errno if something could not be written back (it has been logged).  NULL is
 * allowed.
 */
int service_free (struct service *s);

/* QMP quit was received: fd becomes readable.  Owned by s. */
int service_quit_fd (struct service *s);
void service_request_quit (struct service *s);

/* A QMP event to all control connections (qmp_event), if there is a control
 * server.  data is borrowed.  Any thread, without locks.
 */
void service_send_event (struct service *s, const char *name, json_t *data);

/* Options of a disk that says nothing of its own; no name, no file. */
void service_disk_defaults (struct service *s, struct disk_options *ret);

/* The disks that it was started with, fixed between open and free.  Commands
 * use nodes_find_disk, which knows those of blockdev-add as well.
 */
size_t service_nr_disks (const struct service *s);
struct disk *service_disk (struct service *s, size_t i);
struct disk *service_find_disk (struct service *s, const char *name);
struct nodes *service_nodes (struct service *s);
struct session_manager *service_sessions (struct service *s);
struct block_exports *service_block_exports (struct service *s);
struct job_manager *service_jobs (struct service *s);
const struct server_tls *service_tls (const struct service *s);
struct tls_objects *service_tls_objects (struct service *s);
struct export_table *service_exports (struct service *s,
                                      enum service_listener kind);

/* NBD URI of an export of the backup listeners, for a control client that is
 * connected on control_fd (its address stands in for a wildcard); one for TLS
 * if is_tls or if it is required.  Caller frees.  NULL with *err set if there
 * is no backup listener.
 */
char *service_backup_uri (struct service *s, const char *export_name,
                          int control_fd, bool is_tls, struct error *err);

#endif /* TIDEMARK_SERVICE_H */
