/* SPDX-License-Identifier: BSD-3-Clause */
/* A limit of bytes per second: a bucket of tokens, which may be overdrawn, so
 * that what is larger than the bucket passes as well.
 */
#ifndef TIDEMARK_BANDWIDTH_H
#define TIDEMARK_BANDWIDTH_H

#include <stdbool.h>
#include <stdint.h>

struct bandwidth {
  uint64_t rate;                /* bytes per second; 0 = no limit */
  _Atomic int64_t full_at;      /* ns: when the bucket is full again */
};

/* What fits in the bucket, as time. */
#define BANDWIDTH_BURST_NS INT64_C (100000000)

/* Take len bytes at the time now (ns, any clock that does not go backwards):
 * for how many ns to wait before they are moved.  Any thread.
 */
int64_t bandwidth_take (struct bandwidth *b, uint64_t len, int64_t now);

/* The same, and wait, unless *cancel is true.  0 or -ECANCELED. */
int bandwidth_wait (struct bandwidth *b, uint64_t len,
                    const volatile bool *cancel);

/* How long one piece that is asked for should be: an eighth of a second's, but
 * most at most, halved now and then, and least at least.  How much should be in
 * flight: half a second's, since what comes faster than it may be asked for
 * needs no more, and whoever waits for his turn handles nothing meanwhile; most
 * at most.  Without a limit, most.
 */
uint64_t bandwidth_piece (const struct bandwidth *b, uint64_t least,
                          uint64_t most);
uint64_t bandwidth_window (const struct bandwidth *b, uint64_t most);

#endif /* TIDEMARK_BANDWIDTH_H */
