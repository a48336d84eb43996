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
#define BACKUP_MAX_PARALLEL 16

enum backup_mode {
  BACKUP_AUTO,                  /* incremental if that is possible */
  BACKUP_INCREMENTAL,           /* or an error */
  BACKUP_FULL,
  BACKUP_DIFFERENTIAL,          /* likewise, and the bitmap stays as it is */
  BACKUP_COPY,                  /* all of the disk; no bitmap is touched */
};

struct backup_disk {
  char *name;
  char *uri;                    /* of the export */
  char *context;                /* dirty context; NULL = none */
  char *bitmap;                 /* NULL = none */
  enum backup_mode asked;
  bool is_incremental;          /* or differential */
  bool is_aside;                /* differential or copy: no later backup counts
                                   from this one */
  char why[256];
  char reason[256];             /* set: a full backup is needed because */
  uint64_t size;                /* 0 = not known before the export is open */
  uint64_t dirty_bytes;
  struct point_id base;         /* none unless incremental from a session */
  struct chain *chain;
  unsigned number;              /* of the backup */
  struct manifest *manifest;    /* what will be stored; NULL: not begun */
  bool is_failed;               /* it is not part of the set */
  bool is_lost;                 /* it has failed because the server is out of
                                   reach */
  uint64_t read_bytes;
  double seconds;
};

struct backup_run {
  /* From the command line. */
  const char *source;
  const struct options *options;
  bool is_partial_ok;           /* one disk may fail without the others */
  uint32_t cluster_size;
  bool compress;
  enum qcow2_compression compression;
  int compression_level;        /* 0 = default */
  unsigned nr_connections;      /* 0 = blk-nbd's default */
  unsigned nr_parallel;         /* disks pulled side by side, at most */
  unsigned nr_threads;          /* of a disk's copy engine */
  uint64_t memory_limit;        /* of all */
  uint64_t pack_memory;         /* of a thread's compression */
  uint64_t memory;              /* of one copy engine's buffers */
  unsigned lease;
  unsigned retry, timeout;      /* as struct wire_options */
  struct bandwidth bandwidth;   /* of all disks */
  unsigned freeze_timeout;
  struct error freeze_error;    /* set: the guest was not frozen any more */

  struct repo *repo;
  struct control *control;      /* NULL: a plain NBD server */
  char session[POINT_ID_STRING_SIZE]; /* "" = none */
  struct point_id point;
  int64_t time;
  struct backup_disk *disks;
  size_t nr_disks;
  bool is_noted;                /* its journal is there, and ours */
  bool is_resumed;              /* goes on with what another run has left */
  bool is_partial;              /* some disks have failed, others not */
  bool is_lost;                 /* the server is out of reach: what is there
                                   is kept for another run */
};

/* backup-memory.c: what of --memory is whose.  An error if it is too little for
 * the compression and the clusters that are asked for.
 */
int backup_set_memory (struct backup_run *run, uint64_t memory,
                       struct error *err);
/* The disks are known: how many may be pulled side by side, and what each then
 * has.
 */
void backup_share_out (struct backup_run *run);

/* backup-mode.c: --mode and --full.  Names as on the command line. */
const char *backup_mode_name (enum backup_mode mode);
/* Can they be understood? */
int backup_check_modes (const struct options *options, struct error *err);
/* Are the disks that they name among these, an array of strings? */
int backup_check_mode_disks (const struct options *options,
                             const json_t *disks, struct error *err);
/* Do they name any? */
bool backup_has_disk_modes (const struct options *options);
/* disk NULL: of those that are not named. */
enum backup_mode backup_asked_mode (const struct options *options,
                                    const char *disk);
json_t *backup_modes_to_json (const struct options *options);
/* What it has become: "incremental", "full", "differential", "copy". */
const char *backup_disk_mode (const struct backup_disk *d);

/* backup-begin.c.  Connect to the control socket, take the point, and again
 * with mode full for disks whose base is not what their chain needs.
 */
int backup_begin_session (struct backup_run *run, struct error *err);

/* resume.c.  Go on with the session of a run that has not ended, if it is
 * there, and with what that has left, if this one is to do the same.  1: the
 * session goes on.  0: there is nothing, or nothing that can be gone on with,
 * and that has been said and removed.  -errno.
 */
int backup_resume (struct backup_run *run, struct error *err);
/* Write down what backup_resume has to know: before the session is begun, and
 * after.
 */
int backup_note_run (struct backup_run *run, struct error *err);

/* backup-answer.c.  What the server answered to backup-begin or backup-attach:
 * fills the run's disks and opens their chains.
 */
int backup_parse_answer (struct backup_run *run, const json_t *o,
                         struct error *err);
/* The error for a disk without any bytes. */
int backup_refuse_empty (const char *disk, struct error *err);
/* Of backup-begin: is it about what was asked for? */
int backup_check_answer (const struct backup_run *run, struct error *err);
/* The chain of a disk that has a name; and the number of the next backup. */
int backup_open_chain (struct backup_run *run, struct backup_disk *d,
                       struct error *err);

/* backup-set.c.  Pull all disks, each with backup_pull_disk.  A failure is that
 * of one that must not fail, or of all; their files are left to the caller.
 */
int backup_pull_disks (struct backup_run *run, struct error *err);
/* For the pull of one: what turns true when all are to stop, and nodes that are
 * to be cancelled then.  Any thread.
 */
struct backup_set;
const volatile bool *backup_set_flag (const struct backup_set *s);
void backup_set_add (struct backup_set *s, struct blk *source);
void backup_set_remove (struct backup_set *s, const struct blk *source);
/* Has any been added?  Then the server can be reached in the way that it says,
 * or could be.
 */
bool backup_set_has_read (struct backup_set *s);
struct repo_item backup_make_item (const struct backup_run *run,
                                   const struct backup_disk *d);

/* backup-pull.c.  Pull one disk: its manifest is filled, its files are
 * complete, synced and named ".partial".
 */
int backup_pull_disk (struct backup_run *run, struct backup_set *set,
                      struct backup_disk *d, struct error *err);

/* What an interrupted run has written down of the disk: 1; 0 if there is
 * nothing, so that nothing has been trimmed from the session either; -errno if
 * it, or what it speaks of, is damaged.
 */
struct journal;
int backup_find_journal (const struct backup_run *run,
                         const struct backup_disk *d, struct journal *ret,
                         struct error *err);

/* An error: the incremental that was asked for is not possible, for reason. */
int backup_refuse (const struct backup_disk *d, struct error *err);

/* True if the disk's incremental fits no chain; its reason says why. */
bool backup_is_misfit (struct backup_disk *d);

/* backup-nbd.c.  Of a plain NBD server: how the chain and the options decide
 * the disk's mode; and, when its export is open, how its size does.
 */
int backup_decide_nbd (struct backup_run *run, struct backup_disk *d,
                       struct error *err);
int backup_check_size (struct backup_run *run, struct backup_disk *d,
                       struct blk *source, struct error *err);

/* estimate.c.  --estimate: print what a run into the repository at path would
 * pull.
 */
int backup_estimate (struct backup_run *run, const char *path,
                     enum source_kind kind, struct error *err);

/* The one disk of a plain NBD server, named by --disk. */
int backup_begin_nbd (struct backup_run *run, struct error *err);

/* backup-end.c.  Tell the server how it ended; of a success, which bitmaps are
 * not to count from here: those of disks that have failed, or are asides.  No
 * session: nothing to do.
 */
int backup_end_session (struct backup_run *run, bool is_success,
                        struct error *err);

/* Why the disk's next backup has to be full, apart from what the bitmap says;
 * "" if nothing is in the way.  size 0: not known.
 */
void backup_check_chain (const struct backup_disk *d, uint64_t size,
                         char reason[256]);

void backup_free_disks (struct backup_run *run);

#endif /* TIDEMARK_BACKUP_H */
