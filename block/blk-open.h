/* SPDX-License-Identifier: BSD-3-Clause */
/* From the names that users give to nodes. */
#ifndef TIDEMARK_BLK_OPEN_H
#define TIDEMARK_BLK_OPEN_H

#include <sys/stat.h>

#include "blk-qcow2.h"
#include "blk.h"

struct blk_open_options {
  const char *file;             /* path of a file or block device, or NBD URI */
  const char *format;           /* "raw" or "qcow2"; NULL = raw.  Never
                                   probed: a guest can write any header. */
  bool is_read_only;
  bool allow_backing;           /* qcow2: follow the files that it names */
  struct qcow2_cache_sizes cache;       /* qcow2 */
  bool no_lock;                 /* files: do not lock */
  const char *node_name;        /* NULL = from file */
  /* If not NULL: what is known of a file once it is locked, and before the
   * format's driver may change it; stx_mask 0 = nothing.
   */
  struct statx *ret_stat;
};

/* True if s names an NBD export rather than a file. */
bool blk_is_nbd_uri (const char *s);

/* Open the stack of nodes.  0 or -errno with *err set. */
int blk_open (const struct blk_open_options *options, struct blk **ret,
              struct error *err);

#endif /* TIDEMARK_BLK_OPEN_H */
