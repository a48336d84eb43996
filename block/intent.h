/* SPDX-License-Identifier: BSD-3-Clause */
/* Which regions of a disk may have bits set that the store's file has not yet
 * got on stable storage.  Such a region is *active*: its intent is durable, and
 * after a crash of the host all of it counts as dirty.
 */
#ifndef TIDEMARK_INTENT_H
#define TIDEMARK_INTENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What intents need of their store.  Called without locks. */
struct intent_ops {
  /* Make part of the map durable; whole pages.  0 or -errno. */
  int (*sync_map) (void *opaque, size_t off, size_t len);
  /* Make the bits of all arrays durable.  0 or -errno. */
  int (*sync_arrays) (void *opaque);
  /* One of these has failed; returns when that has been recorded. */
  void (*failed) (void *opaque, const char *what, int error);
};

struct intent;

/* map: the bits on disk, one per region, map_len bytes, which the caller keeps
 * mapped.  Regions whose bit is set are active from the start.  region_size: a
 * power of two.  max_active: a bound for the number of active regions, more
 * than was set only.  0 or -ENOMEM.
 */
int intent_new (uint64_t size, uint64_t region_size, uint64_t max_active,
                _Atomic uint8_t *map, size_t map_len,
                const struct intent_ops *ops, void *opaque,
                struct intent **ret);
void intent_free (struct intent *in);

/* Bytes of a map for a disk. */
uint64_t intent_map_size (uint64_t size, uint64_t region_size);

/* Called before a change of [off, off+len), len > 0, after its bits have been
 * set in every array.  On return either the region is active or the bits are
 * durable, or the failure to make them so has been recorded.  No lock and no
 * I/O if the regions are active.
 */
static inline void intent_mark (struct intent *in, uint64_t off,
                                uint64_t len);

/* Make regions inactive that have not been marked since the last call, or all
 * with is_all (but for those that are marked meanwhile).  0 or -errno.
 */
int intent_retire (struct intent *in, bool is_all);

/* Nothing is committed any more: marking returns at once. */
void intent_disable (struct intent *in);

uint64_t intent_nr_active (struct intent *in);
uint64_t intent_max_active (const struct intent *in);
/* Bytes of the active regions. */
uint64_t intent_active_bytes (struct intent *in);

/*---- Private ----*/

enum {
  INTENT_ACTIVE = 1,
  INTENT_TOUCHED = 2,           /* marked since the last intent_retire */
  INTENT_QUEUED = 4,            /* waits for a commit */
  INTENT_RETIRING = 8,          /* not active, its intent is durable still */
  INTENT_AHEAD = 16,            /* active although nobody has asked yet */
};

struct intent_regions {
  _Atomic uint8_t *state;       /* of each region */
  unsigned shift;               /* log2 of the region size */
};

void intent_mark_slowly (struct intent *in, uint64_t first, uint64_t last);

static inline void
intent_mark (struct intent *in, uint64_t off, uint64_t len)
{
  const struct intent_regions *r = (const struct intent_regions *) in;
  const uint64_t last = (off + len - 1) >> r->shift;
  uint64_t i;

  /* The bits first, then this look at the state; intent_retire goes the other
   * way.  Hence a full barrier on both sides: see intent.c.
   */
  __sync_synchronize ();
  for (i = off >> r->shift; i <= last; i++)
    if (atomic_load_explicit (&r->state[i], memory_order_acquire)
        != (INTENT_ACTIVE | INTENT_TOUCHED)) {
      intent_mark_slowly (in, i, last);
      return;
    }
}

#endif /* TIDEMARK_INTENT_H */
