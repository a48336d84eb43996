/* SPDX-License-Identifier: BSD-3-Clause */
/* The scratch of a view: unlinked sparse files of FILE_BYTES each.
 *
 * One file would do, but for the limits of file systems: ext4 ends at 16 TiB,
 * others below that.  A file is made when something is written to its part;
 * the first one at once, so that a directory that does not work is found out
 * then.
 *
 * Called by cbw.c through blk.c: written by guests' threads, read by the
 * threads of a view's readers, any number at once.
 *
 * Files are not extended beyond what is written: what lies behind their end
 * reads as zeroes.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "blk-scratch.h"
#include "lock.h"
#include "range.h"

#define SCRATCH_DEFAULT_DIR "/var/tmp"
#define FILE_BYTES (UINT64_C (1) << 40)
/* 4 PiB.  There is a descriptor for each file that is used. */
#define MAX_FILES 4096

/* Linux moves at most this much in one call. */
#define MAX_RW UINT64_C (0x7ffff000)

struct blk_scratch {
  struct blk blk;

  /* Fixed after open. */
  char *dir;
  size_t nr_files;

  struct lock lock;             /* one file is made at a time */
  /* Atomic; -1 until the file is made, under lock. */
  _Atomic int *fds;
};

static void
free_scratch (struct blk_scratch *s)
{
  for (size_t i = 0; i < s->nr_files; i++)
    if (s->fds[i] >= 0)
      close (s->fds[i]);
  free (s->fds);
  free (s->dir);
  lock_destroy (&s->lock);
  blk_fini (&s->blk);
  free (s);
}

static int
scratch_close (struct blk *blk)
{
  free_scratch ((struct blk_scratch *) blk);
  return 0;
}

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

/* The descriptor of file i, which is made if it is not there. */
static int
make_file (struct blk_scratch *s, size_t i)
{
  int fd = atomic_load (&s->fds[i]);

  if (fd >= 0)
    return fd;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  fd = atomic_load (&s->fds[i]);
  if (fd < 0) {
    fd = open_unnamed (s->dir);
    if (fd >= 0)
      atomic_store (&s->fds[i], fd);
  }
  return fd;
}

/* Read within one file.  rwf: RWF_NOWAIT or 0. */
static int
read_file (int fd, char *p, uint64_t len, uint64_t off, int rwf)
{
  while (len > 0) {
    struct iovec iov = { .iov_base = p, .iov_len = MIN (len, MAX_RW) };
    ssize_t r = preadv2 (fd, &iov, 1, (off_t) off, rwf);

    if (r < 0 && errno == EINTR)
      continue;
    if (r < 0 && errno == EOPNOTSUPP && rwf) {
      /* tmpfs: there is nothing to wait for. */
      rwf = 0;
      continue;
    }
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
write_file (int fd, const char *p, uint64_t len, uint64_t off)
{
  while (len > 0) {
    ssize_t r = pwrite (fd, p, MIN (len, MAX_RW), (off_t) off);

    if (r < 0 && errno == EINTR)
      continue;
    if (r <= 0)
      return r < 0 ? -errno : -EIO;
    p += r;
    off += (uint64_t) r;
    len -= (uint64_t) r;
  }
  return 0;
}

static int
scratch_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
               unsigned flags)
{
  struct blk_scratch *s = (struct blk_scratch *) blk;
  char *p = buf;
  uint64_t n;
  int r = 0;

  for (; r == 0 && len > 0; p += n, off += n, len -= n) {
    int fd = atomic_load (&s->fds[off / FILE_BYTES]);

    n = MIN (len, FILE_BYTES - off % FILE_BYTES);
    if (fd < 0)
      memset (p, 0, n);
    else
      r = read_file (fd, p, n, off % FILE_BYTES,
                     flags & BLK_NOWAIT ? RWF_NOWAIT : 0);
  }
  return r;
}

static int
scratch_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
                unsigned flags)
{
  struct blk_scratch *s = (struct blk_scratch *) blk;
  const char *p = buf;
  uint64_t n;
  int r = 0;

  for (; r == 0 && len > 0; p += n, off += n, len -= n) {
    n = MIN (len, FILE_BYTES - off % FILE_BYTES);
    r = make_file (s, off / FILE_BYTES);
    if (r >= 0)
      r = write_file (r, p, n, off % FILE_BYTES);
  }
  return r;
}

static int
punch_hole (int fd, uint64_t len, uint64_t off)
{
  int r;

  do
    r = fallocate (fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                   (off_t) off, (off_t) len);
  while (r < 0 && errno == EINTR);
  /* A file system that cannot keeps the space until the view ends. */
  return r < 0 && errno != EOPNOTSUPP ? -errno : 0;
}

static int
scratch_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct blk_scratch *s = (struct blk_scratch *) blk;
  uint64_t n;
  int r = 0;

  for (; r == 0 && len > 0; off += n, len -= n) {
    int fd = atomic_load (&s->fds[off / FILE_BYTES]);

    n = MIN (len, FILE_BYTES - off % FILE_BYTES);
    if (fd >= 0)
      r = punch_hole (fd, n, off % FILE_BYTES);
  }
  return r;
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

static int
init_scratch (struct blk_scratch *s, const char *dir, uint64_t size)
{
  int r = blk_init (&s->blk, &scratch_driver, "scratch", dir, size,
                    BLK_CAN_TRIM | BLK_CAN_NOWAIT);

  if (r < 0)
    return r;
  s->blk.block_size = 4096;
  s->dir = strdup (dir);
  s->fds = calloc (div_round_up (size, FILE_BYTES) + 1, sizeof s->fds[0]);
  if (!s->dir || !s->fds)
    return -ENOMEM;
  for (; s->nr_files < div_round_up (size, FILE_BYTES); s->nr_files++)
    atomic_init (&s->fds[s->nr_files], -1);
  return 0;
}

const char *
blk_scratch_dir (const char *dir)
{
  if (!dir)
    dir = getenv ("TMPDIR");
  return dir && *dir ? dir : SCRATCH_DEFAULT_DIR;
}

int
blk_scratch_open (const char *dir, uint64_t size, struct blk **ret,
                  struct error *err)
{
  struct blk_scratch *s;
  int r;

  dir = blk_scratch_dir (dir);
  if (div_round_up (size, FILE_BYTES) > MAX_FILES)
    return error_set (err, EFBIG, "scratch: a disk of %llu bytes is too large,"
                      " at most 4 PiB are supported",
                      (unsigned long long) size);
  s = calloc (1, sizeof *s);
  if (!s)
    return error_set_errno (err, ENOMEM, "scratch");
  lock_init (&s->lock, LOCK_RANK_PROTOCOL);
  r = init_scratch (s, dir, size);
  if (r == 0 && s->nr_files > 0)
    r = make_file (s, 0);
  if (r < 0) {
    free_scratch (s);
    return error_set_errno (err, -r, "cannot make a scratch file in '%s'",
                            dir);
  }
  *ret = &s->blk;
  return 0;
}
