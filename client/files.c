/* SPDX-License-Identifier: BSD-3-Clause */
/* Small files of a repository.  Any thread. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "files.h"

static int
write_all (int fd, const char *p, size_t len)
{
  ssize_t n;

  while (len > 0) {
    n = write (fd, p, len);
    if (n < 0 && errno != EINTR)
      return -errno;
    if (n > 0) {
      p += n;
      len -= (size_t) n;
    }
  }
  return 0;
}

int
file_write_at (int dirfd, const char *name, const char *text, mode_t mode)
{
  CLEANUP_CLOSE int fd = openat (dirfd, name,
                                 O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC,
                                 mode | S_IWUSR);
  int r;

  if (fd < 0)
    return -errno;
  r = write_all (fd, text, strlen (text));
  if (r == 0 && !(mode & S_IWUSR) && fchmod (fd, mode) < 0)
    r = -errno;
  if (r == 0 && fsync (fd) < 0)
    r = -errno;
  return r;
}

int
file_read_at (int dirfd, const char *name, size_t max, char **ret)
{
  CLEANUP_CLOSE int fd = openat (dirfd, name, O_RDONLY | O_CLOEXEC);
  struct stat st;
  char *text;
  size_t len = 0;
  ssize_t n = 1;

  if (fd < 0 || fstat (fd, &st) < 0)
    return -errno;
  if (st.st_size < (off_t) max)
    max = (size_t) st.st_size;
  text = malloc (max + 1);
  if (!text)
    return -ENOMEM;
  while (len < max && n != 0) {
    n = read (fd, text + len, max - len);
    if (n < 0 && errno != EINTR) {
      n = -errno;
      free (text);
      return (int) n;
    }
    if (n > 0)
      len += (size_t) n;
  }
  text[len] = '\0';
  *ret = text;
  return 0;
}
