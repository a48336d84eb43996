/* SPDX-License-Identifier: BSD-3-Clause */
/* How many layers of a read-only chain hold nothing at a guest offset, so that
 * reads near each other do not look into each layer again.
 *
 * Below the top all layers are read-only, and so is a top that is asked here:
 * what was found stays true.  A node remembers two windows, each as long as a
 * slice of its L2 tables (neighbouring windows do not displace each other), or
 * longer where many layers hold nothing at all.
 *
 * Invariant: the first depth layers of a window's cluster hold nothing of it.
 * More of them may: a layer of another geometry, one that ends within the
 * window or one that cannot be read is as far as a window sees.
 *
 * Any thread.  The locks of the node and of a layer are taken one at a time.
 */
#include "config.h"

#include <string.h>

#include "byteorder.h"
#include "qcow2.h"

/* Reads that are no further apart belong together. */
#define NEAR (UINT64_C (16) << 20)

struct qcow2 *
qcow2_layer_below (struct qcow2 *q, uint64_t off)
{
  struct blk *backing = q->blk.backing;

  if (!backing || backing->driver != &qcow2_driver
      || !blk_is_read_only (backing) || off >= blk_size (backing))
    return NULL;
  return qcow2_of (backing);
}

/* log2 of the clusters of a slice. */
static unsigned
slice_clusters_bits (const struct qcow2 *q)
{
  return q->slice_bits - q->l2_entry_bits;
}

/* Slices of both are of the same guest clusters, one word each. */
static bool
is_alike (const struct qcow2 *q, const struct qcow2 *layer)
{
  return q->cluster_bits == layer->cluster_bits
    && q->slice_bits == layer->slice_bits
    && !qcow2_is_extended (q) && !qcow2_is_extended (layer);
}

/* Go below the layer, which is depth layers down, for those of the first nr
 * clusters that it holds nothing of.  Returns true if there was one.
 */
static bool
descend (struct qcow2 *layer, struct qcow2_skip *w, uint16_t depth,
         uint64_t nr)
{
  const uint64_t index = w->off >> (layer->cluster_bits
                                    + slice_clusters_bits (layer));
  struct qcow2_slice *s;
  bool found = false;

  lock_acquire (&layer->lock);
  if (qcow2_meta_get (layer, QCOW2_L2, index, &s) == 0)
    for (uint64_t i = 0; i < nr; i++)
      if (w->depth[i] == depth
          && (!s || load_be64 (s->buf->bytes + i * 8) == 0)) {
        w->depth[i]++;
        found = true;
      }
  lock_release (&layer->lock);
  return found;
}

/* All clusters of the window begin at the same depth: that may be so for much
 * longer.  What must be read first is left out.
 */
static void
extend (struct qcow2 *q, struct qcow2_skip *w)
{
  uint64_t len = blk_size (&q->blk) - w->off;
  struct qcow2 *layer = q, *next;
  struct qcow2_run run;
  int error;

  for (unsigned d = 0; d < w->depth[0]; d++, layer = next) {
    next = qcow2_layer_below (layer, w->off);
    lock_acquire (&layer->lock);
    error = qcow2_map (layer, w->off, MIN (len, blk_size (&next->blk)
                                           - w->off), true, &run);
    lock_release (&layer->lock);
    if (error < 0 || run.type != QCOW2_UNALLOCATED)
      return;
    len = run.len;
  }
  w->len = MAX (w->len, len);
}

static void
look (struct qcow2 *q, uint64_t off, struct qcow2_skip *w)
{
  const uint64_t nr = UINT64_C (1) << slice_clusters_bits (q);
  const uint64_t span = nr << q->cluster_bits;
  struct qcow2 *layer = q, *next;
  uint64_t whole = nr;

  memset (w->depth, 0, sizeof w->depth);
  w->off = off / span * span;
  w->len = MIN (span, blk_size (&q->blk) - w->off);
  for (uint16_t d = 0; is_alike (q, layer); d++, layer = next) {
    next = qcow2_layer_below (layer, w->off);
    if (!next)
      break;
    whole = MIN (whole, (blk_size (&next->blk) - w->off) >> q->cluster_bits);
    if (!descend (layer, w, d, whole))
      break;
  }
  w->is_uniform = true;
  for (uint64_t i = 1; i < div_round_up (w->len, q->cluster_size); i++)
    w->is_uniform = w->is_uniform && w->depth[i] == w->depth[0];
  if (w->is_uniform && w->depth[0] > 0)
    extend (q, w);
}

/* The window that holds off, or NULL. */
static const struct qcow2_skip *
find_window (const struct qcow2 *q, uint64_t off)
{
  for (unsigned i = 0; i < 2; i++)
    if (off >= q->skips[i].off && off - q->skips[i].off < q->skips[i].len)
      return &q->skips[i];
  return NULL;
}

/* What w says of off, and for how many of the len bytes. */
static unsigned
depth_at (const struct qcow2 *q, const struct qcow2_skip *w, uint64_t off,
          uint64_t *len)
{
  uint64_t i = (off - w->off) >> q->cluster_bits, next = i + 1;
  const uint64_t end = MIN (w->off + w->len, off + *len);

  if (w->is_uniform) {
    *len = end - off;
    return w->depth[0];
  }
  while (w->off + (next << q->cluster_bits) < end
         && w->depth[next] == w->depth[i])
    next++;
  *len = MIN (end, w->off + (next << q->cluster_bits)) - off;
  return w->depth[i];
}

/* True if a window is known; else *is_near says if it is worth while to look
 * for one.
 */
static bool
ask (struct qcow2 *q, uint64_t off, uint64_t *len, unsigned *ret_depth,
     bool *is_near)
{
  const struct qcow2_skip *w;

  lock_acquire (&q->lock);
  w = find_window (q, off);
  if (w)
    *ret_depth = depth_at (q, w, off, len);
  *is_near = off - q->read_end + NEAR < 2 * NEAR;
  q->read_end = off + *len;
  lock_release (&q->lock);
  return w != NULL;
}

unsigned
qcow2_skip (struct qcow2 *q, uint64_t off, uint64_t *len, bool is_nowait)
{
  struct qcow2_skip w;
  unsigned depth = 0;
  bool is_near;

  if (ask (q, off, len, &depth, &is_near) || is_nowait || !is_near)
    return depth;
  look (q, off, &w);
  lock_acquire (&q->lock);
  q->skips[(w.off >> (q->cluster_bits + slice_clusters_bits (q))) & 1] = w;
  lock_release (&q->lock);
  return depth_at (q, &w, off, len);
}
