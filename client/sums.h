/* SPDX-License-Identifier: BSD-3-Clause */
/* Checksum files: a hash of every cluster that a backup's image holds, in
 * runs.  docs/format.md has the format.
 */
#ifndef TIDEMARK_SUMS_H
#define TIDEMARK_SUMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "point.h"
#include "sha256.h"

#define SUMS_HASH_SIZE SHA256_SIZE
#define SUMS_BLOCK_SIZE 4096    /* what is hashed by itself within a cluster */
#define SUMS_MAX_CLUSTER_SIZE (UINT32_C (1) << 21)
#define SUMS_HEADER_SIZE 64
#define SUMS_RECORD_SIZE 24
#define SUMS_MAX_DATA_RUN 4096  /* clusters of one data record */

enum sums_type {
  SUMS_END = 0,
  SUMS_DATA = 1,
  SUMS_ZERO = 2,
};

struct sums_header {
  uint32_t cluster_size;
  uint64_t virtual_size;
  uint64_t number;              /* of the backup in its chain */
  struct point_id point;
};

struct sums_writer;

/* Write to fd, an empty file that stays the caller's.  skip_zero: clusters
 * that turn out to be zero are not stored, else as zero clusters.  0 or -errno.
 */
int sums_writer_new (int fd, const struct sums_header *header, bool skip_zero,
                     struct sums_writer **ret);
void sums_writer_free (struct sums_writer *w);

/* [off, off+len) will be stored.  In ascending order, cluster aligned (the
 * last may end at the virtual size).  is_zero: as zeroes; then nothing more is
 * to be said of it.  0 or -errno.
 */
int sums_reserve (struct sums_writer *w, uint64_t off, uint64_t len,
                  bool is_zero);

/* The content of a range that was reserved as data, exactly as it was
 * reserved; its clusters that are all zero count as zeroes.  From any thread,
 * in any order; the hashing is done in the calling thread without a lock.  0
 * or -errno.
 */
int sums_set (struct sums_writer *w, uint64_t off, uint64_t len,
              const void *buf);

/* How far the file has come: with it, and the file as it was then or as it has
 * been written on since, another writer can go on.
 */
struct sums_totals {
  uint64_t data_clusters, zero_clusters;
};
struct sums_state {
  uint64_t next;                /* cluster: all before it are in */
  uint64_t offset;              /* of the file: where the open run's record is
                                   to be */
  uint64_t nr_records;          /* before it */
  struct sums_totals totals;    /* of these */
  enum sums_type run_type;      /* the open run; SUMS_END: none */
  uint64_t run_first, run_count;
};

/* Write what is known and say how far it goes.  The file is not synced.  Any
 * thread.  0 or -errno.
 */
int sums_writer_save (struct sums_writer *w, struct sums_state *ret);

/* Go on with the file fd, which another writer's sums_writer_save has left in
 * this state.  The next range begins at state->next.  0; -EBADMSG if the file
 * is not as the state says; -errno.
 */
int sums_writer_resume (int fd, const struct sums_header *header,
                        bool skip_zero, const struct sums_state *state,
                        struct sums_writer **ret);

/* Every range has been set: write the rest and return the root, the SHA-256
 * of the whole file, which ends there.  The file is not synced.
 */
int sums_finish (struct sums_writer *w, uint8_t ret_root[SUMS_HASH_SIZE]);

/* After sums_finish. */
void sums_writer_totals (const struct sums_writer *w,
                         struct sums_totals *ret);

struct sums_record {
  enum sums_type type;
  uint64_t first;               /* cluster */
  uint64_t count;               /* clusters */
  const uint8_t *hashes;        /* SUMS_DATA: count of them, valid until the
                                   next call */
};

struct sums_reader;

/* Read fd, whose ownership is taken, on failure too.  The header is checked
 * against itself only.  0 or -errno with *err set.
 */
int sums_reader_new (int fd, const char *name, struct sums_reader **ret,
                     struct error *err);
void sums_reader_free (struct sums_reader *r);
const struct sums_header *sums_reader_header (const struct sums_reader *r);

/* The next record: 1, or 0 at the end record, after which the file must end.
 * -errno with *err set for a file that is not as docs/format.md says.
 */
int sums_reader_next (struct sums_reader *r, struct sums_record *ret,
                      struct error *err);
/* The root of what has been read; after sums_reader_next returned 0. */
void sums_reader_root (struct sums_reader *r,
                       uint8_t ret_root[SUMS_HASH_SIZE]);

/* The hash of a cluster of len bytes, at most SUMS_MAX_CLUSTER_SIZE: the
 * SHA-256 of the SHA-256s of its blocks of SUMS_BLOCK_SIZE bytes, of which the
 * last may be shorter.
 */
void sums_hash_cluster (const void *buf, size_t len,
                        uint8_t ret[SUMS_HASH_SIZE]);
#define SUMS_HEX_SIZE (2 * SUMS_HASH_SIZE + 1)
void sums_hash_format (const uint8_t hash[SUMS_HASH_SIZE],
                       char ret[SUMS_HEX_SIZE]);
/* 0 or -EINVAL. */
int sums_hash_parse (const char *s, uint8_t ret[SUMS_HASH_SIZE]);

#endif /* TIDEMARK_SUMS_H */
