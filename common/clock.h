/* SPDX-License-Identifier: BSD-3-Clause */
/* The time that never goes back, CLOCK_MONOTONIC, as a number. */
#ifndef TIDEMARK_CLOCK_H
#define TIDEMARK_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t
clock_ns (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * INT64_C (1000000000) + ts.tv_nsec;
}

static inline int64_t
clock_ms (void)
{
  return clock_ns () / 1000000;
}

#endif /* TIDEMARK_CLOCK_H */
