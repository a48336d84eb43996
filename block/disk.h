/* SPDX-License-Identifier: BSD-3-Clause */
/* The live disk: gate, dirty bitmaps, copy-before-write and node in the one
 * right order.  The only door for front ends.
 */
#ifndef TIDEMARK_DISK_H
#define TIDEMARK_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk.h"
#include "cbw.h"
#include "dirty.h"
#include "error.h"
#include "gate.h"

#define DISK_NAME_MAX 255

struct disk;

struct disk_options {
  const char *name;             /* letters, digits, "-", "_", "."; the NBD
                                   export's name */
  const char *file;
  const char *format;           /* NULL = raw */
  bool is_read_only;
  bool allow_backing;
  const char *scratch_dir;      /* NULL = cbw.h's default */
  uint64_t scratch_limit;
  enum cbw_on_error on_scratch_error;
};

int disk_open (const struct disk_options *options, struct disk **ret,
               struct error *err);
/* A disk over an open node, for tests and for nodes opened elsewhere.  Takes
 * ownership of node, on failure too.  options->file and format are not used.
 */
int disk_new (struct blk *node, const struct disk_options *options,
              struct disk **ret, struct error *err);
/* No session holds it, no I/O is in progress.  Flushes.  0 or -errno. */
int disk_close (struct disk *disk);

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
 * them.  granularity 0 = disk_default_granularity.  Any thread.
 */
int disk_bitmap_add (struct disk *disk, const char *name,
                     uint64_t granularity, bool is_disabled,
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

/* For sessions and jobs. */
struct gate *disk_gate (struct disk *disk);
struct dirty *disk_dirty (struct disk *disk);
struct cbw *disk_cbw (struct disk *disk);
/* cbw options as the disk was given them. */
void disk_cbw_options (const struct disk *disk, struct cbw_options *ret);

#endif /* TIDEMARK_DISK_H */
