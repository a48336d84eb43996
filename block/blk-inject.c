/* SPDX-License-Identifier: BSD-3-Clause */
/* Faults by rules: see blk-inject.h.
 *
 * Events come from the node above, which tells of what it is about to do.  As
 * long as none has come there is nobody above who does (the node is a disk's
 * top), and the node takes its own requests for events.
 *
 * A rule is, at any time, waiting, active or spent:
 *   -> waiting [open; active for "none"]
 *   waiting, active -> active [its event]
 *   active -> waiting [an event activates others]
 *   active -> spent [it has fired, once]
 *
 * Called from any thread.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blk-inject.h"
#include "lock.h"

struct rule {
  struct blk_inject_rule r;
  bool is_active;
  bool is_spent;
};

struct inject {
  struct blk blk;               /* must be first */

  /* Fixed after open. */
  struct blk *child;            /* owned */
  size_t nr_rules;

  /* Atomic. */
  _Atomic bool is_told;         /* events come from above */

  struct lock lock;             /* LOCK_RANK_PROTOCOL */
  /* Protected by lock. */
  unsigned state;
  struct rule *rules;
};

static const char *const names[NR_BLK_EVENTS] = {
#define X(name, string) string,
  BLK_EVENTS
#undef X
};

unsigned
blk_inject_event (const char *name)
{
  unsigned i;

  for (i = 0; i < NR_BLK_EVENTS; i++)
    if (strcmp (names[i], name) == 0)
      return i;
  return strcmp (name, "none") == 0 ? BLK_INJECT_ALWAYS : BLK_INJECT_NEVER;
}

static struct inject *
inject_of (struct blk *blk)
{
  return (struct inject *) blk;
}

static void
deactivate_all_locked (struct inject *d)
{
  size_t i;

  for (i = 0; i < d->nr_rules; i++)
    d->rules[i].is_active = false;
}

static void
happen (struct inject *d, enum blk_event event)
{
  unsigned new_state;
  bool has_injected = false;
  size_t i;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  new_state = d->state;
  for (i = 0; i < d->nr_rules; i++) {
    struct rule *rule = &d->rules[i];

    if (rule->is_spent || rule->r.event != event ||
        (rule->r.state && rule->r.state != d->state))
      continue;
    if (rule->r.is_set_state) {
      new_state = rule->r.new_state;
      continue;
    }
    if (!has_injected)
      deactivate_all_locked (d);
    has_injected = rule->is_active = true;
  }
  d->state = new_state;
}

/* What the events of the choke point above a request are, if nobody above
 * tells; then whether the request may pass: 0 or -errno.
 */
static int
pass (struct blk *blk, unsigned op, uint64_t len, uint64_t off)
{
  struct inject *d = inject_of (blk);
  bool is_told = atomic_load (&d->is_told);
  size_t i;

  if (!is_told && op == BLK_INJECT_READ)
    happen (d, BLK_EVENT_READ_AIO);
  if (!is_told && op == BLK_INJECT_WRITE)
    happen (d, BLK_EVENT_WRITE_AIO);
  if (!is_told && op == BLK_INJECT_FLUSH) {
    happen (d, BLK_EVENT_FLUSH_TO_OS);
    happen (d, BLK_EVENT_FLUSH_TO_DISK);
  }
  if (op == BLK_INJECT_WRITE)
    happen (d, BLK_EVENT_PWRITEV);
  if (op == BLK_INJECT_ZERO)
    happen (d, BLK_EVENT_PWRITEV_ZERO);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  for (i = 0; i < d->nr_rules; i++) {
    struct rule *rule = &d->rules[i];

    if (!rule->is_active || !(rule->r.ops & op) ||
        (rule->r.off != UINT64_MAX &&
         (rule->r.off < off || rule->r.off - off >= len)))
      continue;
    if (rule->r.errnum && rule->r.is_once) {
      rule->is_active = false;
      rule->is_spent = true;
    }
    return -rule->r.errnum;
  }
  return 0;
}

static void
inject_event (struct blk *blk, enum blk_event event)
{
  struct inject *d = inject_of (blk);

  atomic_store (&d->is_told, true);
  if (event != BLK_EVENT_OPEN)
    happen (d, event);
}

static int
inject_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
              unsigned flags)
{
  int r = pass (blk, BLK_INJECT_READ, len, off);

  return r < 0 ? r : blk_pread (inject_of (blk)->child, buf, len, off, flags);
}

static int
inject_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
               unsigned flags)
{
  int r = pass (blk, BLK_INJECT_WRITE, len, off);

  if (r == 0)
    r = blk_pwrite (inject_of (blk)->child, buf, len, off, flags);
  happen (inject_of (blk), BLK_EVENT_PWRITEV_DONE);
  return r;
}

static int
inject_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  int r = pass (blk, BLK_INJECT_ZERO, len, off);

  if (r == 0)
    r = blk_zero (inject_of (blk)->child, len, off, flags);
  happen (inject_of (blk), BLK_EVENT_PWRITEV_DONE);
  return r;
}

static int
inject_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  int r = pass (blk, BLK_INJECT_TRIM, len, off);

  return r < 0 ? r : blk_trim (inject_of (blk)->child, len, off, flags);
}

static int
inject_flush (struct blk *blk)
{
  int r = pass (blk, BLK_INJECT_FLUSH, 0, 0);

  return r < 0 ? r : blk_flush (inject_of (blk)->child);
}

static int
inject_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
                enum blk_status status, struct extents *extents)
{
  int r = pass (blk, BLK_INJECT_EXTENTS, len, off);

  return r < 0 ? r : blk_extents (inject_of (blk)->child, len, off, flags,
                                  status, extents);
}

static int
inject_cache (struct blk *blk, uint64_t len, uint64_t off)
{
  return blk_cache (inject_of (blk)->child, len, off);
}

static int
inject_resize (struct blk *blk, uint64_t size)
{
  struct blk *child = inject_of (blk)->child;
  int r = blk_resize (child, size);

  atomic_store_explicit (&blk->size, blk_size (child), memory_order_release);
  return r;
}

static int
inject_close (struct blk *blk)
{
  struct inject *d = inject_of (blk);
  int r = blk_close (d->child);

  lock_destroy (&d->lock);
  free (d->rules);
  blk_fini (blk);
  free (d);
  return r;
}

static const struct blk_driver inject_driver = {
  .name = "blkdebug",
  .close = inject_close,
  .pread = inject_pread,
  .pwrite = inject_pwrite,
  .zero = inject_zero,
  .trim = inject_trim,
  .flush = inject_flush,
  .extents = inject_extents,
  .cache = inject_cache,
  .resize = inject_resize,
  .event = inject_event,
};

static int
copy_rules (struct inject *d, const struct blk_inject_rule *rules, size_t nr)
{
  size_t i;

  d->rules = calloc (nr + 1, sizeof *d->rules);
  if (!d->rules)
    return -ENOMEM;
  for (i = 0; i < nr; i++) {
    d->rules[i].r = rules[i];
    d->rules[i].is_active = rules[i].event == BLK_INJECT_ALWAYS &&
      !rules[i].is_set_state;
  }
  d->nr_rules = nr;
  return 0;
}

int
blk_inject_open (struct blk *child, const char *name,
                 const struct blk_inject_rule *rules, size_t nr_rules,
                 struct blk **ret, struct error *err)
{
  /* Whoever must not wait asks again, and would see an event twice. */
  unsigned can = child->can & ~(unsigned) BLK_CAN_NOWAIT;
  struct inject *d = calloc (1, sizeof *d);

  if (!d || copy_rules (d, rules, nr_rules) < 0 ||
      blk_init (&d->blk, &inject_driver, name, child->filename,
                blk_size (child), can) < 0) {
    if (d)
      free (d->rules);
    free (d);
    blk_close (child);
    return error_set_errno (err, ENOMEM, "%s", name);
  }
  d->child = child;
  d->state = 1;
  d->blk.block_size = child->block_size;
  d->blk.cluster_size = child->cluster_size;
  d->blk.max_request = child->max_request;
  lock_init (&d->lock, LOCK_RANK_PROTOCOL);
  *ret = &d->blk;
  return 0;
}
