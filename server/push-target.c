/* SPDX-License-Identifier: BSD-3-Clause */
/* Targets of drive-backup.
 *
 * A job writes whole clusters, so a qcow2 target is opened as one layer: the
 * backing file that its header names is not needed.
 *
 * Called by control threads, without locks.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blk-file.h"
#include "blk-open.h"
#include "blk-qcow2.h"
#include "cleanup.h"
#include "push-target.h"
#include "range.h"

/* QEMU's message in the place of ours, as far as it has one. */
static int
error_open (int r, const char *verb, const char *path, struct error *err)
{
  if (r == 0)
    return 0;
  if (r == -EBUSY || r == -EINVAL || r == -EFBIG)
    return r;                   /* ours says more */
  return error_set_errno (err, -r, "Could not %s '%s'", verb, path);
}

/* Look for the magic of qcow2.  The operator has named this file as a target
 * and not said its format; whatever a guest may have written to it, no other
 * file is opened because of it.
 */
static int
probe (struct blk *file, const char **ret)
{
  char magic[4] = "";
  int r = 0;

  if (blk_size (file) >= 512)
    r = blk_pread (file, magic, sizeof magic, 0, 0);
  *ret = memcmp (magic, "QFI\xfb", sizeof magic) == 0 ? "qcow2" : "raw";
  return r;
}

/* The format over an open file, which is taken. */
static int
open_format (struct blk *file, const char *format, struct blk **ret,
             struct error *err)
{
  const struct qcow2_open_options options = { .ignore_backing = true };

  if (strcmp (format, "qcow2") == 0)
    return blk_qcow2_open (file, &options, ret, err);
  *ret = file;
  return 0;
}

static int
open_file (const char *path, unsigned flags, struct blk **ret,
           struct error *err)
{
  const struct blk_open_options options = { .file = path };

  return blk_is_nbd_uri (path) ? blk_open (&options, ret, err)
    : blk_file_open (path, flags, ret, err);
}

static int
open_existing (const struct push_target_options *o, struct blk **ret,
               struct error *err)
{
  const char *format = o->format;
  struct blk *file;
  int r = open_file (o->path, BLK_FILE_ANY_SIZE, &file, err);

  if (r < 0)
    return error_open (r, "open", o->path, err);
  if (format == NULL) {
    r = probe (file, &format);
    if (r < 0) {
      blk_close (file);
      return error_open (r, "open", o->path, err);
    }
  }
  return open_format (file, format, ret, err);
}

/* The new name is durable. */
static int
sync_directory (const char *path)
{
  CLEANUP_FREE char *copy = strdup (path);
  int fd, r = 0;

  if (copy == NULL)
    return -ENOMEM;
  fd = open (dirname (copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    return -errno;
  if (fsync (fd) < 0)
    r = -errno;
  close (fd);
  return r;
}

/* An empty file, new or emptied. */
static int
open_empty (const char *path, struct blk **ret, bool *ret_is_new,
            struct error *err)
{
  int r = blk_file_open (path, BLK_FILE_CREATE | BLK_FILE_ANY_SIZE, ret, err);

  if (r == 0) {
    *ret_is_new = true;
    r = sync_directory (path);
    if (r < 0)
      blk_close (*ret);
    return error_open (r, "create", path, err);
  }
  if (r != -EEXIST)
    return error_open (r, "create", path, err);
  r = blk_file_open (path, BLK_FILE_ANY_SIZE, ret, err);
  if (r < 0)
    return error_open (r, "create", path, err);
  r = blk_resize (*ret, 0);
  if (r < 0) {
    blk_close (*ret);
    r = error_set (err, EINVAL, "Could not create '%s': it is a block device;"
                   " use mode 'existing'", path);
  }
  return r;
}

static int
create_image (const struct push_target_options *o, struct blk *file,
              struct error *err)
{
  const struct qcow2_create_options options = {
    .size = o->size,
    .backing_file = o->backing_file,
    .backing_format = o->backing_format,
  };
  struct blk *image;
  int r;

  if (strcmp (o->format, "qcow2") == 0) {
    r = blk_qcow2_create (file, &options, &image, err);
    return r < 0 ? r : error_open (blk_close (image), "create", o->path, err);
  }
  r = blk_resize (file, o->size);
  blk_close (file);
  return error_open (r, "create", o->path, err);
}

int
push_target_open (const struct push_target_options *o, struct blk **ret,
                  bool *ret_is_new, struct error *err)
{
  struct blk *file;
  int r;

  *ret_is_new = false;
  if (o->format && strcmp (o->format, "raw") != 0
      && strcmp (o->format, "qcow2") != 0)
    return error_set (err, EINVAL, "Unknown %s '%.100s'", o->is_existing
                      ? "driver" : "file format", o->format);
  if (o->is_existing)
    return open_existing (o, ret, err);
  if (o->backing_file && strcmp (o->format, "raw") == 0)
    return error_set (err, EINVAL, "Backing file not supported for file format"
                      " 'raw'");
  r = open_empty (o->path, &file, ret_is_new, err);
  if (r == 0)
    r = create_image (o, file, err);
  if (r == 0)
    r = open_existing (o, ret, err);
  if (r < 0 && *ret_is_new)
    unlink (o->path);
  return r;
}
