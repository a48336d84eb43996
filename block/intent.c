/* SPDX-License-Identifier: BSD-3-Clause */
/* Intents: which regions may have bits that are not on disk yet.
 *
 * I6 (part): before a block changes, its bits are durable or its region's
 *     intent is.  Kept by four rules:
 *
 *   (1) A writer sets its bits first and then looks at its region's state.
 *   (2) A region becomes ACTIVE only after its bit in the map is durable.
 *   (3) A region stops being ACTIVE before the arrays are synced, and its bit
 *       in the map is cleared only after that sync, and only if nobody has made
 *       the region ACTIVE again meanwhile.
 *   (4) What could not be made durable is recorded before the writer goes on.
 *
 * A writer that sees ACTIVE has, by (1) and the barrier after it, set its bits
 * before the region stopped being so, hence before the sync of (3).  It need
 * not be seen ACTIVE any longer than that: the bits are durable once the intent
 * is gone.  One that sees anything else has the region made ACTIVE and looks
 * again.
 *
 * State of a region, all changes but TOUCHED under the lock:
 *
 *   0         -> QUEUED            [queue_locked, queue_ahead_locked]
 *   QUEUED    -> ACTIVE, TOUCHED   [commit_locked]
 *   QUEUED    -> ACTIVE, AHEAD     [commit_locked: nobody has asked for it]
 *   AHEAD     -> ACTIVE, TOUCHED   [mark_locked]
 *   ACTIVE    -> RETIRING          [pick_locked]
 *   RETIRING  -> ACTIVE, TOUCHED   [mark_locked: its intent is still durable]
 *   RETIRING  -> 0                 [finish_retiring_locked]
 *
 * Group commit: the first writer that finds no commit in progress makes
 * everything durable that is queued by then; the others wait for it, and what
 * they queue meanwhile is the next commit.
 *
 * Intents ahead: a commit writes whole pages of the map, so that neighbours in
 * the page cost nothing more, and each of them that is asked for later saves a
 * commit.  Those that are not make more dirty after a power cut.  So how many
 * a commit takes begins with one, doubles when one has been of use since the
 * last, and halves if too few were.  They count as active; a commit takes no
 * more of them than make AHEAD_WORTH times as many as there are others, and no
 * more than half of the room there is; they are the first to be retired.
 *
 * intent_mark: any thread inside the disk's gate.  intent_retire: the store's
 * thread, or a writer that needs room.  The lock is not held over I/O.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "intent.h"
#include "lock.h"
#include "range.h"

#define PAGE UINT64_C (4096)
#define PAGE_REGIONS (PAGE * 8)

/* An intent ahead that saved a commit is worth so many that were in vain. */
#define AHEAD_WORTH 8

struct intent {
  struct intent_regions regions;        /* must be first; fixed */
  /* Fixed after new. */
  uint64_t size;
  uint64_t nr_regions;
  uint64_t max_active;
  _Atomic uint8_t *map;
  struct intent_ops ops;
  void *opaque;

  struct lock lock;
  /* Protected by lock. */
  pthread_cond_t changed;
  bool is_committing;
  bool is_retiring;
  bool is_disabled;             /* failed, or told so */
  uint64_t *queue;              /* QUEUED, not yet in a commit */
  uint64_t nr_queue;
  uint64_t window;              /* intents ahead of the next commit, at most */
  uint64_t nr_ahead;            /* ACTIVE, AHEAD */
  uint64_t nr_used, nr_vain;    /* what has become of those of late */
  uint64_t *active;             /* ACTIVE or RETIRING, oldest first */
  uint64_t nr_active;
  uint64_t nr_committing;
  uint64_t nr_clearing;         /* inactive, but perhaps not so on disk */
  /* Of the one who commits, who retires. */
  uint64_t *batch;
  uint64_t *retiring;
  uint64_t nr_retiring;
};

uint64_t
intent_map_size (uint64_t size, uint64_t region_size)
{
  uint64_t nr = MAX (div_round_up (size, region_size), 1);

  return round_up (div_round_up (nr, 8), PAGE);
}

static bool
map_get (const struct intent *in, uint64_t r)
{
  return atomic_load_explicit (&in->map[r / 8], memory_order_relaxed)
    >> (r % 8) & 1;
}

static void
map_set (struct intent *in, uint64_t r)
{
  atomic_fetch_or_explicit (&in->map[r / 8], (uint8_t) (1 << (r % 8)),
                            memory_order_relaxed);
}

static void
map_clear (struct intent *in, uint64_t r)
{
  atomic_fetch_and_explicit (&in->map[r / 8], (uint8_t) ~(1 << (r % 8)),
                             memory_order_relaxed);
}

static bool
is_word_clear (const struct intent *in, uint64_t r)
{
  return atomic_load_explicit ((_Atomic uint64_t *) &in->map[r / 8],
                               memory_order_relaxed) == 0;
}

/* The next region from r on whose bit is set, or nr_regions.  The map is of
 * whole pages.
 */
static uint64_t
map_next (const struct intent *in, uint64_t r)
{
  while (r < in->nr_regions && !map_get (in, r))
    r += r % 64 == 0 && is_word_clear (in, r) ? 64 : 1;
  return MIN (r, in->nr_regions);
}

static int
allocate (struct intent *in)
{
  uint64_t nr = 0, r;

  for (r = map_next (in, 0); r < in->nr_regions; r = map_next (in, r + 1))
    nr++;
  /* What is active already may be more, until some of it is retired. */
  in->max_active = MAX (in->max_active, nr);
  /* Pages that are zero until they are needed, and most never are. */
  in->regions.state = mmap (NULL, (size_t) in->nr_regions,
                            PROT_READ | PROT_WRITE, MAP_PRIVATE
                            | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (in->regions.state == MAP_FAILED)
    in->regions.state = NULL;
  in->queue = calloc (in->max_active, sizeof *in->queue);
  in->batch = calloc (in->max_active, sizeof *in->batch);
  in->active = calloc (in->max_active, sizeof *in->active);
  in->retiring = calloc (in->max_active, sizeof *in->retiring);
  return in->regions.state && in->queue && in->batch && in->active
    && in->retiring ? 0 : -ENOMEM;
}

int
intent_new (uint64_t size, uint64_t region_size, uint64_t max_active,
            _Atomic uint8_t *map, size_t map_len,
            const struct intent_ops *ops, void *opaque, struct intent **ret)
{
  struct intent *in = calloc (1, sizeof *in);
  uint64_t r;

  assert (is_power_of_2 (region_size));
  assert (map_len >= intent_map_size (size, region_size));
  if (in == NULL)
    return -ENOMEM;
  in->size = size;
  in->regions.shift = log2_exact (region_size);
  in->nr_regions = MAX (div_round_up (size, region_size), 1);
  in->max_active = MAX (max_active, 4);
  in->map = map;
  in->ops = *ops;
  in->opaque = opaque;
  lock_init (&in->lock, LOCK_RANK_STORE);
  cond_init (&in->changed);
  if (allocate (in) < 0) {
    intent_free (in);
    return -ENOMEM;
  }
  for (r = map_next (in, 0); r < in->nr_regions; r = map_next (in, r + 1)) {
    atomic_init (&in->regions.state[r], INTENT_ACTIVE);
    in->active[in->nr_active++] = r;
  }
  *ret = in;
  return 0;
}

void
intent_free (struct intent *in)
{
  if (in == NULL)
    return;
  if (in->regions.state)
    munmap ((void *) in->regions.state, (size_t) in->nr_regions);
  free (in->queue);
  free (in->batch);
  free (in->active);
  free (in->retiring);
  pthread_cond_destroy (&in->changed);
  lock_destroy (&in->lock);
  free (in);
}

/* Something could not be made durable.  Rule (4): marking goes on only when
 * that has been recorded.
 */
static void
fail_locked (struct intent *in, const char *what, int error)
{
  lock_assert_held (&in->lock);
  if (in->is_disabled)
    return;
  lock_release (&in->lock);
  in->ops.failed (in->opaque, what, error);
  lock_acquire (&in->lock);
  in->is_disabled = true;
}

/*---- Commit ----*/

static uint64_t
room_locked (const struct intent *in)
{
  const uint64_t used = in->nr_active + in->nr_committing + in->nr_queue
    + in->nr_clearing;

  return used < in->max_active ? in->max_active - used : 0;
}

/* Make the batch durable.  No lock. */
static int
write_batch (struct intent *in, uint64_t nr)
{
  uint64_t first = UINT64_MAX, last = 0, i;

  for (i = 0; i < nr; i++) {
    map_set (in, in->batch[i]);
    first = MIN (first, in->batch[i] / 8);
    last = MAX (last, in->batch[i] / 8);
  }
  first = round_down (first, PAGE);
  last = round_up (last + 1, PAGE);
  return in->ops.sync_map (in->opaque, (size_t) first,
                           (size_t) (last - first));
}

static uint64_t
state_of (const struct intent *in, uint64_t r)
{
  return atomic_load_explicit (&in->regions.state[r], memory_order_relaxed);
}

/* Queue up to nr of [first, end) for which there is no intent. */
static void
queue_some_locked (struct intent *in, uint64_t first, uint64_t end,
                   uint64_t nr)
{
  uint64_t r;

  for (r = first; r < end && nr > 0; r++)
    if (state_of (in, r) == 0) {
      atomic_store_explicit (&in->regions.state[r], INTENT_QUEUED,
                             memory_order_relaxed);
      in->queue[in->nr_queue++] = r;
      nr--;
    }
}

/* Draw the conclusion from what has become of those taken before. */
static void
adapt_window_locked (struct intent *in)
{
  if (in->nr_vain > AHEAD_WORTH * in->nr_used)
    in->window /= 2;
  else if (in->nr_used > 0)
    in->window = MIN (in->window * 2, in->max_active);
  else if (in->window == 0)
    in->window = 1;
  in->nr_used = in->nr_vain = 0;
}

/* How many intents ahead the commit of what is queued may take: none if it is
 * the only one.
 */
static uint64_t
room_ahead_locked (const struct intent *in)
{
  const uint64_t asked = in->nr_active - in->nr_ahead + in->nr_queue;
  const uint64_t most = AHEAD_WORTH * (asked - 1);
  uint64_t nr = MIN (in->window, room_locked (in) / 2);

  return MIN (nr, most - MIN (most, in->nr_ahead));
}

/* Queue neighbours of the last one queued, first those after it: disks are
 * mostly written upwards.
 */
static void
queue_ahead_locked (struct intent *in)
{
  const uint64_t last = in->queue[in->nr_queue - 1];
  const uint64_t page = round_down (last, PAGE_REGIONS);
  uint64_t end;

  lock_assert_held (&in->lock);
  adapt_window_locked (in);
  end = in->nr_queue + room_ahead_locked (in);
  queue_some_locked (in, last + 1, MIN (page + PAGE_REGIONS, in->nr_regions),
                     end - in->nr_queue);
  queue_some_locked (in, page, last, end - in->nr_queue);
}

/* Commit what is queued.  The lock is released meanwhile. */
static void
commit_locked (struct intent *in)
{
  const uint64_t nr_wanted = in->nr_queue;
  uint64_t *batch = in->queue, nr, i;
  int error;

  lock_assert_held (&in->lock);
  assert (!in->is_committing && nr_wanted > 0);
  queue_ahead_locked (in);
  nr = in->nr_queue;
  in->queue = in->batch;
  in->batch = batch;
  in->nr_queue = 0;
  in->nr_ahead += nr - nr_wanted;
  in->nr_committing = nr;
  in->is_committing = true;
  lock_release (&in->lock);
  error = write_batch (in, nr);
  lock_acquire (&in->lock);
  if (error < 0)
    fail_locked (in, "an intent", error);
  for (i = 0; i < nr; i++) {
    in->active[in->nr_active++] = batch[i];
    atomic_store_explicit (&in->regions.state[batch[i]], INTENT_ACTIVE
                           | (i < nr_wanted ? INTENT_TOUCHED : INTENT_AHEAD),
                           memory_order_release);
  }
  in->nr_committing = 0;
  in->is_committing = false;
  pthread_cond_broadcast (&in->changed);
}

/* Queue as many of [first, last] as there is room for, those that need it. */
static void
queue_locked (struct intent *in, uint64_t first, uint64_t last)
{
  lock_assert_held (&in->lock);
  queue_some_locked (in, first, last + 1, room_locked (in));
}

/* True if the region is active, now marked. */
static bool
mark_locked (struct intent *in, uint64_t r)
{
  const uint64_t state = state_of (in, r);

  lock_assert_held (&in->lock);
  if (!(state & (INTENT_ACTIVE | INTENT_RETIRING)))
    return false;
  if (state & INTENT_AHEAD) {
    in->nr_ahead--;
    in->nr_used++;
  }
  atomic_store_explicit (&in->regions.state[r],
                         INTENT_ACTIVE | INTENT_TOUCHED,
                         memory_order_release);
  return true;
}

static int retire_locked (struct intent *in, uint64_t nr_at_least,
                          bool is_all);

/* Get on with region r and those after it, up to last: commit, make room or
 * wait for those who do.
 */
static void
activate_locked (struct intent *in, uint64_t r, uint64_t last)
{
  queue_locked (in, r, last);
  if (in->is_committing)
    lock_wait (&in->lock, &in->changed);
  else if (in->nr_queue > 0)
    commit_locked (in);
  else if (in->is_retiring)
    lock_wait (&in->lock, &in->changed);
  else
    retire_locked (in, in->max_active / 4, false);
}

/* More regions than can be active: sync their bits, which are set. */
static void
sync_bits (struct intent *in)
{
  int error = in->ops.sync_arrays (in->opaque);

  if (error < 0) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&in->lock);
    fail_locked (in, "the bits", error);
  }
}

void
intent_mark_slowly (struct intent *in, uint64_t first, uint64_t last)
{
  uint64_t r = first;

  assert (last < in->nr_regions);
  lock_acquire (&in->lock);
  if (!in->is_disabled && last - first >= in->max_active / 4) {
    lock_release (&in->lock);
    sync_bits (in);
    return;
  }
  while (r <= last && !in->is_disabled) {
    if (mark_locked (in, r))
      r++;
    else
      activate_locked (in, r, last);
  }
  lock_release (&in->lock);
}

/*---- Retirement ----*/

/* Take regions off their activity: those not touched since the last time, or
 * all, or from the oldest on until there are nr_at_least.
 */
static void
pick_locked (struct intent *in, uint64_t nr_at_least, bool is_all)
{
  unsigned pass;
  uint64_t i, r, state;

  lock_assert_held (&in->lock);
  in->nr_retiring = 0;
  for (pass = 0; pass < 2; pass++)
    for (i = 0; i < in->nr_active; i++) {
      r = in->active[i];
      state = state_of (in, r);
      if (!(state & INTENT_ACTIVE))
        continue;
      if (pass == 1 && !is_all && in->nr_retiring >= nr_at_least)
        return;
      if (pass == 0 && !is_all && (state & INTENT_TOUCHED)) {
        if (nr_at_least == 0)
          atomic_store_explicit (&in->regions.state[r], INTENT_ACTIVE,
                                 memory_order_release);
        continue;
      }
      if (state & INTENT_AHEAD) {
        in->nr_ahead--;
        in->nr_vain++;
      }
      atomic_store_explicit (&in->regions.state[r], INTENT_RETIRING,
                             memory_order_seq_cst);
      in->retiring[in->nr_retiring++] = r;
    }
}

/* is_durable: the arrays have been synced.  Rule (3).  *ret: the part of the
 * map that has been changed, in pages.
 */
static void
finish_retiring_locked (struct intent *in, bool is_durable,
                        struct range *ret)
{
  uint64_t i, r, n = 0, first = UINT64_MAX, last = 0;

  lock_assert_held (&in->lock);
  for (i = 0; i < in->nr_retiring; i++) {
    r = in->retiring[i];
    if (state_of (in, r) != INTENT_RETIRING)
      continue;
    if (is_durable) {
      in->nr_clearing++;
      map_clear (in, r);
      first = MIN (first, r / 8);
      last = MAX (last, r / 8);
    }
    atomic_store_explicit (&in->regions.state[r],
                           is_durable ? 0 : INTENT_ACTIVE,
                           memory_order_release);
  }
  for (i = 0; i < in->nr_active; i++) {
    r = in->active[i];
    if (state_of (in, r) & INTENT_ACTIVE)
      in->active[n++] = r;
  }
  in->nr_active = n;
  in->nr_retiring = 0;
  ret->off = MIN (round_down (first, PAGE), last);
  ret->len = first <= last ? round_up (last + 1, PAGE) - ret->off : 0;
}

/* The lock is released meanwhile. */
static int
retire_locked (struct intent *in, uint64_t nr_at_least, bool is_all)
{
  struct range cleared;
  int error;

  lock_assert_held (&in->lock);
  assert (!in->is_retiring);
  pick_locked (in, nr_at_least, is_all);
  if (in->nr_retiring == 0)
    return 0;
  in->is_retiring = true;
  lock_release (&in->lock);
  __sync_synchronize ();
  error = in->ops.sync_arrays (in->opaque);
  lock_acquire (&in->lock);
  finish_retiring_locked (in, error == 0, &cleared);
  if (error == 0 && cleared.len > 0) {
    /* What is still set on disk counts against the bound. */
    lock_release (&in->lock);
    error = in->ops.sync_map (in->opaque, (size_t) cleared.off,
                              (size_t) cleared.len);
    lock_acquire (&in->lock);
  }
  in->nr_clearing = 0;
  if (error < 0)
    fail_locked (in, "the bits", error);
  in->is_retiring = false;
  pthread_cond_broadcast (&in->changed);
  return error;
}

int
intent_retire (struct intent *in, bool is_all)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&in->lock);

  while (in->is_retiring)
    lock_wait (&in->lock, &in->changed);
  return in->is_disabled ? -EIO : retire_locked (in, 0, is_all);
}

void
intent_disable (struct intent *in)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&in->lock);

  in->is_disabled = true;
  pthread_cond_broadcast (&in->changed);
}

uint64_t
intent_nr_active (struct intent *in)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&in->lock);

  return in->nr_active + in->nr_committing + in->nr_clearing;
}

uint64_t
intent_max_active (const struct intent *in)
{
  return in->max_active;
}

uint64_t
intent_active_bytes (struct intent *in)
{
  const uint64_t nr = intent_nr_active (in);

  return MIN (nr << in->regions.shift, in->size);
}
