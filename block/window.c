/* SPDX-License-Identifier: BSD-3-Clause */
/* How many bytes to have in flight, see window.h.
 *
 * Time is cut into rounds: in one, limit bytes arrive, so that it lasts about
 * as long as a request takes.  The first round after a change of limit shows
 * what was asked for before it, and is not looked at.
 *
 *   GROWING -> GROWING  [the rate is higher than the best by MIN_GAIN: that
 *                        limit is the best, and twice as much is tried]
 *   GROWING -> HOLDING  [MAX_FLAT rounds without that gain: back to the best]
 *   HOLDING -> GROWING  [after PROBE_NS: the path may have changed; the rate
 *                        of now is the one to be beaten]
 *
 * A round in which nobody was refused says nothing about the limit.  The limit
 * never shrinks below one that was worth it: what is not needed for the
 * bandwidth waits in the network's queues and costs only memory, which max
 * bounds.
 *
 * Called by the copy engine, under a lock of its.
 */
#include "config.h"

#include <assert.h>

#include "range.h"
#include "window.h"

#define MIN_GAIN 1.08
#define MAX_FLAT 2
/* A shorter round is too much noise. */
#define MIN_ROUND_NS INT64_C (5000000)
#define PROBE_NS INT64_C (10000000000)

void
window_init (struct window *w, uint64_t start, uint64_t max)
{
  assert (start > 0 && start <= max);
  *w = (struct window) {
    .limit = start, .best_limit = start, .max = max, .is_settled = true,
  };
}

void
window_refused (struct window *w)
{
  w->is_limiting = true;
}

static void
set_limit (struct window *w, uint64_t limit)
{
  w->is_settled = limit == w->limit;
  w->limit = limit;
}

static void
hold (struct window *w, int64_t now)
{
  w->state = WINDOW_HOLDING;
  w->held_since = now;
  set_limit (w, w->best_limit);
}

static void
grow (struct window *w, double rate, int64_t now)
{
  w->state = WINDOW_GROWING;
  w->nr_flat = 0;
  w->best_rate = rate;
  w->best_limit = w->limit;
  if (w->limit == w->max)
    hold (w, now);
  else
    set_limit (w, MIN (w->limit * 2, w->max));
}

static void
judge (struct window *w, double rate, int64_t now)
{
  if (w->state == WINDOW_HOLDING) {
    if (now - w->held_since >= PROBE_NS)
      grow (w, rate, now);
  }
  else if (rate >= w->best_rate * MIN_GAIN)
    grow (w, rate, now);
  else if (++w->nr_flat == MAX_FLAT)
    hold (w, now);
}

static void
begin_round (struct window *w, int64_t now)
{
  w->start = now;
  w->bytes = 0;
  w->is_limiting = false;
}

void
window_arrived (struct window *w, uint64_t len, int64_t now)
{
  const bool was_settled = w->is_settled;

  if (w->start == 0) {
    begin_round (w, now);
    return;
  }
  w->bytes += len;
  if (w->bytes < w->limit || now - w->start < MIN_ROUND_NS)
    return;
  w->is_settled = true;
  if (was_settled && w->is_limiting)
    judge (w, (double) w->bytes / (double) (now - w->start), now);
  begin_round (w, now);
}
