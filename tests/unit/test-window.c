/* SPDX-License-Identifier: BSD-3-Clause */
/* window.c over modelled paths: a rate, a delay, and as much in flight as the
 * window allows.
 */
#include "config.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "range.h"
#include "window.h"

#define MB UINT64_C (1000000)
#define MS INT64_C (1000000)
#define ITEM UINT64_C (65536)

struct path {
  uint64_t rate;                /* bytes per second */
  int64_t delay;                /* ns, round trip */
  int64_t now;
};

/* Move bytes over the path; always something to ask for.  Steady state: what
 * is in flight arrives once per round trip, or as fast as the rate allows.
 */
static void
pull (struct window *w, struct path *p, uint64_t bytes)
{
  const double link = (double) p->rate / 1e9;
  uint64_t done;
  double rate;

  for (done = 0; done < bytes; done += ITEM) {
    rate = MIN (link, (double) w->limit / (double) p->delay);
    p->now += (int64_t) ((double) ITEM / rate);
    window_refused (w);
    window_arrived (w, ITEM, p->now);
    assert_in_range (w->limit, 1, w->max);
  }
}

static void
test_grows_to_the_path (void **state)
{
  static const struct path paths[] = {
    { 125 * MB, 20 * MS, 1 }, { 125 * MB, 100 * MS, 1 },
    { 1250 * MB, 20 * MS, 1 }, { 12 * MB, 300 * MS, 1 },
  };
  size_t i;

  for (i = 0; i < sizeof paths / sizeof paths[0]; i++) {
    struct path p = paths[i];
    const uint64_t needed = p.rate / 1000 * (uint64_t) (p.delay / MS);
    struct window w;

    window_init (&w, MB, 256 * MB);
    pull (&w, &p, 40 * needed);
    assert_int_equal (w.state, WINDOW_HOLDING);
    /* 92 % of the link at least, and not without end. */
    assert_true (w.limit >= needed * 92 / 100);
    assert_true (w.limit <= MAX (4 * needed, MB));
  }
}

static void
test_stays_where_nothing_is_gained (void **state)
{
  struct path p = { 500 * MB, MS, 1 };
  struct window w;

  window_init (&w, 4 * MB, 256 * MB);
  pull (&w, &p, 1000 * MB);
  assert_int_equal (w.state, WINDOW_HOLDING);
  assert_int_equal (w.limit, 4 * MB);
}

static void
test_stops_at_max (void **state)
{
  struct path p = { 1250 * MB, 100 * MS, 1 };
  struct window w;

  window_init (&w, 4 * MB, 24 * MB);
  pull (&w, &p, 1000 * MB);
  assert_int_equal (w.limit, 24 * MB);
  assert_int_equal (w.state, WINDOW_HOLDING);
}

/* A longer way later on is found out. */
static void
test_looks_again (void **state)
{
  struct path p = { 125 * MB, 10 * MS, 1 };
  struct window w;

  window_init (&w, MB, 256 * MB);
  pull (&w, &p, 500 * MB);
  assert_in_range (w.limit, MB, 4 * MB);
  p.delay = 100 * MS;
  pull (&w, &p, 2500 * MB);
  assert_true (w.limit >= 125 * MB / 10 * 92 / 100);
}

/* Nobody was held up by the window: that it is slow is not the window's
 * fault.
 */
static void
test_only_when_it_limits (void **state)
{
  struct window w;
  int64_t now = 1;
  int i;

  window_init (&w, MB, 256 * MB);
  for (i = 0; i < 10000; i++) {
    /* Ever faster, but never refused. */
    now += 20 * MS / (i + 1) + 1000;
    window_arrived (&w, ITEM, now);
  }
  assert_int_equal (w.limit, MB);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_grows_to_the_path),
    cmocka_unit_test (test_stays_where_nothing_is_gained),
    cmocka_unit_test (test_stops_at_max),
    cmocka_unit_test (test_looks_again),
    cmocka_unit_test (test_only_when_it_limits),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
