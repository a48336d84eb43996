/* SPDX-License-Identifier: BSD-3-Clause */
/* A store's file by way of the system's calls.
 *
 * The lock is one of the open file description: it excludes a second opener in
 * this process as in any other, and is gone when the last descriptor is.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/limits.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "cleanup.h"
#include "log.h"
#include "point.h"
#include "range.h"
#include "store-io.h"

#define PAGE UINT64_C (4096)

struct system_file {
  int fd;
  bool knows_holes;
  _Atomic bool was_warned;      /* of memory that cannot be locked */
};

static int
take_lock (int fd)
{
  struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

  if (fcntl (fd, F_OFD_SETLK, &fl) == 0)
    return 0;
  return errno == EACCES || errno == EAGAIN ? -EBUSY : -errno;
}

/* -ESTALE: path is another file by now. */
static int
check_still_there (int fd, const char *path)
{
  struct stat a, b;

  if (fstat (fd, &a) < 0)
    return -errno;
  if (stat (path, &b) < 0)
    return errno == ENOENT ? -ESTALE : -errno;
  if (!S_ISREG (a.st_mode))
    return -EINVAL;
  return a.st_ino == b.st_ino && a.st_dev == b.st_dev ? 0 : -ESTALE;
}

static int
open_fd (const char *path, enum store_io_open how)
{
  int flags = O_CLOEXEC | O_NONBLOCK;
  int fd, r;

  flags |= how == STORE_IO_LOOK ? O_RDONLY : O_RDWR;
  if (how == STORE_IO_CREATE)
    flags |= O_CREAT | O_EXCL;
  do {
    fd = open (path, flags, 0600);
    if (fd < 0)
      return -errno;
    r = how == STORE_IO_LOOK ? 0 : take_lock (fd);
    if (r == 0)
      r = check_still_there (fd, path);
    if (r < 0)
      close (fd);
  } while (r == -ESTALE && how != STORE_IO_CREATE);
  return r < 0 ? r : fd;
}

/* File systems known to tell holes from data also where that is in a mapping or
 * in the cache only.  Elsewhere everything may be data.
 */
static bool
knows_holes (int fd)
{
  struct statfs fs;

  if (fstatfs (fd, &fs) < 0)
    return false;
  switch (fs.f_type) {
  case EXT4_SUPER_MAGIC:
  case XFS_SUPER_MAGIC:
  case BTRFS_SUPER_MAGIC:
  case TMPFS_MAGIC:
    return true;
  }
  return false;
}

static int
system_open (const struct store_io *io, const char *path,
             enum store_io_open how, void **ret)
{
  struct system_file *file = calloc (1, sizeof *file);

  if (file == NULL)
    return -ENOMEM;
  file->fd = open_fd (path, how);
  if (file->fd < 0) {
    int r = file->fd;

    free (file);
    return r;
  }
  file->knows_holes = knows_holes (file->fd);
  *ret = file;
  return 0;
}

static int
system_close (const struct store_io *io, void *opaque)
{
  struct system_file *file = opaque;
  int r = close (file->fd) < 0 ? -errno : 0;

  free (file);
  return r;
}

static int
system_size (const struct store_io *io, void *opaque, uint64_t *ret)
{
  struct system_file *file = opaque;
  struct stat st;

  if (fstat (file->fd, &st) < 0)
    return -errno;
  *ret = (uint64_t) st.st_size;
  return 0;
}

static int
system_pread (const struct store_io *io, void *opaque, void *buf, size_t len,
              uint64_t off)
{
  struct system_file *file = opaque;
  char *p = buf;
  ssize_t n;

  while (len > 0) {
    n = pread (file->fd, p, len, (off_t) off);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0)
      return n < 0 ? -errno : -ENODATA;
    p += n;
    off += (uint64_t) n;
    len -= (size_t) n;
  }
  return 0;
}

static int
system_pwrite (const struct store_io *io, void *opaque, const void *buf,
               size_t len, uint64_t off, unsigned flags)
{
  struct system_file *file = opaque;
  struct iovec iov = { .iov_base = (void *) buf, .iov_len = len };
  ssize_t n;

  while (iov.iov_len > 0) {
    n = pwritev2 (file->fd, &iov, 1, (off_t) off,
                  flags & STORE_IO_DURABLE ? RWF_DSYNC : 0);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0 && errno == EOPNOTSUPP && (flags & STORE_IO_DURABLE)) {
      /* Then all of the file. */
      flags = 0;
      n = system_pwrite (io, opaque, iov.iov_base, iov.iov_len, off, 0);
      return n < 0 ? (int) n : fdatasync (file->fd) < 0 ? -errno : 0;
    }
    if (n <= 0)
      return n < 0 ? -errno : -EIO;
    iov.iov_base = (char *) iov.iov_base + n;
    off += (uint64_t) n;
    iov.iov_len -= (size_t) n;
  }
  return 0;
}

static int
write_zeroes (const struct store_io *io, void *file, uint64_t off,
              uint64_t len)
{
  static const char zeroes[65536];
  size_t n;
  int r = 0;

  for (; len > 0 && r == 0; off += n, len -= n) {
    n = (size_t) MIN (len, sizeof zeroes);
    r = system_pwrite (io, file, zeroes, n, off, 0);
  }
  return r;
}

static int
system_allocate (const struct store_io *io, void *opaque, uint64_t off,
                 uint64_t len)
{
  struct system_file *file = opaque;
  struct stat st;
  int r = 0;

  if (fstat (file->fd, &st) < 0)
    return -errno;
  if (off < (uint64_t) st.st_size)
    r = fallocate (file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                   (off_t) off, (off_t) len);
  while (r == 0 && (r = fallocate (file->fd, 0, (off_t) off,
                                   (off_t) len)) < 0 && errno == EINTR)
    r = 0;
  if (r == 0)
    return 0;
  if (errno != EOPNOTSUPP && errno != ENOSYS)
    return -errno;
  return write_zeroes (io, file, off, len);
}

/* A file that has been copied may have lost blocks that held zeroes. */
static int
system_reserve (const struct store_io *io, void *opaque, uint64_t off,
                uint64_t len)
{
  struct system_file *file = opaque;
  int r;

  do
    r = fallocate (file->fd, FALLOC_FL_KEEP_SIZE, (off_t) off, (off_t) len);
  while (r < 0 && errno == EINTR);
  return r == 0 || errno == EOPNOTSUPP || errno == ENOSYS ? 0 : -errno;
}

static int
system_sync (const struct store_io *io, void *opaque)
{
  struct system_file *file = opaque;

  return fdatasync (file->fd) < 0 ? -errno : 0;
}

static int
system_next_data (const struct store_io *io, void *opaque, uint64_t off,
                  uint64_t end, struct range *ret)
{
  struct system_file *file = opaque;
  off_t start, stop;

  *ret = (struct range) { off, end - off };
  if (!file->knows_holes)
    return 0;
  start = lseek (file->fd, (off_t) off, SEEK_DATA);
  if (start < 0 && errno != ENXIO)
    return -errno;
  if (start < 0 || (uint64_t) start >= end) {
    ret->len = 0;
    return 0;
  }
  stop = lseek (file->fd, start, SEEK_HOLE);
  if (stop < 0)
    return -errno;
  ret->off = round_down ((uint64_t) start, PAGE);
  ret->len = MIN (round_up ((uint64_t) stop, PAGE), end) - ret->off;
  /* It is going to be looked at, in order, through the map. */
  (void) posix_fadvise (file->fd, (off_t) ret->off, (off_t) ret->len,
                        POSIX_FADV_WILLNEED);
  return 0;
}

/* Locked memory is limited for most users: that is worth a line, no more.  What
 * has never been read is not read for this.
 */
static void
system_lock_map (const struct store_io *io, void *opaque, void *addr,
                 size_t len)
{
  struct system_file *file = opaque;
  struct rlimit limit;

  if (mlock2 (addr, len, MLOCK_ONFAULT) == 0)
    return;
  if (getrlimit (RLIMIT_MEMLOCK, &limit) == 0
      && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit (RLIMIT_MEMLOCK, &limit) == 0
        && mlock2 (addr, len, MLOCK_ONFAULT) == 0)
      return;
  }
  if (!atomic_exchange (&file->was_warned, true))
    log_debug ("the bitmaps of a store cannot be locked in memory: %s",
               strerror (errno));
}

static int
system_map (const struct store_io *io, void *opaque, uint64_t off, size_t len,
            void **ret)
{
  struct system_file *file = opaque;
  struct stat st;
  void *p;

  /* Beyond the end there would be nothing to fault in. */
  if (fstat (file->fd, &st) < 0)
    return -errno;
  if (!range_is_within (off, len, (uint64_t) st.st_size))
    return -ENODATA;
  p = mmap (NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, file->fd,
            (off_t) off);
  if (p == MAP_FAILED)
    return -errno;
  /* Else the kernel would fill pages around each one that is touched, and they
   * would count as data.
   */
  (void) madvise (p, len, MADV_RANDOM);
  *ret = p;
  return 0;
}

static int
system_sync_map (const struct store_io *io, void *file, void *addr,
                 size_t len)
{
  return msync (addr, len, MS_SYNC) < 0 ? -errno : 0;
}

static int
system_unmap (const struct store_io *io, void *file, void *addr, size_t len)
{
  return munmap (addr, len) < 0 ? -errno : 0;
}

static int
sync_directory (const char *path)
{
  CLEANUP_FREE char *copy = strdup (path);
  CLEANUP_CLOSE int fd = -1;

  if (copy == NULL)
    return -ENOMEM;
  fd = open (dirname (copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    return -errno;
  return fsync (fd) < 0 && errno != EINVAL ? -errno : 0;
}

static int
system_rename (const struct store_io *io, const char *from, const char *to)
{
  return rename (from, to) < 0 ? -errno : sync_directory (to);
}

static int
system_unlink (const struct store_io *io, const char *path)
{
  return unlink (path) < 0 ? -errno : sync_directory (path);
}

/* As an attribute of the file, if it still is the one that is meant. */
static int
note_in_file (const struct store_place *place, const char *name,
              enum store_io_note how)
{
  CLEANUP_CLOSE int fd = open (place->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  char attribute[XATTR_NAME_MAX + 1];
  struct stat st;
  ssize_t r;

  if (fd < 0 || fstat (fd, &st) < 0)
    return -errno;
  if (st.st_ino != place->inode)
    return -ENOENT;
  snprintf (attribute, sizeof attribute, "user.%s", name);
  if (how == STORE_IO_NOTE_SET)
    r = fsetxattr (fd, attribute, "1", 1, 0);
  else if (how == STORE_IO_NOTE_LOOK)
    r = fgetxattr (fd, attribute, NULL, 0);
  else
    r = fremovexattr (fd, attribute);
  if (r < 0)
    return errno == ENODATA || errno == EOPNOTSUPP ? -ENOENT : -errno;
  return how != STORE_IO_NOTE_LOOK && fsync (fd) < 0 ? -errno : 0;
}

static int
make_note_file (const char *path)
{
  CLEANUP_CLOSE int fd = -1;

  if (mknod (path, S_IFREG | 0600, 0) < 0 && errno != EEXIST)
    return -errno;
  fd = open (path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  return fd < 0 || fsync (fd) < 0 ? -errno : sync_directory (path);
}

/* A directory that is not there, or not for us, has none of ours. */
static int
look_for_note_file (const char *path)
{
  struct stat st;

  if (lstat (path, &st) == 0)
    return 0;
  return errno == ENOTDIR || errno == EACCES ? -ENOENT : -errno;
}

static int
system_note (const struct store_io *io, const struct store_place *place,
             const char *name, enum store_io_note how)
{
  CLEANUP_FREE char *path = NULL;

  if (place->inode != 0)
    return note_in_file (place, name, how);
  if (asprintf (&path, "%s/%s", place->path, name) < 0)
    return -ENOMEM;
  if (how == STORE_IO_NOTE_SET)
    return make_note_file (path);
  if (how == STORE_IO_NOTE_LOOK)
    return look_for_note_file (path);
  return system_unlink (io, path);
}

static int
system_boot_id (const struct store_io *io, uint8_t ret[16])
{
  CLEANUP_FCLOSE FILE *fp = fopen ("/proc/sys/kernel/random/boot_id", "re");
  struct point_id id;
  char text[64], hex[POINT_ID_STRING_SIZE];
  size_t i, n = 0;

  if (fp == NULL)
    return -errno;
  if (fgets (text, sizeof text, fp) == NULL)
    return -EIO;
  for (i = 0; text[i] != '\0' && n + 1 < sizeof hex; i++)
    if (text[i] != '-' && text[i] != '\n')
      hex[n++] = text[i];
  hex[n] = '\0';
  if (point_id_parse (hex, &id) < 0)
    return -EINVAL;
  memcpy (ret, id.bytes, 16);
  return 0;
}

const struct store_io store_io_system = {
  .open = system_open,
  .close = system_close,
  .size = system_size,
  .pread = system_pread,
  .pwrite = system_pwrite,
  .allocate = system_allocate,
  .reserve = system_reserve,
  .sync = system_sync,
  .next_data = system_next_data,
  .map = system_map,
  .lock_map = system_lock_map,
  .sync_map = system_sync_map,
  .unmap = system_unmap,
  .rename = system_rename,
  .unlink = system_unlink,
  .note = system_note,
  .boot_id = system_boot_id,
};
