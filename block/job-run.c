/* SPDX-License-Identifier: BSD-3-Clause */
/* What a job's thread does: copy what remains from the view to the target.
 *
 * It goes in passes of the copy engine (copy.h).  A pass ends when all is
 * copied, when the speed's share of bytes is used up, when somebody stirs the
 * job (to pause, cancel, or change the speed), or by an error.  job->remaining
 * says what is still to be done, so a pass that was cut off costs only the
 * reads that were in flight.  What has been copied leaves the view.
 *
 * Items are whole units of the target's clusters and of at least 64 KiB,
 * whatever the bitmap's granularity: so a target without a backing file can
 * be given one afterwards.  Zeroes are written as such (BLK_KEEP_ZERO).
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "copy.h"
#include "job-private.h"
#include "range.h"

#define NSEC_PER_SEC INT64_C (1000000000)
#define SLICES_PER_SEC 10       /* of a limited speed */
#define RETRY_WAIT (NSEC_PER_SEC / 10)  /* after an error that is ignored */
#define MAX_ITEM (UINT64_C (1) << 20)
#define MAX_EXTENTS 256         /* of one question to the view */

struct run {
  struct job *job;
  uint64_t speed;               /* the limit of this pass; 0 = none */
  uint64_t budget;              /* bytes that this pass may copy */
  uint64_t used;                /* bytes of this pass */
  uint64_t cursor;
  int64_t not_before;           /* CLOCK_MONOTONIC ns */
  struct extents allocation, depth;     /* the last answers */
};

void
job_stir_locked (struct job *job)
{
  lock_assert_held (&job->manager->lock);
  __atomic_store_n (&job->stop_copy, true, __ATOMIC_RELAXED);
  pthread_cond_broadcast (&job->wake);
}

void
job_init_progress (struct job *job)
{
  if (job->sync == JOB_SYNC_BITMAP)
    bitmap_merge (job->remaining, dirty_frozen_bits (job->bitmap));
  else
    bitmap_set (job->remaining, 0, job->size);
  /* Whole units, also the last one: QEMU counts so. */
  atomic_store (&job->total, bitmap_count (job->remaining) * job->unit);
}

/*---- What is next ----*/

/* What the view says about off: its value, and how far that goes. */
static int
ask_view (struct run *run, enum blk_status status, struct extents *cache,
          uint64_t off, uint64_t len, uint32_t *ret_value, uint64_t *ret_len)
{
  struct blk *view = cbw_view_blk (run->job->view);
  const struct extent *e = extents_find (cache, off);
  int r;

  if (e == NULL) {
    extents_clear (cache);
    r = blk_extents (view, len, off, 0, status, cache);
    if (r < 0)
      return r;
    e = extents_find (cache, off);
    assert (e);
  }
  *ret_value = e->value;
  *ret_len = MIN (e->off + e->len - off, len);
  return 0;
}

/* Cut [off, off+len) where another kind of unit begins.  has_all: len is the
 * length of what has a property; a unit has it only if all of it has.
 */
static bool
cut_to_units (const struct job *job, uint64_t off, bool has_all,
              uint64_t *len)
{
  if (has_all && off + *len < job->size && *len < job->unit) {
    *len = MIN (job->unit, job->size - off);
    return false;
  }
  if (off + *len < job->size)
    *len = has_all ? round_down (*len, job->unit)
      : MIN (round_up (*len, job->unit), job->size - off);
  return has_all;
}

static void
leave_out (struct job *job, uint64_t off, uint64_t len)
{
  lock_acquire (&job->progress_lock);
  bitmap_clear (job->remaining, off, len);
  lock_release (&job->progress_lock);
  atomic_fetch_sub (&job->total, round_up (len, job->unit));
}

/* sync top: a prefix of the item that this layer does not hold is left out.
 * 1: it was, and item->len is how much; 0: it is to be copied.
 */
static int
skip_lower_layers (struct run *run, struct copy_item *item)
{
  uint32_t depth;
  uint64_t len;
  int r = ask_view (run, BLK_STATUS_DEPTH, &run->depth, item->off, item->len,
                    &depth, &len);

  if (r < 0)
    return r;
  if (cut_to_units (run->job, item->off, depth != 1, &len)) {
    leave_out (run->job, item->off, len);
    r = 1;
  }
  item->len = MIN (item->len, len);
  return r;
}

/* Is it zero?  item->len becomes how far that is so. */
static void
find_zeroes (struct run *run, struct copy_item *item)
{
  uint32_t value;
  uint64_t len;

  /* In doubt it is data. */
  if (ask_view (run, BLK_STATUS_ALLOCATION, &run->allocation, item->off,
                item->len, &value, &len) < 0)
    return;
  item->is_zero = cut_to_units (run->job, item->off, value & EXTENT_ZERO,
                                &len);
  item->len = MIN (item->len, len);
}

/* copy_ops */
static int
next_item (void *opaque, struct copy_item *ret)
{
  struct run *run = opaque;
  struct job *job = run->job;
  struct range r;
  int skipped;

  do {
    if (run->used >= run->budget
        || !bitmap_next_dirty (job->remaining, run->cursor,
                               job->size - run->cursor, &r))
      return 0;
    *ret = (struct copy_item) { .off = r.off, .len = r.len };
    skipped = job->sync == JOB_SYNC_TOP ? skip_lower_layers (run, ret) : 0;
    if (skipped < 0)
      return skipped;
    if (!skipped)
      find_zeroes (run, ret);
    if (!skipped && !ret->is_zero)
      ret->len = MIN (ret->len, MAX (MIN (MAX_ITEM, run->budget), job->unit));
    run->cursor = ret->off + ret->len;
  } while (skipped);
  if (!ret->is_zero)
    run->used += ret->len;
  return 1;
}

static void
item_done (void *opaque, const struct copy_item *item)
{
  struct run *run = opaque;
  struct job *job = run->job;

  lock_acquire (&job->progress_lock);
  bitmap_clear (job->remaining, item->off, item->len);
  lock_release (&job->progress_lock);
  atomic_fetch_add (&job->current, round_up (item->len, job->unit));
  /* The guest need not preserve it any more.  Advice: a failure shows in the
   * next read.
   */
  blk_trim (cbw_view_blk (job->view), item->len, item->off, 0);
}

/*---- Passes ----*/

static int
copy_pass (struct run *run, bool *ret_is_read)
{
  static const struct copy_ops ops = {
    .next = next_item,
    .done = item_done,
  };
  struct job *job = run->job;
  const struct copy_options options = {
    .nr_threads = run->speed ? 1 : 0,
    .max_item = MAX (MAX_ITEM, job->unit),
    .detect_zeroes = true,
    .zero_unit = job->unit,
    .compress = job->compress,
    .target_is_zero = job->target_is_zero,
    .keeps_zeroes = job->sync != JOB_SYNC_FULL,
    .cancel = &job->stop_copy,
  };
  struct copy_stats stats;
  int r;

  run->cursor = run->used = 0;
  extents_init (&run->allocation, MAX_EXTENTS);
  extents_init (&run->depth, MAX_EXTENTS);
  r = copy_run (cbw_view_blk (job->view), job->target, &options, &ops, run,
                &stats, NULL);
  extents_free (&run->allocation);
  extents_free (&run->depth);
  *ret_is_read = !stats.is_write_error;
  return r;
}

/* Wait on the job, at most until the time t; t 0: for ever. */
static void
wait_locked (struct job *job, int64_t t)
{
  const struct timespec ts =
    { .tv_sec = t / NSEC_PER_SEC, .tv_nsec = t % NSEC_PER_SEC };

  if (t == 0)
    lock_wait (&job->manager->lock, &job->wake);
  else
    lock_wait_until (&job->manager->lock, &job->wake, &ts);
}

/* The pause point.  False: the job is to end. */
static bool
stay_paused_locked (struct job *job)
{
  if (job->user_paused && !job->is_cancelled) {
    job_set_status_locked (job, JOB_PAUSED);
    while (job->user_paused && !job->is_cancelled)
      wait_locked (job, 0);
    job_set_status_locked (job, JOB_RUNNING);
  }
  return !job->is_cancelled && !atomic_load (&job->view_error);
}

/* Until the next pass may begin.  False: the job is to end. */
static bool
wait_for_turn (struct run *run)
{
  struct job *job = run->job;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&job->manager->lock);

  for (;;) {
    if (!stay_paused_locked (job))
      return false;
    if (job->speed != run->speed)       /* has nothing to make up for */
      run->not_before = 0;
    run->speed = job->speed;
    if (run->not_before <= clock_ns ())
      break;
    wait_locked (job, run->not_before);
  }
  __atomic_store_n (&job->stop_copy, false, __ATOMIC_RELAXED);
  run->budget = UINT64_MAX;
  if (run->speed)
    run->budget = MAX (round_down (run->speed / SLICES_PER_SEC, job->unit),
                       job->unit);
  return true;
}

/* The time that the bytes of a pass take at the speed. */
static void
charge (struct run *run)
{
  double ns;

  if (run->speed == 0)
    return;
  ns = (double) run->used / (double) run->speed * (double) NSEC_PER_SEC;
  run->not_before = MAX (run->not_before, clock_ns ())
    + (int64_t) MIN (ns, 3600.0 * (double) NSEC_PER_SEC);
}

/*---- Errors ----*/

static enum job_action
choose_action (const struct job *job, bool is_read, int error)
{
  switch (is_read ? job->on_source_error : job->on_target_error) {
  case JOB_ON_ERROR_IGNORE:
    return JOB_ACTION_IGNORE;
  case JOB_ON_ERROR_STOP:
    return JOB_ACTION_STOP;
  case JOB_ON_ERROR_ENOSPC:
  case JOB_ON_ERROR_AUTO:
    return error == -ENOSPC ? JOB_ACTION_STOP : JOB_ACTION_REPORT;
  case JOB_ON_ERROR_REPORT:
    break;
  }
  return JOB_ACTION_REPORT;
}

/* 0: try again; else what the job ends with. */
static int
handle_error (struct run *run, bool is_read, int error, bool is_final)
{
  struct job *job = run->job;
  enum job_action action = JOB_ACTION_REPORT;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&job->manager->lock);

  if (job->is_cancelled)
    return 0;
  if (!is_final)
    action = choose_action (job, is_read, error);
  job_emit_locked (job, JOB_EVENT_ERROR, is_read, action);
  switch (action) {
  case JOB_ACTION_REPORT:
    return error;
  case JOB_ACTION_STOP:
    job->user_paused = true;
    job->io_status = error == -ENOSPC ? JOB_IO_NOSPACE : JOB_IO_FAILED;
    break;
  case JOB_ACTION_IGNORE:
    run->not_before = clock_ns () + RETRY_WAIT;
    break;
  }
  return 0;
}

/* A view that broke has lost old data: nothing can be tried again.  If the
 * target took what the guest overwrites, it was the target that failed.
 */
static int
end_of_view (struct run *run)
{
  int error = atomic_load (&run->job->view_error);

  if (error == 0)               /* cancelled */
    return 0;
  return handle_error (run, run->job->sync != JOB_SYNC_NONE, error, true);
}

static int
copy_all (struct run *run)
{
  struct job *job = run->job;
  bool is_read;
  int r;

  while (bitmap_count (job->remaining) > 0) {
    if (!wait_for_turn (run))
      return end_of_view (run);
    r = copy_pass (run, &is_read);
    charge (run);
    if (r == -ECANCELED || atomic_load (&job->view_error))
      r = 0;
    if (r < 0)
      r = handle_error (run, is_read, r, false);
    if (r < 0)
      return r;
  }
  /* Only what is durable counts.  It cannot be read again, so it is not tried
   * again.
   */
  r = blk_flush (job->target);
  return r < 0 ? handle_error (run, false, r, true) : 0;
}

/* sync none: the guests do the work (job-none.c) until it is cancelled. */
static int
serve_guests (struct run *run)
{
  struct job *job = run->job;

  lock_acquire (&job->manager->lock);
  while (stay_paused_locked (job))
    wait_locked (job, 0);
  lock_release (&job->manager->lock);
  return end_of_view (run);
}

void *
job_thread (void *opaque)
{
  struct job *job = opaque;
  struct job_manager *m = job->manager;
  struct run run = { .job = job };
  int r = job->sync == JOB_SYNC_NONE ? serve_guests (&run) : copy_all (&run);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  if (r == 0)                   /* all is copied, but it is not to end yet */
    stay_paused_locked (job);
  job_completed_locked (job, r);
  job_unref_locked (job);
  m->nr_threads--;
  pthread_cond_broadcast (&m->changed);
  return NULL;
}
