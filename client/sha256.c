/* SPDX-License-Identifier: BSD-3-Clause */
/* SHA-256 (FIPS 180-4).  GnuTLS does it, but for sixteen blocks at a time on
 * x86-64 with AVX-512, where each 32-bit lane of a register works on a block
 * of its own: that is more than twice as fast as the SHA instructions.  Any
 * thread.
 */
#include "config.h"

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "sha256.h"

void
sha256_hash (const void *buf, size_t len, uint8_t ret[SHA256_SIZE])
{
  /* Fails only for an unknown algorithm. */
  if (gnutls_hash_fast (GNUTLS_DIG_SHA256, buf, len, ret) < 0)
    abort ();
}

static void
generic_blocks (const uint8_t *buf, size_t nr, size_t len, uint8_t *ret)
{
  for (; nr > 0; nr--) {
    sha256_hash (buf, len, ret);
    buf += len;
    ret += SHA256_SIZE;
  }
}

#if defined __x86_64__ && defined __GNUC__
#include <immintrin.h>

#define LANES 16
#define TARGET_LANES __attribute__ ((target ("avx512f,avx512bw")))
#define TARGET_LANES_INLINE \
  __attribute__ ((target ("avx512f,avx512bw"), always_inline)) static inline

static const uint32_t round_constants[64] __attribute__ ((aligned (16))) = {
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
  0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3,
  0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
  0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
  0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
  0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
  0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
  0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
  0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static const uint32_t first_state[8] = {
  0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

/* Of the truth tables below: x ^ y ^ z; y where x is 1, else z; majority. */
#define XOR3(x, y, z) _mm512_ternarylogic_epi32 (x, y, z, 0x96)
#define CHOOSE(x, y, z) _mm512_ternarylogic_epi32 (x, y, z, 0xca)
#define MAJORITY(x, y, z) _mm512_ternarylogic_epi32 (x, y, z, 0xe8)

/* Rows and columns of 16 times 16 words change places. */
TARGET_LANES_INLINE void
transpose (__m512i r[LANES])
{
  __m512i t[LANES];
  int i;

#pragma GCC unroll 8
  for (i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32 (r[i], r[i+1]);
    t[i+1] = _mm512_unpackhi_epi32 (r[i], r[i+1]);
  }
#pragma GCC unroll 4
  for (i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64 (t[i], t[i+2]);
    r[i+1] = _mm512_unpackhi_epi64 (t[i], t[i+2]);
    r[i+2] = _mm512_unpacklo_epi64 (t[i+1], t[i+3]);
    r[i+3] = _mm512_unpackhi_epi64 (t[i+1], t[i+3]);
  }
#pragma GCC unroll 4
  for (i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4 (r[i], r[i+4], 0x88);
    t[i+4] = _mm512_shuffle_i32x4 (r[i], r[i+4], 0xdd);
    t[i+8] = _mm512_shuffle_i32x4 (r[i+8], r[i+12], 0x88);
    t[i+12] = _mm512_shuffle_i32x4 (r[i+8], r[i+12], 0xdd);
  }
#pragma GCC unroll 4
  for (i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4 (t[i], t[i+8], 0x88);
    r[i+4] = _mm512_shuffle_i32x4 (t[i+4], t[i+12], 0x88);
    r[i+8] = _mm512_shuffle_i32x4 (t[i], t[i+8], 0xdd);
    r[i+12] = _mm512_shuffle_i32x4 (t[i+4], t[i+12], 0xdd);
  }
}

/* Sixty-four bytes of each block, as words: w[i] has word i of all. */
TARGET_LANES_INLINE void
load_words (__m512i w[LANES], const uint8_t *p, size_t stride)
{
  const __m512i swap = _mm512_broadcast_i32x4 (
    _mm_set_epi64x (0x0c0d0e0f08090a0b, 0x0405060700010203));
  int i;

#pragma GCC unroll 16
  for (i = 0; i < LANES; i++)
    w[i] = _mm512_shuffle_epi8 (_mm512_loadu_si512 (p + stride * (size_t) i),
                                swap);
  transpose (w);
}

TARGET_LANES_INLINE __m512i
next_word (const __m512i w[LANES], int t)
{
  __m512i x = w[(t + 1) & 15], y = w[(t + 14) & 15], s0, s1;

  s0 = XOR3 (_mm512_ror_epi32 (x, 7), _mm512_ror_epi32 (x, 18),
             _mm512_srli_epi32 (x, 3));
  s1 = XOR3 (_mm512_ror_epi32 (y, 17), _mm512_ror_epi32 (y, 19),
             _mm512_srli_epi32 (y, 10));
  return _mm512_add_epi32 (_mm512_add_epi32 (w[t & 15], s0),
                           _mm512_add_epi32 (w[(t + 9) & 15], s1));
}

/* Instead of moving the eight words one place on, each round takes them one
 * place further back; after eight rounds they are where they were.
 */
#define WORD(i) s[((i) - t) & 7]

TARGET_LANES_INLINE void
round_of (__m512i s[8], __m512i w, int t, uint32_t k)
{
  __m512i e = WORD (4), a = WORD (0), t1, t2;

  t1 = XOR3 (_mm512_ror_epi32 (e, 6), _mm512_ror_epi32 (e, 11),
             _mm512_ror_epi32 (e, 25));
  t1 = _mm512_add_epi32 (t1, CHOOSE (e, WORD (5), WORD (6)));
  t1 = _mm512_add_epi32 (t1, _mm512_add_epi32 (WORD (7), _mm512_add_epi32 (
         w, _mm512_set1_epi32 ((int) k))));
  t2 = XOR3 (_mm512_ror_epi32 (a, 2), _mm512_ror_epi32 (a, 13),
             _mm512_ror_epi32 (a, 22));
  t2 = _mm512_add_epi32 (t2, MAJORITY (a, WORD (1), WORD (2)));
  WORD (3) = _mm512_add_epi32 (WORD (3), t1);
  WORD (7) = _mm512_add_epi32 (t1, t2);
}

TARGET_LANES_INLINE void
compress (__m512i state[8], __m512i w[LANES])
{
  __m512i s[8];
  int i, t;

  memcpy (s, state, sizeof s);
  for (i = 0; i < 48; i += 16) {
#pragma GCC unroll 16
    for (t = 0; t < 16; t++) {
      round_of (s, w[t], t, round_constants[i+t]);
      w[t] = next_word (w, t);  /* for sixteen rounds on */
    }
  }
#pragma GCC unroll 16
  for (t = 0; t < 16; t++)
    round_of (s, w[t], t, round_constants[48+t]);
#pragma GCC unroll 8
  for (i = 0; i < 8; i++)
    state[i] = _mm512_add_epi32 (state[i], s[i]);
}

TARGET_LANES static void
store_lanes (const __m512i state[8], uint8_t *ret)
{
  uint32_t words[8][LANES];
  size_t i, j;

  for (i = 0; i < 8; i++)
    _mm512_storeu_si512 (words[i], state[i]);
  for (j = 0; j < LANES; j++)
    for (i = 0; i < 8; i++)
      store_be32 (ret + SHA256_SIZE * j + 4 * i, words[i][j]);
}

TARGET_LANES static void
hash_lanes (const uint8_t *p, size_t len, uint8_t *ret)
{
  __m512i state[8], w[LANES];
  size_t i;

  for (i = 0; i < 8; i++)
    state[i] = _mm512_set1_epi32 ((int) first_state[i]);
  for (i = 0; i < len; i += 64) {
    load_words (w, p + i, len);
    compress (state, w);
  }
  /* The end of the message: a one bit, zeroes, the length in bits. */
  memset (w, 0, sizeof w);
  w[0] = _mm512_set1_epi32 ((int) 0x80000000);
  w[14] = _mm512_set1_epi32 ((int) ((uint64_t) len * 8 >> 32));
  w[15] = _mm512_set1_epi32 ((int) (len * 8));
  compress (state, w);
  store_lanes (state, ret);
}

static bool
detect (void)
{
  return __builtin_cpu_supports ("avx512f")
    && __builtin_cpu_supports ("avx512bw");
}
#else
#define LANES 16

static void
hash_lanes (const uint8_t *p, size_t len, uint8_t *ret)
{
  generic_blocks (p, LANES, len, ret);
}

static bool
detect (void)
{
  return false;
}
#endif

/* 0: not known yet. */
static _Atomic int method;
enum { METHOD_UNKNOWN, METHOD_GENERIC, METHOD_LANES };

void
sha256_set_generic (bool is_generic)
{
  method = is_generic ? METHOD_GENERIC : METHOD_UNKNOWN;
}

void
sha256_blocks (const void *buf, size_t nr, size_t len, uint8_t *ret)
{
  const uint8_t *p = buf;

  if (method == METHOD_UNKNOWN)
    method = detect () ? METHOD_LANES : METHOD_GENERIC;
  for (; nr >= LANES && method == METHOD_LANES; nr -= LANES) {
    hash_lanes (p, len, ret);
    p += LANES * len;
    ret += LANES * SHA256_SIZE;
  }
  generic_blocks (p, nr, len, ret);
}
