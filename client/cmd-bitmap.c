/* SPDX-License-Identifier: BSD-3-Clause */
/* tidemark bitmap: add, remove, clear and list the bitmaps of a server.  Main
 * thread.
 */
#include "config.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "blk-nbd.h"
#include "client.h"
#include "control.h"
#include "interrupt.h"
#include "progress.h"
#include "size.h"
#include "tls-options.h"

static const struct option_spec options[] = {
  { "disabled", 0, NULL, "add: the bitmap does not record" },
  { "disk", 'd', "NAME", "the disk (needed if the server has several)" },
  { "granularity", 'g', "SIZE", "add: bytes of one bit, a power of two, 512 to"
    " 2G (default 64K)" },
  { "json", 0, NULL, "list: print one JSON array" },
  TLS_OPTION_CERTIFICATES,
  TLS_OPTION_PSK,
  TLS_OPTION_USER,
  { NULL }
};

static int
query_disks (struct control *c, json_t **ret, struct error *err)
{
  struct control_call call = { .command = "query-block" };
  json_t *disks;
  int r = control_call (c, &call, &disks, err);

  if (r < 0)
    return r;
  if (!json_is_array (disks)) {
    json_decref (disks);
    return error_set (err, EPROTO, "query-block: malformed answer");
  }
  *ret = disks;
  return 0;
}

static const char *
disk_name (const json_t *disk)
{
  const char *s = json_string_value (json_object_get (disk, "device"));

  if (!s || !*s)
    s = json_string_value (json_object_get (
      json_object_get (disk, "inserted"), "node-name"));
  return s ? s : "?";
}

static const json_t *
disk_bitmaps (const json_t *disk)
{
  return json_object_get (json_object_get (disk, "inserted"),
                          "dirty-bitmaps");
}

/* A name for --disk, a copy: the one given, or the server's only one. */
static int
choose_disk (struct control *c, const struct options *o, char **ret,
             struct error *err)
{
  const char *disk = options_get (o, "disk");
  json_t *disks;
  size_t i, len;
  int r = 0;

  if (disk) {
    *ret = strdup (disk);
    return *ret ? 0 : error_set_errno (err, ENOMEM, "%s", disk);
  }
  r = query_disks (c, &disks, err);
  if (r < 0)
    return r;
  if (json_array_size (disks) == 1)
    *ret = strdup (disk_name (json_array_get (disks, 0)));
  else {
    r = error_set (err, EINVAL, "the server has %zu disks; choose one with "
                   "--disk:", json_array_size (disks));
    for (i = 0; i < json_array_size (disks); i++) {
      len = strlen (err->msg);
      snprintf (err->msg + len, sizeof err->msg - len, " %s",
                disk_name (json_array_get (disks, i)));
    }
  }
  json_decref (disks);
  return r;
}

static void
print_bitmap (const json_t *disk, const json_t *b)
{
  const char *name = json_string_value (json_object_get (b, "name"));
  const char *status = json_string_value (json_object_get (b, "status"));
  const char *base = json_string_value (json_object_get (b, "base"));
  const char *reason = json_string_value (json_object_get (b, "reason"));
  uint64_t count = (uint64_t) json_integer_value (
    json_object_get (b, "count"));
  uint64_t granularity = (uint64_t) json_integer_value (
    json_object_get (b, "granularity"));
  char line[2048], a[SIZE_STRING_MAX], g[SIZE_STRING_MAX];

  snprintf (line, sizeof line, "%-12s %-42s %-12s %10s %10s  %s%s%s",
            disk_name (disk), name ? name : "?", status ? status : "?",
            size_format (count, a), size_format (granularity, g),
            base ? base : "none", reason ? "  " : "", reason ? reason : "");
  puts (make_one_line (line));
}

static void
append_bitmap (json_t *array, const json_t *disk, const json_t *b)
{
  json_t *o = json_deep_copy (b);

  json_object_set_new (o, "disk", json_string (disk_name (disk)));
  json_array_append_new (array, o);
}

static bool
has_disk (const json_t *disks, const char *name)
{
  size_t i;

  for (i = 0; i < json_array_size (disks); i++)
    if (strcmp (name, disk_name (json_array_get (disks, i))) == 0)
      return true;
  return false;
}

static int
list_control (struct control *c, const struct options *o, struct error *err)
{
  const char *only = options_get (o, "disk");
  json_t *out = options_has (o, "json") ? json_array () : NULL;
  json_t *disks = NULL;
  size_t i, j;
  int r = query_disks (c, &disks, err);

  if (r == 0 && only && !has_disk (disks, only))
    r = error_set (err, ENOENT, "the server has no disk '%s'", only);
  if (r == 0 && !out)
    printf ("%-12s %-42s %-12s %10s %10s  %s\n", "DISK", "BITMAP", "STATUS",
            "DIRTY", "GRANULE", "BASE POINT");
  for (i = 0; r == 0 && i < json_array_size (disks); i++) {
    const json_t *disk = json_array_get (disks, i);
    const json_t *bitmaps = disk_bitmaps (disk);

    if (only && strcmp (only, disk_name (disk)) != 0)
      continue;
    for (j = 0; j < json_array_size (bitmaps); j++)
      if (out)
        append_bitmap (out, disk, json_array_get (bitmaps, j));
      else
        print_bitmap (disk, json_array_get (bitmaps, j));
  }
  if (r == 0 && out) {
    json_dumpf (out, stdout, JSON_INDENT (2));
    putchar ('\n');
  }
  json_decref (disks);
  json_decref (out);
  return r;
}

/* Of a plain NBD server: the names that it exports. */
static int
list_nbd (const char *uri, const struct options *o, struct error *err)
{
  static const char prefix[] = "qemu:dirty-bitmap:";
  json_t *out = json_array ();
  char **names;
  size_t nr, i;
  const struct blk_nbd_options list = {
    .uri = uri, .tls = tls_options_nbd (),
    .cancel_fd = interrupt_fd (),
  };
  int r = blk_nbd_list_contexts (&list, prefix, &names, &nr, err);

  if (r < 0) {
    json_decref (out);
    return r == -ECANCELED ? interrupt_error (err) : r;
  }
  for (i = 0; i < nr; i++) {
    char *name = names[i] + sizeof prefix - 1;

    json_array_append_new (out, json_pack ("{s:s}", "name", name));
    if (!options_has (o, "json"))
      puts (make_one_line (name));
    free (names[i]);
  }
  free (names);
  if (options_has (o, "json")) {
    json_dumpf (out, stdout, JSON_INDENT (2));
    putchar ('\n');
  }
  json_decref (out);
  return 0;
}

static int
change (struct control *c, const char *action, const char *name,
        const struct options *o, struct error *err)
{
  struct control_call call = { 0 };
  char command[48], *disk = NULL;
  uint64_t granularity = 0;
  int r;

  r = options_get_number (o, "granularity", true, 1, UINT64_C (1) << 40,
                          &granularity, err);
  if (r == 0)
    r = choose_disk (c, o, &disk, err);
  if (r < 0)
    return r;
  snprintf (command, sizeof command, "block-dirty-bitmap-%s", action);
  call.command = command;
  call.args = json_pack ("{s:s, s:s}", "node", disk, "name", name);
  if (call.args && granularity)
    json_object_set_new (call.args, "granularity",
                         json_integer ((json_int_t) granularity));
  if (call.args && options_has (o, "disabled"))
    json_object_set_new (call.args, "disabled", json_true ());
  r = control_call (c, &call, NULL, err);
  if (r == 0)
    progress_say ("%s: bitmap '%s' %s", disk, name,
                  strcmp (action, "add") == 0 ? "added"
                  : strcmp (action, "remove") == 0 ? "removed" : "cleared");
  free (disk);
  return r;
}

static const struct {
  const char *name;
  size_t nr_args;               /* with the action itself */
} actions[] = {
  { "add", 3 }, { "remove", 3 }, { "clear", 3 }, { "list", 2 },
};
#define NR_ACTIONS (sizeof actions / sizeof actions[0])

/* Options that only "add" and "list" know.  The name of a misplaced one. */
static const char *
misplaced_option (const struct options *o)
{
  const char *action = o->args[0];

  if (options_has (o, "json") && strcmp (action, "list") != 0)
    return "json";
  if (options_has (o, "granularity") && strcmp (action, "add") != 0)
    return "granularity";
  if (options_has (o, "disabled") && strcmp (action, "add") != 0)
    return "disabled";
  return NULL;
}

static int
check_arguments (const struct options *o)
{
  size_t i;

  for (i = 0; i < NR_ACTIONS; i++)
    if (strcmp (o->args[0], actions[i].name) == 0)
      break;
  if (i == NR_ACTIONS)
    return client_usage (&cmd_bitmap, "unknown action '%s'; allowed are add, "
                         "remove, clear, list", o->args[0]);
  if (o->nr_args != actions[i].nr_args)
    return client_usage (&cmd_bitmap, "%s takes SOURCE%s", o->args[0],
                         actions[i].nr_args == 3 ? " and the NAME of a bitmap"
                         : " and nothing else");
  if (misplaced_option (o))
    return client_usage (&cmd_bitmap, "--%s does not go with %s",
                         misplaced_option (o), o->args[0]);
  return STATUS_OK;
}

static int
run_control (const struct options *o, struct error *err)
{
  struct control *c;
  int r = control_connect (o->args[1], &c, err);

  if (r < 0)
    return r;
  if (strcmp (o->args[0], "list") == 0)
    r = list_control (c, o, err);
  else
    r = change (c, o->args[0], o->args[2], o, err);
  control_close (c);
  return r;
}

static int
cmd_bitmap_run (const struct options *o)
{
  struct error err = ERROR_INIT;
  enum source_kind kind;
  int r, status = check_arguments (o);

  if (status != STATUS_OK)
    return status;
  if (control_source_kind (o->args[1], &kind, &err) < 0)
    return client_usage (&cmd_bitmap, "%s", err.msg);
  if (kind == SOURCE_CONTROL)
    r = run_control (o, &err);
  else if (strcmp (o->args[0], "list") == 0)
    r = list_nbd (o->args[1], o, &err);
  else
    return client_usage (&cmd_bitmap, "%s needs a control socket; over NBD "
                         "bitmaps can only be listed", o->args[0]);
  return r < 0 ? client_fail (&err) : STATUS_OK;
}

const struct command cmd_bitmap = {
  .name = "bitmap",
  .synopsis = "add|remove|clear|list SOURCE [NAME]",
  .summary = "manage the dirty bitmaps of a server",
  .options = options,
  .min_args = 2,
  .max_args = 3,
  .run = cmd_bitmap_run,
};
