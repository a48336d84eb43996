/* SPDX-License-Identifier: BSD-3-Clause */
/* The other files of an image: its backing file and its data file.
 *
 * I10: a header makes us open nothing at all unless the caller allows it, and
 * then nothing but files by a path: "json:" and protocol names are refused, and
 * so are a format other than qcow2 and raw, a missing format (probing would
 * let a guest choose it), a chain that comes back to itself, one that is too
 * deep, and a data file that is an image of the chain.
 *
 * Called when an image is opened, by the thread that does so.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "blk-file.h"
#include "cleanup.h"
#include "qcow2.h"

/* Names like "nbd:..." and "json:{...}": a colon before any slash. */
static bool
is_protocol_name (const char *name)
{
  size_t n = strcspn (name, ":/");

  return name[n] == ':';
}

/* name relative to the directory of filename; the caller frees it. */
static char *
resolve (const char *filename, const char *name)
{
  const char *slash = filename ? strrchr (filename, '/') : NULL;
  char *path;

  if (name[0] == '/' || !slash)
    return strdup (name);
  if (asprintf (&path, "%.*s/%s", (int) (slash - filename), filename, name)
      < 0)
    return NULL;
  return path;
}

static int
check_name (const struct qcow2 *q, const char *what, const char *name,
            const struct qcow2_open_options *options, struct error *err)
{
  if (is_protocol_name (name))
    return error_set (err, EINVAL, "%s: %s \"%.100s\" is not a plain file"
                      " name", q->blk.name, what, name);
  if (options->only_neighbours && (strchr (name, '/') || *name == '.'))
    return error_set (err, EPERM, "%s: %s \"%.100s\" is not in the image's"
                      " own directory", q->blk.name, what, name);
  return 0;
}

static int
check_format (const struct qcow2 *q, struct error *err)
{
  const char *name = q->header.backing_file;
  const char *format = q->header.backing_format;

  if (!*format)
    return error_set (err, EINVAL, "%s: the header does not say the format of"
                      " the backing file \"%.80s\" (qemu-img rebase -u -F sets"
                      " it)", q->blk.name, name);
  if (strcmp (format, "qcow2") != 0 && strcmp (format, "raw") != 0)
    return error_set (err, ENOTSUP, "%s: backing format \"%s\" is not"
                      " supported, only qcow2 and raw", q->blk.name, format);
  return 0;
}

void
qcow2_identify (const char *path, struct qcow2_chain *link)
{
  struct stat st;

  link->is_known = path && stat (path, &st) == 0;
  if (link->is_known) {
    link->dev = st.st_dev;
    link->ino = st.st_ino;
  }
}

/* True if link's file is one of the images from c upwards. */
static bool
is_in_chain (const struct qcow2_chain *link, const struct qcow2_chain *c)
{
  for (; c && link->is_known; c = c->above)
    if (c->is_known && c->dev == link->dev && c->ino == link->ino)
      return true;
  return false;
}

static int
check_chain (const struct qcow2 *q, const char *path,
             const struct qcow2_chain *link, struct error *err)
{
  if (link->depth > QCOW2_MAX_BACKING_DEPTH)
    return error_set (err, ELOOP, "%s: the chain of backing files is deeper"
                      " than %d", q->blk.name, QCOW2_MAX_BACKING_DEPTH);
  if (is_in_chain (link, link->above))
    return error_set (err, ELOOP, "%s: backing file \"%.100s\" is already in"
                      " the chain above", q->blk.name, path);
  return 0;
}

int
qcow2_open_backing (struct qcow2 *q, const char *filename,
                    const struct qcow2_open_options *top,
                    const struct qcow2_chain *above, struct error *err)
{
  struct qcow2_open_options options = {
    .is_read_only = true, .allow_backing = true,
    .only_neighbours = top->only_neighbours,
  };
  CLEANUP_FREE char *path = resolve (filename, q->header.backing_file);
  struct qcow2_chain link = {
    .above = above, .depth = above->depth + 1,
  };
  struct blk *file;
  int error;

  error = check_name (q, "backing file", q->header.backing_file, top, err);
  if (error == 0)
    error = check_format (q, err);
  if (error < 0)
    return error;
  if (!path)
    return error_set_errno (err, ENOMEM, "%s", q->blk.name);
  qcow2_identify (path, &link);
  error = check_chain (q, path, &link, err);
  if (error < 0)
    return error;
  error = blk_file_open (path, BLK_FILE_READ_ONLY | BLK_FILE_ANY_SIZE, &file,
                         err);
  if (error == 0 && strcmp (q->header.backing_format, "raw") == 0)
    q->blk.backing = file;
  else if (error == 0)
    error = qcow2_open_layer (file, &options, &link, &q->blk.backing, err);
  /* Once is enough: the message names the layer itself. */
  if (error < 0 && !above->above)
    error_prefix (err, "%s: backing file", q->blk.name);
  return error;
}

/* By the name in the header. */
static int
open_named_data (struct qcow2 *q, const char *filename,
                 const struct qcow2_open_options *options,
                 const struct qcow2_chain *above, struct error *err)
{
  CLEANUP_FREE char *path = resolve (filename, q->header.data_file);
  unsigned flags = BLK_FILE_ANY_SIZE;
  struct qcow2_chain link;
  int error;

  if (!q->header.data_file[0])
    return error_set (err, EINVAL, "%s: the header does not say which data"
                      " file the image has", q->blk.name);
  if (!options->allow_backing)
    return error_set (err, EPERM, "%s: the image has an external data file"
                      " (\"%.100s\") and following it was not allowed"
                      " (backing=allow; \"allow-backing\" of a node)",
                      q->blk.name, q->header.data_file);
  error = check_name (q, "data file", q->header.data_file, options, err);
  if (error < 0)
    return error;
  if (!path)
    return error_set_errno (err, ENOMEM, "%s", q->blk.name);
  qcow2_identify (path, &link);
  if (is_in_chain (&link, above))
    return error_set (err, ELOOP, "%s: data file \"%.100s\" is an image of the"
                      " chain itself", q->blk.name, path);
  if (options->is_read_only)
    flags |= BLK_FILE_READ_ONLY;
  error = blk_file_open (path, flags, &q->data, err);
  if (error < 0)
    error_prefix (err, "%s: data file", q->blk.name);
  return error;
}

int
qcow2_open_data (struct qcow2 *q, const char *filename,
                 const struct qcow2_open_options *options,
                 const struct qcow2_chain *above, struct error *err)
{
  struct blk *file = q->data;
  int error;

  if (!(q->header.incompatible & QCOW2_INCOMPAT_DATA_FILE)) {
    if (!options->data)
      return 0;
    blk_close (options->data);
    return error_set (err, EINVAL, "%s: the image has no external data file",
                      q->blk.name);
  }
  if (options->data) {
    q->data = options->data;
    return 0;
  }
  error = open_named_data (q, filename, options, above, err);
  if (error < 0)
    q->data = file;
  return error;
}
