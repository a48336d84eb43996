/* SPDX-License-Identifier: BSD-3-Clause */
/* A filter that injects faults and pauses requests.
 *
 * Each request goes through the same three steps: pause at every pause point
 * that it reaches, fail if the rule says so, be noted in the trace; then it is
 * passed to the child, without the lock.
 *
 * A pause point goes
 *   SET -> PAUSED      a request reaches it          [pause]
 *   PAUSED -> RELEASED blk_debug_resume, which also takes it off the list
 *   SET -> gone        blk_debug_resume
 *   RELEASED -> gone   its request goes on           [pause]
 *
 * Called from any thread.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blk-debug.h"
#include "lock.h"
#include "range.h"
#include "vector.h"

#define WAIT_SECONDS 30

enum point_state { POINT_SET, POINT_PAUSED, POINT_RELEASED };

struct pause_point {
  char *tag;
  unsigned ops;
  uint64_t off, len;
  enum point_state state;
  struct pause_point *next;
};

DEFINE_VECTOR (text, char);

struct debug {
  struct blk blk;

  /* Fixed after open. */
  struct blk *child;            /* owned */

  struct lock lock;
  /* Protected by lock. */
  pthread_cond_t changed;       /* the state of some pause point */
  struct pause_point *points;   /* SET or PAUSED, oldest first */
  unsigned nr_paused;           /* requests, the released ones included */
  struct {
    unsigned ops;
    uint64_t left;              /* the request that makes it 0 fails */
    int errnum;
    bool is_sticky;
    bool is_active;
    bool has_fired;
  } rule;
  bool is_tracing;
  bool is_trace_broken;         /* no memory for it */
  struct text trace;
};

struct request {
  enum blk_debug_op op;
  uint64_t off, len;
  unsigned flags;
};

static const char *
op_name (enum blk_debug_op op)
{
  switch (op) {
  case BLK_DEBUG_READ: return "read";
  case BLK_DEBUG_WRITE: return "write";
  case BLK_DEBUG_ZERO: return "zero";
  case BLK_DEBUG_TRIM: return "trim";
  case BLK_DEBUG_FLUSH: return "flush";
  case BLK_DEBUG_EXTENTS: return "extents";
  case BLK_DEBUG_ANY: break;
  }
  abort ();
}

static struct pause_point **
find_link (struct debug *d, const char *tag)
{
  struct pause_point **link = &d->points;

  while (*link && strcmp ((*link)->tag, tag) != 0)
    link = &(*link)->next;
  return link;
}

static void
free_point (struct pause_point *point)
{
  free (point->tag);
  free (point);
}

/* The first pause point that the request reaches, or NULL. */
static struct pause_point *
reached_point (struct debug *d, const struct request *req)
{
  struct pause_point *p;

  for (p = d->points; p; p = p->next)
    if (p->state == POINT_SET && (p->ops & req->op)
        && (req->op == BLK_DEBUG_FLUSH
            || range_overlaps (p->off, p->len, req->off, req->len)))
      return p;
  return NULL;
}

static void
pause_locked (struct debug *d, const struct request *req)
{
  struct pause_point *point;

  lock_assert_held (&d->lock);
  while ((point = reached_point (d, req)) != NULL) {
    point->state = POINT_PAUSED;
    d->nr_paused++;
    pthread_cond_broadcast (&d->changed);
    while (point->state == POINT_PAUSED)
      lock_wait (&d->lock, &d->changed);
    d->nr_paused--;
    free_point (point);
  }
}

/* 0, or -errno if the rule lets the request fail. */
static int
apply_rule_locked (struct debug *d, const struct request *req)
{
  lock_assert_held (&d->lock);
  if (!d->rule.is_active || !(d->rule.ops & req->op))
    return 0;
  if (d->rule.left > 0 && --d->rule.left > 0)
    return 0;
  d->rule.has_fired = true;
  d->rule.is_active = d->rule.is_sticky;
  return -d->rule.errnum;
}

static int
append_text (struct text *text, const char *s)
{
  size_t n = strlen (s);

  if (text_reserve (text, n) < 0)
    return -ENOMEM;
  memcpy (text->ptr + text->len, s, n);
  text->len += n;
  return 0;
}

static void
trace_locked (struct debug *d, const struct request *req)
{
  char line[128], *p = line;

  lock_assert_held (&d->lock);
  if (!d->is_tracing)
    return;
  p += sprintf (p, "%s%s", d->trace.len ? "\n" : "", op_name (req->op));
  if (req->op != BLK_DEBUG_FLUSH)
    p += sprintf (p, " %" PRIu64 "+%" PRIu64, req->off, req->len);
  p = stpcpy (p, req->flags & BLK_FUA ? " fua" : "");
  p = stpcpy (p, req->flags & BLK_MAY_UNMAP ? " unmap" : "");
  p = stpcpy (p, req->flags & BLK_FAST ? " fast" : "");
  p = stpcpy (p, req->flags & BLK_KEEP_ZERO ? " keep" : "");
  stpcpy (p, req->flags & BLK_ONE ? " one" : "");
  if (append_text (&d->trace, line) < 0)
    d->is_trace_broken = true;
}

/* What happens to every request before it reaches the child. */
static int
before_child (struct blk *blk, enum blk_debug_op op, uint64_t len,
              uint64_t off, unsigned flags)
{
  struct debug *d = (struct debug *) blk;
  struct request req = { .op = op, .off = off, .len = len, .flags = flags };
  int r;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  pause_locked (d, &req);
  r = apply_rule_locked (d, &req);
  if (r == 0)
    trace_locked (d, &req);
  return r;
}

static struct blk *
child_of (struct blk *blk)
{
  return ((struct debug *) blk)->child;
}

static int
debug_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
             unsigned flags)
{
  int r = before_child (blk, BLK_DEBUG_READ, len, off, flags);

  return r < 0 ? r : blk_pread (child_of (blk), buf, len, off, flags);
}

static int
debug_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
              unsigned flags)
{
  int r = before_child (blk, BLK_DEBUG_WRITE, len, off, flags);

  return r < 0 ? r : blk_pwrite (child_of (blk), buf, len, off, flags);
}

static int
debug_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  int r = before_child (blk, BLK_DEBUG_ZERO, len, off, flags);

  return r < 0 ? r : blk_zero (child_of (blk), len, off, flags);
}

static int
debug_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  int r = before_child (blk, BLK_DEBUG_TRIM, len, off, flags);

  return r < 0 ? r : blk_trim (child_of (blk), len, off, flags);
}

static int
debug_flush (struct blk *blk)
{
  int r = before_child (blk, BLK_DEBUG_FLUSH, 0, 0, 0);

  return r < 0 ? r : blk_flush (child_of (blk));
}

static int
debug_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
               enum blk_status status, struct extents *extents)
{
  int r = before_child (blk, BLK_DEBUG_EXTENTS, len, off, flags);

  return r < 0 ? r
    : blk_extents (child_of (blk), len, off, flags, status, extents);
}

static int
debug_cache (struct blk *blk, uint64_t len, uint64_t off)
{
  return blk_cache (child_of (blk), len, off);
}

static int
debug_resize (struct blk *blk, uint64_t size)
{
  int r = blk_resize (child_of (blk), size);

  atomic_store_explicit (&blk->size, blk_size (child_of (blk)),
                         memory_order_release);
  return r;
}

static int
debug_close (struct blk *blk)
{
  struct debug *d = (struct debug *) blk;
  struct pause_point *p;
  int r;

  assert (d->nr_paused == 0);
  while ((p = d->points) != NULL) {
    d->points = p->next;
    free_point (p);
  }
  text_reset (&d->trace);
  pthread_cond_destroy (&d->changed);
  lock_destroy (&d->lock);
  r = blk_close (d->child);
  blk_fini (blk);
  free (d);
  return r;
}

static const struct blk_driver debug_driver = {
  .name = "debug",
  .close = debug_close,
  .pread = debug_pread,
  .pwrite = debug_pwrite,
  .zero = debug_zero,
  .trim = debug_trim,
  .flush = debug_flush,
  .extents = debug_extents,
  .cache = debug_cache,
  .resize = debug_resize,
};

int
blk_debug_open (struct blk *child, struct blk **ret, struct error *err)
{
  struct debug *d = calloc (1, sizeof *d);

  if (!d || blk_init (&d->blk, &debug_driver, child->name, child->filename,
                      blk_size (child),
                      child->can & ~(unsigned) BLK_CAN_NOWAIT) < 0) {
    free (d);
    blk_close (child);
    return error_set_errno (err, ENOMEM, "blk-debug");
  }
  d->child = child;
  d->blk.block_size = child->block_size;
  d->blk.cluster_size = child->cluster_size;
  d->blk.max_request = child->max_request;
  lock_init (&d->lock, LOCK_RANK_PROTOCOL);
  cond_init (&d->changed);
  *ret = &d->blk;
  return 0;
}

static struct debug *
to_debug (struct blk *blk)
{
  assert (blk->driver == &debug_driver);
  return (struct debug *) blk;
}

void
blk_debug_fail_nth (struct blk *blk, unsigned ops, uint64_t n, int errnum,
                    bool is_sticky)
{
  struct debug *d = to_debug (blk);

  assert (n == 0 || errnum > 0);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  d->rule.ops = ops;
  d->rule.left = n;
  d->rule.errnum = errnum;
  d->rule.is_sticky = is_sticky;
  d->rule.is_active = n > 0;
  d->rule.has_fired = false;
}

bool
blk_debug_has_fired (struct blk *blk)
{
  struct debug *d = to_debug (blk);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  return d->rule.has_fired;
}

int
blk_debug_break (struct blk *blk, unsigned ops, uint64_t off, uint64_t len,
                 const char *tag)
{
  struct debug *d = to_debug (blk);
  struct pause_point *point = calloc (1, sizeof *point), **link;

  if (point)
    point->tag = strdup (tag);
  if (!point || !point->tag) {
    free (point);
    return -ENOMEM;
  }
  point->ops = ops;
  point->off = off;
  point->len = len;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  link = find_link (d, tag);
  if (*link) {
    free_point (point);
    return -EEXIST;
  }
  *link = point;
  return 0;
}

int
blk_debug_wait_paused (struct blk *blk, const char *tag)
{
  struct debug *d = to_debug (blk);
  struct pause_point *point;
  struct timespec deadline;

  clock_gettime (CLOCK_MONOTONIC, &deadline);
  deadline.tv_sec += WAIT_SECONDS;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  while ((point = *find_link (d, tag)) && point->state != POINT_PAUSED)
    if (!lock_wait_until (&d->lock, &d->changed, &deadline))
      return -ETIMEDOUT;
  return point ? 0 : -ENOENT;
}

bool
blk_debug_is_paused (struct blk *blk, const char *tag)
{
  struct debug *d = to_debug (blk);
  const struct pause_point *point;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  point = *find_link (d, tag);
  return point && point->state == POINT_PAUSED;
}

int
blk_debug_resume (struct blk *blk, const char *tag)
{
  struct debug *d = to_debug (blk);
  struct pause_point **link, *point;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  link = find_link (d, tag);
  point = *link;
  if (!point)
    return -ENOENT;
  *link = point->next;
  if (point->state == POINT_PAUSED)
    point->state = POINT_RELEASED;
  else
    free_point (point);
  pthread_cond_broadcast (&d->changed);
  return 0;
}

char *
blk_debug_trace (struct blk *blk)
{
  struct debug *d = to_debug (blk);
  char *ret;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  d->is_tracing = true;
  ret = d->is_trace_broken ? NULL
    : strndup (d->trace.len ? d->trace.ptr : "", d->trace.len);
  d->is_trace_broken = false;
  d->trace.len = 0;
  return ret;
}
