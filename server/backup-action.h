/* SPDX-License-Identifier: BSD-3-Clause */
/* drive-backup and blockdev-backup: from arguments to a job, in the steps of
 * job.h.  Used by the commands and by transactions.
 */
#ifndef TIDEMARK_BACKUP_ACTION_H
#define TIDEMARK_BACKUP_ACTION_H

#include <stdbool.h>

#include <jansson.h>

#include "error.h"
#include "job.h"
#include "qmp.h"

struct backup_action {
  json_t *args;                 /* borrowed; checked */
  bool is_drive;
  /* After backup_action_prepare. */
  struct job *job;
  char *new_file;               /* was made for it */
};

/* Check the arguments.  path (or NULL) is where they are. */
int backup_action_check (json_t *args, const char *path, bool is_drive,
                         struct error *err);

/* Open or create the target, and make the job.  bitmap_may_come: the bitmap
 * need not be there yet, for the same transaction adds one of that name.
 */
int backup_action_prepare (struct qmp_call *call, struct backup_action *a,
                           bool bitmap_may_come, struct error *err);
/* The job has been started or abandoned: forget it.  is_started false: a file
 * that was made for it is removed.
 */
void backup_action_finish (struct backup_action *a, bool is_started);

/* The disk that it backs up, after backup_action_check, or NULL. */
struct disk *backup_action_disk (struct qmp_call *call,
                                 const struct backup_action *a,
                                 struct error *err);

#endif /* TIDEMARK_BACKUP_ACTION_H */
