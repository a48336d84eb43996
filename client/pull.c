/* SPDX-License-Identifier: BSD-3-Clause */
/* One disk's pull.
 *
 * A thread of its own asks for the map of what is dirty, a batch ahead of the
 * copy engine, whose threads read, hash and write: what they read is still in
 * their core's cache when they hash and write it.  Space in the image and
 * places in the checksum file are given out in ascending order as ranges are
 * handed to the engine.
 *
 * A pull that can be gone on with has one thread more, which saves now and
 * then (and another one, which trims what is saved from the source): the
 * checksum file up to cluster n, then, once all that is hashed before n has
 * been written, the image; then the caller writes down n.  An image holds
 * no cluster whose data is not on stable storage (qcow2-commit.c), so one that
 * is gone on with is right in all that it holds: that is not pulled again, but
 * beyond n it is read back for its checksums.
 *
 * I7: a map that cannot be had ends the pull; nothing is taken for clean.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"
#include "progress.h"
#include "pull-private.h"
#include "range.h"

#define MAX_ITEM (UINT32_C (1) << 18)
#define MAX_ZERO_ITEM (UINT64_C (1) << 30)
/* Writing to the disk starts when this much is in the page cache, so that the
 * sync at the end has little left to do.
 */
#define WRITEBACK_STEP (UINT64_C (64) << 20)

/* What comes next has been pulled as far as *ret_len. */
static int
find_held (struct pull *p, const struct copy_item *item, bool *ret,
           uint64_t *ret_len)
{
  const struct extent *e = p->held.ptr;
  int r;

  if (p->held.len == 0 || !range_is_within (item->off - e->off, 1, e->len)) {
    extents_clear (&p->held);
    r = blk_extents (p->target, blk_size (p->target) - item->off, item->off,
                     BLK_ONE, BLK_STATUS_DEPTH, &p->held);
    if (r < 0)
      return r;
    e = p->held.ptr;
  }
  *ret = e->value == 1;
  *ret_len = MIN (item->len, e->off + e->len - item->off);
  return 0;
}

/* Take the checksums of what the image holds.  It is little: what was pulled
 * since the last time that the old run saved.
 */
static int
take_held (struct pull *p, const struct copy_item *item)
{
  int r = blk_pread (p->target, p->buf, item->len, item->off, 0);

  if (r == 0)
    r = sums_reserve (p->sums, item->off, item->len, false);
  if (r == 0)
    r = sums_set (p->sums, item->off, item->len, p->buf);
  progress_add (item->len);
  return r;
}

static void
next_piece (struct pull *p, struct copy_item *ret)
{
  const struct dirty_run *run = &p->batch.ptr[p->pos];

  ret->off = run->off;
  ret->len = MIN (run->len, run->is_zero ? MAX_ZERO_ITEM : p->max_item);
  ret->is_zero = run->is_zero;
}

static void
take_piece (struct pull *p, uint64_t len)
{
  struct dirty_run *run = &p->batch.ptr[p->pos];

  run->off += len;
  run->len -= len;
  if (run->len == 0)
    p->pos++;
}

/* One thread at a time hands out what is to be read, so here is the place to
 * hold it up.  1 or -errno.
 */
static int
wait_turn (struct pull *p, uint64_t len)
{
  const struct pull_options *o = p->options;
  const bool is_held = o->hold && o->bandwidth->rate > 0;
  int r;

  if (is_held)
    o->hold (o->source, true);
  r = bandwidth_wait (o->bandwidth, len, o->cancel);
  if (is_held)
    o->hold (o->source, false);
  return r < 0 ? r : 1;
}

static int
pull_next (void *opaque, struct copy_item *ret)
{
  struct pull *p = opaque;
  bool is_held = false;
  int r;

  for (;;) {
    while (p->pos == p->batch.len) {
      r = pull_take_batch (p);
      if (r <= 0)
        return r;
    }
    next_piece (p, ret);
    if (p->resume) {
      r = find_held (p, ret, &is_held, &ret->len);
      if (r < 0)
        return r;
      if (is_held)
        ret->len = MIN (ret->len, p->max_item);
    }
    take_piece (p, ret->len);
    if (!is_held)
      return ret->is_zero ? 1 : wait_turn (p, ret->len);
    r = take_held (p, ret);
    if (r < 0)
      return r;
  }
}

static int
pull_reserve (void *opaque, const struct copy_item *item)
{
  struct pull *p = opaque;
  int r = item->is_zero ? pull_handle (p, item) : 0;

  if (r == 0)
    r = sums_reserve (p->sums, item->off, item->len, item->is_zero);
  /* How long packed clusters are shows only when they are written. */
  if (r < 0 || item->is_zero || p->options->compress)
    return r;
  return qcow2_reserve (p->target, item->len, item->off);
}

static int
pull_data (void *opaque, const struct copy_item *item, const void *buf)
{
  struct pull *p = opaque;
  int r = buf ? pull_handle (p, item) : 0;

  return buf && r == 0 ? sums_set (p->sums, item->off, item->len, buf) : r;
}

static void
pull_done (void *opaque, const struct copy_item *item)
{
  struct pull *p = opaque;
  uint64_t before;

  progress_add (item->len);
  before = item->is_zero ? 0 : atomic_fetch_add (&p->written, item->len);
  if (p->has_saver)
    pull_unhandle (p, item);
  if (item->is_zero)
    return;
  /* Advice: the sync at the end is what counts. */
  if (before / WRITEBACK_STEP != (before + item->len) / WRITEBACK_STEP)
    (void) sync_file_range (p->image_fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

static int
copy_all (struct pull *p, struct copy_stats *stats, struct error *err)
{
  static const struct copy_ops ops = {
    .next = pull_next, .reserve = pull_reserve, .data = pull_data,
    .done = pull_done,
  };
  const struct copy_options options = {
    .max_item = p->max_item,
    .detect_zeroes = true,
    .zero_unit = p->options->cluster_size,
    .target_is_zero = !p->options->backing,
    .compress = p->options->compress,
    .nr_threads = p->options->nr_threads,
    .memory = bandwidth_window (p->options->bandwidth, p->options->memory),
    .cancel = p->options->cancel,
  };
  int r = p->options->save ? pull_save_start (p, err) : 0;

  if (r == 0)
    r = pull_map_start (p, err);
  if (r == 0) {
    r = copy_run (p->options->source, p->target, &options, &ops, p, stats,
                  err);
    pull_map_stop (p);
  }
  pull_save_stop (p);
  /* What the map says is nearer to the cause. */
  if (r < 0 && p->map_error.errnum && err)
    *err = p->map_error;
  return r;
}

static void
destroy (struct pull *p)
{
  if (p->target)
    blk_close (p->target);
  sums_writer_free (p->sums);
  dirty_map_free (p->map);
  dirty_runs_reset (&p->batch);
  dirty_runs_reset (&p->ready);
  offsets_reset (&p->handled);
  extents_free (&p->held);
  free (p->buf);
  if (p->image_fd >= 0)
    close (p->image_fd);
  if (p->sums_fd >= 0)
    close (p->sums_fd);
  pthread_cond_destroy (&p->cond);
  pthread_cond_destroy (&p->trim_cond);
  pthread_cond_destroy (&p->save_cond);
  lock_destroy (&p->lock);
}

static int
run (struct pull *p, struct pull_result *ret, struct error *err)
{
  const struct pull_options *o = p->options;
  struct copy_stats stats = { 0 };
  struct sums_totals before = { 0 };
  struct error ignored;
  int r = pull_make_files (p, err);

  if (r < 0)
    return r;
  p->is_begun = true;
  if (p->resume) {
    before = p->resume->totals;
    before.data_clusters += p->resume->run_type == SUMS_DATA
      ? p->resume->run_count : 0;
    before.zero_clusters += p->resume->run_type == SUMS_ZERO
      ? p->resume->run_count : 0;
    progress_add ((before.data_clusters + before.zero_clusters)
                  * o->cluster_size);
  }
  r = copy_all (p, &stats, err);
  ret->read_bytes = stats.read_bytes;
  if (r == 0)
    return pull_finish_files (p, ret, err);
  /* What has arrived need not be pulled once more. */
  if (o->save && !stats.is_write_error && r != -ECANCELED)
    (void) pull_save (p, &ignored);
  return r;
}

static int
run_once (const struct pull_options *options, const struct sums_state *resume,
          struct pull_result *ret, bool *ret_is_begun, struct error *err)
{
  struct pull p = { .options = options, .image_fd = -1, .sums_fd = -1,
                    .resume = resume,
                    .max_item = bandwidth_piece (options->bandwidth,
                                                 options->cluster_size,
                                                 MAX_ITEM) };
  int r;

  lock_init (&p.lock, LOCK_RANK_LEAF);
  cond_init (&p.cond);
  cond_init (&p.save_cond);
  cond_init (&p.trim_cond);
  extents_init (&p.held, 1);
  r = run (&p, ret, err);
  *ret_is_begun = p.is_begun;
  destroy (&p);
  return r;
}

int
pull_run (const struct pull_options *options, struct pull_result *ret,
          struct error *err)
{
  struct pull_result result = { 0 };
  struct error e = ERROR_INIT;
  bool is_begun = false;
  int r = -1;

  if (options->resume) {
    r = run_once (options, options->resume, &result, &is_begun, &e);
    if (r < 0 && is_begun)
      *err = e;
    else if (r < 0) {
      log_warning ("what is there of the backup cannot be gone on with: %s",
                   e.msg);
      pull_discard (options);
    }
  }
  if (!is_begun)
    r = run_once (options, NULL, &result, &is_begun, err);
  if (r < 0 && !options->save)
    pull_discard (options);
  if (r == 0)
    *ret = result;
  return r;
}
