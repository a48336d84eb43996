/* SPDX-License-Identifier: BSD-3-Clause */
/* Writing a stored backup to a file, a block device or an NBD export. */
#ifndef TIDEMARK_RESTORE_H
#define TIDEMARK_RESTORE_H

#include <stdbool.h>

#include "blk.h"
#include "error.h"

struct restore_options {
  struct blk *source;           /* the chain */
  const char *output;           /* a path or an NBD URI */
  bool is_qcow2;                /* a new qcow2 image, else raw */
  bool is_forced;               /* an existing file, a block device */
  unsigned nr_connections;
  const volatile bool *cancel;
};

struct restore_result {
  uint64_t written_bytes;       /* data */
};

/* Blocks.  A regular file appears under its name, in place of an existing one,
 * only when it is complete and on stable storage; on failure nothing is left
 * of it.  0 or -errno with *err set.
 */
int restore_run (const struct restore_options *options,
                 struct restore_result *ret, struct error *err);

#endif /* TIDEMARK_RESTORE_H */
