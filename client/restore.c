/* SPDX-License-Identifier: BSD-3-Clause */
/* Writing a stored backup somewhere.  Main thread, and the copy engine's. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blk-file.h"
#include "blk-nbd.h"
#include "blk-open.h"
#include "blk-qcow2.h"
#include "copy.h"
#include "extents.h"
#include "interrupt.h"
#include "progress.h"
#include "range.h"
#include "restore.h"
#include "size.h"
#include "source.h"
#include "tls-options.h"

#define MAX_EXTENTS 4096
#define MAX_ITEM (UINT32_C (1) << 19)
#define MAX_ZERO_ITEM (UINT64_C (1) << 30)
#define ZERO_UNIT 4096
#define WRITEBACK_STEP (UINT64_C (64) << 20)
/* The layers of a chain lie in many files, so that the system's own read-ahead
 * is of little use: the disk is kept busy with so much of the source.
 */
#define PREFETCH_WINDOW (UINT64_C (8) << 20)

struct restore {
  /* Fixed while it runs. */
  const struct restore_options *options;
  uint64_t size;
  struct blk *target;
  struct blk *replaced;         /* the old file, locked; NULL = none */
  bool is_new;                  /* the target is all zero */
  int fd;                       /* of a new file, for write-back; or -1 */
  char *path;                   /* where a new file goes in the end */
  char *temporary;              /* where it is until then */
  mode_t mode;                  /* of the file that is replaced; 0 = none */

  /* The engine's next, one thread at a time. */
  struct extents extents;
  size_t i;
  uint64_t off;                 /* what is before has been given out */
  uint64_t prefetched;          /* what is before has been asked for */

  /* Atomic. */
  _Atomic uint64_t written;
};

/* The extent that holds r->off: 1, 0 at the end. */
static int
current_extent (struct restore *r, const struct extent **ret)
{
  int e;

  if (r->off == r->size)
    return 0;
  while (r->i < r->extents.len
         && r->extents.ptr[r->i].off + r->extents.ptr[r->i].len <= r->off)
    r->i++;
  if (r->i == r->extents.len) {
    extents_clear (&r->extents);
    r->i = 0;
    e = blk_extents (r->options->source, r->size - r->off, r->off, 0,
                     BLK_STATUS_ALLOCATION, &r->extents);
    if (e < 0)
      return e;
  }
  *ret = &r->extents.ptr[r->i];
  return 1;
}

/* Advice: whatever is wrong, reading it will say so. */
static void
prefetch (struct restore *r)
{
  const uint64_t end = MIN (r->off + PREFETCH_WINDOW, r->size);

  r->prefetched = MAX (r->prefetched, r->off);
  if (r->prefetched < end)
    (void) blk_cache (r->options->source, end - r->prefetched, r->prefetched);
  r->prefetched = end;
}

static int
restore_next (void *opaque, struct copy_item *ret)
{
  struct restore *r = opaque;
  const struct extent *extent;
  uint64_t left;
  int e;

  while ((e = current_extent (r, &extent)) > 0) {
    left = extent->off + extent->len - r->off;
    ret->off = r->off;
    ret->is_zero = extent->value & EXTENT_ZERO;
    ret->len = MIN (left, ret->is_zero ? MAX_ZERO_ITEM : MAX_ITEM);
    r->off += ret->len;
    if (!ret->is_zero)
      prefetch (r);
    if (!ret->is_zero || !r->is_new)
      return 1;
    progress_add (ret->len);
  }
  return e;
}

static int
restore_reserve (void *opaque, const struct copy_item *item)
{
  struct restore *r = opaque;

  return item->is_zero ? 0 : qcow2_reserve (r->target, item->len, item->off);
}

static void
restore_done (void *opaque, const struct copy_item *item)
{
  struct restore *r = opaque;
  uint64_t before;

  progress_add (item->len);
  if (r->fd < 0 || item->is_zero)
    return;
  before = atomic_fetch_add_explicit (&r->written, item->len,
                                      memory_order_relaxed);
  /* Advice: the sync at the end is what counts. */
  if (before / WRITEBACK_STEP != (before + item->len) / WRITEBACK_STEP)
    (void) sync_file_range (r->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

/* A device or an export may be larger than the disk, not smaller. */
static int
check_size (struct restore *r, struct error *err)
{
  uint64_t size = blk_size (r->target);
  char a[SIZE_STRING_MAX], b[SIZE_STRING_MAX];

  if (size >= r->size)
    return 0;
  return error_set (err, ENOSPC, "%s: %s (%ju bytes) is too small for a disk "
                    "of %s (%ju bytes)", r->options->output,
                    size_format (size, a), (uintmax_t) size,
                    size_format (r->size, b), (uintmax_t) r->size);
}

static int
open_nbd (struct restore *r, struct error *err)
{
  const struct blk_nbd_options o = {
    .uri = r->options->output,
    .nr_connections = r->options->nr_connections,
    .tls = tls_options_nbd (),
    .cancel_fd = interrupt_fd (),
    .is_allocation_optional = true,
  };
  int e = blk_nbd_open (&o, &r->target, err);

  if (e < 0)
    return e;
  if (blk_is_read_only (r->target))
    return error_set (err, EROFS, "%s: the export is read-only",
                      r->options->output);
  return check_size (r, err);
}

static int
open_device (struct restore *r, struct error *err)
{
  const struct blk_open_options o = { .file = r->options->output };
  int e, fd;

  if (!r->options->is_forced)
    return error_set (err, EEXIST, "%s is a block device: what it holds would "
                      "be lost; use --force to overwrite it",
                      r->options->output);
  /* Fails if the device is mounted or otherwise held. */
  fd = open (r->options->output, O_RDONLY | O_EXCL | O_CLOEXEC);
  if (fd < 0)
    return error_set_errno (err, errno, "%s", r->options->output);
  close (fd);
  e = blk_open (&o, &r->target, err);
  return e < 0 ? e : check_size (r, err);
}

/* A name beside the file, in the same folder. */
static int
make_temporary (struct restore *r, struct error *err)
{
  char *slash = strrchr (r->path, '/');
  int dir_len = slash ? (int) (slash - r->path) + 1 : 0;

  if (asprintf (&r->temporary, "%.*s.%s.partial-XXXXXX", dir_len, r->path,
                r->path + dir_len) < 0) {
    r->temporary = NULL;
    return error_set_errno (err, ENOMEM, "%s", r->path);
  }
  r->fd = mkostemp (r->temporary, O_CLOEXEC);
  if (r->fd < 0) {
    int e = errno;

    free (r->temporary);
    r->temporary = NULL;
    return error_set_errno (err, e, "%s", r->path);
  }
  return 0;
}

static int
open_image (struct restore *r, struct blk *file, struct error *err)
{
  const struct qcow2_create_options q = { .size = r->size };

  return blk_qcow2_create (file, &q, &r->target, err);
}

static int
open_file (struct restore *r, struct error *err)
{
  struct blk *file;
  int e, fd;

  e = make_temporary (r, err);
  if (e < 0)
    return e;
  if (!r->options->is_qcow2 && ftruncate (r->fd, (off_t) r->size) < 0)
    return error_set_errno (err, errno, "%s", r->path);
  fd = fcntl (r->fd, F_DUPFD_CLOEXEC, 0);
  if (fd < 0)
    return error_set_errno (err, errno, "%s", r->path);
  e = blk_file_from_fd (fd, r->path, BLK_FILE_ANY_SIZE, &file, err);
  if (e < 0)
    return e;
  r->is_new = true;
  if (r->options->is_qcow2)
    return open_image (r, file, err);
  r->target = file;
  return 0;
}

/* A disk that is served, or that a guest uses, must not get lost under it.
 * Whatever else prevents opening the old file does not matter.
 */
static int
lock_replaced (struct restore *r, struct error *err)
{
  struct error why = ERROR_INIT;
  int e = blk_file_open (r->path, BLK_FILE_ANY_SIZE, &r->replaced, &why);

  if (e != -EBUSY)
    return 0;
  *err = why;
  return e;
}

static int
open_target (struct restore *r, struct error *err)
{
  const char *output = r->options->output;
  bool is_nbd = blk_is_nbd_uri (output);
  struct stat st;
  int e;

  if (!is_nbd && stat (output, &st) == 0) {
    if (!S_ISREG (st.st_mode) && !S_ISBLK (st.st_mode))
      return error_set (err, EINVAL, "%s: neither a file nor a block device",
                        output);
    if (S_ISREG (st.st_mode) && !r->options->is_forced)
      return error_set (err, EEXIST, "%s exists; use --force to overwrite it",
                        output);
    if (S_ISREG (st.st_mode))
      r->mode = st.st_mode & 07777;
    else
      is_nbd = false;
  }
  else
    st.st_mode = 0;
  if ((is_nbd || S_ISBLK (st.st_mode)) && r->options->is_qcow2)
    return error_set (err, EINVAL, "%s: --format qcow2 is for new files only",
                      output);
  if (is_nbd)
    return open_nbd (r, err);
  if (S_ISBLK (st.st_mode))
    return open_device (r, err);
  /* Follow links to a file that is there. */
  r->path = r->mode ? realpath (output, NULL) : strdup (output);
  if (!r->path)
    return error_set_errno (err, errno, "%s", output);
  e = r->mode ? lock_replaced (r, err) : 0;
  return e < 0 ? e : open_file (r, err);
}

static int
copy_all (struct restore *r, struct restore_result *ret, struct error *err)
{
  const bool is_image = r->options->is_qcow2;
  const struct copy_ops ops = {
    .next = restore_next, .done = restore_done,
    .reserve = is_image ? restore_reserve : NULL,
  };
  const struct copy_options options = {
    .max_item = MAX_ITEM,
    .detect_zeroes = true,
    .zero_unit = is_image ? QCOW2_DEFAULT_CLUSTER_SIZE : ZERO_UNIT,
    .target_is_zero = r->is_new,
    .nr_threads = r->options->nr_connections,
    .cancel = r->options->cancel,
  };
  struct copy_stats stats;
  int e;

  extents_init (&r->extents, MAX_EXTENTS);
  e = copy_run (r->options->source, r->target, &options, &ops, r, &stats,
                err);
  extents_free (&r->extents);
  ret->written_bytes = stats.written_bytes;
  return e;
}

static int
sync_folder (const char *path)
{
  char *copy = strdup (path);
  int fd, r = 0;

  if (!copy)
    return -ENOMEM;
  fd = open (dirname (copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0 || fsync (fd) < 0)
    r = -errno;
  if (fd >= 0)
    close (fd);
  free (copy);
  return r;
}

static mode_t
default_mode (void)
{
  mode_t mask = umask (0);

  umask (mask);
  return 0666 & ~mask;
}

/* Give the complete file its name. */
static int
publish (struct restore *r, struct error *err)
{
  int e = 0;

  if (fchmod (r->fd, r->mode ? r->mode : default_mode ()) < 0
      || fsync (r->fd) < 0)
    return error_set_errno (err, errno, "%s", r->path);
  if (r->options->is_forced)
    e = rename (r->temporary, r->path);
  else {
    e = renameat2 (AT_FDCWD, r->temporary, AT_FDCWD, r->path,
                   RENAME_NOREPLACE);
    /* A file system that does not know the flag. */
    if (e < 0 && errno == EINVAL && access (r->path, F_OK) < 0)
      e = rename (r->temporary, r->path);
  }
  if (e < 0)
    return error_set_errno (err, errno, "%s", r->path);
  free (r->temporary);
  r->temporary = NULL;
  e = sync_folder (r->path);
  return e < 0 ? error_set_errno (err, -e, "%s", r->path) : 0;
}

/* A server that does not answer must not keep an interrupt waiting. */
static int
copy_watched (struct restore *r, struct restore_result *ret,
              struct error *err)
{
  struct interrupt_watch watch = { 0 };
  int e = interrupt_watch_start (&watch, source_cancel, r->target, err);

  if (e == 0)
    e = copy_all (r, ret, err);
  if (e == 0) {
    e = blk_flush (r->target);
    if (e < 0)
      error_set_errno (err, -e, "%s: cannot be made durable",
                       r->options->output);
  }
  interrupt_watch_stop (&watch);
  return e;
}

static int
finish (struct restore *r, struct error *err)
{
  int e = blk_close (r->target);

  r->target = NULL;
  if (e < 0)
    return error_set_errno (err, -e, "%s: cannot be made durable",
                            r->options->output);
  return r->temporary ? publish (r, err) : 0;
}

int
restore_run (const struct restore_options *options,
             struct restore_result *ret, struct error *err)
{
  struct restore r = { .options = options, .size = blk_size (options->source),
                       .fd = -1 };
  struct restore_result result = { 0 };
  int e = open_target (&r, err);

  if (e == 0)
    e = copy_watched (&r, &result, err);
  if (e == 0)
    e = finish (&r, err);
  if (r.target)
    blk_close (r.target);
  if (r.replaced)
    blk_close (r.replaced);
  if (r.fd >= 0)
    close (r.fd);
  if (r.temporary)
    unlink (r.temporary);
  free (r.temporary);
  free (r.path);
  if (e == 0)
    *ret = result;
  return e;
}
