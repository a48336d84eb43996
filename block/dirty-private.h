/* SPDX-License-Identifier: BSD-3-Clause */
/* What dirty.c (bitmaps and their states) and dirty-store.c (how they persist)
 * share.
 */
#ifndef TIDEMARK_DIRTY_PRIVATE_H
#define TIDEMARK_DIRTY_PRIVATE_H

#include <stdatomic.h>

#include "dirty.h"
#include "intent.h"
#include "lock.h"
#include "store.h"
#include "vector.h"

/* A bitmap that readers can go on reading after it has been replaced. */
struct bits {
  /* Fixed after new. */
  struct bitmap *bitmap;
  struct store_array *array;    /* where the bits are; NULL = in memory */

  /* Atomic. */
  _Atomic unsigned refs;
  _Atomic bool needs_sync;      /* has bits that no intent protects, or lacks
                                   some that are on disk */
};

struct dirty_bitmap {
  /* Fixed after add. */
  struct dirty *set;            /* a reference */
  char *name;
  uint64_t granularity;

  /* Atomic. */
  _Atomic unsigned refs;

  /* Protected by set->lock; changed only with the gate closed too, so that
   * the closer may read them without the lock.
   */
  enum dirty_state state;
  bool was_recording;           /* FROZEN: what it goes back to */
  bool is_removed;
  bool is_persistent;           /* the store has it */
  struct bits *bits;            /* a reference */
  struct bits *successor;       /* a reference; FROZEN only */
  struct bits *spare;           /* a reference; the next successor, or NULL */
  struct point_id base;
  uint64_t over_estimate;       /* bytes dirty for a crash only, at most */
  char reason[128];             /* INCONSISTENT only */

  /* Protected by set->lock. */
  bool is_used;                 /* exported by itself */
};

DEFINE_VECTOR (dirty_bitmap_list, struct dirty_bitmap *);

struct dirty {
  /* Fixed after new. */
  struct gate *gate;

  /* Atomic. */
  _Atomic unsigned refs;        /* the owner's, and one for each bitmap */
  struct store *_Atomic live;   /* where changes are noted, or NULL */

  /* Written with the gate closed, read inside it. */
  struct bitmap *recording[DIRTY_MAX_BITMAPS];
  size_t nr_recording;
  struct intent *intent;        /* NULL = nothing that records is persistent */

  struct lock lock;
  /* Protected by lock; changed only with the gate closed too. */
  uint64_t size;
  struct store *store;          /* NULL = none */
  dirty_inconsistent_function on_inconsistent;
  void *opaque;
  struct dirty_bitmap_list bitmaps;     /* references; order of creation */
};

/* dirty.c */
void dirty_bits_unref (struct bits *bits);
struct bits *dirty_bits_ref (struct bits *bits);
void dirty_assert_state (const struct dirty_bitmap *bm);
/* Bring what the write path reads up to date with the states. */
void dirty_publish_locked (struct dirty *d);
/* Put a new bitmap into the set. */
int dirty_insert_locked (struct dirty *d, struct dirty_bitmap *bm,
                         struct error *err);
/* A bitmap without bits. */
struct dirty_bitmap *dirty_object_new (struct dirty *d, const char *name,
                                       uint64_t granularity);

/* dirty-store.c */
/* Clear bits over size bytes, in the store if is_persistent. */
int dirty_bits_new (struct dirty *d, uint64_t size, uint64_t granularity,
                    bool is_persistent, struct bits **ret);
/* Write back bits whose change no intent protects, and make the table what the
 * set is.  Nothing to do without a store.  Without locks.
 */
int dirty_commit_err (struct dirty *d, struct error *err);
/* A persistent bitmap of a store that has failed is as good as lost: why.  ""
 * if it is not.
 */
void dirty_loss_locked (const struct dirty_bitmap *bm,
                        char ret[STORE_REASON_SIZE]);

#endif /* TIDEMARK_DIRTY_PRIVATE_H */
