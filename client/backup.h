/* SPDX-License-Identifier: BSD-3-Clause */
/* One run of "tidemark backup": a set of disks at one point in time. */
#ifndef TIDEMARK_BACKUP_H
#define TIDEMARK_BACKUP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk.h"
#include "chain.h"
#include "control.h"
#include "error.h"
#include "manifest.h"
#include "cmdline.h"
#include "point.h"
#include "pull.h"
#include "repo.h"

#define BACKUP_MAX_CONNECTIONS 64

struct backup_disk {
  char *name;
  char *uri;                    /* of the export */
  char *context;                /* dirty context; NULL = none */
  char *bitmap;                 /* NULL = none */
  bool is_incremental;
  char why[256];
  char reason[256];             /* set: a full backup is needed because */
  uint64_t size;                /* 0 = not known before the export is open */
  uint64_t dirty_bytes;
  struct point_id base;         /* none unless incremental from a session */
  struct chain *chain;
  struct manifest *manifest;    /* what will be stored */
  uint64_t read_bytes;
  double seconds;
};

struct backup_run {
  /* From the command line. */
  const char *source;
  const struct options *options;
  bool is_full;                 /* asked for */
  uint32_t cluster_size;
  bool compress;
  enum qcow2_compression compression;
  int compression_level;        /* 0 = default */
  unsigned nr_connections;      /* 0 = blk-nbd's default */
  unsigned lease;

  struct repo *repo;
  struct control *control;      /* NULL: a plain NBD server */
  char session[POINT_ID_STRING_SIZE]; /* "" = none */
  struct point_id point;
  int64_t time;
  struct backup_disk *disks;
  size_t nr_disks;
};

/* Connect to the control socket, take the point, and again with mode full for
 * disks whose base is not what their chain needs.
 */
int backup_begin_session (struct backup_run *run, struct error *err);

/* The one disk of a plain NBD server, named by --disk. */
int backup_begin_nbd (struct backup_run *run, struct error *err);

/* Tell the server how it ended.  No session: nothing to do. */
int backup_end_session (struct backup_run *run, bool is_success,
                        struct error *err);

/* Why the next backup in this chain has to be full, apart from what the bitmap
 * says; "" if nothing is in the way.  size 0: not known.
 */
void backup_check_chain (const struct chain *chain, uint64_t size,
                         char reason[256]);

void backup_free_disks (struct backup_run *run);

#endif /* TIDEMARK_BACKUP_H */
