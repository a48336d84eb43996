/* SPDX-License-Identifier: BSD-3-Clause */
/* tidemark restore: write a stored backup to a file, a block device or an NBD
 * export.  Main thread.
 */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "client.h"
#include "interrupt.h"
#include "log.h"
#include "progress.h"
#include "repo.h"
#include "restore.h"
#include "size.h"
#include "tls-options.h"
#include "verify.h"

static const struct option_spec options[] = {
  { "at", 0, "WHEN", "which backup: a number, a point, a time (default: "
    "latest)" },
  { "connections", 0, "N", "NBD connections, 1 to 64 (default 4)" },
  { "disk", 'd', "NAME", "the disk (needed if the repository has several)" },
  { "force", 'f', NULL, "overwrite an existing file or a block device" },
  { "format", 0, "FORMAT", "of a new file: raw (default) or qcow2" },
  { "json", 0, NULL, "print one JSON object per event" },
  { "quiet", 'q', NULL, "print warnings and errors only" },
  TLS_OPTION_CERTIFICATES,
  TLS_OPTION_PSK,
  TLS_OPTION_USER,
  { "verify", 0, NULL, "check the backup by its checksums first" },
  { NULL }
};

struct run {
  const struct options *options;
  struct restore_options restore;
  struct repo *repo;
  struct chain *chain;
  const struct backup *backup;
};

static int
open_only_disk (struct run *run, struct error *err)
{
  char **names;
  size_t nr, i, len;
  int r = repo_disks (run->repo, &names, &nr, err);

  if (r < 0)
    return r;
  if (nr == 1)
    r = chain_open (run->repo->path, run->repo->dirfd, names[0], false,
                    &run->chain, err);
  else if (nr == 0)
    r = error_set (err, ENOENT, "%s holds no backup", run->repo->path);
  else {
    r = error_set (err, EINVAL, "%s holds %zu disks; choose one with --disk:",
                   run->repo->path, nr);
    for (i = 0; i < nr; i++) {
      len = strlen (err->msg);
      snprintf (err->msg + len, sizeof err->msg - len, " %s", names[i]);
    }
  }
  repo_free_names (names, nr);
  return r;
}

static int
open_chain (struct run *run, struct error *err)
{
  const char *disk = options_get (run->options, "disk");
  int r;

  if (disk)
    r = chain_open (run->repo->path, run->repo->dirfd, disk, false,
                    &run->chain, err);
  else
    r = open_only_disk (run, err);
  if (r == 0)
    r = chain_select (run->chain, options_get (run->options, "at"),
                      &run->backup, err);
  if (r == 0)
    r = chain_check_usable (run->chain, run->backup, err);
  return r;
}

/* Damages found, or -errno. */
static int64_t
verify_chain (struct run *run, struct error *err)
{
  const struct verify_options o = { .cancel = interrupt_flag () };
  const struct backup *b;
  uint64_t total = 0;
  int64_t n = 0, m = 0;

  for (b = run->backup; b; b = chain_backing (run->chain, b))
    total += b->manifest ? b->manifest->data_bytes : 0;
  progress_begin ("verifying", total);
  for (b = run->backup; b && m >= 0; b = chain_backing (run->chain, b)) {
    n += verify_backing (run->chain, b);
    m = verify_layer (run->chain, b, &o, err);
    if (m > 0)
      n += m;
  }
  progress_end ();
  return m < 0 ? m : n;
}

static double
seconds_since (const struct timespec *start)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return (double) (now.tv_sec - start->tv_sec)
    + (double) (now.tv_nsec - start->tv_nsec) / 1e9;
}

static void
say_done (const struct run *run, const struct restore_result *result,
          double seconds)
{
  const struct manifest *m = run->backup->manifest;
  char a[SIZE_STRING_MAX], b[SIZE_STRING_MAX], t[TIME_STRING_SIZE];
  char id[POINT_ID_STRING_SIZE];

  point_id_format (&m->point, id);
  progress_say ("%s: backup %u of %s restored to %s: %s, of which %s data, in "
                "%.2f s", run->chain->disk, m->number,
                time_format (m->time, t), run->restore.output,
                size_format (m->virtual_size, a),
                size_format (result->written_bytes, b), seconds);
  progress_event ("restored", json_pack (
    "{s:s, s:i, s:s, s:s, s:I, s:I, s:f}", "disk", run->chain->disk,
    "number", (int) m->number, "point", id, "output", run->restore.output,
    "size", (json_int_t) m->virtual_size,
    "written-bytes", (json_int_t) result->written_bytes,
    "seconds", seconds));
}

static int
restore_backup (struct run *run, struct error *err)
{
  struct restore_result result;
  struct timespec start;
  int r;

  clock_gettime (CLOCK_MONOTONIC, &start);
  r = chain_open_image (run->chain, run->backup, false, &run->restore.source,
                        err);
  if (r < 0)
    return r;
  if (blk_size (run->restore.source) != run->backup->manifest->virtual_size)
    r = error_set (err, EBADMSG, "%s: the image of backup %u has another size "
                   "than its manifest says", run->chain->folder,
                   run->backup->number);
  if (r == 0) {
    progress_begin (run->chain->disk, blk_size (run->restore.source));
    r = restore_run (&run->restore, &result, err);
    progress_end ();
  }
  blk_close (run->restore.source);
  if (r == 0)
    say_done (run, &result, seconds_since (&start));
  return r;
}

/* An exit code. */
static int
run_opened (struct run *run)
{
  struct error err = ERROR_INIT;
  int64_t n = 0;
  int r = open_chain (run, &err);

  if (r == 0 && options_has (run->options, "verify"))
    n = verify_chain (run, &err);
  if (n > 0) {
    log_error ("%s: the backup is damaged; nothing has been restored",
               run->chain->folder);
    return STATUS_DAMAGED;
  }
  if (n < 0)
    r = (int) n;
  if (r == 0)
    r = restore_backup (run, &err);
  if (r == -ECANCELED)
    interrupt_error (&err);
  return r < 0 ? client_fail (&err) : STATUS_OK;
}

static int
cmd_restore_run (const struct options *o)
{
  const char *format = options_get (o, "format");
  struct run run = { .options = o };
  struct error err = ERROR_INIT;
  uint64_t connections = 0;
  int status;

  if (format && strcmp (format, "raw") != 0 && strcmp (format, "qcow2") != 0)
    return client_usage (&cmd_restore, "--format %s: allowed are raw and "
                         "qcow2", format);
  if (options_get_number (o, "connections", false, 1, 64, &connections,
                          &err) < 0)
    return client_usage (&cmd_restore, "%s", err.msg);
  run.restore.output = o->args[1];
  run.restore.is_qcow2 = format && strcmp (format, "qcow2") == 0;
  run.restore.is_forced = options_has (o, "force");
  run.restore.nr_connections = (unsigned) connections;
  run.restore.cancel = interrupt_flag ();
  if (repo_open (o->args[0], &run.repo, &err) < 0)
    return client_fail (&err);
  status = run_opened (&run);
  chain_close (run.chain);
  repo_close (run.repo);
  return status;
}

const struct command cmd_restore = {
  .name = "restore",
  .synopsis = "REPOSITORY OUTPUT",
  .summary = "write a backup to a file, a block device or an NBD export",
  .options = options,
  .min_args = 2,
  .max_args = 2,
  .run = cmd_restore_run,
};
