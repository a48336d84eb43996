/* SPDX-License-Identifier: BSD-3-Clause */
/* Preloaded into a server: while the file $FAIL_WHILE exists, nothing that is
 * written to a store (NAME.tidemark, with pwritev2, msync or fdatasync) gets to
 * the disk, nor can it be removed.  With FAIL_AS=full it can, but not be made:
 * there is no room to write anything.
 */
#include "config.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

static bool
is_full (void)
{
  const char *as = getenv ("FAIL_AS");

  return as && strcmp (as, "full") == 0;
}

static bool
fires (void)
{
  const char *file = getenv ("FAIL_WHILE");

  if (file == NULL || access (file, F_OK) < 0)
    return false;
  errno = is_full () ? ENOSPC : EIO;
  return true;
}

static bool
is_store (const char *path)
{
  const size_t len = strlen (path);

  return len > 9 && strcmp (path + len - 9, ".tidemark") == 0;
}

static bool
fires_for (int fd)
{
  char name[64], path[1024];
  ssize_t n;

  snprintf (name, sizeof name, "/proc/self/fd/%d", fd);
  n = readlink (name, path, sizeof path - 1);
  if (n < 0)
    return false;
  path[n] = '\0';
  return is_store (path) && fires ();
}

#define NEXT(name) ((__typeof__ (&name)) dlsym (RTLD_NEXT, #name))

__attribute__ ((visibility ("default"))) ssize_t
pwritev2 (int fd, const struct iovec *iov, int n, off_t off, int flags)
{
  return fires_for (fd) ? -1 : NEXT (pwritev2) (fd, iov, n, off, flags);
}

__attribute__ ((visibility ("default"))) int
msync (void *addr, size_t len, int flags)
{
  return fires () ? -1 : NEXT (msync) (addr, len, flags);
}

__attribute__ ((visibility ("default"))) int
fdatasync (int fd)
{
  return fires_for (fd) ? -1 : NEXT (fdatasync) (fd);
}

__attribute__ ((visibility ("default"))) int
unlink (const char *path)
{
  return is_store (path) && !is_full () && fires () ? -1
    : NEXT (unlink) (path);
}
