/* SPDX-License-Identifier: BSD-3-Clause */
/* tidemark map: the dirty extents of a bitmap.  Main thread.
 *
 * Over a control socket the map is that of a session, begun for this and ended
 * as aborted: the bitmap is as it was afterwards.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "client.h"
#include "control.h"
#include "dirtymap.h"
#include "interrupt.h"
#include "log.h"
#include "progress.h"
#include "size.h"
#include "source.h"
#include "tls-options.h"

static const struct option_spec options[] = {
  { "bitmap", 'b', "NAME", "the bitmap (required)" },
  { "disk", 'd', "NAME", "the disk (control socket: required)" },
  { "json", 0, NULL, "print one JSON array" },
  { "plain-tcp", 0, NULL, "as of backup" },
  TLS_OPTION_CERTIFICATES,
  TLS_OPTION_PSK,
  TLS_OPTION_USER,
  { "totals", 0, NULL, "print the sums only" },
  { NULL }
};

struct totals {
  uint64_t data, zero, extents;
};

static void
print_run (const struct dirty_run *run, bool is_json, struct totals *t)
{
  if (is_json)
    printf ("%s\n{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
            ", \"dirty\": true, \"zero\": %s }", t->extents ? "," : "",
            run->off, run->len, run->is_zero ? "true" : "false");
  else
    printf ("%15" PRIu64 " %15" PRIu64 "  %s\n", run->off, run->len,
            run->is_zero ? "dirty,zero" : "dirty");
}

/* The last run is held back: the next piece may go on with it. */
static void
print_runs (struct dirty_runs *runs, bool is_last, const struct options *o,
            struct totals *t)
{
  size_t n = is_last || runs->len == 0 ? runs->len : runs->len - 1, i;

  for (i = 0; i < n; i++) {
    const struct dirty_run *run = &runs->ptr[i];

    if (!options_has (o, "totals"))
      print_run (run, options_has (o, "json"), t);
    t->extents++;
    *(run->is_zero ? &t->zero : &t->data) += run->len;
  }
  if (n > 0) {
    memmove (runs->ptr, runs->ptr + n, (runs->len - n) * sizeof *runs->ptr);
    runs->len -= n;
  }
}

static void
print_totals (const struct options *o, const struct totals *t, uint64_t size)
{
  char a[SIZE_STRING_MAX], b[SIZE_STRING_MAX], c[SIZE_STRING_MAX];
  uint64_t dirty = t->data + t->zero;

  if (options_has (o, "json")) {
    if (options_has (o, "totals"))
      printf ("{ \"dirty\": %" PRIu64 ", \"zero\": %" PRIu64 ", \"extents\": %"
              PRIu64 ", \"size\": %" PRIu64 " }\n", dirty, t->zero,
              t->extents, size);
    else
      printf ("%s]\n", t->extents ? "\n" : "");
  }
  else
    printf ("%s dirty (%s of it zero) of %s, in %" PRIu64 " extents\n",
            size_format (dirty, a), size_format (t->zero, b),
            size_format (size, c), t->extents);
}

static int
print_map (struct blk *blk, const struct options *o, struct error *err)
{
  const struct dirty_map_options m = {
    .blk = blk, .is_incremental = true, .cluster_size = 1,
  };
  struct dirty_runs runs = VECTOR_INIT;
  struct totals t = { 0 };
  struct dirty_map *map;
  int r = dirty_map_new (&m, &map);

  if (r < 0)
    return error_set_errno (err, -r, "map");
  if (options_has (o, "json") && !options_has (o, "totals"))
    putchar ('[');
  do {
    r = interrupt_is_set () ? interrupt_error (err)
      : dirty_map_next (map, &runs, err);
    if (r >= 0)
      print_runs (&runs, r == 0, o, &t);
  } while (r > 0);
  if (r == 0)
    print_totals (o, &t, blk_size (blk));
  dirty_runs_reset (&runs);
  dirty_map_free (map);
  return r;
}

static int
map_export (const char *uri, bool is_foreign, const char *context,
            const struct options *o, struct error *err)
{
  struct interrupt_watch watch = { 0 };
  struct blk *blk;
  int r = source_open (uri, is_foreign, context, 1, &blk, err);

  if (r < 0)
    return r;
  r = interrupt_watch_start (&watch, source_cancel, blk, err);
  if (r == 0)
    r = print_map (blk, o, err);
  interrupt_watch_stop (&watch);
  blk_close (blk);
  if (r == -ECANCELED)
    interrupt_error (err);
  return r;
}

static int
map_nbd (const char *uri, const struct options *o, struct error *err)
{
  char *context = source_context (options_get (o, "bitmap"));
  int r;

  if (!context)
    return error_set_errno (err, ENOMEM, "%s", uri);
  r = map_export (uri, false, context, o, err);
  free (context);
  return r;
}

static int
begin (struct control *c, const struct options *o, json_t **ret,
       struct error *err)
{
  struct control_call call = {
    .command = "backup-begin",
    .args = json_pack ("{s:s, s:s, s:[{s:s, s:s}]}",
                       "mode", "incremental", "view", "dirty", "disks",
                       "disk", options_get (o, "disk"),
                       "bitmap", options_get (o, "bitmap")),
    .is_final = true,
  };

  return control_call (c, &call, ret, err);
}

static int
map_session (struct control *c, const struct options *o, struct error *err)
{
  struct control_call end = { .command = "backup-end", .is_final = true };
  struct error end_err = ERROR_INIT;
  json_t *answer;
  const json_t *disk;
  CLEANUP_FREE char *uri = NULL;
  const char *context;
  int r = begin (c, o, &answer, err);

  if (r < 0)
    return r;
  disk = json_array_get (json_object_get (answer, "disks"), 0);
  r = control_check_uri (c, json_string_value (json_object_get (disk, "uri")),
                         &uri, err);
  context = json_string_value (json_array_get (
    json_object_get (disk, "contexts"), 1));
  if (r == 0 && uri && context)
    r = map_export (uri, true, context, o, err);
  else if (r == 0)
    r = error_set (err, EPROTO, "backup-begin: malformed answer");
  end.args = json_pack ("{s:O, s:b}", "id", json_object_get (answer, "id"),
                        "success", 0);
  if (control_call (c, &end, NULL, &end_err) < 0)
    log_warning ("the session could not be ended: %s", end_err.msg);
  json_decref (answer);
  return r;
}

static int
cmd_map_run (const struct options *o)
{
  struct error err = ERROR_INIT;
  enum source_kind kind;
  struct control *c;
  int r;

  if (control_source_kind (o->args[0], &kind, &err) < 0)
    return client_usage (&cmd_map, "%s", err.msg);
  if (!options_has (o, "bitmap"))
    return client_usage (&cmd_map, "--bitmap NAME is missing");
  if (kind == SOURCE_NBD)
    r = map_nbd (o->args[0], o, &err);
  else if (!options_has (o, "disk"))
    return client_usage (&cmd_map, "--disk NAME is missing");
  else if ((r = control_connect (o->args[0], &c, &err)) == 0) {
    if (options_has (o, "plain-tcp"))
      control_allow_plain_tcp (c);
    r = map_session (c, o, &err);
    control_close (c);
  }
  return r < 0 ? client_fail (&err) : STATUS_OK;
}

const struct command cmd_map = {
  .name = "map",
  .synopsis = "SOURCE",
  .summary = "show the dirty extents of a bitmap",
  .options = options,
  .min_args = 1,
  .max_args = 1,
  .run = cmd_map_run,
};
