/* SPDX-License-Identifier: BSD-3-Clause */
/* The two files of a pull: made, gone on with, finished, removed.  Called by
 * the thread that runs the pull.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blk-file.h"
#include "blk-qcow2.h"
#include "cleanup.h"
#include "manifest.h"
#include "pull-private.h"
#include "qcow2-check.h"

static const char *
partial_name (const struct pull_options *o, const char *suffix,
              char ret[BACKUP_NAME_MAX])
{
  return backup_name (o->number, o->is_full, suffix, ret);
}

static int
make_file (const struct pull *p, const char *suffix, int *ret_fd,
           struct error *err)
{
  const struct pull_options *o = p->options;
  char name[BACKUP_NAME_MAX];

  partial_name (o, suffix, name);
  *ret_fd = openat (o->dirfd, name, O_RDWR | O_CLOEXEC
                    | (p->resume ? 0 : O_CREAT | O_EXCL), 0666);
  if (*ret_fd < 0)
    return error_set_errno (err, errno, "%s/%s", o->folder, name);
  return 0;
}

static int
image_node (struct pull *p, struct blk **ret, struct error *err)
{
  char name[BACKUP_NAME_MAX];
  CLEANUP_FREE char *path = NULL;
  int fd = fcntl (p->image_fd, F_DUPFD_CLOEXEC, 0);

  partial_name (p->options, ".qcow2.partial", name);
  if (fd < 0)
    return error_set_errno (err, errno, "%s/%s", p->options->folder, name);
  if (asprintf (&path, "%s/%s", p->options->folder, name) < 0) {
    path = NULL;
    close (fd);
    return error_set_errno (err, ENOMEM, "%s", name);
  }
  return blk_file_from_fd (fd, path, BLK_FILE_ANY_SIZE, ret, err);
}

static int
create_image (struct pull *p, struct error *err)
{
  const struct pull_options *o = p->options;
  struct qcow2_create_options q = {
    .size = blk_size (o->source),
    .cluster_size = o->cluster_size,
    .backing_file = o->backing,
    .backing_format = o->backing ? "qcow2" : NULL,
    .compression = o->compression,
    .compression_level = o->compression_level,
  };
  struct blk *file;
  int r = image_node (p, &file, err);

  return r < 0 ? r : blk_qcow2_create (file, &q, &p->target, err);
}

/* Clusters that were being written when it was left are in no table, but may
 * be counted.
 */
static int
reopen_image (struct pull *p, struct error *err)
{
  const struct qcow2_open_options q = {
    .is_append = true, .ignore_backing = true,
    .compression_level = p->options->compression_level,
  };
  const struct qcow2_check_options c = { .repair = QCOW2_REPAIR_LEAKS };
  struct qcow2_check_result result;
  struct blk *file;
  int r = image_node (p, &file, err);

  if (r == 0)
    r = blk_qcow2_check (file, &c, &result, err);
  if (r == 0 && result.corruptions > 0)
    r = error_set (err, EBADMSG, "the image is damaged");
  if (r == 0)
    r = image_node (p, &file, err);
  if (r == 0)
    r = blk_qcow2_open (file, &q, &p->target, err);
  if (r == 0 && blk_size (p->target) != blk_size (p->options->source))
    r = error_set (err, EBADMSG, "the image has another size than the disk");
  return r;
}

static int
make_image (struct pull *p, struct error *err)
{
  char name[BACKUP_NAME_MAX];
  int r = make_file (p, ".qcow2.partial", &p->image_fd, err);

  if (r < 0)
    return r;
  r = p->resume ? reopen_image (p, err) : create_image (p, err);
  if (r < 0)
    error_prefix_file (err, p->options->folder,
                       partial_name (p->options, ".qcow2.partial", name));
  return r;
}

static int
make_sums (struct pull *p, struct error *err)
{
  const struct pull_options *o = p->options;
  const struct sums_header header = {
    .cluster_size = o->cluster_size,
    .virtual_size = blk_size (o->source),
    .number = o->number,
    .point = o->point,
  };
  int r = make_file (p, ".sums.partial", &p->sums_fd, err);

  if (r < 0)
    return r;
  if (p->resume)
    r = sums_writer_resume (p->sums_fd, &header, !o->backing, p->resume,
                            &p->sums);
  else
    r = sums_writer_new (p->sums_fd, &header, !o->backing, &p->sums);
  return r < 0 ? error_set_errno (err, -r, "%s: checksums of backup %u",
                                  o->folder, o->number) : 0;
}

int
pull_make_files (struct pull *p, struct error *err)
{
  int r;

  p->buf = p->resume ? malloc (p->max_item) : NULL;
  if (p->resume && !p->buf)
    return error_set_errno (err, ENOMEM, "backup %u", p->options->number);
  r = make_image (p, err);
  return r < 0 ? r : make_sums (p, err);
}

static int
sync_file (const struct pull_options *o, int fd, const char *suffix,
           struct error *err)
{
  char name[BACKUP_NAME_MAX];

  if (fchmod (fd, 0444) == 0 && fsync (fd) == 0)
    return 0;
  partial_name (o, suffix, name);
  return error_set_errno (err, errno, "%s/%s", o->folder, name);
}

int
pull_finish_files (struct pull *p, struct pull_result *ret, struct error *err)
{
  const struct pull_options *o = p->options;
  struct sums_totals totals;
  struct stat st;
  int r;

  r = blk_flush (p->target);
  if (r == 0) {
    r = blk_close (p->target);
    p->target = NULL;
  }
  if (r < 0)
    return error_set_errno (err, -r, "%s: image of backup %u", o->folder,
                            o->number);
  r = sums_finish (p->sums, ret->root);
  if (r < 0)
    return error_set_errno (err, -r, "%s: checksums of backup %u", o->folder,
                            o->number);
  r = sync_file (o, p->image_fd, ".qcow2.partial", err);
  if (r == 0)
    r = sync_file (o, p->sums_fd, ".sums.partial", err);
  if (r < 0)
    return r;
  if (fstat (p->image_fd, &st) < 0)
    return error_set_errno (err, errno, "%s", o->folder);
  sums_writer_totals (p->sums, &totals);
  ret->image_bytes = (uint64_t) st.st_size;
  ret->data_bytes = totals.data_clusters * o->cluster_size;
  ret->zero_bytes = totals.zero_clusters * o->cluster_size;
  return 0;
}

void
pull_discard (const struct pull_options *o)
{
  char name[BACKUP_NAME_MAX];

  unlinkat (o->dirfd, partial_name (o, ".qcow2.partial", name), 0);
  unlinkat (o->dirfd, partial_name (o, ".sums.partial", name), 0);
}
