/* SPDX-License-Identifier: BSD-3-Clause */
/* Private to the qcow2 driver: its object and the calls between its files.
 *
 *   blk-qcow2.c        open, close, the driver's table
 *   qcow2-header.c     the header and its extensions, checked and composed
 *   qcow2-backing.c    the backing file: names, formats, loops, depth
 *   qcow2-meta.c       cached slices of L2 tables and refcount blocks
 *   qcow2-l2.c         guest clusters to host clusters, and changing that
 *   qcow2-refcount.c   host clusters: refcounts, allocation, reservations
 *   qcow2-commit.c     writing metadata back in the order that survives a crash
 *   qcow2-read.c       reads and extents
 *   qcow2-write.c      writes, zeroes, trims
 *   qcow2-compress.c   reading compressed clusters
 *   qcow2-create.c     new images
 *   qcow2-extension.c  header extensions of existing images, changed
 *   qcow2-bitmap.c     the bitmaps extension, read and flagged
 *   qcow2-bitmap-store.c       and written
 *
 * "The lock" is struct qcow2's.  Functions that say "may release the lock"
 * need it held, release it during I/O and hold it again on return: what it
 * protects must be looked at again.
 */
#ifndef TIDEMARK_QCOW2_H
#define TIDEMARK_QCOW2_H

#include "blk.h"
#include "blk-qcow2.h"
#include "lock.h"
#include "range.h"
#include "reqlist.h"
#include "vector.h"

#define QCOW2_MAGIC UINT32_C (0x514649fb)
#define QCOW2_MIN_CLUSTER_BITS 9
#define QCOW2_MAX_CLUSTER_BITS 21
#define QCOW2_V2_HEADER_SIZE 72
#define QCOW2_V3_HEADER_SIZE 104
#define QCOW2_MAX_BACKING_NAME 1023
#define QCOW2_MAX_BACKING_DEPTH 256

/* QEMU's limits: it opens nothing beyond them, and they bound our memory. */
#define QCOW2_MAX_L1_BYTES (UINT64_C (32) << 20)
#define QCOW2_MAX_REFTABLE_BYTES (UINT64_C (8) << 20)
#define QCOW2_MAX_SNAPSHOTS 65536
#define QCOW2_MAX_HOST_OFFSET (UINT64_C (1) << 56)

/* Entries of L1 and L2 tables. */
#define QCOW2_COPIED (UINT64_C (1) << 63)
#define QCOW2_COMPRESSED (UINT64_C (1) << 62)
#define QCOW2_ZERO UINT64_C (1)
#define QCOW2_OFFSET_MASK UINT64_C (0x00fffffffffffe00)
#define QCOW2_L1_RESERVED UINT64_C (0x7f000000000001ff)
#define QCOW2_L2_RESERVED UINT64_C (0x3f000000000001fe)
#define QCOW2_REFTABLE_RESERVED UINT64_C (0x1ff)

enum {
  QCOW2_INCOMPAT_DIRTY = 1 << 0,
  QCOW2_INCOMPAT_CORRUPT = 1 << 1,
  QCOW2_INCOMPAT_DATA_FILE = 1 << 2,
  QCOW2_INCOMPAT_COMPRESSION = 1 << 3,
  QCOW2_INCOMPAT_EXTENDED_L2 = 1 << 4,
};

#define QCOW2_AUTOCLEAR_BITMAPS UINT64_C (1)

enum { QCOW2_COMPRESSION_ZLIB, QCOW2_COMPRESSION_ZSTD };

/* The header, in host byte order. */
struct qcow2_header {
  unsigned version;
  unsigned cluster_bits;
  uint64_t size;
  uint32_t l1_size;             /* entries */
  uint64_t l1_offset;
  uint64_t reftable_offset;
  uint32_t reftable_clusters;
  uint32_t nr_snapshots;
  uint64_t snapshots_offset;
  uint64_t incompatible;
  uint64_t compatible;
  uint64_t autoclear;
  unsigned refcount_order;
  uint32_t header_length;
  unsigned compression;
  char backing_file[QCOW2_MAX_BACKING_NAME + 1];        /* "" = none */
  char backing_format[32];      /* "" = not said */
};

/* Read and check the header of file.  0 or -errno with *err set. */
int qcow2_header_read (struct blk *file, struct qcow2_header *ret,
                       struct error *err);
/* The first cluster of a new image, from h: size bytes (a multiple of 8, at
 * least 512) at buf, zeroed by the caller.  -ENAMETOOLONG if the names do
 * not fit.
 */
int qcow2_header_compose (const struct qcow2_header *h, uint8_t *buf,
                          size_t size);

/* A slice of an L2 table or a refcount block: what is read, cached and written
 * as one.
 */
enum qcow2_kind { QCOW2_L2, QCOW2_REFCOUNT };

/* The bytes of a slice, shared by the cache and a commit in progress. */
struct qcow2_buf {
  unsigned refs;                /* protected by the lock */
  _Alignas (uint64_t) uint8_t bytes[];
};

/* States of a slice (protected by the lock):
 *   loading -> clean            [qcow2_meta_get]
 *   clean   -> dirty            [qcow2_meta_dirty]
 *   dirty   -> writing          [qcow2_commit: its snapshot]
 *   writing -> clean            [qcow2_commit: written]
 *   writing -> dirty            [qcow2_commit: failed]
 * A slice may be dirty and writing at once, when it changes during a commit.
 * Only a clean one that is not writing is ever dropped.
 */
struct qcow2_slice {
  struct qcow2_slice *hash_next;
  struct qcow2_slice *prev, *next;      /* in the list of clean or dirty */
  uint64_t index;               /* of the slice among all of its kind */
  enum qcow2_kind kind;
  bool is_loading;
  bool is_dirty;
  bool is_writing;
  uint32_t dirty_lo, dirty_hi;  /* bytes, if is_dirty */
  struct qcow2_buf *buf;
};

struct qcow2_slice_list {
  struct qcow2_slice *first, *last;
  size_t len;
};

/* A piece of host space set aside for guest clusters, not yet written. */
struct qcow2_reservation {
  uint64_t off;                 /* guest */
  uint64_t len;
  uint64_t host;
};

/* Host clusters that lose one reference once the tables that used them have
 * been replaced on stable storage.
 */
struct qcow2_free {
  uint64_t host;
  uint64_t len;
};

/* The layer of a read-only chain that answered for a range. */
struct qcow2_memo {
  uint64_t off, len;            /* len 0 = none */
  struct qcow2 *layer;
  unsigned depth;               /* below the node that remembers */
};

DEFINE_VECTOR (qcow2_reservations, struct qcow2_reservation);
DEFINE_VECTOR (qcow2_frees, struct qcow2_free);

/* A table held in memory whole: L1 or the refcount table. */
struct qcow2_table {
  uint64_t *entries;            /* host byte order */
  uint64_t len;                 /* entries */
  uint64_t dirty_lo, dirty_hi;  /* entries; equal = clean */
};

struct qcow2 {
  struct blk blk;

  /* Fixed after open. */
  struct blk *file;             /* owned */
  struct qcow2_header header;   /* except, under the lock: reftable_*,
                                   autoclear */
  uint32_t cluster_size;
  unsigned cluster_bits;
  unsigned l2_bits;             /* log2 of entries of an L2 table */
  unsigned refblock_bits;       /* log2 of entries of a refcount block */
  unsigned slice_bits;          /* log2 of bytes of a slice */
  bool is_new;                  /* created, not opened */
  bool is_growable;             /* file can be resized */
  bool has_backing;             /* unallocated is not zero */
  uint64_t backing_size;        /* UINT64_MAX if it is not known */
  size_t max_clean;             /* slices */
  size_t max_dirty;

  struct lock lock;
  /* Protected by lock. */
  pthread_cond_t changed;       /* any of the flags and states below */
  struct qcow2_table l1;
  struct qcow2_table reftable;
  struct qcow2_slice **hash;
  size_t nr_buckets;            /* fixed after open; a power of two */
  struct qcow2_slice_list clean;        /* last = least recently used */
  struct qcow2_slice_list dirty;
  struct qcow2_memo memo;       /* qcow2-read.c */
  struct reqlist claims;        /* guest ranges being changed */
  struct qcow2_reservations reservations;       /* ascending by off */
  struct qcow2_frees frees;
  uint64_t next_host;           /* is_new: end of what is handed out; else no
                                   cluster below is free */
  uint64_t fresh_from;          /* host clusters from here on were never
                                   written: they read as zeroes */
  uint64_t file_end;            /* the file must be kept this long */
  bool is_valid;                /* the file has its header */
  bool is_beginning;
  bool is_writing_begun;        /* autoclear bits that we do not keep are
                                   gone */
  bool are_bitmaps_flagged;     /* all are in use: qcow2-bitmap.c */
  bool is_allocating;
  bool is_making_l2;
  bool is_committing;
  bool is_reftable_moved;
  /* Operations in progress, by the parity of the epoch in which they began: a
   * freed cluster is given out again only when none is left that may still
   * use it.
   */
  unsigned epoch;
  unsigned nr_ops[2];
};

static inline struct qcow2 *
qcow2_of (struct blk *blk)
{
  return (struct qcow2 *) blk;
}

/* --- blk-qcow2.c */

extern const struct blk_driver qcow2_driver;

/* Allocate the object for header h over file, with nothing read yet.  Takes
 * ownership of file, on failure too.
 */
int qcow2_new (struct blk *file, const struct qcow2_header *h,
               bool is_read_only, struct qcow2 **ret, struct error *err);
/* Free the object, its file and its backing file.  Writes nothing. */
int qcow2_destroy (struct qcow2 *q);

/* The images above the one being opened, for the detection of loops. */
struct qcow2_chain {
  const struct qcow2_chain *above;
  unsigned depth;
  bool is_known;                /* dev and ino are valid */
  uint64_t dev, ino;
};

/* blk_qcow2_open below other images. */
int qcow2_open_layer (struct blk *file,
                      const struct qcow2_open_options *options,
                      const struct qcow2_chain *above, struct blk **ret,
                      struct error *err);

/* --- qcow2-backing.c */

/* Open what q's header names, relative to filename, into q->blk.backing. */
int qcow2_open_backing (struct qcow2 *q, const char *filename,
                        const struct qcow2_chain *above, struct error *err);

/* --- qcow2-meta.c */

/* Read the file; what is beyond its end is zeroes. */
int qcow2_file_read (struct qcow2 *q, void *buf, uint64_t len, uint64_t off);
/* Read, check the place of and decode a table of the header. */
int qcow2_table_load (struct qcow2 *q, const char *what, uint64_t off,
                      uint64_t nr, struct qcow2_table *ret,
                      struct error *err);
void qcow2_table_mark (struct qcow2_table *t, uint64_t index);

/* The slice index of its kind, loaded.  *ret is valid until the lock is next
 * released.  May release the lock.  -EIO if its table's place is damaged;
 * *ret is NULL if there is no such table.
 */
int qcow2_meta_get (struct qcow2 *q, enum qcow2_kind kind, uint64_t index,
                    struct qcow2_slice **ret);
/* As above, but -EAGAIN instead of releasing the lock. */
int qcow2_meta_get_cached (struct qcow2 *q, enum qcow2_kind kind,
                           uint64_t index, struct qcow2_slice **ret);
/* The caller is about to change bytes [lo, hi) of the slice.  Does not release
 * the lock.  -ENOMEM.
 */
int qcow2_meta_dirty (struct qcow2 *q, struct qcow2_slice *s, uint32_t lo,
                      uint32_t hi);
/* Where the slice is in the file; 0 = nowhere, -EIO = damaged. */
int qcow2_meta_place (const struct qcow2 *q, enum qcow2_kind kind,
                      uint64_t index, uint64_t *ret);
void qcow2_meta_list_add (struct qcow2_slice_list *list,
                          struct qcow2_slice *s);
void qcow2_meta_list_remove (struct qcow2_slice_list *list,
                             struct qcow2_slice *s);
void qcow2_buf_unref (struct qcow2_buf *buf);
void qcow2_meta_free_all (struct qcow2 *q);

/* An operation that uses host clusters begins and ends.  With the lock. */
unsigned qcow2_op_enter (struct qcow2 *q);
void qcow2_op_leave (struct qcow2 *q, unsigned epoch);

/* --- qcow2-l2.c */

enum qcow2_type {
  QCOW2_UNALLOCATED,
  QCOW2_ZERO_PLAIN,
  QCOW2_ZERO_ALLOC,
  QCOW2_DATA,
  QCOW2_PACKED,                 /* compressed */
};

/* A run of guest clusters of one type. */
struct qcow2_run {
  enum qcow2_type type;
  bool is_copied;               /* refcount exactly one: may be changed */
  uint64_t len;                 /* bytes, from the offset asked for */
  uint64_t host;                /* ZERO_ALLOC, DATA: of that offset;
                                   contiguous.  PACKED: the L2 entry. */
};

/* What [off, off+len) begins with.  May release the lock, unless is_nowait:
 * then -EAGAIN.  -EIO if an entry is damaged.
 */
int qcow2_map (struct qcow2 *q, uint64_t off, uint64_t len, bool is_nowait,
               struct qcow2_run *ret);
/* True if an unallocated run at off reads as zeroes. */
bool qcow2_is_unbacked (const struct qcow2 *q, uint64_t off);
/* Make sure that the L2 table for off exists and is ours alone.  May release
 * the lock.
 */
int qcow2_l2_prepare (struct qcow2 *q, uint64_t off);
/* Set the entries of nr clusters from off on: entry, with the host offset of
 * the first cluster (if it has one) growing with each.  What they pointed to
 * and point to no longer loses a reference.  The caller has the clusters
 * claimed and has called qcow2_l2_prepare for all of them.  May release the
 * lock.
 * *ret_done counts the clusters that were set, on failure too.
 */
int qcow2_l2_set (struct qcow2 *q, uint64_t off, uint64_t nr, uint64_t entry,
                  uint64_t *ret_done);

/* --- qcow2-refcount.c */

/* Take up to *nr free clusters, contiguous, refcount one.  For a new image
 * what is reserved for off comes first.  May release the lock.  is_fresh: they
 * read as zeroes.
 */
int qcow2_alloc (struct qcow2 *q, uint64_t off, uint64_t *nr,
                 uint64_t *ret_host, bool *ret_is_fresh);
/* Metadata: one cluster that reads as zeroes.  May release the lock. */
int qcow2_alloc_table (struct qcow2 *q, uint64_t *ret_host);
/* A new image's first clusters, up to end: those of the fixed tables. */
int qcow2_take_first (struct qcow2 *q, uint64_t end);
/* When an image is opened for writing: what the header names is in use, by its
 * refcounts, or they cannot be trusted.
 */
int qcow2_check_refcounts (struct qcow2 *q, struct error *err);
/* Give back what was taken and never used.  May release the lock. */
void qcow2_unalloc (struct qcow2 *q, uint64_t host, uint64_t nr);
/* The clusters lose a reference after the next commit.  There must be room,
 * see qcow2_frees_reserve.
 */
void qcow2_free_later (struct qcow2 *q, uint64_t host, uint64_t len);
/* Take one reference off each cluster.  May release the lock. */
int qcow2_refcount_drop (struct qcow2 *q, uint64_t host, uint64_t len);
/* Cut or remove reservations within [off, off+len). */
int qcow2_reservation_drop (struct qcow2 *q, uint64_t off, uint64_t len);
bool qcow2_is_reserved (const struct qcow2 *q, uint64_t off, uint64_t len);
/* Host space for the guest range, refcount still 0.  May release the lock. */
int qcow2_reserve_locked (struct qcow2 *q, uint64_t len, uint64_t off);
/* Make the file at least that long. */
int qcow2_grow_file (struct qcow2 *q, uint64_t end);
/* True if [host, host+len) touches the header, L1 or refcount table. */
bool qcow2_is_metadata (const struct qcow2 *q, uint64_t host, uint64_t len);

/* --- qcow2-commit.c */

/* Write all metadata back.  is_flush: and make everything durable, the header
 * of a new image too; else only to make room in the cache.  Call without the
 * lock, outside of operations.
 */
int qcow2_commit (struct qcow2 *q, bool is_flush);

/* --- qcow2-read.c, qcow2-write.c: the driver's calls */

int qcow2_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
                 unsigned flags);
int qcow2_extents (struct blk *blk, uint64_t len, uint64_t off,
                   unsigned flags, enum blk_status status,
                   struct extents *extents);
int qcow2_pwrite (struct blk *blk, const void *buf, uint64_t len,
                  uint64_t off, unsigned flags);
int qcow2_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags);
int qcow2_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags);

/* --- qcow2-extension.c */

/* Copy the data of the header extension to buf and return 1; 0: there is none;
 * -EINVAL: it is not len bytes long, or the header is damaged.
 */
int qcow2_extension_get (struct qcow2 *q, uint32_t type, void *buf,
                         uint32_t len);
/* Change it or add it.  -ENOSPC: there is no room.  Durable on return. */
int qcow2_extension_set (struct qcow2 *q, uint32_t type, const void *data,
                         uint32_t len);
/* Remove it, if it is there. */
int qcow2_extension_remove (struct qcow2 *q, uint32_t type);

/* --- qcow2-bitmap.c */

/* The disk's data is about to change for the first time: flag the bitmaps that
 * nobody keeps up to date.  *ret_keep: autoclear bit 0 may stay.
 */
int qcow2_bitmaps_before_write (struct qcow2 *q, bool *ret_keep);

/* --- qcow2-compress.c */

/* Where the data of a compressed cluster lies. */
void qcow2_packed_place (const struct qcow2 *q, uint64_t entry,
                         uint64_t *ret_off, uint64_t *ret_len);
/* Read the cluster: cluster_size bytes at buf. */
int qcow2_read_packed (struct qcow2 *q, uint64_t entry, uint8_t *buf);

#endif /* TIDEMARK_QCOW2_H */
