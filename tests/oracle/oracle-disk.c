/* SPDX-License-Identifier: BSD-3-Clause */
/* The oracle test, in one process: disk.h, session.h and copy.h under
 * concurrent writers.
 *
 * Guests' threads change two disks at random.  Two "repositories", each with a
 * bitmap and a thread of its own, take points of both disks or of one: full,
 * incremental and copy, full and dirty views, ended in success, aborted,
 * cancelled half-way, broken by a scratch that is too small.  Whatever was
 * pulled completely must be a state that the disks have had at a single moment
 * (history.c).  An incremental backup begins as a copy of the one before.
 *
 * usage: oracle-disk [POINTS]     SEED=N in the environment repeats choices
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blk-file.h"
#include "blk-mem.h"
#include "cleanup.h"
#include "copy.h"
#include "disk.h"
#include "history.h"
#include "jitter.h"
#include "log.h"
#include "range.h"
#include "session.h"
#include "writer.h"

#define NR_DISKS 2
/* The last granule is a short one. */
#define NR_CELLS UINT64_C (8195)
#define DISK_SIZE (NR_CELLS * CELL)
#define NR_REPOS 2
#define NR_WRITERS 5
#define CHUNK UINT64_C (65536)
#if defined (__SANITIZE_ADDRESS__) || defined (__SANITIZE_THREAD__)
#define DEFAULT_POINTS 60
#else
#define DEFAULT_POINTS 300
#endif
#define TINY_SCRATCH (UINT64_C (128) * 1024)

static uint64_t seed;
static struct history *history;
static struct disk *disks[NR_DISKS];
static struct session_manager *manager;
static struct writers *writers;
static atomic_int points_left;
static atomic_bool has_failed;
/* Points are judged one at a time. */
static pthread_mutex_t judge = PTHREAD_MUTEX_INITIALIZER;

struct repo {
  const char *bitmap;
  uint64_t granularity;
  uint64_t random;
  pthread_t thread;
  struct blk *images[NR_DISKS]; /* of the chain's head; NULL = none yet */
  struct point_id heads[NR_DISKS];
  unsigned nr_full, nr_incremental, nr_copy, nr_aborted, nr_cancelled,
    nr_broken;
  uint64_t pulled_bytes;
};

static void __attribute__ ((noreturn, format (printf, 1, 2)))
die (const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  fprintf (stderr, "oracle: ");
  vfprintf (stderr, fmt, args);
  fprintf (stderr, "\noracle: FAILED; repeat with SEED=%" PRIu64 "\n", seed);
  va_end (args);
  _exit (1);
}

/* The guest in the same process. */

static int
guest_pread (struct guest *g, unsigned disk, void *buf, uint64_t len,
             uint64_t off)
{
  return disk_pread (disks[disk], buf, len, off, 0);
}

static int
guest_pwrite (struct guest *g, unsigned disk, const void *buf, uint64_t len,
              uint64_t off, bool is_fua)
{
  return disk_pwrite (disks[disk], buf, len, off, is_fua ? BLK_FUA : 0);
}

static int
guest_zero (struct guest *g, unsigned disk, uint64_t len, uint64_t off,
            bool may_unmap)
{
  return disk_zero (disks[disk], len, off, may_unmap ? BLK_MAY_UNMAP : 0);
}

static int
guest_trim (struct guest *g, unsigned disk, uint64_t len, uint64_t off)
{
  return disk_trim (disks[disk], len, off, 0);
}

static int
guest_flush (struct guest *g, unsigned disk)
{
  return disk_flush (disks[disk]);
}

static void
guest_close (struct guest *g)
{
}

static struct guest *
guest_connect (void *opaque)
{
  static struct guest guest = {
    .pread = guest_pread, .pwrite = guest_pwrite, .zero = guest_zero,
    .trim = guest_trim, .flush = guest_flush, .close = guest_close,
  };

  return &guest;
}

/* Pulling one disk of a session. */

struct pull {
  const struct session_disk *sd;
  struct blk *view;
  struct extents dirty;         /* what to pull */
  size_t index;
  uint64_t pos;
  uint64_t max_item;
  bool does_trim;
  bool may_break;               /* the scratch is too small */
  bool asks_extents;
  atomic_int left;              /* items until it is cancelled */
  bool cancel;
};

/* What has to be pulled: everything, or the dirty granules, rounded out.
 * -ESTALE if the session has been ended under our feet.
 */
static int
list_dirty (struct pull *p, uint64_t cluster)
{
  const uint64_t unit = cluster ? cluster : 1;
  struct extents e;
  uint64_t off, end, last = 0;
  size_t i;
  int r;

  extents_init (&p->dirty, 1 << 20);
  if (p->sd->mode != SESSION_INCREMENTAL) {
    extents_add (&p->dirty, 0, p->sd->size, EXTENT_DIRTY);
    return 0;
  }
  extents_init (&e, 1 << 20);
  r = dirty_frozen_extents (p->sd->bitmap, p->sd->size, 0, &e);
  for (i = 0; i < e.len; i++) {
    if (e.ptr[i].value != EXTENT_DIRTY)
      continue;
    off = MAX (round_down (e.ptr[i].off, unit), last);
    end = MIN (round_up (e.ptr[i].off + e.ptr[i].len, unit), p->sd->size);
    if (off >= end)
      continue;
    extents_add (&p->dirty, last, off - last, 0);
    extents_add (&p->dirty, off, end - off, EXTENT_DIRTY);
    last = end;
  }
  extents_free (&e);
  return r;
}

static int
pull_next (void *opaque, struct copy_item *ret)
{
  struct pull *p = opaque;
  const struct extent *e;
  struct extents status;
  int r = 1;

  for (;; p->index++) {
    if (p->index == p->dirty.len)
      return 0;
    e = &p->dirty.ptr[p->index];
    p->pos = MAX (p->pos, e->off);
    if (e->value == EXTENT_DIRTY && p->pos < e->off + e->len)
      break;
  }
  ret->off = p->pos;
  ret->len = MIN (p->max_item, e->off + e->len - p->pos);
  if (p->asks_extents) {
    extents_init (&status, 1);
    r = blk_extents (p->view, ret->len, ret->off, 0, BLK_STATUS_ALLOCATION,
                     &status);
    if (r == 0) {
      ret->len = MIN (status.ptr[0].len, ret->len);
      ret->is_zero = status.ptr[0].value & EXTENT_ZERO;
      r = 1;
    }
    extents_free (&status);
  }
  p->pos += ret->len;
  return r;
}

static void
pull_done (void *opaque, const struct copy_item *item)
{
  struct pull *p = opaque;

  if (p->does_trim
      && blk_trim (p->view, item->len, item->off, 0) < 0
      && !p->may_break)
    die ("cannot trim a view");
  if (atomic_fetch_sub (&p->left, 1) == 1)
    __atomic_store_n (&p->cancel, true, __ATOMIC_RELAXED);
}

static void
copy_image (struct blk *from, struct blk *to)
{
  uint64_t off, n;
  char buf[4096];

  memset (buf, 0xaa, sizeof buf);
  for (off = 0; off < DISK_SIZE; off += n) {
    n = MIN (DISK_SIZE - off, sizeof buf);
    if ((from && blk_pread (from, buf, n, off, 0) < 0)
        || blk_pwrite (to, buf, n, off, 0) < 0)
      die ("cannot copy an image");
  }
}

/* One backup. */

struct backup {
  struct repo *repo;
  unsigned nr_disks;
  unsigned disks[NR_DISKS];
  struct session_disk_request requests[NR_DISKS];
  struct session_request request;
  bool is_cancelled, is_success;
  struct session *session;
  struct history_point *point;
  struct blk *images[NR_DISKS];
};

static void
choose_backup (struct repo *repo, struct backup *b)
{
  static const uint64_t clusters[] = { 0, 0, 4096, 16384, 65536 };
  const unsigned how = next_random (&repo->random) % 32;
  struct session_disk_request *q;
  unsigned i;

  memset (b, 0, sizeof *b);
  b->repo = repo;
  b->nr_disks = next_random (&repo->random) % 3 ? NR_DISKS : 1;
  b->disks[0] = b->nr_disks == 1 ? next_random (&repo->random) % NR_DISKS : 0;
  b->disks[1] = 1;
  for (i = 0; i < b->nr_disks; i++) {
    q = &b->requests[i];
    q->disk = disks[b->disks[i]];
    q->bitmap = how == 0 ? NULL : repo->bitmap;
    q->is_dirty_view = next_random (&repo->random) % 2;
    q->cluster_size = clusters[next_random (&repo->random) % 5];
    q->mode = how == 0 ? SESSION_COPY : how == 1 ? SESSION_FULL
      : SESSION_AUTO;
  }
  b->request.disks = b->requests;
  b->request.nr_disks = b->nr_disks;
  if (how == 2 || how == 3)
    b->request.scratch_limit = TINY_SCRATCH;
  b->is_cancelled = how == 4 || how == 5;
  b->is_success = how < 2 || how >= 10;
}

static void
check_begun (const struct backup *b)
{
  const struct session_disk *sds;
  const struct repo *repo = b->repo;
  unsigned disk;
  size_t i, nr;

  sds = session_disks (b->session, &nr);
  if (nr != b->nr_disks)
    die ("the session has %zu disks, not %u", nr, b->nr_disks);
  for (i = 0; i < nr; i++) {
    disk = b->disks[i];
    if (b->requests[i].mode == SESSION_AUTO
        && (sds[i].mode == SESSION_INCREMENTAL)
        != (repo->images[disk] != NULL))
      die ("mode %s, unexpected: %s", session_mode_name (sds[i].mode),
           sds[i].why);
    if (sds[i].mode == SESSION_INCREMENTAL
        && !point_id_is_equal (&sds[i].base, &repo->heads[disk]))
      die ("the bitmap counts from another point than the chain's head");
  }
}

/* Take the new images for the chain's. */
static void
adopt (struct backup *b)
{
  const struct session_disk *sds;
  struct repo *repo = b->repo;
  unsigned disk;
  size_t i, nr;

  sds = session_disks (b->session, &nr);
  for (i = 0; i < nr; i++) {
    disk = b->disks[i];
    if (sds[i].mode == SESSION_COPY) {
      repo->nr_copy++;
      continue;
    }
    if (sds[i].mode == SESSION_FULL)
      repo->nr_full++;
    else
      repo->nr_incremental++;
    blk_close (repo->images[disk]);
    repo->images[disk] = b->images[i];
    b->images[i] = NULL;
    repo->heads[disk] = *session_id (b->session);
  }
}

/* A new image with the disk as of the point.  0, or -errno of the pull. */
static int
pull_disk (const struct backup *b, size_t i, const struct session_disk *sd,
           struct blk **ret)
{
  static const struct copy_ops ops = { .next = pull_next,
                                       .done = pull_done };
  const unsigned disk = b->disks[i];
  struct repo *repo = b->repo;
  struct pull p = {
    .sd = sd, .view = cbw_view_blk (sd->view),
    .max_item = UINT64_C (4096) << next_random (&repo->random) % 7,
    .does_trim = next_random (&repo->random) % 3 == 0,
    .asks_extents = next_random (&repo->random) % 3 == 0,
    .may_break = b->request.scratch_limit > 0,
    .left = b->is_cancelled ? 1 + (int) (next_random (&repo->random) % 20)
      : INT32_MAX,
  };
  const struct copy_options options = {
    .nr_threads = 1 + next_random (&repo->random) % 3,
    .depth = 1 + next_random (&repo->random) % 4,
    .max_item = p.max_item,
    .detect_zeroes = next_random (&repo->random) % 2,
    .zero_unit = next_random (&repo->random) % 2 ? 4096 : 0,
    .cancel = &p.cancel,
  };
  struct copy_stats stats;
  int r;

  if (blk_mem_new (DISK_SIZE, ret) < 0)
    die ("no memory for an image");
  /* A full one must not depend on what was there. */
  copy_image (sd->mode == SESSION_INCREMENTAL ? repo->images[disk] : NULL,
              *ret);
  r = list_dirty (&p, sd->is_dirty_view ? b->requests[i].cluster_size : 0);
  if (r == 0) {
    r = copy_run (p.view, *ret, &options, &ops, &p, &stats, NULL);
    repo->pulled_bytes += stats.read_bytes;
  }
  extents_free (&p.dirty);
  return r;
}

/* Pull all disks.  True if all of them are complete; false if one is not, as
 * was to be expected.
 */
static bool
pull_all (struct backup *b)
{
  const struct session_disk *sds;
  bool is_complete = true;
  size_t i, nr;
  int r;

  sds = session_disks (b->session, &nr);
  for (i = 0; i < nr; i++) {
    r = pull_disk (b, i, &sds[i], &b->images[i]);
    if (r == 0)
      continue;
    is_complete = false;
    if (r == -ECANCELED && b->is_cancelled)
      b->repo->nr_cancelled++;
    else if (b->request.scratch_limit == 0)
      die ("a pull failed: %s", strerror (-r));
  }
  return is_complete;
}

/* Every image of the backup must be the disks as of one moment. */
static bool
judge_backup (struct backup *b)
{
  char buf[CHUNK / 16] __attribute__ ((aligned (8)));
  uint64_t cell, n;
  unsigned i;
  bool ok;

  pthread_mutex_lock (&judge);
  for (i = 0; i < b->nr_disks; i++)
    for (cell = 0; cell < NR_CELLS; cell += n) {
      n = MIN (sizeof buf / CELL, NR_CELLS - cell);
      if (blk_pread (b->images[i], buf, n * CELL, cell * CELL, 0) < 0)
        die ("cannot read an image");
      history_point_check (b->point, b->disks[i], cell, n, buf);
    }
  ok = history_point_verdict (b->point);
  pthread_mutex_unlock (&judge);
  b->point = NULL;
  return ok;
}

static void
end_backup (struct backup *b, bool is_complete)
{
  const bool is_success = b->is_success && is_complete;
  struct error err = ERROR_INIT;
  int r;

  r = session_end (manager, session_id (b->session), is_success, &err);
  if (r == 0 && is_success)
    adopt (b);
  else if (r == 0 && !b->is_cancelled)
    b->repo->nr_aborted++;
  else if (r < 0 && b->request.scratch_limit == 0)
    die ("session_end: %s", err.msg);
  else if (r < 0)
    b->repo->nr_broken++;
}

static void
run_backup (struct repo *repo)
{
  struct error err = ERROR_INIT;
  struct backup b;
  bool is_complete;
  unsigned i;

  choose_backup (repo, &b);
  b.point = history_point_open (history);
  if (session_begin (manager, &b.request, &b.session, &err) < 0)
    die ("session_begin: %s", err.msg);
  history_point_returned (b.point);
  check_begun (&b);
  is_complete = pull_all (&b);
  if (is_complete && !judge_backup (&b))
    atomic_store (&has_failed, true);
  if (b.point)
    history_point_close (b.point);
  end_backup (&b, is_complete);
  for (i = 0; i < b.nr_disks; i++)
    blk_close (b.images[i]);
  session_unref (b.session);
}

static void *
repo_main (void *arg)
{
  struct repo *repo = arg;

  while (atomic_fetch_sub (&points_left, 1) > 0
         && !atomic_load (&has_failed) && !writers_have_failed (writers))
    run_backup (repo);
  return NULL;
}

/* Setting up. */

static void
open_disks (void)
{
  const char *dir = getenv ("TMPDIR");
  struct disk_options options = { .name = "a" };
  struct error err = ERROR_INIT;
  char path[1000];
  struct blk *node;
  int fd;

  snprintf (path, sizeof path, "%s/oracle-XXXXXX", dir ? dir : "/tmp");
  fd = mkstemp (path);
  if (fd == -1 || ftruncate (fd, (off_t) DISK_SIZE) < 0)
    die ("%s: %m", path);
  close (fd);
  options.scratch_dir = dir ? dir : "/tmp";
  if (blk_file_open (path, 0, &node, &err) < 0
      || disk_new (jitter_new (node), &options, &disks[0], &err) < 0)
    die ("disk a: %s", err.msg);
  unlink (path);
  options.name = "b";
  if (blk_mem_new (DISK_SIZE, &node) < 0
      || disk_new (jitter_new (node), &options, &disks[1], &err) < 0)
    die ("disk b: %s", err.msg);
}

static void
add_bitmaps (struct repo *repo, unsigned number)
{
  static const char *const names[NR_REPOS] = { "first", "second" };
  uint64_t random = seed + number;
  unsigned i;

  repo->random = next_random (&random);
  repo->bitmap = names[number];
  repo->granularity = UINT64_C (512) << next_random (&repo->random) % 8;
  for (i = 0; i < NR_DISKS; i++)
    if (disk_bitmap_add (disks[i], repo->bitmap, repo->granularity, false,
                         NULL) < 0)
      die ("cannot add a bitmap");
}

static void
report (const struct repo *repo)
{
  printf ("  bitmap %s, granularity %" PRIu64 ": %u disks full, %u"
          " incremental, %u copied, %u backups aborted, %u cancelled, %u"
          " broken by scratch, %" PRIu64 " MiB pulled\n",
          repo->bitmap, repo->granularity, repo->nr_full,
          repo->nr_incremental, repo->nr_copy, repo->nr_aborted,
          repo->nr_cancelled, repo->nr_broken, repo->pulled_bytes >> 20);
}

static void
run_repos (struct repo *repos)
{
  const struct writers_options options = {
    .history = history, .seed = seed, .nr_threads = NR_WRITERS,
    .nr_disks = NR_DISKS, .nr_cells = NR_CELLS, .connect = guest_connect,
  };
  unsigned i;

  writers = writers_start (&options);
  for (i = 0; i < NR_REPOS; i++)
    if (pthread_create (&repos[i].thread, NULL, repo_main, &repos[i]) != 0)
      die ("cannot start a thread");
  for (i = 0; i < NR_REPOS; i++)
    pthread_join (repos[i].thread, NULL);
  if (!writers_stop (writers))
    die ("the guest has failed");
  if (atomic_load (&has_failed))
    die ("a backup is wrong");
}

/* A broken scratch is meant. */
static void
log_nothing (enum log_level level, const char *msg)
{
}

int
main (int argc, char *argv[])
{
  static const struct session_ops ops;
  struct repo repos[NR_REPOS] = { 0 };
  const char *s = getenv ("SEED");
  const int points = argc > 1 ? atoi (argv[1]) : DEFAULT_POINTS;
  unsigned i, j;

  seed = s ? strtoull (s, NULL, 0)
    : (uint64_t) time (NULL) << 16 ^ (uint64_t) getpid ();
  printf ("oracle: SEED=%" PRIu64 "\n", seed);
  fflush (stdout);
  log_set_handler (log_nothing);
  atomic_store (&points_left, points);
  history = history_new (seed, NR_DISKS, NR_CELLS);
  open_disks ();
  if (session_manager_new (&ops, NULL, &manager) < 0)
    die ("cannot make a session manager");
  for (i = 0; i < NR_REPOS; i++)
    add_bitmaps (&repos[i], i);

  run_repos (repos);

  printf ("oracle: %d points right under %" PRIu64 " operations\n", points,
          history_count (history));
  for (i = 0; i < NR_REPOS; i++) {
    report (&repos[i]);
    for (j = 0; j < NR_DISKS; j++)
      blk_close (repos[i].images[j]);
  }
  session_manager_free (manager);
  for (i = 0; i < NR_DISKS; i++)
    if (disk_close (disks[i]) < 0)
      die ("cannot close a disk");
  history_free (history);
  return 0;
}
