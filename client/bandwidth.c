/* SPDX-License-Identifier: BSD-3-Clause */
/* A limit of bytes per second.
 *
 * full_at says it all: a bucket that is full has it in the past, each byte
 * taken moves it on by 1 / rate, and what is overdrawn is what lies further
 * ahead than the bucket is deep.
 */
#include "config.h"

#include <errno.h>
#include <stdatomic.h>
#include <time.h>

#include "bandwidth.h"
#include "clock.h"
#include "range.h"

#define NS_PER_S INT64_C (1000000000)
/* How long a cancelled wait may last. */
#define STEP_NS INT64_C (50000000)

int64_t
bandwidth_take (struct bandwidth *b, uint64_t len, int64_t now)
{
  int64_t cost, from, full_at;

  if (b->rate == 0)
    return 0;
  cost = (int64_t) ((double) len / (double) b->rate * (double) NS_PER_S);
  full_at = atomic_load (&b->full_at);
  do
    from = MAX (full_at, now);
  while (!atomic_compare_exchange_weak (&b->full_at, &full_at, from + cost));
  return MAX (from - now - BANDWIDTH_BURST_NS, 0);
}

int
bandwidth_wait (struct bandwidth *b, uint64_t len,
                const volatile bool *cancel)
{
  int64_t left = bandwidth_take (b, len, clock_ns ());

  for (; left > 0; left -= STEP_NS) {
    const int64_t step = MIN (left, STEP_NS);
    const struct timespec ts = { .tv_sec = 0, .tv_nsec = (long) step };

    if (__atomic_load_n (cancel, __ATOMIC_RELAXED))
      return -ECANCELED;
    nanosleep (&ts, NULL);
  }
  return 0;
}

uint64_t
bandwidth_piece (const struct bandwidth *b, uint64_t least, uint64_t most)
{
  uint64_t size = most;

  while (b->rate > 0 && size > b->rate / 8)
    size /= 2;
  return MAX (size, least);
}

uint64_t
bandwidth_window (const struct bandwidth *b, uint64_t most)
{
  return b->rate > 0 ? MIN (most, MAX (b->rate / 2, 1)) : most;
}
