/* SPDX-License-Identifier: BSD-3-Clause */
/* SHA-256 of many blocks of equal length, several at a time where the
 * processor has instructions for it.
 */
#ifndef TIDEMARK_SHA256_H
#define TIDEMARK_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SHA256_SIZE 32

/* The SHA-256 of len bytes. */
void sha256_hash (const void *buf, size_t len, uint8_t ret[SHA256_SIZE]);

/* The SHA-256 of each of nr blocks of len bytes, which lie one after the
 * other; len a multiple of 64.  ret: nr * SHA256_SIZE bytes.
 */
void sha256_blocks (const void *buf, size_t nr, size_t len, uint8_t *ret);

/* For tests: do without the processor's instructions. */
void sha256_set_generic (bool is_generic);

#endif /* TIDEMARK_SHA256_H */
