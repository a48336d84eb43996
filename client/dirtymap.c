/* SPDX-License-Identifier: BSD-3-Clause */
/* What to pull.  Called by the thread that prefetches a pull's map, or by the
 * main thread.
 *
 * I7: in a dirty context doubt is dirty or an error, never clean.  A reply
 * that covers less than was asked for is asked on from where its shortest
 * list ends; a context without an answer is an error of blk-nbd.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "blk-nbd.h"
#include "dirtymap.h"
#include "range.h"

/* Extents of one request that are looked at; the rest is asked for again. */
#define MAX_EXTENTS 65536
/* Status of this much is asked for at once. */
#define MAX_REQUEST (UINT64_C (1) << 40)

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

struct dirty_map {
  struct dirty_map_options options;
  uint64_t size, off;
  struct dirty_rounder rounder;
  struct extents lists[2];      /* base:allocation, dirty */
};

int
dirty_map_new (const struct dirty_map_options *options,
               struct dirty_map **ret)
{
  struct dirty_map *m = calloc (1, sizeof *m);

  if (!m)
    return -ENOMEM;
  m->options = *options;
  if (!m->options.status)
    m->options.status = blk_nbd_block_status;
  m->size = blk_size (options->blk);
  m->off = options->start;
  m->rounder.cluster_size = options->cluster_size;
  m->rounder.skip_zero = options->skip_zero;
  extents_init (&m->lists[0], MAX_EXTENTS);
  extents_init (&m->lists[1], MAX_EXTENTS);
  *ret = m;
  return 0;
}

void
dirty_map_free (struct dirty_map *m)
{
  if (!m)
    return;
  extents_free (&m->lists[0]);
  extents_free (&m->lists[1]);
  free (m);
}

/* Walk both lists side by side from m->off to end. */
static int
add_lists (struct dirty_map *m, uint64_t end, struct dirty_runs *runs)
{
  const struct extent *zero = m->lists[0].ptr, *dirty = m->lists[1].ptr;
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

int
dirty_map_next (struct dirty_map *m, struct dirty_runs *runs,
                struct error *err)
{
  size_t nr_lists = m->options.is_incremental ? 2 : 1, i;
  uint64_t len = MIN (m->size - m->off, MAX_REQUEST), covered;
  int r;

  if (len == 0) {
    if (dirty_rounder_end (&m->rounder, m->size, runs) < 0)
      return error_set_errno (err, ENOMEM, "map");
    return 0;
  }
  for (i = 0; i < nr_lists; i++)
    extents_clear (&m->lists[i]);
  r = m->options.status (m->options.blk, len, m->off, m->lists, nr_lists);
  if (r < 0)
    return error_set_errno (err, -r, "%s: block status at offset %ju",
                            m->options.blk->name, (uintmax_t) m->off);
  for (i = 0; i < nr_lists; i++) {
    covered = extents_length (&m->lists[i]);
    if (covered == 0 || m->lists[i].ptr[0].off != m->off)
      return error_set (err, EPROTO, "%s: the server's block status does not "
                        "cover offset %ju", m->options.blk->name,
                        (uintmax_t) m->off);
    len = MIN (len, covered);
  }
  if (add_lists (m, m->off + len, runs) < 0)
    return error_set_errno (err, ENOMEM, "map");
  return 1;
}
