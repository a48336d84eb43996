/* SPDX-License-Identifier: BSD-3-Clause */
/* The qcow2 format (qemu: docs/interop/qcow2.txt). */
#ifndef TIDEMARK_BLK_QCOW2_H
#define TIDEMARK_BLK_QCOW2_H

#include "blk.h"

#define QCOW2_DEFAULT_CLUSTER_SIZE 65536

/* Bounds of an image's metadata in memory, bytes: of L2 tables and refcount
 * blocks together, and of each.  At most two may be given; less than the least
 * (2 slices of L2 tables, 4 clusters of refcounts) stands for that.
 * l2_entry: the bytes of a slice, what is read and kept of either as one; a
 * power of two from 512 to the cluster size, of which more than 16 KiB counts
 * as that.  By default as large as it can be.
 */
struct qcow2_cache_sizes {
  bool has_total, has_l2, has_refcount, has_l2_entry;
  uint64_t total, l2, refcount, l2_entry;
};

/* Can they be together?  0, or -EINVAL with *err set to what QEMU says. */
int qcow2_cache_check (const struct qcow2_cache_sizes *sizes,
                       struct error *err);

struct qcow2_open_options {
  bool is_read_only;
  /* For writing: go on with an image that was being made when it was last
   * flushed.  Space is only added behind what it has, in the order of
   * qcow2_reserve; what was written after that flush is gone.
   */
  bool is_append;
  int compression_level;        /* of BLK_COMPRESS; 0 = the library's default */
  struct qcow2_cache_sizes cache;       /* of this layer */
  /* Follow the backing file and the data file that the header names.  Without
   * it an image that has one is refused: a guest may have written the header.
   */
  bool allow_backing;
  /* With the above: only files in the directory of the image that names
   * them.
   */
  bool only_neighbours;
  /* Instead: this layer alone, whatever backing file the header names.  What
   * the layer does not hold reads as zeroes and has depth 0; a zero cluster
   * of the layer has depth 1 and EXTENT_ZERO.
   */
  bool ignore_backing;
  /* Resolve relative backing names against this image name; NULL: the name
   * of the file node.
   */
  const char *filename;
  /* Instead: this node, whatever the header names.  Taken, as file is. */
  struct blk *backing;
  /* The open data file of an image that has one, instead of what its header
   * names.  Ownership is taken, on failure too.
   */
  struct blk *data;
};

/* Open the image in file.  Takes ownership of file, on failure too. */
int blk_qcow2_open (struct blk *file, const struct qcow2_open_options *options,
                    struct blk **ret, struct error *err);

enum qcow2_compression { QCOW2_COMPRESSION_ZLIB, QCOW2_COMPRESSION_ZSTD };

/* Bytes that a thread needs while it compresses a cluster (BLK_COMPRESS);
 * level 0 = the library's default.  0 if that cannot be found out.
 */
uint64_t qcow2_pack_memory (enum qcow2_compression compression, int level,
                            uint32_t cluster_size);

/* What is allocated when an image is created. */
enum qcow2_preallocation {
  QCOW2_PREALLOCATION_OFF,
  QCOW2_PREALLOCATION_METADATA, /* all tables; data as holes of the file */
  QCOW2_PREALLOCATION_FALLOC,   /* and the data's space, unwritten */
  QCOW2_PREALLOCATION_FULL,     /* and zeroes written to it */
};

struct qcow2_create_options {
  uint64_t size;                /* virtual size, bytes; multiple of 512 */
  uint32_t cluster_size;        /* 0 = 64 KiB */
  const char *backing_file;     /* as stored in the header; NULL = none */
  const char *backing_format;   /* "raw" or "qcow2"; needed with the above */
  /* The open backing node for partial clusters and reads, or NULL if every
   * write is whole clusters and nothing is read through.  Ownership is taken,
   * on failure too.
   */
  struct blk *backing;
  unsigned version;             /* 2 or 3; 0 = 3 */
  unsigned refcount_bits;       /* 1, 2, 4, ... 64; 0 = 16; 16 in version 2 */
  enum qcow2_compression compression;
  int compression_level;        /* of BLK_COMPRESS; 0 = the library's default */
  bool has_lazy_refcounts;
  bool is_extended;             /* extended L2 entries; clusters of at least
                                   16 KiB */
  /* The external data file, as stored in the header, NULL = none; its empty
   * or zeroed node, of which ownership is taken, on failure too; and whether
   * it has to be the disk as a raw image (then all tables are allocated, and
   * there can be no backing file).
   */
  const char *data_file;
  struct blk *data;
  bool is_data_file_raw;
  enum qcow2_preallocation preallocation;
};

/* A new image in the empty file node, which no one else can see yet: data is
 * written in one ascending pass and the metadata (tables, refcounts and, last,
 * the header) at blk_flush and blk_close only, so that until then the file is
 * no valid image.  Clusters are allocated in the order in which
 * qcow2_reserve or a write reaches them.  Takes ownership of file, on failure
 * too.  Writes may come from many threads.
 */
int blk_qcow2_create (struct blk *file,
                      const struct qcow2_create_options *options,
                      struct blk **ret, struct error *err);

/* For a new image, or one opened with is_append: allocate host space now for
 * the clusters of [off, off+len) (cluster aligned, not yet allocated; the last
 * may end at the size), one piece in ascending order, so that later writes from
 * several threads land in guest order.  A reserved cluster that is zeroed
 * instead of written becomes a zero cluster; one that is never touched reads as
 * unallocated.
 */
int qcow2_reserve (struct blk *blk, uint64_t len, uint64_t off);

struct qcow2_info {
  unsigned version;
  uint64_t size;
  uint32_t cluster_size;
  char backing_file[1024];      /* "" = none */
  char backing_format[32];
  char data_file[1024];         /* "" = none */
  unsigned refcount_bits;
  enum qcow2_compression compression;
  bool is_extended;             /* has extended L2 entries */
  bool has_lazy_refcounts;
  bool is_data_file_raw;
  bool is_dirty, is_corrupt;    /* marked so */
};

/* What the header of the open image says.  Any thread. */
void blk_qcow2_info (struct blk *blk, struct qcow2_info *ret);

#endif /* TIDEMARK_BLK_QCOW2_H */
