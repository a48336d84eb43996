/* SPDX-License-Identifier: BSD-3-Clause */
/* A part of another node, or all of it under another owner. */
#ifndef TIDEMARK_BLK_WINDOW_H
#define TIDEMARK_BLK_WINDOW_H

#include "blk.h"

struct blk_window_options {
  const char *name;             /* NULL = the child's */
  uint64_t off;                 /* where it begins in the child */
  uint64_t size;                /* UINT64_MAX: to the end of the child */
  bool is_read_only;
  bool is_borrowed;             /* closing leaves the child open, which must
                                   outlive the window */
};

/* Node over child.  Takes ownership of child, on failure too, unless
 * is_borrowed.  A window on all of the child (off 0, to its end) can be
 * resized, and resizes it.  -EINVAL if it does not fit, with QEMU's messages.
 */
int blk_window_open (struct blk *child,
                     const struct blk_window_options *options,
                     struct blk **ret, struct error *err);

#endif /* TIDEMARK_BLK_WINDOW_H */
