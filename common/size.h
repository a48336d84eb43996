/* SPDX-License-Identifier: BSD-3-Clause */
/* Sizes as people write them. */
#ifndef TIDEMARK_SIZE_H
#define TIDEMARK_SIZE_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* "4096", "64k", "1M", "10G", "2T", "1P" (binary; either case; an optional
 * "iB" or "B" may follow).  what names the option in the message.
 * 0, or -EINVAL / -ERANGE with *err set; *ret only on success.
 */
int size_parse (const char *what, const char *s, uint64_t *ret,
                struct error *err);

#define SIZE_STRING_MAX 32

/* "512 B", "1.5 MiB", "12 GiB": at most four significant digits. */
const char *size_format (uint64_t bytes, char buf[SIZE_STRING_MAX]);

#endif /* TIDEMARK_SIZE_H */
