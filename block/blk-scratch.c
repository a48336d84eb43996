/* SPDX-License-Identifier: BSD-3-Clause */
/* The scratch file of a view.
 *
 * Called by cbw.c through blk.c: written by guests' threads, read by the
 * threads of a view's readers, any number at once.
 *
 * The file is not extended to the disk's size: what lies beyond its end reads
 * as zeroes, so that a file system with a lower limit on file sizes does not
 * stand in the way of a large disk until its end is overwritten.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blk-scratch.h"
#include "range.h"

#define SCRATCH_DEFAULT_DIR "/var/tmp"

/* Linux moves at most this much in one call. */
#define MAX_RW ((size_t) 0x7ffff000)

struct blk_scratch {
  struct blk blk;
  int fd;                       /* fixed after open */
};

static int
scratch_close (struct blk *blk)
{
  struct blk_scratch *s = (struct blk_scratch *) blk;

  close (s->fd);
  blk_fini (blk);
  free (s);
  return 0;
}

static int
scratch_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
               unsigned flags)
{
  struct blk_scratch *s = (struct blk_scratch *) blk;
  char *p = buf;

  while (len > 0) {
    ssize_t r = pread (s->fd, p, MIN (len, MAX_RW), (off_t) off);

    if (r < 0 && errno == EINTR)
      continue;
    if (r < 0)
      return -errno;
    if (r == 0) {
      memset (p, 0, len);
      break;
    }
    p += r;
    off += (uint64_t) r;
    len -= (uint64_t) r;
  }
  return 0;
}

static int
scratch_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
                unsigned flags)
{
  struct blk_scratch *s = (struct blk_scratch *) blk;
  const char *p = buf;

  while (len > 0) {
    ssize_t r = pwrite (s->fd, p, MIN (len, MAX_RW), (off_t) off);

    if (r < 0 && errno == EINTR)
      continue;
    if (r < 0)
      return -errno;
    if (r == 0)
      return -EIO;
    p += r;
    off += (uint64_t) r;
    len -= (uint64_t) r;
  }
  return 0;
}

static int
scratch_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct blk_scratch *s = (struct blk_scratch *) blk;
  int r;

  do
    r = fallocate (s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                   (off_t) off, (off_t) len);
  while (r < 0 && errno == EINTR);
  /* A file system that cannot keeps the space until the view ends. */
  return r < 0 && errno != EOPNOTSUPP ? -errno : 0;
}

/* What is in scratch need not survive anything. */
static int
scratch_flush (struct blk *blk)
{
  return 0;
}

static const struct blk_driver scratch_driver = {
  .name = "scratch",
  .close = scratch_close,
  .pread = scratch_pread,
  .pwrite = scratch_pwrite,
  .trim = scratch_trim,
  .flush = scratch_flush,
};

/* Open a file in dir that has no name.  Returns the descriptor or -errno. */
static int
open_unnamed (const char *dir)
{
  char path[PATH_MAX];
  int fd = open (dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

  /* EISDIR: a kernel or file system that does not know O_TMPFILE. */
  if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR))
    return fd >= 0 ? fd : -errno;
  if (snprintf (path, sizeof path, "%s/tidemark-scratch-XXXXXX", dir)
      >= (int) sizeof path)
    return -ENAMETOOLONG;
  fd = mkostemp (path, O_CLOEXEC);
  if (fd < 0)
    return -errno;
  unlink (path);
  return fd;
}

int
blk_scratch_open (const char *dir, uint64_t size, struct blk **ret,
                  struct error *err)
{
  struct blk_scratch *s;
  int fd, r;

  if (!dir)
    dir = getenv ("TMPDIR");
  if (!dir || !*dir)
    dir = SCRATCH_DEFAULT_DIR;
  fd = open_unnamed (dir);
  if (fd < 0)
    return error_set_errno (err, -fd, "cannot make a scratch file in '%s'",
                            dir);
  s = calloc (1, sizeof *s);
  r = s ? blk_init (&s->blk, &scratch_driver, "scratch", dir, size,
                    BLK_CAN_TRIM) : -ENOMEM;
  if (r < 0) {
    free (s);
    close (fd);
    return error_set_errno (err, -r, "scratch file");
  }
  s->fd = fd;
  s->blk.block_size = 4096;
  *ret = &s->blk;
  return 0;
}
