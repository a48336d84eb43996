/* SPDX-License-Identifier: BSD-3-Clause */
/* Pulling one disk of a run.  Several threads at once, each another disk.
 *
 * With a session the connections may be lost: the session is attached to again
 * and what has not arrived is asked for again (wire.c), and how far the pull
 * has come is written to a journal.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backup.h"
#include "blk-qcow2.h"
#include "interrupt.h"
#include "journal.h"
#include "log.h"
#include "progress.h"
#include "range.h"
#include "size.h"
#include "source.h"
#include "wire.h"

/* What is lost of a pull that is cut off is to be little beside all of it. */
#define SAVES_PER_PULL 256
#define MIN_SAVE_STEP (UINT64_C (512) << 10)

/* The export is open: is it the disk that the chain and the session know? */
int
backup_check_size (struct backup_run *run, struct backup_disk *d,
                   struct blk *source, struct error *err)
{
  uint64_t size = blk_size (source);

  if (size == 0 || size % 512 != 0)
    return error_set (err, EINVAL, "%s: the export has %ju bytes; allowed are "
                      "multiples of 512", d->uri, (uintmax_t) size);
  if (d->size && d->size != size)
    return error_set (err, EPROTO, "%s: the export has %ju bytes, but the "
                      "server had said %ju", d->uri, (uintmax_t) size,
                      (uintmax_t) d->size);
  d->size = size;
  if (run->control)
    return 0;
  if (d->is_incremental) {
    backup_check_chain (d, size, d->reason);
    if (d->reason[0] && d->asked != BACKUP_AUTO)
      return backup_refuse (d, err);
    if (d->reason[0]) {
      d->is_incremental = false;
      snprintf (d->why, sizeof d->why, "%s", d->reason);
    }
  }
  d->dirty_bytes = d->is_incremental ? 0 : size;
  return 0;
}

static struct manifest *
make_manifest (const struct backup_run *run, const struct backup_disk *d)
{
  const struct backup *head = chain_trunk (d->chain);
  struct manifest *m = calloc (1, sizeof *m);
  size_t i;

  if (!m)
    return NULL;
  m->number = d->number;
  m->is_full = !d->is_incremental;
  m->disk = strdup (d->name);
  m->point = m->session = run->point;
  if (!m->is_full) {
    m->backing_number = head->number;
    m->is_backing_full = head->is_full;
    m->parent = head->manifest->point;
    m->base = run->control ? d->base : m->parent;
  }
  m->time = run->time;
  m->source = strdup (run->source);
  m->bitmap = d->bitmap ? strdup (d->bitmap) : NULL;
  m->mode = strdup (backup_disk_mode (d));
  m->why = strdup (d->why);
  m->virtual_size = d->size;
  m->cluster_size = run->cluster_size;
  m->dirty_bytes = d->dirty_bytes;
  m->tool = strdup (PACKAGE_STRING);
  m->disks = json_array ();
  for (i = 0; i < run->nr_disks; i++)
    json_array_append_new (m->disks, json_string (run->disks[i].name));
  if (!m->disk || !m->source || !m->mode || !m->why || !m->tool || !m->disks
      || (d->bitmap && !m->bitmap)) {
    manifest_free (m);
    return NULL;
  }
  return m;
}

static double
seconds_now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (double) ts.tv_sec + (double) ts.tv_nsec / 1e9;
}

static void
say_begin (const struct backup_run *run, const struct backup_disk *d)
{
  char size[SIZE_STRING_MAX];

  /* Of a plain NBD server nobody knows before the map has been read. */
  if (run->control || !d->is_incremental)
    progress_say ("%s: %s, %s to pull (%s)", d->name, d->manifest->mode,
                  size_format (d->dirty_bytes, size), d->why);
  else
    progress_say ("%s: %s (%s)", d->name, d->manifest->mode, d->why);
  progress_event ("disk-begin", json_pack (
    "{s:s, s:s, s:s, s:I, s:I}", "disk", d->name, "mode", d->manifest->mode,
    "why", d->why, "size", (json_int_t) d->size,
    "dirty-bytes", (json_int_t) d->dirty_bytes));
}

static void
say_end (const struct backup_disk *d)
{
  const struct manifest *m = d->manifest;
  char a[SIZE_STRING_MAX], b[SIZE_STRING_MAX];

  progress_say ("%s: moved %s in %.2f s (%.0f MB/s), stored %s", d->name,
                size_format (d->read_bytes, a), d->seconds,
                d->seconds > 0 ? (double) d->read_bytes / d->seconds / 1e6 : 0,
                size_format (m->data_bytes, b));
  progress_event ("disk-end", json_pack (
    "{s:s, s:I, s:I, s:I, s:f}", "disk", d->name, "moved-bytes",
    (json_int_t) d->read_bytes,
    "data-bytes", (json_int_t) m->data_bytes,
    "zero-bytes", (json_int_t) m->zero_bytes, "seconds", d->seconds));
}

struct saving {
  const struct backup_run *run;
  const struct backup_disk *disk;
};

static struct journal_key
journal_key (const struct backup_run *run, const struct backup_disk *d)
{
  return (struct journal_key) {
    .disk = d->name, .number = d->number, .is_full = !d->is_incremental,
    .session = run->point, .cluster_size = run->cluster_size,
  };
}

static int
save (void *opaque, const struct sums_state *state, struct error *err)
{
  const struct saving *s = opaque;
  const struct journal_key key = journal_key (s->run, s->disk);
  const struct journal j = { .sums = *state };

  return journal_write (s->disk->chain->dirfd, &key, &j, err);
}

static int
save_complete (const struct backup_run *run, const struct backup_disk *d,
               struct error *err)
{
  const struct journal_key key = journal_key (run, d);
  const struct manifest *m = d->manifest;
  struct journal j = {
    .is_complete = true, .data_bytes = m->data_bytes,
    .zero_bytes = m->zero_bytes, .image_bytes = m->image_bytes,
    .finished = m->finished,
  };

  memcpy (j.root, m->root, sizeof j.root);
  return journal_write (d->chain->dirfd, &key, &j, err);
}

/* The files are complete: are they still as the journal says? */
static int
check_files (const struct backup_disk *d, const struct journal *j,
             struct error *err)
{
  static const char *const suffixes[] = { ".qcow2.partial", ".sums.partial" };
  char name[BACKUP_NAME_MAX];
  struct stat st;
  size_t i;

  for (i = 0; i < 2; i++) {
    backup_name (d->number, !d->is_incremental, suffixes[i], name);
    if (fstatat (d->chain->dirfd, name, &st, 0) < 0)
      return error_set_errno (err, errno, "%s", name);
    if (i == 0 && (uint64_t) st.st_size != j->image_bytes)
      return error_set (err, EBADMSG, "%s is not as it was", name);
  }
  return 0;
}

int
backup_find_journal (const struct backup_run *run, const struct backup_disk *d,
                     struct journal *ret, struct error *err)
{
  const struct journal_key key = journal_key (run, d);
  int r = journal_read (d->chain->dirfd, &key, ret, err);

  if (r == -ENOENT)
    return 0;
  if (r == 0 && ret->is_complete)
    r = check_files (d, ret, err);
  if (r < 0)
    error_prefix (err, "%s", d->chain->folder);
  return r < 0 ? r : 1;
}

static void
say_resumed (const struct backup_disk *d, const struct sums_state *s,
             uint32_t cluster_size)
{
  uint64_t stored = s->totals.data_clusters + s->totals.zero_clusters
    + (s->run_type == SUMS_END ? 0 : s->run_count);
  char size[SIZE_STRING_MAX];

  stored *= cluster_size;
  progress_say ("%s: going on with backup %u, of which %s are stored", d->name,
                d->number, size_format (stored, size));
  progress_event ("disk-resumed", json_pack (
    "{s:s, s:I}", "disk", d->name, "stored-bytes", (json_int_t) stored));
}

static int
pull_opened (struct backup_run *run, struct backup_set *set,
             struct backup_disk *d, struct blk *source,
             const struct journal *journal, struct error *err)
{
  struct pull_result result = { 0 };
  char backing[BACKUP_NAME_MAX];
  struct manifest *m = d->manifest;
  struct saving saving = { .run = run, .disk = d };
  const struct pull_options o = {
    .source = source,
    .is_incremental = d->is_incremental,
    .dirfd = d->chain->dirfd,
    .folder = d->chain->folder,
    .number = m->number,
    .is_full = m->is_full,
    .backing = m->is_full ? NULL
      : backup_name (m->backing_number, m->is_backing_full, ".qcow2", backing),
    .cluster_size = run->cluster_size,
    .compress = run->compress,
    .compression = run->compression,
    .compression_level = run->compression_level,
    .point = m->point,
    .nr_threads = run->nr_threads,
    .memory = run->memory,
    .cancel = backup_set_flag (set),
    .bandwidth = &run->bandwidth,
    .hold = run->control ? wire_hold : NULL,
    .status = run->control ? wire_block_status : NULL,
    .max_status = run->control ? wire_max_status (source) : 0,
    .resume = journal ? &journal->sums : NULL,
    .save = run->control ? save : NULL,
    .trim = run->control ? wire_trim : NULL,
    .opaque = &saving,
    .save_step = MAX (d->dirty_bytes / SAVES_PER_PULL, MIN_SAVE_STEP),
  };
  double start = seconds_now ();
  int r;

  say_begin (run, d);
  if (journal)
    say_resumed (d, &journal->sums, run->cluster_size);
  else
    pull_discard (&o);
  /* How much it is was not known before. */
  if (!run->control)
    progress_begin (d->name, d->dirty_bytes);
  r = pull_run (&o, &result, err);
  if (r < 0)
    return r;
  d->seconds = seconds_now () - start;
  d->read_bytes = result.read_bytes;
  m->data_bytes = result.data_bytes;
  m->zero_bytes = result.zero_bytes;
  m->image_bytes = result.image_bytes;
  memcpy (m->root, result.root, sizeof m->root);
  m->finished = (int64_t) time (NULL);
  if (!run->control && d->is_incremental)
    m->dirty_bytes = m->data_bytes + m->zero_bytes;
  say_end (d);
  return run->control ? save_complete (run, d, err) : 0;
}

/* For wire.c: the session is there and its lease renewed, or is not. */
static int
attach (void *opaque, struct error *err)
{
  struct backup_run *run = opaque;
  struct control_call call = {
    .command = "backup-attach",
    .args = json_pack ("{s:s}", "id", run->session),
    .timeout = run->timeout,
  };
  int r = control_call (run->control, &call, NULL, err);

  if (r == -EREMOTEIO)
    error_prefix (err, "the session is gone");
  return r;
}

static bool
is_named (const json_t *o, const char *key, const char *name)
{
  const char *s = json_string_value (json_object_get (o, key));

  return s && strcmp (s, name) == 0;
}

/* The server has lost what the disk was at the point, and says why. */
static const char *
find_break (const struct backup_run *run, const struct backup_disk *d,
            const json_t *sessions)
{
  const json_t *s, *disks, *o;
  size_t i, j;

  for (i = 0; i < json_array_size (sessions); i++) {
    s = json_array_get (sessions, i);
    disks = json_object_get (s, "disks");
    for (j = 0; j < json_array_size (disks); j++) {
      o = json_array_get (disks, j);
      if (is_named (s, "id", run->session) && is_named (o, "disk", d->name))
        return json_string_value (json_object_get (o, "error"));
    }
  }
  return NULL;
}

/* The export cannot be read: perhaps because the session is gone, and why that
 * is the server knows.  0: it is there; -EREMOTEIO: gone; another -errno:
 * nobody can be asked.
 */
static int
explain_end (struct backup_run *run, struct error *err)
{
  struct error end = ERROR_INIT;
  int r = attach (run, &end);

  if (r == -EREMOTEIO)
    *err = end;
  return r;
}

/* A read has failed: the server may know more than its code says. */
static void
explain_break (struct backup_run *run, const struct backup_disk *d,
               struct error *err)
{
  struct control_call call = {
    .command = "query-backups", .timeout = run->timeout,
  };
  struct error ignored = ERROR_INIT;
  const char *why;
  json_t *answer;

  if (control_call (run->control, &call, &answer, &ignored) < 0)
    return;
  why = find_break (run, d, answer);
  if (why)
    error_set (err, EIO, "the server could not keep the disk as it was at the "
               "point: %s", why);
  json_decref (answer);
}

static int
open_source (struct backup_run *run, struct backup_disk *d, struct blk **ret,
             struct error *err)
{
  const struct wire_options o = {
    .uri = d->uri, .context = d->context,
    .nr_connections = run->nr_connections,
    .retry = run->retry, .timeout = run->timeout,
    .attach = attach, .opaque = run,
  };

  if (run->control)
    return wire_open (&o, ret, err);
  return source_open (d->uri, false, d->context, run->nr_connections, ret,
                      err);
}

static int
pull_from (struct backup_run *run, struct backup_set *set,
           struct backup_disk *d, struct blk *source,
           const struct journal *journal, struct error *err)
{
  struct error why = ERROR_INIT;
  int r = backup_check_size (run, d, source, err), e;

  if (r == 0) {
    d->manifest = make_manifest (run, d);
    r = d->manifest ? pull_opened (run, set, d, source, journal, err)
      : error_set_errno (err, ENOMEM, "%s", d->name);
  }
  e = r < 0 && run->control ? wire_error (source, &why) : 0;
  if (e < 0 && e != -ECANCELED) {
    *err = why;
    /* What is there stays for another run while the session may be. */
    d->is_lost = e == -ENOTCONN;
  }
  else if (r == -EIO && run->control && !*backup_set_flag (set)
           && explain_end (run, err) == 0)
    explain_break (run, d, err);
  return r;
}

/* The files are complete already. */
static int
take_complete (struct backup_run *run, struct backup_disk *d,
               const struct journal *j, struct error *err)
{
  struct manifest *m = d->manifest = make_manifest (run, d);

  if (!m)
    return error_set_errno (err, ENOMEM, "%s", d->name);
  m->data_bytes = j->data_bytes;
  m->zero_bytes = j->zero_bytes;
  m->image_bytes = j->image_bytes;
  m->finished = j->finished;
  memcpy (m->root, j->root, sizeof m->root);
  progress_say ("%s: backup %u is there already", d->name, m->number);
  progress_add (d->dirty_bytes);
  return 0;
}

static bool
may_open_again (struct backup_run *run, struct backup_set *set)
{
  return run->control && !*backup_set_flag (set)
    && backup_set_has_read (set);
}

/* The network may fail just now, too: then it is as with one that is lost
 * later, when another disk has been read before.  What the server refuses while
 * it can be asked stays refused.
 */
static int
open_or_wait (struct backup_run *run, struct backup_set *set,
              struct backup_disk *d, struct blk **ret, struct error *err)
{
  const double end = seconds_now () + run->retry;
  int delay_ms = 100;
  bool was_there = false;
  int r, e;

  while ((r = open_source (run, d, ret, err)) < 0 && r != -ECANCELED
         && may_open_again (run, set)) {
    e = explain_end (run, err);
    if (e == -EREMOTEIO || (e == 0 && was_there))
      break;
    was_there = e == 0;
    if (e < 0 && seconds_now () > end) {
      d->is_lost = true;
      break;
    }
    interrupt_sleep (delay_ms);
    delay_ms = 1000;
  }
  return r;
}

int
backup_pull_disk (struct backup_run *run, struct backup_set *set,
                  struct backup_disk *d, struct error *err)
{
  struct journal journal;
  struct blk *source;
  bool has_journal = false;
  int r = 0;

  if (d->number > BACKUP_MAX_NUMBER)
    return error_set (err, EOVERFLOW, "%s: the chain is full (%d backups)",
                      d->chain->folder, BACKUP_MAX_NUMBER);
  if (run->is_resumed)
    r = backup_find_journal (run, d, &journal, err);
  if (r < 0)
    return r;
  has_journal = r > 0;
  if (has_journal && journal.is_complete)
    return take_complete (run, d, &journal, err);
  r = open_or_wait (run, set, d, &source, err);
  if (r < 0)
    return r;
  backup_set_add (set, source);
  r = pull_from (run, set, d, source, has_journal ? &journal : NULL, err);
  backup_set_remove (set, source);
  blk_close (source);
  return r;
}
