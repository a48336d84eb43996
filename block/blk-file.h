/* SPDX-License-Identifier: BSD-3-Clause */
/* Raw files and block devices. */
#ifndef TIDEMARK_BLK_FILE_H
#define TIDEMARK_BLK_FILE_H

#include "blk.h"

enum {
  BLK_FILE_READ_ONLY = 1 << 0,
  BLK_FILE_NO_LOCK = 1 << 1,    /* do not take QEMU-compatible locks */
  BLK_FILE_CREATE = 1 << 2,     /* O_CREAT | O_EXCL, empty */
  BLK_FILE_ANY_SIZE = 1 << 3,   /* the size need not be a multiple of 512
                                   (a container of a format) */
};

/* Open path.  Unless BLK_FILE_NO_LOCK the file is locked against a second
 * writer (open file description locks on the bytes that QEMU uses, so that
 * QEMU's tools and ours exclude each other; the lock dies with the process).
 * Refused with a message that names path: missing, a directory or other
 * special file, no permission, in use, a size that is not a multiple of 512.
 */
int blk_file_open (const char *path, unsigned flags, struct blk **ret,
                   struct error *err);

/* A node over an open file descriptor; takes ownership of fd, on failure too.
 */
int blk_file_from_fd (int fd, const char *name, unsigned flags,
                      struct blk **ret, struct error *err);

#endif /* TIDEMARK_BLK_FILE_H */
