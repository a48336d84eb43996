/* SPDX-License-Identifier: BSD-3-Clause */
/* The bitmaps of a live disk and those that its qcow2 image stores. */
#ifndef TIDEMARK_IMAGE_BITMAPS_H
#define TIDEMARK_IMAGE_BITMAPS_H

#include "blk.h"
#include "dirty.h"
#include "error.h"

/* Add every bitmap of the image that d does not yet have by name, persistent:
 * inconsistent if it is flagged as in use, damaged or not understood.  Then
 * flag all as in use, durably, if the node is writable.  A node that is no
 * qcow2 image has none.  On failure d may have some of them.  [gate closed]
 */
int image_bitmaps_load (struct blk *node, struct dirty *d, struct error *err);

/* At a clean close, before the node is closed: the image holds d's persistent
 * bitmaps, and no others.  Does nothing for a node that is not writable or
 * cannot hold bitmaps.  None may be frozen.  [gate closed]
 */
int image_bitmaps_save (struct blk *node, struct dirty *d, struct error *err);

#endif /* TIDEMARK_IMAGE_BITMAPS_H */
