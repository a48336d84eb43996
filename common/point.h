/* SPDX-License-Identifier: BSD-3-Clause */
/* Random 128-bit ids: of points in time, sessions and repositories. */
#ifndef TIDEMARK_POINT_H
#define TIDEMARK_POINT_H

#include <stdbool.h>
#include <stdint.h>

struct point_id {
  uint8_t bytes[16];            /* all zero = none */
};

#define POINT_ID_STRING_SIZE 33 /* 32 lower-case hex digits and NUL */

/* Fill *ret from the kernel's random source.  0 or -errno. */
int point_id_random (struct point_id *ret);
bool point_id_is_none (const struct point_id *id);
bool point_id_is_equal (const struct point_id *a, const struct point_id *b);
void point_id_format (const struct point_id *id,
                      char ret[POINT_ID_STRING_SIZE]);
/* 0, or -EINVAL if s is not exactly 32 hex digits. */
int point_id_parse (const char *s, struct point_id *ret);

#endif /* TIDEMARK_POINT_H */
