/* SPDX-License-Identifier: BSD-3-Clause */
/* The named dirty bitmaps of one disk and their states.
 *
 * Which bitmaps record changes only while the disk's gate is closed, so that
 * dirty_mark, called inside the gate, needs no lock.  Functions marked
 * [gate closed] change it.
 */
#ifndef TIDEMARK_DIRTY_H
#define TIDEMARK_DIRTY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bitmap.h"
#include "error.h"
#include "extents.h"
#include "gate.h"
#include "point.h"

#define DIRTY_NAME_MAX 1023
#define DIRTY_MAX_BITMAPS 64
#define DIRTY_DEFAULT_GRANULARITY 65536

enum dirty_state {
  DIRTY_RECORDING,
  DIRTY_DISABLED,
  DIRTY_FROZEN,                 /* held by a session or job; a successor takes
                                   the new bits if was_recording */
  DIRTY_INCONSISTENT,
};

struct dirty;                   /* all bitmaps of a disk */
struct dirty_bitmap;            /* one of them; counted references */

/* gate: the disk's, for assertions; it must outlive the set. */
int dirty_new (uint64_t size, struct gate *gate, struct dirty **ret);
void dirty_free (struct dirty *d);

/* Set the bits of every recording bitmap (and successor) for a change of
 * [off, off+len) that is about to be made, len > 0.  Called inside the gate;
 * wait-free once the bits are set and, if there is a store, the region is
 * active (intent.h).  0, or -errno if the change must not be made.
 */
int dirty_mark (struct dirty *d, uint64_t off, uint64_t len);
/* The change has been made, or has failed.  Inside the gate, by the same
 * thread.
 */
void dirty_changed (struct dirty *d);

enum {
  DIRTY_IS_DISABLED = 1 << 0,
  DIRTY_IS_PERSISTENT = 1 << 1, /* kept in the store */
};

/* QEMU's rules and messages for all of these (the six bitmap commands).
 * granularity 0 = DIRTY_DEFAULT_GRANULARITY.  [gate closed]
 */
int dirty_add (struct dirty *d, const char *name, uint64_t granularity,
               unsigned flags, struct error *err);
/* Add a bitmap that was stored somewhere.  bits are copied and may have
 * another granularity (NULL = clean); state is not FROZEN; reason: of an
 * inconsistent one.  [gate closed]
 */
int dirty_load (struct dirty *d, const char *name, uint64_t granularity,
                const struct bitmap *bits, enum dirty_state state,
                const char *reason, bool is_persistent, struct error *err);
int dirty_remove (struct dirty *d, const char *name, struct error *err);
int dirty_clear (struct dirty *d, const char *name, struct error *err);
int dirty_enable (struct dirty *d, const char *name, struct error *err);
int dirty_disable (struct dirty *d, const char *name, struct error *err);
/* target |= every source.  All or nothing. */
int dirty_merge (struct dirty *d, const char *target,
                 struct dirty_bitmap *const *sources, size_t nr_sources,
                 struct error *err);

/* A new reference to the bitmap called name, or NULL.  Any time. */
struct dirty_bitmap *dirty_find (struct dirty *d, const char *name);
struct dirty_bitmap *dirty_ref (struct dirty_bitmap *bm);
void dirty_unref (struct dirty_bitmap *bm);

/* Exported by itself: busy, with QEMU's messages, until dirty_unuse.  A
 * read-only export refuses one that records.  Any time.
 */
int dirty_use (struct dirty_bitmap *bm, bool is_read_only, struct error *err);
void dirty_unuse (struct dirty_bitmap *bm);

/* Its bits cannot be trusted, for the given reason; not a frozen one.
 * [gate closed]
 */
void dirty_invalidate (struct dirty *d, struct dirty_bitmap *bm,
                       const char *reason);

/* Make what freezing needs and takes time: to be called before the gate is
 * closed.  Freezing makes it otherwise.  0 or -errno.
 */
int dirty_prepare_freeze (struct dirty *d, struct dirty_bitmap *bm);
/* Freeze for a session or job: from here on the bits of *bm stay as they are
 * and a successor records.  -EBUSY, -EINVAL with QEMU's messages.
 * [gate closed]
 */
int dirty_freeze (struct dirty *d, struct dirty_bitmap *bm,
                  struct error *err);
/* The same in two steps, for those that freeze bitmaps of many disks: in
 * memory; and in the store, which may be done by another thread.  If the second
 * fails the first is undone by dirty_merge_back.  [gate closed]
 */
int dirty_freeze_only (struct dirty *d, struct dirty_bitmap *bm,
                       struct error *err);
int dirty_freeze_commit (struct dirty *d, struct dirty_bitmap *bm,
                         struct error *err);
/* The backup ended in success: the successor takes over; the bitmap counts
 * from point.  Durable only after dirty_commit, like the next.  [gate closed]
 */
void dirty_drop (struct dirty *d, struct dirty_bitmap *bm,
                 const struct point_id *point);
/* Anything else: old bits or new bits; the base point stays.
 * [gate closed]
 */
void dirty_merge_back (struct dirty *d, struct dirty_bitmap *bm);

/* Make what the two above have done durable, with the gate open again; the
 * crash before it ends in dirty_merge_back.  Nothing to do without a store.
 * 0, or -errno: the store has failed.
 */
int dirty_commit (struct dirty *d);

/* Not a frozen one: its bits, or those of bits too.  Durable only after
 * dirty_commit.  [gate closed]
 */
void dirty_add_bits (struct dirty *d, struct dirty_bitmap *bm,
                     const struct bitmap *bits);

/* The frozen bits; valid until drop or merge back. */
const struct bitmap *dirty_frozen_bits (const struct dirty_bitmap *bm);

/* The bits of a bitmap that is not frozen.  [gate closed] */
const struct bitmap *dirty_bits (const struct dirty_bitmap *bm);

struct dirty_info {
  char *name;
  uint64_t granularity;
  uint64_t dirty_bytes;         /* of a frozen one: old bits or new bits, an
                                   upper bound */
  enum dirty_state state;
  bool is_recording;            /* it, or its successor */
  bool is_busy;                 /* frozen or used */
  bool is_persistent;
  struct point_id base;         /* counts from; none = never backed up */
  char reason[128];             /* why it is inconsistent */
  uint64_t over_estimate;       /* bytes that are dirty only because of a
                                   crash, at most */
};

/* In order of creation.  Caller frees with dirty_infos_free. */
int dirty_list (struct dirty *d, struct dirty_info **ret, size_t *ret_nr);
void dirty_infos_free (struct dirty_info *infos, size_t nr);
/* One bitmap's; free name only.  -ENOENT if it has been removed. */
int dirty_get_info (struct dirty_bitmap *bm, struct dirty_info *ret);
/* Does its info say so, also for a store that has just failed? */
bool dirty_is_inconsistent (struct dirty_bitmap *bm);

/* Append the dirty state of a prefix of [off, off+len): EXTENT_DIRTY or 0.  A
 * frozen bitmap shows old bits or new bits.  Any time; -ESTALE once the
 * bitmap has been removed or is inconsistent: doubt is an error, never clean.
 */
int dirty_extents (struct dirty_bitmap *bm, uint64_t len, uint64_t off,
                   struct extents *extents);
/* The same of the frozen bits alone: what a session has to pull.  -ESTALE if
 * the bitmap is not frozen (any more).
 */
int dirty_frozen_extents (struct dirty_bitmap *bm, uint64_t len, uint64_t off,
                          struct extents *extents);

/* All bitmaps follow the disk's size; a new tail is dirty.  -EBUSY if one is
 * frozen, -ENOMEM; nothing has changed then.  Durable only after dirty_commit;
 * the store's size is the caller's business.  [gate closed]
 */
int dirty_resize (struct dirty *d, uint64_t size);

/* The disk's size as they know it.  [gate closed] */
uint64_t dirty_size (const struct dirty *d);

/*---- The store ----*/

struct store;

/* Persistent bitmaps live in s, which stays the caller's and outlives them,
 * from now on.  Those of its bitmaps that can be trusted are added; and by the
 * second call those that cannot, unless another one of that name has been
 * added meanwhile.  0 or -errno.  [gate closed]
 */
int dirty_attach_store (struct dirty *d, struct store *s);
int dirty_attach_rest (struct dirty *d);
/* Between the two: is what has become of the bitmap called name in the store?
 * There is such a bitmap, or the store knows of everything that the server had
 * when it ended, and that it was removed.
 */
bool dirty_store_knows (struct dirty *d, const char *name);
/* For a change of the disk's file outside the gate: begin returns what the end
 * is to be given.
 */
struct store *dirty_begin_change (struct dirty *d);
void dirty_end_change (struct store *s);
/* Is there a store, and does it work? */
bool dirty_can_persist (struct dirty *d);
/* A reference to it, for store_unref, or NULL.  Any time. */
struct store *dirty_ref_store (struct dirty *d);
/* Let go of a store that has failed, for another one is to be attached at once:
 * what it had is INCONSISTENT from now on, and in memory.  0, -ENOMEM, or
 * -EBUSY while a bitmap of it is frozen; nothing has changed then.  [gate
 * closed]
 */
int dirty_detach_store (struct dirty *d);
/* Would that be -EBUSY?  [gate closed] */
bool dirty_holds_store (struct dirty *d);

/* Called for each bitmap that became inconsistent behind everybody's back, by
 * a thread without locks.  Set with the gate closed, or before any store.
 */
typedef void (*dirty_inconsistent_function) (void *opaque, const char *name,
                                             const char *reason);
void dirty_on_inconsistent (struct dirty *d,
                            dirty_inconsistent_function function,
                            void *opaque);

#endif /* TIDEMARK_DIRTY_H */
