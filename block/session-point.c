/* SPDX-License-Identifier: BSD-3-Clause */
/* The point of a session: how bitmaps are frozen and views started, and what
 * becomes of them.
 *
 * I2 (part): frozen bits are dropped only by an end in success, and only if no
 *     view has broken; anything else merges them back, and so it does those of
 *     disks whose bitmaps are to be kept.
 * I5 (part): the point is taken with the gates of all disks of the session
 *     closed at once.
 *
 * Called by session.c from control threads and from the watcher, without
 * locks: closing a gate waits for the writes in progress.  One thread at a time
 * has a session that is BEGINNING or ENDING.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "session-private.h"

/* Threads that wait for stores, besides the one that takes the point. */
#define MAX_THREADS 31

/* What is done for each disk of a session by several threads at once: each
 * waits for its device, and what several wait for on one file system is written
 * together.
 */
struct each {
  struct session *session;
  void (*fn) (struct each *e, size_t disk);
  _Atomic size_t next;          /* disk that nobody has taken yet */

  struct lock lock;
  /* Protected by lock. */
  size_t failed;                /* the first disk that did; nr_disks = none */
  struct error error;           /* its error */
};

static void *
each_thread (void *opaque)
{
  struct each *e = opaque;
  size_t i;

  while ((i = atomic_fetch_add (&e->next, 1)) < e->session->nr_disks)
    e->fn (e, i);
  return NULL;
}

/* session and fn are set; fails only as fn says. */
static void
each_disk (struct each *e)
{
  pthread_t threads[MAX_THREADS];
  size_t nr = 0, i;

  lock_init (&e->lock, LOCK_RANK_LEAF);
  e->failed = e->session->nr_disks;
  while (nr < MAX_THREADS && nr + 1 < e->session->nr_disks
         && pthread_create (&threads[nr], NULL, each_thread, e) == 0)
    nr++;
  each_thread (e);
  for (i = 0; i < nr; i++)
    pthread_join (threads[i], NULL);
  lock_destroy (&e->lock);
}

static void
close_gates (struct session *s)
{
  for (size_t i = 0; i < s->nr_disks; i++)
    gate_close (disk_gate (s->disks[s->order[i]].disk));
}

static void
open_gates (struct session *s)
{
  for (size_t i = s->nr_disks; i-- > 0; )
    gate_open (disk_gate (s->disks[s->order[i]].disk));
}

/* Decide the mode of one disk, and why.  info NULL: there is no bitmap. */
static int
choose_mode (struct session_disk *sd, const struct dirty_info *info,
             struct error *err)
{
  char id[POINT_ID_STRING_SIZE];
  const char *name = sd->bitmap_name;
  const char *problem = disk_store_problem (sd->disk);
  enum session_mode asked = sd->mode;

  sd->mode = SESSION_FULL;
  if (asked == SESSION_FULL)
    snprintf (sd->why, sizeof sd->why, "asked for");
  else if (!info)
    snprintf (sd->why, sizeof sd->why, *problem ? "no bitmap '%.30s': %.110s" :
              "no bitmap '%.100s'%s", name, problem);
  else if (info->state == DIRTY_INCONSISTENT)
    snprintf (sd->why, sizeof sd->why, "bitmap '%.30s' is inconsistent: %.90s",
              name, info->reason);
  else if (info->state == DIRTY_DISABLED
           || (info->state == DIRTY_FROZEN && !info->is_recording))
    snprintf (sd->why, sizeof sd->why, "bitmap '%.100s' is disabled", name);
  else if (point_id_is_none (&info->base))
    snprintf (sd->why, sizeof sd->why, "bitmap '%.100s' has no base point yet",
              name);
  else {
    point_id_format (&info->base, id);
    snprintf (sd->why, sizeof sd->why, "bitmap '%.90s' counts from point %s",
              name, id);
    sd->mode = SESSION_INCREMENTAL;
    sd->base = info->base;
  }
  if (asked != SESSION_INCREMENTAL || sd->mode == asked)
    return 0;
  if (!info)
    return error_set (err, ENOENT, "Dirty bitmap '%s' not found", name);
  if (info->state == DIRTY_INCONSISTENT)
    return error_set (err, EINVAL, "Bitmap '%.60s' is inconsistent and cannot"
                      " be used: %.100s", name, info->reason);
  return error_set (err, EINVAL, "no incremental backup of disk '%.60s' is"
                    " possible: %s", disk_name (sd->disk), sd->why);
}

/* Make the bitmap of a full backup one that records.  [gate closed] */
static int
prepare_bitmap (struct session_disk *sd, const struct dirty_info *info,
                struct hold *hold, struct error *err)
{
  struct dirty *dirty = disk_dirty (sd->disk);
  const char *name = sd->bitmap_name;
  uint64_t granularity = disk_default_granularity (sd->disk);
  unsigned flags = disk_can_persist (sd->disk) ? DIRTY_IS_PERSISTENT : 0;
  int ret = 0;

  if (info && info->state == DIRTY_DISABLED) {
    ret = dirty_enable (dirty, name, err);
    hold->change = BITMAP_ENABLED;
  }
  else if (info && info->state == DIRTY_INCONSISTENT) {
    memcpy (hold->reason, info->reason, sizeof hold->reason);
    granularity = info->granularity;
    ret = dirty_remove (dirty, name, err);
    if (ret == 0)
      ret = dirty_add (dirty, name, granularity, flags, err);
    hold->change = BITMAP_REPLACED;
  }
  else if (!info) {
    ret = dirty_add (dirty, name, granularity, flags, err);
    hold->change = BITMAP_CREATED;
  }
  if (ret < 0)
    hold->change = BITMAP_KEPT;
  return ret;
}

/* Undo prepare_bitmap.  The bitmap is not frozen.  [gate closed] */
static void
unprepare_bitmap (struct session_disk *sd, struct hold *hold)
{
  struct dirty *dirty = disk_dirty (sd->disk);
  struct error err = ERROR_INIT;
  int r = 0;

  switch (hold->change) {
  case BITMAP_KEPT:
    break;
  case BITMAP_CREATED:
    r = dirty_remove (dirty, sd->bitmap_name, &err);
    break;
  case BITMAP_ENABLED:
    r = dirty_disable (dirty, sd->bitmap_name, &err);
    break;
  case BITMAP_REPLACED:
    dirty_invalidate (dirty, sd->bitmap, hold->reason);
    break;
  }
  /* It is there and not busy, for the gate has been closed all the time: only
   * its store can fail, which says so itself.
   */
  assert (r == 0 || (r != -ENOENT && r != -EBUSY));
  (void) r;
  hold->change = BITMAP_KEPT;
}

/* Freeze the bitmap of one disk as its mode asks.  [gate closed] */
static int
hold_bitmap (struct session_disk *sd, struct hold *hold, struct error *err)
{
  struct dirty *dirty = disk_dirty (sd->disk);
  struct dirty_bitmap *bm = dirty_find (dirty, sd->bitmap_name);
  struct dirty_info info = { .name = NULL };
  int ret = 0;

  if (bm && dirty_get_info (bm, &info) < 0)
    ret = error_set_errno (err, ENOMEM, "bitmap '%.100s'", sd->bitmap_name);
  if (ret == 0)
    ret = choose_mode (sd, bm ? &info : NULL, err);
  if (ret == 0 && sd->mode == SESSION_FULL)
    ret = prepare_bitmap (sd, bm ? &info : NULL, hold, err);
  free (info.name);
  dirty_unref (bm);
  if (ret < 0)
    return ret;

  sd->bitmap = dirty_find (dirty, sd->bitmap_name);
  assert (sd->bitmap);
  ret = dirty_freeze_only (dirty, sd->bitmap, err);
  if (ret < 0) {
    unprepare_bitmap (sd, hold);
    dirty_unref (sd->bitmap);
    sd->bitmap = NULL;
    return ret;
  }
  sd->granularity = bitmap_granularity (dirty_frozen_bits (sd->bitmap));
  return 0;
}

/* Give the bits of one disk back, as if there had been no session.
 * [gate closed]
 */
static void
unhold_bitmap (struct session_disk *sd, struct hold *hold)
{
  if (!sd->bitmap)
    return;
  dirty_merge_back (disk_dirty (sd->disk), sd->bitmap);
  unprepare_bitmap (sd, hold);
}

/* commit_all of one disk. */
static void
commit_one (struct each *e, size_t i)
{
  const struct session_disk *sd = &e->session->disks[i];
  struct error err = ERROR_INIT;

  if (!sd->bitmap
      || dirty_freeze_commit (disk_dirty (sd->disk), sd->bitmap, &err) == 0)
    return;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&e->lock);
  if (i < e->failed) {
    e->failed = i;
    e->error = err;
  }
}

/* All are tried; 0, or -errno of the first disk that failed. */
static int
commit_all (struct session *s, struct error *err)
{
  struct each e = { .session = s, .fn = commit_one };

  each_disk (&e);
  return e.failed == s->nr_disks ? 0
    : error_set (err, e.error.errnum, "%s", e.error.msg);
}

/* [gates closed] */
static void
unhold_first (struct session *s, size_t nr)
{
  while (nr-- > 0)
    unhold_bitmap (&s->disks[nr], &s->holds[nr]);
}

/* Whatever is recorded from now on is found in the stores after a crash.
 * [gates closed]
 */
static int
hold_bitmaps (struct session *s, const struct session_request *request,
              struct error *err)
{
  struct session_disk *sd;
  size_t i;
  int r;

  for (i = 0; i < s->nr_disks; i++) {
    sd = &s->disks[i];
    sd->is_dirty_view = request->disks[i].is_dirty_view;
    sd->dirty_bytes = sd->size;
    r = 0;
    if (sd->mode == SESSION_COPY)
      snprintf (sd->why, sizeof sd->why, "asked for");
    else
      r = hold_bitmap (sd, &s->holds[i], err);
    if (r < 0) {
      unhold_first (s, i);
      return r;
    }
  }
  r = commit_all (s, err);
  if (r < 0)
    unhold_first (s, s->nr_disks);
  return r;
}

/* All gates are closed: freeze all bitmaps, then start all views. */
static int
hold_all (struct session *s, const struct session_request *request,
          struct error *err)
{
  struct session_disk *sd;
  size_t i;
  int r = hold_bitmaps (s, request, err);

  if (r < 0)
    return r;
  for (i = 0; i < s->nr_disks; i++) {
    const struct bitmap *held = NULL;

    sd = &s->disks[i];
    if (sd->mode == SESSION_INCREMENTAL) {
      const struct bitmap *frozen = dirty_frozen_bits (sd->bitmap);

      sd->dirty_bytes = bitmap_dirty_bytes (frozen);
      if (request->disks[i].is_dirty_view)
        held = frozen;
    }
    cbw_view_start (sd->view, held);
  }
  return 0;
}

static void
prepare_one (struct each *e, size_t i)
{
  struct session_disk *sd = &e->session->disks[i];
  struct dirty_bitmap *bm;

  if (sd->mode == SESSION_COPY)
    return;
  bm = dirty_find (disk_dirty (sd->disk), sd->bitmap_name);
  if (bm && !dirty_is_inconsistent (bm))
    dirty_prepare_freeze (disk_dirty (sd->disk), bm);
  else if (disk_can_have_store (sd->disk))
    disk_make_store (sd->disk, NULL);
  dirty_unref (bm);
}

/* What takes time and would else be done with the gates closed.  What fails
 * here fails there again, if it matters.  A bitmap that has to be made anew may
 * need a store for that, or one in the place of a store that has failed.
 */
static void
prepare (struct session *s)
{
  struct each e = { .session = s, .fn = prepare_one };

  each_disk (&e);
}

/* The views have been made for disks of this size. */
static int
check_sizes (const struct session *s, struct error *err)
{
  for (size_t i = 0; i < s->nr_disks; i++)
    if (s->disks[i].size != disk_size (s->disks[i].disk))
      return error_set (err, EAGAIN, "disk '%.100s' has just been resized",
                        disk_name (s->disks[i].disk));
  return 0;
}

/* I5: with all gates closed nothing is half done, on no disk. */
int
session_take_point (struct session *s, const struct session_request *request,
                    struct error *err)
{
  int ret;

  prepare (s);
  close_gates (s);
  s->time = (int64_t) time (NULL);
  ret = check_sizes (s, err);
  if (ret == 0)
    ret = hold_all (s, request, err);
  open_gates (s);
  if (ret < 0)
    commit_all (s, NULL);
  return ret;
}

/* I2: the first broken view of those that count, or NULL.
 * [gates closed: none can break now]
 */
static const struct session_disk *
find_broken (const struct session *s, int *ret_error)
{
  struct cbw_view_info info;

  for (size_t i = 0; i < s->nr_disks; i++) {
    if (s->holds[i].is_kept)
      continue;
    cbw_view_get_info (s->disks[i].view, &info);
    if (info.error) {
      *ret_error = info.error;
      return &s->disks[i];
    }
  }
  return NULL;
}

int
session_release_point (struct session *s, bool is_success, struct error *err)
{
  const struct session_disk *broken;
  int ret = 0, view_error;

  close_gates (s);
  if (is_success && (broken = find_broken (s, &view_error)) != NULL) {
    is_success = false;
    ret = error_set (err, EIO, "the view of disk '%.100s' is broken (%s):"
                     " this backup cannot be completed",
                     disk_name (broken->disk), strerror (-view_error));
  }
  for (size_t i = 0; i < s->nr_disks; i++) {
    struct session_disk *sd = &s->disks[i];

    cbw_view_stop (sd->view);
    if (!is_success || s->holds[i].is_kept)
      unhold_bitmap (sd, &s->holds[i]);
    else if (sd->bitmap)
      dirty_drop (disk_dirty (sd->disk), sd->bitmap, &s->id);
  }
  open_gates (s);
  /* Durable before anybody is told.  A store that fails says so in its bitmaps,
   * and the next backup is a full one.
   */
  commit_all (s, NULL);
  for (size_t i = 0; i < s->nr_disks; i++)
    cbw_view_discard (s->disks[i].view);
  return ret;
}
