/* SPDX-License-Identifier: BSD-3-Clause */
/* Pulling the disks of a run, so many of them side by side as it says: the
 * calling thread and others of its kind each take the next disk until there is
 * none left.
 *
 * What they share is the bandwidth, and the control connection; of the memory
 * each has a part of its own (backup-memory.c).  The first disk that fails,
 * unless it may, ends all; so does an interrupt.  Then the sources of those
 * that are being pulled are cancelled: none waits for a server.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>

#include "backup.h"
#include "interrupt.h"
#include "lock.h"
#include "log.h"
#include "progress.h"
#include "range.h"
#include "source.h"
#include "wire.h"

struct backup_set {
  struct backup_run *run;       /* fixed */

  /* Atomic: stop. */
  volatile bool is_stopped;

  struct lock lock;
  /* Protected by lock. */
  size_t next;                  /* disk */
  size_t nr_good;
  bool has_read;                /* a source has been opened */
  int result;                   /* of the first disk that ended all; or of the
                                   last that failed and was allowed to */
  struct error error;           /* likewise */
  struct blk *sources[BACKUP_MAX_PARALLEL];     /* open ones, and NULLs */
};

const volatile bool *
backup_set_flag (const struct backup_set *s)
{
  return &s->is_stopped;
}

static void
cancel (struct backup_set *s, struct blk *source)
{
  if (s->run->control)
    wire_cancel (source);
  else
    source_cancel (source);
}

static void
stop_locked (struct backup_set *s)
{
  size_t i;

  lock_assert_held (&s->lock);
  __atomic_store_n (&s->is_stopped, true, __ATOMIC_RELAXED);
  for (i = 0; i < BACKUP_MAX_PARALLEL; i++)
    if (s->sources[i])
      cancel (s, s->sources[i]);
}

/* For interrupt_watch_start. */
static void
stop (void *opaque)
{
  struct backup_set *s = opaque;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  stop_locked (s);
}

void
backup_set_add (struct backup_set *s, struct blk *source)
{
  size_t i = 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  while (s->sources[i])
    i++;
  s->sources[i] = source;
  s->has_read = true;
  if (s->is_stopped)
    cancel (s, source);
}

bool
backup_set_has_read (struct backup_set *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  return s->has_read;
}

void
backup_set_remove (struct backup_set *s, const struct blk *source)
{
  size_t i = 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  while (s->sources[i] != source)
    i++;
  s->sources[i] = NULL;
}

struct repo_item
backup_make_item (const struct backup_run *run, const struct backup_disk *d)
{
  return (struct repo_item) {
    .chain = d->chain, .manifest = d->manifest,
    .is_acknowledged = run->control == NULL,
  };
}

/* A failure that is not to stop the others. */
static void
lose_disk (struct backup_run *run, struct backup_disk *d,
           const struct error *why)
{
  const struct repo_item item = backup_make_item (run, d);

  if (item.manifest)
    repo_discard (&item, 1);
  d->is_failed = true;
  log_warning ("disk '%s' is not backed up: %s", d->name, why->msg);
  progress_event ("disk-failed", json_pack (
    "{s:s, s:s}", "disk", d->name, "reason", why->msg));
}

/* The next disk, or NULL. */
static struct backup_disk *
take_disk (struct backup_set *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  if (s->is_stopped || s->next == s->run->nr_disks)
    return NULL;
  return &s->run->disks[s->next++];
}

/* True: the disk has failed, and the others go on. */
static bool
note_end (struct backup_set *s, struct backup_disk *d, int r,
          const struct error *err)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  s->nr_good += r == 0;
  /* What fails once all is stopped is of no interest. */
  if (r == 0 || s->is_stopped)
    return false;
  s->result = r;
  s->error = *err;
  if (s->run->is_partial_ok && r != -ECANCELED && !d->is_lost)
    return true;
  s->run->is_lost = d->is_lost;
  stop_locked (s);
  return false;
}

static void *
pull_thread (void *opaque)
{
  struct backup_set *s = opaque;
  struct backup_disk *d;
  struct error err;
  int r;

  while ((d = take_disk (s)) != NULL) {
    err = (struct error) ERROR_INIT;
    r = backup_pull_disk (s->run, s, d, &err);
    if (note_end (s, d, r, &err))
      lose_disk (s->run, d, &err);
  }
  return NULL;
}

/* One that cannot be started is done without. */
static void
run_threads (struct backup_set *s, unsigned nr)
{
  pthread_t threads[BACKUP_MAX_PARALLEL];
  unsigned i, n = 0;

  for (i = 1; i < nr; i++)
    n += pthread_create (&threads[n], NULL, pull_thread, s) == 0;
  pull_thread (s);
  for (i = 0; i < n; i++)
    pthread_join (threads[i], NULL);
}

static void
begin_progress (const struct backup_run *run)
{
  char label[32];
  uint64_t total = 0;
  size_t i;

  snprintf (label, sizeof label, "%zu disks", run->nr_disks);
  for (i = 0; i < run->nr_disks; i++)
    total += run->disks[i].dirty_bytes;
  progress_begin (run->nr_disks == 1 ? run->disks[0].name : label, total);
}

int
backup_pull_disks (struct backup_run *run, struct error *err)
{
  struct backup_set s = { .run = run, .error = ERROR_INIT };
  struct interrupt_watch watch = { 0 };
  int r;

  lock_init (&s.lock, LOCK_RANK_SESSIONS);
  begin_progress (run);
  r = interrupt_watch_start (&watch, stop, &s, err);
  if (r == 0) {
    run_threads (&s, (unsigned) MIN (run->nr_parallel, run->nr_disks));
    interrupt_watch_stop (&watch);
    if (s.is_stopped || s.nr_good == 0) {
      r = s.result;
      *err = s.error;
    }
    if (interrupt_is_set ())
      r = interrupt_error (err);
  }
  progress_end ();
  lock_destroy (&s.lock);
  return r;
}
