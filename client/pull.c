/* SPDX-License-Identifier: BSD-3-Clause */
/* One disk's pull.
 *
 * A thread of its own asks for the map of what is dirty, a batch ahead of the
 * copy engine, whose threads read, hash and write: what they read is still in
 * their core's cache when they hash and write it.  Space in the image and
 * places in the checksum file are given out in ascending order as ranges are
 * handed to the engine.
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
#include <unistd.h>

#include "blk-file.h"
#include "blk-qcow2.h"
#include "copy.h"
#include "dirtymap.h"
#include "lock.h"
#include "manifest.h"
#include "progress.h"
#include "pull.h"
#include "range.h"

/* Runs of one batch of the map, about; three batches exist at most. */
#define BATCH_RUNS 16384
#define MAX_ITEM (UINT32_C (1) << 18)
#define MAX_ZERO_ITEM (UINT64_C (1) << 30)
/* Writing to the disk starts when this much is in the page cache, so that the
 * sync at the end has little left to do.
 */
#define WRITEBACK_STEP (UINT64_C (64) << 20)

struct pull {
  /* Fixed while it runs. */
  const struct pull_options *options;
  struct dirty_map *map;
  struct blk *target;
  struct sums_writer *sums;
  int image_fd, sums_fd;        /* image_fd: another one than target's */

  /* The engine's next, one thread at a time. */
  struct dirty_runs batch;
  size_t pos;                   /* in batch */
  size_t max_item;

  /* Atomic. */
  _Atomic uint64_t written;

  pthread_t mapper;
  struct lock lock;
  pthread_cond_t cond;          /* any of these changed */
  /* Protected by lock. */
  struct dirty_runs ready;
  bool has_ready, at_end, is_stopping;
  struct error map_error;
};

/* Collect a batch: 1, 0 at the end, -errno. */
static int
fill_batch (struct pull *p, struct dirty_runs *runs, struct error *err)
{
  int r = 1;

  while (r > 0 && runs->len < BATCH_RUNS) {
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
  while (!p->has_ready && !p->at_end)
    lock_wait (&p->lock, &p->cond);
  if (p->has_ready) {
    p->batch = p->ready;
    memset (&p->ready, 0, sizeof p->ready);
    p->has_ready = false;
    pthread_cond_broadcast (&p->cond);
    return 1;
  }
  return -p->map_error.errnum;
}

static int
pull_next (void *opaque, struct copy_item *ret)
{
  struct pull *p = opaque;
  struct dirty_run *run;
  int r;

  while (p->pos == p->batch.len) {
    r = take_batch (p);
    if (r <= 0)
      return r;
  }
  run = &p->batch.ptr[p->pos];
  ret->off = run->off;
  ret->len = MIN (run->len, run->is_zero ? MAX_ZERO_ITEM : p->max_item);
  ret->is_zero = run->is_zero;
  run->off += ret->len;
  run->len -= ret->len;
  if (run->len == 0)
    p->pos++;
  return 1;
}

static int
pull_reserve (void *opaque, const struct copy_item *item)
{
  struct pull *p = opaque;
  int r = sums_reserve (p->sums, item->off, item->len, item->is_zero);

  /* How long packed clusters are shows only when they are written. */
  if (r < 0 || item->is_zero || p->options->compress)
    return r;
  return qcow2_reserve (p->target, item->len, item->off);
}

static int
pull_data (void *opaque, const struct copy_item *item, const void *buf)
{
  struct pull *p = opaque;

  return buf ? sums_set (p->sums, item->off, item->len, buf) : 0;
}

static void
pull_done (void *opaque, const struct copy_item *item)
{
  struct pull *p = opaque;
  uint64_t before;

  progress_add (item->len);
  if (item->is_zero)
    return;
  before = atomic_fetch_add_explicit (&p->written, item->len,
                                      memory_order_relaxed);
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
create_file (const struct pull_options *o, const char *suffix, int *ret_fd,
             struct error *err)
{
  char name[BACKUP_NAME_MAX];

  partial_name (o, suffix, name);
  *ret_fd = openat (o->dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC,
                    0666);
  if (*ret_fd < 0)
    return error_set_errno (err, errno, "%s/%s", o->folder, name);
  return 0;
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
  char name[BACKUP_NAME_MAX];
  struct blk *file;
  int r, fd;

  r = create_file (o, ".qcow2.partial", &p->image_fd, err);
  if (r < 0)
    return r;
  partial_name (o, ".qcow2.partial", name);
  fd = fcntl (p->image_fd, F_DUPFD_CLOEXEC, 0);
  if (fd < 0)
    return error_set_errno (err, errno, "%s/%s", o->folder, name);
  r = blk_file_from_fd (fd, name, BLK_FILE_ANY_SIZE, &file, err);
  if (r == 0)
    r = blk_qcow2_create (file, &q, &p->target, err);
  if (r < 0)
    error_prefix (err, "%s/%s", o->folder, name);
  return r;
}

static int
create_sums (struct pull *p, struct error *err)
{
  const struct pull_options *o = p->options;
  const struct sums_header header = {
    .cluster_size = o->cluster_size,
    .virtual_size = blk_size (o->source),
    .number = o->number,
    .point = o->point,
  };
  int r = create_file (o, ".sums.partial", &p->sums_fd, err);

  if (r == 0) {
    r = sums_writer_new (p->sums_fd, &header, !o->backing, &p->sums);
    if (r < 0)
      error_set_errno (err, -r, "checksums");
  }
  return r;
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
    .cancel = p->options->cancel,
  };
  int r = start_mapper (p, err);

  if (r < 0)
    return r;
  r = copy_run (p->options->source, p->target, &options, &ops, p, stats, err);
  stop_mapper (p);
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
  if (p->image_fd >= 0)
    close (p->image_fd);
  if (p->sums_fd >= 0)
    close (p->sums_fd);
  pthread_cond_destroy (&p->cond);
  lock_destroy (&p->lock);
}

int
pull_run (const struct pull_options *options, struct pull_result *ret,
          struct error *err)
{
  struct pull p = { .options = options, .image_fd = -1, .sums_fd = -1,
                    .max_item = MAX (MAX_ITEM, options->cluster_size) };
  struct copy_stats stats = { 0 };
  struct pull_result result = { 0 };
  char name[BACKUP_NAME_MAX];
  int r;

  lock_init (&p.lock, LOCK_RANK_LEAF);
  cond_init (&p.cond);
  r = create_image (&p, err);
  if (r == 0)
    r = create_sums (&p, err);
  if (r == 0)
    r = copy_all (&p, &stats, err);
  if (r == 0)
    r = finish (&p, &result, err);
  destroy (&p);
  if (r < 0) {
    unlinkat (options->dirfd, partial_name (options, ".qcow2.partial", name),
              0);
    unlinkat (options->dirfd, partial_name (options, ".sums.partial", name),
              0);
    return r;
  }
  result.read_bytes = stats.read_bytes;
  *ret = result;
  return 0;
}
