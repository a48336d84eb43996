/* SPDX-License-Identifier: BSD-3-Clause */
/* Drives the qcow2 driver from scripts: commands from stdin, one a line.
 *
 *   create FILE SIZE CLUSTER [BACKING FORMAT]
 *   open FILE [ro|deny|neighbours [rw]]   close
 *   new FILE SIZE NAME=VALUE... (as qemu-img create -o)
 *   reserve OFF LEN   write OFF LEN BYTE   zero OFF LEN   unmap OFF LEN
 *   trim OFF LEN   resize SIZE   flush     kill (end here, as a crash would)
 *   dump FILE (the guest's view, as a raw file)   map (extents, depths)
 *   pack OFF LEN BYTE (write compressed)   bitmaps (load all of the image)
 *
 * An image opened "ro", "deny" (no other files) or "neighbours" (only files
 * beside it) is read-only, unless "rw" follows.  Sizes are bytes.  The first
 * failure is printed and ends the program with status 1; "expect TEXT" before a
 * command means that its failure must contain TEXT.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blk-file.h"
#include "blk-qcow2.h"
#include "cleanup.h"
#include "qcow2-bitmap.h"
#include "range.h"

#define MAX_WORDS 16

static struct blk *node;
static struct error err;

static int
open_file (const char *path, unsigned flags, struct blk **ret)
{
  return blk_file_open (path, flags | BLK_FILE_ANY_SIZE, ret, &err);
}

/* Open the other files and create the image. */
static int
create (const char *name, struct qcow2_create_options *o)
{
  struct qcow2_open_options backing = {
    .is_read_only = true, .allow_backing = true,
  };
  struct blk *file;
  int r = 0;

  if (o->backing_file && o->backing_format) {
    r = open_file (o->backing_file, BLK_FILE_READ_ONLY, &file);
    if (r == 0 && strcmp (o->backing_format, "qcow2") == 0)
      r = blk_qcow2_open (file, &backing, &o->backing, &err);
    else if (r == 0)
      o->backing = file;
  }
  if (r == 0 && o->data_file) {
    unlink (o->data_file);
    r = open_file (o->data_file, BLK_FILE_CREATE, &o->data);
  }
  unlink (name);
  if (r == 0)
    r = open_file (name, BLK_FILE_CREATE, &file);
  return r < 0 ? r : blk_qcow2_create (file, o, &node, &err);
}

static int
do_create (char *const *w, unsigned nr)
{
  struct qcow2_create_options options = {
    .size = strtoull (w[2], NULL, 0),
    .cluster_size = (uint32_t) strtoul (w[3], NULL, 0),
    .backing_file = nr > 4 ? w[4] : NULL,
    .backing_format = nr > 5 ? w[5] : NULL,
  };

  return create (w[1], &options);
}

static bool
is_on (const char *value)
{
  return strcmp (value, "on") == 0;
}

static int
set_option (struct qcow2_create_options *o, const char *name,
            const char *value)
{
  static const char *const modes[] = { "off", "metadata", "falloc", "full" };

  if (strcmp (name, "compat") == 0)
    o->version = strcmp (value, "0.10") == 0 ? 2 : 3;
  else if (strcmp (name, "cluster_size") == 0)
    o->cluster_size = (uint32_t) strtoul (value, NULL, 0);
  else if (strcmp (name, "refcount_bits") == 0)
    o->refcount_bits = (unsigned) strtoul (value, NULL, 0);
  else if (strcmp (name, "compression_type") == 0)
    o->compression = strcmp (value, "zstd") == 0 ? QCOW2_COMPRESSION_ZSTD
      : QCOW2_COMPRESSION_ZLIB;
  else if (strcmp (name, "lazy_refcounts") == 0)
    o->has_lazy_refcounts = is_on (value);
  else if (strcmp (name, "extended_l2") == 0)
    o->is_extended = is_on (value);
  else if (strcmp (name, "data_file") == 0)
    o->data_file = value;
  else if (strcmp (name, "data_file_raw") == 0)
    o->is_data_file_raw = is_on (value);
  else if (strcmp (name, "backing_file") == 0)
    o->backing_file = value;
  else if (strcmp (name, "backing_fmt") == 0)
    o->backing_format = value;
  else if (strcmp (name, "preallocation") == 0) {
    for (unsigned i = 0; i < 4; i++)
      if (strcmp (value, modes[i]) == 0)
        o->preallocation = i;
  } else
    return -EINVAL;
  return 0;
}

static int
do_new (char *const *w, unsigned nr)
{
  struct qcow2_create_options options = { .size = strtoull (w[2], NULL, 0) };
  char *value;
  int r = 0;

  for (unsigned i = 3; i < nr && r == 0; i++) {
    value = strchr (w[i], '=');
    if (!value)
      return -EINVAL;
    *value++ = '\0';
    r = set_option (&options, w[i], value);
  }
  return r < 0 ? r : create (w[1], &options);
}

static int
do_open (char *const *w, unsigned nr)
{
  struct qcow2_open_options options = {
    .is_read_only = nr == 3, .allow_backing = true,
  };
  struct blk *file;
  int r;

  if (nr > 2 && strcmp (w[2], "deny") == 0)
    options.allow_backing = false;
  if (nr > 2 && strcmp (w[2], "neighbours") == 0)
    options.only_neighbours = true;

  r = open_file (w[1], options.is_read_only ? BLK_FILE_READ_ONLY : 0, &file);
  return r < 0 ? r : blk_qcow2_open (file, &options, &node, &err);
}

static int
do_close (void)
{
  struct blk *n = node;

  node = NULL;
  return blk_close (n);
}

static int
do_write (uint64_t off, uint64_t len, int byte, unsigned flags)
{
  CLEANUP_FREE uint8_t *buf = malloc (len);

  if (!buf)
    return -ENOMEM;
  memset (buf, byte, len);
  return blk_pwrite (node, buf, len, off, flags);
}

static int
do_dump (const char *path)
{
  CLEANUP_CLOSE int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  static uint8_t buf[1 << 20];
  uint64_t size = blk_size (node), n;
  int r;

  if (fd < 0 || ftruncate (fd, (off_t) size) < 0)
    return -errno;
  for (uint64_t off = 0; off < size; off += n) {
    n = MIN (sizeof buf, size - off);
    r = blk_pread (node, buf, n, off, 0);
    if (r < 0)
      return r;
    if (!is_zero_buffer (buf, n)
        && pwrite (fd, buf, n, (off_t) off) != (ssize_t) n)
      return -EIO;
  }
  return 0;
}

static int
print_extents (enum blk_status status, const char *what)
{
  uint64_t size = blk_size (node), off = 0;
  struct extents e;
  int r = 0;

  extents_init (&e, 1000);
  while (off < size && r == 0) {
    extents_clear (&e);
    r = blk_extents (node, size - off, off, 0, status, &e);
    for (size_t i = 0; r == 0 && i < e.len; i++)
      printf ("%s %" PRIu64 " %" PRIu64 " %u\n", what, e.ptr[i].off,
              e.ptr[i].len, e.ptr[i].value);
    off += extents_length (&e);
  }
  extents_free (&e);
  return r;
}

static int
do_bitmaps (void)
{
  struct qcow2_bitmaps b;
  struct bitmap *bits;
  int r = qcow2_bitmaps_read (node, &b, &err);

  if (r < 0)
    return r;
  for (size_t i = 0; i < b.nr && r == 0; i++) {
    bits = NULL;
    r = qcow2_bitmap_load (node, &b.ptr[i], &bits, &err);
    bitmap_free (bits);
  }
  qcow2_bitmaps_free (&b);
  return r;
}

static int
do_io (char *const *w, unsigned nr)
{
  uint64_t off = nr > 1 ? strtoull (w[1], NULL, 0) : 0;
  uint64_t len = nr > 2 ? strtoull (w[2], NULL, 0) : 0;

  if (strcmp (w[0], "reserve") == 0)
    return qcow2_reserve (node, len, off);
  if (strcmp (w[0], "resize") == 0)
    return blk_resize (node, off);
  if (strcmp (w[0], "write") == 0)
    return do_write (off, len, nr > 3 ? atoi (w[3]) : 0, 0);
  if (strcmp (w[0], "pack") == 0)
    return do_write (off, len, nr > 3 ? atoi (w[3]) : 0, BLK_COMPRESS);
  if (strcmp (w[0], "zero") == 0)
    return blk_zero (node, len, off, 0);
  if (strcmp (w[0], "unmap") == 0)
    return blk_zero (node, len, off, BLK_MAY_UNMAP);
  if (strcmp (w[0], "trim") == 0)
    return blk_trim (node, len, off, 0);
  return -EINVAL;
}

static int
run (char *const *w, unsigned nr)
{
  int r;

  if (strcmp (w[0], "create") == 0 && nr > 3)
    return do_create (w, nr);
  if (strcmp (w[0], "new") == 0 && nr > 2)
    return do_new (w, nr);
  if (strcmp (w[0], "open") == 0 && nr > 1)
    return do_open (w, nr);
  if (strcmp (w[0], "close") == 0)
    return do_close ();
  if (strcmp (w[0], "flush") == 0)
    return blk_flush (node);
  if (strcmp (w[0], "kill") == 0)
    _exit (0);
  if (strcmp (w[0], "dump") == 0 && nr > 1)
    return do_dump (w[1]);
  if (strcmp (w[0], "bitmaps") == 0)
    return do_bitmaps ();
  if (strcmp (w[0], "map") == 0) {
    r = print_extents (BLK_STATUS_ALLOCATION, "alloc");
    return r < 0 ? r : print_extents (BLK_STATUS_DEPTH, "depth");
  }
  return do_io (w, nr);
}

/* True if the failure r, 0 for none, was the right thing. */
static bool
is_expected (const char *line, const char *text, int r)
{
  if (!*text && r == 0)
    return true;
  if (!err.msg[0])
    error_set_errno (&err, r < 0 ? -r : EINVAL, "failed");
  if (*text && r < 0 && strstr (err.msg, text))
    return true;
  fprintf (stderr, "qcow2-io: %s: %s\n", line,
           r < 0 ? err.msg : "did not fail");
  return false;
}

int
main (void)
{
  static char line[4096], copy[4096], text[4096];
  char *w[MAX_WORDS], *save;
  unsigned nr;
  int r;

  while (fgets (line, sizeof line, stdin)) {
    line[strcspn (line, "\n")] = '\0';
    if (strncmp (line, "expect ", 7) == 0) {
      strcpy (text, line + 7);
      continue;
    }
    strcpy (copy, line);
    nr = 0;
    for (char *p = strtok_r (copy, " ", &save); p && nr < MAX_WORDS;
         p = strtok_r (NULL, " ", &save))
      w[nr++] = p;
    if (nr == 0)
      continue;
    err.msg[0] = '\0';
    r = run (w, nr);
    if (!is_expected (line, text, r))
      return 1;
    text[0] = '\0';
  }
  if (node && do_close () < 0) {
    fprintf (stderr, "qcow2-io: close failed\n");
    return 1;
  }
  return 0;
}
