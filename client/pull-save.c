/* SPDX-License-Identifier: BSD-3-Clause */
/* Saving how far a pull has come, by a thread of its own: the checksum file up
 * to cluster n, then, once all that is hashed before n has been written, the
 * image; then the caller writes down n.  Another thread trims what is saved
 * from the source.
 */
#include "config.h"

#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"
#include "pull-private.h"
#include "range.h"

/* Saving waits at least so long, and twice as long as it took. */
#define MIN_SAVE_INTERVAL_NS INT64_C (20000000)

int
pull_handle (struct pull *p, const struct copy_item *item)
{
  if (!p->has_saver)
    return 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
  return offsets_append (&p->handled, item->off);
}

void
pull_unhandle (struct pull *p, const struct copy_item *item)
{
  size_t i;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
  for (i = 0; i < p->handled.len; i++)
    if (p->handled.ptr[i] == item->off) {
      offsets_remove (&p->handled, i);
      break;
    }
  if (p->is_waiting
      || atomic_load (&p->written) - p->saved >= p->options->save_step)
    pthread_cond_signal (&p->save_cond);
}

/* Wait until all that is hashed before cluster next is written.  False: it will
 * not be.
 */
static bool
wait_handled (struct pull *p, uint64_t next)
{
  const uint64_t end = next * p->options->cluster_size;
  size_t i;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
  for (;;) {
    for (i = 0; i < p->handled.len && p->handled.ptr[i] >= end; i++)
      ;
    if (i == p->handled.len)
      return true;
    if (p->is_stopping)
      return false;
    p->is_waiting = true;
    lock_wait (&p->lock, &p->save_cond);
    p->is_waiting = false;
  }
}

/* Behind all that has been asked for, a trim takes its time, for which a save
 * must not wait.
 */
static void *
trimmer_thread (void *opaque)
{
  struct pull *p = opaque;
  struct blk *source = p->options->source;
  uint64_t trimmed = 0, end;

  for (;;) {
    {
      ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
      while (!p->is_stopping && p->saved_end == trimmed)
        lock_wait (&p->lock, &p->trim_cond);
      if (p->is_stopping)
        return NULL;
      end = p->saved_end;
    }
    p->options->trim (source, end - trimmed, trimmed);
    trimmed = end;
  }
}

/* What is before cluster next is stored, and is noted to be. */
static void
note_saved (struct pull *p, uint64_t next, uint64_t written)
{
  const struct pull_options *o = p->options;
  const uint64_t end = MIN (next * o->cluster_size, blk_size (o->source));

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
  p->saved = written;
  p->saved_end = MAX (p->saved_end, end);
  pthread_cond_signal (&p->trim_cond);
}

int
pull_save (struct pull *p, struct error *err)
{
  const struct pull_options *o = p->options;
  struct sums_state state;
  uint64_t written = atomic_load (&p->written);
  int r = sums_writer_save (p->sums, &state);

  if (r == 0 && !wait_handled (p, state.next))
    return 0;
  if (r == 0)
    r = blk_flush (p->target);
  if (r == 0 && fdatasync (p->sums_fd) < 0)
    r = -errno;
  if (r < 0)
    return error_set_errno (err, -r, "backup %u", o->number);
  r = o->save (o->opaque, &state, err);
  if (r == 0)
    note_saved (p, state.next, written);
  return r;
}

/* Wait until it is time to save.  False: the pull ends. */
static bool
wait_due (struct pull *p, int64_t not_before)
{
  struct timespec ts = {
    .tv_sec = not_before / 1000000000, .tv_nsec = not_before % 1000000000,
  };

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
  while (!p->is_stopping)
    if (clock_ns () < not_before)
      lock_wait_until (&p->lock, &p->save_cond, &ts);
    else if (atomic_load (&p->written) - p->saved >= p->options->save_step)
      return true;
    else
      lock_wait (&p->lock, &p->save_cond);
  return false;
}

static void *
saver_thread (void *opaque)
{
  struct pull *p = opaque;
  struct error err = ERROR_INIT;
  int64_t start, end, not_before = 0;

  while (wait_due (p, not_before)) {
    start = clock_ns ();
    if (pull_save (p, &err) < 0) {
      /* If it matters, the end of the pull will fail of it too. */
      log_warning ("%s: how far the pull has come cannot be saved: %s",
                   p->options->folder, err.msg);
      break;
    }
    end = clock_ns ();
    not_before = end + MAX (MIN_SAVE_INTERVAL_NS, 2 * (end - start));
  }
  return NULL;
}

int
pull_save_start (struct pull *p, struct error *err)
{
  int r = pthread_create (&p->saver, NULL, saver_thread, p);

  if (r != 0)
    return error_set_errno (err, r, "thread");
  p->has_saver = true;
  /* Without it less scratch is given back, and that is all. */
  p->has_trimmer = p->options->trim
    && pthread_create (&p->trimmer, NULL, trimmer_thread, p) == 0;
  return 0;
}

void
pull_save_stop (struct pull *p)
{
  if (!p->has_saver)
    return;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
    p->is_stopping = true;
    pthread_cond_signal (&p->save_cond);
    pthread_cond_signal (&p->trim_cond);
  }
  pthread_join (p->saver, NULL);
  if (p->has_trimmer)
    pthread_join (p->trimmer, NULL);
}
