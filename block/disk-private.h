/* SPDX-License-Identifier: BSD-3-Clause */
/* What disk.c (a disk at work) and disk-store.c (its store, its size) share. */
#ifndef TIDEMARK_DISK_PRIVATE_H
#define TIDEMARK_DISK_PRIVATE_H

#include <sys/stat.h>

#include "disk.h"
#include "image-bitmaps.h"
#include "store.h"

struct disk {
  struct blk blk;               /* the disk as a node; must be first */

  /* Fixed after disk_new. */
  char *name;
  unsigned number;
  struct blk *node;
  struct dirty *dirty;
  struct cbw *cbw;
  char *scratch_dir;            /* NULL = default */
  uint64_t scratch_limit;
  enum cbw_on_error on_scratch_error;
  char *path;                   /* of the disk's file; NULL = it is none of
                                   which anything is known */
  struct store_identity opened; /* what path named then; inode 0 = unknown */
  char *store_path;             /* NULL = no store */
  char *store_places[STORE_MAX_PLACES]; /* paths in store_options */
  struct store_options store_options;   /* less what changes */
  disk_inconsistent_function on_inconsistent;
  void *opaque;

  /* Written with the gate closed. */
  struct store *store;          /* NULL = none yet */
  char store_problem[256];      /* "" = none */
  bool is_store_foreign;        /* the problem is what is in the file, which is
                                   to be left alone */
  bool is_started;

  struct image_bitmaps_left left;       /* of a qcow2 image */

  struct gate gate;             /* its closer alone may change bitmaps */
};

/* disk-store.c */
/* Remember what options say about the store.  file: NULL = not a path of which
 * anything is known.  0 or -ENOMEM.
 */
int disk_store_configure (struct disk *d, const struct disk_options *options,
                          const char *file);
void disk_store_fini (struct disk *d);
/* Open the store if it is there, and load the bitmaps of it and of the image.
 * st: the file as it was before the node could change it; NULL = nothing is
 * known.  0, or -errno if the disk must not be used.
 */
int disk_load_bitmaps (struct disk *d, const struct statx *st,
                       struct error *err);
/* The last steps of closing, the node being closed: with is_clean the next
 * open need not recover.
 */
int disk_store_close (struct disk *d, bool is_clean);

#endif /* TIDEMARK_DISK_PRIVATE_H */
