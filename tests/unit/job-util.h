/* SPDX-License-Identifier: BSD-3-Clause */
/* Push jobs between disks and targets in memory, for the tests of job.h: what
 * is told of them is written down as text.
 */
#ifndef TIDEMARK_TESTS_JOB_UTIL_H
#define TIDEMARK_TESTS_JOB_UTIL_H

#include "disk-util.h"
#include "job.h"

#define JOB_SIZE (4 * 64 * KiB)

/* One disk "a", "b" ... with bitmap "m", and its target. */
struct job_side {
  struct disk *disk;
  struct blk *target;           /* a blk-debug node */
  _Atomic unsigned nr_released;
};

struct job_fixture {
  struct job_manager *m;
  struct job_side sides[2];

  pthread_mutex_t lock;
  /* Protected by lock. */
  char events[2000];            /* "a:created a:running ..." */
};

static inline void
job_note (void *opaque, const struct job_event *event)
{
  static const char *const names[] = {
    [JOB_EVENT_COMPLETED] = "COMPLETED", [JOB_EVENT_CANCELLED] = "CANCELLED",
    [JOB_EVENT_PENDING] = "PENDING", [JOB_EVENT_ERROR] = "ERROR",
  };
  struct job_fixture *f = opaque;
  size_t len;

  pthread_mutex_lock (&f->lock);
  len = strlen (f->events);
  snprintf (f->events + len, sizeof f->events - len, "%s%s:%s%s",
            len ? " " : "", event->info->id,
            event->type == JOB_EVENT_STATUS
            ? job_status_name (event->info->status) : names[event->type],
            event->type != JOB_EVENT_ERROR ? ""
            : event->is_read ? "(read)" : "(write)");
  pthread_mutex_unlock (&f->lock);
}

/* They begin so, and have been forgotten. */
static inline void
assert_events (struct job_fixture *f, const char *expected)
{
  pthread_mutex_lock (&f->lock);
  assert_string_equal (f->events, expected);
  f->events[0] = '\0';
  pthread_mutex_unlock (&f->lock);
}

static inline bool
has_event (struct job_fixture *f, const char *event)
{
  bool r;

  pthread_mutex_lock (&f->lock);
  r = strstr (f->events, event) != NULL;
  pthread_mutex_unlock (&f->lock);
  return r;
}

static inline void
job_fixture_open (struct job_fixture *f)
{
  static const struct job_ops ops = { .event = job_note };
  static const char *const names[] = { "a", "b" };

  *f = (struct job_fixture) { .events = "" };
  pthread_mutex_init (&f->lock, NULL);
  assert_int_equal (job_manager_new (&ops, f, &f->m), 0);
  for (unsigned i = 0; i < 2; i++) {
    struct job_side *side = &f->sides[i];

    side->disk = debug_disk (names[i], JOB_SIZE, CBW_BREAK_BACKUP);
    side->target = debug_node (JOB_SIZE);
    fill (side->disk, 0, JOB_SIZE, 'o');
    assert_int_equal (disk_bitmap_add (side->disk, "m", 4096, 0, NULL), 0);
  }
}

static inline void
job_fixture_close (struct job_fixture *f)
{
  job_manager_free (f->m);
  for (unsigned i = 0; i < 2; i++) {
    disk_close (f->sides[i].disk);
    blk_close (f->sides[i].target);
  }
  pthread_mutex_destroy (&f->lock);
}

static inline void
job_released (void *opaque, struct blk *target)
{
  struct job_side *side = opaque;

  assert_ptr_equal (side->target, target);
  atomic_fetch_add (&side->nr_released, 1);
}

/* All of the disk that the bitmap says, which then counts from here. */
static inline struct job_request
incremental (struct job_side *side)
{
  return (struct job_request) {
    .id = disk_name (side->disk), .disk = side->disk, .target = side->target,
    .release_target = job_released, .opaque = side, .sync = JOB_SYNC_BITMAP,
    .bitmap = "m",
  };
}

/* Begin jobs at one point.  0 or the error of what failed; then nothing has
 * begun.
 */
static inline int
begin_jobs (struct job_fixture *f, const struct job_request *requests,
            size_t nr, bool is_grouped, struct error *err)
{
  struct job *jobs[2];
  size_t i, taken = 0;
  int r = 0;

  for (i = 0; i < nr && r == 0; i++)
    r = job_new (f->m, &requests[i], &jobs[i], err);
  if (r < 0)
    i--;
  for (size_t j = 0; j < i; j++)
    gate_close (disk_gate (requests[j].disk));
  while (r == 0 && taken < i) {
    r = job_take_point (jobs[taken], err);
    if (r == 0)
      taken++;
  }
  for (size_t j = 0; r < 0 && j < taken; j++)
    job_undo_point (jobs[j]);
  for (size_t j = 0; j < i; j++)
    gate_open (disk_gate (requests[j].disk));
  if (r == 0)
    job_start (jobs, nr, is_grouped);
  else
    for (size_t j = 0; j < i; j++)
      job_abandon (jobs[j], false);
  return r;
}

static inline void
begin_job (struct job_fixture *f, const struct job_request *request)
{
  assert_int_equal (begin_jobs (f, request, 1, false, NULL), 0);
}

static inline int
command (struct job_fixture *f, enum job_verb verb, const char *id)
{
  const struct job_command c = { .verb = verb, .id = id, .is_forced = true };

  return job_execute (f->m, &c, NULL);
}

/* Its status, JOB_NULL if there is none; *ret may be NULL. */
static inline enum job_status
job_look (struct job_fixture *f, const char *id, struct job_info *ret)
{
  CLEANUP_FREE struct job_info *infos = NULL;
  size_t nr;

  if (ret)
    *ret = (struct job_info) { .status = JOB_NULL };
  assert_int_equal (job_list (f->m, &infos, &nr), 0);
  for (size_t i = 0; i < nr; i++)
    if (strcmp (infos[i].id, id) == 0) {
      if (ret)
        *ret = infos[i];
      return infos[i].status;
    }
  return JOB_NULL;
}

static inline void
wait_status (struct job_fixture *f, const char *id, enum job_status status)
{
  WAIT_FOR (job_look (f, id, NULL) == status);
}

static inline struct dirty_info
bitmap_of (struct job_side *side)
{
  struct dirty_bitmap *bm = dirty_find (disk_dirty (side->disk), "m");
  struct dirty_info info;

  assert_non_null (bm);
  assert_int_equal (dirty_get_info (bm, &info), 0);
  dirty_unref (bm);
  free (info.name);
  info.name = NULL;
  return info;
}

/* It records, is free, and has so many dirty bytes. */
static inline void
assert_bitmap (struct job_side *side, uint64_t dirty_bytes)
{
  struct dirty_info info = bitmap_of (side);

  assert_int_equal (info.state, DIRTY_RECORDING);
  assert_false (info.is_busy);
  assert_int_equal (info.dirty_bytes, dirty_bytes);
}

#endif /* TIDEMARK_TESTS_JOB_UTIL_H */
