/* SPDX-License-Identifier: BSD-3-Clause */
/* Queries in QEMU's shape, and quit.
 *
 * Called by the thread of a control connection, without locks.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "disk.h"
#include "nodes-private.h"
#include "point.h"
#include "qmp.h"
#include "qmp-args.h"
#include "store.h"

static const struct qmp_arg no_args[] = { { NULL } };

/* The value that a handler returns: NULL means that there was no memory. */
static int
finish (json_t *value, json_t **ret, struct error *err)
{
  if (value == NULL)
    return error_set_errno (err, ENOMEM, "reply");
  *ret = value;
  return 0;
}

static const char *
status_name (const struct dirty_info *info)
{
  switch (info->state) {
  case DIRTY_RECORDING: return "active";
  case DIRTY_DISABLED: return "disabled";
  case DIRTY_FROZEN: return "frozen";
  case DIRTY_INCONSISTENT: return "inconsistent";
  }
  return "inconsistent";
}

/* Returns a new reference, or NULL. */
static json_t *
bitmap_to_json (const struct dirty_info *info)
{
  char base[POINT_ID_STRING_SIZE];
  json_t *o;
  int r = 0;

  o = json_pack ("{sosIsIsbsbsbss}", "name", qmp_text (info->name),
                 "count", (json_int_t) info->dirty_bytes,
                 "granularity", (json_int_t) info->granularity,
                 "recording", info->is_recording, "busy", info->is_busy,
                 "persistent", info->is_persistent,
                 "status", status_name (info));
  if (o && info->state == DIRTY_INCONSISTENT) {
    r |= json_object_set_new (o, "inconsistent", json_true ());
    r |= json_object_set_new (o, "reason", qmp_text (info->reason));
  }
  if (o && info->over_estimate > 0)
    r |= json_object_set_new (o, "over-estimate",
                              json_integer ((json_int_t)
                                            info->over_estimate));
  if (o && !point_id_is_none (&info->base)) {
    point_id_format (&info->base, base);
    r |= json_object_set_new (o, "base", json_string (base));
  }
  if (r == 0)
    return o;
  json_decref (o);
  return NULL;
}

static json_t *
bitmaps_to_json (struct disk *disk)
{
  json_t *array = json_array ();
  struct dirty_info *infos;
  size_t nr, i;
  int r = 0;

  if (array == NULL || dirty_list (disk_dirty (disk), &infos, &nr) < 0) {
    json_decref (array);
    return NULL;
  }
  for (i = 0; i < nr; i++)
    r |= json_array_append_new (array, bitmap_to_json (&infos[i]));
  dirty_infos_free (infos, nr);
  if (r == 0)
    return array;
  json_decref (array);
  return NULL;
}

/* The store of a disk that has one.  NULL if there is no memory. */
static json_t *
store_to_json (struct store *store)
{
  char failure[STORE_REASON_SIZE];
  struct store_info info;
  json_t *o;
  int r = 0;

  store_get_info (store, &info);
  store_failure (store, failure);
  o = json_pack ("{sosIsIsIsb}", "filename", qmp_text (store_path (store)),
                 "region-size", (json_int_t) info.region_size,
                 "active-regions", (json_int_t) info.nr_active,
                 "max-over-estimate", (json_int_t) info.over_estimate,
                 "failed", store_has_failed (store));
  if (o && failure[0])
    r = json_object_set_new (o, "reason", qmp_text (failure));
  if (r == 0)
    return o;
  json_decref (o);
  return NULL;
}

/* If the disk has one. */
static int
add_store (json_t *o, struct disk *disk)
{
  struct store *store = disk_ref_store (disk);
  int r;

  if (store == NULL)
    return 0;
  r = json_object_set_new (o, "store", store_to_json (store));
  store_unref (store);
  return r;
}

static int
backing_depth (const struct blk *blk)
{
  int depth = 0;

  for (; blk->backing; blk = blk->backing)
    depth++;
  return depth;
}

/* A disk from the start is an image, over whatever protocol. */
static const char *
format_of (const struct node *n)
{
  if (!n->is_fixed)
    return n->driver;
  return strcmp (n->driver, "qcow2") == 0 ? "qcow2" : "raw";
}

/* What QEMU calls BlockDeviceInfo.  NULL if there is no memory. */
static json_t *
node_to_json (struct node *n)
{
  struct blk *node = n->blk;
  const char *file = node->filename ? node->filename : "";
  const char *format = format_of (n);
  json_t *o, *image, *bitmaps = n->disk ? bitmaps_to_json (n->disk)
    : json_array ();
  int r = 0;

  if (bitmaps == NULL)
    return NULL;
  image = json_pack ("{sosssI}", "filename", qmp_text (file),
                     "format", format,
                     "virtual-size", (json_int_t) blk_size (node));
  if (image && node->cluster_size)
    r |= json_object_set_new (image, "cluster-size",
                              json_integer (node->cluster_size));
  o = json_pack ("{sosssssbsbsssisisisisisisisis{sbsbsb}so}",
                 "file", qmp_text (file), "node-name", n->name,
                 "drv", format, "ro", blk_is_read_only (node) ? 1 : 0,
                 "encrypted", 0, "detect_zeroes", "off",
                 "backing_file_depth", backing_depth (node),
                 "bps", 0, "bps_rd", 0, "bps_wr", 0,
                 "iops", 0, "iops_rd", 0, "iops_wr", 0,
                 "write_threshold", 0,
                 "cache", "writeback", 1, "direct", 0, "no-flush", 0,
                 "image", image);
  if (o && json_array_size (bitmaps) > 0)
    r |= json_object_set (o, "dirty-bitmaps", bitmaps);
  json_decref (bitmaps);
  if (o && n->disk)
    r |= add_store (o, n->disk);
  if (r == 0)
    return o;
  json_decref (o);
  return NULL;
}

static json_t *
device_to_json (struct node *n)
{
  json_t *inserted = node_to_json (n);

  if (inserted == NULL)
    return NULL;
  return json_pack ("{sssssssbsbso}", "device", n->name, "qdev", "",
                    "type", "unknown", "removable", 0, "locked", 0,
                    "inserted", inserted);
}

/* An array with one value for each node that is wanted and that the caller may
 * know of.
 */
static int
for_each_node (struct qmp_call *call, bool only_disks,
               json_t *(*to_json) (struct node *n), json_t **ret,
               struct error *err)
{
  const struct node_vector *list = &service_nodes (call->service)->list;
  json_t *array = json_array ();
  size_t i;
  int r = 0;

  for (i = 0; array && i < list->len; i++)
    if ((!only_disks || list->ptr[i]->parent == NULL) &&
        qmp_may_back_up (call, list->ptr[i]->name))
      r |= json_array_append_new (array, to_json (list->ptr[i]));
  if (r) {
    json_decref (array);
    array = NULL;
  }
  return finish (array, ret, err);
}

static int
query_block (struct qmp_call *call, json_t **ret, struct error *err)
{
  if (qmp_args_check (call->args, NULL, no_args, err) < 0)
    return -EINVAL;
  return for_each_node (call, true, device_to_json, ret, err);
}

static int
query_named_block_nodes (struct qmp_call *call, json_t **ret,
                         struct error *err)
{
  static const struct qmp_arg table[] = {
    { "flat", QMP_BOOL, false },
    { NULL }
  };

  if (qmp_args_check (call->args, NULL, table, err) < 0)
    return -EINVAL;
  return for_each_node (call, false, node_to_json, ret, err);
}

static int
query_version (struct qmp_call *call, json_t **ret, struct error *err)
{
  if (qmp_args_check (call->args, NULL, no_args, err) < 0)
    return -EINVAL;
  return finish (qmp_version (), ret, err);
}

static int
query_commands (struct qmp_call *call, json_t **ret, struct error *err)
{
  const struct qmp_command *const *table;
  const struct qmp_command *command;
  json_t *array;
  int r = 0;

  if (qmp_args_check (call->args, NULL, no_args, err) < 0)
    return -EINVAL;
  array = json_pack ("[{ss}]", "name", "qmp_capabilities");
  for (table = qmp_command_tables; *table; table++)
    for (command = *table; command->name; command++)
      r |= json_array_append_new (array, json_pack ("{ss}", "name",
                                                    command->name));
  if (r) {
    json_decref (array);
    array = NULL;
  }
  return finish (array, ret, err);
}

static int
quit (struct qmp_call *call, json_t **ret, struct error *err)
{
  if (qmp_args_check (call->args, NULL, no_args, err) < 0)
    return -EINVAL;
  service_request_quit (call->service);
  return 0;
}

const struct qmp_command qmp_query_commands[] = {
  { "query-block", query_block },
  { "query-named-block-nodes", query_named_block_nodes },
  { "query-version", query_version },
  { "query-commands", query_commands },
  { "quit", quit },
  { NULL }
};
