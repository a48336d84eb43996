/* SPDX-License-Identifier: BSD-3-Clause */
/* Backups of an export of a plain NBD server: one disk, no session, and the
 * chain decides what it becomes.  Main thread.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backup.h"
#include "source.h"

int
backup_decide_nbd (struct backup_run *run, struct backup_disk *d,
                   struct error *err)
{
  const char *bitmap = options_get (run->options, "bitmap");

  d->asked = backup_asked_mode (run->options, d->name);
  d->is_aside = d->asked == BACKUP_COPY || d->asked == BACKUP_DIFFERENTIAL;
  backup_check_chain (d, 0, d->reason);
  if (d->asked == BACKUP_FULL || d->asked == BACKUP_COPY)
    snprintf (d->why, sizeof d->why, "asked for");
  else if (d->reason[0] && d->asked != BACKUP_AUTO)
    return backup_refuse (d, err);
  else if (d->reason[0])
    snprintf (d->why, sizeof d->why, "%s", d->reason);
  else if (!bitmap)
    return error_set (err, EINVAL, "the chain of disk '%s' is not empty: name "
                      "the server's bitmap for an incremental (--bitmap NAME),"
                      " or ask for --full", d->name);
  else {
    d->is_incremental = true;
    snprintf (d->why, sizeof d->why, "bitmap '%s' is managed by the server's "
              "user, who vouches for it", bitmap);
  }
  if (bitmap && d->asked != BACKUP_COPY) {
    d->bitmap = strdup (bitmap);
    d->context = d->is_incremental ? source_context (bitmap) : NULL;
    if (!d->bitmap || (d->is_incremental && !d->context))
      return error_set_errno (err, ENOMEM, "%s", d->name);
  }
  return 0;
}

int
backup_begin_nbd (struct backup_run *run, struct error *err)
{
  const char *name = options_get (run->options, "disk");
  struct backup_disk *d;
  /* What a run with a session has left is in the way of numbers. */
  int r = repo_clear (run->repo, err);

  if (r < 0)
    return r;
  r = point_id_random (&run->point);
  if (r < 0)
    return error_set_errno (err, -r, "random numbers");
  run->time = (int64_t) time (NULL);
  run->disks = d = calloc (1, sizeof *run->disks);
  if (!d)
    return error_set_errno (err, ENOMEM, "%s", name);
  run->nr_disks = 1;
  d->name = strdup (name);
  d->uri = strdup (run->source);
  if (!d->name || !d->uri)
    return error_set_errno (err, ENOMEM, "%s", name);
  r = backup_open_chain (run, d, err);
  return r < 0 ? r : backup_decide_nbd (run, d, err);
}
