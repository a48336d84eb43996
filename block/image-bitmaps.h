/* SPDX-License-Identifier: BSD-3-Clause */
/* The bitmaps of a live disk and those that its qcow2 image stores. */
#ifndef TIDEMARK_IMAGE_BITMAPS_H
#define TIDEMARK_IMAGE_BITMAPS_H

#include "blk.h"
#include "dirty.h"
#include "error.h"

/* Names of bitmaps that stay in the image alone, for a disk cannot have more
 * than DIRTY_MAX_BITMAPS, nor a name that is not UTF-8: those that record are
 * invalid from then on, the others stay as they are.
 */
struct image_bitmaps_left {
  char **names;
  size_t nr;
};

void image_bitmaps_left_free (struct image_bitmaps_left *left);

/* Add every bitmap of the image that d does not yet have by name, persistent:
 * inconsistent if it is damaged, not understood, or flagged as in use and not
 * known to d's store; and to *left, which is empty, those for which d has no
 * room.  A node that is no qcow2 image has none.  On failure d may have some of
 * them.  [gate closed]
 */
int image_bitmaps_load (struct blk *node, struct dirty *d,
                        struct image_bitmaps_left *left, struct error *err);

/* Flag all of the image's as in use, durably, if the node is writable: to be
 * done before anything is written.
 */
int image_bitmaps_flag (struct blk *node,
                        const struct image_bitmaps_left *left,
                        struct error *err);

/* At a clean close, before the node is closed: the image holds d's persistent
 * bitmaps, those left in it, and no others.  Does nothing for a node that is
 * not writable or cannot hold bitmaps.  None may be frozen.  [gate closed]
 */
int image_bitmaps_save (struct blk *node, struct dirty *d,
                        const struct image_bitmaps_left *left,
                        struct error *err);

#endif /* TIDEMARK_IMAGE_BITMAPS_H */
