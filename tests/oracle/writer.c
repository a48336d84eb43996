/* SPDX-License-Identifier: BSD-3-Clause */
/* The guest's threads.  Each works in a window of the disk for a while, then
 * in another, so that at any time some granules have just been written and
 * others long ago.  One small window is the same for all threads, so that
 * neighbouring sectors are written at the same time.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "range.h"
#include "writer.h"

#define MAX_CELLS 512           /* of one operation */
#define WINDOW_CELLS 2048
#define HOT_CELLS 64            /* of the window in which many meet */
#define WINDOW_OPS 100          /* operations before the next window */

struct writer {
  struct writers *writers;
  uint64_t random;
  pthread_t thread;
  unsigned disk;
  uint64_t window, window_len;
  char *buf;
};

struct writers {
  struct writers_options options;
  struct writer *threads;
  _Atomic bool is_stopping, has_failed;
};

static void
choose_cells (struct writer *w, uint64_t *cell, uint64_t *nr)
{
  const struct writers_options *o = &w->writers->options;

  if (w->window_len == 0 || next_random (&w->random) % WINDOW_OPS == 0) {
    w->disk = next_random (&w->random) % o->nr_disks;
    w->window_len = MIN (WINDOW_CELLS, o->nr_cells);
    w->window = next_random (&w->random) % (o->nr_cells - w->window_len + 1);
    if (next_random (&w->random) % 3 == 0) {
      w->window_len = MIN (HOT_CELLS, o->nr_cells);
      w->window = 0;
    }
  }
  switch (next_random (&w->random) % 8) {
  case 0:
    *nr = 1 + next_random (&w->random) % MAX_CELLS;
    break;
  case 1: case 2: case 3:
    *nr = 1 + next_random (&w->random) % 16;
    break;
  case 4: case 5:
    *nr = 8;
    break;
  default:
    *nr = 1;
  }
  *nr = MIN (*nr, w->window_len);
  *cell = w->window + next_random (&w->random) % (w->window_len - *nr + 1);
  if (next_random (&w->random) % 2)
    *cell = round_down (*cell, 8);
}

static enum op_kind
choose_kind (struct writer *w)
{
  switch (next_random (&w->random) % 16) {
  case 0: case 1: case 2: case 3:
    return OP_ZERO;
  case 4:
    return OP_READ;
  default:
    return OP_WRITE;
  }
}

static int
carry_out (struct writer *w, struct guest *g, uint32_t op, uint64_t off,
           uint64_t len, enum op_kind kind)
{
  struct history *h = w->writers->options.history;
  const unsigned how = next_random (&w->random) % 16;
  int r;

  switch (kind) {
  case OP_WRITE:
    history_fill (h, op, w->buf);
    return g->pwrite (g, w->disk, w->buf, len, off, how == 0);
  case OP_ZERO:
    /* A trim of whole blocks zeroes them; of less it may do nothing. */
    if (how < 8 && off % 4096 == 0 && len % 4096 == 0)
      return g->trim (g, w->disk, len, off);
    return g->zero (g, w->disk, len, off, how < 12);
  case OP_READ:
    break;
  }
  r = g->pread (g, w->disk, w->buf, len, off);
  if (r == 0 && !history_check_read (h, op, w->buf))
    r = -EILSEQ;
  return r;
}

static void
wait_for_turn (const struct timespec *start, unsigned rate, uint64_t n)
{
  const uint64_t ns = n * UINT64_C (1000000000) / rate
    + (uint64_t) start->tv_nsec;
  const struct timespec t = {
    .tv_sec = start->tv_sec + (time_t) (ns / 1000000000),
    .tv_nsec = (long) (ns % 1000000000),
  };

  /* Paces the load; nothing depends on it. */
  clock_nanosleep (CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static int
one_operation (struct writer *w, struct guest *g)
{
  struct history *h = w->writers->options.history;
  const enum op_kind kind = choose_kind (w);
  uint64_t cell, nr;
  uint32_t op;
  int r;

  if (next_random (&w->random) % 64 == 0)
    return g->flush (g, w->disk);
  choose_cells (w, &cell, &nr);
  op = history_begin (h, w->disk, cell, nr, kind);
  if (op == 0)
    return 0;
  r = carry_out (w, g, op, cell * CELL, nr * CELL, kind);
  if (r < 0)
    fprintf (stderr, "oracle: %s of disk %u, %llu+%llu: %s\n",
             kind == OP_READ ? "read" : kind == OP_ZERO ? "zero" : "write",
             w->disk, (unsigned long long) (cell * CELL),
             (unsigned long long) (nr * CELL), strerror (-r));
  history_end (h, op);
  return r;
}

static void *
writer_main (void *arg)
{
  struct writer *w = arg;
  const struct writers_options *o = &w->writers->options;
  struct guest *g = o->connect (o->opaque);
  struct timespec start;
  uint64_t n = 0;

  clock_gettime (CLOCK_MONOTONIC, &start);
  while (!atomic_load (&w->writers->is_stopping)) {
    if (one_operation (w, g) < 0) {
      atomic_store (&w->writers->has_failed, true);
      break;
    }
    if (o->rate)
      wait_for_turn (&start, o->rate, ++n);
  }
  g->close (g);
  return NULL;
}

struct writers *
writers_start (const struct writers_options *options)
{
  struct writers *w = calloc (1, sizeof *w);
  uint64_t random = options->seed;
  unsigned i;

  if (w)
    w->threads = calloc (options->nr_threads, sizeof *w->threads);
  if (w == NULL || w->threads == NULL)
    exit (1);
  w->options = *options;
  for (i = 0; i < options->nr_threads; i++) {
    w->threads[i].writers = w;
    w->threads[i].random = next_random (&random);
    w->threads[i].disk = i % options->nr_disks;
    w->threads[i].buf = malloc (MAX_CELLS * CELL);
    if (w->threads[i].buf == NULL
        || pthread_create (&w->threads[i].thread, NULL, writer_main,
                           &w->threads[i]) != 0) {
      fprintf (stderr, "oracle: cannot start the writers\n");
      exit (1);
    }
  }
  return w;
}

bool
writers_have_failed (const struct writers *w)
{
  return atomic_load (&w->has_failed);
}

bool
writers_stop (struct writers *w)
{
  bool ok;
  unsigned i;

  atomic_store (&w->is_stopping, true);
  for (i = 0; i < w->options.nr_threads; i++) {
    pthread_join (w->threads[i].thread, NULL);
    free (w->threads[i].buf);
  }
  ok = !w->has_failed;
  free (w->threads);
  free (w);
  return ok;
}
