/* SPDX-License-Identifier: BSD-3-Clause */
/* block_resize, as in QEMU.
 *
 * Called by the thread of a control connection, without locks.
 */
#include "config.h"

#include <errno.h>

#include "disk.h"
#include "nodes.h"
#include "qmp.h"
#include "qmp-args.h"
#include "service.h"

/* A disk's size is in whole sectors: one that is not could not be opened. */
#define SECTOR 512

static struct disk *
find_disk (struct qmp_call *call, struct error *err)
{
  const char *device = qmp_args_string (call->args, "device", "");
  const char *node = qmp_args_string (call->args, "node-name", "");
  struct nodes *n = service_nodes (call->service);
  struct disk *disk = nodes_find_disk (n, *device ? device : node);

  if (disk && *device && *node && nodes_find_disk (n, node) != disk)
    disk = NULL;
  if (disk == NULL)
    error_set (err, ENOENT, "Cannot find device='%s' nor node-name='%s'",
               device, node);
  return disk;
}

/* A job's source and target keep their size, as in QEMU; and no job begins
 * meanwhile.
 */
static int
resize_alone (struct qmp_call *call, struct disk *disk, json_int_t size,
              struct error *err)
{
  struct nodes *n = service_nodes (call->service);
  const char *device = qmp_args_string (call->args, "device", "");
  int r;

  if (nodes_hold (n, disk, NODE_USE_JOB, NULL) < 0)
    return error_set (err, EBUSY, "Device '%s' is in use",
                      *device ? device : disk_name (disk));
  if (size % SECTOR != 0)
    r = error_set (err, EINVAL, "Parameter 'size' expects a multiple of"
                   " %d, not %" JSON_INTEGER_FORMAT, SECTOR, size);
  else
    r = disk_resize (disk, (uint64_t) size, err);
  nodes_release (n, disk, NODE_USE_JOB);
  return r;
}

static int
block_resize (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "device", QMP_STRING, false },
    { "node-name", QMP_STRING, false },
    { "size", QMP_INT64, true },
    { NULL }
  };
  struct disk *disk;
  json_int_t size;

  if (qmp_args_check (call->args, NULL, table, err) < 0)
    return -EINVAL;
  disk = find_disk (call, err);
  if (disk == NULL)
    return -ENOENT;
  size = json_integer_value (json_object_get (call->args, "size"));
  if (size < 0)
    return error_set (err, EINVAL, "Parameter 'size' expects a >0 size");
  return resize_alone (call, disk, size, err);
}

const struct qmp_command qmp_resize_commands[] = {
  { "block_resize", block_resize },
  { NULL }
};
