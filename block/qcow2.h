/* SPDX-License-Identifier: BSD-3-Clause */
/* Private to the qcow2 driver: its object and the calls between its files.
 *
 *   blk-qcow2.c        open, close, the driver's table
 *   qcow2-header.c     the header and its extensions, checked and composed
 *   qcow2-backing.c    backing file and data file: names, formats, loops, depth
 *   qcow2-meta.c       cached slices of L2 tables and refcount blocks
 *   qcow2-cache.c      how many of them
 *   qcow2-l2.c         guest clusters to host clusters, and changing that
 *   qcow2-refcount.c   host clusters: refcounts, allocation, reservations
 *   qcow2-overlap.c    where metadata is, so that no data is written there
 *   qcow2-commit.c     writing metadata back in the order that survives a crash
 *   qcow2-read.c       reads and extents
 *   qcow2-skip.c       the layers of a chain that hold nothing
 *   qcow2-write.c      steps; writes
 *   qcow2-zero.c       zeroes, trims
 *   qcow2-compress.c   reading compressed clusters
 *   qcow2-pack.c       writing them
 *   qcow2-create.c     new images
 *   qcow2-resize.c     growing and shrinking
 *   qcow2-extension.c  header extensions of existing images, changed
 *   qcow2-bitmap.c     the bitmaps extension, read and flagged
 *   qcow2-bitmap-store.c       and written
 *   qcow2-prealloc.c   places for all clusters of a new image
 *   qcow2-check.c      all references counted; refcounts mended
 *   qcow2-check-walk.c     the walk through them
 *
 * "The lock" is struct qcow2's.  Functions that say "may release the lock"
 * need it held, release it during I/O and hold it again on return: what it
 * protects must be looked at again.
 *
 * A subcluster is 1/32 of a cluster in an image with extended L2 entries and
 * the whole cluster in others: the unit in which guest data is allocated.
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
#define QCOW2_MAX_DATA_FILE_NAME 1023
#define QCOW2_MAX_BACKING_DEPTH 256
/* 16 KiB of L2 map 128 MiB of disk at clusters of 64 KiB. */
#define QCOW2_MAX_SLICE_BITS 14

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

enum { QCOW2_COMPAT_LAZY_REFCOUNTS = 1 << 0 };

#define QCOW2_AUTOCLEAR_BITMAPS UINT64_C (1)
#define QCOW2_AUTOCLEAR_DATA_FILE_RAW UINT64_C (2)

/* log2 of the subclusters of a cluster with an extended L2 entry. */
#define QCOW2_EXTENDED_BITS 5
#define QCOW2_MIN_EXTENDED_CLUSTER_BITS 14

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
  char data_file[QCOW2_MAX_DATA_FILE_NAME + 1];         /* "" = not said */
};

/* Read and check the header of file.  0 or -errno with *err set. */
int qcow2_header_read (struct blk *file, struct qcow2_header *ret,
                       struct error *err);
/* Guest bytes of one L1 entry. */
uint64_t qcow2_l1_span (const struct qcow2_header *h);
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

/* How many slices of each kind are kept, the changed ones among them. */
struct qcow2_cache_limits {
  size_t max_slices[2];
  size_t max_dirty[2];
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

/* Bytes of the file, or of the guest. */
struct qcow2_range {
  uint64_t off, len;
};

/* Host clusters. */
struct qcow2_set {
  uint64_t *slots;
  size_t cap, len;
};

DEFINE_VECTOR (qcow2_ranges, struct qcow2_range);
DEFINE_VECTOR (qcow2_reservations, struct qcow2_reservation);
DEFINE_VECTOR (qcow2_frees, struct qcow2_free);

/* A table held in memory whole: L1 or the refcount table. */
struct qcow2_table {
  uint64_t *entries;            /* host byte order */
  uint64_t len;                 /* entries */
  uint64_t dirty_lo, dirty_hi;  /* entries; equal = clean */
};

/* Where the first layers of a chain hold nothing. */
struct qcow2_skip {
  uint64_t off, len;            /* guest bytes; len 0 = unused */
  bool is_uniform;              /* all is as depth[0] says */
  /* Layers, for each cluster. */
  uint16_t depth[(1 << QCOW2_MAX_SLICE_BITS) / 8];
};

struct qcow2 {
  struct blk blk;

  /* Fixed after open. */
  struct blk *file;             /* owned */
  struct blk *data;             /* where guest clusters lie: file, or the
                                   external data file (owned), each cluster
                                   at its guest offset */
  struct qcow2_header header;   /* except, under the lock: size, l1_*,
                                   reftable_*, incompatible, autoclear */
  uint32_t cluster_size;
  unsigned cluster_bits;
  unsigned sub_bits;            /* log2 of bytes of a subcluster */
  unsigned l2_entry_bits;       /* log2 of bytes of an L2 entry */
  unsigned l2_bits;             /* log2 of entries of an L2 table */
  unsigned refblock_bits;       /* log2 of entries of a refcount block */
  unsigned slice_bits;          /* log2 of bytes of a slice */
  int compression_level;        /* 0 = the library's default */
  bool is_new;                  /* created, not opened */
  bool is_appending;            /* space is handed out in ascending order, none
                                   is used again: new, or opened for that */
  bool is_growable;             /* file can be resized */
  bool is_lazy;                 /* refcounts may lag: qcow2-commit.c */
  bool has_backing;             /* unallocated is not zero */
  uint64_t backing_size;        /* UINT64_MAX if it is not known */
  struct qcow2_ranges protected;        /* tables of snapshots; ascending */
  struct qcow2_cache_limits limits;

  _Atomic unsigned nr_damaged;  /* what is wrong has been said so often */

  struct lock lock;
  /* Protected by lock. */
  pthread_cond_t changed;       /* any of the flags and states below */
  struct qcow2_table l1;
  struct qcow2_table reftable;
  struct qcow2_set tables;      /* L2 tables and refcount blocks */
  struct qcow2_ranges bitmaps;  /* their directory and tables; ascending */
  bool is_corrupt;              /* nothing is written any more */
  struct qcow2_slice **hash;
  size_t nr_buckets;            /* fixed after open; a power of two */
  /* By kind. */
  size_t nr_slices[2];
  struct qcow2_slice_list clean[2];     /* last = least recently used */
  struct qcow2_slice_list dirty[2];
  struct qcow2_skip skips[2];   /* qcow2-skip.c */
  uint64_t read_end;            /* where the last read of a chain ended */
  struct reqlist claims;        /* guest ranges being changed */
  struct qcow2_reservations reservations;       /* ascending by off */
  struct qcow2_frees frees;
  uint64_t next_host;           /* is_appending: end of what is handed out;
                                   else no cluster below is free */
  uint64_t packed_pos;          /* where packed data goes next, within */
  uint64_t packed_end;          /* the cluster that ends there; 0 = none */
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

static inline bool
qcow2_is_extended (const struct qcow2 *q)
{
  return q->sub_bits != q->cluster_bits;
}

static inline bool
qcow2_is_external (const struct qcow2 *q)
{
  return q->data != q->file;
}

/* The external data file has to be the disk as a raw image. */
static inline bool
qcow2_is_raw_external (const struct qcow2 *q)
{
  return qcow2_is_external (q)
    && (q->header.autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW);
}

/* --- qcow2-cache.c */

/* log2 of the bytes of a slice. */
int qcow2_cache_slice (const struct qcow2_cache_sizes *sizes,
                       const struct qcow2_header *h, unsigned *ret_bits,
                       struct error *err);
/* The limits of an image with header h and slices of 1 << slice_bits bytes. */
int qcow2_cache_set (const struct qcow2_cache_sizes *sizes,
                     const struct qcow2_header *h, unsigned slice_bits,
                     bool is_read_only, struct qcow2_cache_limits *ret,
                     struct error *err);
/* True if changes of either kind have to be written before there are more. */
bool qcow2_cache_is_full (const struct qcow2 *q);

/* --- blk-qcow2.c */

extern const struct blk_driver qcow2_driver;

/* Allocate the object for header h over file, with nothing read yet.  Takes
 * ownership of file, on failure too.
 */
int qcow2_new (struct blk *file, const struct qcow2_header *h,
               bool is_read_only, const struct qcow2_cache_sizes *cache,
               struct qcow2 **ret, struct error *err);
/* Free the object, its file and its backing file.  Writes nothing. */
int qcow2_destroy (struct qcow2 *q);

/* Say in the log what is damaged, in the first cases; -EIO.  With or without
 * the lock.
 */
int qcow2_damaged (struct qcow2 *q, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

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
                        const struct qcow2_open_options *options,
                        const struct qcow2_chain *above, struct error *err);
/* Say in link which file path names, if it can be found. */
void qcow2_identify (const char *path, struct qcow2_chain *link);

/* Open the external data file that q's header names, or take the node that the
 * options give, into q->data.
 */
int qcow2_open_data (struct qcow2 *q, const char *filename,
                     const struct qcow2_open_options *options,
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
  QCOW2_UNALLOCATED_PLACED,     /* extended: its cluster has a place */
  QCOW2_ZERO_PLAIN,
  QCOW2_ZERO_ALLOC,
  QCOW2_DATA,
  QCOW2_PACKED,                 /* compressed */
};

/* A run of guest subclusters of one type. */
struct qcow2_run {
  enum qcow2_type type;
  bool is_copied;               /* refcount exactly one: may be changed */
  uint64_t len;                 /* bytes, from the offset asked for */
  uint64_t host;                /* UNALLOCATED_PLACED, ZERO_ALLOC, DATA: of
                                   that offset; contiguous.  PACKED: the L2
                                   entry. */
};

static inline bool
qcow2_run_is_unallocated (const struct qcow2_run *run)
{
  return run->type == QCOW2_UNALLOCATED
    || run->type == QCOW2_UNALLOCATED_PLACED;
}

/* Its cluster has a place in q->data, whether that holds its data or not. */
static inline bool
qcow2_run_is_placed (const struct qcow2_run *run)
{
  return run->type == QCOW2_UNALLOCATED_PLACED
    || run->type == QCOW2_ZERO_ALLOC || run->type == QCOW2_DATA;
}

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
/* A change of L2 entries. */
struct qcow2_change {
  uint64_t off, len;            /* guest; of whole clusters, or with extended
                                   entries of whole subclusters */
  uint64_t entry;               /* for the first cluster; its host offset, if
                                   it has one, grows with each */
  bool keeps_entry;             /* extended: only the subclusters change */
  /* Extended: what becomes of the subclusters of the range. */
  enum { QCOW2_SUB_NONE, QCOW2_SUB_ALLOC, QCOW2_SUB_ZERO } sub;
};

/* Change the entries of the clusters that the range touches.  What they
 * pointed to and point to no longer loses a reference.  The caller has the
 * clusters claimed and has called qcow2_l2_prepare for all of them.  May
 * release the lock.
 * *ret_done counts the clusters that were changed, on failure too.
 */
int qcow2_l2_set (struct qcow2 *q, const struct qcow2_change *change,
                  uint64_t *ret_done);

/* --- qcow2-refcount.c */

/* Refcount i of a block's bytes, of 2^order bits. */
uint64_t qcow2_refcount_get (const uint8_t *p, uint64_t i, unsigned order);
void qcow2_refcount_set (uint8_t *p, uint64_t i, unsigned order,
                         uint64_t value);

/* Take up to *nr free clusters, contiguous, refcount one.  For a new image
 * what is reserved for off comes first.  May release the lock.  is_fresh: they
 * read as zeroes.
 */
int qcow2_alloc (struct qcow2 *q, uint64_t off, uint64_t *nr,
                 uint64_t *ret_host, bool *ret_is_fresh);
/* Space for len bytes of packed data, less than a cluster: behind what was last
 * packed, if that can be.  Each cluster that it touches gains a reference.  May
 * release the lock.
 */
int qcow2_alloc_packed (struct qcow2 *q, uint64_t len, uint64_t *ret_host);
void qcow2_unalloc_packed (struct qcow2 *q, uint64_t host, uint64_t len);
/* Metadata: one cluster that reads as zeroes.  May release the lock. */
int qcow2_alloc_table (struct qcow2 *q, uint64_t *ret_host);
/* Metadata: nr contiguous clusters, at the end of the file.  May release the
 * lock.
 */
int qcow2_alloc_run (struct qcow2 *q, uint64_t nr, uint64_t *ret_host);
/* Of an existing image: what follows the last cluster in use need not stay in
 * the file.  May release the lock.
 */
int qcow2_shrink_file (struct qcow2 *q);
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
/* The same for q->data, of which a guest's data will be at [.., end). */
int qcow2_grow_data (struct qcow2 *q, uint64_t end);
/* True if [host, host+len) touches the header, L1 or refcount table. */
bool qcow2_is_metadata (const struct qcow2 *q, uint64_t host, uint64_t len);

/* --- qcow2-overlap.c */

/* Learn where metadata lies, when an image is opened for writing. */
int qcow2_overlap_load (struct qcow2 *q, struct error *err);
/* A cluster becomes an L2 table or a refcount block, or is none any more. */
void qcow2_overlap_add (struct qcow2 *q, uint64_t host);
void qcow2_overlap_remove (struct qcow2 *q, uint64_t host);
/* [host, host+len) of the file is about to become new data or a new table.
 * -EIO, and the image is marked corrupt, if metadata is there; may release the
 * lock for that.
 */
int qcow2_overlap_check (struct qcow2 *q, uint64_t host, uint64_t len);
/* Where the bitmaps' directory and tables are: taken, in any order. */
void qcow2_overlap_set_bitmaps (struct qcow2 *q, struct qcow2_ranges *ranges);

/* --- qcow2-commit.c */

/* Write all metadata back, except, to an image with lazy refcounts, those.
 * is_flush: and make everything durable, the header of a new image too; else
 * only to make room in the cache.  Call without the lock, outside of
 * operations.
 */
int qcow2_commit (struct qcow2 *q, bool is_flush);
/* The last one: the image is clean. */
int qcow2_commit_last (struct qcow2 *q);
/* Everything written so far becomes durable. */
int qcow2_sync (struct qcow2 *q);

/* --- qcow2-write.c */

/* A step of a request in progress: a claim and what was found under it. */
struct qcow2_step {
  struct qcow2 *q;
  struct req req;
  unsigned epoch;
  struct qcow2_run run;         /* of the bytes asked for */
  uint64_t off, len;            /* those bytes */
  uint64_t start, nr;           /* the clusters that they touch */
};

/* Before each step, without the lock: what has to be done before the first
 * change of an image, and room in the cache.
 */
int qcow2_step_prepare (struct qcow2 *q);
/* Look up what is at off, cut len to one run, and claim it.  On success the
 * step is an operation and the lock is held.  is_whole: claim whole clusters
 * whatever their type.
 */
int qcow2_step_begin (struct qcow2_step *s, struct qcow2 *q, uint64_t off,
                      uint64_t len, bool is_whole);
/* Give the claim back and release the lock. */
void qcow2_step_end (struct qcow2_step *s);
/* Make the step shorter. */
void qcow2_step_cut (struct qcow2_step *s, uint64_t len);
/* Leave only what has its entries in one L2 table. */
void qcow2_step_cut_to_table (struct qcow2_step *s);
/* True if what the step found reads as zeroes by the metadata alone. */
bool qcow2_step_is_zero (const struct qcow2_step *s);
/* Its data may be changed where it is. */
bool qcow2_run_is_in_place (const struct qcow2_run *run);

/* --- qcow2-skip.c */

/* The layer below q that can be searched for off, or NULL. */
struct qcow2 *qcow2_layer_below (struct qcow2 *q, uint64_t off);
/* How many layers of the chain, from the read-only q down, are known to hold
 * nothing of [off, off+len), the range that *len is shortened to.  Without the
 * lock.  May read metadata, unless is_nowait.
 */
unsigned qcow2_skip (struct qcow2 *q, uint64_t off, uint64_t *len,
                     bool is_nowait);

/* --- qcow2-read.c, qcow2-write.c, qcow2-zero.c: the driver's calls */

int qcow2_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
                 unsigned flags);
int qcow2_cache (struct blk *blk, uint64_t len, uint64_t off);
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
/* Have the directory and the tables that the image has now among what is
 * looked at before a write.
 */
int qcow2_bitmaps_watch (struct qcow2 *q, struct error *err);

/* --- qcow2-resize.c */

int qcow2_resize (struct blk *blk, uint64_t size);

/* --- qcow2-prealloc.c */

/* Give all clusters of a new image their places and flush it. */
int qcow2_preallocate (struct qcow2 *q, enum qcow2_preallocation how);

/* --- qcow2-pack.c */

/* Write one cluster, the last of the disk may be shorter, compressed if that
 * makes it shorter.
 */
int qcow2_pwrite_packed (struct qcow2 *q, const uint8_t *buf, uint64_t len,
                         uint64_t off);

/* --- qcow2-compress.c */

/* Where the data of a compressed cluster lies. */
void qcow2_packed_place (const struct qcow2 *q, uint64_t entry,
                         uint64_t *ret_off, uint64_t *ret_len);
/* Read the cluster: cluster_size bytes at buf. */
int qcow2_read_packed (struct qcow2 *q, uint64_t entry, uint8_t *buf);

#endif /* TIDEMARK_QCOW2_H */
