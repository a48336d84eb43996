/* SPDX-License-Identifier: BSD-3-Clause */
/* blockdev-add and blockdev-del.
 *
 * Called by the thread of a control connection, without locks.
 */
#include "config.h"

#include <errno.h>

#include "node-open.h"
#include "qmp.h"
#include "qmp-args.h"

/* A store knows the file again in which its disk is: that of a node by name may
 * have been written to.
 */
static bool
is_lent (json_t *options)
{
  json_t *below = json_object_get (options, "file");

  if (below == NULL)
    below = json_object_get (options, "image");
  return json_is_string (below) || (below && is_lent (below));
}

static int
cmd_add (struct qmp_call *call, json_t **ret, struct error *err)
{
  struct disk_options options;

  if (node_options_check (call->args, NULL, err) < 0)
    return -EINVAL;
  service_disk_defaults (call->service, &options);
  options.store = qmp_args_string (call->args, "store", NULL);
  if (options.store && is_lent (call->args))
    return error_set (err, EINVAL, "'store' is for a node whose 'file' or"
                      " 'image' is given here, not by the name of another"
                      " node");
  return nodes_add (service_nodes (call->service), call->args, &options, err);
}

static int
cmd_del (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "node-name", QMP_STRING, true },
    { NULL }
  };

  if (qmp_args_check (call->args, NULL, table, err) < 0)
    return -EINVAL;
  return nodes_delete (service_nodes (call->service),
                       qmp_args_string (call->args, "node-name", NULL), err);
}

const struct qmp_command qmp_blockdev_commands[] = {
  { "blockdev-add", cmd_add },
  { "blockdev-del", cmd_del },
  { NULL }
};
