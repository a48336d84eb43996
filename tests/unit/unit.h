/* SPDX-License-Identifier: BSD-3-Clause */
/* What every cmocka test includes, in the order in which cmocka needs it. */
#ifndef TIDEMARK_TEST_UNIT_H
#define TIDEMARK_TEST_UNIT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "log.h"

/* The test program is killed by SIGALRM if it hangs. */
#define UNIT_TIME_LIMIT 60

static inline void
unit_start (void)
{
  alarm (UNIT_TIME_LIMIT);
}

/* A small reproducible generator (xorshift64*). */
static inline uint64_t
unit_random (uint64_t *state)
{
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C (2685821657736338717);
}

/* For log_set_handler: faults are meant, and not printed. */
static inline void
unit_ignore_log (enum log_level level, const char *msg)
{
}

#endif /* TIDEMARK_TEST_UNIT_H */
