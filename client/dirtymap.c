/* SPDX-License-Identifier: BSD-3-Clause */
/* What to pull.  Called by the thread that prefetches a pull's map, or by the
 * main thread.
 *
 * The disk is asked for in pieces, of which several are under way at once, so
 * that a far server's map comes in a few round trips; from a server with
 * extended headers in one piece that is as large.  How much is asked for at
 * once follows what the last answers held: all their extents together are
 * bounded, and what comes after a piece whose answer is short is dropped and
 * asked for again, which must not happen often.
 *
 * I7: in a dirty context doubt is dirty or an error, never clean.  A reply
 * that covers less than was asked for is asked on from where its shortest
 * list ends; a context without an answer is an error of blk-nbd.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "clock.h"
#include "dirtymap.h"
#include "range.h"

/* What one request is about: fits 32 bits and is a multiple of any cluster. */
#define PIECE UINT64_C (0xffe00000)
/* Pieces that are asked for at once, at first and at most: with 256 of them a
 * round trip brings a TiB.
 */
#define FIRST_DEPTH 4
#define MAX_DEPTH 256
/* One wide piece instead counts for as many, and may grow faster: what it costs
 * if the answer is short is the server's limit and not the piece.
 */
#define MAX_WIDE_DEPTH (1u << 24)
#define GROWTH 2
#define WIDE_GROWTH 8
/* Extents of all of them that are looked at; the rest is asked for again. */
#define MAX_EXTENTS 32768
/* A server that takes longer gets less to do at once: whoever watches the
 * connection is not to take it for lost.
 */
#define SLOW_MS 1000

static int
emit (const struct dirty_rounder *r, uint64_t off, uint64_t len, bool is_zero,
      struct dirty_runs *runs)
{
  struct dirty_run *last = runs->len ? &runs->ptr[runs->len - 1] : NULL;

  if (is_zero && r->skip_zero)
    return 0;
  if (last && last->off + last->len == off && last->is_zero == is_zero) {
    last->len += len;
    return 0;
  }
  return dirty_runs_append (runs, (struct dirty_run) {
    .off = off, .len = len, .is_zero = is_zero });
}

static int
close_cluster (struct dirty_rounder *r, uint64_t end, struct dirty_runs *runs)
{
  if (!r->has_cluster)
    return 0;
  r->has_cluster = false;
  return r->is_dirty ? emit (r, r->cluster, end - r->cluster, r->is_zero, runs)
    : 0;
}

/* A piece that lies within one cluster. */
static void
add_part (struct dirty_rounder *r, uint64_t off, bool is_dirty, bool is_zero)
{
  if (!r->has_cluster) {
    r->has_cluster = true;
    r->cluster = round_down (off, r->cluster_size);
    r->is_dirty = false;
    r->is_zero = true;
  }
  r->is_dirty |= is_dirty;
  r->is_zero &= is_zero;
}

int
dirty_rounder_add (struct dirty_rounder *r, uint64_t off, uint64_t len,
                   bool is_dirty, bool is_zero, struct dirty_runs *runs)
{
  uint64_t end = off + len, next, whole;
  int e = 0;

  while (off < end && e == 0) {
    if (off == round_down (off, r->cluster_size)) {
      e = close_cluster (r, off, runs);
      /* All whole clusters at once. */
      whole = round_down (end - off, r->cluster_size);
      if (e == 0 && whole > 0 && is_dirty)
        e = emit (r, off, whole, is_zero, runs);
      off += whole;
      if (off == end)
        break;
    }
    next = MIN (end, round_down (off, r->cluster_size) + r->cluster_size);
    add_part (r, off, is_dirty, is_zero);
    off = next;
  }
  return e;
}

int
dirty_rounder_end (struct dirty_rounder *r, uint64_t end,
                   struct dirty_runs *runs)
{
  return close_cluster (r, end, runs);
}

/* One request: base:allocation, dirty. */
struct piece {
  struct extents lists[2];
};

struct dirty_map {
  struct dirty_map_options options;
  size_t nr_lists;
  uint64_t size, off;
  struct dirty_rounder rounder;
  bool is_wide;                 /* one request can be about everything */
  unsigned depth;               /* so much is asked for next, in PIECEs */
  struct blk_nbd_range ranges[MAX_DEPTH];
  struct piece pieces[MAX_DEPTH];
};

int
dirty_map_new (const struct dirty_map_options *options,
               struct dirty_map **ret)
{
  struct dirty_map *m = calloc (1, sizeof *m);

  if (!m)
    return -ENOMEM;
  m->options = *options;
  if (!m->options.status) {
    m->options.status = blk_nbd_block_status_many;
    m->options.max_status = blk_nbd_max_status (options->blk);
  }
  m->is_wide = m->options.max_status >= RANGE_MAX_SIZE;
  m->nr_lists = options->is_incremental ? 2 : 1;
  m->size = blk_size (options->blk);
  m->off = options->start;
  m->depth = FIRST_DEPTH;
  m->rounder.cluster_size = options->cluster_size;
  m->rounder.skip_zero = options->skip_zero;
  *ret = m;
  return 0;
}

static void
free_pieces (struct dirty_map *m)
{
  size_t i, j;

  for (i = 0; i < MAX_DEPTH; i++)
    for (j = 0; j < m->nr_lists; j++)
      extents_free (&m->pieces[i].lists[j]);
}

void
dirty_map_free (struct dirty_map *m)
{
  if (m)
    free_pieces (m);
  free (m);
}

/* Walk both lists side by side from m->off to end. */
static int
add_lists (struct dirty_map *m, const struct piece *p, uint64_t end,
           struct dirty_runs *runs)
{
  const struct extent *zero = p->lists[0].ptr, *dirty = p->lists[1].ptr;
  uint64_t next;
  int r = 0;

  while (m->off < end && r == 0) {
    next = MIN (end, zero->off + zero->len);
    if (m->options.is_incremental)
      next = MIN (next, dirty->off + dirty->len);
    r = dirty_rounder_add (&m->rounder, m->off, next - m->off,
                           !m->options.is_incremental
                           || dirty->value & EXTENT_DIRTY,
                           zero->value & EXTENT_ZERO, runs);
    m->off = next;
    if (zero->off + zero->len == next)
      zero++;
    if (m->options.is_incremental && dirty->off + dirty->len == next)
      dirty++;
  }
  return r;
}

/* Ask for what follows m->off. */
static int
ask (struct dirty_map *m, size_t *ret_nr, struct error *err)
{
  const unsigned most = m->is_wide ? 1 : m->depth;
  const uint64_t piece = m->depth / most * PIECE;
  uint64_t off = m->off;
  size_t nr, j;
  int r;

  free_pieces (m);
  for (nr = 0; nr < most && off < m->size; nr++) {
    m->ranges[nr] = (struct blk_nbd_range) {
      .off = off, .len = MIN (m->size - off, piece),
      .lists = m->pieces[nr].lists,
    };
    for (j = 0; j < m->nr_lists; j++)
      extents_init (&m->pieces[nr].lists[j], MAX_EXTENTS / most);
    off += m->ranges[nr].len;
  }
  *ret_nr = nr;
  r = m->options.status (m->options.blk, m->ranges, nr, m->nr_lists);
  return r < 0 ? error_set_errno (err, -r, "%s: block status at offset %ju",
                                  m->options.blk->name, (uintmax_t) m->off)
    : 0;
}

/* Take piece i, which begins at m->off.  1, 0 if its answer is short, -errno.
 */
static int
take (struct dirty_map *m, size_t i, struct dirty_runs *runs,
      struct error *err)
{
  const struct piece *p = &m->pieces[i];
  uint64_t len = m->ranges[i].len, covered;
  size_t j;

  for (j = 0; j < m->nr_lists; j++) {
    covered = extents_length (&p->lists[j]);
    if (covered == 0 || p->lists[j].ptr[0].off != m->off)
      return error_set (err, EPROTO, "%s: the server's block status does not "
                        "cover offset %ju", m->options.blk->name,
                        (uintmax_t) m->off);
    len = MIN (len, covered);
  }
  if (add_lists (m, p, m->off + len, runs) < 0)
    return error_set_errno (err, ENOMEM, "map");
  return len == m->ranges[i].len;
}

/* The most extents of one list of the first nr pieces, for each PIECE. */
static uint64_t
most_extents (const struct dirty_map *m, size_t nr, uint64_t taken)
{
  size_t i, j, most = 1;

  for (i = 0; i < nr; i++)
    for (j = 0; j < m->nr_lists; j++)
      most = MAX (most, m->pieces[i].lists[j].len);
  return m->is_wide ? div_round_up (most * PIECE, taken) : most;
}

/* nr pieces have been taken, perhaps the last of them in part: so many bytes.
 */
static void
set_depth (struct dirty_map *m, size_t nr, uint64_t taken, bool is_short,
           int64_t ms)
{
  const uint64_t done = m->is_wide ? taken / PIECE : nr;
  uint64_t fit = MAX_EXTENTS / (2 * most_extents (m, nr, taken));
  uint64_t next = is_short || ms > SLOW_MS ? done / 2
    : m->depth * (uint64_t) (m->is_wide ? WIDE_GROWTH : GROWTH);

  next = MIN (MIN (next, fit), m->is_wide ? MAX_WIDE_DEPTH : MAX_DEPTH);
  m->depth = (unsigned) MAX (next, 1);
}

int
dirty_map_next (struct dirty_map *m, struct dirty_runs *runs,
                struct error *err)
{
  const uint64_t begin = m->off;
  int64_t start = clock_ms ();
  size_t nr, i;
  int r;

  if (m->off == m->size) {
    if (dirty_rounder_end (&m->rounder, m->size, runs) < 0)
      return error_set_errno (err, ENOMEM, "map");
    return 0;
  }
  r = ask (m, &nr, err);
  if (r < 0)
    return r;
  for (i = 0, r = 1; i < nr && r > 0; i++)
    r = take (m, i, runs, err);
  if (r < 0)
    return r;
  set_depth (m, i, m->off - begin, r == 0, clock_ms () - start);
  return 1;
}
