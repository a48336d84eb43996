/* SPDX-License-Identifier: BSD-3-Clause */
/* What a run of backup writes down so that a later one can go on with it:
 * docs/format.md, "Unfinished backups".
 */
#ifndef TIDEMARK_JOURNAL_H
#define TIDEMARK_JOURNAL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "manifest.h"
#include "point.h"
#include "sums.h"

/* Whose journal it is. */
struct journal_key {
  const char *disk;
  unsigned number;
  bool is_full;
  struct point_id session;
  uint32_t cluster_size;
};

/* How far the pull of one disk has come. */
struct journal {
  bool is_complete;             /* image and checksum file are, and synced */
  /* Not complete: clusters before sums.next are in image and checksum file;
   * what else the image holds is right too.
   */
  struct sums_state sums;
  /* Complete: as in the manifest. */
  uint64_t data_bytes, zero_bytes, image_bytes;
  int64_t finished;
  uint8_t root[SUMS_HASH_SIZE];
};

/* Replace NAME.journal.partial in the folder; what it speaks of has been
 * synced.  0 or -errno with *err set.
 */
int journal_write (int dirfd, const struct journal_key *key,
                   const struct journal *j, struct error *err);
/* -ENOENT without a message if there is none; -EBADMSG if it is damaged, or
 * another one's.
 */
int journal_read (int dirfd, const struct journal_key *key,
                  struct journal *ret, struct error *err);

/* The run: REPO/run.partial, any JSON object.  Replace it, and sync. */
int journal_write_run (int dirfd, const json_t *run, struct error *err);
/* *ret: a new reference.  -ENOENT: there is none; -EBADMSG: it is damaged. */
int journal_read_run (int dirfd, json_t **ret);
bool journal_has_run (int dirfd);
void journal_remove_run (int dirfd);

#endif /* TIDEMARK_JOURNAL_H */
