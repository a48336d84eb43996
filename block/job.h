/* SPDX-License-Identifier: BSD-3-Clause */
/* Push backup jobs: the process itself copies a point in time of a disk to a
 * target node.  States, events and their order are QEMU's (job.c and blockjob.c
 * of QEMU 7.2 behave so; qapi/job.json and qapi/block-core.json name them).
 *
 * A job is made in steps, so that several can begin at one point:
 *
 *   job_new          anything that can fail or block
 *   job_take_point   with the disk's gate closed; job_undo_point takes it back
 *   job_start        all jobs of a transaction at once; or job_abandon
 */
#ifndef TIDEMARK_JOB_H
#define TIDEMARK_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk.h"
#include "disk.h"
#include "error.h"

#define JOB_MAX 64              /* at once in a process */
#define JOB_ID_MAX 255

enum job_status {
  JOB_CREATED,
  JOB_RUNNING,
  JOB_PAUSED,
  JOB_WAITING,                  /* done; others of its transaction are not */
  JOB_PENDING,                  /* all are done; waits for finalize */
  JOB_ABORTING,
  JOB_CONCLUDED,                /* waits for dismiss */
  JOB_NULL,                     /* gone */
};

enum job_sync { JOB_SYNC_FULL, JOB_SYNC_TOP, JOB_SYNC_BITMAP, JOB_SYNC_NONE };

/* When the bitmap counts from this backup: it keeps only what was written
 * since the point (after a failure with ALWAYS also what was not copied).
 */
enum job_bitmap_mode {
  JOB_BITMAP_ON_SUCCESS, JOB_BITMAP_NEVER, JOB_BITMAP_ALWAYS,
};

enum job_on_error {
  JOB_ON_ERROR_REPORT, JOB_ON_ERROR_IGNORE, JOB_ON_ERROR_ENOSPC,
  JOB_ON_ERROR_STOP, JOB_ON_ERROR_AUTO,
};

enum job_action { JOB_ACTION_REPORT, JOB_ACTION_IGNORE, JOB_ACTION_STOP };

enum job_io_status { JOB_IO_OK, JOB_IO_FAILED, JOB_IO_NOSPACE };

struct job;
struct job_manager;

struct job_request {
  const char *id;
  struct disk *disk;            /* neither closed nor resized until
                                   release_target */
  struct blk *target;           /* of the disk's size, writable */
  /* Called when the job needs the target no more, also for one that never
   * started, and by a job_new that fails.  Without locks.
   */
  void (*release_target) (void *opaque, struct blk *target);
  void *opaque;
  enum job_sync sync;
  const char *bitmap;           /* NULL = none */
  enum job_bitmap_mode bitmap_mode;
  uint64_t speed;               /* bytes per second; 0 = no limit */
  enum job_on_error on_source_error, on_target_error;
  bool target_is_zero;          /* new and without a backing file */
  bool compress;                /* the target can (BLK_CAN_COMPRESS) */
  bool is_manual_finalize, is_manual_dismiss;
};

/* What queries and events show. */
struct job_info {
  char id[JOB_ID_MAX + 1];
  enum job_status status;
  uint64_t current, total;      /* bytes of progress */
  uint64_t speed;
  enum job_io_status io_status;
  bool is_paused;               /* asked to pause */
  bool auto_finalize, auto_dismiss;
  char error[128];              /* "" = none */
};

enum job_event_type {
  JOB_EVENT_STATUS,             /* JOB_STATUS_CHANGE */
  JOB_EVENT_COMPLETED,
  JOB_EVENT_CANCELLED,
  JOB_EVENT_PENDING,
  JOB_EVENT_ERROR,
};

struct job_event {
  enum job_event_type type;
  const struct job_info *info;
  bool is_read;                 /* ERROR: else it was a write */
  enum job_action action;       /* ERROR */
};

struct job_ops {
  /* Called in the order of the events, with the manager's lock held: must
   * neither wait nor call back.
   */
  void (*event) (void *opaque, const struct job_event *event);
};

int job_manager_new (const struct job_ops *ops, void *opaque,
                     struct job_manager **ret);
/* Cancels every job and waits for its end.  NULL is allowed. */
void job_manager_free (struct job_manager *m);

/* 0 with *ret a job that has its id and can take its point.  QEMU's messages.
 * The target is released on failure too.
 */
int job_new (struct job_manager *m, const struct job_request *request,
             struct job **ret, struct error *err);
/* Take the point: freeze the bitmap, hold the view.  [gate closed] */
int job_take_point (struct job *job, struct error *err);
/* Take it back.  [gate closed] */
void job_undo_point (struct job *job);
/* Announce and free a job that has no point (any more): was_created if others
 * were told that it exists (QEMU announces one that a transaction undoes).
 */
void job_abandon (struct job *job, bool was_created);
/* Start jobs that have their points.  is_grouped: if one fails or is cancelled
 * all are, and all end together.  The manager owns them from here on, on
 * failure (-errno of threads) too: a job without a thread fails.
 */
void job_start (struct job *const *jobs, size_t nr, bool is_grouped);

/* The commands, by id.  is_block: block-job-*, with the class of error in
 * *ret_not_found (else it is not changed).
 */
enum job_verb {
  JOB_VERB_CANCEL, JOB_VERB_PAUSE, JOB_VERB_RESUME, JOB_VERB_SET_SPEED,
  JOB_VERB_COMPLETE, JOB_VERB_FINALIZE, JOB_VERB_DISMISS,
};
struct job_command {
  enum job_verb verb;
  const char *id;
  bool is_forced;               /* CANCEL: also one that is paused */
  int64_t speed;                /* SET_SPEED */
};
/* -ENOENT with *err not set: there is no such job. */
int job_execute (struct job_manager *m, const struct job_command *command,
                 struct error *err);

/* Newest first, as QEMU lists them.  The caller frees the array. */
int job_list (struct job_manager *m, struct job_info **ret, size_t *ret_nr);

const char *job_status_name (enum job_status status);

#endif /* TIDEMARK_JOB_H */
