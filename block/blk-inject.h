/* SPDX-License-Identifier: BSD-3-Clause */
/* QEMU's "blkdebug": a node that lets requests fail at given events, by rules
 * and a state.
 */
#ifndef TIDEMARK_BLK_INJECT_H
#define TIDEMARK_BLK_INJECT_H

#include "blk.h"

#define BLK_INJECT_MAX_RULES 1024

enum {
  BLK_INJECT_READ = 1 << 0,
  BLK_INJECT_WRITE = 1 << 1,
  BLK_INJECT_ZERO = 1 << 2,
  BLK_INJECT_TRIM = 1 << 3,
  BLK_INJECT_FLUSH = 1 << 4,
  BLK_INJECT_EXTENTS = 1 << 5,
  BLK_INJECT_DEFAULT = (1 << 5) - 1,
};

/* Events that never happen here: rules for them are kept and never apply. */
#define BLK_INJECT_NEVER NR_BLK_EVENTS
/* QEMU's "none": the rule applies from the start. */
#define BLK_INJECT_ALWAYS (NR_BLK_EVENTS + 1)

struct blk_inject_rule {
  unsigned event;               /* enum blk_event or one of the above */
  unsigned state;               /* 0 = any */
  bool is_set_state;
  unsigned new_state;           /* is_set_state */
  /* Else: once the event has happened in that state, requests fail. */
  int errnum;                   /* positive; 0 = they do not fail after all */
  unsigned ops;                 /* BLK_INJECT_* */
  uint64_t off;                 /* only if they touch this byte; UINT64_MAX =
                                   all */
  bool is_once;
};

/* An event's name, or BLK_INJECT_NEVER. */
unsigned blk_inject_event (const char *name);

/* Filter over child.  Takes ownership of child, on failure too.  The state is
 * 1 at first.  What happens at one event is QEMU's: rules are those of the
 * state before it; the rules that inject take the place of those that were
 * active.
 */
int blk_inject_open (struct blk *child, const char *name,
                     const struct blk_inject_rule *rules, size_t nr_rules,
                     struct blk **ret, struct error *err);

#endif /* TIDEMARK_BLK_INJECT_H */
