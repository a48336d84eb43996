/* SPDX-License-Identifier: BSD-3-Clause */
/* tidemark backup --estimate: what a run would pull.  Main thread.
 *
 * No point is taken and nothing is changed, neither at the server nor in the
 * repository, which need not be there.  The server's bitmaps are judged as
 * backup-begin does (docs/control.md), the chains as a run does.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup.h"
#include "cleanup.h"
#include "dirtymap.h"
#include "interrupt.h"
#include "journal.h"
#include "progress.h"
#include "range.h"
#include "size.h"
#include "source.h"

/* Of a disk in the answer to query-block. */
struct facts {
  const json_t *bitmap;         /* or NULL */
  const char *name;             /* of the bitmap; NULL: of a repository that is
                                   yet to be made */
};

static bool
is_full_asked (const struct backup_disk *d)
{
  return d->asked == BACKUP_FULL || d->asked == BACKUP_COPY;
}

/* Why the bitmap allows no incremental; "" if it does. */
static void
judge_bitmap (const struct facts *f, char reason[256])
{
  const char *status = json_string_value (json_object_get (f->bitmap,
                                                           "status"));
  const char *why = json_string_value (json_object_get (f->bitmap, "reason"));

  reason[0] = '\0';
  if (!f->bitmap)
    snprintf (reason, 256, "no bitmap '%.100s'", f->name);
  else if (status && strcmp (status, "inconsistent") == 0)
    snprintf (reason, 256, "bitmap '%.30s' is inconsistent: %.90s", f->name,
              why ? why : "?");
  else if (!json_is_true (json_object_get (f->bitmap, "recording")))
    snprintf (reason, 256, "bitmap '%.100s' is disabled", f->name);
  else if (!json_is_string (json_object_get (f->bitmap, "base")))
    snprintf (reason, 256, "bitmap '%.100s' has no base point yet", f->name);
}

/* The chain and then the bitmap: as in a run, the chain's reasons count for
 * bitmaps that would do.
 */
static int
decide (struct backup_disk *d, const struct facts *f, struct error *err)
{
  const char *base = json_string_value (json_object_get (f->bitmap, "base"));
  json_int_t count = json_integer_value (json_object_get (f->bitmap, "count"));

  d->dirty_bytes = d->size;
  if (is_full_asked (d)) {
    snprintf (d->why, sizeof d->why, "asked for");
    d->is_aside = d->asked == BACKUP_COPY;
    return 0;
  }
  if (!f->name)
    snprintf (d->reason, sizeof d->reason, "no bitmap yet: the repository "
              "is new");
  else
    judge_bitmap (f, d->reason);
  if (!d->reason[0] && !d->chain)
    snprintf (d->reason, sizeof d->reason, "the repository has no backup of "
              "disk '%s' yet", d->name);
  if (!d->reason[0]) {
    if (point_id_parse (base, &d->base) < 0 || count < 0)
      return error_set (err, EPROTO, "query-block: malformed answer for disk "
                        "'%s'", d->name);
    d->is_incremental = true;
    d->is_incremental = !backup_is_misfit (d);
  }
  if (d->is_incremental) {
    d->dirty_bytes = (uint64_t) count;
    d->is_aside = d->asked == BACKUP_DIFFERENTIAL;
    snprintf (d->why, sizeof d->why, "bitmap '%.90s' counts from point %s",
              f->name, base);
  }
  else if (d->asked != BACKUP_AUTO)
    return backup_refuse (d, err);
  else
    memcpy (d->why, d->reason, sizeof d->why);
  make_one_line (d->why);
  return 0;
}

/* What the dirty granules are at most when each is rounded out to clusters. */
static uint64_t
at_most (const struct backup_run *run, const struct backup_disk *d,
         const struct facts *f)
{
  json_int_t g = json_integer_value (json_object_get (f->bitmap,
                                                      "granularity"));
  uint64_t cluster = run->cluster_size;

  if (!d->is_incremental || g <= 0 || (uint64_t) g >= cluster)
    return d->dirty_bytes;
  if (d->dirty_bytes / (uint64_t) g >= d->size / cluster)
    return d->size;
  return (d->dirty_bytes + (uint64_t) g - 1) / (uint64_t) g * cluster;
}

static void
say (const struct backup_disk *d, uint64_t most)
{
  char size[SIZE_STRING_MAX];

  progress_say ("%s: %s, at most %s to pull (%s)", d->name,
                backup_disk_mode (d), size_format (most, size), d->why);
  progress_event ("estimate", json_pack (
    "{s:s, s:s, s:s, s:I, s:I, s:I}", "disk", d->name, "mode",
    backup_disk_mode (d), "why", d->why, "size", (json_int_t) d->size,
    "dirty-bytes", (json_int_t) d->dirty_bytes,
    "at-most-bytes", (json_int_t) most));
}

/* The chain, if there is one; nothing is made. */
static int
open_chain (struct backup_run *run, struct backup_disk *d, struct error *err)
{
  int r = chain_check_disk_name (d->name, err);

  if (r == 0 && run->repo) {
    r = chain_open (run->repo->path, run->repo->dirfd, d->name, false,
                    &d->chain, err);
    if (r == -ENOENT)
      r = 0;
  }
  return r;
}

static int
estimate_disk (struct backup_run *run, const json_t *device,
               const char *bitmap, struct error *err)
{
  const char *name = json_string_value (json_object_get (device, "device"));
  const json_t *inserted = json_object_get (device, "inserted");
  const json_t *bitmaps = json_object_get (inserted, "dirty-bitmaps");
  const json_t *image = json_object_get (inserted, "image");
  struct backup_disk *d = &run->disks[0];
  struct facts f = { .name = bitmap };
  uint64_t size;
  size_t i;
  int r;

  if (!name || !json_get_size (image, "virtual-size", &size))
    return error_set (err, EPROTO, "query-block: malformed answer");
  if (size == 0)
    return backup_refuse_empty (name, err);
  for (i = 0; i < json_array_size (bitmaps); i++) {
    const json_t *b = json_array_get (bitmaps, i);
    const char *s = json_string_value (json_object_get (b, "name"));

    if (s && bitmap && strcmp (s, bitmap) == 0)
      f.bitmap = b;
  }
  run->nr_disks = 1;
  d->name = strdup (name);
  d->size = size;
  d->asked = backup_asked_mode (run->options, name);
  r = d->name ? open_chain (run, d, err)
    : error_set_errno (err, ENOMEM, "disks");
  if (r == 0)
    r = decide (d, &f, err);
  if (r == 0)
    say (d, at_most (run, d, &f));
  return r;
}

static const json_t *
find_device (const json_t *devices, const char *name)
{
  size_t i;

  for (i = 0; i < json_array_size (devices); i++) {
    const json_t *o = json_array_get (devices, i);
    const char *s = json_string_value (json_object_get (o, "device"));

    if (s && strcmp (s, name) == 0)
      return o;
  }
  return NULL;
}

/* The devices that --disk names, or all; of the answer, whose they are. */
static int
select_devices (const struct backup_run *run, const json_t *devices,
                json_t **ret, json_t **ret_names, struct error *err)
{
  json_t *a = *ret = json_array (), *names = *ret_names = json_array ();
  const char *name;
  size_t i;

  for (i = 0; (name = options_get_nth (run->options, "disk", i)) != NULL;
       i++) {
    const json_t *o = find_device (devices, name);

    if (!o)
      return error_set (err, ENOENT, "the server has no disk '%s'", name);
    json_array_append (a, (json_t *) o);
  }
  for (i = 0; !options_has (run->options, "disk")
         && i < json_array_size (devices); i++)
    json_array_append (a, json_array_get (devices, i));
  for (i = 0; i < json_array_size (a); i++)
    json_array_append (names, json_object_get (json_array_get (a, i),
                                               "device"));
  return backup_check_mode_disks (run->options, names, err);
}

static int
estimate_session (struct backup_run *run, struct error *err)
{
  struct control_call call = { .command = "query-block" };
  char id[POINT_ID_STRING_SIZE], bitmap[64];
  const char *name = options_get (run->options, "bitmap");
  json_t *answer = NULL, *devices = NULL, *names = NULL;
  size_t i;
  int r = control_connect (run->source, &run->control, err);

  if (r < 0)
    return r;
  if (run->repo && !name) {
    point_id_format (&run->repo->id, id);
    snprintf (bitmap, sizeof bitmap, "tidemark-%s", id);
    name = bitmap;
  }
  r = control_call (run->control, &call, &answer, err);
  if (r == 0)
    r = select_devices (run, answer, &devices, &names, err);
  for (i = 0; r == 0 && i < json_array_size (devices); i++) {
    struct backup_disk disk = { .name = NULL };

    run->disks = &disk;
    r = estimate_disk (run, json_array_get (devices, i), name, err);
    chain_close (disk.chain);
    free (disk.name);
    run->disks = NULL;
    run->nr_disks = 0;
  }
  json_decref (devices);
  json_decref (names);
  json_decref (answer);
  return r;
}

/* An export's own map says it to the cluster. */
static int
count_export (struct backup_run *run, struct backup_disk *d, struct blk *blk,
              struct error *err)
{
  const struct dirty_map_options m = {
    .blk = blk, .is_incremental = d->is_incremental,
    .cluster_size = run->cluster_size, .skip_zero = !d->is_incremental,
  };
  struct dirty_runs runs = VECTOR_INIT;
  struct dirty_map *map;
  uint64_t dirty = 0, data = 0;
  size_t i;
  int r = dirty_map_new (&m, &map);

  if (r < 0)
    return error_set_errno (err, -r, "map");
  do {
    r = interrupt_is_set () ? interrupt_error (err)
      : dirty_map_next (map, &runs, err);
    for (i = 0; r >= 0 && i < runs.len; i++) {
      dirty += runs.ptr[i].len;
      data += runs.ptr[i].is_zero ? 0 : runs.ptr[i].len;
    }
    dirty_runs_reset (&runs);
  } while (r > 0);
  dirty_map_free (map);
  d->dirty_bytes = d->is_incremental ? dirty : d->size;
  if (r == 0)
    say (d, data);
  return r;
}

static int
estimate_export (struct backup_run *run, struct backup_disk *d,
                 struct error *err)
{
  struct interrupt_watch watch = { 0 };
  struct blk *blk;
  int r = open_chain (run, d, err);

  if (r == 0)
    r = backup_decide_nbd (run, d, err);
  if (r == 0)
    r = source_open (run->source, false, d->context, 1, &blk, err);
  if (r < 0)
    return r;
  r = backup_check_size (run, d, blk, err);
  if (r == 0)
    r = interrupt_watch_start (&watch, source_cancel, blk, err);
  if (r == 0)
    r = count_export (run, d, blk, err);
  interrupt_watch_stop (&watch);
  blk_close (blk);
  return r;
}

static int
estimate_nbd (struct backup_run *run, struct error *err)
{
  struct backup_disk *d = run->disks = calloc (1, sizeof *d);
  int r;

  if (!d)
    return error_set_errno (err, ENOMEM, "disks");
  run->nr_disks = 1;
  d->name = strdup (options_get (run->options, "disk"));
  d->uri = strdup (run->source);
  r = d->name && d->uri ? estimate_export (run, d, err)
    : error_set_errno (err, ENOMEM, "disks");
  backup_free_disks (run);
  return r;
}

int
backup_estimate (struct backup_run *run, const char *path,
                 enum source_kind kind, struct error *err)
{
  int r = repo_open (path, &run->repo, err);

  if (r < 0 && r != -ENOENT)
    return r;
  if (run->repo && kind == SOURCE_CONTROL
      && journal_has_run (run->repo->dirfd)) {
    progress_say ("a run that was interrupted, or is not over yet, has begun a "
                  "backup, with which the next one goes on if it can");
    progress_event ("unfinished", json_object ());
  }
  r = kind == SOURCE_CONTROL ? estimate_session (run, err)
    : estimate_nbd (run, err);
  if (r == -ECANCELED)
    interrupt_error (err);
  control_close (run->control);
  repo_close (run->repo);
  return r;
}
