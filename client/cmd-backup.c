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
#include "interrupt.h"
#include "log.h"
#include "progress.h"
#include "range.h"
#include "size.h"
#include "source.h"

#define DEFAULT_LEASE 300

static const struct option_spec options[] = {
  { "bitmap", 'b', "NAME", "the bitmap to use (control socket: by default one"
    " named after the repository)" },
  { "cluster-size", 0, "SIZE", "of the image, 512 to 2M (default 64K)" },
  { "compress", 0, "TYPE[:LEVEL]", "store clusters compressed: zstd (levels 1 "
    "to 19) or zlib (1 to 9)" },
  { "connections", 0, "N", "NBD connections, 1 to 64 (default 4)" },
  { "disk", 'd', "NAME", "back up this disk (control socket: repeatable, by "
    "default all)" },
  { "full", 0, NULL, "make a full backup" },
  { "json", 0, NULL, "print one JSON object per event" },
  { "lease", 0, "SECONDS", "how long the server keeps the session of a client"
    " that is gone (default 300)" },
  { "quiet", 'q', NULL, "print warnings and errors only" },
  { NULL }
};

/* The export is open: is it the disk that the chain and the session know? */
static int
check_size (struct backup_run *run, struct backup_disk *d, struct blk *source,
            struct error *err)
{
  uint64_t size = blk_size (source);

  if (size == 0 || size % 512 != 0)
    return error_set (err, EINVAL, "%s: the export has %ju bytes; allowed are "
                      "multiples of 512", d->uri, (uintmax_t) size);
  if (d->size && d->size != size)
    return error_set (err, EPROTO, "%s: the export has %ju bytes, but the "
                      "server had said %ju", d->uri, (uintmax_t) size,
                      (uintmax_t) d->size);
  d->size = size;
  if (run->control)
    return 0;
  if (d->is_incremental) {
    backup_check_chain (d->chain, size, d->reason);
    if (d->reason[0]) {
      d->is_incremental = false;
      snprintf (d->why, sizeof d->why, "%s", d->reason);
    }
  }
  d->dirty_bytes = d->is_incremental ? 0 : size;
  return 0;
}

static struct manifest *
make_manifest (const struct backup_run *run, const struct backup_disk *d)
{
  const struct backup *head = chain_head (d->chain);
  struct manifest *m = calloc (1, sizeof *m);
  size_t i;

  if (!m)
    return NULL;
  m->number = d->chain->max_number + 1;
  m->is_full = !d->is_incremental;
  m->disk = strdup (d->name);
  m->point = m->session = run->point;
  if (!m->is_full) {
    m->backing_number = head->number;
    m->is_backing_full = head->is_full;
    m->parent = head->manifest->point;
    m->base = run->control ? d->base : m->parent;
  }
  m->time = run->time;
  m->source = strdup (run->source);
  m->bitmap = d->bitmap ? strdup (d->bitmap) : NULL;
  m->mode = strdup (m->is_full ? "full" : "incremental");
  m->why = strdup (d->why);
  m->virtual_size = d->size;
  m->cluster_size = run->cluster_size;
  m->dirty_bytes = d->dirty_bytes;
  m->tool = strdup (PACKAGE_STRING);
  m->disks = json_array ();
  for (i = 0; i < run->nr_disks; i++)
    json_array_append_new (m->disks, json_string (run->disks[i].name));
  if (!m->disk || !m->source || !m->mode || !m->why || !m->tool || !m->disks
      || (d->bitmap && !m->bitmap)) {
    manifest_free (m);
    return NULL;
  }
  return m;
}

static double
seconds_now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (double) ts.tv_sec + (double) ts.tv_nsec / 1e9;
}

static void
say_begin (const struct backup_run *run, const struct backup_disk *d)
{
  char size[SIZE_STRING_MAX];

  /* Of a plain NBD server nobody knows before the map has been read. */
  if (run->control || !d->is_incremental)
    progress_say ("%s: %s, %s to pull (%s)", d->name, d->manifest->mode,
                  size_format (d->dirty_bytes, size), d->why);
  else
    progress_say ("%s: %s (%s)", d->name, d->manifest->mode, d->why);
  progress_event ("disk-begin", json_pack (
    "{s:s, s:s, s:s, s:I, s:I}", "disk", d->name, "mode", d->manifest->mode,
    "why", d->why, "size", (json_int_t) d->size,
    "dirty-bytes", (json_int_t) d->dirty_bytes));
}

static void
say_end (const struct backup_disk *d)
{
  const struct manifest *m = d->manifest;
  char a[SIZE_STRING_MAX], b[SIZE_STRING_MAX];

  progress_say ("%s: moved %s in %.2f s (%.0f MB/s), stored %s", d->name,
                size_format (d->read_bytes, a), d->seconds,
                d->seconds > 0 ? (double) d->read_bytes / d->seconds / 1e6 : 0,
                size_format (m->data_bytes, b));
  progress_event ("disk-end", json_pack (
    "{s:s, s:I, s:I, s:I, s:f}", "disk", d->name, "moved-bytes",
    (json_int_t) d->read_bytes,
    "data-bytes", (json_int_t) m->data_bytes,
    "zero-bytes", (json_int_t) m->zero_bytes, "seconds", d->seconds));
}

static int
pull_opened (struct backup_run *run, struct backup_disk *d,
             struct blk *source, struct error *err)
{
  struct pull_result result;
  char backing[BACKUP_NAME_MAX];
  struct manifest *m = d->manifest;
  const struct pull_options o = {
    .source = source,
    .is_incremental = d->is_incremental,
    .dirfd = d->chain->dirfd,
    .folder = d->chain->folder,
    .number = m->number,
    .is_full = m->is_full,
    .backing = m->is_full ? NULL
      : backup_name (m->backing_number, m->is_backing_full, ".qcow2", backing),
    .cluster_size = run->cluster_size,
    .compress = run->compress,
    .compression = run->compression,
    .compression_level = run->compression_level,
    .point = m->point,
    .nr_threads = run->nr_connections,
    .cancel = interrupt_flag (),
  };
  double start = seconds_now ();
  int r;

  say_begin (run, d);
  progress_begin (d->name, d->dirty_bytes);
  r = pull_run (&o, &result, err);
  progress_end ();
  if (r < 0)
    return r;
  d->seconds = seconds_now () - start;
  d->read_bytes = result.read_bytes;
  m->data_bytes = result.data_bytes;
  m->zero_bytes = result.zero_bytes;
  m->image_bytes = result.image_bytes;
  memcpy (m->root, result.root, sizeof m->root);
  m->finished = (int64_t) time (NULL);
  if (!run->control && d->is_incremental)
    m->dirty_bytes = m->data_bytes + m->zero_bytes;
  say_end (d);
  return 0;
}

static int
pull_disk (struct backup_run *run, struct backup_disk *d, struct error *err)
{
  struct interrupt_watch watch = { 0 };
  struct blk *source;
  int r;

  if (d->chain->max_number >= BACKUP_MAX_NUMBER)
    return error_set (err, EOVERFLOW, "%s: the chain is full (%d backups)",
                      d->chain->folder, BACKUP_MAX_NUMBER);
  r = source_open (d->uri, run->control != NULL, d->context,
                   run->nr_connections, &source, err);
  if (r < 0)
    return r;
  r = check_size (run, d, source, err);
  if (r == 0)
    r = interrupt_watch_start (&watch, source_cancel, source, err);
  if (r == 0) {
    d->manifest = make_manifest (run, d);
    r = d->manifest ? pull_opened (run, d, source, err)
      : error_set_errno (err, ENOMEM, "%s", d->name);
  }
  interrupt_watch_stop (&watch);
  blk_close (source);
  return r;
}

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

/* All disks have been pulled: make the set appear and tell the server. */
static int
commit (struct backup_run *run, struct repo_item *items, struct error *err)
{
  struct error end = ERROR_INIT;
  bool is_stored, is_told;
  size_t i;
  int r = repo_commit (run->repo, items, run->nr_disks, &is_stored, err);

  if (!is_stored)
    return r;
  if (r < 0)
    log_warning ("the backup is stored, but not known to be safe from a power"
                 " cut: %s", err->msg);
  is_told = r == 0 && backup_end_session (run, true, &end) == 0;
  if (is_told)
    repo_acknowledged (items, run->nr_disks);
  else if (r == 0)
    log_warning ("the backup is stored, but the server has not confirmed it: "
                 "%s; the next incremental counts from an older point and is "
                 "larger", end.msg);
  for (i = 0; i < run->nr_disks; i++)
    say_stored (run, &items[i], is_told);
  /* Without the sync it may be lost yet: run_backup aborts the session. */
  return r;
}

static int
pull_and_commit (struct backup_run *run, struct error *err)
{
  struct repo_item *items = calloc (run->nr_disks, sizeof *items);
  size_t i;
  int r = 0;

  if (!items)
    return error_set_errno (err, ENOMEM, "disks");
  for (i = 0; i < run->nr_disks && r == 0; i++) {
    r = pull_disk (run, &run->disks[i], err);
    if (r < 0)
      break;
    items[i].chain = run->disks[i].chain;
    items[i].manifest = run->disks[i].manifest;
    items[i].is_acknowledged = run->control == NULL;
  }
  if (r == 0 && interrupt_is_set ())
    r = -ECANCELED;
  if (r < 0) {
    if (r == -ECANCELED)
      interrupt_error (err);
    repo_discard (items, i);
  }
  else
    r = commit (run, items, err);
  free (items);
  return r;
}

static int
run_backup (struct backup_run *run, enum source_kind kind, struct error *err)
{
  struct error end = ERROR_INIT;
  int r;

  r = kind == SOURCE_CONTROL ? backup_begin_session (run, err)
    : backup_begin_nbd (run, err);
  if (r == 0)
    r = pull_and_commit (run, err);
  if (r < 0) {
    if (backup_end_session (run, false, &end) < 0)
      log_warning ("the server could not be told that the backup ended: %s; "
                   "it ends the session when its lease runs out", end.msg);
  }
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
  uint64_t lease = DEFAULT_LEASE;
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
    r = parse_compression (run, err);
  run->cluster_size = (uint32_t) cluster_size;
  run->nr_connections = (unsigned) connections;
  run->lease = (unsigned) lease;
  run->is_full = options_has (o, "full");
  return r;
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
  r = repo_open_locked (o->args[1], &run.repo, &err);
  if (r == 0) {
    r = run_backup (&run, kind, &err);
    repo_close (run.repo);
  }
  return r < 0 ? client_fail (&err) : STATUS_OK;
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
