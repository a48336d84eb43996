/* SPDX-License-Identifier: BSD-3-Clause */
/* What can be asked of the bitmaps of a disk: any thread at any time, under the
 * lock; the bits are walked without it, on a reference.
 *
 * I7 (part): a bitmap that has been removed or is inconsistent has no extents:
 *     doubt is an error, never clean.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dirty-private.h"

/* Why it is as good as inconsistent although its state does not say so yet; ""
 * if it is not.  One that is frozen goes on until it is given back.
 */
static void
current_loss_locked (const struct dirty_bitmap *bm,
                     char ret[STORE_REASON_SIZE])
{
  ret[0] = '\0';
  if (bm->state == DIRTY_RECORDING || bm->state == DIRTY_DISABLED)
    dirty_loss_locked (bm, ret);
}

static int
get_info_locked (const struct dirty_bitmap *bm, struct dirty_info *ret)
{
  lock_assert_held (&bm->set->lock);
  dirty_assert_state (bm);
  memset (ret, 0, sizeof *ret);
  ret->name = strdup (bm->name);
  if (ret->name == NULL)
    return -ENOMEM;
  ret->granularity = bm->granularity;
  ret->dirty_bytes = bitmap_dirty_bytes (bm->bits->bitmap);
  if (bm->successor)
    ret->dirty_bytes = MIN (ret->dirty_bytes
                            + bitmap_dirty_bytes (bm->successor->bitmap),
                            bitmap_size (bm->bits->bitmap));
  ret->state = bm->state;
  ret->is_recording = bm->state == DIRTY_RECORDING || bm->was_recording;
  ret->is_busy = bm->state == DIRTY_FROZEN || bm->is_used;
  ret->is_persistent = bm->is_persistent;
  ret->base = bm->base;
  ret->over_estimate = bm->over_estimate;
  memcpy (ret->reason, bm->reason, sizeof ret->reason);
  if (bm->state != DIRTY_INCONSISTENT)
    current_loss_locked (bm, ret->reason);
  if (ret->reason[0]) {
    ret->state = DIRTY_INCONSISTENT;
    ret->is_recording = false;
  }
  return 0;
}

int
dirty_list (struct dirty *d, struct dirty_info **ret, size_t *ret_nr)
{
  struct dirty_info *infos;
  size_t i;
  int r;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  infos = calloc (d->bitmaps.len + 1, sizeof *infos);
  if (infos == NULL)
    return -ENOMEM;
  for (i = 0; i < d->bitmaps.len; i++) {
    r = get_info_locked (d->bitmaps.ptr[i], &infos[i]);
    if (r < 0) {
      dirty_infos_free (infos, i);
      return r;
    }
  }
  *ret = infos;
  *ret_nr = d->bitmaps.len;
  return 0;
}

void
dirty_infos_free (struct dirty_info *infos, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++)
    free (infos[i].name);
  free (infos);
}

int
dirty_get_info (struct dirty_bitmap *bm, struct dirty_info *ret)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&bm->set->lock);

  return bm->is_removed ? -ENOENT : get_info_locked (bm, ret);
}

bool
dirty_is_inconsistent (struct dirty_bitmap *bm)
{
  char reason[STORE_REASON_SIZE];
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&bm->set->lock);

  current_loss_locked (bm, reason);
  return bm->state == DIRTY_INCONSISTENT || reason[0];
}

/* The first run of [off, end) that is dirty in bits, empty at the end if
 * there is none.  *run is kept while it is still ahead of off.
 */
static void
advance (const struct bits *bits, uint64_t off, uint64_t end,
         struct range *run)
{
  if (run->len > 0 && run->off + run->len > off)
    return;
  if (bits == NULL || !bitmap_next_dirty (bits->bitmap, off, end - off, run)) {
    run->off = end;
    run->len = 1;
  }
}

/* Runs of a or b, which overlap as they like: the list merges neighbours. */
static int
append_runs (const struct bits *a, const struct bits *b, uint64_t off,
             uint64_t end, struct extents *extents)
{
  struct range run_a = { 0, 0 }, run_b = { 0, 0 };
  const struct range *run;
  uint64_t stop;
  int r;

  while (off < end) {
    advance (a, off, end, &run_a);
    advance (b, off, end, &run_b);
    run = run_a.off <= run_b.off ? &run_a : &run_b;
    stop = MIN (run->off + run->len, end);
    if (run->off > off) {
      r = extents_add (extents, off, run->off - off, 0);
      if (r != 0)
        return MIN (r, 0);
      off = run->off;
    }
    r = extents_add (extents, off, stop - off, EXTENT_DIRTY);
    if (r != 0)
      return MIN (r, 0);
    off = stop;
  }
  return 0;
}

/* is_frozen: the frozen bits alone. */
static int
extents_of (struct dirty_bitmap *bm, bool is_frozen, uint64_t len,
            uint64_t off, struct extents *extents)
{
  struct bits *a = NULL, *b = NULL;
  int r = 0;

  lock_acquire (&bm->set->lock);
  if (bm->is_removed || bm->state == DIRTY_INCONSISTENT ||
      (is_frozen && bm->state != DIRTY_FROZEN))
    r = -ESTALE;
  else if (!range_is_within (off, len, bm->set->size))
    r = -EINVAL;
  else {
    a = dirty_bits_ref (bm->bits);
    if (!is_frozen)
      b = dirty_bits_ref (bm->successor);
  }
  lock_release (&bm->set->lock);
  if (r == 0)
    r = append_runs (a, b, off, off + len, extents);
  dirty_bits_unref (a);
  dirty_bits_unref (b);
  return r;
}

int
dirty_extents (struct dirty_bitmap *bm, uint64_t len, uint64_t off,
               struct extents *extents)
{
  return extents_of (bm, false, len, off, extents);
}

int
dirty_frozen_extents (struct dirty_bitmap *bm, uint64_t len, uint64_t off,
                      struct extents *extents)
{
  return extents_of (bm, true, len, off, extents);
}
