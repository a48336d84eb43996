/* SPDX-License-Identifier: BSD-3-Clause */
/* The map of a pull: a thread of its own reads it, a batch ahead of the copy
 * engine, which takes the batches.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "blk.h"
#include "pull-private.h"
#include "range.h"

/* Runs of one batch of the map, about; three batches exist at most. */
#define BATCH_RUNS 16384

/* Is the engine to wait until the batch is full?  Where little is dirty much of
 * the map has to be read for that, and data can flow meanwhile.
 */
static bool
is_batch_due (struct pull *p, const struct dirty_runs *runs)
{
  if (runs->len == 0 || runs->len >= BATCH_RUNS)
    return runs->len > 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
  return p->is_hungry;
}

/* Collect a batch: 1, 0 at the end, -errno. */
static int
fill_batch (struct pull *p, struct dirty_runs *runs, struct error *err)
{
  int r = 1;

  while (r > 0 && !is_batch_due (p, runs)) {
    if (__atomic_load_n (p->options->cancel, __ATOMIC_RELAXED))
      return -ECANCELED;
    r = dirty_map_next (p->map, runs, err);
  }
  return r;
}

/* Hand the batch over when the last one has been taken.  False: stop. */
static bool
put_batch (struct pull *p, struct dirty_runs *runs, int r,
           const struct error *err)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
  while (p->has_ready && !p->is_stopping)
    lock_wait (&p->lock, &p->cond);
  if (p->is_stopping)
    return false;
  if (r < 0)
    p->map_error = *err;
  else {
    p->ready = *runs;
    p->has_ready = true;
    memset (runs, 0, sizeof *runs);
  }
  p->at_end = r <= 0;
  pthread_cond_broadcast (&p->cond);
  return r > 0;
}

static void *
mapper_thread (void *opaque)
{
  struct pull *p = opaque;
  struct dirty_runs runs = VECTOR_INIT;
  struct error err;
  int r;

  do {
    err = (struct error) ERROR_INIT;
    r = fill_batch (p, &runs, &err);
    if (r < 0 && !err.errnum)
      error_set_errno (&err, -r, "map");
  } while (put_batch (p, &runs, r, &err));
  dirty_runs_reset (&runs);
  return NULL;
}

int
pull_take_batch (struct pull *p)
{
  dirty_runs_reset (&p->batch);
  p->pos = 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
  while (!p->has_ready && !p->at_end) {
    p->is_hungry = true;
    lock_wait (&p->lock, &p->cond);
  }
  p->is_hungry = false;
  if (p->has_ready) {
    p->batch = p->ready;
    memset (&p->ready, 0, sizeof p->ready);
    p->has_ready = false;
    pthread_cond_broadcast (&p->cond);
    return 1;
  }
  return -p->map_error.errnum;
}

int
pull_map_start (struct pull *p, struct error *err)
{
  const struct pull_options *o = p->options;
  const struct dirty_map_options m = {
    .blk = o->source,
    .is_incremental = o->is_incremental,
    .cluster_size = o->cluster_size,
    .skip_zero = !o->backing,
    .start = p->resume ? MIN (p->resume->next * o->cluster_size,
                              blk_size (o->source)) : 0,
    .status = o->status,
    .max_status = o->max_status,
  };
  int r = dirty_map_new (&m, &p->map);

  if (r == 0)
    r = -pthread_create (&p->mapper, NULL, mapper_thread, p);
  return r < 0 ? error_set_errno (err, -r, "map") : 0;
}

void
pull_map_stop (struct pull *p)
{
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
    p->is_stopping = true;
    pthread_cond_broadcast (&p->cond);
  }
  pthread_join (p->mapper, NULL);
}
