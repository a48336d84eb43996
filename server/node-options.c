/* SPDX-License-Identifier: BSD-3-Clause */
/* What blockdev-add takes, as tables: QEMU's schema, as far as it has a meaning
 * here, with QEMU's order of checks and messages.
 *
 * Pure; any thread.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "node-open.h"
#include "qmp-args.h"

static const char *const drivers[] = {
  "blkdebug", "file", "host_device", "nbd", "null-co", "qcow2", "raw", NULL
};
static const char *const discards[] = {
  "ignore", "off", "unmap", "on", NULL
};
static const char *const detect_zeroes[] = { "off", "on", "unmap", NULL };
static const char *const lockings[] = { "auto", "on", "off", NULL };
static const char *const aios[] = { "threads", "native", "io_uring", NULL };

static const struct qmp_arg base_args[] = {
  { "driver", QMP_ENUM, true, drivers },
  { "node-name", QMP_STRING, false },
  { "discard", QMP_ENUM, false, discards },
  { "cache", QMP_OBJECT, false },
  { "read-only", QMP_BOOL, false },
  { "auto-read-only", QMP_BOOL, false },
  { "force-share", QMP_BOOL, false },
  { "detect-zeroes", QMP_ENUM, false, detect_zeroes },
  /* Ours, of the topmost node only; must be the last. */
  { "store", QMP_STRING, false },
};

static const struct qmp_arg cache_args[] = {
  { "direct", QMP_BOOL, false },
  { "no-flush", QMP_BOOL, false },
  { NULL }
};

static const struct qmp_arg file_args[] = {
  { "filename", QMP_STRING, true },
  { "locking", QMP_ENUM, false, lockings },
  { "aio", QMP_ENUM, false, aios },
  { "aio-max-batch", QMP_UINT64, false },
  { "drop-cache", QMP_BOOL, false },
  { NULL }
};

static const struct qmp_arg raw_args[] = {
  { "file", QMP_NODE, true },
  { "offset", QMP_SIZE, false },
  { "size", QMP_SIZE, false },
  { NULL }
};

static const struct qmp_arg qcow2_args[] = {
  { "file", QMP_NODE, true },
  { "backing", QMP_NODE_OR_NULL, false },
  { "allow-backing", QMP_BOOL, false },
  { "lazy-refcounts", QMP_BOOL, false },
  { "pass-discard-request", QMP_BOOL, false },
  { "pass-discard-snapshot", QMP_BOOL, false },
  { "pass-discard-other", QMP_BOOL, false },
  { "overlap-check", QMP_ANY, false },
  { "cache-size", QMP_INT64, false },
  { "l2-cache-size", QMP_INT64, false },
  { "l2-cache-entry-size", QMP_INT64, false },
  { "refcount-cache-size", QMP_INT64, false },
  { "cache-clean-interval", QMP_UINT64, false },
  { NULL }
};

static const struct qmp_arg nbd_args[] = {
  { "server", QMP_OBJECT, true },
  { "export", QMP_STRING, false },
  { "tls-creds", QMP_STRING, false },
  { "reconnect-delay", QMP_UINT32, false },
  { "open-timeout", QMP_UINT32, false },
  { NULL }
};

static const struct qmp_arg null_args[] = {
  { "size", QMP_SIZE, false },
  { "latency-ns", QMP_UINT64, false },
  { "read-zeroes", QMP_BOOL, false },
  { NULL }
};

static const struct qmp_arg blkdebug_args[] = {
  { "image", QMP_NODE, true },
  { "inject-error", QMP_ARRAY, false },
  { "set-state", QMP_ARRAY, false },
  { NULL }
};

/* QEMU's; some of them never happen here. */
static const char *const events[] = {
  "l1_update", "l1_grow_alloc_table", "l1_grow_write_table",
  "l1_grow_activate_table", "l2_load", "l2_update", "l2_update_compressed",
  "l2_alloc_cow_read", "l2_alloc_write", "read_aio", "read_backing_aio",
  "read_compressed", "write_aio", "write_compressed", "vmstate_load",
  "vmstate_save", "cow_read", "cow_write", "reftable_load", "reftable_grow",
  "reftable_update", "refblock_load", "refblock_update",
  "refblock_update_part", "refblock_alloc", "refblock_alloc_hookup",
  "refblock_alloc_write", "refblock_alloc_write_blocks",
  "refblock_alloc_write_table", "refblock_alloc_switch_table",
  "cluster_alloc", "cluster_alloc_bytes", "cluster_free", "flush_to_os",
  "flush_to_disk", "pwritev_rmw_head", "pwritev_rmw_after_head",
  "pwritev_rmw_tail", "pwritev_rmw_after_tail", "pwritev", "pwritev_zero",
  "pwritev_done", "empty_image_prepare", "l1_shrink_write_table",
  "l1_shrink_free_l2_clusters", "cor_write", "cluster_alloc_space", "none",
  NULL
};
static const char *const iotypes[] = {
  "read", "write", "write-zeroes", "discard", "flush", "block-status", NULL
};

static const struct qmp_arg inject_args[] = {
  { "event", QMP_ENUM, true, events },
  { "state", QMP_UINT32, false },
  { "iotype", QMP_ENUM, false, iotypes },
  { "errno", QMP_UINT32, false },
  { "sector", QMP_INT64, false },
  { "once", QMP_BOOL, false },
  { "immediately", QMP_BOOL, false },
  { NULL }
};

static const struct qmp_arg set_state_args[] = {
  { "event", QMP_ENUM, true, events },
  { "state", QMP_UINT32, false },
  { "new_state", QMP_UINT32, true },
  { NULL }
};

static const char *const server_types[] = { "inet", "unix", NULL };

static const struct qmp_arg unix_args[] = {
  { "type", QMP_ENUM, true, server_types },
  { "path", QMP_STRING, true },
  { NULL }
};

static const struct qmp_arg inet_args[] = {
  { "type", QMP_ENUM, true, server_types },
  { "host", QMP_STRING, true },
  { "port", QMP_STRING, true },
  { NULL }
};

static const struct qmp_arg *
args_of_driver (const char *driver)
{
  static const struct {
    const char *driver;
    const struct qmp_arg *args;
  } table[] = {
    { "file", file_args }, { "host_device", file_args }, { "raw", raw_args },
    { "qcow2", qcow2_args }, { "nbd", nbd_args }, { "null-co", null_args },
    { "blkdebug", blkdebug_args },
  };
  size_t i;

  for (i = 0; i < sizeof table / sizeof table[0]; i++)
    if (strcmp (driver, table[i].driver) == 0)
      return table[i].args;
  return NULL;
}

#define NR_BASE (sizeof base_args / sizeof base_args[0])
#define MAX_ARGS 32

/* "file", or "file.backing" below path. */
static void
join (char *buf, size_t size, const char *path, const char *name)
{
  snprintf (buf, size, "%s%s%s", path ? path : "", path ? "." : "", name);
}

static int
check_server (json_t *options, const char *path, struct error *err)
{
  static const struct qmp_arg type_args[] = {
    { "type", QMP_ENUM, true, server_types }, { NULL }
  };
  json_t *server = json_object_get (options, "server");
  char inner[QMP_PATH_MAX];

  if (server == NULL)
    return 0;
  join (inner, sizeof inner, path, "server");
  if (qmp_args_check_members (server, inner, type_args, err) < 0)
    return -EINVAL;
  return qmp_args_check (server, inner, strcmp
                         (qmp_args_string (server, "type", ""), "unix") == 0
                         ? unix_args : inet_args, err);
}

/* An array of objects. */
static int
check_array (json_t *options, const char *path, const char *name,
             const struct qmp_arg *table, struct error *err)
{
  json_t *array = json_object_get (options, name);
  char inner[QMP_PATH_MAX];
  size_t i;

  for (i = 0; i < json_array_size (array); i++) {
    json_t *item = json_array_get (array, i);

    snprintf (inner, sizeof inner, "%s%s%s[%zu]", path ? path : "",
              path ? "." : "", name, i);
    if (!json_is_object (item))
      return error_set (err, EINVAL, "Invalid parameter type for '%s', "
                        "expected: object", inner);
    if (qmp_args_check (item, inner, table, err) < 0)
      return -EINVAL;
  }
  return 0;
}

/* The options of a child, if it is not a reference. */
static int
check_child (json_t *options, const char *path, const char *role,
             struct error *err)
{
  json_t *child = json_object_get (options, role);
  char inner[QMP_PATH_MAX];

  if (!json_is_object (child))
    return 0;
  join (inner, sizeof inner, path, role);
  return node_options_check (child, inner, err);
}

/* What the tables cannot say. */
static int
check_values (json_t *options, struct error *err)
{
  const char *zeroes = qmp_args_string (options, "detect-zeroes", "off");
  const char *discard = qmp_args_string (options, "discard", "ignore");
  const char *store = qmp_args_string (options, "store", NULL);

  if (store && store[0] != '/')
    return error_set (err, EINVAL, "'store' must be an absolute path, not"
                      " '%.100s'", store);
  if (strcmp (zeroes, "unmap") == 0 && strcmp (discard, "unmap") != 0 &&
      strcmp (discard, "on") != 0)
    return error_set (err, EINVAL, "setting detect-zeroes to unmap is not "
                      "allowed without setting discard operation to unmap");
  if (strcmp (zeroes, "off") != 0)
    return error_set (err, ENOTSUP, "detect-zeroes '%s' is not supported "
                      "(only 'off')", zeroes);
  if (qmp_args_bool (options, "force-share", false) &&
      !qmp_args_bool (options, "read-only", false))
    return error_set (err, EINVAL, "force-share=on can only be used with "
                      "read-only images");
  return 0;
}

int
node_options_check (json_t *options, const char *path, struct error *err)
{
  struct qmp_arg table[MAX_ARGS] = { { NULL } };
  const struct qmp_arg driver[] = { base_args[0], { NULL } }, *args;
  json_t *cache = json_object_get (options, "cache");
  char inner[QMP_PATH_MAX];
  size_t i, nr_base;

  if (qmp_args_check_members (options, path, driver, err) < 0)
    return -EINVAL;
  nr_base = NR_BASE - (path != NULL);
  memcpy (table, base_args, nr_base * sizeof base_args[0]);
  args = args_of_driver (qmp_args_string (options, "driver", ""));
  for (i = 0; args && args[i].name; i++)
    table[nr_base + i] = args[i];
  if (qmp_args_check_members (options, path, table, err) < 0)
    return -EINVAL;
  join (inner, sizeof inner, path, "cache");
  if (cache && qmp_args_check (cache, inner, cache_args, err) < 0)
    return -EINVAL;
  if (check_server (options, path, err) < 0 ||
      check_child (options, path, "file", err) < 0 ||
      check_child (options, path, "backing", err) < 0 ||
      check_child (options, path, "image", err) < 0 ||
      check_array (options, path, "inject-error", inject_args, err) < 0 ||
      check_array (options, path, "set-state", set_state_args, err) < 0 ||
      qmp_args_check (options, path, table, err) < 0)
    return -EINVAL;
  return check_values (options, err);
}

bool
node_options_have_references (json_t *options)
{
  static const char *const roles[] = { "file", "backing", "image" };
  size_t i;

  for (i = 0; i < sizeof roles / sizeof roles[0]; i++) {
    json_t *child = json_object_get (options, roles[i]);

    if (json_is_string (child) ||
        (json_is_object (child) && node_options_have_references (child)))
      return true;
  }
  return false;
}

const char *
node_options_file (json_t *options)
{
  const char *driver = qmp_args_string (options, "driver", "");
  json_t *below = json_object_get (options, "file");

  if (strcmp (driver, "file") == 0)
    return qmp_args_string (options, "filename", NULL);
  if (below == NULL)
    below = json_object_get (options, "image");
  return json_is_object (below) ? node_options_file (below) : NULL;
}
