/* SPDX-License-Identifier: BSD-3-Clause */
/* The copy engine, see copy.h.
 *
 * Each thread streams reads from the source (blk_read_stream) and handles
 * what it has received itself, without a hand-over: the data is still in that
 * core's cache when it is hashed, searched for zeroes and written.  Per item:
 *
 *   next, reserve      under the lock, so items are handed out and target
 *                      space is allocated in ascending order
 *   read               up to depth in flight per thread
 *   data, write, done  in the thread that received it
 *
 * Memory is bounded: depth buffers of max_item bytes per thread, mapped at the
 * start and used last in, first out.  With options.memory a window, which all
 * threads share alike, says how many bytes of them are in flight; a thread that
 * has nothing in flight may always ask for one item.  The first error stops all
 * threads; reads in flight are waited for and dropped.
 *
 * copy_run is called from any thread and uses it as one of its own.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "clock.h"
#include "copy.h"
#include "lock.h"
#include "range.h"
#include "window.h"

#define DEFAULT_DEPTH 16
#define DEFAULT_MAX_ITEM (1024 * 1024)
#define MAX_DEPTH 1024
#define FIRST_WINDOW (UINT64_C (4) << 20)       /* bytes */
#define BUFFER_ALIGN 4096

/* One read in flight: its item and its buffer. */
struct slot {
  struct copy_item item;
  void *buf;
};

struct copy {
  /* Fixed while it runs. */
  struct blk *source, *target;
  struct copy_options options;  /* defaults filled in */
  const struct copy_ops *ops;
  void *opaque;

  /* Atomic. */
  atomic_bool is_stopped;
  _Atomic uint64_t share;       /* of window.limit, one thread's */

  struct lock window_lock;
  /* Protected by window_lock; used with options.memory. */
  struct window window;

  struct lock lock;
  /* Protected by lock. */
  bool at_end;                  /* next has returned 0 */
  int error;                    /* -errno that stopped it; 0 = none */
  bool is_write_error;          /* it was the target's */
  struct error err;
};

/* One thread's own. */
struct copy_thread {
  struct copy *copy;
  pthread_t thread;
  bool is_started;
  void *buffers;                /* one mapping */
  size_t buffers_len;
  struct slot *slots;
  struct slot **free;           /* a stack */
  unsigned nr_free;
  uint64_t in_flight;           /* bytes */
  struct copy_stats stats;
};

/* Stop with an error unless there is one already.  what: of the item at off,
 * NULL for one that has no place.
 */
static int
fail (struct copy *c, int error, const char *node, const char *what,
      uint64_t len, uint64_t off)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  if (c->error == 0) {
    c->error = error;
    c->is_write_error = node == c->target->name;
    if (what)
      error_set_errno (&c->err, -error,
                       "%s: %s of %" PRIu64 " bytes at offset %" PRIu64,
                       node, what, len, off);
    else
      error_set_errno (&c->err, -error, "%s", node);
  }
  atomic_store_explicit (&c->is_stopped, true, memory_order_relaxed);
  return error;
}

/* 0, or -ECANCELED if the copy is to stop. */
static int
check_stopped (struct copy *c)
{
  if (atomic_load_explicit (&c->is_stopped, memory_order_relaxed))
    return -ECANCELED;
  if (c->options.cancel
      && __atomic_load_n (c->options.cancel, __ATOMIC_RELAXED))
    return fail (c, -ECANCELED, "copying", NULL, 0, 0);
  return 0;
}

/* Take the next item: 1, 0 at the end, -errno. */
static int
next_item (struct copy *c, struct copy_item *ret)
{
  int r, reserved = 0;

  lock_acquire (&c->lock);
  memset (ret, 0, sizeof *ret);
  r = c->at_end ? 0 : c->ops->next (c->opaque, ret);
  if (r <= 0)
    c->at_end = true;
  else if (c->ops->reserve)
    reserved = c->ops->reserve (c->opaque, ret);
  lock_release (&c->lock);

  if (r < 0)
    return fail (c, r, "list of ranges to copy", NULL, 0, 0);
  if (reserved < 0)
    return fail (c, reserved, c->target->name, "reservation", ret->len,
                 ret->off);
  assert (r == 0 || ret->len > 0);
  assert (r == 0 || ret->is_zero || ret->len <= c->options.max_item);
  return r;
}

static int
write_zeroes (struct copy_thread *t, uint64_t len, uint64_t off)
{
  struct copy *c = t->copy;
  int r;

  t->stats.zero_bytes += len;
  if (c->options.target_is_zero)
    return 0;
  r = blk_zero (c->target, len, off, BLK_MAY_UNMAP
                | (c->options.keeps_zeroes ? BLK_KEEP_ZERO : 0));
  return r < 0 ? fail (c, r, c->target->name, "zero", len, off) : 0;
}

static int
write_data (struct copy_thread *t, const char *buf, uint64_t len,
            uint64_t off)
{
  struct copy *c = t->copy;
  int r;

  r = blk_pwrite (c->target, buf, len, off,
                  c->options.compress ? BLK_COMPRESS : 0);
  if (r < 0)
    return fail (c, r, c->target->name, "write", len, off);
  t->stats.written_bytes += len;
  return 0;
}

/* The length of the longest run from buf on, which lies at off, of units that
 * are all zero or all not.
 */
static uint64_t
find_run (const char *buf, uint64_t len, uint64_t off, uint64_t unit,
          bool *ret_is_zero)
{
  uint64_t n = MIN (unit - off % unit, len), more;
  const bool is_zero = is_zero_buffer (buf, n);

  while (n < len) {
    more = MIN (unit, len - n);
    if (is_zero_buffer (buf + n, more) != is_zero)
      break;
    n += more;
  }
  *ret_is_zero = is_zero;
  return n;
}

/* Write the item, those of its units that are zero as zeroes. */
static int
write_item (struct copy_thread *t, const struct copy_item *item,
            const char *buf)
{
  const struct copy_options *o = &t->copy->options;
  uint64_t pos, n;
  bool is_zero;
  int r = 0;

  if (!o->detect_zeroes)
    return write_data (t, buf, item->len, item->off);
  for (pos = 0; r == 0 && pos < item->len; pos += n) {
    if (o->zero_unit)
      n = find_run (buf + pos, item->len - pos, item->off + pos,
                    o->zero_unit, &is_zero);
    else
      is_zero = is_zero_buffer (buf, n = item->len);
    r = is_zero ? write_zeroes (t, n, item->off + pos)
      : write_data (t, buf + pos, n, item->off + pos);
  }
  return r;
}

/* What follows the read.  buf NULL: the item is zero. */
static int
handle_item (struct copy_thread *t, const struct copy_item *item,
             const void *buf)
{
  struct copy *c = t->copy;
  int r;

  if (c->ops->data) {
    r = c->ops->data (c->opaque, item, buf);
    if (r < 0)
      return fail (c, r, c->source->name, "handling", item->len, item->off);
  }
  if (buf)
    r = write_item (t, item, buf);
  else
    r = write_zeroes (t, item->len, item->off);
  if (r == 0 && c->ops->done)
    c->ops->done (c->opaque, item);
  return r;
}

/* May the thread ask for one more item? */
static bool
has_room (struct copy_thread *t)
{
  struct copy *c = t->copy;

  if (c->options.memory == 0)
    return t->nr_free > 0;
  if (t->in_flight == 0
      || (t->nr_free > 0 && t->in_flight < atomic_load (&c->share)))
    return true;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->window_lock);
  window_refused (&c->window);
  return false;
}

static void
note_arrival (struct copy_thread *t, uint64_t len)
{
  struct copy *c = t->copy;

  t->in_flight -= len;
  if (c->options.memory == 0)
    return;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->window_lock);
  window_arrived (&c->window, len, clock_ns ());
  atomic_store (&c->share, c->window.limit / c->options.nr_threads);
}

/* Next range to read; items that are zero are done on the way. */
static int
stream_next (void *opaque, struct blk_read *read)
{
  struct copy_thread *t = opaque;
  struct slot *slot;
  int r;

  for (;;) {
    r = check_stopped (t->copy);
    if (r < 0)
      return r;
    if (!has_room (t))          /* asked again when something has arrived */
      return 0;
    slot = t->free[t->nr_free - 1];
    r = next_item (t->copy, &slot->item);
    if (r <= 0)
      return r;
    if (!slot->item.is_zero)
      break;
    r = handle_item (t, &slot->item, NULL);
    if (r < 0)
      return r;
  }
  t->nr_free--;
  t->in_flight += slot->item.len;
  read->off = slot->item.off;
  read->len = slot->item.len;
  read->buf = slot->buf;
  read->opaque = slot;
  return 1;
}

static int
stream_done (void *opaque, struct blk_read *read, int error)
{
  struct copy_thread *t = opaque;
  struct slot *slot = read->opaque;
  int r = check_stopped (t->copy);

  note_arrival (t, read->len);
  if (r == 0 && error < 0)
    r = fail (t->copy, error, t->copy->source->name, "read", read->len,
              read->off);
  if (r == 0) {
    t->stats.read_bytes += read->len;
    r = handle_item (t, &slot->item, slot->buf);
  }
  t->free[t->nr_free++] = slot;
  return r;
}

static void *
copy_thread_run (void *arg)
{
  static const struct blk_stream_ops stream_ops = {
    .next = stream_next,
    .done = stream_done,
  };
  struct copy_thread *t = arg;
  int r;

  r = blk_read_stream (t->copy->source, t->copy->options.depth, &stream_ops,
                       t);
  if (r < 0)                    /* unless a callback has said why */
    fail (t->copy, r, t->copy->source->name, NULL, 0, 0);
  return NULL;
}

static int
copy_thread_init (struct copy_thread *t, struct copy *c)
{
  const size_t slot_len = round_up (c->options.max_item, BUFFER_ALIGN);
  const unsigned depth = c->options.depth;
  unsigned i;

  t->copy = c;
  t->slots = calloc (depth, sizeof t->slots[0]);
  t->free = calloc (depth, sizeof t->free[0]);
  if (t->slots == NULL || t->free == NULL || slot_len > SIZE_MAX / depth)
    return -ENOMEM;
  t->buffers = mmap (NULL, slot_len * depth, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (t->buffers == MAP_FAILED) {
    t->buffers = NULL;
    return -ENOMEM;
  }
  t->buffers_len = slot_len * depth;
  for (i = 0; i < depth; i++) {
    t->slots[i].buf = (char *) t->buffers + slot_len * i;
    t->free[depth - 1 - i] = &t->slots[i];
  }
  t->nr_free = depth;
  return 0;
}

static void
copy_thread_destroy (struct copy_thread *t)
{
  if (t->buffers)
    munmap (t->buffers, t->buffers_len);
  free (t->slots);
  free (t->free);
}

/* Run the threads; the caller's is the first.  One that cannot be started is
 * done without.
 */
static void
run_threads (struct copy_thread *threads, unsigned nr)
{
  unsigned i;

  for (i = 1; i < nr; i++)
    threads[i].is_started = pthread_create (&threads[i].thread, NULL,
                                            copy_thread_run,
                                            &threads[i]) == 0;
  copy_thread_run (&threads[0]);
  for (i = 1; i < nr; i++)
    if (threads[i].is_started)
      pthread_join (threads[i].thread, NULL);
}

/* Threads, slots, and a window for what the memory has room for. */
static void
set_window (struct copy *c)
{
  struct copy_options *o = &c->options;
  const uint64_t slot_len = round_up (o->max_item, BUFFER_ALIGN);
  const uint64_t nr_slots = MAX (o->memory / slot_len, 2);
  uint64_t max;

  o->nr_threads = (unsigned) MIN (o->nr_threads, nr_slots / 2);
  o->depth = (unsigned) MIN (nr_slots / o->nr_threads, MAX_DEPTH);
  max = o->depth * slot_len * o->nr_threads;
  window_init (&c->window, MIN (FIRST_WINDOW, max), max);
  atomic_store (&c->share, c->window.limit / o->nr_threads);
}

static void
set_options (struct copy *c, const struct copy_options *options)
{
  if (options)
    c->options = *options;
  if (c->options.nr_threads == 0)
    c->options.nr_threads = COPY_DEFAULT_THREADS;
  if (c->options.depth == 0)
    c->options.depth = DEFAULT_DEPTH;
  if (c->options.max_item == 0)
    c->options.max_item = DEFAULT_MAX_ITEM;
  if (c->options.memory)
    set_window (c);
}

int
copy_run (struct blk *source, struct blk *target,
          const struct copy_options *options, const struct copy_ops *ops,
          void *opaque, struct copy_stats *ret, struct error *err)
{
  struct copy c = { .source = source, .target = target, .ops = ops,
                    .opaque = opaque, .err = ERROR_INIT };
  struct copy_stats stats = { 0 };
  struct copy_thread *threads;
  unsigned i;
  int r = 0;

  set_options (&c, options);
  lock_init (&c.lock, LOCK_RANK_COPY);
  lock_init (&c.window_lock, LOCK_RANK_LEAF);
  threads = calloc (c.options.nr_threads, sizeof *threads);
  if (threads == NULL)
    r = -ENOMEM;
  for (i = 0; r == 0 && i < c.options.nr_threads; i++)
    r = copy_thread_init (&threads[i], &c);
  if (r == 0)
    run_threads (threads, c.options.nr_threads);
  else
    fail (&c, r, "copying", NULL, 0, 0);

  for (i = 0; threads && i < c.options.nr_threads; i++) {
    stats.read_bytes += threads[i].stats.read_bytes;
    stats.written_bytes += threads[i].stats.written_bytes;
    stats.zero_bytes += threads[i].stats.zero_bytes;
    copy_thread_destroy (&threads[i]);
  }
  free (threads);
  lock_destroy (&c.window_lock);
  lock_destroy (&c.lock);
  stats.is_write_error = c.is_write_error;
  if (ret)
    *ret = stats;
  if (c.error < 0 && err)
    *err = c.err;
  return c.error;
}
