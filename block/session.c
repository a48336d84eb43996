/* SPDX-License-Identifier: BSD-3-Clause */
/* Pull sessions.
 *
 * I2 (part): frozen bits are dropped only by an end in success, and only if no
 *     view has broken; anything else merges them back.
 * I5 (part): the point is taken with the gates of all disks of the session
 *     closed at once.
 *
 * States of a session, protected by the manager's lock:
 *   BEGINNING -> ACTIVE    [session_begin, the point is taken and exported]
 *   BEGINNING -> ENDED     [session_begin, something failed]
 *   ACTIVE    -> ENDING    [session_end, find_due, session_manager_free]
 *   ENDING    -> ENDED     [finish]
 * Whoever has made a session ENDING is the only one to finish it.
 *
 * session_begin, _end, _attach and _list are called from control threads;
 * session_touch from NBD connections; view_broken from a guest's thread inside
 * a gate.  The watcher thread ends sessions whose lease ran out or whose
 * scratch failed.  The manager's lock is not held while gates close: that waits
 * for writes in progress.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lock.h"
#include "range.h"
#include "session.h"

#define NSEC_PER_SEC INT64_C (1000000000)
/* When there is nothing to watch. */
#define IDLE_WAIT (3600 * NSEC_PER_SEC)

enum session_state {
  SESSION_BEGINNING,
  SESSION_ACTIVE,
  SESSION_ENDING,
  SESSION_ENDED,
};

/* What was done to a bitmap before it was frozen, to be undone unless the
 * session ends in success.
 */
enum bitmap_change {
  BITMAP_KEPT,
  BITMAP_CREATED,
  BITMAP_ENABLED,
  BITMAP_REPLACED,              /* it was inconsistent */
};

struct hold {
  enum bitmap_change change;
  char reason[128];             /* REPLACED: why it was inconsistent */
};

struct session {
  /* Fixed after begin. */
  struct session_manager *manager;      /* not used once ENDED */
  struct point_id id;
  int64_t time;
  unsigned lease;
  size_t nr_disks;
  struct session_disk *disks;   /* in the order of the request */
  struct hold *holds;           /* one for each of disks */
  size_t *order;                /* indexes of disks, by disk number */

  /* Atomic. */
  _Atomic unsigned refs;
  _Atomic int64_t touched;      /* CLOCK_MONOTONIC, ns */
  _Atomic bool is_broken;

  /* Protected by manager->lock. */
  enum session_state state;
};

struct session_manager {
  /* Fixed after new. */
  struct session_ops ops;
  void *opaque;
  pthread_t watcher;

  struct lock lock;
  /* Protected by lock.  In order of begin; each holds a reference. */
  struct session *sessions[SESSION_MAX];
  size_t nr_sessions;
  pthread_cond_t ended;         /* some session has left the list */
  /* How the last ones ended, for those who ask too late; a ring. */
  struct {
    struct point_id id;
    enum session_end how;
  } last[SESSION_MAX];
  size_t nr_ended;              /* ever */

  struct lock watch_lock;
  /* Protected by watch_lock. */
  pthread_cond_t watch;
  bool is_woken;
  bool is_stopping;
};

static int64_t
now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
}

/*---- The object ----*/

struct session *
session_ref (struct session *s)
{
  atomic_fetch_add (&s->refs, 1);
  return s;
}

void
session_unref (struct session *s)
{
  if (!s || atomic_fetch_sub (&s->refs, 1) > 1)
    return;
  for (size_t i = 0; i < s->nr_disks; i++) {
    cbw_view_free (s->disks[i].view);
    dirty_unref (s->disks[i].bitmap);
    free (s->disks[i].bitmap_name);
    free (s->disks[i].export_name);
  }
  free (s->disks);
  free (s->holds);
  free (s->order);
  free (s);
}

static int
init_disk (struct session *s, struct session_disk *sd,
           const struct session_disk_request *request)
{
  char id[POINT_ID_STRING_SIZE];

  sd->disk = request->disk;
  sd->mode = request->mode;
  sd->size = disk_size (request->disk);
  if (request->mode != SESSION_COPY) {
    sd->bitmap_name = strdup (request->bitmap);
    if (!sd->bitmap_name)
      return -ENOMEM;
  }
  point_id_format (&s->id, id);
  if (asprintf (&sd->export_name, "%s/%s", id, disk_name (sd->disk)) < 0) {
    sd->export_name = NULL;
    return -ENOMEM;
  }
  return 0;
}

/* Insertion sort: there are a handful of disks. */
static void
sort_disks (struct session *s)
{
  for (size_t i = 0; i < s->nr_disks; i++) {
    unsigned number = disk_number (s->disks[i].disk);
    size_t j = i;

    for (; j > 0 && disk_number (s->disks[s->order[j-1]].disk) > number; j--)
      s->order[j] = s->order[j-1];
    s->order[j] = i;
  }
}

static int
session_new (struct session_manager *m, const struct session_request *request,
             struct session **ret)
{
  struct session *s = calloc (1, sizeof *s);
  int r = 0;

  if (!s)
    return -ENOMEM;
  atomic_init (&s->refs, 1);
  s->manager = m;
  s->lease = request->lease ? request->lease : SESSION_DEFAULT_LEASE;
  s->state = SESSION_BEGINNING;
  s->disks = calloc (request->nr_disks, sizeof *s->disks);
  s->holds = calloc (request->nr_disks, sizeof *s->holds);
  s->order = calloc (request->nr_disks, sizeof *s->order);
  if (!s->disks || !s->holds || !s->order)
    r = -ENOMEM;
  if (r == 0)
    r = point_id_random (&s->id);
  for (size_t i = 0; r == 0 && i < request->nr_disks; i++) {
    s->nr_disks++;
    r = init_disk (s, &s->disks[i], &request->disks[i]);
  }
  if (r < 0) {
    session_unref (s);
    return r;
  }
  sort_disks (s);
  *ret = s;
  return 0;
}

/*---- The watcher's bell ----*/

static void
wake_watcher (struct session_manager *m, bool is_stopping)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->watch_lock);
  m->is_woken = true;
  m->is_stopping |= is_stopping;
  pthread_cond_signal (&m->watch);
}

static void
view_broken (void *opaque)
{
  struct session *s = opaque;

  atomic_store (&s->is_broken, true);
  wake_watcher (s->manager, false);
}

/*---- Begin ----*/

static int
check_disk_request (const struct session_request *request, size_t i,
                    struct error *err)
{
  const struct session_disk_request *rd = &request->disks[i];
  const char *name = disk_name (rd->disk);

  for (size_t j = 0; j < i; j++)
    if (request->disks[j].disk == rd->disk)
      return error_set (err, EINVAL, "disk '%s' is named twice", name);
  if (rd->mode != SESSION_COPY && !rd->bitmap)
    return error_set (err, EINVAL, "disk '%s': mode '%s' needs a bitmap",
                      name, session_mode_name (rd->mode));
  if (rd->mode == SESSION_COPY && rd->bitmap)
    return error_set (err, EINVAL, "disk '%s': mode 'copy' touches no bitmap,"
                      " but '%.100s' is given", name, rd->bitmap);
  if (rd->cluster_size
      && (!is_power_of_2 (rd->cluster_size) || rd->cluster_size < 512
          || rd->cluster_size > CBW_MAX_CLUSTER))
    return error_set (err, EINVAL, "disk '%s': cluster size %" PRIu64
                      ": must be a power of two of 512 to %" PRIu64, name,
                      rd->cluster_size, CBW_MAX_CLUSTER);
  return 0;
}

static int
check_request (const struct session_request *request, struct error *err)
{
  if (request->nr_disks == 0)
    return error_set (err, EINVAL, "a backup needs at least one disk");
  if (request->lease > SESSION_MAX_LEASE)
    return error_set (err, EINVAL, "lease %u: must be 1 to %d seconds",
                      request->lease, SESSION_MAX_LEASE);
  for (size_t i = 0; i < request->nr_disks; i++) {
    int r = check_disk_request (request, i, err);

    if (r < 0)
      return r;
  }
  return 0;
}

static int
add_to_list (struct session_manager *m, struct session *s, struct error *err)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  if (m->nr_sessions == SESSION_MAX)
    return error_set (err, EBUSY, "%d backup sessions are in progress, no"
                      " more are allowed at once", SESSION_MAX);
  m->sessions[m->nr_sessions++] = session_ref (s);
  return 0;
}

static void
remove_from_list (struct session_manager *m, struct session *s,
                  enum session_end how)
{
  size_t i = 0;

  lock_acquire (&m->lock);
  while (m->sessions[i] != s)
    i++;
  m->nr_sessions--;
  memmove (&m->sessions[i], &m->sessions[i+1],
           (m->nr_sessions - i) * sizeof m->sessions[0]);
  s->state = SESSION_ENDED;
  i = m->nr_ended++ % SESSION_MAX;
  m->last[i].id = s->id;
  m->last[i].how = how;
  pthread_cond_broadcast (&m->ended);
  lock_release (&m->lock);
  session_unref (s);
}

static int
make_views (struct session *s, const struct session_request *request,
            struct error *err)
{
  for (size_t i = 0; i < s->nr_disks; i++) {
    struct session_disk *sd = &s->disks[i];
    struct cbw_options options;
    int r;

    disk_cbw_options (sd->disk, &options);
    if (request->scratch_dir)
      options.scratch_dir = request->scratch_dir;
    if (request->scratch_limit)
      options.scratch_limit = request->scratch_limit;
    options.cluster_size = request->disks[i].cluster_size;
    options.broken = view_broken;
    options.opaque = s;
    r = cbw_view_new (disk_cbw (sd->disk), &options, &sd->view, err);
    if (r < 0) {
      error_prefix (err, "disk '%s'", disk_name (sd->disk));
      return r;
    }
  }
  return 0;
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
  enum session_mode asked = sd->mode;

  sd->mode = SESSION_FULL;
  if (asked == SESSION_FULL)
    snprintf (sd->why, sizeof sd->why, "asked for");
  else if (!info)
    snprintf (sd->why, sizeof sd->why, "no bitmap '%.100s'", name);
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
    return error_set (err, EINVAL, "Bitmap '%s' is inconsistent and cannot be"
                      " used", name);
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
      ret = dirty_add (dirty, name, granularity, false, err);
    hold->change = BITMAP_REPLACED;
  }
  else if (!info) {
    ret = dirty_add (dirty, name, granularity, false, err);
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
  /* It is there and not busy, for the gate has been closed all the time. */
  assert (r == 0);
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
  ret = dirty_freeze (dirty, sd->bitmap, err);
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

/* All gates are closed: freeze all bitmaps, then start all views. */
static int
hold_all (struct session *s, const struct session_request *request,
          struct error *err)
{
  struct session_disk *sd;
  size_t i;

  for (i = 0; i < s->nr_disks; i++) {
    sd = &s->disks[i];
    sd->is_dirty_view = request->disks[i].is_dirty_view;
    sd->dirty_bytes = sd->size;
    if (sd->mode == SESSION_COPY)
      snprintf (sd->why, sizeof sd->why, "asked for");
    else {
      int r = hold_bitmap (sd, &s->holds[i], err);

      if (r < 0) {
        while (i-- > 0)
          unhold_bitmap (&s->disks[i], &s->holds[i]);
        return r;
      }
    }
  }
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

/* I5: with all gates closed nothing is half done, on no disk. */
static int
take_point (struct session *s, const struct session_request *request,
            struct error *err)
{
  int ret;

  close_gates (s);
  s->time = (int64_t) time (NULL);
  ret = hold_all (s, request, err);
  open_gates (s);
  return ret;
}

/* I2: the first broken view, or NULL.  [gates closed: none can break now] */
static const struct session_disk *
find_broken (const struct session *s, int *ret_error)
{
  struct cbw_view_info info;

  for (size_t i = 0; i < s->nr_disks; i++) {
    cbw_view_get_info (s->disks[i].view, &info);
    if (info.error) {
      *ret_error = info.error;
      return &s->disks[i];
    }
  }
  return NULL;
}

/* End what take_point began.  0, or -EIO if is_success was asked for and could
 * not be: the bits have been merged back.
 */
static int
release_point (struct session *s, bool is_success, struct error *err)
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
    if (!is_success)
      unhold_bitmap (sd, &s->holds[i]);
    else if (sd->bitmap)
      dirty_drop (disk_dirty (sd->disk), sd->bitmap, &s->id);
  }
  open_gates (s);
  for (size_t i = 0; i < s->nr_disks; i++)
    cbw_view_discard (s->disks[i].view);
  return ret;
}

int
session_begin (struct session_manager *m,
               const struct session_request *request, struct session **ret,
               struct error *err)
{
  struct session *s;
  int r = check_request (request, err);

  if (r < 0)
    return r;
  r = session_new (m, request, &s);
  if (r < 0)
    return error_set_errno (err, -r, "cannot begin a backup session");
  r = add_to_list (m, s, err);
  if (r < 0) {
    session_unref (s);
    return r;
  }
  r = make_views (s, request, err);
  if (r == 0)
    r = take_point (s, request, err);
  if (r == 0 && m->ops.started) {
    r = m->ops.started (m->opaque, s, err);
    if (r < 0)
      release_point (s, false, NULL);
  }
  if (r < 0) {
    remove_from_list (m, s, SESSION_END_ABORT);
    session_unref (s);
    return r;
  }
  session_touch (s);
  lock_acquire (&m->lock);
  s->state = SESSION_ACTIVE;
  lock_release (&m->lock);
  wake_watcher (m, false);
  *ret = s;
  return 0;
}

/*---- End ----*/

/* The caller has made it ENDING. */
static int
finish (struct session_manager *m, struct session *s, enum session_end how,
        struct error *err)
{
  int ret;

  session_ref (s);
  if (m->ops.ending)
    m->ops.ending (m->opaque, s);
  ret = release_point (s, how == SESSION_END_SUCCESS, err);
  if (ret < 0)
    how = SESSION_END_ABORT;
  remove_from_list (m, s, how);
  if (m->ops.ended)
    m->ops.ended (m->opaque, s, how);
  session_unref (s);
  return ret;
}

/* The session called id, whatever its state, or NULL. */
static struct session *
find_locked (struct session_manager *m, const struct point_id *id)
{
  lock_assert_held (&m->lock);
  for (size_t i = 0; i < m->nr_sessions; i++)
    if (point_id_is_equal (&m->sessions[i]->id, id))
      return m->sessions[i];
  return NULL;
}

/* The session called id if it is ACTIVE.  One that is ENDING is waited for, so
 * that what it held is free when the caller is told that it has gone.
 */
static struct session *
find_active_locked (struct session_manager *m, const struct point_id *id,
                    struct error *err)
{
  char text[POINT_ID_STRING_SIZE];
  struct session *s;

  while ((s = find_locked (m, id)) != NULL && s->state == SESSION_ENDING)
    lock_wait (&m->lock, &m->ended);
  if (s && s->state == SESSION_ACTIVE)
    return s;
  point_id_format (id, text);
  error_set (err, ENOENT, "no backup session %s", text);
  for (size_t i = 0; i < MIN (m->nr_ended, SESSION_MAX); i++)
    if (point_id_is_equal (&m->last[i].id, id))
      error_set (err, ENOENT, "backup session %s has ended (%s)", text,
                 session_end_name (m->last[i].how));
  return NULL;
}

int
session_end (struct session_manager *m, const struct point_id *id,
             bool is_success, struct error *err)
{
  struct session *s;

  lock_acquire (&m->lock);
  s = find_active_locked (m, id, err);
  if (s)
    s->state = SESSION_ENDING;
  lock_release (&m->lock);
  if (!s)
    return -ENOENT;
  return finish (m, s, is_success ? SESSION_END_SUCCESS : SESSION_END_ABORT,
                 err);
}

int
session_attach (struct session_manager *m, const struct point_id *id,
                struct session **ret, struct error *err)
{
  struct session *s;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  s = find_active_locked (m, id, err);
  if (!s)
    return -ENOENT;
  session_touch (s);
  *ret = session_ref (s);
  return 0;
}

/*---- The watcher ----*/

/* A session that has to end now, made ENDING; or NULL, and when to look
 * again.
 */
static struct session *
find_due (struct session_manager *m, enum session_end *ret_how,
          int64_t *ret_next)
{
  int64_t t = now ();

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  *ret_next = t + IDLE_WAIT;
  for (size_t i = 0; i < m->nr_sessions; i++) {
    struct session *s = m->sessions[i];
    int64_t end = atomic_load (&s->touched) + s->lease * NSEC_PER_SEC;

    if (s->state != SESSION_ACTIVE)
      continue;
    if (atomic_load (&s->is_broken) || end <= t) {
      *ret_how = end <= t ? SESSION_END_LEASE : SESSION_END_SCRATCH;
      if (atomic_load (&s->is_broken))
        *ret_how = SESSION_END_SCRATCH;
      s->state = SESSION_ENDING;
      return s;
    }
    *ret_next = MIN (*ret_next, end);
  }
  return NULL;
}

/* Wait until the time next or the bell.  False: it is time to stop. */
static bool
wait_for_bell (struct session_manager *m, int64_t next)
{
  struct timespec ts = {
    .tv_sec = next / NSEC_PER_SEC, .tv_nsec = next % NSEC_PER_SEC
  };

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->watch_lock);
  while (!m->is_woken && lock_wait_until (&m->watch_lock, &m->watch, &ts))
    ;
  m->is_woken = false;
  return !m->is_stopping;
}

static void *
watch (void *opaque)
{
  struct session_manager *m = opaque;
  struct session *s;
  enum session_end how;
  int64_t next;

  do {
    while ((s = find_due (m, &how, &next)) != NULL)
      finish (m, s, how, NULL);
  } while (wait_for_bell (m, next));
  return NULL;
}

/*---- The manager ----*/

int
session_manager_new (const struct session_ops *ops, void *opaque,
                     struct session_manager **ret)
{
  struct session_manager *m = calloc (1, sizeof *m);
  int r;

  if (!m)
    return -ENOMEM;
  if (ops)
    m->ops = *ops;
  m->opaque = opaque;
  lock_init (&m->lock, LOCK_RANK_SESSIONS);
  lock_init (&m->watch_lock, LOCK_RANK_LEAF);
  cond_init (&m->watch);
  cond_init (&m->ended);
  r = pthread_create (&m->watcher, NULL, watch, m);
  if (r != 0) {
    pthread_cond_destroy (&m->ended);
    pthread_cond_destroy (&m->watch);
    lock_destroy (&m->watch_lock);
    lock_destroy (&m->lock);
    free (m);
    return -r;
  }
  *ret = m;
  return 0;
}

void
session_manager_free (struct session_manager *m)
{
  if (!m)
    return;
  wake_watcher (m, true);
  pthread_join (m->watcher, NULL);
  while (m->nr_sessions > 0) {
    struct session *s = m->sessions[0];

    assert (s->state == SESSION_ACTIVE);
    s->state = SESSION_ENDING;
    finish (m, s, SESSION_END_SHUTDOWN, NULL);
  }
  pthread_cond_destroy (&m->ended);
  pthread_cond_destroy (&m->watch);
  lock_destroy (&m->watch_lock);
  lock_destroy (&m->lock);
  free (m);
}

/*---- Queries ----*/

int
session_list (struct session_manager *m, struct session ***ret,
              size_t *ret_nr)
{
  struct session **list;
  size_t nr = 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  list = calloc (m->nr_sessions + 1, sizeof *list);
  if (!list)
    return -ENOMEM;
  for (size_t i = 0; i < m->nr_sessions; i++)
    if (m->sessions[i]->state == SESSION_ACTIVE)
      list[nr++] = session_ref (m->sessions[i]);
  *ret = list;
  *ret_nr = nr;
  return 0;
}

void
session_list_free (struct session **sessions, size_t nr)
{
  for (size_t i = 0; i < nr; i++)
    session_unref (sessions[i]);
  free (sessions);
}

bool
session_uses_disk (struct session_manager *m, const struct disk *disk)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  for (size_t i = 0; i < m->nr_sessions; i++)
    for (size_t j = 0; j < m->sessions[i]->nr_disks; j++)
      if (m->sessions[i]->disks[j].disk == disk)
        return true;
  return false;
}

void
session_touch (struct session *s)
{
  atomic_store_explicit (&s->touched, now (), memory_order_relaxed);
}

const struct point_id *
session_id (const struct session *s)
{
  return &s->id;
}

int64_t
session_time (const struct session *s)
{
  return s->time;
}

unsigned
session_lease (const struct session *s)
{
  return s->lease;
}

unsigned
session_lease_left (const struct session *s)
{
  int64_t left = atomic_load (&s->touched) + s->lease * NSEC_PER_SEC - now ();

  return left <= 0 ? 0
    : (unsigned) ((left + NSEC_PER_SEC - 1) / NSEC_PER_SEC);
}

const struct session_disk *
session_disks (const struct session *s, size_t *ret_nr)
{
  *ret_nr = s->nr_disks;
  return s->disks;
}

const char *
session_mode_name (enum session_mode mode)
{
  static const char *const names[] = {
    [SESSION_AUTO] = "auto",
    [SESSION_INCREMENTAL] = "incremental",
    [SESSION_FULL] = "full",
    [SESSION_COPY] = "copy",
  };

  return names[mode];
}

const char *
session_end_name (enum session_end how)
{
  static const char *const names[] = {
    [SESSION_END_SUCCESS] = "success",
    [SESSION_END_ABORT] = "abort",
    [SESSION_END_LEASE] = "lease",
    [SESSION_END_SCRATCH] = "scratch",
    [SESSION_END_SHUTDOWN] = "shutdown",
  };

  return names[how];
}
