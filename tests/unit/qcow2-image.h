/* SPDX-License-Identifier: BSD-3-Clause */
/* What the tests of the qcow2 driver share: a file that outlives the node and
 * records its writes, and a check of images that shares no code with the
 * driver.
 */
#ifndef TIDEMARK_TESTS_QCOW2_IMAGE_H
#define TIDEMARK_TESTS_QCOW2_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blk.h"

/* One recorded change of the file. */
struct change {
  enum { CHANGE_WRITE, CHANGE_ZERO, CHANGE_TRIM, CHANGE_RESIZE,
         CHANGE_FLUSH } what;
  uint64_t off, len;            /* RESIZE: len is the size */
  uint64_t number;              /* ascending, in all files */
  uint8_t *data;                /* WRITE */
};

enum file_mark { MARK_NONE, MARK_PREFETCHED, MARK_READ };

/* The file below an image: bytes in memory.  Any thread. */
struct file {
  uint8_t *bytes;
  uint64_t size, capacity;
  _Atomic uint64_t used;        /* behind it all is zero, while there is a
                                   node */
  bool is_recording;
  struct change *changes;
  size_t nr_changes;
  bool is_device;               /* cannot be resized */
  enum file_mark *marks;        /* of each sector, see file_watch; or NULL */
  uint64_t nr_unexpected;       /* sectors read that were not prefetched */
};

void file_init (struct file *f, uint64_t capacity);
void file_destroy (struct file *f);
/* A node over f, which stays with the caller. */
struct blk *file_node (struct file *f);
void file_forget_changes (struct file *f);
/* From here on sectors that are prefetched and then read are marked.  Off: true
 * if between the two calls all of them were, and no others read.  One thread.
 */
void file_watch (struct file *f);
bool file_unwatch (struct file *f);
/* Do the change to bytes of the same capacity; *size is the file's. */
void change_apply (const struct change *c, uint8_t *bytes, uint64_t *size);

struct image_report {
  const char *error;            /* NULL = the image is sound; the first */
  uint64_t where;               /* host cluster or guest cluster */
  unsigned nr_leaks;
  bool has_header;
};

/* Look at every reference and refcount. */
void image_check (const uint8_t *bytes, uint64_t size,
                  struct image_report *ret);

/* Rewrite the refcounts of an image that has one refcount block, which must
 * suffice for the new width too.
 */
void image_set_refcount_order (struct file *f, unsigned order);

/* Take an internal snapshot of an image that no node is on, has none, standard
 * entries, and nothing compressed; its refcount block must suffice.
 */
void image_take_snapshot (struct file *f);
/* Where the snapshot's data of a guest cluster is, or NULL: zeroes. */
const uint8_t *image_snapshot_data (const struct file *f, uint64_t guest);

#endif /* TIDEMARK_TESTS_QCOW2_IMAGE_H */
