/* SPDX-License-Identifier: BSD-3-Clause */
/* Small files of a repository. */
#ifndef TIDEMARK_FILES_H
#define TIDEMARK_FILES_H

#include <sys/types.h>

/* Make the file name in a folder, or replace its content, and sync it.  0 or
 * -errno.
 */
int file_write_at (int dirfd, const char *name, const char *text,
                   mode_t mode);

/* Read a file of at most max bytes (what is beyond is left out) as a string
 * that the caller frees.  0 or -errno.
 */
int file_read_at (int dirfd, const char *name, size_t max, char **ret);

#endif /* TIDEMARK_FILES_H */
