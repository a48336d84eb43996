/* SPDX-License-Identifier: BSD-3-Clause */
/* What job.c (jobs and their states), job-txn.c (how they end), job-point.c
 * (what they hold) and job-run.c (the copying) share.
 */
#ifndef TIDEMARK_JOB_PRIVATE_H
#define TIDEMARK_JOB_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "job.h"
#include "lock.h"
#include "point.h"

/* QEMU copies in units of at least this. */
#define JOB_MIN_UNIT UINT64_C (65536)

/* Jobs that end together; one job is its own. */
struct job_txn {
  /* Protected by manager->lock. */
  struct job *first;            /* newest first, as in QEMU; linked by
                                   next_in_txn */
  bool is_closing;              /* one thread finalizes or aborts it */
  unsigned refs;
};

struct job {
  /* Fixed after job_new. */
  struct job_manager *manager;
  char id[JOB_ID_MAX + 1];
  struct disk *disk;
  struct blk *target;
  void (*release_target) (void *opaque, struct blk *target);
  void *opaque;
  enum job_sync sync;
  enum job_bitmap_mode bitmap_mode;
  char *bitmap_name;            /* NULL = none */
  enum job_on_error on_source_error, on_target_error;
  bool target_is_zero, compress;
  bool auto_finalize, auto_dismiss;
  uint64_t size;                /* of the disk at the point */
  uint64_t unit;                /* what is copied is whole ones of these */
  struct cbw_view *view;

  /* Set by job_take_point; then until job_release_point. */
  struct point_id point;
  struct dirty_bitmap *bitmap;  /* a reference; frozen */

  /* Atomic. */
  _Atomic uint64_t current, total;
  _Atomic int view_error;       /* -errno that broke the view; 0 = none */
  bool stop_copy;               /* by __atomic: the engine is to come back */

  struct lock progress_lock;
  /* Protected by progress_lock; read without. */
  struct bitmap *remaining;     /* still to be copied; granularity unit.  NULL
                                   before the point is taken */

  /* Protected by manager->lock. */
  enum job_status status;
  struct job *next;             /* in manager->first */
  struct job *next_in_txn;
  struct job_txn *txn;          /* a reference */
  unsigned refs;
  bool user_paused;
  bool is_cancelled;
  bool is_started;
  enum job_io_status io_status;
  uint64_t speed;
  int error;                    /* -errno it ended with; 0 = none */
  pthread_cond_t wake;          /* the job's thread: look again */
};

struct job_manager {
  /* Fixed after new. */
  struct job_ops ops;
  void *opaque;

  struct lock lock;
  /* Protected by lock. */
  struct job *first;            /* newest first */
  size_t nr_jobs;
  size_t nr_threads;
  pthread_cond_t changed;       /* a job's state, or nr_threads */
};

/* job.c */
void job_set_status_locked (struct job *job, enum job_status status);
void job_emit_locked (struct job *job, enum job_event_type type, bool is_read,
                      enum job_action action);
bool job_is_completed_locked (const struct job *job);
void job_unref_locked (struct job *job);
void job_txn_unref_locked (struct job_txn *txn);
/* Take it out of the list; it is NULL now. */
void job_remove_locked (struct job *job);

/* job-txn.c: end of a job's copying, 0 or -errno.  [job's thread, locked] */
void job_completed_locked (struct job *job, int error);
void job_cancel_locked (struct job *job);
void job_finalize_locked (struct job *job);

/* job-point.c */
int job_prepare (struct job *job, const struct job_request *request,
                 struct error *err);
/* What the point held goes; is_success says what becomes of the bitmap.  Not
 * locked.
 */
void job_release_point (struct job *job, bool is_success);
/* What job_prepare made, and the target. */
void job_release (struct job *job);

/* job-run.c: set what there is to copy, from the point; then the thread. */
void job_init_progress (struct job *job);
void *job_thread (void *opaque);
/* Make the thread look at what it is asked for. */
void job_stir_locked (struct job *job);

/* job-none.c: a node for cbw_options.scratch that writes to the job's target
 * what the guest is about to overwrite.
 */
int job_none_open (struct job *job, struct blk **ret);

#endif /* TIDEMARK_JOB_PRIVATE_H */
