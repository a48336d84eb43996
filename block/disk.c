/* SPDX-License-Identifier: BSD-3-Clause */
/* The live disk: what a guest's request passes, in the one right order.
 *
 * I1 and I3 hold because of that order (change_begin): inside the gate, mark
 * the bits, preserve the old data, and only then change the node.
 * I5: all of a change is inside the gate.
 *
 * The I/O functions are called by the NBD server (through disk_blk) and by the
 * nbdkit plugin, from any number of threads; the bitmap functions from control
 * threads.
 */
#include "config.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blk-open.h"
#include "disk-private.h"
#include "image-bitmaps.h"
#include "log.h"

static _Atomic unsigned next_number;

/*---- A change ----*/

/* Steps 1 to 3 of a change of [off, off+len), which has been checked.  After
 * success the caller is inside the gate.
 */
static inline int
change_begin (struct disk *d, uint64_t off, uint64_t len)
{
  int ret;

  gate_enter (&d->gate);
  ret = dirty_mark (d->dirty, off, len);
  if (ret == 0) {
    ret = cbw_before_write (d->cbw, off, len);
    if (ret < 0)
      dirty_changed (d->dirty);
  }
  if (ret < 0)
    gate_leave (&d->gate);
  return ret;
}

static inline void
change_end (struct disk *d)
{
  dirty_changed (d->dirty);
  gate_leave (&d->gate);
}

/* What must not come as far as the bitmaps. */
static inline int
check_change (const struct disk *d, uint64_t off, uint64_t len)
{
  if (blk_is_read_only (d->node))
    return -EPERM;
  return range_is_within (off, len, disk_size (d)) ? 0 : -ENOSPC;
}

int
disk_pwrite (struct disk *d, const void *buf, uint64_t len, uint64_t off,
             unsigned flags)
{
  int ret = check_change (d, off, len);

  if (ret < 0 || len == 0)
    return ret;
  ret = change_begin (d, off, len);
  if (ret < 0)
    return ret;
  ret = blk_pwrite (d->node, buf, len, off, flags);
  change_end (d);
  return ret;
}

int
disk_zero (struct disk *d, uint64_t len, uint64_t off, unsigned flags)
{
  int ret = check_change (d, off, len);

  if (ret < 0 || len == 0)
    return ret;
  /* Refused anyway, so leave the bitmaps alone. */
  if ((flags & BLK_FAST) && !(d->node->can & BLK_CAN_FAST_ZERO))
    return -EOPNOTSUPP;
  ret = change_begin (d, off, len);
  if (ret < 0)
    return ret;
  ret = blk_zero (d->node, len, off, flags);
  change_end (d);
  return ret;
}

int
disk_trim (struct disk *d, uint64_t len, uint64_t off, unsigned flags)
{
  int ret = check_change (d, off, len);

  if (ret < 0 || len == 0)
    return ret;
  ret = change_begin (d, off, len);
  if (ret < 0)
    return ret;
  ret = blk_trim (d->node, len, off, flags);
  change_end (d);
  return ret;
}

/*---- What changes nothing ----*/

int
disk_pread (struct disk *d, void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  return blk_pread (d->node, buf, len, off, flags);
}

int
disk_flush (struct disk *d)
{
  struct store *s;
  int ret;

  if (blk_is_read_only (d->node))
    return 0;
  /* It changes no block, but perhaps the metadata of an image. */
  s = dirty_begin_change (d->dirty);
  ret = blk_flush (d->node);
  dirty_end_change (s);
  return ret;
}

int
disk_cache (struct disk *d, uint64_t len, uint64_t off)
{
  return blk_cache (d->node, len, off);
}

int
disk_extents (struct disk *d, uint64_t len, uint64_t off, unsigned flags,
              enum blk_status status, struct extents *extents)
{
  return blk_extents (d->node, len, off, flags, status, extents);
}

/*---- The disk as a node ----*/

/* A disk is closed by disk_close. */
static int
node_close (struct blk *blk)
{
  assert (!"a disk's node is not to be closed");
  return -EINVAL;
}

static int
node_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  return disk_pread ((struct disk *) blk, buf, len, off, flags);
}

static int
node_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
             unsigned flags)
{
  return disk_pwrite ((struct disk *) blk, buf, len, off, flags);
}

static int
node_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  return disk_zero ((struct disk *) blk, len, off, flags);
}

static int
node_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  return disk_trim ((struct disk *) blk, len, off, flags);
}

static int
node_flush (struct blk *blk)
{
  return disk_flush ((struct disk *) blk);
}

static int
node_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
              enum blk_status status, struct extents *extents)
{
  return disk_extents ((struct disk *) blk, len, off, flags, status, extents);
}

static int
node_cache (struct blk *blk, uint64_t len, uint64_t off)
{
  return disk_cache ((struct disk *) blk, len, off);
}

static const struct blk_driver disk_driver = {
  .name = "disk",
  .close = node_close,
  .pread = node_pread,
  .pwrite = node_pwrite,
  .zero = node_zero,
  .trim = node_trim,
  .flush = node_flush,
  .extents = node_extents,
  .cache = node_cache,
};

/*---- Open and close ----*/

static int
check_name (const char *name, struct error *err)
{
  size_t len = strlen (name);

  if (len == 0)
    return error_set (err, EINVAL, "disk name cannot be empty");
  if (len > DISK_NAME_MAX)
    return error_set (err, EINVAL, "disk name too long: %.40s... (%zu"
                      " characters, at most %d are allowed)", name, len,
                      DISK_NAME_MAX);
  for (size_t i = 0; i < len; i++)
    if (!isascii (name[i])
        || (!isalnum ((unsigned char) name[i]) && !strchr ("-_.", name[i])))
      return error_set (err, EINVAL, "disk name '%.100s': only letters,"
                        " digits, '-', '_' and '.' are allowed", name);
  return 0;
}

static int
copy_options (struct disk *d, const struct disk_options *options)
{
  d->name = strdup (options->name);
  if (options->scratch_dir)
    d->scratch_dir = strdup (options->scratch_dir);
  d->scratch_limit = options->scratch_limit;
  d->on_scratch_error = options->on_scratch_error;
  d->on_inconsistent = options->on_inconsistent;
  d->opaque = options->opaque;
  return d->name && (d->scratch_dir || !options->scratch_dir) ? 0 : -ENOMEM;
}

/* Free what there is of a disk, except its node and its store. */
static void
free_disk (struct disk *d)
{
  cbw_free (d->cbw);
  dirty_free (d->dirty);
  disk_store_fini (d);
  image_bitmaps_left_free (&d->left);
  gate_destroy (&d->gate);
  blk_fini (&d->blk);
  free (d->scratch_dir);
  free (d->name);
  free (d);
}

static void
bitmap_inconsistent (void *opaque, const char *name, const char *reason)
{
  const struct disk *d = opaque;

  if (d->on_inconsistent)
    d->on_inconsistent (d->opaque, d->name, name, reason);
}

/* All of a disk but its bitmaps. */
static int
make_disk (struct disk *d, const struct disk_options *options,
           const char *file)
{
  struct blk *node = d->node;
  int r;

  gate_init (&d->gate);
  r = blk_init (&d->blk, &disk_driver, options->name, node->filename,
                blk_size (node), node->can);
  if (r == 0)
    r = copy_options (d, options);
  if (r == 0)
    r = disk_store_configure (d, options, file);
  if (r == 0)
    r = dirty_new (blk_size (node), &d->gate, &d->dirty);
  if (r == 0) {
    dirty_on_inconsistent (d->dirty, bitmap_inconsistent, d);
    r = cbw_new (node, &d->gate, &d->cbw);
  }
  d->blk.block_size = node->block_size;
  d->blk.cluster_size = node->cluster_size;
  /* No max_request: a change must be whole when it enters the gate (I5). */
  return r;
}

/* file: what the node was opened from, and st what it was then; or NULL. */
static int
new_disk (struct blk *node, const struct disk_options *options,
          const char *file, const struct statx *st, struct disk **ret,
          struct error *err)
{
  struct disk *d;
  int r = check_name (options->name, err);

  if (r < 0) {
    blk_close (node);
    return r;
  }
  d = calloc (1, sizeof *d);
  if (!d) {
    blk_close (node);
    return error_set_errno (err, ENOMEM, "disk '%s'", options->name);
  }
  d->node = node;
  r = make_disk (d, options, file);
  if (r < 0)
    error_set_errno (err, -r, "disk '%s'", options->name);
  else
    r = disk_load_bitmaps (d, st, err);
  if (r < 0) {
    struct store *store = d->store;

    free_disk (d);
    blk_close (node);
    if (store)
      store_abandon (store);
    return r;
  }
  d->number = atomic_fetch_add (&next_number, 1);
  *ret = d;
  return 0;
}

int
disk_new (struct blk *node, const struct disk_options *options,
          struct disk **ret, struct error *err)
{
  return new_disk (node, options, options->file_stat ? options->file : NULL,
                   options->file_stat, ret, err);
}

int
disk_open (const struct disk_options *options, struct disk **ret,
           struct error *err)
{
  struct blk_open_options open_options = {
    .file = options->file,
    .format = options->format,
    .is_read_only = options->is_read_only,
    .allow_backing = options->allow_backing,
    .cache = options->cache,
    .node_name = options->name,
  };
  struct statx st;
  struct blk *node;
  int r = check_name (options->name, err);

  open_options.ret_stat = &st;
  if (r == 0)
    r = blk_open (&open_options, &node, err);
  if (r < 0)
    return r;
  return new_disk (node, options, options->file, &st, ret, err);
}

/* For QEMU, if the image can hold them. */
static int
save_bitmaps (struct disk *d)
{
  struct error err = ERROR_INIT;
  struct store *s;
  int r;

  gate_close (&d->gate);
  s = dirty_begin_change (d->dirty);
  r = image_bitmaps_save (d->node, d->dirty, &d->left, &err);
  dirty_end_change (s);
  gate_open (&d->gate);
  if (r < 0)
    log_error ("disk '%s': %s", d->name, err.msg);
  return r;
}

int
disk_close (struct disk *d)
{
  struct blk *node = d->node;
  struct store *s;
  int error = disk_flush (d), r;

  r = save_bitmaps (d);
  error = error ? error : r;
  /* What the store says of the file must be the last that happens to it. */
  s = dirty_begin_change (d->dirty);
  r = blk_close (node);
  dirty_end_change (s);
  error = error ? error : r;
  r = disk_store_close (d, error == 0);
  free_disk (d);
  return error ? error : r;
}

void
disk_update_size (struct disk *d)
{
  uint64_t size = blk_size (d->node);
  int r;

  gate_close (&d->gate);
  r = dirty_resize (d->dirty, size);
  gate_open (&d->gate);
  assert (r == 0);              /* it has nothing to allocate */
  (void) r;
  atomic_store_explicit (&d->blk.size, size, memory_order_release);
}

void
disk_abandon (struct disk *d)
{
  blk_close (d->node);
  if (d->store)
    store_abandon (d->store);
  free_disk (d);
}

const char *
disk_name (const struct disk *d)
{
  return d->name;
}

uint64_t
disk_size (const struct disk *d)
{
  return blk_size (&d->blk);
}

unsigned
disk_number (const struct disk *d)
{
  return d->number;
}

struct blk *
disk_blk (struct disk *d)
{
  return &d->blk;
}

struct blk *
disk_node (struct disk *d)
{
  return d->node;
}

struct gate *
disk_gate (struct disk *d)
{
  return &d->gate;
}

struct dirty *
disk_dirty (struct disk *d)
{
  return d->dirty;
}

struct cbw *
disk_cbw (struct disk *d)
{
  return d->cbw;
}

void
disk_cbw_options (const struct disk *d, struct cbw_options *ret)
{
  *ret = (struct cbw_options) {
    .scratch_dir = d->scratch_dir,
    .scratch_limit = d->scratch_limit,
    .on_error = d->on_scratch_error,
  };
}

/*---- Bitmaps ----*/

uint64_t
disk_default_granularity (const struct disk *d)
{
  uint64_t cluster = d->node->cluster_size;

  if (cluster == 0)
    return DIRTY_DEFAULT_GRANULARITY;
  return MIN (MAX (cluster, 4096), 65536);
}

int
disk_bitmap_add (struct disk *d, const char *name, uint64_t granularity,
                 unsigned flags, struct error *err)
{
  int ret = 0;

  if (granularity == 0)
    granularity = disk_default_granularity (d);
  if (flags & DIRTY_IS_PERSISTENT)
    ret = disk_make_store (d, err);
  if (ret < 0) {
    error_prefix (err, "Bitmap '%.40s' cannot be persistent", name);
    return ret;
  }
  gate_close (&d->gate);
  ret = dirty_add (d->dirty, name, granularity, flags, err);
  gate_open (&d->gate);
  return ret;
}

int
disk_bitmap_remove (struct disk *d, const char *name, struct error *err)
{
  int ret;

  gate_close (&d->gate);
  ret = dirty_remove (d->dirty, name, err);
  gate_open (&d->gate);
  return ret;
}

int
disk_bitmap_clear (struct disk *d, const char *name, struct error *err)
{
  int ret;

  gate_close (&d->gate);
  ret = dirty_clear (d->dirty, name, err);
  gate_open (&d->gate);
  return ret;
}

int
disk_bitmap_enable (struct disk *d, const char *name, struct error *err)
{
  int ret;

  gate_close (&d->gate);
  ret = dirty_enable (d->dirty, name, err);
  gate_open (&d->gate);
  return ret;
}

int
disk_bitmap_disable (struct disk *d, const char *name, struct error *err)
{
  int ret;

  gate_close (&d->gate);
  ret = dirty_disable (d->dirty, name, err);
  gate_open (&d->gate);
  return ret;
}

int
disk_bitmap_merge (struct disk *d, const char *target,
                   struct dirty_bitmap *const *sources, size_t nr_sources,
                   struct error *err)
{
  int ret;

  gate_close (&d->gate);
  ret = dirty_merge (d->dirty, target, sources, nr_sources, err);
  gate_open (&d->gate);
  return ret;
}
