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

const struct qmp_arg qmp_bitmap_add_args[] = {
  { "node", QMP_STRING, true },
  { "name", QMP_STRING, true },
  { "granularity", QMP_UINT32, false },
  { "persistent", QMP_BOOL, false },
  { "disabled", QMP_BOOL, false },
  { NULL }
};

const struct qmp_arg qmp_bitmap_args[] = {
  { "node", QMP_STRING, true },
  { "name", QMP_STRING, true },
  { NULL }
};

const struct qmp_arg qmp_bitmap_merge_args[] = {
  { "node", QMP_STRING, true },
  { "target", QMP_STRING, true },
  { "bitmaps", QMP_ARRAY, true },
  { NULL }
};

int
qmp_bitmap_prepare_add (struct disk *disk, const json_t *args,
                        struct error *err)
{
  const char *name = qmp_args_string (args, "name", NULL);
  uint64_t granularity = qmp_args_uint (args, "granularity", 0);
  int r = 0;

  if (*name == '\0')
    return error_set (err, EINVAL, "Bitmap name cannot be empty");
  if (json_object_get (args, "granularity") &&
      (granularity < BITMAP_MIN_GRANULARITY || !is_power_of_2 (granularity)))
    return error_set (err, EINVAL,
                      "Granularity must be power of 2 and at least 512");
  if (qmp_args_bool (args, "persistent", false))
    r = disk_make_store (disk, err);
  if (r < 0)
    error_prefix (err, "Bitmap '%.40s' cannot be persistent", name);
  return r;
}

int
qmp_bitmap_add (struct disk *disk, const json_t *args, struct error *err)
{
  uint64_t granularity = qmp_args_uint (args, "granularity", 0);
  unsigned flags = 0;

  if (granularity == 0)
    granularity = disk_default_granularity (disk);
  if (qmp_args_bool (args, "disabled", false))
    flags |= DIRTY_IS_DISABLED;
  if (qmp_args_bool (args, "persistent", false))
    flags |= DIRTY_IS_PERSISTENT;
  return dirty_add (disk_dirty (disk), qmp_args_string (args, "name", NULL),
                    granularity, flags, err);
}

static int
cmd_add (struct qmp_call *call, json_t **ret, struct error *err)
{
  struct disk *disk;
  int r;

  if (qmp_args_check (call->args, NULL, qmp_bitmap_add_args, err) < 0)
    return -EINVAL;
  disk = nodes_find_device (service_nodes (call->service),
                            qmp_args_string (call->args, "node", NULL), err);
  if (disk == NULL)
    return -ENOENT;
  r = qmp_bitmap_prepare_add (disk, call->args, err);
  if (r < 0)
    return r;
  gate_close (disk_gate (disk));
  r = qmp_bitmap_add (disk, call->args, err);
  gate_open (disk_gate (disk));
  return r;
}

/* Those that take just a bitmap. */
static int
cmd_simple (struct qmp_call *call, struct error *err,
               int (*function) (struct disk *disk, const char *name,
                                struct error *err))
{
  struct disk *disk;

  if (qmp_args_check (call->args, NULL, qmp_bitmap_args, err) < 0)
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
  struct disk *disk = target_disk;
  const char *name = json_string_value (item);
  char path[40];

  snprintf (path, sizeof path, "bitmaps[%zu]", i);
  if (json_is_object (item)) {
    if (qmp_args_check (item, path, qmp_bitmap_args, err) < 0)
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

int
qmp_bitmap_find_sources (struct qmp_call *call, struct disk *target_disk,
                         const json_t *args, struct dirty_bitmap ***ret,
                         size_t *ret_nr, struct error *err)
{
  json_t *bitmaps = json_object_get (args, "bitmaps");
  size_t nr = json_array_size (bitmaps), i;
  struct dirty_bitmap **sources = calloc (nr + 1, sizeof *sources);
  int r = 0;

  if (sources == NULL)
    return error_set_errno (err, ENOMEM, "bitmaps");
  for (i = 0; i < nr; i++) {
    r = find_source (call, target_disk, json_array_get (bitmaps, i), i,
                     &sources[i], err);
    if (r < 0)
      break;
  }
  if (r == 0) {
    *ret = sources;
    *ret_nr = nr;
    return 0;
  }
  while (i-- > 0)
    dirty_unref (sources[i]);
  free (sources);
  return r;
}

static int
cmd_merge (struct qmp_call *call, json_t **ret, struct error *err)
{
  CLEANUP_FREE struct dirty_bitmap **sources = NULL;
  struct disk *disk;
  size_t n = 0;
  int r;

  if (qmp_args_check (call->args, NULL, qmp_bitmap_merge_args, err) < 0)
    return -EINVAL;
  disk = qmp_find_disk (call, qmp_args_string (call->args, "node", NULL),
                        err);
  if (disk == NULL)
    return -ENOENT;
  r = qmp_bitmap_find_sources (call, disk, call->args, &sources, &n, err);
  if (r == 0)
    r = disk_bitmap_merge (disk, qmp_args_string (call->args, "target", NULL),
                           sources, n, err);
  while (n > 0)
    dirty_unref (sources[--n]);
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
