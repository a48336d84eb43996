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
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "blk-file.h"
#include "blk-qcow2.h"
#include "clock.h"
#include "copy.h"
#include "dirtymap.h"
#include "lock.h"
#include "log.h"
#include "manifest.h"
#include "progress.h"
#include "pull.h"
#include "qcow2-check.h"
#include "range.h"

/* Runs of one batch of the map, about; three batches exist at most. */
#define BATCH_RUNS 16384
#define MAX_ITEM (UINT32_C (1) << 18)
#define MAX_ZERO_ITEM (UINT64_C (1) << 30)
/* Writing to the disk starts when this much is in the page cache, so that the
 * sync at the end has little left to do.
 */
#define WRITEBACK_STEP (UINT64_C (64) << 20)

/* Saving waits at least so long, and twice as long as it took. */
#define MIN_SAVE_INTERVAL_NS INT64_C (20000000)

DEFINE_VECTOR (offsets, uint64_t);

struct pull {
  /* Fixed while it runs. */
  const struct pull_options *options;
  const struct sums_state *resume;      /* NULL: a new image */
  struct dirty_map *map;
  struct blk *target;
  struct sums_writer *sums;
  int image_fd, sums_fd;        /* image_fd: another one than target's */

  /* The engine's next, one thread at a time. */
  struct dirty_runs batch;
  size_t pos;                   /* in batch */
  size_t max_item;
  struct extents held;          /* gone on with: what the image holds from
                                   held.ptr[0].off on, a piece */
  void *buf;                    /* likewise: of max_item */

  /* Atomic. */
  _Atomic uint64_t written;

  bool is_begun;                /* the files are there; the main thread's */
  pthread_t mapper;
  struct lock lock;
  pthread_cond_t cond;          /* any of these changed */
  /* Protected by lock. */
  struct dirty_runs ready;
  bool has_ready, at_end, is_stopping;
  bool is_hungry;               /* the engine waits for a batch */
  struct error map_error;
  struct offsets handled;       /* items whose hash is known, or that are zero,
                                   and that are not yet in the image */
  uint64_t saved;               /* of written */
  bool is_waiting;              /* the saver, for handled */

  uint64_t saved_end;           /* what is before may be trimmed */

  pthread_t trimmer;
  bool has_trimmer;
  pthread_cond_t trim_cond;     /* the trimmer has something to look at */
  pthread_t saver;
  bool has_saver;
  pthread_cond_t save_cond;     /* the saver has something to look at */
};

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

/* The next batch: 1, 0 at the end, -errno. */
static int
take_batch (struct pull *p)
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
  int r = bandwidth_wait (o->bandwidth, len, o->cancel);

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
      r = take_batch (p);
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

/* Its hash is known, so that a save may take it for stored, which it will be
 * when it is unhandled.
 */
static int
handle (struct pull *p, const struct copy_item *item)
{
  if (!p->has_saver)
    return 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
  return offsets_append (&p->handled, item->off);
}

static void
unhandle (struct pull *p, const struct copy_item *item)
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

static int
pull_reserve (void *opaque, const struct copy_item *item)
{
  struct pull *p = opaque;
  int r = item->is_zero ? handle (p, item) : 0;

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
  int r = buf ? handle (p, item) : 0;

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
    unhandle (p, item);
  if (item->is_zero)
    return;
  /* Advice: the sync at the end is what counts. */
  if (before / WRITEBACK_STEP != (before + item->len) / WRITEBACK_STEP)
    (void) sync_file_range (p->image_fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

static const char *
partial_name (const struct pull_options *o, const char *suffix,
              char ret[BACKUP_NAME_MAX])
{
  return backup_name (o->number, o->is_full, suffix, ret);
}

static int
make_file (const struct pull *p, const char *suffix, int *ret_fd,
           struct error *err)
{
  const struct pull_options *o = p->options;
  char name[BACKUP_NAME_MAX];

  partial_name (o, suffix, name);
  *ret_fd = openat (o->dirfd, name, O_RDWR | O_CLOEXEC
                    | (p->resume ? 0 : O_CREAT | O_EXCL), 0666);
  if (*ret_fd < 0)
    return error_set_errno (err, errno, "%s/%s", o->folder, name);
  return 0;
}

static int
image_node (struct pull *p, struct blk **ret, struct error *err)
{
  char name[BACKUP_NAME_MAX];
  int fd = fcntl (p->image_fd, F_DUPFD_CLOEXEC, 0);

  partial_name (p->options, ".qcow2.partial", name);
  if (fd < 0)
    return error_set_errno (err, errno, "%s/%s", p->options->folder, name);
  return blk_file_from_fd (fd, name, BLK_FILE_ANY_SIZE, ret, err);
}

static int
create_image (struct pull *p, struct error *err)
{
  const struct pull_options *o = p->options;
  struct qcow2_create_options q = {
    .size = blk_size (o->source),
    .cluster_size = o->cluster_size,
    .backing_file = o->backing,
    .backing_format = o->backing ? "qcow2" : NULL,
    .compression = o->compression,
    .compression_level = o->compression_level,
  };
  struct blk *file;
  int r = image_node (p, &file, err);

  return r < 0 ? r : blk_qcow2_create (file, &q, &p->target, err);
}

/* Clusters that were being written when it was left are in no table, but may
 * be counted.
 */
static int
reopen_image (struct pull *p, struct error *err)
{
  const struct qcow2_open_options q = {
    .is_append = true, .ignore_backing = true,
    .compression_level = p->options->compression_level,
  };
  const struct qcow2_check_options c = { .repair = QCOW2_REPAIR_LEAKS };
  struct qcow2_check_result result;
  struct blk *file;
  int r = image_node (p, &file, err);

  if (r == 0)
    r = blk_qcow2_check (file, &c, &result, err);
  if (r == 0 && result.corruptions > 0)
    r = error_set (err, EBADMSG, "the image is damaged");
  if (r == 0)
    r = image_node (p, &file, err);
  if (r == 0)
    r = blk_qcow2_open (file, &q, &p->target, err);
  if (r == 0 && blk_size (p->target) != blk_size (p->options->source))
    r = error_set (err, EBADMSG, "the image has another size than the disk");
  return r;
}

static int
make_image (struct pull *p, struct error *err)
{
  char name[BACKUP_NAME_MAX];
  int r = make_file (p, ".qcow2.partial", &p->image_fd, err);

  if (r < 0)
    return r;
  r = p->resume ? reopen_image (p, err) : create_image (p, err);
  if (r < 0)
    error_prefix (err, "%s/%s", p->options->folder,
                  partial_name (p->options, ".qcow2.partial", name));
  return r;
}

static int
make_sums (struct pull *p, struct error *err)
{
  const struct pull_options *o = p->options;
  const struct sums_header header = {
    .cluster_size = o->cluster_size,
    .virtual_size = blk_size (o->source),
    .number = o->number,
    .point = o->point,
  };
  int r = make_file (p, ".sums.partial", &p->sums_fd, err);

  if (r < 0)
    return r;
  if (p->resume)
    r = sums_writer_resume (p->sums_fd, &header, !o->backing, p->resume,
                            &p->sums);
  else
    r = sums_writer_new (p->sums_fd, &header, !o->backing, &p->sums);
  return r < 0 ? error_set_errno (err, -r, "%s: checksums of backup %u",
                                  o->folder, o->number) : 0;
}

static int
start_mapper (struct pull *p, struct error *err)
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

static void
stop_mapper (struct pull *p)
{
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
    p->is_stopping = true;
    pthread_cond_broadcast (&p->cond);
  }
  pthread_join (p->mapper, NULL);
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

static int
save (struct pull *p, struct error *err)
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
    if (save (p, &err) < 0) {
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

static int
start_saver (struct pull *p, struct error *err)
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

static void
stop_saver (struct pull *p)
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
    .memory = p->options->memory,
    .cancel = p->options->cancel,
  };
  int r = p->options->save ? start_saver (p, err) : 0;

  if (r == 0)
    r = start_mapper (p, err);
  if (r == 0) {
    r = copy_run (p->options->source, p->target, &options, &ops, p, stats,
                  err);
    stop_mapper (p);
  }
  stop_saver (p);
  /* What the map says is nearer to the cause. */
  if (r < 0 && p->map_error.errnum && err)
    *err = p->map_error;
  return r;
}

static int
sync_file (const struct pull_options *o, int fd, const char *suffix,
           struct error *err)
{
  char name[BACKUP_NAME_MAX];

  if (fchmod (fd, 0444) == 0 && fsync (fd) == 0)
    return 0;
  partial_name (o, suffix, name);
  return error_set_errno (err, errno, "%s/%s", o->folder, name);
}

/* Metadata, header, checksums: all on stable storage. */
static int
finish (struct pull *p, struct pull_result *ret, struct error *err)
{
  const struct pull_options *o = p->options;
  struct sums_totals totals;
  struct stat st;
  int r;

  r = blk_flush (p->target);
  if (r == 0) {
    r = blk_close (p->target);
    p->target = NULL;
  }
  if (r < 0)
    return error_set_errno (err, -r, "%s: image of backup %u", o->folder,
                            o->number);
  r = sums_finish (p->sums, ret->root);
  if (r < 0)
    return error_set_errno (err, -r, "%s: checksums of backup %u", o->folder,
                            o->number);
  r = sync_file (o, p->image_fd, ".qcow2.partial", err);
  if (r == 0)
    r = sync_file (o, p->sums_fd, ".sums.partial", err);
  if (r < 0)
    return r;
  if (fstat (p->image_fd, &st) < 0)
    return error_set_errno (err, errno, "%s", o->folder);
  sums_writer_totals (p->sums, &totals);
  ret->image_bytes = (uint64_t) st.st_size;
  ret->data_bytes = totals.data_clusters * o->cluster_size;
  ret->zero_bytes = totals.zero_clusters * o->cluster_size;
  return 0;
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

/* Image and checksum file, of the old run if that is possible. */
static int
make_files (struct pull *p, struct error *err)
{
  int r;

  p->buf = p->resume ? malloc (p->max_item) : NULL;
  if (p->resume && !p->buf)
    return error_set_errno (err, ENOMEM, "backup %u", p->options->number);
  r = make_image (p, err);
  return r < 0 ? r : make_sums (p, err);
}

static int
run (struct pull *p, struct pull_result *ret, struct error *err)
{
  const struct pull_options *o = p->options;
  struct copy_stats stats = { 0 };
  struct sums_totals before = { 0 };
  struct error ignored;
  int r = make_files (p, err);

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
    return finish (p, ret, err);
  /* What has arrived need not be pulled once more. */
  if (o->save && !stats.is_write_error && r != -ECANCELED)
    (void) save (p, &ignored);
  return r;
}

void
pull_discard (const struct pull_options *o)
{
  char name[BACKUP_NAME_MAX];

  unlinkat (o->dirfd, partial_name (o, ".qcow2.partial", name), 0);
  unlinkat (o->dirfd, partial_name (o, ".sums.partial", name), 0);
}

static int
run_once (const struct pull_options *options, const struct sums_state *resume,
          struct pull_result *ret, bool *ret_is_begun, struct error *err)
{
  struct pull p = { .options = options, .image_fd = -1, .sums_fd = -1,
                    .resume = resume,
                    .max_item = MAX (MAX_ITEM, options->cluster_size) };
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
