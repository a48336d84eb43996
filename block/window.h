/* SPDX-License-Identifier: BSD-3-Clause */
/* How many bytes to have in flight: grows until the bandwidth stops growing.
 * No locks, no clock of its own.
 */
#ifndef TIDEMARK_WINDOW_H
#define TIDEMARK_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

enum window_state { WINDOW_GROWING, WINDOW_HOLDING };

struct window {
  /* The user's to read. */
  uint64_t limit;               /* bytes that may be in flight now */

  /* Its own. */
  uint64_t max;
  enum window_state state;
  bool is_settled;              /* what arrives was asked for under limit */
  bool is_limiting;             /* more would have been asked for */
  unsigned nr_flat;             /* rounds that gained nothing */
  int64_t start;                /* ns: of the round; 0 = none yet */
  int64_t held_since;           /* HOLDING, ns */
  uint64_t bytes;               /* that arrived in it */
  uint64_t best_limit;
  double best_rate;             /* bytes per ns, with best_limit */
};

/* Never under start, never above max; start <= max, > 0. */
void window_init (struct window *w, uint64_t start, uint64_t max);
/* Somebody would ask for more if he was allowed to. */
void window_refused (struct window *w);
/* len bytes have arrived at time now, which never goes back. */
void window_arrived (struct window *w, uint64_t len, int64_t now);

#endif /* TIDEMARK_WINDOW_H */
