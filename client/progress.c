/* SPDX-License-Identifier: BSD-3-Clause */
/* What the program tells.  begin and end come from the main thread, all else
 * from any; a bar is drawn, or an event sent, by whichever thread moves the
 * count when the last one is old enough.
 */
#include "config.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "error.h"
#include "lock.h"
#include "log.h"
#include "progress.h"
#include "size.h"

#define BAR_INTERVAL_NS UINT64_C (200000000)
#define EVENT_INTERVAL_NS UINT64_C (1000000000)
#define BAR_WIDTH 28

static struct {
  /* Fixed after init. */
  enum progress_mode mode;
  bool has_bar;
  uint64_t interval;

  /* Atomic. */
  _Atomic bool is_active;
  _Atomic uint64_t done;
  _Atomic uint64_t next_draw;   /* CLOCK_MONOTONIC ns */

  /* Protected by lock. */
  struct lock lock;
  bool is_drawn;
  char label[64];
  uint64_t total;
  uint64_t start;               /* CLOCK_MONOTONIC ns */
} g;

static void
clear_bar_locked (void)
{
  lock_assert_held (&g.lock);
  if (!g.is_drawn)
    return;
  fputs ("\r\033[K", stderr);
  fflush (stderr);
  g.is_drawn = false;
}

static void
log_line (enum log_level level, const char *msg)
{
  static const char *const names[] = { "error", "warning", "info", "debug" };

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&g.lock);
    clear_bar_locked ();
    fprintf (stderr, "tidemark: %s%s%s\n",
             level == LOG_LEVEL_ERROR ? "" : names[level],
             level == LOG_LEVEL_ERROR ? "" : ": ", msg);
  }
  if (level <= LOG_LEVEL_WARNING)
    progress_event (names[level], json_pack ("{s:s}", "message", msg));
}

void
progress_init (enum progress_mode mode)
{
  lock_init (&g.lock, LOCK_RANK_LEAF);
  g.mode = mode;
  g.has_bar = mode == PROGRESS_HUMAN && isatty (STDERR_FILENO);
  g.interval = g.has_bar ? BAR_INTERVAL_NS : EVENT_INTERVAL_NS;
  log_set_handler (log_line);
}

enum progress_mode
progress_get_mode (void)
{
  return g.mode;
}

void
progress_say (const char *fmt, ...)
{
  char msg[2048];
  va_list args;

  if (g.mode != PROGRESS_HUMAN)
    return;
  va_start (args, fmt);
  vsnprintf (msg, sizeof msg, fmt, args);
  va_end (args);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&g.lock);
  clear_bar_locked ();
  puts (make_one_line (msg));
  fflush (stdout);
}

static void
print_event_locked (const char *name, json_t *data)
{
  json_t *line = json_pack ("{s:s}", "event", name);
  char *text;

  lock_assert_held (&g.lock);
  if (line && data)
    json_object_update (line, data);
  text = line ? json_dumps (line, JSON_COMPACT) : NULL;
  if (text) {
    puts (text);
    fflush (stdout);
  }
  free (text);
  json_decref (line);
}

void
progress_event (const char *name, json_t *data)
{
  if (g.mode == PROGRESS_JSON) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&g.lock);
    print_event_locked (name, data);
  }
  json_decref (data);
}

static void
draw_bar_locked (uint64_t done, uint64_t ns)
{
  char bar[BAR_WIDTH + 1], a[SIZE_STRING_MAX], b[SIZE_STRING_MAX];
  double part = g.total ? (double) done / (double) g.total : 0;
  double rate = ns ? (double) done * 1e9 / (double) ns : 0;
  size_t filled;

  lock_assert_held (&g.lock);
  g.is_drawn = true;
  if (g.total == 0) {
    fprintf (stderr, "\r\033[K%s %s  %.0f MB/s", g.label,
             size_format (done, a), rate / 1e6);
    fflush (stderr);
    return;
  }
  if (part > 1)
    part = 1;
  filled = (size_t) (part * BAR_WIDTH);
  memset (bar, '.', BAR_WIDTH);
  memset (bar, '#', filled);
  bar[BAR_WIDTH] = '\0';
  fprintf (stderr, "\r\033[K%s [%s] %3u%%  %s of %s  %.0f MB/s", g.label, bar,
           (unsigned) (part * 100), size_format (done, a),
           size_format (g.total, b), rate / 1e6);
  fflush (stderr);
}

static void
draw_locked (uint64_t now)
{
  uint64_t done = atomic_load_explicit (&g.done, memory_order_relaxed);

  if (g.has_bar)
    draw_bar_locked (done, now - g.start);
  else if (g.mode == PROGRESS_JSON) {
    json_t *data = json_pack ("{s:s,s:I,s:I}", "what", g.label,
                              "done", (json_int_t) done,
                              "total", (json_int_t) g.total);

    print_event_locked ("progress", data);
    json_decref (data);
  }
}

void
progress_begin (const char *label, uint64_t total)
{
  uint64_t now = clock_ns ();

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&g.lock);
  snprintf (g.label, sizeof g.label, "%s", label);
  g.total = total;
  g.start = now;
  g.done = 0;
  g.next_draw = now + g.interval;
  atomic_store (&g.is_active, g.has_bar || g.mode == PROGRESS_JSON);
}

void
progress_add (uint64_t n)
{
  uint64_t now, due;

  if (!atomic_load_explicit (&g.is_active, memory_order_relaxed))
    return;
  atomic_fetch_add_explicit (&g.done, n, memory_order_relaxed);
  now = clock_ns ();
  due = atomic_load_explicit (&g.next_draw, memory_order_relaxed);
  /* The thread that moves the time is the one that draws. */
  if (now < due
      || !atomic_compare_exchange_strong (&g.next_draw, &due,
                                          now + g.interval))
    return;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&g.lock);
  if (atomic_load (&g.is_active))
    draw_locked (now);
}

void
progress_end (void)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&g.lock);
  atomic_store (&g.is_active, false);
  clear_bar_locked ();
}
