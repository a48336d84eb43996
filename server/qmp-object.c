/* SPDX-License-Identifier: BSD-3-Clause */
/* object-add and object-del: TLS credentials of a server, as QEMU has them. */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "qmp.h"
#include "tls-objects.h"

static const char *const endpoints[] = { "client", "server", NULL };
enum { ENDPOINT_CLIENT, ENDPOINT_SERVER };
static const char *const types[] = { "tls-creds-x509", "tls-creds-psk", NULL };
enum { TYPE_X509, TYPE_PSK };

/* QEMU's rule: a letter, then letters, digits and "-._". */
static int
check_id (const char *id, struct error *err)
{
  const char *p = id;

  if (isalpha ((unsigned char) *p))
    for (p++; isalnum ((unsigned char) *p) || (*p && strchr ("-._", *p)); p++)
      ;
  return p > id && *p == '\0' ? 0
    : error_set (err, EINVAL, "Parameter 'id' expects an identifier");
}

static int
check_args (const json_t *args, struct error *err)
{
  static const struct qmp_arg common[] = {
    { "qom-type", QMP_ENUM, true, types },
    { "id", QMP_STRING, true },
    { NULL }
  };
  static const struct qmp_arg x509[] = {
    { "qom-type", QMP_ENUM, true, types },
    { "id", QMP_STRING, true },
    { "dir", QMP_STRING, false },
    { "endpoint", QMP_ENUM, false, endpoints },
    { "verify-peer", QMP_BOOL, false },
    { NULL }
  };
  static const struct qmp_arg psk[] = {
    { "qom-type", QMP_ENUM, true, types },
    { "id", QMP_STRING, true },
    { "dir", QMP_STRING, false },
    { "endpoint", QMP_ENUM, false, endpoints },
    { NULL }
  };
  bool is_psk;

  if (qmp_args_check_members (args, NULL, common, err) < 0)
    return -EINVAL;
  is_psk = qmp_args_enum (args, "qom-type", types, TYPE_X509) == TYPE_PSK;
  if (qmp_args_check (args, NULL, is_psk ? psk : x509, err) < 0)
    return -EINVAL;
  if (check_id (qmp_args_string (args, "id", NULL), err) < 0)
    return -EINVAL;
  if (qmp_args_string (args, "dir", NULL) == NULL)
    return error_set (err, EINVAL, "Missing 'dir' property value");
  /* The default is QEMU's. */
  if (qmp_args_enum (args, "endpoint", endpoints, ENDPOINT_CLIENT) ==
      ENDPOINT_CLIENT)
    return error_set (err, ENOTSUP, "Parameter 'endpoint' must be 'server' "
                      "here: credentials of a client are not supported");
  return 0;
}

static int
cmd_object_add (struct qmp_call *call, json_t **ret, struct error *err)
{
  CLEANUP_FREE char *keys = NULL;
  struct tls_creds_options o = { .is_server = true };
  struct tls_creds *creds;
  const char *dir;
  int r;

  if (check_args (call->args, err) < 0)
    return -EINVAL;
  dir = qmp_args_string (call->args, "dir", NULL);
  if (qmp_args_enum (call->args, "qom-type", types, TYPE_X509) == TYPE_X509) {
    o.certificates = dir;
    o.verify_peer = qmp_args_bool (call->args, "verify-peer", true);
  }
  else if (asprintf (&keys, "%s/keys.psk", dir) < 0) {
    keys = NULL;
    return error_set_errno (err, ENOMEM, "object");
  }
  else
    o.psk = keys;
  r = tls_creds_new (&o, &creds, err);
  return r < 0 ? r
    : tls_objects_add (service_tls_objects (call->service),
                       qmp_args_string (call->args, "id", NULL), creds, err);
}

static int
cmd_object_del (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "id", QMP_STRING, true },
    { NULL }
  };

  if (qmp_args_check (call->args, NULL, table, err) < 0)
    return -EINVAL;
  return tls_objects_remove (service_tls_objects (call->service),
                             qmp_args_string (call->args, "id", NULL), err);
}

const struct qmp_command qmp_object_commands[] = {
  { "object-add", cmd_object_add },
  { "object-del", cmd_object_del },
  { NULL }
};
