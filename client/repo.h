/* SPDX-License-Identifier: BSD-3-Clause */
/* The repository: a directory of backup chains.  docs/format.md has the
 * layout.
 */
#ifndef TIDEMARK_REPO_H
#define TIDEMARK_REPO_H

#include <stdbool.h>
#include <stddef.h>

#include "chain.h"
#include "error.h"
#include "point.h"

struct repo {
  char *path;
  int dirfd;
  int lockfd;                   /* -1 = not locked */
  struct point_id id;
};

/* Open for reading: takes no lock, because what is finished never changes.
 * -ENOENT: repo_open_locked would make it, if its parent is there.
 */
int repo_open (const char *path, struct repo **ret, struct error *err);

/* Open for writing: made if the folder is missing (its parent must be there)
 * or empty, locked until repo_close, and cleared of what a crash left behind
 * (said with progress_say); but if there is the journal of a run, an unfinished
 * set that this run may be gone on with is kept, its files ".partial".
 */
int repo_open_locked (const char *path, struct repo **ret,
                      struct error *err);
/* Remove that too, and the journal. */
int repo_clear (struct repo *repo, struct error *err);
/* NULL is allowed. */
void repo_close (struct repo *repo);

/* Names of the disks that have a folder, sorted; the caller frees them and the
 * array with repo_free_names.
 */
int repo_disks (const struct repo *repo, char ***ret, size_t *ret_nr,
                struct error *err);
void repo_free_names (char **names, size_t nr);

/* A stored image of a set that is about to appear. */
struct repo_item {
  struct chain *chain;
  const struct manifest *manifest;
  bool is_acknowledged;         /* the server is not waiting for an answer */
};

/* Make the items of one session appear, all or none.  Their images and
 * checksum files are complete, synced and named ".partial".  On failure
 * everything of the set has been removed, unless *ret_is_stored turned true:
 * then the set is stored and only the sync of a folder failed.
 */
int repo_commit (struct repo *repo, const struct repo_item *items, size_t nr,
                 bool *ret_is_stored, struct error *err);

/* Remove what has been written of a backup that will not appear. */
void repo_discard (const struct repo_item *items, size_t nr);

/* The server has acknowledged: the bitmap counts from this backup's point. */
void repo_acknowledged (const struct repo_item *items, size_t nr);

#endif /* TIDEMARK_REPO_H */
