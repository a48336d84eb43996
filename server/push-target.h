/* SPDX-License-Identifier: BSD-3-Clause */
/* The image that drive-backup writes to: opened or created by its path. */
#ifndef TIDEMARK_PUSH_TARGET_H
#define TIDEMARK_PUSH_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "blk.h"
#include "error.h"

struct push_target_options {
  const char *path;             /* a file or block device; with is_existing
                                   also an NBD URI */
  const char *format;           /* "raw" or "qcow2"; NULL with is_existing:
                                   looked for in the image */
  bool is_existing;             /* else created, or overwritten */
  /* For one that is created. */
  uint64_t size;
  const char *backing_file;     /* NULL = none; not opened */
  const char *backing_format;
};

/* Open it for writing whole clusters: a backing file is neither needed nor
 * opened.  *ret_is_new: it was not there before, so that it can be removed if
 * the job does not come about.  Messages as QEMU's.
 */
int push_target_open (const struct push_target_options *options,
                      struct blk **ret, bool *ret_is_new, struct error *err);

#endif /* TIDEMARK_PUSH_TARGET_H */
