/* SPDX-License-Identifier: BSD-3-Clause */
/* Big-endian (NBD, qcow2) and little-endian fields at any alignment. */
#ifndef TIDEMARK_BYTEORDER_H
#define TIDEMARK_BYTEORDER_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define DEFINE_FIELD(bits, order) \
  static inline uint##bits##_t \
  load_##order##bits (const void *p) \
  { \
    uint##bits##_t v; \
    memcpy (&v, p, sizeof v); \
    return order##bits##toh (v); \
  } \
  static inline void \
  store_##order##bits (void *p, uint##bits##_t v) \
  { \
    v = hto##order##bits (v); \
    memcpy (p, &v, sizeof v); \
  }

DEFINE_FIELD (16, be)
DEFINE_FIELD (32, be)
DEFINE_FIELD (64, be)
DEFINE_FIELD (16, le)
DEFINE_FIELD (32, le)
DEFINE_FIELD (64, le)
#undef DEFINE_FIELD

#endif /* TIDEMARK_BYTEORDER_H */
