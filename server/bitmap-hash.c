/* SPDX-License-Identifier: BSD-3-Clause */
/* The hash of a bitmap's bits that QEMU's x-debug-block-dirty-bitmap-sha256
 * returns: SHA-256 of the bits as 64-bit little-endian words, at least one.
 *
 * Called by the thread of a control connection, without locks.
 */
#include "config.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>

#include "bitmap-hash.h"
#include "cleanup.h"
#include "range.h"

#define HASH_SIZE 32            /* of SHA-256 */
#define MAX_EXTENTS 4096        /* at a time */

static void
set_bits (uint8_t *bits, uint64_t first, uint64_t end)
{
  for (; first < end && first % 8; first++)
    bits[first / 8] |= (uint8_t) (1u << first % 8);
  for (; first + 8 <= end; first += 8)
    bits[first / 8] = 0xff;
  for (; first < end; first++)
    bits[first / 8] |= (uint8_t) (1u << first % 8);
}

/* bits has room for all of the bitmap, and is zero. */
static int
collect_bits (struct dirty_bitmap *bm, uint64_t size, uint64_t granularity,
              uint8_t *bits)
{
  struct extents extents;
  uint64_t off = 0;
  size_t i;
  int r = 0;

  extents_init (&extents, MAX_EXTENTS);
  while (off < size && r == 0) {
    extents_clear (&extents);
    r = dirty_extents (bm, size - off, off, &extents);
    for (i = 0; r == 0 && i < extents.len; i++) {
      const struct extent *e = &extents.ptr[i];

      off = e->off + e->len;
      if (e->value & EXTENT_DIRTY)
        set_bits (bits, e->off / granularity, div_round_up (off,
                                                            granularity));
    }
  }
  extents_free (&extents);
  return r;
}

int
bitmap_hash (struct dirty_bitmap *bm, uint64_t size,
             char ret[BITMAP_HASH_STRING_SIZE])
{
  uint8_t hash[HASH_SIZE];
  struct dirty_info info;
  CLEANUP_FREE uint8_t *bits = NULL;
  uint64_t nr_words;
  int i, r = dirty_get_info (bm, &info);

  if (r < 0)
    return r;
  free (info.name);
  nr_words = MAX (div_round_up (div_round_up (size, info.granularity), 64),
                  1);
  bits = calloc (nr_words, 8);
  if (bits == NULL)
    return -ENOMEM;
  r = collect_bits (bm, size, info.granularity, bits);
  if (r < 0)
    return r;
  if (gnutls_hash_fast (GNUTLS_DIG_SHA256, bits, nr_words * 8, hash) < 0)
    return -EIO;
  for (i = 0; i < HASH_SIZE; i++)
    sprintf (&ret[2 * i], "%02x", hash[i]);
  return 0;
}
