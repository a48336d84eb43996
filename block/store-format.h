/* SPDX-License-Identifier: BSD-3-Clause */
/* The form of a store's header and table on disk (docs/format.md): encoding
 * and decoding, no I/O.
 */
#ifndef TIDEMARK_STORE_FORMAT_H
#define TIDEMARK_STORE_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "store.h"

#define STORE_MAGIC "TIDEMST1"
#define STORE_VERSION 1
#define STORE_PAGE UINT64_C (4096)
#define STORE_SLOT_SIZE (UINT64_C (128) << 10)
#define STORE_LIVE_OFF (2 * STORE_SLOT_SIZE)
#define STORE_DATA_OFF (STORE_LIVE_OFF + STORE_PAGE)
#define STORE_HEADER_SIZE 512

enum {
  STORE_IS_OPEN = 1 << 0,       /* not closed cleanly (yet) */
  STORE_IS_FAILED = 1 << 1,     /* all its bitmaps are inconsistent */
};

struct store_header {
  uint64_t generation;
  uint32_t flags;
  uint32_t nr_bitmaps;
  struct point_id id;           /* of the store, random */
  uint8_t boot_id[16];
  uint64_t disk_size;
  uint64_t other_size;          /* what else the disk's size may be: it is just
                                   being resized; 0 = nothing else */
  uint64_t region_size;
  uint64_t intent_off, intent_len;
  uint64_t file_len;            /* of the store, at least */
  struct store_identity identity;
  char reason[STORE_REASON_SIZE];       /* FAILED */
};

/* Where the bits of an array are.  off 0 = there is none. */
struct store_extent {
  uint64_t off;                 /* page aligned */
  uint64_t nr_bits;
  uint32_t sum;                 /* store_sum, if the store is not open */
};

struct store_record {
  char *name;                   /* decoding allocates it */
  uint64_t granularity;
  uint8_t state;                /* enum store_state */
  struct point_id base;
  uint64_t over_estimate;
  char reason[STORE_REASON_SIZE];
  struct store_extent bits;
  struct store_extent successor;
};

/* The part of the file, counted from 0, that one mapped page holds; the only
 * one that is neither checksummed nor switched by a commit.
 */
struct store_live_slot {
  _Atomic uint32_t nr_changes;  /* in progress */
  uint32_t zero;
  _Atomic uint64_t last_change; /* ns since the epoch */
  uint8_t pad[48];
};

#define STORE_LIVE_SLOTS 32

struct store_live {
  uint8_t magic[8];             /* "TIDELIVE" */
  _Atomic uint32_t is_failed;
  uint8_t pad[52];
  struct store_live_slot slots[STORE_LIVE_SLOTS];
};

#define STORE_LIVE_MAGIC "TIDELIVE"

/* Bytes that nr_bits take in the file: whole pages. */
uint64_t store_array_bytes (uint64_t nr_bits);

/* The sum of an array: its pages that are not all zero, with their numbers.
 * Begins with 0; the parts of the array, of len bytes from off on, are added in
 * order, those that are zero need not be.
 */
uint32_t store_sum_add (uint32_t sum, const void *words, uint64_t off,
                        uint64_t len);

/* Encode into buf of STORE_SLOT_SIZE bytes.  Returns the bytes used. */
size_t store_encode (const struct store_header *header,
                     const struct store_record *records, void *buf);

/* Decode a slot: buf of STORE_SLOT_SIZE bytes.  *ret_records is allocated,
 * header->nr_bitmaps long (store_records_free).  -ENOENT: not the magic;
 * -ENOTSUP: a newer version; -EINVAL: damaged.
 */
int store_decode (const void *buf, struct store_header *header,
                  struct store_record **ret_records, struct error *err);
void store_records_free (struct store_record *records, size_t nr);

#endif /* TIDEMARK_STORE_FORMAT_H */
