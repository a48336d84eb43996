/* SPDX-License-Identifier: BSD-3-Clause */
/* Going on with a backup whose run was killed or lost its server.  Main thread.
 *
 * REPO/run.partial is there from when a session has begun until its end is
 * known.  It says what the session is, what its run was asked for, and which
 * backups it makes; their journals say how far they have come.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup.h"
#include "journal.h"
#include "log.h"
#include "progress.h"
#include "range.h"

#define RUN_FORMAT "tidemark run"
#define RUN_VERSION 1

/* What a run is asked for, as far as it shows in what is stored. */
static json_t *
asked_for (const struct backup_run *run)
{
  static const char *const names[] = { "bitmap", "compress" };
  json_t *o = json_pack ("{s:s, s:o, s:i}", "source", run->source,
                         "modes", backup_modes_to_json (run->options),
                         "cluster-size", (int) run->cluster_size);
  json_t *disks = json_array ();
  const char *s;
  size_t i;

  for (i = 0; i < sizeof names / sizeof names[0]; i++) {
    s = options_get (run->options, names[i]);
    if (o && s)
      json_object_set_new (o, names[i], json_string (s));
  }
  for (i = 0; (s = options_get_nth (run->options, "disk", i)) != NULL; i++)
    json_array_append_new (disks, json_string (s));
  if (o)
    json_object_set_new (o, "disks", disks);
  return o;
}

int
backup_note_run (struct backup_run *run, struct error *err)
{
  json_t *disks = json_array (), *o;
  size_t i;
  int r;

  for (i = 0; i < run->nr_disks; i++) {
    const struct backup_disk *d = &run->disks[i];

    json_array_append_new (disks, json_pack (
      "{s:s, s:i, s:s, s:s}", "disk", d->name, "number", (int) d->number,
      "mode", backup_disk_mode (d), "why", d->why));
  }
  o = json_pack ("{s:s, s:i, s:s, s:o, s:o}", "format", RUN_FORMAT,
                 "version", RUN_VERSION, "session", run->session,
                 "asked-for", asked_for (run), "disks", disks);
  if (!o)
    return error_set_errno (err, ENOMEM, "journal");
  run->is_noted = true;
  r = journal_write_run (run->repo->dirfd, o, err);
  json_decref (o);
  return r;
}

/* Is every disk of the set as the old run had it?  Its reasons are kept.  What
 * is stored may have been trimmed from the session: one whose journal is no
 * good cannot be pulled again at this point.
 */
static bool
take_disks (struct backup_run *run, const json_t *disks, char reason[256])
{
  size_t i, j;

  for (i = 0; i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];
    const json_t *o = NULL;
    const char *name = NULL, *mode, *why;
    struct error e = ERROR_INIT;
    struct journal journal;

    for (j = 0; j < json_array_size (disks); j++) {
      o = json_array_get (disks, j);
      name = json_string_value (json_object_get (o, "disk"));
      if (name && strcmp (name, d->name) == 0)
        break;
    }
    mode = json_string_value (json_object_get (o, "mode"));
    why = json_string_value (json_object_get (o, "why"));
    if (j == json_array_size (disks) || !mode || !why
        || strcmp (mode, backup_disk_mode (d)) != 0) {
      snprintf (reason, 256, "its journal does not fit disk '%.100s'",
                d->name);
      return false;
    }
    d->number = (unsigned) json_integer_value (json_object_get (o, "number"));
    snprintf (d->why, sizeof d->why, "%s", why);
    make_one_line (d->why);
    if (d->number == 0 || d->number > BACKUP_MAX_NUMBER
        || d->number < d->chain->max_number
        || chain_find_number (d->chain, d->number) || backup_is_misfit (d)) {
      snprintf (reason, 256, "%.200s", d->reason[0] ? d->reason :
                "the repository has changed since");
      return false;
    }
    if (backup_find_journal (run, d, &journal, &e) < 0) {
      snprintf (reason, 256, "%.250s", e.msg);
      return false;
    }
  }
  return true;
}

/* An interrupted run of this repository may have begun a session and not have
 * written down which, or what it wrote cannot be read any more.  It is one that
 * uses the bitmap that is named after the repository, which is locked: it has
 * no client any more.
 */
static void
end_unnoted (struct backup_run *run)
{
  struct control_call query = { .command = "query-backups" };
  char id[POINT_ID_STRING_SIZE], bitmap[64];
  json_t *sessions = NULL;
  struct error e = ERROR_INIT;
  size_t i, j;

  point_id_format (&run->repo->id, id);
  snprintf (bitmap, sizeof bitmap, "tidemark-%s", id);
  if (control_call (run->control, &query, &sessions, &e) < 0)
    return;
  for (i = 0; i < json_array_size (sessions); i++) {
    const json_t *s = json_array_get (sessions, i);
    const json_t *disks = json_object_get (s, "disks");
    const char *name = NULL, *session;

    session = json_string_value (json_object_get (s, "id"));
    for (j = 0; session && j < json_array_size (disks); j++) {
      name = json_string_value (json_object_get (json_array_get (disks, j),
                                                 "bitmap"));
      if (name && strcmp (name, bitmap) == 0)
        break;
    }
    if (!session || j == json_array_size (disks)
        || point_id_parse (session, &run->point) < 0)
      continue;
    point_id_format (&run->point, run->session);
    if (backup_end_session (run, false, &e) == 0)
      progress_say ("ended session %s, which an interrupted run left",
                    session);
  }
  json_decref (sessions);
}

/* The backup in this chain that belongs to the session, or NULL. */
static const struct backup *
find_stored (const struct backup_run *run, const struct chain *c)
{
  size_t j;

  for (j = 0; j < c->len; j++)
    if (c->ptr[j].manifest
        && point_id_is_equal (&c->ptr[j].manifest->session, &run->point))
      return &c->ptr[j];
  return NULL;
}

/* The session's set is in the repository: what is missing is that the server
 * knows.
 */
static bool
is_stored (const struct backup_run *run)
{
  size_t i;

  for (i = 0; i < run->nr_disks; i++)
    if (find_stored (run, run->disks[i].chain))
      return true;
  return false;
}

/* What is not part of it had failed, in a run that allowed it.  The old run's
 * modes count, not this one's.
 */
static void
confirm_stored (struct backup_run *run)
{
  struct error e = ERROR_INIT;
  size_t i;

  for (i = 0; i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];
    const struct backup *b = find_stored (run, d->chain);

    d->is_failed = !b;
    d->is_aside = b && !manifest_is_trunk (b->manifest);
  }

  if (backup_end_session (run, true, &e) < 0) {
    log_warning ("the backup of an interrupted run is stored, but the server "
                 "has not confirmed it: %s", e.msg);
    return;
  }
  for (i = 0; i < run->nr_disks; i++) {
    struct chain *c = run->disks[i].chain;
    const struct backup *b = find_stored (run, c);
    const struct repo_item item = {
      .chain = c, .manifest = b ? b->manifest : NULL,
    };

    if (b)
      repo_acknowledged (&item, 1);
  }
  progress_say ("the server was told that the backup of an interrupted run is "
                "stored");
}

/* 1: attached and all fits.  0: not, and *reason says why.  -errno: the server
 * does not say.
 */
static int
attach (struct backup_run *run, const json_t *o, char reason[256],
        struct error *err)
{
  const char *format = json_string_value (json_object_get (o, "format"));
  const char *id = json_string_value (json_object_get (o, "session"));
  struct control_call call = { .command = "backup-attach" };
  struct error e = ERROR_INIT;
  json_t *answer, *asked = asked_for (run);
  bool is_same = json_equal (asked, json_object_get (o, "asked-for"));
  int r;

  json_decref (asked);
  if (!format || strcmp (format, RUN_FORMAT) != 0 || !id
      || json_integer_value (json_object_get (o, "version")) != RUN_VERSION) {
    snprintf (reason, 256, "its journal cannot be read");
    return 0;
  }
  call.args = json_pack ("{s:s}", "id", id);
  r = control_call (run->control, &call, &answer, &e);
  if (r < 0 && !call.error_class[0]) {
    *err = e;
    return r;
  }
  if (r < 0) {
    snprintf (reason, 256, "the session is gone: %.200s", e.msg);
    return 0;
  }
  r = backup_parse_answer (run, answer, &e);
  json_decref (answer);
  if (r < 0) {
    snprintf (reason, 256, "%.200s", e.msg);
    return 0;
  }
  if (is_stored (run))
    return 1;
  if (!is_same) {
    snprintf (reason, 256, "it was asked for with other options");
    return 0;
  }
  return take_disks (run, json_object_get (o, "disks"), reason);
}

/* What was written down last is from after backup-begin's answer. */
static bool
is_begun (const json_t *o)
{
  const char *id = json_string_value (json_object_get (o, "session"));

  return !id || id[0] != '\0';
}

int
backup_resume (struct backup_run *run, struct error *err)
{
  char reason[256] = "";
  struct error e = ERROR_INIT;
  json_t *o;
  int r = journal_read_run (run->repo->dirfd, &o);

  if (r == -ENOENT)
    return repo_clear (run->repo, err);
  if (r < 0)
    snprintf (reason, sizeof reason, "run.partial cannot be read: %s",
              strerror (-r));
  if (r == 0 && !is_begun (o))
    end_unnoted (run);
  else if (r < 0)
    r = 0;
  else
    r = attach (run, o, reason, err);
  json_decref (o);
  if (r < 0)
    return r;
  if (r > 0 && !is_stored (run)) {
    run->is_resumed = run->is_noted = true;
    progress_say ("going on with the backup of point %s, which an interrupted "
                  "run left", run->session);
    progress_event ("resumed", json_pack ("{s:s}", "session", run->session));
    return 1;
  }
  if (r > 0)
    confirm_stored (run);
  else if (reason[0]) {
    progress_say ("the backup that an interrupted run left cannot be gone on "
                  "with: %s", reason);
    progress_event ("not-resumed", json_pack ("{s:s}", "reason", reason));
    if (!run->session[0])
      end_unnoted (run);
    else if (backup_end_session (run, false, &e) < 0)
      log_warning ("its session could not be ended: %s", e.msg);
  }
  backup_free_disks (run);
  run->session[0] = '\0';
  return repo_clear (run->repo, err);
}
