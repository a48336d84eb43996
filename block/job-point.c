/* SPDX-License-Identifier: BSD-3-Clause */
/* What a push job holds: a view of the disk at its point, and a frozen bitmap.
 *
 * I2 (part): frozen bits are dropped only if the job succeeded, or if the user
 *     asked for that in any case: then what was not copied is dirty again.
 * I5 (part): whoever calls job_take_point has the gates of all disks of the
 *     transaction closed at once.
 *
 * job_prepare and job_take_point are called by control threads, the others by
 * whoever ends the job.  Without the manager's lock: they wait for I/O.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "job-private.h"
#include "range.h"

/* From a guest's thread, inside the gate, without locks. */
static void
view_broken (void *opaque)
{
  struct job *job = opaque;
  struct cbw_view_info info;

  cbw_view_get_info (job->view, &info);
  atomic_store (&job->view_error, info.error);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&job->manager->lock);
  job_stir_locked (job);
}

static int
new_view (struct job *job, struct error *err)
{
  struct cbw_options options;
  int r;

  disk_cbw_options (job->disk, &options);
  options.cluster_size = job->unit;
  options.broken = view_broken;
  options.opaque = job;
  if (job->sync == JOB_SYNC_NONE) {
    /* What the guest overwrites goes straight to the target. */
    options.block_size = job->unit;
    options.stores_zeroes = true;
    options.scratch_limit = 0;
    r = job_none_open (job, &options.scratch);
    if (r < 0)
      return error_set_errno (err, -r, "Job '%s'", job->id);
  }
  return cbw_view_new (disk_cbw (job->disk), &options, &job->view, err);
}

/* What takes time and would else be done with the gate closed.  If it fails
 * here it fails there again.
 */
static void
prepare_freeze (struct job *job)
{
  struct dirty *dirty = disk_dirty (job->disk);
  struct dirty_bitmap *bm = dirty_find (dirty, job->bitmap_name);

  if (bm)
    dirty_prepare_freeze (dirty, bm);
  dirty_unref (bm);
}

int
job_prepare (struct job *job, const struct job_request *request,
             struct error *err)
{
  job->size = disk_size (job->disk);
  job->unit = MAX (JOB_MIN_UNIT, job->target->cluster_size);
  if (request->bitmap)
    job->bitmap_name = strdup (request->bitmap);
  if ((request->bitmap && job->bitmap_name == NULL)
      || point_id_random (&job->point) < 0
      || bitmap_new (job->size, job->unit, &job->remaining) < 0)
    return error_set_errno (err, ENOMEM, "Job '%s'", job->id);
  if (job->bitmap_name)
    prepare_freeze (job);
  return new_view (job, err);
}

static int
freeze_bitmap (struct job *job, struct error *err)
{
  struct dirty *dirty = disk_dirty (job->disk);
  int r;

  job->bitmap = dirty_find (dirty, job->bitmap_name);
  if (job->bitmap == NULL)
    return error_set (err, ENOENT, "Bitmap '%s' could not be found",
                      job->bitmap_name);
  r = dirty_freeze (dirty, job->bitmap, err);
  if (r < 0) {
    dirty_unref (job->bitmap);
    job->bitmap = NULL;
  }
  return r;
}

int
job_take_point (struct job *job, struct error *err)
{
  const struct bitmap *held = NULL;
  int r = 0;

  assert (gate_is_closed (disk_gate (job->disk)));
  if (disk_size (job->disk) != job->size)
    return error_set (err, EINVAL,
                      "Source and target image have different sizes");
  if (job->bitmap_name)
    r = freeze_bitmap (job, err);
  if (r < 0)
    return r;
  if (job->sync == JOB_SYNC_BITMAP)
    held = dirty_frozen_bits (job->bitmap);
  cbw_view_start (job->view, held);
  return 0;
}

/* Stop holding.  [gate closed] */
static void
let_go (struct job *job, bool is_success)
{
  struct dirty *dirty = disk_dirty (job->disk);

  cbw_view_stop (job->view);
  if (job->bitmap == NULL)
    return;
  if (job->bitmap_mode == JOB_BITMAP_ALWAYS
      || (job->bitmap_mode == JOB_BITMAP_ON_SUCCESS && is_success)) {
    dirty_drop (dirty, job->bitmap, &job->point);
    if (!is_success)
      dirty_add_bits (dirty, job->bitmap, job->remaining);
  }
  else
    dirty_merge_back (dirty, job->bitmap);
}

void
job_undo_point (struct job *job)
{
  cbw_view_stop (job->view);
  if (job->bitmap)
    dirty_merge_back (disk_dirty (job->disk), job->bitmap);
}

void
job_release_point (struct job *job, bool is_success)
{
  struct gate *gate = disk_gate (job->disk);

  gate_close (gate);
  let_go (job, is_success);
  gate_open (gate);
  /* Before anybody is told.  A store that fails says so in its bitmaps. */
  dirty_commit (disk_dirty (job->disk));
  cbw_view_discard (job->view);
}

void
job_release (struct job *job)
{
  cbw_view_free (job->view);
  job->view = NULL;
  dirty_unref (job->bitmap);
  job->bitmap = NULL;
  job->release_target (job->opaque, job->target);
  job->target = NULL;
}
