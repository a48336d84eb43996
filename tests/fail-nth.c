/* SPDX-License-Identifier: BSD-3-Clause */
/* Preloaded into a program: its Nth call ($FAIL_NTH) that changes or syncs a
 * file fails with EIO, or ($FAIL_HOW=crash) ends the process on the spot.  When
 * that happens the file $FAIL_FIRED is made.
 */
#include "config.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long count;

/* Is it this call's turn? */
static bool
fires (void)
{
  const char *nth = getenv ("FAIL_NTH"), *how = getenv ("FAIL_HOW");
  const char *fired = getenv ("FAIL_FIRED");

  if (!nth || !fired || atomic_fetch_add (&count, 1) + 1 != atol (nth))
    return false;
  close (creat (fired, 0666));
  if (how && strcmp (how, "crash") == 0)
    _exit (99);
  errno = EIO;
  return true;
}

#define NEXT(name) ((__typeof__ (&name)) dlsym (RTLD_NEXT, #name))

/* Sockets, pipes and terminals do not count. */
static bool
is_file (int fd)
{
  struct stat st;

  return fstat (fd, &st) == 0 && (S_ISREG (st.st_mode) || S_ISDIR (st.st_mode));
}

__attribute__ ((visibility ("default"))) ssize_t
write (int fd, const void *buf, size_t len)
{
  return is_file (fd) && fires () ? -1 : NEXT (write) (fd, buf, len);
}

__attribute__ ((visibility ("default"))) ssize_t
pwrite64 (int fd, const void *buf, size_t len, off64_t off)
{
  return fires () ? -1 : NEXT (pwrite64) (fd, buf, len, off);
}

__attribute__ ((visibility ("default"))) ssize_t
pwrite (int fd, const void *buf, size_t len, off_t off)
{
  return fires () ? -1 : NEXT (pwrite) (fd, buf, len, off);
}

__attribute__ ((visibility ("default"))) int
fsync (int fd)
{
  return fires () ? -1 : NEXT (fsync) (fd);
}

__attribute__ ((visibility ("default"))) int
fdatasync (int fd)
{
  return fires () ? -1 : NEXT (fdatasync) (fd);
}

__attribute__ ((visibility ("default"))) int
fchmod (int fd, mode_t mode)
{
  return fires () ? -1 : NEXT (fchmod) (fd, mode);
}

__attribute__ ((visibility ("default"))) int
renameat (int fd1, const char *a, int fd2, const char *b)
{
  return fires () ? -1 : NEXT (renameat) (fd1, a, fd2, b);
}

__attribute__ ((visibility ("default"))) int
mkdirat (int fd, const char *path, mode_t mode)
{
  return fires () ? -1 : NEXT (mkdirat) (fd, path, mode);
}

static int
open_at (int fd, const char *path, int flags, mode_t mode)
{
  static __typeof__ (&openat) next;

  if (!next)
    next = NEXT (openat);
  if (flags & O_CREAT && fires ())
    return -1;
  return next (fd, path, flags, mode);
}

static mode_t
mode_argument (int flags, va_list args)
{
  return flags & (O_CREAT | O_TMPFILE) ? va_arg (args, mode_t) : 0;
}

__attribute__ ((visibility ("default"))) int
openat (int fd, const char *path, int flags, ...)
{
  mode_t mode;
  va_list args;

  va_start (args, flags);
  mode = mode_argument (flags, args);
  va_end (args);
  return open_at (fd, path, flags, mode);
}

__attribute__ ((visibility ("default"))) int
openat64 (int fd, const char *path, int flags, ...)
{
  mode_t mode;
  va_list args;

  va_start (args, flags);
  mode = mode_argument (flags, args);
  va_end (args);
  return open_at (fd, path, flags, mode);
}
