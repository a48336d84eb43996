/* SPDX-License-Identifier: BSD-3-Clause */
/* Exports and the NBD server at run time, with QEMU's arguments and messages:
 * block-export-add and -del, query-block-exports, nbd-server-*.
 *
 * Called by the thread of a control connection, without locks.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block-export.h"
#include "cleanup.h"
#include "qmp.h"
#include "qmp-args.h"
#include "tls-objects.h"

static const char *const modes[] = { "safe", "hard", NULL };

/* QEMU's rule for ids. */
static bool
is_id (const char *s)
{
  static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abcdefghijklmnopqrstuvwxyz0123456789-_.";

  return strcspn (s, "0123456789-_.") > 0 && *s &&
    strspn (s, allowed) == strlen (s);
}

static int
check_strings (const struct block_export_options *o, struct error *err)
{
  if (strlen (o->name) > EXPORT_NAME_MAX)
    return error_set (err, EINVAL, "export name '%.64s...' too long",
                      o->name);
  if (o->description && strlen (o->description) > EXPORT_NAME_MAX)
    return error_set (err, EINVAL, "description '%.64s...' too long",
                      o->description);
  return 0;
}

static int
add_export (struct qmp_call *call, const struct block_export_options *o,
            struct error *err)
{
  struct block_exports *be = service_block_exports (call->service);

  if (o->is_writable && blk_is_read_only (disk_blk (o->disk)))
    return error_set (err, EPERM, "Cannot export read-only node as writable");
  if (!block_exports_are_served (be))
    return error_set (err, ENOTCONN, "NBD server not running");
  if (check_strings (o, err) < 0)
    return -EINVAL;
  return block_export_add (be, o, err);
}

/* One of "bitmaps": a name, or {node, name}. */
static int
parse_bitmap (struct qmp_call *call, struct disk *disk, json_t *item,
              size_t i, struct block_export_bitmap *ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "node", QMP_STRING, true },
    { "name", QMP_STRING, true },
    { NULL }
  };
  char path[40];

  snprintf (path, sizeof path, "bitmaps[%zu]", i);
  *ret = (struct block_export_bitmap) {
    .disk = disk, .name = json_string_value (item),
  };
  if (ret->name)
    return 0;
  if (!json_is_object (item))
    return error_set (err, EINVAL, "Invalid parameter type for '%s', "
                      "expected: BlockDirtyBitmapOrStr", path);
  if (qmp_args_check (item, path, table, err) < 0)
    return -EINVAL;
  ret->name = qmp_args_string (item, "name", NULL);
  ret->disk = qmp_find_disk (call, qmp_args_string (item, "node", NULL),
                             err);
  return ret->disk ? 0 : -ENOENT;
}

static int
parse_bitmaps (struct qmp_call *call, struct block_export_options *o,
               struct block_export_bitmap **ret, struct error *err)
{
  json_t *array = json_object_get (call->args, "bitmaps");
  size_t i, nr = json_array_size (array);
  struct block_export_bitmap *list = calloc (nr + 1, sizeof *list);
  int r = 0;

  if (list == NULL)
    return error_set_errno (err, ENOMEM, "bitmaps");
  *ret = list;
  o->bitmaps = list;
  o->nr_bitmaps = nr;
  for (i = 0; i < nr && r == 0; i++)
    r = parse_bitmap (call, o->disk, json_array_get (array, i), i, &list[i],
                      err);
  return r;
}

static const char *const types[] = { "nbd", NULL };

static const struct qmp_arg export_table[] = {
  { "type", QMP_ENUM, true, types },
  { "id", QMP_STRING, true },
  { "fixed-iothread", QMP_BOOL, false },
  { "iothread", QMP_STRING, false },
  { "node-name", QMP_STRING, true },
  { "writable", QMP_BOOL, false },
  { "writethrough", QMP_BOOL, false },
  { "name", QMP_STRING, false },
  { "description", QMP_STRING, false },
  { "bitmaps", QMP_ARRAY, false },
  { "allocation-depth", QMP_BOOL, false },
  { NULL }
};

static int
cmd_export_add (struct qmp_call *call, json_t **ret, struct error *err)
{
  CLEANUP_FREE struct block_export_bitmap *bitmaps = NULL;
  struct block_export_options o = { .id = NULL };
  const char *iothread;
  json_t *args = call->args;

  if (qmp_args_check (args, NULL, export_table, err) < 0)
    return -EINVAL;
  o.id = qmp_args_string (args, "id", NULL);
  o.node_name = qmp_args_string (args, "node-name", NULL);
  o.name = qmp_args_string (args, "name", o.node_name);
  o.description = qmp_args_string (args, "description", NULL);
  o.is_writable = qmp_args_bool (args, "writable", false);
  if (!is_id (o.id))
    return error_set (err, EINVAL, "Invalid block export id");
  if (block_export_exists (service_block_exports (call->service), o.id))
    return error_set (err, EEXIST, "Block export id '%s' is already in use",
                      o.id);
  o.disk = nodes_find_disk (service_nodes (call->service), o.node_name);
  if (o.disk == NULL)
    return error_set (err, ENOENT, "Cannot find device='' nor node-name='%s'",
                      o.node_name);
  iothread = qmp_args_string (args, "iothread", NULL);
  if (iothread)
    return error_set (err, ENOENT, "iothread \"%s\" not found", iothread);
  if (qmp_args_bool (args, "writethrough", false))
    return error_set (err, ENOTSUP, "Parameter 'writethrough' is not "
                      "supported: clients flush, or ask for FUA");
  if (parse_bitmaps (call, &o, &bitmaps, err) < 0)
    return -EINVAL;
  return add_export (call, &o, err);
}

static bool
is_safe_mode (json_t *args)
{
  return strcmp (qmp_args_string (args, "mode", "safe"), "safe") == 0;
}

static int
cmd_export_del (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "id", QMP_STRING, true },
    { "mode", QMP_ENUM, false, modes },
    { NULL }
  };

  if (qmp_args_check (call->args, NULL, table, err) < 0)
    return -EINVAL;
  return block_export_remove (service_block_exports (call->service),
                              qmp_args_string (call->args, "id", NULL),
                              is_safe_mode (call->args), err);
}

static int
cmd_query_exports (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg no_args[] = { { NULL } };
  struct block_export_info *infos = NULL;
  json_t *array = json_array ();
  size_t i, nr = 0;
  int r = 0;

  if (qmp_args_check (call->args, NULL, no_args, err) < 0) {
    json_decref (array);
    return -EINVAL;
  }
  if (array == NULL ||
      block_export_list (service_block_exports (call->service), &infos, &nr)
      < 0)
    r = -1;
  for (i = 0; i < nr && r == 0; i++)
    r = json_array_append_new
      (array, json_pack ("{sssssssb}", "id", infos[i].id, "type", "nbd",
                         "node-name", infos[i].node_name, "shutting-down",
                         0));
  block_export_list_free (infos, nr);
  if (r) {
    json_decref (array);
    return error_set_errno (err, ENOMEM, "reply");
  }
  *ret = array;
  return 0;
}

/*---- nbd-server-* ----*/

static const char *const address_types[] = { "inet", "unix", NULL };

/* QEMU's SocketAddressLegacy: {type, data: {path} or {host, port}}. */
static int
parse_address (json_t *args, struct sock_address *ret, struct error *err)
{
  static const struct qmp_arg address_table[] = {
    { "type", QMP_ENUM, true, address_types },
    { "data", QMP_OBJECT, true },
    { NULL }
  };
  static const struct qmp_arg unix_table[] = {
    { "path", QMP_STRING, true },
    { NULL }
  };
  static const struct qmp_arg inet_table[] = {
    { "host", QMP_STRING, true },
    { "port", QMP_STRING, true },
    { NULL }
  };
  json_t *addr = json_object_get (args, "addr"), *data;
  const char *s;

  if (qmp_args_check (addr, "addr", address_table, err) < 0)
    return -EINVAL;
  data = json_object_get (addr, "data");
  ret->is_unix = strcmp (qmp_args_string (addr, "type", ""), "unix") == 0;
  if (qmp_args_check (data, "addr.data", ret->is_unix ? unix_table
                      : inet_table, err) < 0)
    return -EINVAL;
  s = qmp_args_string (data, ret->is_unix ? "path" : "host", NULL);
  if (strlen (s) >= (ret->is_unix ? sizeof ret->path : sizeof ret->host))
    return error_set (err, EINVAL, ret->is_unix
                      ? "UNIX socket path '%.100s' is too long"
                      : "host name '%.100s' is too long", s);
  strcpy (ret->is_unix ? ret->path : ret->host, s);
  if (ret->is_unix)
    return 0;
  s = qmp_args_string (data, "port", NULL);
  if (strlen (s) >= sizeof ret->port)
    return error_set (err, EINVAL, "port '%.40s...' is too long", s);
  strcpy (ret->port, s);
  return 0;
}

static int
cmd_server_start (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "addr", QMP_OBJECT, true },
    { "tls-creds", QMP_STRING, false },
    { "tls-authz", QMP_STRING, false },
    { "max-connections", QMP_UINT32, false },
    { NULL }
  };
  struct sock_address addr = { .is_unix = false };
  struct tls_creds *creds = NULL;
  const char *tls;
  int r;

  if (qmp_args_check_members (call->args, NULL, table, err) < 0 ||
      parse_address (call->args, &addr, err) < 0 ||
      qmp_args_check (call->args, NULL, table, err) < 0)
    return -EINVAL;
  if (qmp_args_string (call->args, "tls-authz", NULL))
    return error_set (err, ENOTSUP, "Parameter 'tls-authz' is not supported");
  tls = qmp_args_string (call->args, "tls-creds", NULL);
  if (tls && tls_objects_find (service_tls_objects (call->service), tls,
                               &creds, err) < 0)
    return -ENOENT;
  r = block_exports_start_server
    (service_block_exports (call->service), &addr,
     (unsigned) qmp_args_uint (call->args, "max-connections", 0), creds, err);
  tls_creds_free (creds);
  return r;
}

static int
cmd_server_stop (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg no_args[] = { { NULL } };

  if (qmp_args_check (call->args, NULL, no_args, err) < 0)
    return -EINVAL;
  return block_exports_stop_server (service_block_exports (call->service),
                                    err);
}

static int
cmd_server_add (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "device", QMP_STRING, true },
    { "name", QMP_STRING, false },
    { "description", QMP_STRING, false },
    { "writable", QMP_BOOL, false },
    { "bitmap", QMP_STRING, false },
    { NULL }
  };
  struct block_export_bitmap bitmap;
  struct block_export_options o = { .bitmaps = &bitmap };
  json_t *args = call->args;

  if (qmp_args_check (args, NULL, table, err) < 0)
    return -EINVAL;
  o.node_name = qmp_args_string (args, "device", NULL);
  o.id = o.name = qmp_args_string (args, "name", o.node_name);
  o.description = qmp_args_string (args, "description", NULL);
  o.disk = nodes_find_device (service_nodes (call->service), o.node_name,
                              err);
  if (o.disk == NULL)
    return -ENOENT;
  if (block_export_exists (service_block_exports (call->service), o.id))
    return error_set (err, EEXIST, "Block export id '%s' is already in use",
                      o.id);
  o.is_writable = qmp_args_bool (args, "writable", false) &&
    !blk_is_read_only (disk_blk (o.disk));
  bitmap = (struct block_export_bitmap) {
    .disk = o.disk, .name = qmp_args_string (args, "bitmap", NULL),
  };
  o.nr_bitmaps = bitmap.name ? 1 : 0;
  return add_export (call, &o, err);
}

static int
cmd_server_remove (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "name", QMP_STRING, true },
    { "mode", QMP_ENUM, false, modes },
    { NULL }
  };

  if (qmp_args_check (call->args, NULL, table, err) < 0)
    return -EINVAL;
  return block_export_remove (service_block_exports (call->service),
                              qmp_args_string (call->args, "name", NULL),
                              is_safe_mode (call->args), err);
}

const struct qmp_command qmp_export_commands[] = {
  { "block-export-add", cmd_export_add },
  { "block-export-del", cmd_export_del },
  { "query-block-exports", cmd_query_exports },
  { "nbd-server-start", cmd_server_start },
  { "nbd-server-stop", cmd_server_stop },
  { "nbd-server-add", cmd_server_add },
  { "nbd-server-remove", cmd_server_remove },
  { NULL }
};
