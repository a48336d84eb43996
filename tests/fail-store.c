/* SPDX-License-Identifier: BSD-3-Clause */
/* Preloaded into a server: while the file $FAIL_WHILE exists, nothing that is
 * written to a store (NAME.tidemark, with pwritev2, msync or fdatasync) gets to
 * the disk, nor can it be removed.  With FAIL_AS=full it can, but not be made:
 * there is no room to write anything.
 *
 * $FAIL_NOTES says which notes about a store cannot be made either:
 * "attribute", attributes of the disk's file; "/DIR", files in that directory;
 * "notes", none at all; "all": nor can a store be renamed.
 */
#include "config.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/xattr.h>
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

static const char *
denied_notes (void)
{
  const char *notes = getenv ("FAIL_NOTES");

  return notes && fires () ? notes : "";
}

static bool
are_all_denied (void)
{
  const char *notes = denied_notes ();

  return strcmp (notes, "notes") == 0 || strcmp (notes, "all") == 0;
}

__attribute__ ((visibility ("default"))) int
fsetxattr (int fd, const char *name, const void *value, size_t len, int flags)
{
  if (strcmp (denied_notes (), "attribute") == 0 || are_all_denied ())
    return -1;
  return NEXT (fsetxattr) (fd, name, value, len, flags);
}

__attribute__ ((visibility ("default"))) int
mknod (const char *path, mode_t mode, dev_t dev)
{
  const char *notes = denied_notes ();

  if (are_all_denied ()
      || (notes[0] == '/' && strncmp (path, notes, strlen (notes)) == 0))
    return -1;
  return NEXT (mknod) (path, mode, dev);
}

__attribute__ ((visibility ("default"))) int
rename (const char *from, const char *to)
{
  return is_store (from) && strcmp (denied_notes (), "all") == 0 ? -1
    : NEXT (rename) (from, to);
}
