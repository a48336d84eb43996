/* SPDX-License-Identifier: BSD-3-Clause */
/* Connections that may be lost, see wire.h.
 *
 * A struct line is one set of connections (a blk-nbd node).  Whoever reads
 * holds a reference to the line that he uses.  States of a wire:
 *
 *   CONNECTED  -> LOST        [let_go, a user found that it is lost]
 *   LOST       -> CONNECTING  [use, by the first who wants to read]
 *   CONNECTING -> CONNECTED   [connect_again]
 *   CONNECTING -> GIVEN_UP    [connect_again: no time left, or no session]
 *   any        -> GIVEN_UP    [wire_cancel; note_end: the server has ended the
 *                              export]
 *
 * If one connection of a line is lost all are cut, so that its users come back
 * soon.  Reads that have arrived were handed on; a stream asks again only for
 * those in flight.  A watchdog thread cuts a line on which nothing arrives
 * though somebody waits, and nobody is held up by something else, as a limit of
 * bandwidth or a slow disk.
 *
 * Lost connections are not failed reads, so the drivers of the lines are called
 * past the choke point, which would log each of them.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "blk-nbd.h"
#include "cleanup.h"
#include "clock.h"
#include "lock.h"
#include "log.h"
#include "progress.h"
#include "range.h"
#include "source.h"
#include "wire.h"

#define FIRST_DELAY_MS 100
#define MAX_DELAY_MS 5000

enum wire_state { CONNECTED, LOST, CONNECTING, GIVEN_UP };

struct line {
  struct blk *blk;
  unsigned users;               /* and the wire itself while it is w->line */
};

struct wire {
  struct blk blk;               /* first */

  /* Fixed after open. */
  struct wire_options options;
  char *uri, *context;
  uint64_t max_status;
  pthread_t watchdog;
  bool has_watchdog;

  /* Atomic. */
  _Atomic int64_t arrived;      /* ms: when something last did */
  _Atomic unsigned nr_held;     /* threads of wire_hold */

  struct lock lock;
  pthread_cond_t cond;          /* state or is_closing changed */
  /* Protected by lock. */
  enum wire_state state;
  struct line *line;            /* CONNECTED: not NULL */
  bool is_closing;
  int error;                    /* GIVEN_UP: -errno */
  struct error why;

  /* Of the one thread that is CONNECTING. */
  int64_t lost_at;              /* ms: first loss since something arrived */
  unsigned delay_ms;
};

static const struct blk_driver wire_driver;

static struct wire *
wire_of (struct blk *blk)
{
  assert (blk->driver == &wire_driver);
  return (struct wire *) blk;
}

static void
note_arrival (struct wire *w)
{
  atomic_store_explicit (&w->arrived, clock_ms (), memory_order_relaxed);
}

void
wire_hold (struct blk *blk, bool is_held)
{
  struct wire *w = wire_of (blk);

  if (is_held)
    atomic_fetch_add (&w->nr_held, 1);
  note_arrival (w);
  if (!is_held)
    atomic_fetch_sub (&w->nr_held, 1);
}

static int
cancelled (const struct wire *w, struct error *err)
{
  return error_set (err, ECANCELED, "%s: cancelled", w->uri);
}

/* A read's or a request's error that means that the connection is gone; what
 * the watchdog cuts is cancelled.
 */
static bool
is_loss (int error)
{
  return error == -ENOTCONN || error == -ECANCELED;
}

/*---- Connecting ----*/

static int
open_line (struct wire *w, struct line **ret, struct error *err)
{
  struct line *line = calloc (1, sizeof *line);
  int r;

  if (!line)
    return error_set_errno (err, ENOMEM, "%s", w->uri);
  r = source_open (w->uri, true, w->context, w->options.nr_connections,
                   &line->blk, err);
  if (r < 0) {
    free (line);
    return r;
  }
  /* What matters of its failures is said by the node above; a trim's does not
   * matter.
   */
  atomic_store (&line->blk->is_quiet, true);
  line->users = 1;
  *ret = line;
  return 0;
}

static void
free_line (struct line *line)
{
  blk_close (line->blk);
  free (line);
}

static int
connect_once (struct wire *w, struct line **ret, struct error *err)
{
  int r = w->options.attach ? w->options.attach (w->options.opaque, err) : 0;

  if (r == 0)
    r = open_line (w, ret, err);
  if (r == 0 && blk_size ((*ret)->blk) != blk_size (&w->blk)) {
    free_line (*ret);
    return error_set (err, EREMOTEIO, "%s: the export has another size now",
                      w->uri);
  }
  return r;
}

/* False: wire_cancel. */
static bool
wait_delay (struct wire *w)
{
  const int64_t end = clock_ms () + w->delay_ms;
  const struct timespec ts = {
    .tv_sec = end / 1000, .tv_nsec = end % 1000 * 1000000,
  };

  w->delay_ms = MIN (w->delay_ms * 2, MAX_DELAY_MS);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  while (w->state != GIVEN_UP && lock_wait_until (&w->lock, &w->cond, &ts))
    ;
  return w->state != GIVEN_UP;
}

static int
try_until (struct wire *w, struct line **ret, struct error *err)
{
  int64_t end = w->lost_at + w->options.retry * INT64_C (1000);
  struct error last = ERROR_INIT;
  int r;

  for (;;) {
    last = (struct error) ERROR_INIT;
    r = connect_once (w, ret, &last);
    if (r == 0)
      return 0;
    if (r == -EREMOTEIO || r == -ECANCELED) {
      *err = last;
      return r;
    }
    if (clock_ms () + w->delay_ms > end)
      return error_set (err, ENOTCONN, "%s: the connection to the server was"
                        " lost and could not be had again within %u s: %s",
                        w->uri, w->options.retry, last.msg);
    if (!wait_delay (w))
      return cancelled (w, err);
  }
}

static void
give_up_locked (struct wire *w, int error, const struct error *why)
{
  lock_assert_held (&w->lock);
  w->state = GIVEN_UP;
  w->error = error;
  w->why = *why;
  atomic_store (&w->blk.is_quiet, true);
}

/* The state is CONNECTING and ours. */
static void
connect_again (struct wire *w)
{
  struct error why = ERROR_INIT;
  struct line *line = NULL;
  int64_t arrived = atomic_load (&w->arrived);
  bool is_first = arrived >= w->lost_at;
  int r;

  if (is_first) {
    w->lost_at = clock_ms ();
    w->delay_ms = FIRST_DELAY_MS;
  }
  if (w->options.retry == 0)
    r = error_set (&why, ENOTCONN, "%s: the connection to the server was lost",
                   w->uri);
  else {
    log_warning ("%s: the connection is lost; trying to go on", w->uri);
    /* Nothing has come over the last one either. */
    if (!is_first && !wait_delay (w))
      r = cancelled (w, &why);
    else
      r = try_until (w, &line, &why);
  }
  if (r == 0) {
    progress_say ("connected again");
    progress_event ("connected-again", NULL);
  }
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  if (w->state == GIVEN_UP) {   /* wire_cancel */
    if (line)
      free_line (line);
  }
  else if (r < 0)
    give_up_locked (w, r, &why);
  else {
    w->state = CONNECTED;
    w->line = line;
  }
  pthread_cond_broadcast (&w->cond);
}

/* A reference to the line, a new one if need be.  0 or -errno. */
static int
use (struct wire *w, struct line **ret)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);

  for (;;) {
    switch (w->state) {
    case GIVEN_UP:
      return w->error;
    case CONNECTED:
      /* Nobody has waited for anything until now. */
      if (w->line->users++ == 1)
        note_arrival (w);
      *ret = w->line;
      return 0;
    case CONNECTING:
      lock_wait (&w->lock, &w->cond);
      break;
    case LOST:
      w->state = CONNECTING;
      lock_release (&w->lock);
      connect_again (w);
      lock_acquire (&w->lock);
      break;
    }
  }
}

/* is_lost: nobody else is to begin anything with it. */
static void
let_go (struct wire *w, struct line *line, bool is_lost)
{
  bool is_last;

  lock_acquire (&w->lock);
  if (is_lost && w->line == line) {
    if (w->state == CONNECTED)
      w->state = LOST;
    w->line = NULL;
    line->users--;
    blk_nbd_cancel (line->blk);
  }
  is_last = --line->users == 0;
  lock_release (&w->lock);
  if (is_last)
    free_line (line);
}

/* The server does not serve the export any more.  It knows why, if it is there
 * and it is not all that has ended.
 */
static void
note_end (struct wire *w)
{
  struct error why = ERROR_INIT;
  bool is_known;
  int r = 0;

  lock_acquire (&w->lock);
  is_known = w->state == GIVEN_UP;
  lock_release (&w->lock);
  if (is_known)
    return;
  if (w->options.attach)
    r = w->options.attach (w->options.opaque, &why);
  if (r != -EREMOTEIO)
    r = error_set (&why, ESHUTDOWN, "%s: the server has ended the export",
                   w->uri);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  if (w->state != GIVEN_UP)
    give_up_locked (w, r, &why);
  pthread_cond_broadcast (&w->cond);
}

/*---- Reading ----*/

struct stream {
  struct wire *w;
  const struct blk_stream_ops *ops;
  void *opaque;
  struct blk_read *again;       /* room for depth: to be asked for again */
  unsigned nr_again;
  bool is_lost;
};

static int
stream_next (void *opaque, struct blk_read *read)
{
  struct stream *st = opaque;

  if (st->is_lost)
    return 0;
  if (st->nr_again > 0) {
    *read = st->again[--st->nr_again];
    return 1;
  }
  return st->ops->next (st->opaque, read);
}

static int
stream_done (void *opaque, struct blk_read *read, int error)
{
  struct stream *st = opaque;
  int r;

  if (is_loss (error)) {
    st->again[st->nr_again++] = *read;
    st->is_lost = true;
    return 0;
  }
  if (error == -ESHUTDOWN)
    note_end (st->w);
  wire_hold (&st->w->blk, true);
  r = st->ops->done (st->opaque, read, error);
  wire_hold (&st->w->blk, false);
  return r;
}

static const struct blk_stream_ops stream_ops = {
  .next = stream_next,
  .done = stream_done,
};

/* Every read that was begun gets its end. */
static int
stream_fail (struct stream *st, int error)
{
  int r = 0, e;

  while (st->nr_again > 0) {
    e = st->ops->done (st->opaque, &st->again[--st->nr_again], error);
    r = r < 0 ? r : e;
  }
  return r < 0 ? r : error;
}

static int
wire_read_stream (struct blk *blk, unsigned depth,
                  const struct blk_stream_ops *ops, void *opaque)
{
  struct stream st = { .w = wire_of (blk), .ops = ops, .opaque = opaque };
  CLEANUP_FREE struct blk_read *again = calloc (depth, sizeof *again);
  struct line *line;
  int r;

  if (!again)
    return -ENOMEM;
  st.again = again;
  do {
    r = use (st.w, &line);
    if (r < 0)
      return stream_fail (&st, r);
    st.is_lost = false;
    r = line->blk->driver->read_stream (line->blk, depth, &stream_ops, &st);
    /* No connection was left to begin with. */
    if (r == -ENOTCONN)
      st.is_lost = true;
    let_go (st.w, line, st.is_lost);
  } while (st.is_lost && (r == 0 || r == -ENOTCONN));
  return r < 0 ? stream_fail (&st, r) : 0;
}

static int
wire_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  struct wire *w = wire_of (blk);
  struct line *line;
  int r;

  do {
    r = use (w, &line);
    if (r < 0)
      return r;
    r = line->blk->driver->pread (line->blk, buf, len, off, flags);
    if (!is_loss (r))
      note_arrival (w);
    if (r == -ESHUTDOWN)
      note_end (w);
    let_go (w, line, is_loss (r));
  } while (is_loss (r));
  return r;
}

static void
clear_lists (const struct blk_nbd_range *ranges, size_t nr, size_t nr_lists)
{
  size_t i, j;

  for (i = 0; i < nr; i++)
    for (j = 0; j < nr_lists; j++)
      extents_clear (&ranges[i].lists[j]);
}

uint64_t
wire_max_status (struct blk *blk)
{
  return wire_of (blk)->max_status;
}

int
wire_block_status (struct blk *blk, const struct blk_nbd_range *ranges,
                   size_t nr, size_t nr_lists)
{
  struct wire *w = wire_of (blk);
  struct line *line;
  int r;

  do {
    r = use (w, &line);
    if (r < 0)
      return r;
    r = blk_nbd_block_status_many (line->blk, ranges, nr, nr_lists);
    if (!is_loss (r))
      note_arrival (w);
    else
      clear_lists (ranges, nr, nr_lists);
    if (r == -ESHUTDOWN)
      note_end (w);
    let_go (w, line, is_loss (r));
  } while (is_loss (r));
  return r;
}

void
wire_trim (struct blk *blk, uint64_t len, uint64_t off)
{
  struct wire *w = wire_of (blk);
  struct line *line;
  int r = use (w, &line);

  if (r < 0)
    return;
  /* Advice, which is not worth a second attempt. */
  r = blk_trim (line->blk, len, off, 0);
  if (!is_loss (r))
    note_arrival (w);
  let_go (w, line, is_loss (r));
}

/*---- Open, close, and the watchdog ----*/

static void *
watch (void *opaque)
{
  struct wire *w = opaque;
  const int64_t timeout = w->options.timeout * INT64_C (1000);
  const int64_t step = MAX (timeout / 4, 10);
  struct timespec ts;
  int64_t next;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  while (!w->is_closing) {
    next = clock_ms () + step;
    ts = (struct timespec) {
      .tv_sec = next / 1000, .tv_nsec = next % 1000 * 1000000,
    };
    lock_wait_until (&w->lock, &w->cond, &ts);
    if (atomic_load (&w->nr_held) > 0)
      note_arrival (w);
    if (w->state == CONNECTED && w->line->users > 1
        && clock_ms () - atomic_load (&w->arrived) > timeout) {
      blk_nbd_cancel (w->line->blk);
      note_arrival (w);
    }
  }
  return NULL;
}

void
wire_cancel (void *opaque)
{
  struct wire *w = wire_of (opaque);
  struct error why = ERROR_INIT;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  if (w->state == GIVEN_UP)
    return;
  give_up_locked (w, cancelled (w, &why), &why);
  if (w->line)
    blk_nbd_cancel (w->line->blk);
  pthread_cond_broadcast (&w->cond);
}

int
wire_error (struct blk *blk, struct error *err)
{
  struct wire *w = wire_of (blk);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  if (w->state == GIVEN_UP)
    *err = w->why;
  return w->state == GIVEN_UP ? w->error : 0;
}

static int
wire_close (struct blk *blk)
{
  struct wire *w = wire_of (blk);

  if (w->has_watchdog) {
    lock_acquire (&w->lock);
    w->is_closing = true;
    pthread_cond_broadcast (&w->cond);
    lock_release (&w->lock);
    pthread_join (w->watchdog, NULL);
  }
  if (w->line)
    free_line (w->line);
  pthread_cond_destroy (&w->cond);
  lock_destroy (&w->lock);
  free (w->uri);
  free (w->context);
  blk_fini (&w->blk);
  free (w);
  return 0;
}

static const struct blk_driver wire_driver = {
  .name = "wire",
  .close = wire_close,
  .pread = wire_pread,
  .read_stream = wire_read_stream,
};

static int
start (struct wire *w, struct error *err)
{
  struct blk *blk;
  int r;

  w->uri = strdup (w->options.uri);
  w->context = w->options.context ? strdup (w->options.context) : NULL;
  if (!w->uri || (w->options.context && !w->context))
    return error_set_errno (err, ENOMEM, "%s", w->options.uri);
  r = open_line (w, &w->line, err);
  if (r < 0)
    return r;
  w->state = CONNECTED;
  note_arrival (w);
  blk = w->line->blk;
  r = blk_init (&w->blk, &wire_driver, blk->name, blk->filename,
                blk_size (blk), BLK_IS_READ_ONLY);
  if (r < 0)
    return error_set_errno (err, -r, "%s", w->uri);
  w->blk.block_size = blk->block_size;
  w->max_status = blk_nbd_max_status (blk);
  r = pthread_create (&w->watchdog, NULL, watch, w);
  if (r != 0)
    return error_set_errno (err, r, "thread");
  w->has_watchdog = true;
  return 0;
}

int
wire_open (const struct wire_options *options, struct blk **ret,
           struct error *err)
{
  struct wire *w = calloc (1, sizeof *w);
  int r;

  if (!w)
    return error_set_errno (err, ENOMEM, "%s", options->uri);
  w->options = *options;
  w->blk.driver = &wire_driver;
  w->state = LOST;
  w->lost_at = INT64_MIN;
  /* Held while a line is cut, which takes none of ours. */
  lock_init (&w->lock, LOCK_RANK_LEAF);
  cond_init (&w->cond);
  r = start (w, err);
  if (r < 0)
    wire_close (&w->blk);
  else
    *ret = &w->blk;
  return r;
}
