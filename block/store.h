/* SPDX-License-Identifier: BSD-3-Clause */
/* The crash-safe file that holds the persistent bitmaps of one disk.  Format:
 * docs/format.md.
 *
 * The store keeps a table of bitmaps and their arrays of bits.  The arrays are
 * mapped, so that setting a bit is a store to memory; which of them the disk
 * has only an old version of is what the intents say (intent.h).  What a
 * bitmap's state means is dirty.c's business.
 */
#ifndef TIDEMARK_STORE_H
#define TIDEMARK_STORE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "point.h"
#include "store-io.h"

#define STORE_DEFAULT_REGION (UINT64_C (4) << 20)
#define STORE_MIN_REGION UINT64_C (4096)
#define STORE_DEFAULT_MAX_ACTIVE 16384  /* regions */
#define STORE_MAX_BITMAPS 64
#define STORE_REASON_SIZE 128
#define STORE_MAX_PLACES 4

struct store;
struct store_array;             /* the bits of one array, in the file and
                                   mapped */

/* By what a store knows its disk again.  All zero = nothing is known of it
 * (it is not a regular file), its size alone counts.
 */
struct store_identity {
  uint64_t inode;
  int64_t birth_ns;             /* 0 = unknown */
  int64_t mtime_ns;
  uint64_t file_size;           /* bytes of the file: not the disk's size if it
                                   has a format */
};

struct store_options {
  const char *path;
  const char *disk_path;        /* what the disk is, for messages; NULL = not
                                   known */
  const struct store_io *io;    /* NULL = the system's; must outlive it */
  uint64_t disk_size;
  struct store_identity identity;       /* of the disk as it is now */
  uint64_t region_size;         /* power of two; 0 = default; of a new store */
  uint64_t max_active;          /* regions; 0 = default */
  bool must_exist;              /* -ENOENT rather than make it; without a
                                   message, as that is nothing unusual */
  bool is_new;                  /* an empty one in the place of what is there,
                                   unless another process has that */
  struct store *replaces;       /* is_new: what is there is perhaps this one,
                                   which has failed; or NULL */
  /* Make the size of the disk durable; NULL = it is.  Called by store_open if
   * the disk was being resized, when it may have its old size again after a
   * power cut.
   */
  int (*sync_disk) (void *opaque);
  void *opaque;
  /* Where it is noted, at the first that takes it, that the store has failed if
   * it cannot say so itself, and looked for at open.
   */
  struct store_place places[STORE_MAX_PLACES];
};

/* A bitmap as the table has it. */
enum store_state {
  STORE_RECORDING = 0,
  STORE_DISABLED = 1,
  STORE_INCONSISTENT = 2,
};

struct store_entry {
  char *name;
  uint64_t granularity;
  enum store_state state;       /* FROZEN: what it was before */
  struct point_id base;
  uint64_t over_estimate;       /* bytes that are dirty for a crash only */
  char reason[STORE_REASON_SIZE];       /* INCONSISTENT */
  struct store_array *bits;     /* NULL if INCONSISTENT and lost */
  struct store_array *successor;        /* not NULL = FROZEN */
};

/* Open the store, or make it.  What was found in it has been recovered: no
 * bitmap is frozen, and what cannot be trusted is INCONSISTENT, with a reason.
 * -EBUSY: another process (or disk) has it.  -EINVAL: it is no store, or of a
 * newer version, and has been left alone.  Other errors: of the system.
 */
int store_open (const struct store_options *options, struct store **ret,
                struct error *err);

/* It has not been possible to open the store, and the disk is going to be
 * changed: whoever opens it later makes its bitmaps INCONSISTENT, unless it is
 * known that nothing has changed.  Or it is renamed.  Durable on return.  0, or
 * -errno: nothing of that could be done.
 */
int store_note_missing (const struct store_options *options);

/* What was found, until store_forget_entries.  Who keeps an array takes a
 * reference.
 */
const struct store_entry *store_entries (const struct store *s,
                                         size_t *ret_nr);
void store_forget_entries (struct store *s);

/* Has what an earlier process left been believed: nobody else has had the disk
 * since?
 */
bool store_is_believed (const struct store *s);

/* Why nothing is left of an earlier store, in words; "" if there is no such
 * thing to say.
 */
const char *store_loss (const struct store *s);
const char *store_path (const struct store *s);

/* Start the thread that retires regions now and then (after any fork), stop it.
 * Without it that is done only when there is no room, or by store_retire.  From
 * the start on the maps are locked in memory.
 */
int store_start (struct store *s);
void store_stop (struct store *s);

/* Everything to disk; the next open need not recover.  identity: of the disk
 * now that nothing will change it any more.  No writer is in progress.  The
 * store is gone, also on failure; its arrays may be freed later.
 */
int store_close (struct store *s, const struct store_identity *identity);
/* As if the process had died: for tests, and for one that has been replaced. */
void store_abandon (struct store *s);

/* One more reference: the store stays, as it is, until the last one is given
 * back.  Any thread.
 */
struct store *store_ref (struct store *s);
void store_unref (struct store *s);

/* A new array of nr_bits clear bits, on disk too. */
int store_array_new (struct store *s, uint64_t nr_bits,
                     struct store_array **ret);
struct store_array *store_array_ref (struct store_array *a);
/* One reference less.  Without any, its space is used again once the table does
 * not refer to it either.
 */
void store_array_free (struct store_array *a);
void *store_array_words (const struct store_array *a);
int store_array_sync (struct store_array *a);
/* The first part from byte pos on, of whole pages, that may have bits set, in
 * bytes; false = there is none.  A file system that cannot tell makes it the
 * rest.
 */
bool store_array_next_data (const struct store_array *a, uint64_t pos,
                            struct range *ret);

/* Make the table what entries say, at once and durably; the thread, or
 * store_retire, makes a second copy of it.  Arrays and strings
 * are borrowed; the arrays' bits that nobody is just setting are on disk
 * already.  Between store_claim and store_unclaim, which make one thread at a
 * time.  On failure the store has failed.
 */
void store_claim (struct store *s);
void store_unclaim (struct store *s);
int store_commit (struct store *s, const struct store_entry *entries,
                  size_t nr);

/* From the next store_commit on the disk is of disk_size bytes, or just now
 * still (or again) of other_size, a smaller one; 0 = it is not.  Nobody is
 * inside the gate, and store_intent has to be asked again.
 */
int store_set_size (struct store *s, uint64_t disk_size,
                    uint64_t other_size);

/*---- Failure ----*/

/* True once the store could not write something: from then on its bitmaps are
 * INCONSISTENT in the file, or that too could not be written.
 */
bool store_has_failed (const struct store *s);
/* In words; "" if it has not. */
void store_failure (struct store *s, char ret[STORE_REASON_SIZE]);
/* what could not be written, by the one with the claim. */
void store_fail (struct store *s, const char *what, int error);
/* Called once, from a thread of the store's, without locks, after the failure
 * has been recorded.  May close the gate.
 */
void store_on_failure (struct store *s, void (*function) (void *opaque),
                       void *opaque);
/* If the store has failed and its thread runs: wait until that function has
 * returned.  Not with the gate closed.
 */
void store_await_failure (struct store *s);
/* Has it failed, and is there nothing to wait for?  Then the thread can be
 * stopped with the gate closed.
 */
bool store_is_over (struct store *s);

/* Called with each pass of store_retire that is not for all, without locks. */
void store_on_pass (struct store *s, void (*function) (void *opaque),
                    void *opaque);

/*---- The write path ----*/

/* A change of the disk begins, and has been made (or has failed); by the same
 * thread.  Kept in the file's mapping: whoever opens the store after a crash of
 * the process knows whether a change was in progress, and when the last one was
 * made.
 */
void store_change_begin (struct store *s);
void store_change_end (struct store *s);

/* Which regions may have bits that the disk does not have: intent_mark. */
struct intent *store_intent (struct store *s);

/* One pass of the background work: copy the table, write back arrays, retire
 * idle regions, or all with is_all.  -errno if the store has failed.
 */
int store_retire (struct store *s, bool is_all);

struct store_info {
  uint64_t generation;
  uint64_t region_size;
  uint64_t nr_active;           /* regions */
  uint64_t max_active;
  uint64_t over_estimate;       /* bytes that would be dirty for no other
                                   reason after a power cut just now, at
                                   most */
  uint64_t recovered_regions;   /* taken as dirty at open */
  bool was_unclean;             /* at open */
  uint64_t intent_off, intent_len;      /* the intent map in the file */
};
/* May wait for a table that is just being written: as store_claim. */
void store_get_info (struct store *s, struct store_info *ret);

#endif /* TIDEMARK_STORE_H */
