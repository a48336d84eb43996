/* SPDX-License-Identifier: BSD-3-Clause */
/* Claims on byte ranges.  The lock is the user's: every function needs it
 * held; waiting releases it meanwhile.
 */
#ifndef TIDEMARK_REQLIST_H
#define TIDEMARK_REQLIST_H

#include <stdbool.h>
#include <stdint.h>

#include "lock.h"

struct req {
  uint64_t off;
  uint64_t len;
  struct req *next, *prev;      /* private */
};

struct reqlist {
  struct req *first;
  pthread_cond_t released;      /* some claim was removed */
  unsigned nr_waiting;
};

void reqlist_init (struct reqlist *list);
void reqlist_destroy (struct reqlist *list);

/* The caller's req (on its stack, say) stays in the list until removed. */
void reqlist_add (struct reqlist *list, struct req *req, uint64_t off,
                  uint64_t len);
void reqlist_remove (struct reqlist *list, struct req *req);

/* A claim that overlaps the range, or NULL. */
const struct req *reqlist_find (const struct reqlist *list, uint64_t off,
                                uint64_t len);

/* The length of the longest prefix of the range that no claim overlaps. */
uint64_t reqlist_free_prefix (const struct reqlist *list, uint64_t off,
                              uint64_t len);

/* Wait until no claim overlaps the range.  Returns true if it had to wait, so
 * that the caller looks again at what the lock protects.
 */
bool reqlist_wait (struct reqlist *list, struct lock *lock, uint64_t off,
                   uint64_t len);

#endif /* TIDEMARK_REQLIST_H */
