/* SPDX-License-Identifier: BSD-3-Clause */
/* Arguments of drive-backup and blockdev-backup, with QEMU's defaults, rules
 * and messages.
 *
 * Called by control threads, inside a command, without locks; release_target
 * by whoever ends the job.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup-action.h"
#include "cleanup.h"
#include "log.h"
#include "nodes.h"
#include "push-target.h"
#include "qmp-args.h"

enum { SYNC_TOP, SYNC_FULL, SYNC_NONE, SYNC_INCREMENTAL, SYNC_BITMAP };
static const char *const syncs[] = {
  "top", "full", "none", "incremental", "bitmap", NULL
};
static const char *const bitmap_modes[] = {
  [JOB_BITMAP_ON_SUCCESS] = "on-success", [JOB_BITMAP_NEVER] = "never",
  [JOB_BITMAP_ALWAYS] = "always", [JOB_BITMAP_ALWAYS + 1] = NULL
};
static const char *const on_errors[] = {
  [JOB_ON_ERROR_REPORT] = "report", [JOB_ON_ERROR_IGNORE] = "ignore",
  [JOB_ON_ERROR_ENOSPC] = "enospc", [JOB_ON_ERROR_STOP] = "stop",
  [JOB_ON_ERROR_AUTO] = "auto", [JOB_ON_ERROR_AUTO + 1] = NULL
};
static const char *const modes[] = { "existing", "absolute-paths", NULL };

/* BackupCommon of qapi/block-core.json, in its order. */
#define COMMON_ARGS \
  { "job-id", QMP_STRING, false, NULL }, \
  { "device", QMP_STRING, true, NULL }, \
  { "sync", QMP_ENUM, true, syncs }, \
  { "speed", QMP_INT64, false, NULL }, \
  { "bitmap", QMP_STRING, false, NULL }, \
  { "bitmap-mode", QMP_ENUM, false, bitmap_modes }, \
  { "compress", QMP_BOOL, false, NULL }, \
  { "on-source-error", QMP_ENUM, false, on_errors }, \
  { "on-target-error", QMP_ENUM, false, on_errors }, \
  { "auto-finalize", QMP_BOOL, false, NULL }, \
  { "auto-dismiss", QMP_BOOL, false, NULL }, \
  { "filter-node-name", QMP_STRING, false, NULL }, \
  { "x-perf", QMP_OBJECT, false, NULL }, \
  { "target", QMP_STRING, true, NULL }

int
backup_action_check (json_t *args, const char *path, bool is_drive,
                     struct error *err)
{
  static const struct qmp_arg drive_table[] = {
    COMMON_ARGS,
    { "format", QMP_STRING, false, NULL },
    { "mode", QMP_ENUM, false, modes },
    { NULL }
  };
  static const struct qmp_arg node_table[] = { COMMON_ARGS, { NULL } };

  return qmp_args_check (args, path, is_drive ? drive_table : node_table, err);
}

/*---- What belongs to a job and goes with it ----*/

struct job_nodes {
  struct nodes *nodes;
  struct disk *source;          /* held; NULL = not (yet) */
  struct disk *target;          /* held; NULL: the target is to be closed */
};

static void
release_target (void *opaque, struct blk *target)
{
  struct job_nodes *jn = opaque;
  int r = jn->target ? 0 : blk_close (target);

  if (r < 0)
    log_error ("backup target: cannot write back: %s", strerror (-r));
  if (jn->target)
    nodes_release (jn->nodes, jn->target, NODE_USE_JOB);
  if (jn->source)
    nodes_release (jn->nodes, jn->source, NODE_USE_JOB);
  free (jn);
}

/*---- Rules ----*/

struct disk *
backup_action_disk (struct qmp_call *call, const struct backup_action *a,
                    struct error *err)
{
  return nodes_find_device (service_nodes (call->service),
                            qmp_args_string (a->args, "device", NULL), err);
}

/* The bitmap can be used: job_take_point would say so too, but a file would
 * have been made by then.
 */
static int
check_usable (struct dirty_bitmap *bm, const char *name, struct error *err)
{
  struct dirty_info info;

  if (dirty_get_info (bm, &info) < 0)
    return error_set (err, ENOENT, "Bitmap '%s' could not be found", name);
  free (info.name);
  if (info.is_busy)
    return error_set (err, EBUSY, "Bitmap '%s' is currently in use by another"
                      " operation and cannot be used", name);
  if (info.state == DIRTY_INCONSISTENT)
    return error_set (err, EINVAL, "Bitmap '%s' is inconsistent and cannot be"
                      " used", name);
  return 0;
}

static int
check_bitmap (struct disk *disk, const char *name, int mode, struct error *err)
{
  struct dirty_bitmap *bm = dirty_find (disk_dirty (disk), name);
  int r;

  if (bm == NULL)
    return error_set (err, ENOENT, "Bitmap '%s' could not be found", name);
  if (mode < 0)
    r = error_set (err, EINVAL, "Bitmap sync mode must be given when"
                   " providing a bitmap");
  else
    r = check_usable (bm, name, err);
  dirty_unref (bm);
  return r;
}

static int
check_combination (int sync, const char *bitmap, int mode, struct error *err)
{
  if (bitmap == NULL && mode >= 0)
    return error_set (err, EINVAL,
                      "Cannot specify bitmap sync mode without a bitmap");
  if (bitmap == NULL)
    return 0;
  if (mode < 0)
    return error_set (err, EINVAL, "Bitmap sync mode must be given when"
                      " providing a bitmap");
  if (sync == SYNC_NONE)
    return error_set (err, EINVAL, "sync mode 'none' does not produce"
                      " meaningful bitmap outputs");
  if (mode == JOB_BITMAP_NEVER && sync != SYNC_BITMAP)
    return error_set (err, EINVAL, "Bitmap sync mode 'never' has no meaningful"
                      " effect when combined with sync mode '%s'", syncs[sync]);
  return 0;
}

/* sync, bitmap and bitmap-mode, in QEMU's order of checks. */
static int
parse_sync (json_t *args, struct job_request *r, bool bitmap_may_come,
            struct error *err)
{
  static const enum job_sync meanings[] = {
    [SYNC_TOP] = JOB_SYNC_TOP, [SYNC_FULL] = JOB_SYNC_FULL,
    [SYNC_NONE] = JOB_SYNC_NONE, [SYNC_INCREMENTAL] = JOB_SYNC_BITMAP,
    [SYNC_BITMAP] = JOB_SYNC_BITMAP,
  };
  int sync = qmp_args_enum (args, "sync", syncs, SYNC_FULL);
  int mode = qmp_args_enum (args, "bitmap-mode", bitmap_modes, -1);

  r->sync = meanings[sync];
  r->bitmap = qmp_args_string (args, "bitmap", NULL);
  if (r->sync == JOB_SYNC_BITMAP && r->bitmap == NULL)
    return error_set (err, EINVAL, "must provide a valid bitmap name for '%s'"
                      " sync mode", syncs[sync]);
  if (sync == SYNC_INCREMENTAL) {
    if (mode > JOB_BITMAP_ON_SUCCESS)
      return error_set (err, EINVAL, "Bitmap sync mode must be 'on-success'"
                        " when using sync mode 'incremental'");
    mode = JOB_BITMAP_ON_SUCCESS;
    sync = SYNC_BITMAP;
  }
  if (r->bitmap && !bitmap_may_come
      && check_bitmap (r->disk, r->bitmap, mode, err) < 0)
    return -EINVAL;
  if (mode >= 0)
    r->bitmap_mode = (enum job_bitmap_mode) mode;
  return check_combination (sync, r->bitmap, mode, err);
}

/* Accepted for QEMU's clients; our engine has other knobs. */
static int
check_perf (const json_t *perf, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "use-copy-range", QMP_BOOL, false, NULL },
    { "max-workers", QMP_INT64, false, NULL },
    { "max-chunk", QMP_INT64, false, NULL },
    { NULL }
  };
  int64_t workers, chunk;

  if (perf == NULL)
    return 0;
  if (qmp_args_check (perf, "x-perf", table, err) < 0)
    return -EINVAL;
  workers = qmp_args_int (perf, "max-workers", 1);
  chunk = qmp_args_int (perf, "max-chunk", 0);
  if (workers < 1 || workers > INT32_MAX)
    return error_set (err, EINVAL, "max-workers must be between 1 and %d",
                      INT32_MAX);
  if (chunk < 0)
    return error_set (err, EINVAL, "max-chunk must be zero (which means no"
                      " limit) or positive");
  return 0;
}

/* What does not depend on the target. */
static int
parse_request (struct qmp_call *call, json_t *args, bool bitmap_may_come,
               struct job_request *r, struct error *err)
{
  const char *filter = qmp_args_string (args, "filter-node-name", NULL);
  int64_t speed = qmp_args_int (args, "speed", 0);

  if (parse_sync (args, r, bitmap_may_come, err) < 0
      || check_perf (json_object_get (args, "x-perf"), err) < 0)
    return -EINVAL;
  if (filter && nodes_find_disk (service_nodes (call->service), filter))
    return error_set (err, EEXIST, "Could not create node: Duplicate nodes"
                      " with node-name='%s'", filter);
  if (speed < 0)
    return error_set (err, EINVAL, "Parameter 'speed' expects a non-negative"
                      " value");
  r->id = qmp_args_string (args, "job-id", disk_name (r->disk));
  r->speed = (uint64_t) speed;
  r->on_source_error = (enum job_on_error)
    qmp_args_enum (args, "on-source-error", on_errors, JOB_ON_ERROR_REPORT);
  r->on_target_error = (enum job_on_error)
    qmp_args_enum (args, "on-target-error", on_errors, JOB_ON_ERROR_REPORT);
  r->compress = qmp_args_bool (args, "compress", false);
  r->is_manual_finalize = !qmp_args_bool (args, "auto-finalize", true);
  r->is_manual_dismiss = !qmp_args_bool (args, "auto-dismiss", true);
  return 0;
}

/*---- Targets ----*/

static const char *
format_of (const struct blk *node)
{
  return strcmp (node->driver->name, "qcow2") == 0 ? "qcow2" : "raw";
}

/* sync top is full without a lower layer; a new target for top or none has the
 * layer below, or the disk itself, as its backing file.
 */
static int
open_drive_target (struct backup_action *a, struct job_request *r,
                   struct error *err)
{
  const struct blk *node = disk_node (r->disk), *below = NULL;
  struct push_target_options options = {
    .path = qmp_args_string (a->args, "target", NULL),
    .format = qmp_args_string (a->args, "format", NULL),
    .is_existing = qmp_args_enum (a->args, "mode", modes, 1) == 0,
    .size = disk_size (r->disk),
  };
  bool is_new;
  int ret;

  if (r->sync == JOB_SYNC_TOP && node->backing == NULL)
    r->sync = JOB_SYNC_FULL;
  if (r->sync == JOB_SYNC_TOP)
    below = node->backing;
  else if (r->sync == JOB_SYNC_NONE)
    below = node;
  if (!options.is_existing) {
    if (options.format == NULL)
      options.format = format_of (node);
    if (below) {
      options.backing_file = below->filename;
      options.backing_format = format_of (below);
    }
  }
  ret = push_target_open (&options, &r->target, &is_new, err);
  if (ret < 0)
    return ret;
  r->target_is_zero = !options.is_existing && below == NULL;
  if (is_new)
    a->new_file = strdup (options.path);
  return 0;
}

static int
take_node_target (struct disk *disk, struct job_request *r,
                  struct job_nodes *jn, struct error *err)
{
  int ret;

  if (blk_is_read_only (disk_blk (disk)))
    return error_set (err, EPERM, "Block node is read-only");
  ret = nodes_hold (jn->nodes, disk, NODE_USE_JOB, err);
  if (ret < 0)
    return ret;
  jn->target = disk;
  r->target = disk_blk (disk);
  return 0;
}

/* Fill the request; its target and *jn hold what has been taken so far, on
 * failure too.
 */
static int
fill_request (struct qmp_call *call, struct backup_action *a,
              bool bitmap_may_come, struct job_nodes *jn,
              struct job_request *r, struct error *err)
{
  struct disk *target = NULL;
  int ret;

  r->disk = backup_action_disk (call, a, err);
  if (r->disk == NULL)
    return -ENOENT;
  if (!a->is_drive) {
    target = nodes_find_device (jn->nodes, qmp_args_string (a->args, "target",
                                                            NULL), err);
    if (target == NULL)
      return -ENOENT;
  }
  ret = parse_request (call, a->args, bitmap_may_come, r, err);
  if (ret == 0 && target == r->disk)
    ret = error_set (err, EINVAL, "Source and target cannot be the same");
  if (ret == 0)
    ret = nodes_hold (jn->nodes, r->disk, NODE_USE_JOB, err);
  if (ret < 0)
    return ret;
  jn->source = r->disk;
  ret = a->is_drive ? open_drive_target (a, r, err)
    : take_node_target (target, r, jn, err);
  if (ret == 0 && r->compress && !(r->target->can & BLK_CAN_COMPRESS))
    ret = error_set (err, ENOTSUP, "Compression is not supported for this"
                     " drive %s", target ? disk_name (target) : "");
  return ret;
}

int
backup_action_prepare (struct qmp_call *call, struct backup_action *a,
                       bool bitmap_may_come, struct error *err)
{
  struct job_nodes *jn = calloc (1, sizeof *jn);
  struct job_request r = { .release_target = release_target, .opaque = jn };
  int ret;

  if (jn == NULL)
    return error_set_errno (err, ENOMEM, "backup");
  jn->nodes = service_nodes (call->service);
  ret = fill_request (call, a, bitmap_may_come, jn, &r, err);
  if (ret < 0)
    release_target (jn, r.target);
  else
    ret = job_new (service_jobs (call->service), &r, &a->job, err);
  if (ret < 0)
    backup_action_finish (a, false);
  return ret;
}

void
backup_action_finish (struct backup_action *a, bool is_started)
{
  if (a->new_file && !is_started)
    unlink (a->new_file);
  free (a->new_file);
  a->new_file = NULL;
  a->job = NULL;
}
