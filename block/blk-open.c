/* SPDX-License-Identifier: BSD-3-Clause */
/* From the names that users give to nodes to stacks of drivers. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "blk-file.h"
#include "blk-nbd.h"
#include "blk-open.h"
#include "blk-qcow2.h"
#include "nbd-uri.h"

bool
blk_is_nbd_uri (const char *s)
{
  return nbd_uri_is_nbd (s);
}

/* The protocol node: where the bytes are. */
static int
open_protocol (const struct blk_open_options *o, bool is_raw,
               struct blk **ret, struct error *err)
{
  unsigned flags = 0;

  if (blk_is_nbd_uri (o->file)) {
    struct blk_nbd_options options = {
      .uri = o->file, .is_read_only = o->is_read_only,
      .is_allocation_optional = true,
    };

    return blk_nbd_open (&options, ret, err);
  }
  if (o->is_read_only)
    flags |= BLK_FILE_READ_ONLY;
  if (o->no_lock)
    flags |= BLK_FILE_NO_LOCK;
  if (!is_raw)
    flags |= BLK_FILE_ANY_SIZE;
  return blk_file_open (o->file, flags, ret, err);
}

static int
rename_node (struct blk *blk, const char *name, struct error *err)
{
  char *copy = strdup (name);

  if (!copy)
    return error_set_errno (err, ENOMEM, "%s", name);
  free (blk->name);
  blk->name = copy;
  return 0;
}

static void
get_stat (const struct blk_open_options *o, struct statx *ret)
{
  if (blk_is_nbd_uri (o->file)
      || statx (AT_FDCWD, o->file, 0, STATX_BASIC_STATS | STATX_BTIME,
                ret) < 0)
    memset (ret, 0, sizeof *ret);
}

int
blk_open (const struct blk_open_options *o, struct blk **ret,
          struct error *err)
{
  const char *format = o->format ? o->format : "raw";
  const bool is_raw = strcmp (format, "raw") == 0;
  struct blk *blk = NULL;
  int r;

  if (!is_raw && strcmp (format, "qcow2") != 0)
    return error_set (err, EINVAL, "%s: unknown format \"%s\" (raw or qcow2)",
                      o->file, format);
  r = open_protocol (o, is_raw, &blk, err);
  if (r == 0 && o->ret_stat)
    get_stat (o, o->ret_stat);
  if (r == 0 && !is_raw) {
    struct qcow2_open_options options = {
      .is_read_only = o->is_read_only, .allow_backing = o->allow_backing,
      .cache = o->cache,
    };
    struct blk *file = blk;

    blk = NULL;
    r = blk_qcow2_open (file, &options, &blk, err);
  }
  if (r == 0 && o->node_name)
    r = rename_node (blk, o->node_name, err);
  if (r < 0) {
    blk_close (blk);
    return r;
  }
  *ret = blk;
  return 0;
}
