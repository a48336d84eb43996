/* SPDX-License-Identifier: BSD-3-Clause */
/* Push backup jobs: the list of them, their states and the commands.
 *
 * States, protected by the manager's lock, and who changes them:
 *   CREATED  -> RUNNING    [job_start]
 *   RUNNING <-> PAUSED     [job-run.c, at a pause point]
 *   RUNNING  -> WAITING -> PENDING -> CONCLUDED     [job-txn.c, success]
 *   CREATED, RUNNING, WAITING, PENDING -> ABORTING -> CONCLUDED
 *                          [job-txn.c, error or cancel; job_abandon]
 *   CONCLUDED -> NULL      [dismiss, at once if auto_dismiss]
 *
 * Every change and every event is made with the manager's lock held, so that
 * all clients see one order.  Nothing waits for a disk with it held.
 *
 * Each job has a thread, which copies and then ends its transaction if it is
 * the last; a control thread does that if it cancels or finalizes.  Whoever
 * ends a transaction makes it is_closing first and is alone from then on;
 * commands for its jobs wait until it is over.
 */
#include "config.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "job-private.h"
#include "range.h"

/*---- Events ----*/

static void
fill_info_locked (const struct job *job, struct job_info *ret)
{
  *ret = (struct job_info) {
    .status = job->status,
    .current = atomic_load (&job->current),
    .total = atomic_load (&job->total),
    .speed = job->speed,
    .io_status = job->io_status,
    .is_paused = job->user_paused,
    .auto_finalize = job->auto_finalize,
    .auto_dismiss = job->auto_dismiss,
  };
  strcpy (ret->id, job->id);
  if (job->error)
    snprintf (ret->error, sizeof ret->error, "%s", job->error == -ECANCELED
              ? "Operation canceled" : strerror (-job->error));
}

void
job_emit_locked (struct job *job, enum job_event_type type, bool is_read,
                 enum job_action action)
{
  struct job_manager *m = job->manager;
  struct job_info info;
  struct job_event event = {
    .type = type, .info = &info, .is_read = is_read, .action = action,
  };

  lock_assert_held (&m->lock);
  fill_info_locked (job, &info);
  m->ops.event (m->opaque, &event);
}

void
job_set_status_locked (struct job *job, enum job_status status)
{
  if (job->status == status)
    return;
  job->status = status;
  job_emit_locked (job, JOB_EVENT_STATUS, false, 0);
  pthread_cond_broadcast (&job->manager->changed);
}

const char *
job_status_name (enum job_status status)
{
  static const char *const names[] = {
    [JOB_CREATED] = "created", [JOB_RUNNING] = "running",
    [JOB_PAUSED] = "paused", [JOB_WAITING] = "waiting",
    [JOB_PENDING] = "pending", [JOB_ABORTING] = "aborting",
    [JOB_CONCLUDED] = "concluded", [JOB_NULL] = "null",
  };

  return names[status];
}

/*---- The list ----*/

bool
job_is_completed_locked (const struct job *job)
{
  switch (job->status) {
  case JOB_CREATED:
  case JOB_RUNNING:
  case JOB_PAUSED:
    return false;
  default:
    return true;
  }
}

void
job_txn_unref_locked (struct job_txn *txn)
{
  if (txn && --txn->refs == 0)
    free (txn);
}

/* What it held has been released. */
void
job_unref_locked (struct job *job)
{
  assert (job->refs > 0);
  if (--job->refs > 0)
    return;
  job_txn_unref_locked (job->txn);
  bitmap_free (job->remaining);
  lock_destroy (&job->progress_lock);
  pthread_cond_destroy (&job->wake);
  free (job->bitmap_name);
  free (job);
}

/* Take it out of the list. */
static void
unlink_locked (struct job *job)
{
  struct job_manager *m = job->manager;
  struct job **p = &m->first;

  lock_assert_held (&m->lock);
  while (*p != job)
    p = &(*p)->next;
  *p = job->next;
  m->nr_jobs--;
  pthread_cond_broadcast (&m->changed);
}

void
job_remove_locked (struct job *job)
{
  job_set_status_locked (job, JOB_NULL);
  unlink_locked (job);
  job_unref_locked (job);
}

static struct job *
find_locked (struct job_manager *m, const char *id)
{
  struct job *job;

  lock_assert_held (&m->lock);
  for (job = m->first; job; job = job->next)
    if (strcmp (job->id, id) == 0)
      break;
  return job;
}

int
job_list (struct job_manager *m, struct job_info **ret, size_t *ret_nr)
{
  struct job_info *infos;
  struct job *job;
  size_t n = 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);

  infos = calloc (m->nr_jobs + 1, sizeof *infos);
  if (infos == NULL)
    return -ENOMEM;
  for (job = m->first; job; job = job->next)
    if (job->is_started)
      fill_info_locked (job, &infos[n++]);
  *ret = infos;
  *ret_nr = n;
  return 0;
}

/*---- A new job ----*/

/* QEMU's rule for names that users choose. */
static bool
is_id_wellformed (const char *id)
{
  if (!isascii (*id) || !isalpha ((unsigned char) *id))
    return false;
  for (; *id; id++)
    if (!isascii (*id)
        || (!isalnum ((unsigned char) *id) && !strchr ("-._", *id)))
      return false;
  return true;
}

static int
check_request (const struct job_request *r, struct error *err)
{
  if (blk_size (r->target) != disk_size (r->disk))
    return error_set (err, EINVAL,
                      "Source and target image have different sizes");
  if (!is_id_wellformed (r->id) || strlen (r->id) > JOB_ID_MAX)
    return error_set (err, EINVAL, "Invalid job ID '%s'", r->id);
  return 0;
}

/* Take the id. */
static int
add_to_list (struct job_manager *m, struct job *job, struct error *err)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);

  if (find_locked (m, job->id))
    return error_set (err, EEXIST, "Job ID '%s' already in use", job->id);
  if (m->nr_jobs == JOB_MAX)
    return error_set (err, EBUSY, "Job '%s': %d jobs are in progress, no more"
                      " are possible", job->id, JOB_MAX);
  job->next = m->first;
  m->first = job;
  m->nr_jobs++;
  return 0;
}

static struct job *
job_alloc (struct job_manager *m, const struct job_request *request)
{
  struct job *job = calloc (1, sizeof *job);
  struct job_txn *txn = calloc (1, sizeof *txn);

  if (job == NULL || txn == NULL) {
    free (job);
    free (txn);
    return NULL;
  }
  job->manager = m;
  job->refs = txn->refs = 1;
  job->txn = txn;
  strcpy (job->id, request->id);
  job->disk = request->disk;
  job->target = request->target;
  job->release_target = request->release_target;
  job->opaque = request->opaque;
  job->sync = request->sync;
  job->bitmap_mode = request->bitmap_mode;
  job->on_source_error = request->on_source_error;
  job->on_target_error = request->on_target_error;
  job->target_is_zero = request->target_is_zero;
  job->compress = request->compress;
  job->auto_finalize = !request->is_manual_finalize;
  job->auto_dismiss = !request->is_manual_dismiss;
  job->speed = request->speed;
  job->status = JOB_CREATED;
  lock_init (&job->progress_lock, LOCK_RANK_LEAF);
  cond_init (&job->wake);
  return job;
}

int
job_new (struct job_manager *m, const struct job_request *request,
         struct job **ret, struct error *err)
{
  struct job *job = NULL;
  int r = check_request (request, err);

  if (r == 0 && (job = job_alloc (m, request)) == NULL)
    r = error_set_errno (err, ENOMEM, "Job '%s'", request->id);
  if (job == NULL) {
    request->release_target (request->opaque, request->target);
    return r;
  }
  r = job_prepare (job, request, err);
  if (r == 0)
    r = add_to_list (m, job, err);
  if (r < 0) {
    job_release (job);
    lock_acquire (&m->lock);
    job_unref_locked (job);
    lock_release (&m->lock);
    return r;
  }
  *ret = job;
  return 0;
}

void
job_abandon (struct job *job, bool was_created)
{
  struct job_manager *m = job->manager;

  job_release (job);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  job->error = -ECANCELED;
  if (was_created) {
    job_emit_locked (job, JOB_EVENT_STATUS, false, 0);
    job_set_status_locked (job, JOB_ABORTING);
    job_set_status_locked (job, JOB_CONCLUDED);
    job_set_status_locked (job, JOB_NULL);
  }
  unlink_locked (job);
  job_unref_locked (job);
}

static int
start_thread_locked (struct job *job)
{
  pthread_attr_t attr;
  pthread_t thread;
  int r;

  pthread_attr_init (&attr);
  pthread_attr_setdetachstate (&attr, PTHREAD_CREATE_DETACHED);
  job->refs++;
  job->manager->nr_threads++;
  r = pthread_create (&thread, &attr, job_thread, job);
  if (r != 0) {
    job->refs--;
    job->manager->nr_threads--;
  }
  pthread_attr_destroy (&attr);
  return -r;
}

static void
add_to_txn_locked (struct job *job, struct job_txn *txn)
{
  if (job->txn != txn) {
    job_txn_unref_locked (job->txn);
    job->txn = txn;
    txn->refs++;
  }
  job->next_in_txn = txn->first;
  txn->first = job;
}

void
job_start (struct job *const *jobs, size_t nr, bool is_grouped)
{
  int errors[JOB_MAX];
  size_t i;

  if (nr == 0)
    return;
  assert (nr <= JOB_MAX);
  for (i = 0; i < nr; i++)
    job_init_progress (jobs[i]);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&jobs[0]->manager->lock);
  for (i = 0; i < nr; i++) {
    add_to_txn_locked (jobs[i], is_grouped ? jobs[0]->txn : jobs[i]->txn);
    jobs[i]->refs++;
    job_emit_locked (jobs[i], JOB_EVENT_STATUS, false, 0);
  }
  for (i = 0; i < nr; i++) {
    jobs[i]->is_started = true;
    job_set_status_locked (jobs[i], JOB_RUNNING);
    errors[i] = start_thread_locked (jobs[i]);
  }
  /* Only now, when all that it may wait for are running. */
  for (i = 0; i < nr; i++) {
    if (errors[i] < 0)
      job_completed_locked (jobs[i], errors[i]);
    job_unref_locked (jobs[i]);
  }
}

/*---- Commands ----*/

static const char *
verb_name (enum job_verb verb)
{
  static const char *const names[] = {
    [JOB_VERB_CANCEL] = "cancel", [JOB_VERB_PAUSE] = "pause",
    [JOB_VERB_RESUME] = "resume", [JOB_VERB_SET_SPEED] = "set-speed",
    [JOB_VERB_COMPLETE] = "complete", [JOB_VERB_FINALIZE] = "finalize",
    [JOB_VERB_DISMISS] = "dismiss",
  };

  return names[verb];
}

static bool
is_verb_allowed (const struct job *job, enum job_verb verb)
{
  switch (verb) {
  case JOB_VERB_CANCEL:
    return job->status <= JOB_PENDING;
  case JOB_VERB_PAUSE:
  case JOB_VERB_RESUME:
  case JOB_VERB_SET_SPEED:
    return job->status <= JOB_PAUSED;
  case JOB_VERB_COMPLETE:       /* for a job that is ready: none ever is */
    return false;
  case JOB_VERB_FINALIZE:
    return job->status == JOB_PENDING;
  case JOB_VERB_DISMISS:
    return job->status == JOB_CONCLUDED;
  }
  return false;
}

/* The job, when nobody is about to end it: that waits for I/O. */
static struct job *
find_steady_locked (struct job_manager *m, const char *id)
{
  struct job *job;

  while ((job = find_locked (m, id)) != NULL) {
    if (!job->is_started)
      return NULL;
    if (!job->txn->is_closing || job->status == JOB_CONCLUDED)
      break;
    lock_wait (&m->lock, &m->changed);
  }
  return job;
}

static int
pause_locked (struct job *job, struct error *err)
{
  if (job->user_paused)
    return error_set (err, EINVAL, "Job is already paused");
  job->user_paused = true;
  job_stir_locked (job);
  return 0;
}

static void
resume_locked (struct job *job)
{
  job->user_paused = false;
  job->io_status = JOB_IO_OK;
  job_stir_locked (job);
}

static int
set_speed_locked (struct job *job, int64_t speed, struct error *err)
{
  if (speed < 0)
    return error_set (err, EINVAL, "Parameter 'speed' expects a non-negative"
                      " value");
  job->speed = (uint64_t) speed;
  job_stir_locked (job);
  return 0;
}

static int
execute_locked (struct job *job, const struct job_command *c,
                struct error *err)
{
  if (c->verb == JOB_VERB_CANCEL && job->user_paused && !c->is_forced)
    return error_set (err, EBUSY, "The block job for device '%s' is currently"
                      " paused", job->id);
  if (c->verb == JOB_VERB_RESUME && !job->user_paused)
    return error_set (err, EINVAL, "Can't resume a job that was not paused");
  if (!is_verb_allowed (job, c->verb))
    return error_set (err, EINVAL, "Job '%s' in state '%s' cannot accept"
                      " command verb '%s'", job->id,
                      job_status_name (job->status), verb_name (c->verb));
  switch (c->verb) {
  case JOB_VERB_CANCEL:
    job_cancel_locked (job);
    break;
  case JOB_VERB_PAUSE:
    return pause_locked (job, err);
  case JOB_VERB_RESUME:
    resume_locked (job);
    break;
  case JOB_VERB_SET_SPEED:
    return set_speed_locked (job, c->speed, err);
  case JOB_VERB_FINALIZE:
    job_finalize_locked (job);
    break;
  case JOB_VERB_DISMISS:
    job_remove_locked (job);
    break;
  case JOB_VERB_COMPLETE:
    break;
  }
  return 0;
}

int
job_execute (struct job_manager *m, const struct job_command *command,
             struct error *err)
{
  struct job *job;
  int r;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);

  job = find_steady_locked (m, command->id);
  if (job == NULL)
    return -ENOENT;
  job->refs++;
  r = execute_locked (job, command, err);
  job_unref_locked (job);
  return r;
}

/*---- The manager ----*/

int
job_manager_new (const struct job_ops *ops, void *opaque,
                 struct job_manager **ret)
{
  struct job_manager *m = calloc (1, sizeof *m);

  if (m == NULL)
    return -ENOMEM;
  m->ops = *ops;
  m->opaque = opaque;
  lock_init (&m->lock, LOCK_RANK_JOBS);
  cond_init (&m->changed);
  *ret = m;
  return 0;
}

/* A step towards the end of all jobs. */
static void
end_job_locked (struct job_manager *m, struct job *job)
{
  if (job->status == JOB_CONCLUDED)
    job_remove_locked (job);
  else if (job->is_cancelled || job->txn->is_closing)
    lock_wait (&m->lock, &m->changed);
  else
    job_cancel_locked (job);
}

void
job_manager_free (struct job_manager *m)
{
  if (m == NULL)
    return;
  lock_acquire (&m->lock);
  while (m->first)
    end_job_locked (m, m->first);
  while (m->nr_threads)
    lock_wait (&m->lock, &m->changed);
  lock_release (&m->lock);
  pthread_cond_destroy (&m->changed);
  lock_destroy (&m->lock);
  free (m);
}
