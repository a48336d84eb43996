/* SPDX-License-Identifier: BSD-3-Clause */
/* tidemark backup: one run, from taking the point to telling the server that
 * all is stored.  Main thread.
 *
 * Every way out before the set is committed ends the session as aborted, so
 * that the server merges the frozen bits back, and removes what was written.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "backup.h"
#include "blk-qcow2.h"
#include "client.h"
#include "hooks.h"
#include "interrupt.h"
#include "journal.h"
#include "log.h"
#include "progress.h"
#include "range.h"
#include "size.h"
#include "tls-options.h"

#define DEFAULT_LEASE 300
#define DEFAULT_RETRY 300
#define DEFAULT_TIMEOUT 60
#define DEFAULT_PARALLEL 4
#define DEFAULT_FREEZE_TIMEOUT 10
#define DEFAULT_MEMORY (UINT64_C (256) << 20)
#define MIN_MEMORY (UINT64_C (32) << 20)

static const struct option_spec options[] = {
  { "bandwidth", 0, "RATE", "pull so many bytes per second at most" },
  { "bitmap", 'b', "NAME", "the bitmap to use (control socket: by default one"
    " named after the repository)" },
  { "cluster-size", 0, "SIZE", "of the image, 512 to 2M (default 64K)" },
  { "compress", 0, "TYPE[:LEVEL]", "store clusters compressed: zstd (levels 1 "
    "to 19) or zlib (1 to 9)" },
  { "connections", 0, "N", "NBD connections, 1 to 64 (default 4)" },
  { "disk", 'd', "NAME", "back up this disk (control socket: repeatable, by "
    "default all)" },
  { "estimate", 0, NULL, "print what would be pulled, and change nothing" },
  { "freeze-hook", 0, "COMMAND", "run it with 'freeze' before the point is "
    "taken and with 'thaw' after it" },
  { "freeze-timeout", 0, "SECONDS", "when the guest is thawed whatever has "
    "happened (default 10)" },
  { "full", 0, NULL, "make a full backup: --mode full" },
  { "json", 0, NULL, "print one JSON object per event" },
  { "lease", 0, "SECONDS", "how long the server keeps the session of a client"
    " that is gone (default 300)" },
  { "memory", 0, "SIZE", "for data that is under way, 32M or more (default "
    "256M)" },
  { "mode", 0, "[DISK=]MODE", "auto (default), incremental, full, differential"
    " or copy; of one disk or of all" },
  { "parallel", 0, "N", "disks that are pulled side by side, 1 to 16 (default "
    "4)" },
  { "partial-ok", 0, NULL, "store the other disks if one fails" },
  { "plain-tcp", 0, NULL, "let data come from another machine without TLS, if "
    "the control socket is a local one" },
  { "post", 0, "COMMAND", "run it after the backup, however that has ended" },
  { "pre", 0, "COMMAND", "run it first; if it fails there is no backup" },
  { "quiet", 'q', NULL, "print warnings and errors only" },
  { "retry", 0, "SECONDS", "how long to try to reach the server again after "
    "its connections were lost; 0: not at all (default 300)" },
  { "timeout", 0, "SECONDS", "take connections for lost that are silent for "
    "so long (default 60)" },
  TLS_OPTION_CERTIFICATES,
  TLS_OPTION_PSK,
  TLS_OPTION_USER,
  { NULL }
};

static void
say_stored (const struct backup_run *run, const struct repo_item *item,
            bool is_confirmed)
{
  const struct manifest *m = item->manifest;
  char name[BACKUP_NAME_MAX], id[POINT_ID_STRING_SIZE];
  char image[CHAIN_MAX_DISK_NAME + BACKUP_NAME_MAX + 2];

  /* Relative to the repository. */
  snprintf (image, sizeof image, "%s/%s", m->disk,
            backup_name (m->number, m->is_full, ".qcow2", name));
  point_id_format (&m->point, id);
  progress_say ("%s: stored as %s/%s, point %s", m->disk, run->repo->path,
                image, id);
  progress_event ("stored", json_pack (
    "{s:s, s:i, s:s, s:s, s:b}", "disk", m->disk, "number", (int) m->number,
    "image", image, "point", id, "confirmed", is_confirmed));
}

/* The disks have been pulled: make the set appear and tell the server. */
static int
commit (struct backup_run *run, struct repo_item *items, size_t nr,
        struct error *err)
{
  struct error end = ERROR_INIT;
  bool is_stored, is_told;
  size_t i;
  int r = repo_commit (run->repo, items, nr, &is_stored, err);

  if (!is_stored)
    return r;
  if (r < 0)
    log_warning ("the backup is stored, but not known to be safe from a power"
                 " cut: %s", err->msg);
  is_told = r == 0 && backup_end_session (run, true, &end) == 0;
  if (is_told)
    repo_acknowledged (items, nr);
  else if (r == 0)
    log_warning ("the backup is stored, but the server has not confirmed it: "
                 "%s; the next incremental counts from an older point and is "
                 "larger", end.msg);
  for (i = 0; i < nr; i++)
    say_stored (run, &items[i], is_told);
  /* Without the sync it may be lost yet: run_backup aborts the session. */
  return r;
}

/* The manifests name those that are part of the set. */
static void
name_set (struct backup_run *run)
{
  json_t *names = json_array ();
  size_t i;

  for (i = 0; i < run->nr_disks; i++)
    if (!run->disks[i].is_failed)
      json_array_append_new (names, json_string (run->disks[i].name));
  for (i = 0; i < run->nr_disks; i++)
    if (!run->disks[i].is_failed) {
      json_decref (run->disks[i].manifest->disks);
      run->disks[i].manifest->disks = json_incref (names);
    }
  json_decref (names);
}

static int
pull_and_commit (struct backup_run *run, struct error *err)
{
  struct repo_item *items = calloc (run->nr_disks, sizeof *items);
  size_t nr = 0, i;
  int r;

  if (!items)
    return error_set_errno (err, ENOMEM, "disks");
  backup_share_out (run);
  r = backup_pull_disks (run, err);
  for (i = 0; i < run->nr_disks; i++)
    if (run->disks[i].manifest && !run->disks[i].is_failed)
      items[nr++] = backup_make_item (run, &run->disks[i]);
  if (r == 0) {
    name_set (run);
    r = commit (run, items, nr, err);
    run->is_partial = nr < run->nr_disks;
  }
  else if (!run->is_lost)
    repo_discard (items, nr);
  free (items);
  return r;
}

static int
run_backup (struct backup_run *run, enum source_kind kind, struct error *err)
{
  struct error end = ERROR_INIT;
  int r, e;

  r = kind == SOURCE_CONTROL ? backup_begin_session (run, err)
    : backup_begin_nbd (run, err);
  if (r == 0)
    r = pull_and_commit (run, err);
  if (r < 0 && run->is_lost)
    log_warning ("what was stored is kept: a run within %u s, while the server "
                 "keeps the session, goes on with it", run->lease);
  else if (r < 0) {
    e = backup_end_session (run, false, &end);
    /* Refused: it has ended already. */
    if (e < 0 && e != -EREMOTEIO)
      log_warning ("the server could not be told that the backup ended: %s; "
                   "it ends the session when its lease runs out", end.msg);
  }
  if (run->is_noted && !run->is_lost)
    journal_remove_run (run->repo->dirfd);
  backup_free_disks (run);
  control_close (run->control);
  return r;
}

/* TYPE[:LEVEL] */
static int
parse_compression (struct backup_run *run, struct error *err)
{
  static const struct {
    const char *name;
    enum qcow2_compression type;
    long max;
  } types[] = {
    { "zlib", QCOW2_COMPRESSION_ZLIB, 9 },
    { "zstd", QCOW2_COMPRESSION_ZSTD, 19 },
  };
  const char *value = options_get (run->options, "compress"), *level;
  char *end = NULL;
  long n = 0;

  if (!value)
    return 0;
  level = strchr (value, ':');
  for (size_t i = 0; i < 2; i++) {
    if (strncmp (value, types[i].name, 4) != 0
        || value + 4 != (level ? level : value + strlen (value)))
      continue;
    if (level)
      n = strtol (level + 1, &end, 10);
    if (level && (end == level + 1 || *end || n < 1 || n > types[i].max))
      return error_set (err, EINVAL, "--compress %s: allowed are levels 1 to"
                        " %ld", value, types[i].max);
    run->compress = true;
    run->compression = types[i].type;
    run->compression_level = (int) n;
    return 0;
  }
  return error_set (err, EINVAL, "--compress %s: allowed are zstd and zlib,"
                    " with :LEVEL", value);
}

static int
parse_options (struct backup_run *run, struct error *err)
{
  const struct options *o = run->options;
  uint64_t cluster_size = QCOW2_DEFAULT_CLUSTER_SIZE, connections = 0;
  uint64_t lease = DEFAULT_LEASE, retry = DEFAULT_RETRY;
  uint64_t timeout = DEFAULT_TIMEOUT, freeze = DEFAULT_FREEZE_TIMEOUT;
  uint64_t memory = DEFAULT_MEMORY, parallel = DEFAULT_PARALLEL;
  int r;

  r = options_get_number (o, "cluster-size", true, 512, UINT64_C (1) << 21,
                          &cluster_size, err);
  if (r == 0 && !is_power_of_2 (cluster_size))
    r = error_set (err, EINVAL, "--cluster-size %s: not a power of two",
                   options_get (o, "cluster-size"));
  if (r == 0)
    r = options_get_number (o, "connections", false, 1,
                            BACKUP_MAX_CONNECTIONS, &connections, err);
  if (r == 0)
    r = options_get_number (o, "lease", false, 1, 86400, &lease, err);
  if (r == 0)
    r = options_get_number (o, "memory", true, MIN_MEMORY, INT64_MAX, &memory,
                            err);
  if (r == 0)
    r = options_get_number (o, "parallel", false, 1, BACKUP_MAX_PARALLEL,
                            &parallel, err);
  if (r == 0)
    r = options_get_number (o, "retry", false, 0, 86400, &retry, err);
  if (r == 0)
    r = options_get_number (o, "timeout", false, 1, 86400, &timeout, err);
  if (r == 0)
    r = options_get_number (o, "freeze-timeout", false, 1, 600, &freeze, err);
  if (r == 0)
    r = options_get_number (o, "bandwidth", true, 1024, UINT64_C (1) << 40,
                            &run->bandwidth.rate, err);
  if (r == 0)
    r = parse_compression (run, err);
  if (r == 0)
    r = backup_check_modes (o, err);
  run->cluster_size = (uint32_t) cluster_size;
  run->nr_connections = (unsigned) connections;
  run->nr_parallel = (unsigned) parallel;
  run->lease = (unsigned) lease;
  run->retry = (unsigned) retry;
  run->timeout = (unsigned) timeout;
  run->freeze_timeout = (unsigned) freeze;
  run->is_partial_ok = options_has (o, "partial-ok");
  return r < 0 ? r : backup_set_memory (run, memory, err);
}

static int
run_locked (struct backup_run *run, enum source_kind kind)
{
  struct error err = ERROR_INIT;
  int r = repo_open_locked (run->options->args[1], &run->repo, &err);

  if (r == 0) {
    r = run_backup (run, kind, &err);
    repo_close (run->repo);
  }
  if (r < 0)
    return client_fail (&err);
  return run->is_partial ? STATUS_PARTIAL : STATUS_OK;
}

static int
run_with_hooks (struct backup_run *run, enum source_kind kind)
{
  const char *pre = options_get (run->options, "pre");
  const char *post = options_get (run->options, "post");
  struct error err = ERROR_INIT;
  char status[12];
  int ret;

  setenv ("TIDEMARK_SOURCE", run->source, 1);
  setenv ("TIDEMARK_REPOSITORY", run->options->args[1], 1);
  if (pre && hook_run (pre, "pre", 0, &err) < 0)
    ret = client_fail (&err);
  else
    ret = run_locked (run, kind);
  snprintf (status, sizeof status, "%d", ret);
  setenv ("TIDEMARK_STATUS", status, 1);
  if (post && hook_run (post, "post", 0, &err) < 0)
    log_warning ("%s", err.msg);
  return ret;
}

static int
cmd_backup_run (const struct options *o)
{
  struct backup_run run = { .source = o->args[0], .options = o };
  struct error err = ERROR_INIT;
  enum source_kind kind;
  const char *disk;
  size_t i;
  int r = parse_options (&run, &err);

  if (r < 0)
    return client_usage (&cmd_backup, "%s", err.msg);
  if (control_source_kind (run.source, &kind, &err) < 0)
    return client_usage (&cmd_backup, "%s", err.msg);
  for (i = 0; (disk = options_get_nth (o, "disk", i)) != NULL; i++)
    if (chain_check_disk_name (disk, &err) < 0)
      return client_usage (&cmd_backup, "--disk: %s", err.msg);
  if (kind == SOURCE_NBD && i != 1)
    return client_usage (&cmd_backup, "an NBD export is one disk: give its "
                         "name in the repository with one --disk NAME");
  if (options_has (o, "estimate")) {
    r = backup_estimate (&run, o->args[1], kind, &err);
    return r < 0 ? client_fail (&err) : STATUS_OK;
  }
  if (kind == SOURCE_NBD && options_has (o, "freeze-hook"))
    return client_usage (&cmd_backup, "--freeze-hook needs a server that takes"
                         " a point: SOURCE has to be a control socket");
  return run_with_hooks (&run, kind);
}

const struct command cmd_backup = {
  .name = "backup",
  .synopsis = "SOURCE REPOSITORY",
  .summary = "back up disks into a repository",
  .options = options,
  .min_args = 2,
  .max_args = 2,
  .run = cmd_backup_run,
};
