/* SPDX-License-Identifier: BSD-3-Clause */
/* The live disk: gate, dirty bitmaps, copy-before-write and node in the one
 * right order.  The only door for front ends.
 */
#ifndef TIDEMARK_DISK_H
#define TIDEMARK_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk-qcow2.h"
#include "blk.h"
#include "cbw.h"
#include "dirty.h"
#include "error.h"
#include "gate.h"
#include "store-io.h"

#define DISK_NAME_MAX 255

struct disk;
struct statx;

/* A bitmap has become inconsistent behind everybody's back; from a thread
 * without locks.
 */
typedef void (*disk_inconsistent_function) (void *opaque, const char *disk,
                                            const char *bitmap,
                                            const char *reason);

struct disk_options {
  const char *name;             /* letters, digits, "-", "_", "."; the NBD
                                   export's name */
  const char *file;
  const char *format;           /* NULL = raw */
  bool is_read_only;
  bool allow_backing;
  struct qcow2_cache_sizes cache;       /* of a qcow2 image */
  const char *scratch_dir;      /* NULL = cbw.h's default */
  uint64_t scratch_limit;
  enum cbw_on_error on_scratch_error;
  /* Where persistent bitmaps are kept: NULL = with disk_open FILE.tidemark, if
   * file is a regular one; "" = nowhere.  Made with the first of them.
   */
  const char *store;
  /* With disk_new: what file was before the node could change it; NULL = file
   * is nothing that a store could know again.
   */
  const struct statx *file_stat;
  disk_inconsistent_function on_inconsistent;   /* NULL = nobody asks */
  void *opaque;
  /* For tests. */
  const struct store_io *store_io;
  uint64_t store_region_size;
  uint64_t store_max_active;
};

int disk_open (const struct disk_options *options, struct disk **ret,
               struct error *err);
/* A disk over an open node, for tests and for nodes opened elsewhere.  Takes
 * ownership of node, on failure too.  options->format is not used, file only
 * with file_stat.
 */
int disk_new (struct blk *node, const struct disk_options *options,
              struct disk **ret, struct error *err);
/* No session holds it, no I/O is in progress.  Flushes.  0 or -errno. */
int disk_close (struct disk *disk);
/* The background work of its store: start (after any fork), and stop. */
int disk_start (struct disk *disk);
void disk_stop (struct disk *disk);
/* Close it as if the process had died: for tests. */
void disk_abandon (struct disk *disk);

/* The node below may have another size, for it was used by itself meanwhile:
 * follow it.  The disk has no bitmaps and is not in use.
 */
void disk_update_size (struct disk *disk);

const char *disk_name (const struct disk *disk);
uint64_t disk_size (const struct disk *disk);
/* Order of creation in the process: gates are closed in this order. */
unsigned disk_number (const struct disk *disk);

/* The guest's I/O.  Rules and flags as blk_*. */
int disk_pread (struct disk *disk, void *buf, uint64_t len, uint64_t off,
                unsigned flags);
int disk_pwrite (struct disk *disk, const void *buf, uint64_t len,
                 uint64_t off, unsigned flags);
int disk_zero (struct disk *disk, uint64_t len, uint64_t off, unsigned flags);
int disk_trim (struct disk *disk, uint64_t len, uint64_t off, unsigned flags);
int disk_flush (struct disk *disk);
int disk_cache (struct disk *disk, uint64_t len, uint64_t off);
int disk_extents (struct disk *disk, uint64_t len, uint64_t off,
                  unsigned flags, enum blk_status status,
                  struct extents *extents);

/* The disk as a node whose calls are the ones above, for servers (owned by
 * the disk, not to be closed).
 */
struct blk *disk_blk (struct disk *disk);
/* The node below, for queries only. */
struct blk *disk_node (struct disk *disk);

/* The granularity of a new bitmap that is given none: the format's cluster
 * size within 4 KiB to 64 KiB, 64 KiB for raw disks.
 */
uint64_t disk_default_granularity (const struct disk *disk);

/* The six bitmap commands: dirty.h's functions with the gate closed around
 * them.  granularity 0 = disk_default_granularity; flags: DIRTY_IS_*; a
 * persistent one makes the store if need be.  Any thread.
 */
int disk_bitmap_add (struct disk *disk, const char *name,
                     uint64_t granularity, unsigned flags,
                     struct error *err);
int disk_bitmap_remove (struct disk *disk, const char *name,
                        struct error *err);
int disk_bitmap_clear (struct disk *disk, const char *name,
                       struct error *err);
int disk_bitmap_enable (struct disk *disk, const char *name,
                        struct error *err);
int disk_bitmap_disable (struct disk *disk, const char *name,
                         struct error *err);
int disk_bitmap_merge (struct disk *disk, const char *target,
                       struct dirty_bitmap *const *sources,
                       size_t nr_sources, struct error *err);

/* Persistent bitmaps.  disk_make_store: there is a store that works, or an
 * image that keeps bitmaps; else -errno, and why.  One that has failed is
 * replaced by a new one.  disk_store: NULL = none (yet); for those that know
 * that none is being replaced.  disk_ref_store: for all others, to be given
 * to store_unref.
 */
int disk_make_store (struct disk *disk, struct error *err);
struct store *disk_store (struct disk *disk);
struct store *disk_ref_store (struct disk *disk);
/* Would a persistent bitmap be one just now?  [gate closed] */
bool disk_can_persist (struct disk *disk);
/* Can the disk have a store at all? */
bool disk_can_have_store (const struct disk *disk);
/* Why an earlier store of the disk is of no use, in words; "" if there is no
 * such thing to say.
 */
const char *disk_store_problem (const struct disk *disk);

/* The bitmap called name, which is to be there from the start: one that is
 * there already, or a new one, which is inconsistent if a store that may have
 * had it is of no use.
 */
int disk_bitmap_ensure (struct disk *disk, const char *name,
                        uint64_t granularity, unsigned flags,
                        struct error *err);

/* Change the size.  Refused with -EBUSY while a view or a frozen bitmap holds
 * the disk; nothing has changed then.  Clients see it when they connect anew.
 */
int disk_resize (struct disk *disk, uint64_t size, struct error *err);

/* For sessions and jobs. */
struct gate *disk_gate (struct disk *disk);
struct dirty *disk_dirty (struct disk *disk);
struct cbw *disk_cbw (struct disk *disk);
/* cbw options as the disk was given them. */
void disk_cbw_options (const struct disk *disk, struct cbw_options *ret);

#endif /* TIDEMARK_DISK_H */
