/* SPDX-License-Identifier: BSD-3-Clause */
/* The commands of pull backups: backup-begin, -attach, -end, query-backups.
 *
 * Called by the thread of a control connection, without locks.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "point.h"
#include "qmp.h"
#include "qmp-args.h"
#include "range.h"
#include "session.h"

#define MIN_CLUSTER_SIZE 512
#define MAX_CLUSTER_SIZE (64 * 1024 * 1024)

/* As docs/control.md names them; in the order of enum session_mode. */
static const char *const mode_names[] =
  { "auto", "incremental", "full", "copy", NULL };
static const char *const view_names[] = { "full", "dirty", NULL };

/* What backup-begin takes at the top and for each disk. */
#define DISK_ARGS \
  { "bitmap", QMP_STRING, false }, \
  { "mode", QMP_STRING, false }, \
  { "view", QMP_STRING, false }, \
  { "cluster-size", QMP_UINT64, false }

static const struct qmp_arg begin_table[] = {
  { "disks", QMP_ARRAY, false },
  DISK_ARGS,
  { "lease", QMP_UINT64, false },
  { "scratch-dir", QMP_STRING, false },
  { "scratch-limit", QMP_UINT64, false },
  { "partial-ok", QMP_BOOL, false },
  { NULL }
};

static const struct qmp_arg disk_table[] = {
  { "disk", QMP_STRING, true },
  DISK_ARGS,
  { NULL }
};

/* Members of args override what *request has. */
static int
parse_disk_args (const json_t *args, const char *path,
                 struct session_disk_request *request, struct error *err)
{
  const char *mode = qmp_args_string (args, "mode", NULL);
  const char *view = qmp_args_string (args, "view", NULL);
  uint64_t size;
  int r;

  request->bitmap = qmp_args_string (args, "bitmap", request->bitmap);
  if (request->bitmap && *request->bitmap == '\0')
    return error_set (err, EINVAL, "Bitmap name cannot be empty");
  if (mode) {
    r = qmp_args_choice (path, "mode", mode, mode_names, err);
    if (r < 0)
      return r;
    request->mode = (enum session_mode) r;
  }
  if (view) {
    r = qmp_args_choice (path, "view", view, view_names, err);
    if (r < 0)
      return r;
    request->is_dirty_view = r == 1;
  }
  size = qmp_args_uint (args, "cluster-size", request->cluster_size);
  if (size && (!is_power_of_2 (size) || size < MIN_CLUSTER_SIZE ||
               size > MAX_CLUSTER_SIZE))
    return error_set (err, EINVAL, "Parameter '%s%scluster-size' must be 0 or "
                      "a power of 2 from %d to %d", path ? path : "",
                      path ? "." : "", MIN_CLUSTER_SIZE, MAX_CLUSTER_SIZE);
  request->cluster_size = size;
  return 0;
}

/* One member of "disks". */
static int
parse_disk (struct qmp_call *call, const json_t *item, size_t i,
            struct session_disk_request *requests, struct error *err)
{
  struct session_disk_request *request = &requests[i];
  char path[40];
  size_t j;

  snprintf (path, sizeof path, "disks[%zu]", i);
  if (!json_is_object (item))
    return error_set (err, EINVAL, "Invalid parameter type for '%s', "
                      "expected: object", path);
  if (qmp_args_check (item, path, disk_table, err) < 0)
    return -EINVAL;
  request->disk = qmp_find_disk (call, qmp_args_string (item, "disk", NULL),
                                 err);
  if (request->disk == NULL)
    return -ENOENT;
  for (j = 0; j < i; j++)
    if (requests[j].disk == request->disk)
      return error_set (err, EINVAL, "Disk '%s' is named twice",
                        disk_name (request->disk));
  if (parse_disk_args (item, path, request, err) < 0)
    return -EINVAL;
  /* The default is for disks that need one. */
  if (request->mode == SESSION_COPY && !json_object_get (item, "bitmap"))
    request->bitmap = NULL;
  return 0;
}

/* *requests has room for all disks of the process, and one more. */
static int
parse_disks (struct qmp_call *call, struct session_disk_request *requests,
             size_t *ret_nr, struct error *err)
{
  json_t *disks = json_object_get (call->args, "disks");
  struct session_disk_request defaults = { .mode = SESSION_AUTO };
  struct nodes *nodes = service_nodes (call->service);
  size_t nr_disks = nodes_nr_disks (nodes), nr, n = 0, i;
  int r;

  r = parse_disk_args (call->args, NULL, &defaults, err);
  if (r < 0)
    return r;
  nr = disks ? json_array_size (disks) : nr_disks;
  if (nr == 0)
    return error_set (err, EINVAL, disks ? "Parameter 'disks' must not be empty"
                      : "there is no disk");
  for (i = 0; i < nr; i++) {
    /* Disks are named at most once, so one too many is an error there. */
    assert (i <= nr_disks);
    requests[n] = defaults;
    if (disks) {
      r = parse_disk (call, json_array_get (disks, i), i, requests, err);
      if (r < 0)
        return r;
    }
    else
      requests[n].disk = nodes_disk (nodes, i);
    /* All disks are all that the caller may know of. */
    if (!qmp_may_back_up (call, disk_name (requests[n].disk)))
      continue;
    if (requests[n].mode != SESSION_COPY && requests[n].bitmap == NULL)
      return error_set (err, EINVAL, "Parameter 'bitmap' is missing for disk "
                        "'%s' (only mode 'copy' needs none)",
                        disk_name (requests[n].disk));
    n++;
  }
  if (n == 0)
    return error_set (err, EACCES, "There is no disk that '%.100s' may back "
                      "up", tls_peer (call->tls));
  *ret_nr = n;
  return 0;
}

static int
parse_request (struct qmp_call *call, struct session_request *request,
               struct error *err)
{
  uint64_t lease;

  lease = qmp_args_uint (call->args, "lease", SESSION_DEFAULT_LEASE);
  if (lease == 0 || lease > SESSION_MAX_LEASE)
    return error_set (err, EINVAL, "Parameter 'lease' must be from 1 to %d "
                      "seconds", SESSION_MAX_LEASE);
  request->lease = (unsigned) lease;
  request->scratch_dir = qmp_args_string (call->args, "scratch-dir", NULL);
  if (request->scratch_dir && request->scratch_dir[0] != '/')
    return error_set (err, EINVAL, "Parameter 'scratch-dir' must be an "
                      "absolute path");
  request->scratch_limit = qmp_args_uint (call->args, "scratch-limit", 0);
  request->is_partial_ok = qmp_args_bool (call->args, "partial-ok", false);
  return 0;
}

static const char *
view_name (const struct session_disk *d)
{
  return view_names[d->is_dirty_view ? 1 : 0];
}

static json_t *
contexts_to_json (const struct session_disk *d)
{
  json_t *array = json_pack ("[s]", "base:allocation");
  CLEANUP_FREE char *name = NULL;

  if (array == NULL || d->mode != SESSION_INCREMENTAL)
    return array;
  if (asprintf (&name, "qemu:dirty-bitmap:%s", d->bitmap_name) >= 0 &&
      json_array_append_new (array, qmp_text (name)) == 0)
    return array;
  json_decref (array);
  return NULL;
}

/* Members that depend on the mode.  0, or else. */
static int
add_bitmap_members (json_t *o, const struct session_disk *d)
{
  char base[POINT_ID_STRING_SIZE];
  int r = 0;

  if (d->bitmap_name) {
    r |= json_object_set_new (o, "bitmap", qmp_text (d->bitmap_name));
    r |= json_object_set_new (o, "granularity",
                              json_integer ((json_int_t) d->granularity));
  }
  if (d->mode == SESSION_INCREMENTAL) {
    point_id_format (&d->base, base);
    r |= json_object_set_new (o, "base", json_string (base));
  }
  return r;
}

/* Members that only query-backups has.  0, or else. */
static int
add_progress_members (json_t *o, const struct session_disk *d)
{
  struct cbw_view_info info;
  int r = 0;

  cbw_view_get_info (d->view, &info);
  r |= json_object_set_new (o, "scratch-bytes",
                            json_integer ((json_int_t) info.scratch_bytes));
  r |= json_object_set_new (o, "copied-bytes",
                            json_integer ((json_int_t) info.copied_bytes));
  if (info.error)
    r |= json_object_set_new (o, "error",
                              json_string (strerror (-info.error)));
  return r;
}

/* NULL with *err set on failure. */
static json_t *
disk_to_json (struct qmp_call *call, const struct session_disk *d,
              const char *point, bool is_query, struct error *err)
{
  CLEANUP_FREE char *uri = NULL;
  json_t *o;
  int r;

  uri = service_backup_uri (call->service, d->export_name, call->fd,
                            call->tls != NULL, err);
  if (uri == NULL)
    return NULL;
  o = json_pack ("{sssssssosIsIsssossss}", "disk", disk_name (d->disk),
                 "export", d->export_name, "uri", uri,
                 "contexts", contexts_to_json (d),
                 "dirty-bytes", (json_int_t) d->dirty_bytes,
                 "size", (json_int_t) d->size,
                 "mode", mode_names[d->mode], "why", qmp_text (d->why),
                 "point", point, "view", view_name (d));
  r = o ? add_bitmap_members (o, d) : -1;
  if (r == 0 && is_query)
    r = add_progress_members (o, d);
  if (r == 0)
    return o;
  json_decref (o);
  error_set_errno (err, ENOMEM, "reply");
  return NULL;
}

/* The answer of backup-begin and -attach, or a member of query-backups'. */
static json_t *
session_to_json (struct qmp_call *call, struct session *s, bool is_query,
                 struct error *err)
{
  char id[POINT_ID_STRING_SIZE];
  json_t *array = json_array (), *o;
  const struct session_disk *disks;
  size_t nr, i;
  int r = array ? 0 : error_set_errno (err, ENOMEM, "reply");

  point_id_format (session_id (s), id);
  disks = session_disks (s, &nr);
  for (i = 0; i < nr && r == 0; i++) {
    o = disk_to_json (call, &disks[i], id, is_query, err);
    if (o == NULL)
      r = -EIO;
    else if (json_array_append_new (array, o) < 0)
      r = error_set_errno (err, ENOMEM, "reply");
  }
  if (r < 0) {
    json_decref (array);
    return NULL;
  }
  o = json_pack ("{sssIsI}", "id", id, "time", (json_int_t) session_time (s),
                 "lease", (json_int_t) session_lease (s));
  if (o && is_query &&
      json_object_set_new (o, "lease-left",
                           json_integer (session_lease_left (s))) < 0)
    r = -ENOMEM;
  if (o == NULL || json_object_set (o, "disks", array) < 0)
    r = -ENOMEM;
  json_decref (array);
  if (r == 0)
    return o;
  json_decref (o);
  error_set_errno (err, ENOMEM, "reply");
  return NULL;
}

static int
backup_begin (struct qmp_call *call, json_t **ret, struct error *err)
{
  CLEANUP_FREE struct session_disk_request *disks = NULL;
  CLEANUP_FREE char *probe = NULL;
  struct session_request request = { .disks = NULL };
  struct session *s;
  int r;

  if (qmp_args_check (call->args, NULL, begin_table, err) < 0 ||
      parse_request (call, &request, err) < 0)
    return -EINVAL;
  disks = calloc (nodes_nr_disks (service_nodes (call->service)) + 1,
                  sizeof *disks);
  if (disks == NULL)
    return error_set_errno (err, ENOMEM, "disks");
  r = parse_disks (call, disks, &request.nr_disks, err);
  if (r < 0)
    return r;
  request.disks = disks;
  /* Without a backup listener nobody could read the views. */
  probe = service_backup_uri (call->service, "", call->fd, call->tls != NULL,
                              err);
  if (probe == NULL)
    return -ENOTCONN;

  r = session_begin (service_sessions (call->service), &request, &s, err);
  if (r < 0)
    return r;
  *ret = session_to_json (call, s, false, err);
  /* The client would not know the id. */
  if (*ret == NULL)
    session_end (service_sessions (call->service), session_id (s), false,
                 NULL);
  session_unref (s);
  return *ret ? 0 : -ENOMEM;
}

static int
parse_id (struct qmp_call *call, struct point_id *ret, struct error *err)
{
  const char *id = qmp_args_string (call->args, "id", NULL);

  if (point_id_parse (id, ret) < 0)
    return error_set (err, EINVAL, "Parameter 'id' must be 32 hexadecimal "
                      "digits");
  return 0;
}

/* *err as docs/control.md says; of what the module below said only how the
 * session has ended, if it did say that.
 */
static int
not_found (struct qmp_call *call, struct error *err)
{
  const char *ended = strstr (err->msg, " has ended (");
  char how[64] = "";

  if (ended)
    snprintf (how, sizeof how, ": it%.50s", ended);
  call->error_class = "BackupNotFound";
  return error_set (err, ENOENT, "Backup '%s' not found%s",
                    qmp_args_string (call->args, "id", NULL), how);
}

/* Of disks that the caller may back up, all of them. */
static bool
is_own_session (const struct qmp_call *call, struct session *s)
{
  const struct session_disk *disks;
  size_t nr, i;

  disks = session_disks (s, &nr);
  for (i = 0; i < nr; i++)
    if (!qmp_may_back_up (call, disk_name (disks[i].disk)))
      return false;
  return true;
}

/* Is there a session called id that is somebody else's? */
static bool
is_foreign_session (struct qmp_call *call, const struct point_id *id)
{
  struct session *s;
  bool is_own;

  if (call->tls == NULL ||
      session_attach (service_sessions (call->service), id, &s, NULL) < 0)
    return false;
  is_own = is_own_session (call, s);
  session_unref (s);
  return !is_own;
}

static int
backup_attach (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "id", QMP_STRING, true },
    { NULL }
  };
  struct point_id id;
  struct session *s;
  int r;

  if (qmp_args_check (call->args, NULL, table, err) < 0 ||
      parse_id (call, &id, err) < 0)
    return -EINVAL;
  if (is_foreign_session (call, &id))
    return not_found (call, err);
  r = session_attach (service_sessions (call->service), &id, &s, err);
  if (r < 0)
    return r == -ENOENT ? not_found (call, err) : r;
  *ret = session_to_json (call, s, false, err);
  session_unref (s);
  return *ret ? 0 : -ENOMEM;
}

/* "keep", if it is there: an array of strings.  Theirs are borrowed. */
static int
parse_keep (const json_t *array, const char ***ret, struct error *err)
{
  size_t nr = json_array_size (array), i;

  *ret = calloc (nr + 1, sizeof **ret);
  if (*ret == NULL)
    return error_set_errno (err, ENOMEM, "keep");
  for (i = 0; i < nr; i++) {
    (*ret)[i] = json_string_value (json_array_get (array, i));
    if ((*ret)[i] == NULL)
      return error_set (err, EINVAL, "Invalid parameter type for 'keep[%zu]', "
                        "expected: string", i);
  }
  return 0;
}

static int
backup_end (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "id", QMP_STRING, true },
    { "success", QMP_BOOL, true },
    { "keep", QMP_ARRAY, false },
    { NULL }
  };
  CLEANUP_FREE const char **keep = NULL;
  const json_t *array;
  struct point_id id;
  int r;

  if (qmp_args_check (call->args, NULL, table, err) < 0 ||
      parse_id (call, &id, err) < 0)
    return -EINVAL;
  if (is_foreign_session (call, &id))
    return not_found (call, err);
  array = json_object_get (call->args, "keep");
  if (parse_keep (array, &keep, err) < 0)
    return -EINVAL;
  if (qmp_args_bool (call->args, "success", false))
    r = session_end_keep (service_sessions (call->service), &id, keep,
                          json_array_size (array), err);
  else
    r = session_end (service_sessions (call->service), &id, false, err);
  if (r == -ENOENT)
    return not_found (call, err);
  if (r == -EIO)
    call->error_class = "BackupBroken";
  return r;
}

static int
query_backups (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = { { NULL } };
  struct session **sessions;
  json_t *array, *o;
  size_t nr, i;
  int r;

  if (qmp_args_check (call->args, NULL, table, err) < 0)
    return -EINVAL;
  r = session_list (service_sessions (call->service), &sessions, &nr);
  if (r < 0)
    return error_set_errno (err, -r, "backups");
  array = json_array ();
  for (i = 0; i < nr && r == 0; i++) {
    if (!is_own_session (call, sessions[i]))
      continue;
    o = session_to_json (call, sessions[i], true, err);
    if (o == NULL)
      r = -EIO;
    else if (json_array_append_new (array, o) < 0)
      r = error_set_errno (err, ENOMEM, "reply");
  }
  session_list_free (sessions, nr);
  if (r == 0 && array == NULL)
    r = error_set_errno (err, ENOMEM, "reply");
  if (r < 0)
    json_decref (array);
  else
    *ret = array;
  return r;
}

const struct qmp_command qmp_backup_commands[] = {
  { "backup-begin", backup_begin },
  { "backup-attach", backup_attach },
  { "backup-end", backup_end },
  { "query-backups", query_backups },
  { NULL }
};
