/* SPDX-License-Identifier: BSD-3-Clause */
/* Pull sessions: how they come and go.  What they hold is session-point.c's.
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

#include "clock.h"
#include "lock.h"
#include "range.h"
#include "session-private.h"

#define NSEC_PER_SEC INT64_C (1000000000)
/* When there is nothing to watch. */
#define IDLE_WAIT (3600 * NSEC_PER_SEC)

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
  s->is_partial_ok = request->is_partial_ok;
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

  atomic_fetch_add (&s->nr_broken, 1);
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
    r = session_take_point (s, request, err);
  if (r == 0 && m->ops.started) {
    r = m->ops.started (m->opaque, s, err);
    if (r < 0)
      session_release_point (s, false, NULL);
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
  ret = session_release_point (s, how == SESSION_END_SUCCESS, err);
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

static bool
has_succeeded_locked (struct session_manager *m, const struct point_id *id)
{
  lock_assert_held (&m->lock);
  for (size_t i = 0; i < MIN (m->nr_ended, SESSION_MAX); i++)
    if (point_id_is_equal (&m->last[i].id, id))
      return m->last[i].how == SESSION_END_SUCCESS;
  return false;
}

/* Note whose bitmaps are kept.  On failure none is.  [s is ACTIVE] */
static int
mark_kept_locked (struct session *s, const char *const *keep, size_t nr_keep,
                  struct error *err)
{
  size_t i, j;

  for (i = 0; i < nr_keep; i++) {
    for (j = 0; j < s->nr_disks; j++)
      if (strcmp (disk_name (s->disks[j].disk), keep[i]) == 0)
        break;
    if (j < s->nr_disks && !s->holds[j].is_kept) {
      s->holds[j].is_kept = true;
      continue;
    }
    error_set (err, EINVAL, j < s->nr_disks ? "Disk '%.100s' is named twice"
               : "Disk '%.100s' is not in this backup", keep[i]);
    for (j = 0; j < s->nr_disks; j++)
      s->holds[j].is_kept = false;
    return -EINVAL;
  }
  return 0;
}

static int
end_session (struct session_manager *m, const struct point_id *id,
             bool is_success, const char *const *keep, size_t nr_keep,
             struct error *err)
{
  struct session *s;
  bool has_succeeded = false;
  int r = 0;

  lock_acquire (&m->lock);
  s = find_active_locked (m, id, err);
  if (s)
    r = mark_kept_locked (s, keep, nr_keep, err);
  else
    has_succeeded = has_succeeded_locked (m, id);
  if (s && r == 0)
    s->state = SESSION_ENDING;
  lock_release (&m->lock);
  if (r < 0)
    return r;
  if (!s)
    return is_success && has_succeeded ? 0 : -ENOENT;
  return finish (m, s, is_success ? SESSION_END_SUCCESS : SESSION_END_ABORT,
                 err);
}

int
session_end (struct session_manager *m, const struct point_id *id,
             bool is_success, struct error *err)
{
  return end_session (m, id, is_success, NULL, 0, err);
}

int
session_end_keep (struct session_manager *m, const struct point_id *id,
                  const char *const *keep, size_t nr_keep, struct error *err)
{
  return end_session (m, id, true, keep, nr_keep, err);
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

static bool
is_broken (const struct session *s)
{
  return atomic_load (&s->nr_broken) >= (s->is_partial_ok ? s->nr_disks : 1);
}

/* A session that has to end now, made ENDING; or NULL, and when to look
 * again.
 */
static struct session *
find_due (struct session_manager *m, enum session_end *ret_how,
          int64_t *ret_next)
{
  int64_t t = clock_ns ();

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  *ret_next = t + IDLE_WAIT;
  for (size_t i = 0; i < m->nr_sessions; i++) {
    struct session *s = m->sessions[i];
    int64_t end = atomic_load (&s->touched) + s->lease * NSEC_PER_SEC;

    if (s->state != SESSION_ACTIVE)
      continue;
    if (is_broken (s) || end <= t) {
      *ret_how = is_broken (s) ? SESSION_END_SCRATCH : SESSION_END_LEASE;
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
  atomic_store_explicit (&s->touched, clock_ns (), memory_order_relaxed);
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
  int64_t left = atomic_load (&s->touched) + s->lease * NSEC_PER_SEC
    - clock_ns ();

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
