/* SPDX-License-Identifier: BSD-3-Clause */
/* A contiguous list of extents, each with a 32-bit value.
 *
 * Neighbours of equal value are merged as they are added.  The list holds at
 * most max extents, so that no peer can make it grow without bound.
 */
#ifndef TIDEMARK_EXTENTS_H
#define TIDEMARK_EXTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Values of an allocation extent: the bits of base:allocation in the NBD
 * protocol, "NBD_CMD_BLOCK_STATUS".
 */
#define EXTENT_HOLE 1u
#define EXTENT_ZERO 2u

/* Value of a dirty extent, as in QEMU's qemu:dirty-bitmap contexts. */
#define EXTENT_DIRTY 1u

struct extent {
  uint64_t off;
  uint64_t len;                 /* > 0 */
  uint32_t value;
};

struct extents {
  struct extent *ptr;           /* owned */
  size_t len;
  size_t cap;
  size_t max;                   /* fixed after init */
};

/* max >= 1. */
void extents_init (struct extents *e, size_t max);
/* Forget the extents, keep the memory. */
void extents_clear (struct extents *e);
void extents_free (struct extents *e);

/* Append [off, off+len), which must begin where the list ends (anywhere if it
 * is empty).  len 0 does nothing.  Returns 1 if the list is full and the
 * extent was not added (a merge into the last extent always fits), 0 if it
 * was added, -ENOMEM.
 */
int extents_add (struct extents *e, uint64_t off, uint64_t len,
                 uint32_t value);

/* Bytes covered from the first extent's offset. */
uint64_t extents_length (const struct extents *e);

/* Cut the list so that it ends at end at the latest. */
void extents_truncate (struct extents *e, uint64_t end);

/* The extent that holds off, or NULL. */
const struct extent *extents_find (const struct extents *e, uint64_t off);

#endif /* TIDEMARK_EXTENTS_H */
