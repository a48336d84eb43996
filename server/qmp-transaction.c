/* SPDX-License-Identifier: BSD-3-Clause */
/* Transactions: bitmap actions and backups at one point in time, all or none.
 *
 *   check     the whole input, as QEMU does before it begins
 *   prepare   all that waits: targets are opened, jobs made
 *   apply     the gates of all disks closed (I5), action by action; what
 *             fails undoes those before it, last first
 *   finish    gates open; jobs start, or are abandoned
 *
 * A removal is only checked when it is its turn, and done when nothing can fail
 * any more: a bitmap that is gone could not be brought back.
 *
 * drive-backup and blockdev-backup as commands are transactions of one action.
 * Called by control threads, inside a command, without locks.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup-action.h"
#include "cleanup.h"
#include "nodes.h"
#include "qmp.h"
#include "qmp-args.h"
#include "range.h"
#include "vector.h"

enum kind {
  ABORT, ADD, CLEAR, DISABLE, ENABLE, MERGE, REMOVE, BLOCKDEV_BACKUP,
  DRIVE_BACKUP,
};

static const char *const kinds[] = {
  [ABORT] = "abort",
  [ADD] = "block-dirty-bitmap-add",
  [CLEAR] = "block-dirty-bitmap-clear",
  [DISABLE] = "block-dirty-bitmap-disable",
  [ENABLE] = "block-dirty-bitmap-enable",
  [MERGE] = "block-dirty-bitmap-merge",
  [REMOVE] = "block-dirty-bitmap-remove",
  [BLOCKDEV_BACKUP] = "blockdev-backup",
  [DRIVE_BACKUP] = "drive-backup",
  NULL
};

struct action {
  enum kind kind;
  json_t *data;                 /* borrowed */
  struct disk *disk;            /* after prepare; NULL for abort */
  const char *name;             /* the bitmap's; NULL for backups */
  struct backup_action backup;

  /* To undo what was applied. */
  struct dirty_bitmap *bitmap;  /* a reference */
  struct bitmap *saved;         /* CLEAR, MERGE */
  bool was_recording;           /* ENABLE, DISABLE */
};

DEFINE_VECTOR (disk_vector, struct disk *);

struct transaction {
  struct qmp_call *call;
  struct action *actions;
  size_t nr;
  bool is_grouped;
  struct disk_vector disks;     /* by number, each once */
};

static bool
is_backup (const struct action *a)
{
  return a->kind == BLOCKDEV_BACKUP || a->kind == DRIVE_BACKUP;
}

/*---- Check ----*/

static int
check_data (struct action *a, const char *path, struct error *err)
{
  static const struct qmp_arg no_args[] = { { NULL } };

  switch (a->kind) {
  case ABORT:
    return qmp_args_check (a->data, path, no_args, err);
  case BLOCKDEV_BACKUP:
  case DRIVE_BACKUP:
    a->backup.args = a->data;
    a->backup.is_drive = a->kind == DRIVE_BACKUP;
    return backup_action_check (a->data, path, a->backup.is_drive, err);
  case ADD:
    a->name = qmp_args_string (a->data, "name", NULL);
    return qmp_args_check (a->data, path, qmp_bitmap_add_args, err);
  case MERGE:
    a->name = qmp_args_string (a->data, "target", NULL);
    return qmp_args_check (a->data, path, qmp_bitmap_merge_args, err);
  case CLEAR:
  case DISABLE:
  case ENABLE:
  case REMOVE:
    a->name = qmp_args_string (a->data, "name", NULL);
    return qmp_args_check (a->data, path, qmp_bitmap_args, err);
  }
  return 0;
}

static int
check_action (struct action *a, json_t *value, size_t i, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "type", QMP_ENUM, true, kinds },
    { "data", QMP_OBJECT, true, NULL },
    { NULL }
  };
  char path[60];

  snprintf (path, sizeof path, "actions[%zu]", i);
  if (!json_is_object (value))
    return error_set (err, EINVAL, "Invalid parameter type for '%s', expected:"
                      " object", path);
  if (qmp_args_check (value, path, table, err) < 0)
    return -EINVAL;
  a->kind = (enum kind) qmp_args_enum (value, "type", kinds, 0);
  a->data = json_object_get (value, "data");
  snprintf (path, sizeof path, "actions[%zu].data", i);
  return check_data (a, path, err);
}

static int
check_properties (struct transaction *t, json_t *args, struct error *err)
{
  static const char *const modes[] = { "individual", "grouped", NULL };
  static const struct qmp_arg table[] = {
    { "completion-mode", QMP_ENUM, false, modes },
    { NULL }
  };
  json_t *properties = json_object_get (args, "properties");

  if (properties == NULL)
    return 0;
  if (qmp_args_check (properties, "properties", table, err) < 0)
    return -EINVAL;
  t->is_grouped = qmp_args_enum (properties, "completion-mode", modes, 0);
  return 0;
}

static int
check_all (struct transaction *t, json_t *args, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "actions", QMP_ARRAY, true, NULL },
    { "properties", QMP_OBJECT, false, NULL },
    { NULL }
  };
  json_t *actions;
  int r;

  if (qmp_args_check (args, NULL, table, err) < 0)
    return -EINVAL;
  actions = json_object_get (args, "actions");
  t->actions = calloc (json_array_size (actions) + 1, sizeof *t->actions);
  if (t->actions == NULL)
    return error_set_errno (err, ENOMEM, "transaction");
  for (; t->nr < json_array_size (actions); t->nr++) {
    r = check_action (&t->actions[t->nr], json_array_get (actions, t->nr),
                      t->nr, err);
    if (r < 0)
      return r;
  }
  return check_properties (t, args, err);
}

/*---- Prepare ----*/

/* True if one of the first nr actions adds a bitmap of that name. */
static bool
is_added_before (const struct transaction *t, size_t nr, const char *name)
{
  for (size_t i = 0; i < nr; i++)
    if (t->actions[i].kind == ADD && strcmp (t->actions[i].name, name) == 0)
      return true;
  return false;
}

static int
prepare_action (struct transaction *t, size_t i, struct error *err)
{
  struct action *a = &t->actions[i];
  const char *node = qmp_args_string (a->data, "node", NULL);
  const char *bitmap;

  if (is_backup (a)) {
    bitmap = qmp_args_string (a->data, "bitmap", NULL);
    a->disk = backup_action_disk (t->call, &a->backup, err);
    return a->disk == NULL ? -ENOENT
      : backup_action_prepare (t->call, &a->backup,
                               bitmap && is_added_before (t, i, bitmap), err);
  }
  if (a->kind == ABORT)
    return 0;
  if (t->is_grouped)
    return error_set (err, EINVAL, "Action '%s' does not support Transaction"
                      " property completion-mode = grouped", kinds[a->kind]);
  a->disk = a->kind == ADD
    ? nodes_find_device (service_nodes (t->call->service), node, err)
    : qmp_find_disk (t->call, node, err);
  if (a->disk == NULL)
    return -ENOENT;
  return a->kind == ADD ? qmp_bitmap_prepare_add (a->disk, a->data, err) : 0;
}

/*---- Gates ----*/

/* Insert in order, unless it is there. */
static int
add_disk (struct transaction *t, struct disk *disk)
{
  size_t i = t->disks.len;

  if (disk == NULL)
    return 0;
  for (size_t j = 0; j < t->disks.len; j++)
    if (t->disks.ptr[j] == disk)
      return 0;
  if (disk_vector_append (&t->disks, disk) < 0)
    return -ENOMEM;
  for (; i > 0 && disk_number (t->disks.ptr[i-1]) > disk_number (disk); i--)
    t->disks.ptr[i] = t->disks.ptr[i-1];
  t->disks.ptr[i] = disk;
  return 0;
}

/* The action's disk, and those of a merge's sources. */
static int
add_disks (struct transaction *t, const struct action *a)
{
  json_t *sources = a->kind == MERGE ? json_object_get (a->data, "bitmaps")
    : NULL;
  const char *node;
  size_t i;
  int r = add_disk (t, a->disk);

  for (i = 0; r == 0 && i < json_array_size (sources); i++) {
    node = json_string_value (json_object_get (json_array_get (sources, i),
                                               "node"));
    if (node)
      r = add_disk (t, nodes_find_disk (service_nodes (t->call->service),
                                        node));
  }
  return r;
}

static void
close_gates (struct transaction *t)
{
  for (size_t i = 0; i < t->disks.len; i++)
    gate_close (disk_gate (t->disks.ptr[i]));
}

static void
open_gates (struct transaction *t)
{
  for (size_t i = t->disks.len; i-- > 0; )
    gate_open (disk_gate (t->disks.ptr[i]));
}

/*---- Apply ----*/

/* A bitmap that an action before this one removes is busy, as in QEMU. */
static int
check_removed (const struct transaction *t, size_t nr, struct error *err)
{
  const struct action *a = &t->actions[nr];

  for (size_t i = 0; i < nr; i++) {
    const struct action *b = &t->actions[i];

    if (b->kind == REMOVE && b->disk == a->disk && a->name
        && strcmp (b->name, a->name) == 0)
      return a->kind == ADD
        ? error_set (err, EEXIST, "Bitmap already exists: %s", a->name)
        : error_set (err, EBUSY, "Bitmap '%s' is currently in use by another"
                     " operation and cannot be used", a->name);
  }
  return 0;
}

static int
check_removal (struct action *a, struct error *err)
{
  struct dirty_info info;

  if (dirty_get_info (a->bitmap, &info) < 0)
    return error_set_errno (err, ENOMEM, "Bitmap '%s'", a->name);
  free (info.name);
  if (info.is_busy)
    return error_set (err, EBUSY, "Bitmap '%s' is currently in use by another"
                      " operation and cannot be used", a->name);
  return 0;
}

static int
merge (struct transaction *t, struct action *a, struct error *err)
{
  CLEANUP_FREE struct dirty_bitmap **sources = NULL;
  size_t nr = 0;
  int r = qmp_bitmap_find_sources (t->call, a->disk, a->data, &sources, &nr,
                                   err);

  if (r == 0)
    r = dirty_merge (disk_dirty (a->disk), a->name, sources, nr, err);
  while (nr > 0)
    dirty_unref (sources[--nr]);
  return r;
}

/* Remember what is needed to undo a change of a bitmap. */
static int
save_bitmap (struct action *a, struct error *err)
{
  struct dirty_info info;

  a->bitmap = dirty_find (disk_dirty (a->disk), a->name);
  if (a->bitmap == NULL)
    return error_set (err, ENOENT, "Dirty bitmap '%s' not found", a->name);
  if (dirty_get_info (a->bitmap, &info) < 0)
    return error_set_errno (err, ENOMEM, "Bitmap '%s'", a->name);
  free (info.name);
  a->was_recording = info.state == DIRTY_RECORDING;
  if ((a->kind == CLEAR || a->kind == MERGE) && !info.is_busy
      && bitmap_copy (dirty_bits (a->bitmap), disk_size (a->disk),
                      &a->saved) < 0)
    return error_set_errno (err, ENOMEM, "Bitmap '%s'", a->name);
  return 0;
}

/* [gates closed] */
static int
apply_action (struct transaction *t, size_t i, struct error *err)
{
  struct action *a = &t->actions[i];
  struct dirty *dirty = a->disk ? disk_dirty (a->disk) : NULL;
  int r = check_removed (t, i, err);

  if (r == 0 && a->name && a->kind != ADD)
    r = save_bitmap (a, err);
  if (r < 0)
    return r;
  switch (a->kind) {
  case ABORT:
    return error_set (err, EINVAL, "Transaction aborted using Abort action");
  case ADD:
    return qmp_bitmap_add (a->disk, a->data, err);
  case CLEAR:
    return dirty_clear (dirty, a->name, err);
  case DISABLE:
    return dirty_disable (dirty, a->name, err);
  case ENABLE:
    return dirty_enable (dirty, a->name, err);
  case MERGE:
    return merge (t, a, err);
  case REMOVE:
    return check_removal (a, err);
  case BLOCKDEV_BACKUP:
  case DRIVE_BACKUP:
    return job_take_point (a->backup.job, err);
  }
  return 0;
}

/* [gates closed] */
static void
undo_action (struct action *a)
{
  struct error err = ERROR_INIT;
  struct dirty *dirty = a->disk ? disk_dirty (a->disk) : NULL;

  /* Only a store can fail, which then says so in its bitmaps. */
  switch (a->kind) {
  case ADD:
    (void) dirty_remove (dirty, a->name, &err);
    break;
  case CLEAR:
  case MERGE:
    (void) dirty_clear (dirty, a->name, &err);
    dirty_add_bits (dirty, a->bitmap, a->saved);
    break;
  case DISABLE:
  case ENABLE:
    if (a->was_recording)
      (void) dirty_enable (dirty, a->name, &err);
    else
      (void) dirty_disable (dirty, a->name, &err);
    break;
  case BLOCKDEV_BACKUP:
  case DRIVE_BACKUP:
    job_undo_point (a->backup.job);
    break;
  case ABORT:
  case REMOVE:
    break;
  }
}

static void
remove_bitmaps (struct transaction *t)
{
  struct error err = ERROR_INIT;

  for (size_t i = 0; i < t->nr; i++)
    if (t->actions[i].kind == REMOVE)
      dirty_remove (disk_dirty (t->actions[i].disk), t->actions[i].name, &err);
}

/* 0, or the first error: then nothing has changed.  *ret_reached: how many
 * actions succeeded.
 */
static int
apply_all (struct transaction *t, size_t *ret_reached, struct error *err)
{
  size_t i;
  int r = 0;

  close_gates (t);
  for (i = 0; i < t->nr && r == 0; i++) {
    r = apply_action (t, i, err);
    *ret_reached = r == 0 ? i + 1 : i;
  }
  if (r == 0)
    remove_bitmaps (t);
  else
    for (i = *ret_reached; i-- > 0; )
      undo_action (&t->actions[i]);
  open_gates (t);
  for (i = 0; r < 0 && i < t->disks.len; i++)
    dirty_commit (disk_dirty (t->disks.ptr[i]));
  return r;
}

/*---- Finish ----*/

/* The jobs that were made: all are started, or none is; the first nr_reached
 * actions were done before one failed.
 */
static void
finish_jobs (struct transaction *t, bool is_success, size_t nr_reached)
{
  struct job *jobs[JOB_MAX];
  size_t nr = 0;

  for (size_t i = 0; i < t->nr; i++) {
    struct backup_action *b = &t->actions[i].backup;

    if (b->job == NULL)
      continue;
    if (is_success)
      jobs[nr++] = b->job;
    else
      job_abandon (b->job, i < nr_reached);
    backup_action_finish (b, is_success);
  }
  job_start (jobs, nr, t->is_grouped);
}

static void
free_actions (struct transaction *t)
{
  for (size_t i = 0; i < t->nr; i++) {
    dirty_unref (t->actions[i].bitmap);
    bitmap_free (t->actions[i].saved);
  }
  free (t->actions);
  disk_vector_reset (&t->disks);
}

static int
run (struct transaction *t, struct error *err)
{
  size_t i, nr_reached = 0;
  int r = 0;

  for (i = 0; i < t->nr && r == 0; i++) {
    r = prepare_action (t, i, err);
    if (r == 0 && add_disks (t, &t->actions[i]) < 0)
      r = error_set_errno (err, ENOMEM, "transaction");
    nr_reached = r == 0 ? i + 1 : i;
  }
  if (r == 0)
    r = apply_all (t, &nr_reached, err);
  finish_jobs (t, r == 0, nr_reached);
  return r;
}

/*---- Commands ----*/

static int
transaction (struct qmp_call *call, json_t **ret, struct error *err)
{
  struct transaction t = { .call = call };
  int r = check_all (&t, call->args, err);

  if (r == 0)
    r = run (&t, err);
  free_actions (&t);
  return r;
}

static int
single (struct qmp_call *call, enum kind kind, struct error *err)
{
  struct action action = { .kind = kind, .data = call->args };
  struct transaction t = { .call = call, .actions = &action, .nr = 1 };
  int r = check_data (&action, NULL, err);

  if (r == 0)
    r = run (&t, err);
  disk_vector_reset (&t.disks);
  return r;
}

static int
blockdev_backup (struct qmp_call *call, json_t **ret, struct error *err)
{
  return single (call, BLOCKDEV_BACKUP, err);
}

static int
drive_backup (struct qmp_call *call, json_t **ret, struct error *err)
{
  return single (call, DRIVE_BACKUP, err);
}

const struct qmp_command qmp_transaction_commands[] = {
  { "blockdev-backup", blockdev_backup },
  { "drive-backup", drive_backup },
  { "transaction", transaction },
  { NULL }
};
