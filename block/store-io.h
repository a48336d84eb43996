/* SPDX-License-Identifier: BSD-3-Clause */
/* What a store does to its file: a table of functions, so that tests can put
 * a recorder, or a file system that loses power, under it.
 *
 * Rules that the store keeps, whatever is below:
 *
 * - What is written by pwrite or stored into a map can reach the disk at any
 *   moment, in any order, in units of 512 bytes.  It is on the disk for certain
 *   only after a sync that covers it (pwrite with STORE_IO_DURABLE, sync,
 *   sync_map) has returned 0.
 * - After a sync that failed nothing is known about what it covered, and a
 *   later one that succeeds does not change that.
 */
#ifndef TIDEMARK_STORE_IO_H
#define TIDEMARK_STORE_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "range.h"

enum {
  STORE_IO_DURABLE = 1 << 0,    /* pwrite: its range is durable on return */
};

enum store_io_open {
  STORE_IO_EXISTING,            /* -ENOENT if it is not there */
  STORE_IO_CREATE,              /* a new file, empty; -EEXIST */
  STORE_IO_LOOK,                /* read-only, no lock, for tools */
};

/* Where something can be noted of a store outside its file. */
struct store_place {
  const char *path;             /* NULL = none */
  uint64_t inode;               /* of path, a file, which has the note as an
                                   attribute; 0 = path is a directory, which has
                                   it as an empty file */
};

enum store_io_note {
  STORE_IO_NOTE_SET,            /* or it is there; durable on return */
  STORE_IO_NOTE_LOOK,           /* -ENOENT: it is not there; other errors: that
                                   cannot be said */
  STORE_IO_NOTE_REMOVE,         /* -ENOENT likewise */
};

/* All return 0 or -errno, always for the whole range.  Called from any
 * thread.  file is what open has returned.
 */
struct store_io {
  void *opaque;                 /* the implementation's own */
  /* Open the file and take a lock that dies with its holder: -EBUSY if
   * another has it.
   */
  int (*open) (const struct store_io *io, const char *path,
               enum store_io_open how, void **ret);
  /* Gives the lock back. */
  int (*close) (const struct store_io *io, void *file);
  int (*size) (const struct store_io *io, void *file, uint64_t *ret);
  int (*pread) (const struct store_io *io, void *file, void *buf, size_t len,
                uint64_t off);
  int (*pwrite) (const struct store_io *io, void *file, const void *buf,
                 size_t len, uint64_t off, unsigned flags);
  /* The range has blocks and reads as zeroes, whatever was there; the file
   * grows if need be.  Durable only with a sync of the range.
   */
  int (*allocate) (const struct store_io *io, void *file, uint64_t off,
                   uint64_t len);
  /* The range, of the file as it is, has blocks, so that nothing that is stored
   * into a map of it fails for want of room; what it reads as stays.  Nothing
   * where the system cannot do that.
   */
  int (*reserve) (const struct store_io *io, void *file, uint64_t off,
                  uint64_t len);
  /* All of the file, its size too. */
  int (*sync) (const struct store_io *io, void *file);
  /* The first part of [off, end), of pages, that may be other than zero; len 0
   * = there is none.  What has been stored into a map counts at once.
   */
  int (*next_data) (const struct store_io *io, void *file, uint64_t off,
                    uint64_t end, struct range *ret);
  /* Map a range of pages, shared and writable. */
  int (*map) (const struct store_io *io, void *file, uint64_t off, size_t len,
              void **ret);
  /* Pages of a map stay in memory once they are there, as far as that is
   * allowed; not in a child of the process.
   */
  void (*lock_map) (const struct store_io *io, void *file, void *addr,
                    size_t len);
  /* Part of a map, whole pages. */
  int (*sync_map) (const struct store_io *io, void *file, void *addr,
                   size_t len);
  int (*unmap) (const struct store_io *io, void *file, void *addr,
                size_t len);
  /* Durable on return. */
  int (*rename) (const struct store_io *io, const char *from, const char *to);
  int (*unlink) (const struct store_io *io, const char *path);
  /* A note of this name at a place. */
  int (*note) (const struct store_io *io, const struct store_place *place,
               const char *name, enum store_io_note how);
  /* Another value after every start of the machine. */
  int (*boot_id) (const struct store_io *io, uint8_t ret[16]);
};

/* The system's calls. */
extern const struct store_io store_io_system;

#endif /* TIDEMARK_STORE_IO_H */
