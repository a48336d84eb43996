/* SPDX-License-Identifier: BSD-3-Clause */
/* The backups of one disk in a repository. */
#ifndef TIDEMARK_CHAIN_H
#define TIDEMARK_CHAIN_H

#include <stdbool.h>
#include <stddef.h>

#include "blk.h"
#include "error.h"
#include "manifest.h"
#include "point.h"

struct backup {
  unsigned number;
  bool is_full;
  struct manifest *manifest;    /* NULL: it could not be read, see error */
  struct error error;
  bool is_pending;              /* the server's answer has not come (yet) */
};

struct chain {
  char *disk;
  char *folder;                 /* its path */
  int dirfd;
  bool was_created;             /* by chain_open */
  struct backup *ptr;           /* by number, ascending */
  size_t len;
  unsigned max_number;          /* of any file in the folder */
};

/* Disk names become folder names. */
#define CHAIN_MAX_DISK_NAME 200
int chain_check_disk_name (const char *disk, struct error *err);

/* Load the manifests in REPO/DISK.  With create the folder is made if it is
 * not there; else its absence is an error that names the disk.  A manifest
 * that cannot be read is no error here: its entry says why.
 */
int chain_open (const char *repo, int repo_dirfd, const char *disk,
                bool create, struct chain **ret, struct error *err);
/* NULL is allowed. */
void chain_close (struct chain *chain);

/* The newest backup, or NULL. */
const struct backup *chain_head (const struct chain *chain);
/* The newest one that an incremental or differential may be based on: that is
 * none itself, nor a copy.  Or NULL.
 */
const struct backup *chain_trunk (const struct chain *chain);
const struct backup *chain_find_number (const struct chain *chain,
                                        unsigned number);
/* The backup whose image b's image is based on, or NULL. */
const struct backup *chain_backing (const struct chain *chain,
                                    const struct backup *b);

/* 0 if b and all that it is based on can be used; else -errno and *err names
 * what is missing.
 */
int chain_check_usable (const struct chain *chain, const struct backup *b,
                        struct error *err);

/* Select by "latest" or NULL, a number, a point (or 6 and more digits of it),
 * or a time: the newest backup that is not later.
 */
int chain_select (const struct chain *chain, const char *at,
                  const struct backup **ret, struct error *err);

/* I9: 0 if an incremental whose bitmap counts from base may be stored on the
 * trunk's newest; else -ESTALE and *err says why not.
 */
int chain_check_base (const struct chain *chain, const struct point_id *base,
                      struct error *err);

/* Open the image of b for reading.  is_alone: this layer without what it is
 * based on.
 */
int chain_open_image (const struct chain *chain, const struct backup *b,
                      bool is_alone, struct blk **ret, struct error *err);

#endif /* TIDEMARK_CHAIN_H */
