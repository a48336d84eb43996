/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty bitmaps that are stored in a qcow2 image: its bitmaps extension.
 * Source: the spec's section "Bitmaps extension" and the two after it.
 */
#ifndef TIDEMARK_QCOW2_BITMAP_H
#define TIDEMARK_QCOW2_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bitmap.h"
#include "blk.h"
#include "error.h"

/* QEMU's limits: it opens nothing beyond them, and they bound our memory. */
#define QCOW2_MAX_BITMAPS 65535
#define QCOW2_MAX_BITMAP_NAME 1023
#define QCOW2_MAX_BITMAP_DIR (UINT64_C (64) << 20)
#define QCOW2_MAX_BITMAP_BYTES (UINT64_C (512) << 20)

/* Flags of a bitmap. */
enum {
  QCOW2_BITMAP_IN_USE = 1 << 0, /* not saved: cannot be trusted */
  QCOW2_BITMAP_AUTO = 1 << 1,   /* records every change */
};

/* One bitmap of the image, as its directory describes it. */
struct qcow2_bitmap {
  char *name;
  uint64_t granularity;         /* bytes */
  uint32_t flags;
  char unusable[96];            /* why this program cannot use it: damaged, or
                                   of a kind that it does not know; "" = it
                                   can, unless it is in use */
  bool is_left;                 /* for qcow2_bitmaps_flag: nobody takes it over;
                                   one that does not record stays valid */

  /* Private. */
  uint64_t table;               /* offset in the file */
  uint32_t table_len;           /* entries */
  size_t pos, len;              /* of the entry in the directory */
};

struct qcow2_bitmaps {
  struct qcow2_bitmap *ptr;
  size_t nr;

  /* Private. */
  uint8_t *dir;                 /* as it is in the file */
  uint64_t dir_off, dir_len;
};

/* Whether the node is a qcow2 image that can hold bitmaps: version 3. */
bool qcow2_can_hold_bitmaps (const struct blk *blk);

/* The directory, checked; ret->nr is 0 if the image holds no valid bitmaps.
 * -EINVAL with *err set if it is damaged as a whole.
 */
int qcow2_bitmaps_read (struct blk *blk, struct qcow2_bitmaps *ret,
                        struct error *err);
void qcow2_bitmaps_free (struct qcow2_bitmaps *bitmaps);

/* The bits of one that can be used (flags are not looked at). */
int qcow2_bitmap_load (struct blk *blk, const struct qcow2_bitmap *bm,
                       struct bitmap **ret, struct error *err);

/* Flag all bitmaps of a writable image as in use, durably.  From here on until
 * qcow2_bitmaps_store nobody trusts them, and changes of the disk leave them
 * alone.
 */
int qcow2_bitmaps_flag (struct blk *blk, struct qcow2_bitmaps *bitmaps,
                        struct error *err);

/* What the image is to hold. */
struct qcow2_bitmap_content {
  const char *name;
  bool is_auto;
  const struct bitmap *bits;    /* NULL: leave the entry of that name as it
                                   is, in use; nothing if there is none */
  bool is_left;                 /* without bits: not even in use, unless it is
                                   so, or does not fit the disk any more */
};

/* Replace the image's bitmaps by the nr given, or the image keeps those that
 * it has, flagged as they are (or, after a failure in the middle, invalid as a
 * whole).  No I/O may be in progress.  Durable on return.
 */
int qcow2_bitmaps_store (struct blk *blk,
                         const struct qcow2_bitmap_content *content,
                         size_t nr, struct error *err);

#endif /* TIDEMARK_QCOW2_BITMAP_H */
