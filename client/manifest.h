/* SPDX-License-Identifier: BSD-3-Clause */
/* Manifests: what is known of one backup of one disk, as JSON.
 * docs/format.md has the format.
 */
#ifndef TIDEMARK_MANIFEST_H
#define TIDEMARK_MANIFEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "point.h"
#include "sums.h"

#define BACKUP_NAME_MAX 40
#define BACKUP_MAX_NUMBER 999999

/* "000002-inc" and suffix: ".qcow2", ".json", ".sums", ".pending", any of
 * them with ".partial".
 */
const char *backup_name (unsigned number, bool is_full, const char *suffix,
                         char ret[BACKUP_NAME_MAX]);
/* Split such a name; *ret_suffix points into name.  False if it is not one. */
bool backup_name_parse (const char *name, unsigned *ret_number,
                        bool *ret_is_full, const char **ret_suffix);

struct manifest {
  unsigned number;
  bool is_full;
  char *disk;
  unsigned backing_number;      /* 0 = none: the image stands alone */
  bool is_backing_full;
  struct point_id point;
  struct point_id base;         /* what the bitmap counted from; none if full */
  struct point_id parent;       /* point of the backing image; none if full */
  struct point_id session;
  int64_t time;                 /* of the point, seconds since the epoch */
  int64_t finished;
  char *source;
  char *bitmap;                 /* NULL = none */
  char *mode;                   /* "full", "incremental", "differential",
                                   "copy" */
  char *why;
  uint64_t virtual_size;
  uint32_t cluster_size;
  uint64_t dirty_bytes;         /* what the server said is to be pulled */
  uint64_t data_bytes;          /* stored: clusters with data */
  uint64_t zero_bytes;          /* stored: zero clusters */
  uint64_t image_bytes;         /* length of the image file */
  uint8_t root[SUMS_HASH_SIZE]; /* SHA-256 of the checksum file */
  json_t *disks;                /* names of all disks of the session */
  char *tool;
};

/* False: a differential or a copy, which no later backup is based on. */
bool manifest_is_trunk (const struct manifest *m);

/* NULL is allowed. */
void manifest_free (struct manifest *m);

/* As in the file, without the checksum.  A new reference, NULL if out of
 * memory.
 */
json_t *manifest_to_json (const struct manifest *m);

/* Write NAME.json.partial into the folder and sync it. */
int manifest_write_partial (int dirfd, const struct manifest *m,
                            struct error *err);

/* Read and check the manifest called name, which backup_name_parse knows.
 * folder is for messages.
 */
int manifest_read (int dirfd, const char *folder, const char *name,
                   struct manifest **ret, struct error *err);

/* "2025-01-02T03:04:05Z" */
#define TIME_STRING_SIZE 32
const char *time_format (int64_t t, char ret[TIME_STRING_SIZE]);

/* A number of bytes, clusters or the like among an object's members: false
 * unless it is within [0, RANGE_MAX_SIZE].  Journals have such, too.
 */
bool json_get_size (const json_t *o, const char *key, uint64_t *ret);

#endif /* TIDEMARK_MANIFEST_H */
