/* SPDX-License-Identifier: BSD-3-Clause */
/* The store of a disk: where it is, when it is made, what becomes of a disk
 * whose store is of no use.
 *
 * The store never makes a disk unusable, except that it must not be used by
 * two at once: then the disk is not opened.  For any other trouble the disk is
 * served without it; bitmaps that it may have had are INCONSISTENT, and why is
 * said.  A store that has failed while the disk is served is replaced by a new,
 * empty one as soon as somebody asks for a persistent bitmap and that can be
 * written: the bitmaps that the old one had stay INCONSISTENT.
 *
 * Order of opening: the store's bitmaps that can be trusted, then those of the
 * image, then those that cannot be trusted.  Once the store has them all, also
 * if it has to be made for that, the image's are flagged, so that a crash at
 * any moment leaves them in one of the two.
 *
 * The store judges the file by what it was before its driver was opened, which
 * may mend an image; that, the flagging, and all until the file is closed are
 * changes that the store is told of.
 *
 * Called by whoever opens, closes or administers the disk; the functions that
 * change anything close the gate.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blk-scratch.h"
#include "cleanup.h"
#include "disk-private.h"
#include "image-bitmaps.h"
#include "log.h"
#include "qcow2-bitmap.h"

#define NSEC_PER_SEC INT64_C (1000000000)

/* Of a regular file; anything else has nothing that would tell. */
static void
set_identity (const struct statx *st, struct store_identity *ret)
{
  memset (ret, 0, sizeof *ret);
  if (!S_ISREG (st->stx_mode))
    return;
  ret->inode = st->stx_ino;
  ret->mtime_ns = st->stx_mtime.tv_sec * NSEC_PER_SEC + st->stx_mtime.tv_nsec;
  ret->file_size = st->stx_size;
  if (st->stx_mask & STATX_BTIME)
    ret->birth_ns = st->stx_btime.tv_sec * NSEC_PER_SEC
      + st->stx_btime.tv_nsec;
}

/* As it is now.  False if the name is another file's or nobody's by now: then
 * it is as it was when it was opened, which that other file is not.
 */
static bool
get_identity (const struct disk *d, struct store_identity *ret)
{
  struct statx st = { .stx_mask = 0 };

  if (d->path && statx (AT_FDCWD, d->path, 0, STATX_BASIC_STATS | STATX_BTIME,
                        &st) < 0)
    st.stx_mode = 0;
  set_identity (&st, ret);
  if (d->opened.inode == 0
      || (ret->inode == d->opened.inode
          && ret->birth_ns == d->opened.birth_ns))
    return true;
  *ret = d->opened;
  return false;
}

/* A daemon leaves the directory that relative names refer to. */
static char *
absolute_path (const char *path)
{
  char *ret, *cwd;

  if (path[0] == '/')
    return strdup (path);
  cwd = getcwd (NULL, 0);
  if (cwd == NULL || asprintf (&ret, "%s/%s", cwd, path) < 0)
    ret = NULL;
  free (cwd);
  return ret;
}

static int
choose_store_path (struct disk *d, const char *store)
{
  if (store && *store == '\0')
    return 0;
  if (store)
    d->store_path = absolute_path (store);
  else if (d->path == NULL)
    return 0;
  else if (asprintf (&d->store_path, "%s.tidemark", d->path) < 0)
    d->store_path = NULL;
  return d->store_path ? 0 : -ENOMEM;
}

/* Takes path; NULL = no memory. */
static int
add_place (struct disk *d, char *path, uint64_t inode)
{
  struct store_place *places = d->store_options.places;
  size_t i = 0;

  if (path == NULL)
    return -ENOMEM;
  while (d->store_places[i])
    i++;
  assert (i < STORE_MAX_PLACES);
  d->store_places[i] = path;
  places[i] = (struct store_place) { path, inode };
  return 0;
}

/* The directory that path is in. */
static int
add_directory (struct disk *d, const char *path)
{
  CLEANUP_FREE char *copy = strdup (path);

  return add_place (d, copy ? strdup (dirname (copy)) : NULL, 0);
}

/* Where it can be noted that the store has failed: what lies on the disk's file
 * system first, for the store's is in trouble then.
 */
static int
choose_places (struct disk *d, uint64_t inode)
{
  int r = 0;

  if (d->store_path == NULL)
    return 0;
  if (d->path) {
    r = add_place (d, strdup (d->path), inode);
    if (r == 0)
      r = add_directory (d, d->path);
  }
  if (r == 0)
    r = add_directory (d, d->store_path);
  if (r == 0)
    r = add_place (d, absolute_path (blk_scratch_dir (d->scratch_dir)), 0);
  return r;
}

int
disk_store_configure (struct disk *d, const struct disk_options *options,
                      const char *file)
{
  struct stat st = { .st_ino = 0 };
  int r;

  d->store_options = (struct store_options) {
    .io = options->store_io,
    .region_size = options->store_region_size,
    .max_active = options->store_max_active,
  };
  if (blk_is_read_only (d->node))
    return 0;
  if (file && stat (file, &st) == 0 && S_ISREG (st.st_mode)) {
    d->path = realpath (file, NULL);
    if (d->path == NULL)
      return -errno;
  }
  r = choose_store_path (d, options->store);
  return r < 0 ? r : choose_places (d, st.st_ino);
}

void
disk_store_fini (struct disk *d)
{
  size_t i;

  for (i = 0; i < STORE_MAX_PLACES; i++)
    free (d->store_places[i]);
  free (d->store_path);
  free (d->path);
}

static int
sync_disk (void *opaque)
{
  struct disk *d = opaque;

  return blk_flush (d->node);
}

enum open_how {
  OPEN_EXISTING,
  OPEN_OR_MAKE,
  OPEN_ANEW,                    /* in the place of one that is of no use */
};

static struct store_options
get_store_options (struct disk *d)
{
  struct store_options options = d->store_options;

  options.path = d->store_path;
  return options;
}

static int
open_store (struct disk *d, const struct store_identity *identity,
            enum open_how how, struct store **ret, struct error *err)
{
  struct store_options options = get_store_options (d);

  options.disk_size = disk_size (d);
  options.identity = *identity;
  options.must_exist = how == OPEN_EXISTING;
  options.is_new = how == OPEN_ANEW;
  options.replaces = d->store;
  options.sync_disk = sync_disk;
  options.opaque = d;
  return store_open (&options, ret, err);
}

/* The one that is there is going to miss changes: it must not be believed by
 * whoever can open it later.  Not if it is none of ours.
 */
static void
give_up_store (struct disk *d, const char *why)
{
  const struct store_options options = get_store_options (d);

  log_error ("disk '%s': %s", d->name, why);
  snprintf (d->store_problem, sizeof d->store_problem, "%s", why);
  if (!d->is_store_foreign && store_note_missing (&options) < 0)
    log_error ("disk '%s': this can be noted nowhere: once the store can be"
               " opened again it must be removed", d->name);
}

/* The one that is there.  0 also if there is none, or none of any use. */
static int
find_store (struct disk *d, const struct store_identity *identity,
            struct error *err)
{
  struct error why = ERROR_INIT;
  struct store *s;
  int r = open_store (d, identity, OPEN_EXISTING, &s, &why);

  if (r == -EBUSY || r == -ENOMEM) {
    if (err)
      *err = why;
    return r;
  }
  if (r == -ENOENT && why.msg[0] == '\0')
    return 0;
  if (r < 0) {
    d->is_store_foreign = r == -EINVAL;
    give_up_store (d, why.msg);
    return 0;
  }
  d->store = s;
  memcpy (d->store_problem, store_loss (s), STORE_REASON_SIZE);
  r = dirty_attach_store (d->dirty, s);
  return r < 0 ? error_set_errno (err, -r, "disk '%s': store", d->name) : 0;
}

/* The image's bitmaps are to survive a crash as well. */
static void
protect_image_bitmaps (struct disk *d)
{
  struct error err = ERROR_INIT;
  struct dirty_info *infos;
  bool is_needed = false;
  size_t nr, i;

  if (d->store || d->store_path == NULL || d->store_problem[0]
      || dirty_list (d->dirty, &infos, &nr) < 0)
    return;
  for (i = 0; i < nr; i++)
    is_needed |= infos[i].is_persistent
      && infos[i].state != DIRTY_INCONSISTENT;
  dirty_infos_free (infos, nr);
  if (is_needed && disk_make_store (d, &err) < 0)
    log_warning ("disk '%s': the bitmaps of the image do not survive a crash:"
                 " %s", d->name, err.msg);
}

/* From here on the image says that its bitmaps are not to be trusted. */
static int
flag_image_bitmaps (struct disk *d, struct error *err)
{
  struct store *s;
  int r;

  gate_close (&d->gate);
  s = dirty_begin_change (d->dirty);
  r = image_bitmaps_flag (d->node, &d->left, err);
  dirty_end_change (s);
  gate_open (&d->gate);
  return r;
}

int
disk_load_bitmaps (struct disk *d, const struct statx *st, struct error *err)
{
  int r = 0;

  if (st && d->path)
    set_identity (st, &d->opened);
  gate_close (&d->gate);
  if (d->store_path)
    r = find_store (d, &d->opened, err);
  if (r == 0)
    r = image_bitmaps_load (d->node, d->dirty, &d->left, err);
  if (r == 0 && d->store) {
    r = dirty_attach_rest (d->dirty);
    if (r < 0)
      error_set_errno (err, -r, "disk '%s': store", d->name);
  }
  gate_open (&d->gate);
  if (r < 0)
    return r;
  protect_image_bitmaps (d);
  return flag_image_bitmaps (d, err);
}

int
disk_store_close (struct disk *d, bool is_clean)
{
  struct store_identity identity;

  if (d->store == NULL)
    return 0;
  if (!is_clean) {
    store_abandon (d->store);
    return 0;
  }
  if (!get_identity (d, &identity))
    log_warning ("disk '%s': '%s' is not the file any more that has been"
                 " served: what was written is not there", d->name, d->path);
  return store_close (d->store, &identity);
}

/*---- Making one ----*/

bool
disk_can_have_store (const struct disk *d)
{
  return d->store_path != NULL;
}

bool
disk_can_persist (struct disk *d)
{
  if (d->store)
    return dirty_can_persist (d->dirty);
  return d->store_path == NULL && qcow2_can_hold_bitmaps (d->node)
    && !blk_is_read_only (d->node);
}

static int
attach_new_store (struct disk *d, struct store *s, struct error *err)
{
  int r;

  assert (gate_is_closed (&d->gate));
  d->store = s;
  r = dirty_attach_store (d->dirty, s);
  if (r == 0)
    r = dirty_attach_rest (d->dirty);
  if (r == 0 && d->is_started)
    r = store_start (s);
  return r < 0 ? error_set_errno (err, -r, "disk '%s': store", d->name) : 0;
}

/* One that has failed gives way to a new one, if that can be written; what it
 * had stays INCONSISTENT.  All that is looked at on the way is inside the gate
 * or has a reference.  [gate closed]
 */
static int
replace_store (struct disk *d, struct error *err)
{
  struct store *old = d->store, *s;
  struct store_identity identity;
  int r;

  /* Unless that was while we closed the gate. */
  if (!store_is_over (old))
    return error_set (err, EAGAIN, "store '%.150s' has just failed",
                      d->store_path);
  if (dirty_holds_store (d->dirty))
    return error_set (err, EBUSY, "store '%.100s' has failed, and can be made"
                      " anew only when no backup uses a bitmap of it",
                      d->store_path);
  /* Its thread may be about to remove the file. */
  store_stop (old);
  get_identity (d, &identity);
  r = open_store (d, &identity, OPEN_ANEW, &s, err);
  if (r < 0)
    return r;
  r = dirty_detach_store (d->dirty);
  if (r < 0) {
    store_abandon (s);
    return error_set_errno (err, -r, "disk '%s': store", d->name);
  }
  r = attach_new_store (d, s, err);
  store_abandon (old);
  if (r == 0)
    log_warning ("store '%s': a new one has taken the place of the one that"
                 " failed", d->store_path);
  return r;
}

/* [gate closed] */
static int
make_store (struct disk *d, struct error *err)
{
  struct store_identity identity;
  struct store *s;
  int r;

  if (d->store && !dirty_can_persist (d->dirty)) {
    r = replace_store (d, err);
    /* The one that stays is perhaps still to be marked. */
    if (r < 0 && d->is_started)
      (void) store_start (d->store);
    return r;
  }
  if (d->store)
    return 0;
  if (d->store_path == NULL) {
    if (qcow2_can_hold_bitmaps (d->node) && !blk_is_read_only (d->node))
      return 0;
    return error_set (err, ENOTSUP, "disk '%s' has no store%s", d->name,
                      blk_is_read_only (d->node) ? ", it is read-only" :
                      " (the option store=PATH gives it one)");
  }
  if (d->store_problem[0] && (d->is_store_foreign || !d->is_started))
    return error_set (err, EINVAL, "%s", d->store_problem);
  /* One that could not be read has missed all changes since. */
  get_identity (d, &identity);
  r = open_store (d, &identity, d->store_problem[0] ? OPEN_ANEW : OPEN_OR_MAKE,
                  &s, err);
  return r < 0 ? r : attach_new_store (d, s, err);
}

/* A store's thread closes the gate when the store has failed, and has to be
 * stopped before another one takes its place.
 */
static void
await_failure (struct disk *d)
{
  struct store *s = dirty_ref_store (d->dirty);

  if (s == NULL)
    return;
  store_await_failure (s);
  store_unref (s);
}

int
disk_make_store (struct disk *d, struct error *err)
{
  int r;

  await_failure (d);
  gate_close (&d->gate);
  r = make_store (d, err);
  gate_open (&d->gate);
  return r;
}

int
disk_start (struct disk *d)
{
  int r;

  gate_close (&d->gate);
  d->is_started = true;
  r = d->store ? store_start (d->store) : 0;
  gate_open (&d->gate);
  return r;
}

/* Not with the gate closed: the thread may be about to close it. */
void
disk_stop (struct disk *d)
{
  if (d->store)
    store_stop (d->store);
}

struct store *
disk_store (struct disk *d)
{
  return d->store;
}

struct store *
disk_ref_store (struct disk *d)
{
  return dirty_ref_store (d->dirty);
}

const char *
disk_store_problem (const struct disk *d)
{
  return d->store_problem;
}

/*---- Bitmaps that are to be there ----*/

static bool
is_there (struct disk *d, const char *name)
{
  struct dirty_bitmap *bm = dirty_find (d->dirty, name);

  if (bm == NULL)
    return false;
  dirty_unref (bm);
  return true;
}

int
disk_bitmap_ensure (struct disk *d, const char *name, uint64_t granularity,
                    unsigned flags, struct error *err)
{
  bool is_persistent;
  int r;

  if (is_there (d, name))
    return 0;
  if (d->store_problem[0] == '\0')
    return disk_bitmap_add (d, name, granularity, flags, err);
  if (granularity == 0)
    granularity = disk_default_granularity (d);
  is_persistent = (flags & DIRTY_IS_PERSISTENT)
    && dirty_can_persist (d->dirty);
  gate_close (&d->gate);
  r = dirty_load (d->dirty, name, granularity, NULL, DIRTY_INCONSISTENT,
                  d->store_problem, is_persistent, err);
  gate_open (&d->gate);
  return r;
}

/*---- Size ----*/

/* Bitmaps and store say new_size; the disk may have old_size.  A store that
 * fails over it has that recorded, and its bitmaps are inconsistent from then
 * on; it holds nobody up.
 */
static int
resize_bitmaps (struct disk *d, uint64_t new_size, uint64_t old_size)
{
  int r = 0;

  if (dirty_can_persist (d->dirty))
    r = store_set_size (d->store, new_size, old_size);
  if (r < 0 && dirty_can_persist (d->dirty))
    return r;
  r = new_size == dirty_size (d->dirty) ? 0
    : dirty_resize (d->dirty, new_size);
  if (r < 0)
    return r;
  r = dirty_commit (d->dirty);
  return dirty_can_persist (d->dirty) ? r : 0;
}

/* In the file there is at every moment a table for the size that the disk has
 * then: growing, it is the larger one's that says what the smaller one may be
 * too; shrinking, the other way round.  That goes on until the size is durable,
 * for a power cut may bring the old one back; if it cannot be made so, guests
 * will hear of it from a flush of theirs.
 */
static int
resize (struct disk *d, uint64_t size)
{
  const uint64_t old = disk_size (d), larger = MAX (size, old);
  struct store *s;
  int r, back;

  r = resize_bitmaps (d, larger, MIN (size, old));
  if (r < 0)
    return r;
  s = dirty_begin_change (d->dirty);
  r = blk_resize (d->node, size);
  if (r == 0)
    (void) blk_flush (d->node);
  dirty_end_change (s);
  if (r == 0)
    atomic_store_explicit (&d->blk.size, size, memory_order_release);
  back = resize_bitmaps (d, disk_size (d), 0);
  return r < 0 ? r : back;
}

int
disk_resize (struct disk *d, uint64_t size, struct error *err)
{
  int r;

  if (blk_is_read_only (d->node))
    return error_set (err, EACCES, "disk '%s' is read-only", d->name);
  if (size > RANGE_MAX_SIZE)
    return error_set (err, EFBIG, "disk '%s': %" PRIu64 " bytes are too many",
                      d->name, size);
  gate_close (&d->gate);
  if (cbw_is_in_use (d->cbw))
    r = -EBUSY;
  else
    r = size == disk_size (d) ? 0 : resize (d, size);
  gate_open (&d->gate);
  if (r == -EBUSY)
    return error_set (err, EBUSY, "disk '%s' cannot be resized while a backup"
                      " holds it", d->name);
  return r < 0 ? error_set_errno (err, -r, "disk '%s': cannot resize to %"
                                  PRIu64 " bytes", d->name, size) : 0;
}
