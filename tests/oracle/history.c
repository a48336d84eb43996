/* SPDX-License-Identifier: BSD-3-Clause */
/* The oracle's memory, and its judgement of a point.
 *
 * A point was taken at some moment t between "open" and "returned".  What a
 * backup shows is right if and only if there is such a t so that
 *
 *   - every cell shows a version that had begun before t and whose successor
 *     had not ended before t (an operation in flight at t may be in or out),
 *   - an operation is in with all its cells, or out with all of them (I5),
 *   - hence: every operation that is in had begun, and every one that is out
 *     had not ended, before t.
 *
 * The last is one comparison over all cells of all disks: the latest beginning
 * of what is in against the earliest end of what is out.  It says that the
 * operations can be put in a line that respects what the writers saw, with the
 * point somewhere in it.
 *
 * Zero cells do not name their operation; where several versions would do they
 * are left out of the last two conditions.
 */
#include "config.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "history.h"
#include "range.h"

#define WORDS (CELL / sizeof (uint64_t))
#define OPS_PER_CHUNK 65536
#define MAX_CHUNKS 4096
#define MAX_POINTS 16
#define NEVER UINT64_MAX
#define MAX_COMPLAINTS 10

/* Content of a cell: what find_op returns when it is no operation's. */
#define FOUND_ZERO UINT32_C (0)
#define FOUND_GARBAGE UINT32_MAX

struct op {
  uint64_t start, end;          /* ticks; end NEVER = in flight */
  uint64_t cell, nr;
  unsigned disk;
  enum op_kind kind;
  /* Which point has last looked at it, and what it saw. */
  uint32_t seen_by;
  bool is_in;
};

struct cell {
  uint32_t *versions;           /* operations; the first is the oldest that
                                   is still of interest */
  uint32_t len, cap;
  bool is_claimed;
};

struct history_point {
  struct history *h;
  uint32_t number;
  uint64_t open, returned;
  uint64_t latest_in, earliest_out;
  uint32_t latest_in_op, earliest_out_op;
  unsigned nr_complaints;
};

struct history {
  /* Fixed. */
  uint64_t seed;
  unsigned nr_disks;
  uint64_t nr_cells;

  pthread_mutex_t lock;
  /* Protected by lock. */
  uint64_t tick;
  struct cell *cells;
  struct op *chunks[MAX_CHUNKS];
  uint32_t nr_ops;              /* number 0 is the state at the start */
  struct history_point *points[MAX_POINTS];
  uint32_t nr_points;           /* ever */
};

static void *
xcalloc (size_t n, size_t size)
{
  void *p = calloc (n, size);

  if (p == NULL) {
    fprintf (stderr, "oracle: out of memory\n");
    exit (1);
  }
  return p;
}

static struct op *
get_op (const struct history *h, uint32_t n)
{
  return &h->chunks[n / OPS_PER_CHUNK][n % OPS_PER_CHUNK];
}

static struct op *
new_op (struct history *h, uint32_t *ret)
{
  const uint32_t chunk = h->nr_ops / OPS_PER_CHUNK;

  if (chunk == MAX_CHUNKS) {
    fprintf (stderr, "oracle: too many operations\n");
    exit (1);
  }
  if (h->chunks[chunk] == NULL)
    h->chunks[chunk] = xcalloc (OPS_PER_CHUNK, sizeof (struct op));
  *ret = h->nr_ops++;
  return get_op (h, *ret);
}

static struct cell *
get_cell (const struct history *h, unsigned disk, uint64_t cell)
{
  return &h->cells[disk * h->nr_cells + cell];
}

static void
add_version (struct cell *c, uint32_t op)
{
  if (c->len == c->cap) {
    c->cap = c->cap ? c->cap * 2 : 2;
    c->versions = realloc (c->versions, c->cap * sizeof c->versions[0]);
    if (c->versions == NULL)
      exit (1);
  }
  c->versions[c->len++] = op;
}

struct history *
history_new (uint64_t seed, unsigned nr_disks, uint64_t nr_cells)
{
  struct history *h = xcalloc (1, sizeof *h);
  uint64_t i;
  uint32_t n;
  struct op *op;

  h->seed = seed;
  h->nr_disks = nr_disks;
  h->nr_cells = nr_cells;
  pthread_mutex_init (&h->lock, NULL);
  h->cells = xcalloc (nr_disks * nr_cells, sizeof *h->cells);
  op = new_op (h, &n);
  op->kind = OP_ZERO;
  op->start = op->end = h->tick++;
  for (i = 0; i < nr_disks * nr_cells; i++)
    add_version (&h->cells[i], n);
  return h;
}

void
history_free (struct history *h)
{
  uint64_t i;

  for (i = 0; i < h->nr_disks * h->nr_cells; i++)
    free (h->cells[i].versions);
  for (i = 0; i < MAX_CHUNKS; i++)
    free (h->chunks[i]);
  free (h->cells);
  pthread_mutex_destroy (&h->lock);
  free (h);
}

/* The tick before which nothing is asked any more. */
static uint64_t
horizon_locked (const struct history *h)
{
  uint64_t t = h->tick;
  unsigned i;

  for (i = 0; i < MAX_POINTS; i++)
    if (h->points[i])
      t = MIN (t, h->points[i]->open);
  return t;
}

/* Drop versions that no open or later point can show. */
static void
prune_locked (const struct history *h, struct cell *c, uint64_t horizon)
{
  uint32_t i;

  for (i = c->len - 1; i > 0 && get_op (h, c->versions[i])->end > horizon;
       i--)
    ;
  if (i > 0) {
    c->len -= i;
    memmove (c->versions, c->versions + i, c->len * sizeof c->versions[0]);
  }
}

uint32_t
history_begin (struct history *h, unsigned disk, uint64_t cell, uint64_t nr,
               enum op_kind kind)
{
  uint64_t i, horizon;
  struct cell *c;
  struct op *op;
  uint32_t n = 0;

  pthread_mutex_lock (&h->lock);
  for (i = 0; i < nr; i++)
    if (get_cell (h, disk, cell + i)->is_claimed)
      break;
  if (i == nr) {
    op = new_op (h, &n);
    op->start = h->tick++;
    op->end = NEVER;
    op->disk = disk;
    op->cell = cell;
    op->nr = nr;
    op->kind = kind;
    horizon = horizon_locked (h);
    for (i = 0; i < nr; i++) {
      c = get_cell (h, disk, cell + i);
      c->is_claimed = true;
      if (kind == OP_READ)
        continue;
      if (c->len == c->cap)
        prune_locked (h, c, horizon);
      add_version (c, n);
    }
  }
  pthread_mutex_unlock (&h->lock);
  return n;
}

static uint64_t
mix (uint64_t seed, uint32_t op, unsigned disk, uint64_t cell)
{
  uint64_t state = seed ^ (uint64_t) op << 32 ^ (uint64_t) disk << 28 ^ cell;

  return next_random (&state);
}

/* Words: operation and disk, cell, then what follows from them. */
static void
fill_cell (const struct history *h, uint32_t op, unsigned disk, uint64_t cell,
           uint64_t *words)
{
  const uint64_t first = mix (h->seed, op, disk, cell);
  size_t i;

  words[0] = (uint64_t) op << 32 | disk;
  words[1] = cell;
  for (i = 2; i < WORDS; i++)
    words[i] = first + i * UINT64_C (0x2545f4914f6cdd1d);
}

/* The operation that has written this at this place. */
static uint32_t
find_op (const struct history *h, unsigned disk, uint64_t cell,
         const uint64_t *words)
{
  uint64_t want[WORDS];

  if (words[0] == 0)
    return is_zero_buffer (words, CELL) ? FOUND_ZERO : FOUND_GARBAGE;
  fill_cell (h, words[0] >> 32, disk, cell, want);
  return memcmp (words, want, CELL) == 0 ? words[0] >> 32 : FOUND_GARBAGE;
}

void
history_fill (const struct history *h, uint32_t n, void *buf)
{
  const struct op *op = get_op (h, n);
  uint64_t i;

  for (i = 0; i < op->nr; i++)
    fill_cell (h, n, op->disk, op->cell + i,
               (uint64_t *) buf + i * WORDS);
}

bool
history_check_read (struct history *h, uint32_t n, const void *buf)
{
  const struct op *op = get_op (h, n);
  const struct cell *c;
  uint32_t found, want;
  bool ok = true;
  uint64_t i;

  /* The cells are claimed: their versions stand still. */
  for (i = 0; ok && i < op->nr; i++) {
    c = get_cell (h, op->disk, op->cell + i);
    want = c->versions[c->len - 1];
    found = find_op (h, op->disk, op->cell + i,
                     (const uint64_t *) buf + i * WORDS);
    ok = get_op (h, want)->kind == OP_ZERO ? found == FOUND_ZERO
      : found == want;
    if (!ok)
      fprintf (stderr, "oracle: disk %u, byte %" PRIu64 ": the guest reads"
               " what operation %" PRIu32 " wrote, not %" PRIu32 "\n",
               op->disk, (op->cell + i) * CELL, found, want);
  }
  return ok;
}

void
history_end (struct history *h, uint32_t n)
{
  struct op *op;
  uint64_t i;

  pthread_mutex_lock (&h->lock);
  op = get_op (h, n);
  op->end = h->tick++;
  for (i = 0; i < op->nr; i++)
    get_cell (h, op->disk, op->cell + i)->is_claimed = false;
  pthread_mutex_unlock (&h->lock);
}

uint64_t
history_count (struct history *h)
{
  uint64_t n;

  pthread_mutex_lock (&h->lock);
  n = h->nr_ops;
  pthread_mutex_unlock (&h->lock);
  return n;
}

struct history_point *
history_point_open (struct history *h)
{
  struct history_point *p = xcalloc (1, sizeof *p);
  unsigned i;

  p->h = h;
  p->earliest_out = NEVER;
  pthread_mutex_lock (&h->lock);
  for (i = 0; i < MAX_POINTS && h->points[i]; i++)
    ;
  if (i == MAX_POINTS) {
    fprintf (stderr, "oracle: too many points at once\n");
    exit (1);
  }
  h->points[i] = p;
  p->number = ++h->nr_points;
  p->open = h->tick++;
  p->returned = NEVER;
  pthread_mutex_unlock (&h->lock);
  return p;
}

void
history_point_returned (struct history_point *p)
{
  pthread_mutex_lock (&p->h->lock);
  p->returned = p->h->tick++;
  pthread_mutex_unlock (&p->h->lock);
}

static void
print_op (const struct history *h, const char *what, uint32_t n)
{
  static const char *const kinds[] = { "write", "zero", "read" };
  const struct op *op = get_op (h, n);

  fprintf (stderr, "oracle:   %s: operation %" PRIu32 ", %s %" PRIu64 "+%"
           PRIu64 " of disk %u, began at %" PRIu64, what, n, kinds[op->kind],
           op->cell * CELL, op->nr * CELL, op->disk, op->start);
  if (op->end == NEVER)
    fprintf (stderr, ", in flight\n");
  else
    fprintf (stderr, ", ended at %" PRIu64 "\n", op->end);
}

static void
complain (struct history_point *p, unsigned disk, uint64_t cell,
          const char *what)
{
  if (p->nr_complaints++ < MAX_COMPLAINTS)
    fprintf (stderr, "oracle: point %" PRIu32 " (asked for at %" PRIu64
             ", taken by %" PRIu64 "), disk %u, byte %" PRIu64 ": %s\n",
             p->number, p->open, p->returned, disk, cell * CELL, what);
}

/* The operation is in the point, or it is not. */
static void
note (struct history_point *p, uint64_t cell, uint32_t n, bool is_in)
{
  struct op *op = get_op (p->h, n);

  if (op->seen_by == p->number && op->is_in != is_in) {
    complain (p, op->disk, cell, "only a part of an operation is in");
    print_op (p->h, "torn", n);
  }
  op->seen_by = p->number;
  op->is_in = is_in;
  if (is_in && op->start > p->latest_in) {
    p->latest_in = op->start;
    p->latest_in_op = n;
  }
  if (!is_in && op->end < p->earliest_out) {
    p->earliest_out = op->end;
    p->earliest_out_op = n;
  }
}

/* Versions lo .. hi of the cell may show; found is what does. */
static void
check_cell_locked (struct history_point *p, unsigned disk, uint64_t cell,
                   uint32_t found)
{
  const struct cell *c = get_cell (p->h, disk, cell);
  uint32_t lo, hi, i, k = 0, nr_matches = 0;
  const struct op *op;

  for (hi = c->len - 1;
       hi > 0 && get_op (p->h, c->versions[hi])->start > p->returned; hi--)
    ;
  for (lo = hi; lo > 0 && get_op (p->h, c->versions[lo])->end > p->open; lo--)
    ;
  for (i = lo; i <= hi; i++) {
    op = get_op (p->h, c->versions[i]);
    if (op->kind == OP_ZERO ? found == FOUND_ZERO : found == c->versions[i]) {
      k = i;
      nr_matches++;
    }
  }
  if (nr_matches == 0) {
    complain (p, disk, cell, found == FOUND_GARBAGE ? "garbage"
              : found == FOUND_ZERO ? "unexpected zeroes"
              : "the wrong version");
    if (p->nr_complaints < MAX_COMPLAINTS) {
      if (found != FOUND_GARBAGE && found < p->h->nr_ops)
        print_op (p->h, "shows", found);
      print_op (p->h, "at least", c->versions[lo]);
      print_op (p->h, "at most", c->versions[hi]);
    }
  }
  if (nr_matches == 1)
    for (i = lo; i <= hi; i++)
      note (p, cell, c->versions[i], i <= k);
}

bool
history_point_check (struct history_point *p, unsigned disk, uint64_t cell,
                     uint64_t nr, const void *buf)
{
  const unsigned before = p->nr_complaints;
  uint32_t found;
  uint64_t i;

  for (i = 0; i < nr; i++) {
    found = find_op (p->h, disk, cell + i, (const uint64_t *) buf + i * WORDS);
    pthread_mutex_lock (&p->h->lock);
    check_cell_locked (p, disk, cell + i, found);
    pthread_mutex_unlock (&p->h->lock);
  }
  return p->nr_complaints == before;
}

bool
history_point_verdict (struct history_point *p)
{
  bool ok;

  if (p->latest_in > p->earliest_out) {
    complain (p, 0, 0, "no moment at which all of this was so");
    print_op (p->h, "in", p->latest_in_op);
    print_op (p->h, "out", p->earliest_out_op);
  }
  ok = p->nr_complaints == 0;
  if (p->nr_complaints > MAX_COMPLAINTS)
    fprintf (stderr, "oracle: point %" PRIu32 ": %u complaints in all\n",
             p->number, p->nr_complaints);
  history_point_close (p);
  return ok;
}

void
history_point_close (struct history_point *p)
{
  struct history *h = p->h;
  unsigned i;

  pthread_mutex_lock (&h->lock);
  for (i = 0; i < MAX_POINTS; i++)
    if (h->points[i] == p)
      h->points[i] = NULL;
  pthread_mutex_unlock (&h->lock);
  free (p);
}
