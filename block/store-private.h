/* SPDX-License-Identifier: BSD-3-Clause */
/* What store.c (a store at work), store-layout.c (its file), store-open.c (how
 * one is made and found) and store-recover.c share.
 */
#ifndef TIDEMARK_STORE_PRIVATE_H
#define TIDEMARK_STORE_PRIVATE_H

#include "intent.h"
#include "lock.h"
#include "range.h"
#include "store-format.h"
#include "store.h"
#include "vector.h"

/* A mapped part of the file. */
struct store_map {
  uint64_t off, len;
  void *addr;                   /* NULL = not mapped */
};

struct store_array {
  /* Fixed after new. */
  struct store *store;          /* a reference */
  struct store_map map;
  uint64_t nr_bits;

  _Atomic unsigned refs;
};

DEFINE_VECTOR (store_array_list, struct store_array *);
DEFINE_VECTOR (range_list, struct range);

struct store {
  /* Fixed after open. */
  const struct store_io *io;
  void *file;
  char *path;
  struct store_map live_map;
  struct store_live *live;
  uint64_t max_active;
  pthread_t thread;
  char loss[STORE_REASON_SIZE];
  struct store_place places[STORE_MAX_PLACES];
  uint64_t recovered_regions;
  bool was_unclean;
  bool is_believed;
  bool is_open;                 /* all the above is known */

  /* Atomic. */
  _Atomic unsigned refs;        /* the owner's, one for each array, others */
  _Atomic bool has_failed;
  _Atomic uint64_t live_synced; /* a time of change that is on disk */
  _Atomic bool is_copy_due;     /* the older slot has an older table; changed
                                   with the claim */

  struct lock lock;
  /* Protected by lock. */
  pthread_cond_t changed;
  bool is_claimed;
  bool is_retiring;
  bool has_thread;
  bool is_stopping;
  bool is_failing;              /* somebody is recording it */
  bool is_failure_known;        /* the function has been called, */
  bool is_failure_told;         /* and has returned */
  bool is_failure_durable;
  char failure[STORE_REASON_SIZE];
  void (*on_failure) (void *opaque);
  void *opaque;
  void (*on_pass) (void *opaque);
  void *pass_opaque;
  struct store_array_list arrays;       /* alive */
  struct range_list committed;  /* what the table refers to */

  /* Changed by whoever has the claim, or during open and close. */
  bool locks_maps;              /* since store_start */
  bool is_removed;              /* has no file of that name any more */
  bool is_noted;                /* elsewhere: it has failed */
  struct store_header header;   /* as it is on disk */
  uint64_t older_slot;          /* where the slot is that does not hold */
  struct store_record *records; /* likewise; header.nr_bitmaps */
  struct store_map intent_map;
  struct intent *intent;        /* changes with nobody inside the gate */
  uint8_t *slot;                /* STORE_SLOT_SIZE bytes to encode into: the
                                   table as it was last written */
  size_t slot_len;
  struct store_entry *entries;  /* found at open */
  size_t nr_entries;
};

/* store.c */
int store_new (const struct store_options *options, struct store **ret);
/* The latest of the times in the live page. */
uint64_t store_last_change (const struct store *s);
/* Start the intents over the map that header says. */
int store_start_intents (struct store *s);

/* store-layout.c */
int store_map (struct store *s, uint64_t off, uint64_t len,
               struct store_map *ret);
/* Of what another process has left. */
int store_map_existing (struct store *s, uint64_t off, uint64_t len,
                        struct store_map *ret);
void store_unmap (struct store *s, struct store_map *map);
int store_sync_map (struct store *s, const struct store_map *map);
/* A place of len bytes (whole pages) that nothing uses, with zeroes, mapped. */
int store_allocate (struct store *s, uint64_t len, struct store_map *ret);
/* An array over a part of the file that is in use. */
int store_array_at (struct store *s, uint64_t off, uint64_t nr_bits,
                    struct store_array **ret);
/* What the table has as the sum of it. */
uint32_t store_array_sum (const struct store_array *a);
/* Write header and records to both slots. */
int store_write_slots (struct store *s);
/* Bring up to date what the table refers to. */
int store_note_committed (struct store *s);
/* Make the second copy of the table if that is due; without the claim. */
void store_copy_table (struct store *s);
/* Make it durable that the store has failed, or have no file; false = neither
 * could be done.
 */
bool store_mark_or_remove (struct store *s);

/* store-note.c */
enum store_note {
  STORE_NOTE_NONE,
  STORE_NOTE_FAILED,            /* this store has failed */
  STORE_NOTE_MISSING,           /* it could not be opened */
};

int store_copy_places (struct store *s, const struct store_options *options);
void store_free_places (struct store *s);
/* Note elsewhere that the store has failed.  0 or -errno. */
int store_note_failure (const struct store *s);
enum store_note store_find_note (const struct store *s);
/* Whatever is noted of the store at this path, or of one with that id (NULL =
 * of no other).
 */
void store_forget_notes (const struct store *s, const struct point_id *id);

/* store-recover.c */
int store_recover (struct store *s, const struct store_options *options,
                   struct error *err);

#endif /* TIDEMARK_STORE_PRIVATE_H */
