/* SPDX-License-Identifier: BSD-3-Clause */
/* The backing file of an image.
 *
 * I10: a header makes us open nothing but files by a path: "json:" and
 * protocol names are refused, and so are a format other than qcow2 and raw, a
 * missing format (probing would let a guest choose it), a chain that comes
 * back to itself, and one that is too deep.
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
check_names (const struct qcow2 *q, struct error *err)
{
  const char *name = q->header.backing_file;
  const char *format = q->header.backing_format;

  if (is_protocol_name (name))
    return error_set (err, EINVAL, "%s: backing file \"%.100s\" is not a plain"
                      " file name", q->blk.name, name);
  if (!*format)
    return error_set (err, EINVAL, "%s: the header does not say the format of"
                      " the backing file \"%.80s\" (qemu-img rebase -u -F sets"
                      " it)", q->blk.name, name);
  if (strcmp (format, "qcow2") != 0 && strcmp (format, "raw") != 0)
    return error_set (err, ENOTSUP, "%s: backing format \"%s\" is not"
                      " supported, only qcow2 and raw", q->blk.name, format);
  return 0;
}

static int
check_chain (const struct qcow2 *q, const char *path,
             const struct qcow2_chain *link, struct error *err)
{
  const struct qcow2_chain *c;

  if (link->depth > QCOW2_MAX_BACKING_DEPTH)
    return error_set (err, ELOOP, "%s: the chain of backing files is deeper"
                      " than %d", q->blk.name, QCOW2_MAX_BACKING_DEPTH);
  for (c = link->above; c && link->is_known; c = c->above)
    if (c->is_known && c->dev == link->dev && c->ino == link->ino)
      return error_set (err, ELOOP, "%s: backing file \"%.100s\" is already in"
                        " the chain above", q->blk.name, path);
  return 0;
}

int
qcow2_open_backing (struct qcow2 *q, const char *filename,
                    const struct qcow2_chain *above, struct error *err)
{
  struct qcow2_open_options options = {
    .is_read_only = true, .allow_backing = true,
  };
  CLEANUP_FREE char *path = resolve (filename, q->header.backing_file);
  struct qcow2_chain link = {
    .above = above, .depth = above->depth + 1,
  };
  struct blk *file;
  struct stat st;
  int error;

  error = check_names (q, err);
  if (error < 0)
    return error;
  if (!path)
    return error_set_errno (err, ENOMEM, "%s", q->blk.name);
  if (stat (path, &st) == 0) {
    link.is_known = true;
    link.dev = st.st_dev;
    link.ino = st.st_ino;
  }
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
