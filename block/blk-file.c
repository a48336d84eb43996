/* SPDX-License-Identifier: BSD-3-Clause */
/* Raw files and block devices.
 *
 * What a file system or device turns out not to support is remembered and not
 * tried again.  Once a write-back has failed, every later flush fails too: the
 * kernel drops the pages that it could not write and marks them clean, so a
 * later fdatasync that succeeds would promise what is not on the disk.
 *
 * Called through blk.c from any thread.  The lock serialises resizes only.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "blk-file.h"
#include "cleanup.h"
#include "lock.h"
#include "log.h"
#include "range.h"

struct file {
  struct blk blk;

  /* Fixed after open. */
  int fd;
  bool is_block_device;
  bool is_in_memory;            /* reading it never waits for a disk */

  struct lock lock;             /* held while resizing */

  /* Atomic. */
  atomic_bool can_punch_hole;
  atomic_bool can_zero_range;
  atomic_bool can_allocate;
  atomic_bool can_discard;
  atomic_bool can_write_dsync;
  atomic_int flush_error;       /* the first -errno of writing back */
};

/* True if error says that the call is not supported at all, rather than not
 * for this range.
 */
static bool
is_unsupported (int error)
{
  return error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY
    || error == ENODEV;
}

static int
file_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  struct file *file = (struct file *) blk;
  struct iovec iov = { .iov_base = buf, .iov_len = len };
  ssize_t n;

  if (file->is_in_memory)
    flags &= ~(unsigned) BLK_NOWAIT;
  while (iov.iov_len > 0) {
    if (flags & BLK_NOWAIT)
      n = preadv2 (file->fd, &iov, 1, (off_t) off, RWF_NOWAIT);
    else
      n = pread (file->fd, iov.iov_base, iov.iov_len, (off_t) off);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return flags & BLK_NOWAIT ? -EAGAIN : -errno;
    if (n == 0)                 /* somebody made the file shorter */
      return -EIO;
    iov.iov_base = (char *) iov.iov_base + n;
    iov.iov_len -= (size_t) n;
    off += (uint64_t) n;
    /* The rest is not in the cache: asking again would not help. */
    if (iov.iov_len > 0 && (flags & BLK_NOWAIT))
      return -EAGAIN;
  }
  return 0;
}

static int
write_plain (const struct file *file, const char *buf, uint64_t len,
             uint64_t off)
{
  ssize_t n;

  while (len > 0) {
    n = pwrite (file->fd, buf, len, (off_t) off);
    if (n < 0 && errno == EINTR)
      continue;
    if (n < 0)
      return -errno;
    if (n == 0)
      return -ENOSPC;
    buf += n;
    len -= (uint64_t) n;
    off += (uint64_t) n;
  }
  return 0;
}

/* Remember that data was lost.  Returns error. */
static int
lose_data (struct file *file, int error)
{
  int none = 0;

  atomic_compare_exchange_strong (&file->flush_error, &none, error);
  return error;
}

static int
file_flush (struct blk *blk)
{
  struct file *file = (struct file *) blk;
  int r;

  if (blk_is_read_only (blk))
    return 0;
  r = atomic_load (&file->flush_error);
  if (r < 0)
    return r;
  do
    r = fdatasync (file->fd) < 0 ? -errno : 0;
  while (r == -EINTR);
  if (r < 0)
    return lose_data (file, r);
  /* The kernel tells a failure once per descriptor: of two flushes at the same
   * time only one hears of it.
   */
  return atomic_load (&file->flush_error);
}

/* Write durably in one call.  -EOPNOTSUPP if that is not possible. */
static int
write_dsync (struct file *file, const char *buf, uint64_t len, uint64_t off)
{
  struct iovec iov = { .iov_base = (char *) buf, .iov_len = len };
  ssize_t n;
  int r;

  while (iov.iov_len > 0) {
    n = pwritev2 (file->fd, &iov, 1, (off_t) off, RWF_DSYNC);
    if (n < 0 && errno == EINTR)
      continue;
    if (n <= 0) {
      r = n < 0 ? -errno : -ENOSPC;
      if (is_unsupported (-r)) {
        atomic_store (&file->can_write_dsync, false);
        return -EOPNOTSUPP;
      }
      /* Was it the write that failed, or the write-back, which means that
       * data is lost?  In the latter case the write alone succeeds.
       */
      if (write_plain (file, iov.iov_base, iov.iov_len, off) == 0)
        lose_data (file, r);
      return r;
    }
    iov.iov_base = (char *) iov.iov_base + n;
    iov.iov_len -= (size_t) n;
    off += (uint64_t) n;
  }
  return 0;
}

static int
file_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
             unsigned flags)
{
  struct file *file = (struct file *) blk;
  int r;

  if ((flags & BLK_FUA) && atomic_load (&file->can_write_dsync)) {
    r = write_dsync (file, buf, len, off);
    if (r != -EOPNOTSUPP)
      return r;
  }
  r = write_plain (file, buf, len, off);
  if (r == 0 && (flags & BLK_FUA))
    r = file_flush (blk);
  return r;
}

/* fallocate, if *can.  -EOPNOTSUPP: not possible for this range or at all. */
static int
try_fallocate (const struct file *file, atomic_bool *can, int mode,
               uint64_t len, uint64_t off)
{
  if (!atomic_load_explicit (can, memory_order_relaxed))
    return -EOPNOTSUPP;
  while (fallocate (file->fd, mode, (off_t) off, (off_t) len) < 0) {
    if (errno == EINTR)
      continue;
    if (is_unsupported (errno))
      atomic_store (can, false);
    /* EINVAL: the range is not aligned to what this device or file system
     * can do.  EBUSY: the device has another, exclusive user.
     */
    if (is_unsupported (errno) || errno == EINVAL || errno == EBUSY)
      return -EOPNOTSUPP;
    return -errno;
  }
  return 0;
}

static int
punch_hole (struct file *file, uint64_t len, uint64_t off)
{
  return try_fallocate (file, &file->can_punch_hole,
                        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, len, off);
}

static int
zero_range (struct file *file, uint64_t len, uint64_t off)
{
  return try_fallocate (file, &file->can_zero_range,
                        FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, len, off);
}

/* Zeroes that keep or get their space on disk: as ZERO_RANGE, or a hole filled
 * again where a file system (tmpfs) has no such call.
 */
static int
zero_allocated (struct file *file, uint64_t len, uint64_t off)
{
  int r = zero_range (file, len, off);

  if (r != -EOPNOTSUPP || !atomic_load (&file->can_allocate))
    return r;
  r = punch_hole (file, len, off);
  if (r == 0)
    r = try_fallocate (file, &file->can_allocate, FALLOC_FL_KEEP_SIZE, len,
                       off);
  return r;
}

static int
file_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct file *file = (struct file *) blk;
  int r = -EOPNOTSUPP;

  /* On a block device too: a hole is zeroes by the device itself, never
   * written by the kernel, and so always fast.
   */
  if (flags & BLK_MAY_UNMAP)
    r = punch_hole (file, len, off);
  /* There the kernel may write zeroes: still better than if we do. */
  if (r == -EOPNOTSUPP && file->is_block_device && !(flags & BLK_FAST))
    r = zero_range (file, len, off);
  if (r == -EOPNOTSUPP && !file->is_block_device)
    r = zero_allocated (file, len, off);
  if (r == 0 && (flags & BLK_FUA))
    r = file_flush (blk);
  return r;
}

static int
discard (struct file *file, uint64_t len, uint64_t off)
{
  uint64_t range[2] = { off, len };

  if (!atomic_load_explicit (&file->can_discard, memory_order_relaxed))
    return 0;
  while (ioctl (file->fd, BLKDISCARD, range) < 0) {
    if (errno == EINTR)
      continue;
    if (is_unsupported (errno)) {
      atomic_store (&file->can_discard, false);
      return 0;
    }
    return errno == EINVAL || errno == EBUSY ? 0 : -errno;
  }
  return 0;
}

static int
file_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct file *file = (struct file *) blk;
  int r;

  r = file->is_block_device ? discard (file, len, off)
    : punch_hole (file, len, off);
  if (r == -EOPNOTSUPP)
    r = 0;
  if (r == 0 && (flags & BLK_FUA))
    r = file_flush (blk);
  return r;
}

/* The first run of equal status from off on: *ret_end is where it ends, at
 * most end.  Returns its value, or -errno.  The file may change meanwhile:
 * "data" is always a right answer.
 */
static int
seek_extent (const struct file *file, uint64_t off, uint64_t end,
             uint64_t *ret_end)
{
  off_t data, hole;

  data = lseek (file->fd, (off_t) off, SEEK_DATA);
  if (data < 0 && errno != ENXIO)
    return -errno;
  if (data < 0 || (uint64_t) data > off) {
    *ret_end = data < 0 ? end : MIN ((uint64_t) data, end);
    return EXTENT_HOLE | EXTENT_ZERO;
  }
  hole = lseek (file->fd, (off_t) off, SEEK_HOLE);
  if (hole < 0 && errno != ENXIO)
    return -errno;
  if (hole < 0)                 /* made shorter meanwhile */
    *ret_end = end;
  else if ((uint64_t) hole <= off)
    *ret_end = MIN (round_down (off, 4096) + 4096, end);
  else
    *ret_end = MIN ((uint64_t) hole, end);
  return 0;
}

static int
file_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
              enum blk_status status, struct extents *e)
{
  struct file *file = (struct file *) blk;
  uint64_t end = off + len, next = end;
  int r, value;

  if (status == BLK_STATUS_DEPTH) {
    r = extents_add (e, off, len, 1);
    return r < 0 ? r : 0;
  }
  for (r = 0; off < end && r == 0; off = next) {
    value = seek_extent (file, off, end, &next);
    if (value < 0)
      return value;
    r = extents_add (e, off, next - off, (uint32_t) value);
    if (flags & BLK_ONE)
      break;
  }
  return r < 0 ? r : 0;
}

static int
file_cache (struct blk *blk, uint64_t len, uint64_t off)
{
  struct file *file = (struct file *) blk;

  return -posix_fadvise (file->fd, (off_t) off, (off_t) len,
                         POSIX_FADV_WILLNEED);
}

/* The size of the open file or device now.  0 or -errno. */
static int
get_size (int fd, bool is_block_device, uint64_t *ret)
{
  struct stat st;

  if (is_block_device)
    return ioctl (fd, BLKGETSIZE64, ret) < 0 ? -errno : 0;
  if (fstat (fd, &st) < 0)
    return -errno;
  *ret = (uint64_t) st.st_size;
  return 0;
}

static int
file_resize (struct blk *blk, uint64_t size)
{
  struct file *file = (struct file *) blk;
  uint64_t old_size, device_size;
  int r;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&file->lock);
  old_size = blk_size (blk);
  if (file->is_block_device) {
    /* A device has the size that it has; we can follow it. */
    r = get_size (file->fd, true, &device_size);
    if (r < 0)
      return r;
    if (size != device_size)
      return -ENOTSUP;
    atomic_store_explicit (&blk->size, size, memory_order_release);
    return 0;
  }

  /* The system would change the file's times. */
  if (size == old_size)
    return 0;
  /* No request may be let in beyond the end that the file has. */
  if (size < old_size)
    atomic_store_explicit (&blk->size, size, memory_order_release);
  do
    r = ftruncate (file->fd, (off_t) size) < 0 ? -errno : 0;
  while (r == -EINTR);
  atomic_store_explicit (&blk->size, r < 0 ? old_size : size,
                         memory_order_release);
  return r;
}

static int
file_close (struct blk *blk)
{
  struct file *file = (struct file *) blk;
  int r;

  r = close (file->fd) < 0 && errno != EINTR ? -errno : 0;
  lock_destroy (&file->lock);
  blk_fini (blk);
  free (file);
  return r;
}

static const struct blk_driver file_driver = {
  .name = "file",
  .close = file_close,
  .pread = file_pread,
  .pwrite = file_pwrite,
  .zero = file_zero,
  .trim = file_trim,
  .flush = file_flush,
  .extents = file_extents,
  .cache = file_cache,
  .resize = file_resize,
};

/*----------------------------------------------------------------------*/
/* Locks.  QEMU (block/file-posix.c) holds byte 100 + P for each permission P
 * that it uses, and byte 200 + P for each that it does not share with others,
 * all as shared locks; after taking its own it looks for conflicting ones of
 * others.
 */

#define LOCK_USED_BASE 100
#define LOCK_UNSHARED_BASE 200

enum {
  PERM_CONSISTENT_READ,
  PERM_WRITE,
  PERM_WRITE_UNCHANGED,
  PERM_RESIZE,
  NR_PERMS
};

static const char *const perm_names[NR_PERMS] = {
  "reading", "writing", "writing", "resizing",
};

static int
take_byte (int fd, unsigned byte)
{
  struct flock fl = {
    .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
  };

  return fcntl (fd, F_OFD_SETLK, &fl) < 0 ? -errno : 0;
}

/* 1 if somebody else holds the byte, 0 if nobody, or -errno. */
static int
is_byte_taken (int fd, unsigned byte)
{
  struct flock fl = {
    .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
  };

  if (fcntl (fd, F_OFD_GETLK, &fl) < 0)
    return -errno;
  return fl.l_type != F_UNLCK;
}

static int
take_locks (int fd, unsigned used, unsigned unshared)
{
  unsigned i;
  int r = 0;

  for (i = 0; i < NR_PERMS && r == 0; i++) {
    if (used & (1u << i))
      r = take_byte (fd, LOCK_USED_BASE + i);
    if (r == 0 && (unshared & (1u << i)))
      r = take_byte (fd, LOCK_UNSHARED_BASE + i);
  }
  return r;
}

static int
check_locks (int fd, const char *name, unsigned used, unsigned unshared,
             struct error *err)
{
  unsigned i;
  int r;

  for (i = 0; i < NR_PERMS; i++) {
    r = 0;
    if (used & (1u << i))
      r = is_byte_taken (fd, LOCK_UNSHARED_BASE + i);
    if (r > 0)
      return error_set (err, EBUSY, "%s: in use: another process (QEMU or "
                        "Tidemark) has it open and allows no %s by others",
                        name, perm_names[i]);
    if (r == 0 && (unshared & (1u << i)))
      r = is_byte_taken (fd, LOCK_USED_BASE + i);
    if (r > 0)
      return error_set (err, EBUSY, "%s: in use: another process (QEMU or "
                        "Tidemark) has it open for %s", name, perm_names[i]);
    if (r < 0)
      return error_set_errno (err, -r, "%s: cannot look for locks", name);
  }
  return 0;
}

static int
lock_file (int fd, const char *name, bool is_read_only, struct error *err)
{
  unsigned used = 1u << PERM_CONSISTENT_READ;
  unsigned unshared = 1u << PERM_WRITE | 1u << PERM_RESIZE;
  int r;

  if (!is_read_only)
    used |= 1u << PERM_WRITE | 1u << PERM_RESIZE;
  r = take_locks (fd, used, unshared);
  if (r == -EAGAIN || r == -EACCES)
    return error_set (err, EBUSY, "%s: in use: locked by another process",
                      name);
  if (r < 0) {
    /* Some network file systems have no locks: as QEMU does, go on. */
    log_debug ("%s: not locked: %s", name, strerror (-r));
    return 0;
  }
  return check_locks (fd, name, used, unshared, err);
}

/*----------------------------------------------------------------------*/
/* Opening. */

static const char *
type_name (mode_t mode)
{
  if (S_ISDIR (mode))
    return "a directory";
  if (S_ISFIFO (mode))
    return "a pipe";
  if (S_ISSOCK (mode))
    return "a socket";
  if (S_ISCHR (mode))
    return "a character device";
  return "a special file";
}

static int
check_type (const char *name, mode_t mode, struct error *err)
{
  if (S_ISREG (mode) || S_ISBLK (mode))
    return 0;
  return error_set (err, S_ISDIR (mode) ? EISDIR : EINVAL, "%s: is %s: a "
                    "regular file or a block device is expected", name,
                    type_name (mode));
}

static int
check_size (const char *name, uint64_t size, unsigned flags,
            struct error *err)
{
  if (size > RANGE_MAX_SIZE)
    return error_set (err, EFBIG, "%s: its size, %" PRIu64 " bytes, is more "
                      "than the largest that is possible, %" PRIu64,
                      name, size, RANGE_MAX_SIZE);
  if (size % 512 && !(flags & BLK_FILE_ANY_SIZE))
    return error_set (err, EINVAL, "%s: its size, %" PRIu64 " bytes, is not "
                      "a multiple of 512", name, size);
  return 0;
}

/* A number in a file of the kernel's about the device, or 0. */
static unsigned
queue_number (dev_t dev, const char *file)
{
  char path[128];
  unsigned n = 0, i;
  bool is_found = false;

  /* A partition has no queue of its own. */
  for (i = 0; i < 2 && !is_found; i++) {
    CLEANUP_FCLOSE FILE *fp = NULL;

    snprintf (path, sizeof path, "/sys/dev/block/%u:%u/%squeue/%s",
              major (dev), minor (dev), i ? "../" : "", file);
    fp = fopen (path, "re");
    is_found = fp && fscanf (fp, "%u", &n) == 1;
  }
  return is_found ? n : 0;
}

/* tmpfs does not know RWF_NOWAIT, and has no need of it. */
static bool
is_in_memory (int fd)
{
  struct statfs fs;
  struct stat st;

  /* The nodes of devices are in a tmpfs too. */
  return fstat (fd, &st) == 0 && S_ISREG (st.st_mode)
    && fstatfs (fd, &fs) == 0
    && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

/* What the file can do, found out by harmless calls. */
static unsigned
probe (int fd, const struct stat *st, unsigned flags)
{
  bool is_block_device = S_ISBLK (st->st_mode);
  unsigned can = BLK_CAN_CACHE | BLK_CAN_MULTI_CONN | BLK_CAN_FUA;
  dev_t dev = is_block_device ? st->st_rdev : st->st_dev;
  struct iovec iov;
  char byte;

  if (flags & BLK_FILE_READ_ONLY)
    can |= BLK_IS_READ_ONLY;
  else
    can |= BLK_CAN_TRIM | BLK_CAN_ZERO | BLK_CAN_FAST_ZERO;
  if (lseek (fd, 0, SEEK_DATA) >= 0 || errno == ENXIO)
    can |= BLK_CAN_EXTENTS;
  iov = (struct iovec) { .iov_base = &byte, .iov_len = 1 };
  if (is_in_memory (fd)
      || preadv2 (fd, &iov, 1, 0, RWF_NOWAIT) >= 0 || errno == EAGAIN)
    can |= BLK_CAN_NOWAIT;
  if (queue_number (dev, "rotational"))
    can |= BLK_IS_ROTATIONAL;
  return can;
}

static uint32_t
efficient_block_size (int fd, const struct stat *st)
{
  unsigned physical = 0;
  uint64_t n = (uint64_t) st->st_blksize;

  if (S_ISBLK (st->st_mode) && ioctl (fd, BLKPBSZGET, &physical) == 0)
    n = physical;
  return is_power_of_2 (n) && n >= 512 && n <= 65536 ? (uint32_t) n : 4096;
}

static int
check_access (int fd, const char *name, const struct stat *st, unsigned flags,
              struct error *err)
{
  int mode = fcntl (fd, F_GETFL), is_ro = 0;

  if (mode < 0)
    return error_set_errno (err, errno, "%s", name);
  if ((mode & O_ACCMODE) == O_WRONLY)
    return error_set (err, EINVAL, "%s: not open for reading", name);
  if (flags & BLK_FILE_READ_ONLY)
    return 0;
  if ((mode & O_ACCMODE) != O_RDWR)
    return error_set (err, EINVAL, "%s: not open for writing", name);
  if (S_ISBLK (st->st_mode) && ioctl (fd, BLKROGET, &is_ro) == 0 && is_ro)
    return error_set (err, EROFS, "%s: the device is read-only", name);
  return 0;
}

/* fd stays the caller's on failure. */
static int
open_fd (int fd, const char *name, unsigned flags, struct blk **ret,
         struct error *err)
{
  struct file *file;
  uint64_t size = 0;
  struct stat st;
  int r;

  if (fstat (fd, &st) < 0)
    return error_set_errno (err, errno, "%s", name);
  r = check_type (name, st.st_mode, err);
  if (r == 0)
    r = check_access (fd, name, &st, flags, err);
  /* Lock first: the one who holds the lock may be changing the size. */
  if (r == 0 && !(flags & BLK_FILE_NO_LOCK))
    r = lock_file (fd, name, flags & BLK_FILE_READ_ONLY, err);
  if (r < 0)
    return r;
  r = get_size (fd, S_ISBLK (st.st_mode), &size);
  if (r < 0)
    return error_set_errno (err, -r, "%s: cannot find out its size", name);
  r = check_size (name, size, flags, err);
  if (r < 0)
    return r;

  file = calloc (1, sizeof *file);
  if (!file || blk_init (&file->blk, &file_driver, name, name, size,
                         probe (fd, &st, flags)) < 0) {
    free (file);
    return error_set_errno (err, ENOMEM, "%s", name);
  }
  file->fd = fd;
  file->is_block_device = S_ISBLK (st.st_mode);
  file->is_in_memory = is_in_memory (fd);
  file->blk.block_size = efficient_block_size (fd, &st);
  lock_init (&file->lock, LOCK_RANK_PROTOCOL);
  file->can_punch_hole = true;
  file->can_zero_range = true;
  file->can_allocate = true;
  file->can_discard = true;
  file->can_write_dsync = true;
  *ret = &file->blk;
  return 0;
}

int
blk_file_from_fd (int fd, const char *name, unsigned flags, struct blk **ret,
                  struct error *err)
{
  int r = open_fd (fd, name, flags, ret, err);

  if (r < 0)
    close (fd);
  return r;
}

/* Say why open failed with error. */
static int
open_failed (const char *path, unsigned flags, int error, struct error *err)
{
  bool is_writable = !(flags & BLK_FILE_READ_ONLY);
  struct stat st;

  if (error != ENOENT && error != EEXIST && stat (path, &st) == 0
      && check_type (path, st.st_mode, err) < 0)
    return -err->errnum;
  if (flags & BLK_FILE_CREATE)
    return error_set_errno (err, error, "%s: cannot be created", path);
  if (is_writable && faccessat (AT_FDCWD, path, R_OK, AT_EACCESS) == 0)
    return error_set_errno (err, error, "%s: cannot be opened for writing",
                            path);
  return error_set_errno (err, error, "%s: cannot be opened", path);
}

int
blk_file_open (const char *path, unsigned flags, struct blk **ret,
               struct error *err)
{
  /* Non-blocking: a pipe must not make us wait for its other end. */
  int mode = O_CLOEXEC | O_NOCTTY | O_NONBLOCK, fd;
  struct error local = ERROR_INIT;

  if (!err)
    err = &local;
  mode |= flags & BLK_FILE_READ_ONLY ? O_RDONLY : O_RDWR;
  if (flags & BLK_FILE_CREATE)
    mode |= O_CREAT | O_EXCL;
  do
    fd = open (path, mode, 0666);
  while (fd < 0 && errno == EINTR);
  if (fd < 0)
    return open_failed (path, flags, errno, err);
  if (fcntl (fd, F_SETFL, fcntl (fd, F_GETFL) & ~O_NONBLOCK) < 0) {
    int error = errno;

    close (fd);
    return error_set_errno (err, error, "%s", path);
  }
  return blk_file_from_fd (fd, path, flags, ret, err);
}
