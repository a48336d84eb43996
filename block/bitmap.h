/* SPDX-License-Identifier: BSD-3-Clause */
/* Pure bits: one per granule of a range of bytes, with a summary level so that
 * searches skip clean space.  No I/O, no names, no states.
 *
 * Concurrency: bitmap_set may run at the same time as bitmap_set and as every
 * function that takes a const bitmap; being the target of bitmap_merge counts
 * as bitmap_set.  Everything else that changes a bitmap needs the caller to
 * keep all others away (readers of a bitmap that is being cleared are allowed
 * and see either value).  Memory for a region is used only once a bit in it is
 * set.
 */
#ifndef TIDEMARK_BITMAP_H
#define TIDEMARK_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "range.h"

#define BITMAP_MIN_GRANULARITY UINT64_C (512)
#define BITMAP_MAX_GRANULARITY (UINT64_C (1) << 31)

struct bitmap;

/* A clean bitmap over size bytes.  granularity: bytes, a power of two within
 * the limits above.  0 or -ENOMEM.
 */
int bitmap_new (uint64_t size, uint64_t granularity, struct bitmap **ret);
/* The same over words that the caller keeps: 64 bits to a word, div_round_up of
 * the number of granules, at least one word, those beyond the end clear.  They
 * are not looked at: bits that are set in them count only once bitmap_summarize
 * has been called for their part of the words, once; before anybody else has
 * the bitmap.  first: a multiple of 64.  It cannot be resized.
 */
int bitmap_new_at (uint64_t size, uint64_t granularity, void *words,
                   struct bitmap **ret);
void bitmap_summarize (struct bitmap *b, uint64_t first, uint64_t nr);
void bitmap_free (struct bitmap *b);

uint64_t bitmap_size (const struct bitmap *b);
uint64_t bitmap_granularity (const struct bitmap *b);

/* Set every granule that [off, off+len) touches.  Wait-free.  On return the
 * bits are visible to every thread that synchronises with this one.
 */
void bitmap_set (struct bitmap *b, uint64_t off, uint64_t len);

/* Clear every granule that lies wholly within [off, off+len); the last,
 * shorter granule counts as whole if the range reaches the size.
 */
void bitmap_clear (struct bitmap *b, uint64_t off, uint64_t len);
void bitmap_clear_all (struct bitmap *b);

/* True if the granule that holds off is dirty. */
bool bitmap_get (const struct bitmap *b, uint64_t off);

/* The first run of dirty granules that touches [off, off+len), clipped to
 * that range.  False if there is none.
 */
bool bitmap_next_dirty (const struct bitmap *b, uint64_t off, uint64_t len,
                        struct range *ret);
/* The first run of clean granules, likewise. */
bool bitmap_next_clean (const struct bitmap *b, uint64_t off, uint64_t len,
                        struct range *ret);

/* Bytes of the dirty granules, a last shorter granule counted at its real
 * length.  bitmap_count: their number.  Both O(1).
 */
uint64_t bitmap_dirty_bytes (const struct bitmap *b);
uint64_t bitmap_count (const struct bitmap *b);

/* dst |= src; granularities may differ, sizes must not. */
void bitmap_merge (struct bitmap *dst, const struct bitmap *src);

/* The same for equal granularities and any sizes: what is beyond the end of
 * dst is left out.
 */
void bitmap_merge_prefix (struct bitmap *dst, const struct bitmap *src);

/* A copy over another size: a new tail is clean, a dropped one left out.  0 or
 * -ENOMEM.
 */
int bitmap_copy (const struct bitmap *src, uint64_t size,
                 struct bitmap **ret);

/* Change the size: a new tail is clean, a dropped tail forgotten.  On failure
 * (-ENOMEM) nothing has changed.
 */
int bitmap_resize (struct bitmap *b, uint64_t size);

/* Bytes of memory in use at most. */
size_t bitmap_memory (const struct bitmap *b);

#endif /* TIDEMARK_BITMAP_H */
