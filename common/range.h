/* SPDX-License-Identifier: BSD-3-Clause */
/* Byte ranges and overflow-safe arithmetic.  All units are bytes. */
#ifndef TIDEMARK_RANGE_H
#define TIDEMARK_RANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct range {
  uint64_t off;
  uint64_t len;
};

/* A disk is at most this large, so that off + len never overflows and every
 * offset fits off_t.
 */
#define RANGE_MAX_SIZE (UINT64_C (1) << 62)

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

static inline bool
is_power_of_2 (uint64_t n)
{
  return n != 0 && (n & (n - 1)) == 0;
}

/* True if [off, off+len) lies within [0, size), without overflow. */
static inline bool
range_is_within (uint64_t off, uint64_t len, uint64_t size)
{
  return off <= size && len <= size - off;
}

/* True if the two ranges share a byte.  Neither may overflow. */
static inline bool
range_overlaps (uint64_t off1, uint64_t len1, uint64_t off2, uint64_t len2)
{
  return len1 && len2 && off1 < off2 + len2 && off2 < off1 + len1;
}

/* align is a power of two. */
static inline uint64_t
round_down (uint64_t n, uint64_t align)
{
  return n & ~(align - 1);
}

/* align is a power of two; n <= RANGE_MAX_SIZE, so this cannot overflow. */
static inline uint64_t
round_up (uint64_t n, uint64_t align)
{
  return (n + align - 1) & ~(align - 1);
}

static inline uint64_t
div_round_up (uint64_t n, uint64_t d)
{
  return n / d + (n % d != 0);
}

/* log2 of a power of two. */
static inline unsigned
log2_exact (uint64_t n)
{
  return (unsigned) __builtin_ctzll (n);
}

/* True if the len bytes at buf are all zero. */
bool is_zero_buffer (const void *buf, size_t len);

#endif /* TIDEMARK_RANGE_H */
