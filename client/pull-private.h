/* SPDX-License-Identifier: BSD-3-Clause */
/* Private to the pull of a disk: its object and the calls between its files.
 *
 *   pull.c         what the copy engine asks for; beginning and end
 *   pull-map.c     the thread that reads the map
 *   pull-files.c   image and checksum file
 *   pull-save.c    the threads that save and trim
 */
#ifndef TIDEMARK_PULL_PRIVATE_H
#define TIDEMARK_PULL_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "copy.h"
#include "dirtymap.h"
#include "lock.h"
#include "pull.h"
#include "vector.h"

DEFINE_VECTOR (offsets, uint64_t);

struct pull {
  /* Fixed while it runs. */
  const struct pull_options *options;
  const struct sums_state *resume;      /* NULL: a new image */
  struct dirty_map *map;
  struct blk *target;
  struct sums_writer *sums;
  int image_fd, sums_fd;        /* image_fd: another one than target's */

  /* The engine's next, one thread at a time. */
  struct dirty_runs batch;
  size_t pos;                   /* in batch */
  size_t max_item;
  struct extents held;          /* gone on with: what the image holds from
                                   held.ptr[0].off on, a piece */
  void *buf;                    /* likewise: of max_item */

  /* Atomic. */
  _Atomic uint64_t written;

  bool is_begun;                /* the files are there; the main thread's */
  pthread_t mapper;
  struct lock lock;
  pthread_cond_t cond;          /* any of these changed */
  /* Protected by lock. */
  struct dirty_runs ready;
  bool has_ready, at_end, is_stopping;
  bool is_hungry;               /* the engine waits for a batch */
  struct error map_error;
  struct offsets handled;       /* items whose hash is known, or that are zero,
                                   and that are not yet in the image */
  uint64_t saved;               /* of written */
  bool is_waiting;              /* the saver, for handled */

  uint64_t saved_end;           /* what is before may be trimmed */

  pthread_t trimmer;
  bool has_trimmer;
  pthread_cond_t trim_cond;     /* the trimmer has something to look at */
  pthread_t saver;
  bool has_saver;
  pthread_cond_t save_cond;     /* the saver has something to look at */
};

/* pull-map.c.  The thread stops with an error once *options->cancel is true. */
int pull_map_start (struct pull *p, struct error *err);
void pull_map_stop (struct pull *p);
/* The next batch, for p->batch: 1, 0 at the end, -errno. */
int pull_take_batch (struct pull *p);

/* pull-files.c.  Image and checksum file, new, or those of the old run. */
int pull_make_files (struct pull *p, struct error *err);
/* All is written: metadata, header, checksums, all on stable storage. */
int pull_finish_files (struct pull *p, struct pull_result *ret,
                       struct error *err);

/* pull-save.c. */
int pull_save_start (struct pull *p, struct error *err);
/* Not started: nothing to do. */
void pull_save_stop (struct pull *p);
/* Save now.  Not beside the thread. */
int pull_save (struct pull *p, struct error *err);
/* The item's hash is known, so that a save may take it for stored, which it
 * will be when it is unhandled.
 */
int pull_handle (struct pull *p, const struct copy_item *item);
void pull_unhandle (struct pull *p, const struct copy_item *item);

#endif /* TIDEMARK_PULL_PRIVATE_H */
