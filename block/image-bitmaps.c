/* SPDX-License-Identifier: BSD-3-Clause */
/* Between the bitmaps of a live disk and those that its qcow2 image stores:
 * loaded at open, stored at a clean close, so that QEMU can take the disk over
 * and hand it back.  While the disk is open the image says that none of them
 * can be trusted.
 *
 * I1: a bitmap that QEMU or we left in use, or that is damaged, is loaded as
 * inconsistent, never as one that records.
 *
 * Called by the thread that opens or closes the disk.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "image-bitmaps.h"
#include "log.h"
#include "qcow2-bitmap.h"

static bool
is_known (struct dirty *d, const char *name)
{
  struct dirty_bitmap *bm = dirty_find (d, name);

  if (bm == NULL)
    return false;
  dirty_unref (bm);
  return true;
}

/* A bitmap that nobody can use is shown, so that it can be removed. */
static int
load_inconsistent (struct dirty *d, const struct qcow2_bitmap *bm,
                   const char *reason, struct error *err)
{
  uint64_t granularity = bm->granularity ? bm->granularity
    : DIRTY_DEFAULT_GRANULARITY;

  return dirty_load (d, bm->name, granularity, NULL, DIRTY_INCONSISTENT,
                     reason, true, err);
}

static int
load_one (struct blk *node, struct dirty *d, const struct qcow2_bitmap *bm,
          struct error *err)
{
  enum dirty_state state = bm->flags & QCOW2_BITMAP_AUTO ? DIRTY_RECORDING
    : DIRTY_DISABLED;
  struct error why = ERROR_INIT;
  struct bitmap *bits;
  int r;

  if (bm->unusable[0])
    return load_inconsistent (d, bm, bm->unusable, err);
  if ((bm->flags & QCOW2_BITMAP_IN_USE) && dirty_store_knows (d, bm->name))
    return 0;
  if (bm->flags & QCOW2_BITMAP_IN_USE)
    return load_inconsistent (d, bm, "it was not saved to the image when the"
                              " disk was last closed", err);
  r = qcow2_bitmap_load (node, bm, &bits, &why);
  if (r == -ENOMEM) {
    if (err)
      *err = why;
    return r;
  }
  if (r < 0)
    return load_inconsistent (d, bm, why.msg, err);
  r = dirty_load (d, bm->name, bm->granularity, bits, state, NULL, true, err);
  bitmap_free (bits);
  return r;
}

void
image_bitmaps_left_free (struct image_bitmaps_left *left)
{
  for (size_t i = 0; i < left->nr; i++)
    free (left->names[i]);
  free (left->names);
  *left = (struct image_bitmaps_left) { NULL, 0 };
}

/* The bitmap stays in the image alone.  max: how many there can be. */
static int
leave (struct image_bitmaps_left *left, const char *name, size_t max)
{
  if (!left->names)
    left->names = calloc (max, sizeof *left->names);
  if (!left->names)
    return -ENOMEM;
  left->names[left->nr] = strdup (name);
  if (!left->names[left->nr])
    return -ENOMEM;
  left->nr++;
  return 0;
}

/* why: of the first of them. */
static void
warn_left (struct blk *node, const struct image_bitmaps_left *left, size_t nr,
           const struct error *why)
{
  char name[65];
  size_t i;

  for (i = 0; i < sizeof name - 1 && left->names[0][i]; i++) {
    name[i] = left->names[0][i];
    if (name[i] < ' ' || name[i] > '~')
      name[i] = '?';
  }
  name[i] = '\0';
  log_warning ("%s: %zu of the %zu bitmaps of the image, the first is '%s',"
               " stay in the image alone, and those of them that record are no"
               " longer valid: %s", node->name, left->nr, nr, name, why->msg);
}

int
image_bitmaps_load (struct blk *node, struct dirty *d,
                    struct image_bitmaps_left *left, struct error *err)
{
  struct error why = ERROR_INIT, first = ERROR_INIT;
  struct qcow2_bitmaps bitmaps;
  int r;

  if (!qcow2_can_hold_bitmaps (node))
    return 0;
  r = qcow2_bitmaps_read (node, &bitmaps, err);
  for (size_t i = 0; i < bitmaps.nr && r == 0; i++) {
    if (is_known (d, bitmaps.ptr[i].name))
      continue;
    r = load_one (node, d, &bitmaps.ptr[i], &why);
    if (r == -ENOSPC || r == -EILSEQ) {
      if (left->nr == 0)
        first = why;
      r = leave (left, bitmaps.ptr[i].name, bitmaps.nr);
      if (r < 0)
        error_set_errno (&why, ENOMEM, "%s: its bitmaps", node->name);
    }
    if (r < 0 && err)
      *err = why;
  }
  if (r == 0 && left->nr > 0)
    warn_left (node, left, bitmaps.nr, &first);
  qcow2_bitmaps_free (&bitmaps);
  return r;
}

int
image_bitmaps_flag (struct blk *node, const struct image_bitmaps_left *left,
                    struct error *err)
{
  struct qcow2_bitmaps bitmaps;
  int r;

  if (!qcow2_can_hold_bitmaps (node) || blk_is_read_only (node))
    return 0;
  r = qcow2_bitmaps_read (node, &bitmaps, err);
  /* The names are in the directory's order. */
  for (size_t i = 0, k = 0; i < bitmaps.nr && k < left->nr && r == 0; i++)
    if (strcmp (left->names[k], bitmaps.ptr[i].name) == 0) {
      bitmaps.ptr[i].is_left = true;
      k++;
    }
  if (r == 0)
    r = qcow2_bitmaps_flag (node, &bitmaps, err);
  qcow2_bitmaps_free (&bitmaps);
  return r;
}

/* What the image is to hold of one bitmap; bits stays NULL for one that is
 * inconsistent: what the image has of it is kept, in use.
 */
static void
describe (struct dirty *d, const struct dirty_info *info,
          struct qcow2_bitmap_content *ret)
{
  struct dirty_bitmap *bm = dirty_find (d, info->name);

  *ret = (struct qcow2_bitmap_content) {
    .name = info->name, .is_auto = info->is_recording,
  };
  if (bm && info->state != DIRTY_INCONSISTENT)
    ret->bits = dirty_bits (bm);
  dirty_unref (bm);
}

int
image_bitmaps_save (struct blk *node, struct dirty *d,
                    const struct image_bitmaps_left *left, struct error *err)
{
  CLEANUP_FREE struct qcow2_bitmap_content *content = NULL;
  struct dirty_info *infos;
  size_t nr, n = 0;
  int r;

  if (!qcow2_can_hold_bitmaps (node) || blk_is_read_only (node))
    return 0;
  r = dirty_list (d, &infos, &nr);
  if (r < 0)
    return error_set_errno (err, -r, "%s: storing its bitmaps", node->name);
  content = calloc (nr + left->nr + 1, sizeof *content);
  if (content == NULL)
    r = error_set_errno (err, ENOMEM, "%s: storing its bitmaps", node->name);
  for (size_t i = 0; i < nr && r == 0; i++)
    if (infos[i].is_persistent)
      describe (d, &infos[i], &content[n++]);
  for (size_t i = 0; i < left->nr && r == 0; i++)
    if (!is_known (d, left->names[i]))
      content[n++] = (struct qcow2_bitmap_content) {
        .name = left->names[i], .is_left = true,
      };
  if (r == 0)
    r = qcow2_bitmaps_store (node, content, n, err);
  dirty_infos_free (infos, nr);
  return r;
}
