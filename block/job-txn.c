/* SPDX-License-Identifier: BSD-3-Clause */
/* How jobs end, alone or as a group: all in success, or none.
 *
 * I2 (part): a job's bits are dropped only when every job of its transaction
 *     has copied all and flushed its target (or the bitmap mode is "always").
 *
 * Functions named _locked have the manager's lock, and let it go while a job's
 * point and target are released; the transaction is is_closing meanwhile, so
 * that nobody else touches it.  Called by jobs' threads and control threads.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>

#include "job-private.h"

/* A job that failed or was cancelled is ABORTING, with a reason. */
static void
update_error_locked (struct job *job)
{
  if (job->error == 0 && job->is_cancelled)
    job->error = -ECANCELED;
  if (job->error)
    job_set_status_locked (job, JOB_ABORTING);
}

static void
remove_from_txn_locked (struct job *job)
{
  struct job **p = &job->txn->first;

  while (*p != job)
    p = &(*p)->next_in_txn;
  *p = job->next_in_txn;
}

/* The end of one job; the transaction is closing. */
static void
finalize_job_locked (struct job *job)
{
  struct job_manager *m = job->manager;
  bool is_success;

  assert (job->txn->is_closing);
  job->refs++;
  update_error_locked (job);
  is_success = job->error == 0;

  lock_release (&m->lock);
  job_release_point (job, is_success);
  job_release (job);
  lock_acquire (&m->lock);

  job_emit_locked (job, job->is_cancelled ? JOB_EVENT_CANCELLED
                   : JOB_EVENT_COMPLETED, false, 0);
  remove_from_txn_locked (job);
  job_set_status_locked (job, JOB_CONCLUDED);
  if (job->auto_dismiss)
    job_remove_locked (job);
  job_unref_locked (job);
}

static void
mark_cancelled_locked (struct job *job)
{
  job->user_paused = false;
  job->is_cancelled = true;
  job_stir_locked (job);
}

/* One of the transaction failed or is cancelled: so are all. */
static void
abort_txn_locked (struct job *job)
{
  struct job_manager *m = job->manager;
  struct job_txn *txn = job->txn;
  struct job *other;

  if (txn->is_closing)          /* whoever closes it sees this one's state */
    return;
  txn->is_closing = true;
  txn->refs++;
  for (other = txn->first; other; other = other->next_in_txn)
    if (other != job)
      mark_cancelled_locked (other);
  while ((other = txn->first) != NULL) {
    while (!job_is_completed_locked (other))
      lock_wait (&m->lock, &m->changed);
    finalize_job_locked (other);
  }
  job_txn_unref_locked (txn);
}

static void
finalize_txn_locked (struct job_txn *txn)
{
  assert (!txn->is_closing);
  txn->is_closing = true;
  txn->refs++;
  while (txn->first)
    finalize_job_locked (txn->first);
  job_txn_unref_locked (txn);
}

static void
succeed_locked (struct job *job)
{
  struct job_txn *txn = job->txn;
  struct job *other;
  bool is_manual = false;

  job_set_status_locked (job, JOB_WAITING);
  for (other = txn->first; other; other = other->next_in_txn)
    if (!job_is_completed_locked (other))
      return;
  for (other = txn->first; other; other = other->next_in_txn) {
    job_set_status_locked (other, JOB_PENDING);
    if (!other->auto_finalize) {
      job_emit_locked (other, JOB_EVENT_PENDING, false, 0);
      is_manual = true;
    }
  }
  if (!is_manual)
    finalize_txn_locked (txn);
}

void
job_completed_locked (struct job *job, int error)
{
  struct job_txn *txn = job->txn;

  /* In a group that is cancelled one comes after the other, as in QEMU. */
  while (txn->is_closing && txn->first != job)
    lock_wait (&job->manager->lock, &job->manager->changed);
  job->error = error;
  update_error_locked (job);
  if (job->error)
    abort_txn_locked (job);
  else
    succeed_locked (job);
}

void
job_cancel_locked (struct job *job)
{
  mark_cancelled_locked (job);
  if (job_is_completed_locked (job))
    abort_txn_locked (job);
}

void
job_finalize_locked (struct job *job)
{
  finalize_txn_locked (job->txn);
}
