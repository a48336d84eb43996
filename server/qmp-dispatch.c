/* SPDX-License-Identifier: BSD-3-Clause */
/* From one request to its reply: envelope checks, negotiation, command tables.
 *
 * Called by the thread of the connection, without locks.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "qmp.h"
#include "qmp-args.h"

const struct qmp_command *const qmp_command_tables[] = {
  qmp_bitmap_commands,
  qmp_backup_commands,
  qmp_blockdev_commands,
  qmp_export_commands,
  qmp_job_commands,
  qmp_object_commands,
  qmp_query_commands,
  qmp_resize_commands,
  qmp_transaction_commands,
  NULL
};

json_t *
qmp_version (void)
{
  int major = 0, minor = 0, micro = 0;

  sscanf (PACKAGE_VERSION, "%d.%d.%d", &major, &minor, &micro);
  return json_pack ("{s{sisisi}ss}", "qemu", "major", major, "minor", minor,
                    "micro", micro, "package",
                    PACKAGE_NAME "-" PACKAGE_VERSION);
}

json_t *
qmp_greeting (void)
{
  return json_pack ("{s{sos[]}}", "QMP", "version", qmp_version (),
                    "capabilities");
}

json_t *
qmp_error_reply (const char *error_class, const char *desc)
{
  return json_pack ("{s{ssso}}", "error", "class", error_class, "desc",
                    qmp_text (desc));
}

static qmp_handler
find_command (const char *name)
{
  const struct qmp_command *const *table;
  const struct qmp_command *command;

  for (table = qmp_command_tables; *table; table++)
    for (command = *table; command->name; command++)
      if (strcmp (command->name, name) == 0)
        return command->handler;
  return NULL;
}

/* The members of the envelope. */
static int
check_request (json_t *request, struct error *err)
{
  const char *name;
  json_t *value;

  if (!json_is_object (request))
    return error_set (err, EINVAL, "QMP input must be a JSON object");
  json_object_foreach (request, name, value) {
    if (strcmp (name, "execute") == 0) {
      if (!json_is_string (value))
        return error_set (err, EINVAL,
                          "QMP input member 'execute' must be a string");
    }
    else if (strcmp (name, "arguments") == 0) {
      if (!json_is_object (value))
        return error_set (err, EINVAL,
                          "QMP input member 'arguments' must be an object");
    }
    else if (strcmp (name, "id") != 0)
      return error_set (err, EINVAL, "QMP input member '%s' is unexpected",
                        name);
  }
  if (json_object_get (request, "execute") == NULL)
    return error_set (err, EINVAL, "QMP input lacks member 'execute'");
  return 0;
}

/* No capability is offered, so none can be enabled. */
static int
negotiate (json_t *args, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "enable", QMP_ARRAY, false },
    { NULL }
  };
  const char *name;
  json_t *enable;

  if (qmp_args_check (args, NULL, table, err) < 0)
    return -EINVAL;
  enable = json_object_get (args, "enable");
  if (json_array_size (enable) == 0)
    return 0;
  name = json_string_value (json_array_get (enable, 0));
  if (name == NULL)
    return error_set (err, EINVAL, "Invalid parameter type for 'enable[0]', "
                      "expected: string");
  return error_set (err, EINVAL, "Capability '%s' is not available", name);
}

bool
qmp_may_back_up (const struct qmp_call *call, const char *disk)
{
  return call->tls == NULL ||
    server_tls_allows (service_tls (call->service), call->tls, false,
                       TLS_ROLE_BACKUP, disk);
}

bool
qmp_is_admin (struct service *service, const struct tls *tls)
{
  return tls == NULL || server_tls_allows (service_tls (service), tls, false,
                                           TLS_ROLE_ADMIN, NULL);
}

/* What a client can do that comes over TCP and is no admin: these ask
 * qmp_may_back_up for each disk.
 */
static int
check_role (struct service *service, const struct tls *tls, const char *name,
            struct error *err)
{
  static const char *const of_backup[] = {
    "backup-begin", "backup-attach", "backup-end", "query-backups",
    "query-block", "query-commands", "query-named-block-nodes",
    "query-version", NULL
  };
  size_t i;

  if (qmp_is_admin (service, tls))
    return 0;
  for (i = 0; of_backup[i]; i++)
    if (strcmp (of_backup[i], name) == 0)
      return 0;
  return error_set (err, EACCES, "The command %.64s is for admins: '%.100s' is "
                    "none", name, tls_peer (tls));
}

/* 0 with *ret set or NULL, or -errno with *err and *error_class set. */
static int
execute (struct service *service, int fd, const struct tls *tls,
         bool *is_negotiated, json_t *request, json_t **ret,
         const char **error_class, struct error *err)
{
  const char *name = json_string_value (json_object_get (request, "execute"));
  bool is_negotiation = strcmp (name, "qmp_capabilities") == 0;
  struct qmp_call call = { .service = service, .fd = fd, .tls = tls };
  qmp_handler handler;
  json_t *no_args;
  int r;

  *error_class = "CommandNotFound";
  if (!*is_negotiated && !is_negotiation)
    return error_set (err, ENOENT, "Expecting capabilities negotiation with "
                      "'qmp_capabilities'");
  if (*is_negotiated && is_negotiation)
    return error_set (err, EINVAL, "Capabilities negotiation is already "
                      "complete, command ignored");
  handler = find_command (name);
  if (handler == NULL && !is_negotiation)
    return error_set (err, ENOENT, "The command %s has not been found", name);

  no_args = json_object ();
  call.args = json_object_get (request, "arguments");
  if (call.args == NULL)
    call.args = no_args;
  if (is_negotiation) {
    r = negotiate (call.args, err);
    *is_negotiated = r == 0;
  }
  else {
    r = check_role (service, tls, name, err);
    nodes_enter (service_nodes (service));
    if (r == 0)
      r = handler (&call, ret, err);
    nodes_leave (service_nodes (service));
  }
  json_decref (no_args);
  *error_class = call.error_class ? call.error_class : "GenericError";
  return r;
}

/* *is_negotiated becomes true when capabilities negotiation succeeds. */
json_t *
qmp_dispatch (struct service *service, int fd, const struct tls *tls,
              bool *is_negotiated, json_t *request)
{
  struct error err = ERROR_INIT;
  const char *error_class = "GenericError";
  json_t *id = json_object_get (request, "id");
  json_t *ret = NULL, *reply;
  int r;

  r = check_request (request, &err);
  if (r == 0)
    r = execute (service, fd, tls, is_negotiated, request, &ret, &error_class,
                 &err);
  if (r == 0)
    reply = json_pack ("{so}", "return", ret ? ret : json_object ());
  else
    reply = qmp_error_reply (error_class, err.msg);
  if (reply && id && json_object_set (reply, "id", id) < 0) {
    json_decref (reply);
    return NULL;
  }
  return reply;
}

struct disk *
qmp_find_disk (struct qmp_call *call, const char *node, struct error *err)
{
  struct disk *disk = nodes_find_disk (service_nodes (call->service), node);

  if (disk && !qmp_may_back_up (call, node))
    disk = NULL;
  if (disk == NULL)
    error_set (err, ENOENT, "Node '%s' not found", node);
  return disk;
}
