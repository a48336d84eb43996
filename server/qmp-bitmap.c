/* SPDX-License-Identifier: BSD-3-Clause */
/* The six bitmap commands, with QEMU's arguments and messages.
 *
 * Called by the thread of a control connection, without locks.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap-hash.h"
#include "cleanup.h"
#include "disk.h"
#include "qmp.h"
#include "qmp-args.h"
#include "range.h"

static int
cmd_add (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "node", QMP_STRING, true },
    { "name", QMP_STRING, true },
    { "granularity", QMP_UINT32, false },
    { "persistent", QMP_BOOL, false },
    { "disabled", QMP_BOOL, false },
    { NULL }
  };
  const char *node, *name;
  uint64_t granularity;
  struct disk *disk;
  unsigned flags;

  if (qmp_args_check (call->args, NULL, table, err) < 0)
    return -EINVAL;
  node = qmp_args_string (call->args, "node", NULL);
  name = qmp_args_string (call->args, "name", NULL);
  disk = nodes_find_device (service_nodes (call->service), node, err);
  if (disk == NULL)
    return -ENOENT;
  if (*name == '\0')
    return error_set (err, EINVAL, "Bitmap name cannot be empty");
  granularity = qmp_args_uint (call->args, "granularity", 0);
  if (json_object_get (call->args, "granularity") &&
      (granularity < BITMAP_MIN_GRANULARITY || !is_power_of_2 (granularity)))
    return error_set (err, EINVAL,
                      "Granularity must be power of 2 and at least 512");
  flags = qmp_args_bool (call->args, "disabled", false) ? DIRTY_IS_DISABLED
    : 0;
  if (qmp_args_bool (call->args, "persistent", false))
    flags |= DIRTY_IS_PERSISTENT;
  return disk_bitmap_add (disk, name, granularity, flags, err);
}

/* Those that take just a bitmap. */
static int
cmd_simple (struct qmp_call *call, struct error *err,
               int (*function) (struct disk *disk, const char *name,
                                struct error *err))
{
  static const struct qmp_arg table[] = {
    { "node", QMP_STRING, true },
    { "name", QMP_STRING, true },
    { NULL }
  };
  struct disk *disk;

  if (qmp_args_check (call->args, NULL, table, err) < 0)
    return -EINVAL;
  disk = qmp_find_disk (call, qmp_args_string (call->args, "node", NULL),
                        err);
  if (disk == NULL)
    return -ENOENT;
  return function (disk, qmp_args_string (call->args, "name", NULL), err);
}

static int
cmd_remove (struct qmp_call *call, json_t **ret, struct error *err)
{
  return cmd_simple (call, err, disk_bitmap_remove);
}

static int
cmd_clear (struct qmp_call *call, json_t **ret, struct error *err)
{
  return cmd_simple (call, err, disk_bitmap_clear);
}

static int
cmd_enable (struct qmp_call *call, json_t **ret, struct error *err)
{
  return cmd_simple (call, err, disk_bitmap_enable);
}

static int
cmd_disable (struct qmp_call *call, json_t **ret, struct error *err)
{
  return cmd_simple (call, err, disk_bitmap_disable);
}

/* One of the sources of a merge: a name, or {node, name}. */
static int
find_source (struct qmp_call *call, struct disk *target_disk, json_t *item,
             size_t i, struct dirty_bitmap **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "node", QMP_STRING, true },
    { "name", QMP_STRING, true },
    { NULL }
  };
  struct disk *disk = target_disk;
  const char *name = json_string_value (item);
  char path[40];

  snprintf (path, sizeof path, "bitmaps[%zu]", i);
  if (json_is_object (item)) {
    if (qmp_args_check (item, path, table, err) < 0)
      return -EINVAL;
    name = qmp_args_string (item, "name", NULL);
    disk = qmp_find_disk (call, qmp_args_string (item, "node", NULL), err);
    if (disk == NULL)
      return -ENOENT;
  }
  else if (name == NULL)
    return error_set (err, EINVAL, "Invalid parameter type for '%s', "
                      "expected: BlockDirtyBitmapOrStr", path);
  *ret = dirty_find (disk_dirty (disk), name);
  if (*ret == NULL)
    return error_set (err, ENOENT, "Dirty bitmap '%s' not found", name);
  return 0;
}

static int
cmd_merge (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "node", QMP_STRING, true },
    { "target", QMP_STRING, true },
    { "bitmaps", QMP_ARRAY, true },
    { NULL }
  };
  CLEANUP_FREE struct dirty_bitmap **sources = NULL;
  struct disk *disk;
  json_t *bitmaps;
  size_t nr, i, n = 0;
  int r = 0;

  if (qmp_args_check (call->args, NULL, table, err) < 0)
    return -EINVAL;
  disk = qmp_find_disk (call, qmp_args_string (call->args, "node", NULL),
                        err);
  if (disk == NULL)
    return -ENOENT;
  bitmaps = json_object_get (call->args, "bitmaps");
  nr = json_array_size (bitmaps);
  sources = calloc (nr + 1, sizeof *sources);
  if (sources == NULL)
    return error_set_errno (err, ENOMEM, "bitmaps");
  for (i = 0; i < nr && r == 0; i++) {
    r = find_source (call, disk, json_array_get (bitmaps, i), i, &sources[n],
                     err);
    n += r == 0;
  }
  if (r == 0)
    r = disk_bitmap_merge (disk, qmp_args_string (call->args, "target", NULL),
                           sources, n, err);
  for (i = 0; i < n; i++)
    dirty_unref (sources[i]);
  return r;
}

static int
cmd_sha256 (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "node", QMP_STRING, true },
    { "name", QMP_STRING, true },
    { NULL }
  };
  char hash[BITMAP_HASH_STRING_SIZE];
  struct dirty_bitmap *bm;
  struct disk *disk;
  const char *name;
  int r;

  if (qmp_args_check (call->args, NULL, table, err) < 0)
    return -EINVAL;
  disk = qmp_find_disk (call, qmp_args_string (call->args, "node", NULL),
                        err);
  if (disk == NULL)
    return -ENOENT;
  name = qmp_args_string (call->args, "name", NULL);
  bm = dirty_find (disk_dirty (disk), name);
  if (bm == NULL)
    return error_set (err, ENOENT, "Dirty bitmap '%s' not found", name);
  r = bitmap_hash (bm, disk_size (disk), hash);
  dirty_unref (bm);
  if (r == -ESTALE)
    return error_set (err, EINVAL, "Bitmap '%s' is inconsistent and cannot be "
                      "used", name);
  *ret = r == 0 ? json_pack ("{ss}", "sha256", hash) : NULL;
  return *ret ? 0 : error_set_errno (err, ENOMEM, "Bitmap '%s'", name);
}

const struct qmp_command qmp_bitmap_commands[] = {
  { "block-dirty-bitmap-add", cmd_add },
  { "block-dirty-bitmap-remove", cmd_remove },
  { "block-dirty-bitmap-clear", cmd_clear },
  { "block-dirty-bitmap-enable", cmd_enable },
  { "block-dirty-bitmap-disable", cmd_disable },
  { "block-dirty-bitmap-merge", cmd_merge },
  { "x-debug-block-dirty-bitmap-sha256", cmd_sha256 },
  { NULL }
};
