/* SPDX-License-Identifier: BSD-3-Clause */
/* A process's disks, listeners and sessions, put together.
 *
 *   configuring -> complete [service_complete] -> open [service_open]
 *     -> bound [service_bind]
 *     -> running [service_start] -> freed [service_free, from any of them]
 *
 * Threads begin in service_start: a program may fork before.  At the end, in
 * this order: no further control command, sessions end (their events still go
 * out), NBD connections close, control connections close, disks close.
 *
 * Configured and freed by one thread; in between the members do not change.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block-export.h"
#include "cleanup.h"
#include "listeners.h"
#include "log.h"
#include "nbd-server.h"
#include "qmp.h"
#include "qmp-args.h"
#include "service.h"
#include "sockaddr.h"
#include "specs.h"
#include "tls-objects.h"

/* Each has a thread or two. */
#define MAX_CONNECTIONS 10000

struct service {
  struct specs specs;
  char *scratch_dir;            /* NULL = cbw.h's default */
  uint64_t scratch_limit;
  unsigned max_connections;     /* of each kind; 0 = the servers' defaults */
  struct nodes *nodes;          /* these disks and blockdev-add's */
  struct listeners *listeners;
  struct server_tls *tls;
  struct tls_objects *tls_objects;
  int quit_fd;                  /* eventfd */
  struct export_table *live_exports, *backup_exports;
  struct nbd_server *live_server, *backup_server;
  struct qmp_server *qmp;
  struct session_manager *sessions;
  struct block_exports *block_exports;
  struct job_manager *jobs;
};

int
service_new (struct service **ret)
{
  struct service *s = calloc (1, sizeof *s);
  int r;

  if (s == NULL)
    return -ENOMEM;
  s->quit_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  r = s->quit_fd < 0 ? -errno : listeners_new (&s->listeners);
  if (r == 0)
    r = server_tls_new (&s->tls);
  if (r == 0)
    r = tls_objects_new (&s->tls_objects);
  if (r == 0)
    r = export_table_new (&s->live_exports);
  if (r == 0)
    r = export_table_new (&s->backup_exports);
  if (r == 0)
    r = nodes_new (&s->nodes);
  if (r == 0)
    r = block_exports_new (s, &s->block_exports);
  if (r < 0) {
    service_free (s);
    return r;
  }
  *ret = s;
  return 0;
}

int
service_add_disk (struct service *s, const char *text, struct error *err)
{
  return specs_add_disk (&s->specs, text, err);
}

int
service_add_bitmap (struct service *s, const char *text, struct error *err)
{
  return specs_add_bitmap (&s->specs, text, err);
}

/* Now, and not when the first backup needs it. */
static int
check_scratch_dir (const char *dir, struct error *err)
{
  struct stat st;
  int e = 0;

  if (*dir == '\0')
    return error_set (err, EINVAL, "scratch-dir: a directory is needed");
  if (stat (dir, &st) < 0)
    e = errno;
  else if (!S_ISDIR (st.st_mode))
    e = ENOTDIR;
  else if (access (dir, W_OK | X_OK) < 0)
    e = errno;
  return e ? error_set_errno (err, e, "scratch-dir: %s", dir) : 0;
}

int
service_set_scratch_dir (struct service *s, const char *dir,
                         struct error *err)
{
  char *copy;
  int r = check_scratch_dir (dir, err);

  if (r < 0)
    return r;
  copy = strdup (dir);
  if (copy == NULL)
    return error_set_errno (err, ENOMEM, "scratch-dir");
  free (s->scratch_dir);
  s->scratch_dir = copy;
  return 0;
}

int
service_set_scratch_limit (struct service *s, uint64_t bytes)
{
  s->scratch_limit = bytes;
  return 0;
}

int
service_set_max_connections (struct service *s, const char *what,
                             const char *value, struct error *err)
{
  const size_t len = strspn (value, "0123456789");
  unsigned long n = value[len] == '\0' && len < 10 ? strtoul (value, NULL, 10)
    : 0;

  if (n < 1 || n > MAX_CONNECTIONS)
    return error_set (err, EINVAL, "%s: '%.64s': must be from 1 to %d", what,
                      value, MAX_CONNECTIONS);
  s->max_connections = (unsigned) n;
  return 0;
}

int
service_add_address (struct service *s, enum service_listener kind,
                     const char *address, struct error *err)
{
  return listeners_add_address (s->listeners, kind, address, err);
}

/* Whoever reaches a TCP socket from anywhere must not command. */
static int
check_control (struct service *s, struct error *err)
{
  char address[sizeof (struct sock_address)];

  return listeners_has_tcp_control (s->listeners, address, sizeof address)
    ? server_tls_check_control (s->tls, address, err) : 0;
}

int
service_add_socket (struct service *s, enum service_listener kind, int fd,
                    struct error *err)
{
  int r = listeners_add_socket (s->listeners, kind, fd, err);

  return r < 0 ? r : check_control (s, err);
}

int
service_set_tls (struct service *s, const char *key, const char *value,
                 struct error *err)
{
  return server_tls_set (s->tls, key, value, err);
}

int
service_complete (struct service *s, struct error *err)
{
  int r = server_tls_load (s->tls, err);

  return r < 0 ? r : check_control (s, err);
}

bool
service_has_listeners (const struct service *s)
{
  return listeners_has (s->listeners, SERVICE_LIVE) ||
    listeners_has (s->listeners, SERVICE_BACKUP) ||
    listeners_has (s->listeners, SERVICE_CONTROL);
}

/* disk_inconsistent_function: tell whoever listens. */
static void
bitmap_inconsistent (void *opaque, const char *disk, const char *name,
                     const char *reason)
{
  struct service *s = opaque;
  json_t *data;

  log_warning ("disk '%s': bitmap '%s' is inconsistent: %s", disk, name,
               reason);
  if (s->qmp == NULL)
    return;
  data = json_pack ("{sssoso}", "node", disk, "bitmap", qmp_text (name),
                    "reason", qmp_text (reason));
  if (data)
    qmp_event (s->qmp, "BITMAP_INCONSISTENT", data);
  json_decref (data);
}

static int
open_disk (struct service *s, struct disk_spec *spec, struct error *err)
{
  struct disk_options options = spec->options;
  int r;

  r = options.scratch_dir ? check_scratch_dir (options.scratch_dir, err) : 0;
  if (r < 0) {
    error_prefix (err, "disk '%.64s'", options.name);
    return r;
  }
  if (options.scratch_dir == NULL)
    options.scratch_dir = s->scratch_dir;
  if (options.scratch_limit == 0)
    options.scratch_limit = s->scratch_limit;
  options.on_inconsistent = bitmap_inconsistent;
  options.opaque = s;
  r = disk_open (&options, &spec->disk, err);
  if (r < 0) {
    error_prefix (err, "disk '%.64s'", options.name);
    return r;
  }
  if (nodes_add_fixed (s->nodes, spec->disk) < 0)
    return error_set_errno (err, ENOMEM, "disk '%.64s'", options.name);
  log_info ("disk '%s': %s, %" PRIu64 " bytes", options.name, options.file,
            disk_size (spec->disk));
  return 0;
}

/* Persistent unless it is told, or cannot be. */
static int
open_bitmap (struct disk *disk, const struct bitmap_spec *spec,
             struct error *err)
{
  unsigned flags = spec->is_disabled ? DIRTY_IS_DISABLED : 0;
  struct error why = ERROR_INIT;
  int r;

  if (spec->persistent != PERSISTENT_OFF) {
    r = disk_make_store (disk, &why);
    if (r == 0 || *disk_store_problem (disk))
      flags |= DIRTY_IS_PERSISTENT;
    else if (spec->persistent == PERSISTENT_ON)
      return error_set (err, -r, "bitmap '%.64s' cannot be persistent: %.120s",
                        spec->name, why.msg);
    else
      log_warning ("disk '%s': bitmap '%s' is kept in memory only: %s",
                   disk_name (disk), spec->name, why.msg);
  }
  return disk_bitmap_ensure (disk, spec->name, spec->granularity, flags, err);
}

int
service_open (struct service *s, struct error *err)
{
  size_t i;
  int r;

  for (i = 0; i < s->specs.disks.len; i++) {
    r = open_disk (s, &s->specs.disks.ptr[i], err);
    if (r < 0)
      return r;
  }
  for (i = 0; i < s->specs.bitmaps.len; i++) {
    const struct bitmap_spec *spec = &s->specs.bitmaps.ptr[i];

    r = open_bitmap (specs_find_disk (&s->specs, spec->disk)->disk, spec, err);
    if (r < 0) {
      error_prefix (err, "disk '%.64s'", spec->disk);
      return r;
    }
  }
  return 0;
}

int
service_bind (struct service *s, struct error *err)
{
  return listeners_bind (s->listeners, err);
}

static void
touch_session (void *opaque)
{
  session_touch (opaque);
}

/* session_ops: offer the views. */
static int
offer_views (struct service *s, struct session *session, struct error *err)
{
  size_t nr, i;
  const struct session_disk *disks = session_disks (session, &nr);

  for (i = 0; i < nr; i++) {
    const struct session_disk *d = &disks[i];
    struct export_options options = {
      .name = d->export_name,
      .blk = cbw_view_blk (d->view),
      .disk_name = disk_name (d->disk),
      .is_read_only = true,
      .touch = touch_session,
      .opaque = session,
    };
    int r;

    /* Only an incremental's bitmap says what is to be pulled. */
    if (d->mode == SESSION_INCREMENTAL) {
      options.bitmap = d->bitmap;
      options.bitmap_name = d->bitmap_name;
    }
    r = export_add (s->backup_exports, &options, err);
    if (r < 0) {
      while (i-- > 0)
        export_remove (s->backup_exports, disks[i].export_name);
      return r;
    }
    log_info ("backup %s: %s, %" PRIu64 " of %" PRIu64 " bytes "
              "(%s)", d->export_name,
              session_mode_name (d->mode), d->dirty_bytes, d->size, d->why);
  }
  return 0;
}

/* The thread of the command that begins it. */
static int
session_started (void *opaque, struct session *session, struct error *err)
{
  struct service *s = opaque;
  size_t nr, i;
  const struct session_disk *disks = session_disks (session, &nr);
  int r = offer_views (s, session, err);

  for (i = 0; i < nr && r == 0; i++)
    r = nodes_hold (s->nodes, disks[i].disk, NODE_USE_SHARED, err);
  return r;
}

static void
session_ending (void *opaque, struct session *session)
{
  struct service *s = opaque;
  size_t nr, i;
  const struct session_disk *disks = session_disks (session, &nr);

  for (i = 0; i < nr; i++)
    export_remove (s->backup_exports, disks[i].export_name);
}

static void
session_ended (void *opaque, struct session *session, enum session_end how)
{
  struct service *s = opaque;
  size_t nr, i;
  const struct session_disk *disks = session_disks (session, &nr);
  char id[POINT_ID_STRING_SIZE];
  json_t *data;

  for (i = 0; i < nr; i++)
    nodes_release (s->nodes, disks[i].disk, NODE_USE_SHARED);
  point_id_format (session_id (session), id);
  log_info ("backup %s has ended: %s", id, session_end_name (how));
  data = json_pack ("{ssss}", "id", id, "reason", session_end_name (how));
  if (data)
    service_send_event (s, "BACKUP_ENDED", data);
  json_decref (data);
}

/* job_ops */
static void
job_event (void *opaque, const struct job_event *event)
{
  struct service *s = opaque;
  const struct job_info *info = event->info;

  if (event->type == JOB_EVENT_COMPLETED || event->type == JOB_EVENT_CANCELLED)
    log_info ("backup job '%s' has ended: %s", info->id,
              *info->error ? info->error : "success");
  if (s->qmp)
    qmp_job_event (s->qmp, event);
}

/* Without a listener they would only get in the way of block-export-add. */
static int
add_live_exports (struct service *s, struct error *err)
{
  size_t i;
  int r;

  if (!service_has_live_listener (s))
    return 0;
  for (i = 0; i < s->specs.disks.len; i++) {
    struct disk *disk = s->specs.disks.ptr[i].disk;
    const struct export_options options = {
      .name = disk_name (disk),
      .blk = disk_blk (disk),
      .disk_name = disk_name (disk),
      .is_read_only = blk_is_read_only (disk_blk (disk)),
      .disk = disk,
    };

    r = export_add (s->live_exports, &options, err);
    if (r < 0)
      return r;
  }
  return 0;
}

/* An NBD server over the sockets of one kind, if there are any. */
static int
start_nbd_server (struct service *s, enum service_listener kind,
                  struct nbd_server **ret, struct error *err)
{
  const struct nbd_server_options options = {
    .exports = service_exports (s, kind), .tls = s->tls,
    .role = kind == SERVICE_BACKUP ? TLS_ROLE_BACKUP : TLS_ROLE_GUEST,
    .max_connections = s->max_connections,
  };
  size_t i;
  int r, fd;

  if (!listeners_has (s->listeners, kind))
    return 0;
  r = nbd_server_new (&options, ret, err);
  for (i = 0; i < listeners_nr (s->listeners) && r == 0; i++) {
    fd = listeners_take_fd (s->listeners, i, kind);
    if (fd >= 0)
      r = nbd_server_add_socket (*ret, fd, err);
  }
  return r < 0 ? r : nbd_server_start (*ret, err);
}

static int
start_qmp_server (struct service *s, struct error *err)
{
  size_t i;
  int r, fd;

  r = qmp_server_new (s, s->max_connections, &s->qmp);
  if (r < 0)
    return error_set_errno (err, -r, "control server");
  for (i = 0; i < listeners_nr (s->listeners) && r == 0; i++) {
    fd = listeners_take_fd (s->listeners, i, SERVICE_CONTROL);
    if (fd >= 0)
      r = qmp_server_add_socket (s->qmp, fd, err);
  }
  return r;
}

static int
start_disks (struct service *s, struct error *err)
{
  size_t i;
  int r;

  for (i = 0; i < s->specs.disks.len; i++) {
    r = disk_start (s->specs.disks.ptr[i].disk);
    if (r < 0)
      return error_set_errno (err, -r, "disk '%.64s'",
                              s->specs.disks.ptr[i].options.name);
  }
  return 0;
}

/* No more events come from them. */
static void
stop_disks (struct service *s)
{
  size_t i;

  for (i = 0; i < s->specs.disks.len; i++)
    if (s->specs.disks.ptr[i].disk)
      disk_stop (s->specs.disks.ptr[i].disk);
  for (i = 0; s->nodes && i < nodes_nr_disks (s->nodes); i++)
    disk_stop (nodes_disk (s->nodes, i));
}

int
service_start (struct service *s, struct error *err)
{
  static const struct session_ops ops = {
    .started = session_started,
    .ending = session_ending,
    .ended = session_ended,
  };
  static const struct job_ops job_ops = { .event = job_event };
  int r;

  r = start_disks (s, err);
  if (r == 0)
    r = add_live_exports (s, err);
  if (r == 0 && listeners_has (s->listeners, SERVICE_CONTROL))
    r = start_qmp_server (s, err);
  if (r < 0)
    return r;
  r = session_manager_new (&ops, s, &s->sessions);
  if (r == 0)
    r = job_manager_new (&job_ops, s, &s->jobs);
  if (r < 0)
    return error_set_errno (err, -r, "session manager");
  r = start_nbd_server (s, SERVICE_LIVE, &s->live_server, err);
  if (r == 0)
    r = start_nbd_server (s, SERVICE_BACKUP, &s->backup_server, err);
  if (r == 0 && s->qmp)
    r = qmp_server_start (s->qmp, err);
  if (r == 0)
    log_info ("serving %zu disks on %zu sockets", s->specs.disks.len,
              listeners_nr (s->listeners));
  return r;
}

static int
close_disks (struct service *s)
{
  size_t i;
  int r, ret = 0;

  for (i = 0; i < s->specs.disks.len; i++) {
    struct disk_spec *spec = &s->specs.disks.ptr[i];

    if (spec->disk) {
      export_remove (s->live_exports, spec->options.name);
      r = disk_close (spec->disk);
      if (r < 0) {
        log_error ("disk '%s': cannot write back: %s", spec->options.name,
                   strerror (-r));
        ret = r;
      }
    }
  }
  return ret;
}

int
service_free (struct service *s)
{
  int ret, r;

  if (s == NULL)
    return 0;
  if (s->qmp)
    qmp_server_stop (s->qmp);
  job_manager_free (s->jobs);
  if (s->sessions)
    session_manager_free (s->sessions);
  block_exports_free (s->block_exports);
  nbd_server_free (s->backup_server);
  nbd_server_free (s->live_server);
  stop_disks (s);
  qmp_server_free (s->qmp);
  ret = nodes_free (s->nodes);
  r = close_disks (s);
  ret = ret ? ret : r;
  if (s->backup_exports)
    export_table_free (s->backup_exports);
  if (s->live_exports)
    export_table_free (s->live_exports);
  listeners_free (s->listeners);
  tls_objects_free (s->tls_objects);
  server_tls_free (s->tls);
  specs_free (&s->specs);
  free (s->scratch_dir);
  if (s->quit_fd >= 0)
    close (s->quit_fd);
  free (s);
  return ret;
}

int
service_quit_fd (struct service *s)
{
  return s->quit_fd;
}

void
service_request_quit (struct service *s)
{
  eventfd_write (s->quit_fd, 1);
}

size_t
service_nr_disks (const struct service *s)
{
  return s->specs.disks.len;
}

struct disk *
service_disk (struct service *s, size_t i)
{
  assert (i < s->specs.disks.len);
  return s->specs.disks.ptr[i].disk;
}

struct disk *
service_find_disk (struct service *s, const char *name)
{
  struct disk_spec *spec = specs_find_disk (&s->specs, name);

  return spec ? spec->disk : NULL;
}

bool
service_has_live_listener (const struct service *s)
{
  return listeners_has (s->listeners, SERVICE_LIVE);
}

void
service_send_event (struct service *s, const char *name, json_t *data)
{
  if (s->qmp)
    qmp_event (s->qmp, name, data);
}

void
service_disk_defaults (struct service *s, struct disk_options *ret)
{
  *ret = (struct disk_options) {
    .scratch_dir = s->scratch_dir, .scratch_limit = s->scratch_limit,
    .on_inconsistent = bitmap_inconsistent, .opaque = s,
  };
}

struct block_exports *
service_block_exports (struct service *s)
{
  return s->block_exports;
}

struct nodes *
service_nodes (struct service *s)
{
  return s->nodes;
}

struct job_manager *
service_jobs (struct service *s)
{
  return s->jobs;
}

struct session_manager *
service_sessions (struct service *s)
{
  return s->sessions;
}

const struct server_tls *
service_tls (const struct service *s)
{
  return s->tls;
}

struct tls_objects *
service_tls_objects (struct service *s)
{
  return s->tls_objects;
}

struct export_table *
service_exports (struct service *s, enum service_listener kind)
{
  return kind == SERVICE_BACKUP ? s->backup_exports : s->live_exports;
}

char *
service_backup_uri (struct service *s, const char *export_name,
                    int control_fd, bool is_tls, struct error *err)
{
  is_tls |= server_tls_mode (s->tls) == TLS_REQUIRE;
  return listeners_backup_uri (s->listeners, export_name, control_fd, is_tls,
                               err);
}
