/* SPDX-License-Identifier: BSD-3-Clause */
/* Beginning a backup's session: what is to be pulled from where, and on which
 * chain it is to be stored.  Main thread.
 *
 * I9: for an incremental the base point is looked for in the chain; where it
 * is not, the session is given up and begun anew with mode full for that disk.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup.h"
#include "hooks.h"

#define MAX_ATTEMPTS 3

/* Folders that are new and hold nothing after all go. */
static void
close_chains (struct backup_run *run)
{
  size_t i;

  for (i = 0; i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];

    if (d->chain && d->chain->was_created)
      unlinkat (run->repo->dirfd, d->name, AT_REMOVEDIR);
    chain_close (d->chain);
    d->chain = NULL;
  }
}

void
backup_free_disks (struct backup_run *run)
{
  size_t i;

  close_chains (run);
  for (i = 0; i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];

    free (d->name);
    free (d->uri);
    free (d->context);
    free (d->bitmap);
    manifest_free (d->manifest);
  }
  free (run->disks);
  run->disks = NULL;
  run->nr_disks = 0;
}

void
backup_check_chain (const struct backup_disk *d, uint64_t size,
                    char reason[256])
{
  const struct chain *chain = d->chain;
  const struct backup *head = chain ? chain_trunk (chain) : NULL;
  struct error e = ERROR_INIT;

  reason[0] = '\0';
  if (!head)
    snprintf (reason, 256, "the repository has no backup of disk '%s' yet",
              d->name);
  else if (chain_check_usable (chain, head, &e) < 0)
    snprintf (reason, 256, "the chain is damaged: %.230s", e.msg);
  else if (size && head->manifest->virtual_size != size)
    snprintf (reason, 256, "the size of the disk changed from %ju to %ju "
              "bytes", (uintmax_t) head->manifest->virtual_size,
              (uintmax_t) size);
}

int
backup_refuse (const struct backup_disk *d, struct error *err)
{
  return error_set (err, ESTALE, "disk '%.60s': no %s backup is possible: "
                    "%.140s", d->name, backup_mode_name (d->asked), d->reason);
}

/* The names of all disks of the server. */
static int
list_disks (struct backup_run *run, json_t **ret, struct error *err)
{
  struct control_call call = { .command = "query-block" };
  json_t *answer, *a;
  size_t i;
  int r = control_call (run->control, &call, &answer, err);

  if (r < 0)
    return r;
  a = *ret = json_array ();
  for (i = 0; i < json_array_size (answer); i++) {
    json_t *name = json_object_get (json_array_get (answer, i), "device");

    if (json_is_string (name))
      json_array_append (a, name);
  }
  json_decref (answer);
  return 0;
}

/* Names of the disks that are asked for; empty: all, with the same mode. */
static int
asked_disks (struct backup_run *run, json_t **ret, struct error *err)
{
  const char *name;
  size_t i;
  int r = 0;

  *ret = NULL;
  if (!options_has (run->options, "disk")
      && backup_has_disk_modes (run->options))
    r = list_disks (run, ret, err);
  else
    *ret = json_array ();
  for (i = 0; (name = options_get_nth (run->options, "disk", i)) != NULL; i++)
    json_array_append_new (*ret, json_string (name));
  if (r == 0)
    r = backup_check_mode_disks (run->options, *ret, err);
  if (r < 0)
    json_decref (*ret);
  return r;
}

static const char *
server_mode (enum backup_mode asked)
{
  /* The difference is in how it ends. */
  return backup_mode_name (asked == BACKUP_DIFFERENTIAL ? BACKUP_INCREMENTAL
                           : asked);
}

static json_t *
disk_argument (const char *name, enum backup_mode asked)
{
  return json_pack ("{s:s, s:s}", "disk", name, "mode", server_mode (asked));
}

/* The "disks" argument.  previous: the disks of an attempt before, whose
 * reasons make them full; NULL: what the user asked for, or all.
 */
static int
disks_argument (struct backup_run *run, const struct backup_disk *previous,
                size_t nr_previous, json_t **ret, struct error *err)
{
  json_t *names, *a;
  size_t i;
  int r;

  if (!previous) {
    r = asked_disks (run, &names, err);
    if (r < 0)
      return r;
  }
  *ret = a = json_array ();
  for (i = 0; i < nr_previous; i++)
    json_array_append_new (a, disk_argument (previous[i].name,
      previous[i].reason[0] ? BACKUP_FULL : previous[i].asked));
  for (i = 0; !previous && i < json_array_size (names); i++) {
    const char *name = json_string_value (json_array_get (names, i));

    json_array_append_new (a, disk_argument (name, backup_asked_mode (
      run->options, name)));
  }
  if (!previous)
    json_decref (names);
  return 0;
}

/* With the guest frozen, if there is a command for that. */
static int
take_point (struct backup_run *run, struct control_call *call, json_t **ret,
            struct error *err)
{
  const char *command = options_get (run->options, "freeze-hook");
  struct error late = ERROR_INIT;
  struct freeze *freeze = NULL;
  int r = 0;

  if (command)
    r = freeze_begin (command, run->freeze_timeout, &freeze, err);
  if (r < 0) {
    json_decref (call->args);
    return r;
  }
  r = control_call (run->control, call, ret, err);
  if (freeze_end (freeze, &late) < 0 && r == 0)
    run->freeze_error = late;
  return r;
}

static int
call_begin (struct backup_run *run, const struct backup_disk *previous,
            size_t nr_previous, json_t **ret, struct error *err)
{
  char id[POINT_ID_STRING_SIZE], bitmap[64];
  const char *name = options_get (run->options, "bitmap");
  enum backup_mode mode = backup_asked_mode (run->options, NULL);
  json_t *disks;
  struct control_call call = {
    .command = "backup-begin",
    /* The answer tells which session is to be ended. */
    .is_final = true,
  };

  int r = disks_argument (run, previous, nr_previous, &disks, err);

  if (r < 0)
    return r;
  point_id_format (&run->repo->id, id);
  snprintf (bitmap, sizeof bitmap, "tidemark-%s", id);
  call.args = json_pack ("{s:s, s:s, s:I, s:i}",
                         "mode", server_mode (mode), "view", "dirty",
                         "cluster-size", (json_int_t) run->cluster_size,
                         "lease", (int) run->lease);
  if (call.args && (mode != BACKUP_COPY || json_array_size (disks) > 0))
    json_object_set_new (call.args, "bitmap",
                         json_string (name ? name : bitmap));
  if (call.args && run->is_partial_ok)
    json_object_set_new (call.args, "partial-ok", json_true ());
  if (call.args && json_array_size (disks) > 0)
    json_object_set (call.args, "disks", disks);
  json_decref (disks);
  return take_point (run, &call, ret, err);
}

bool
backup_is_misfit (struct backup_disk *d)
{
  struct error e = ERROR_INIT;

  if (!d->is_incremental)
    return false;
  backup_check_chain (d, d->size, d->reason);
  if (!d->reason[0] && chain_check_base (d->chain, &d->base, &e) < 0)
    snprintf (d->reason, sizeof d->reason, "%s", e.msg);
  return d->reason[0] != '\0';
}

/* One attempt.  1: begun, but some disks need to be full. */
static int
attempt (struct backup_run *run, const struct backup_disk *previous,
         size_t nr_previous, struct error *err)
{
  json_t *answer = NULL;
  bool is_wrong = false;
  size_t i, j;
  int r = call_begin (run, previous, nr_previous, &answer, err);

  if (r < 0)
    return r;
  r = backup_parse_answer (run, answer, err);
  json_decref (answer);
  if (r == 0)
    r = backup_check_answer (run, err);
  if (r == 0 && run->freeze_error.errnum) {
    *err = run->freeze_error;
    r = -err->errnum;
  }
  if (r < 0)
    return r;
  for (i = 0; i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];

    for (j = 0; j < nr_previous; j++)
      if (strcmp (previous[j].name, d->name) == 0 && previous[j].reason[0])
        snprintf (d->why, sizeof d->why, "%s", previous[j].reason);
    if (!backup_is_misfit (d))
      continue;
    if (d->asked == BACKUP_INCREMENTAL || d->asked == BACKUP_DIFFERENTIAL)
      return backup_refuse (d, err);
    is_wrong = true;
  }
  return is_wrong;
}

static int
begin_attempts (struct backup_run *run, struct error *err)
{
  struct backup_run old = { 0 };
  int r = 1, i;

  for (i = 0; i < MAX_ATTEMPTS && r > 0; i++) {
    if (i > 0) {
      r = backup_end_session (run, false, err);
      if (r < 0)
        break;
      close_chains (run);
      backup_free_disks (&old);
      old.disks = run->disks;
      old.nr_disks = run->nr_disks;
      run->disks = NULL;
      run->nr_disks = 0;
    }
    r = attempt (run, old.disks, old.nr_disks, err);
  }
  backup_free_disks (&old);
  if (r > 0)
    r = error_set (err, ESTALE, "%s: the server keeps offering incremental "
                   "backups that do not fit the repository", run->source);
  return r;
}

int
backup_begin_session (struct backup_run *run, struct error *err)
{
  int r = control_connect (run->source, &run->control, err);

  if (r == 0 && options_has (run->options, "plain-tcp"))
    control_allow_plain_tcp (run->control);
  if (r == 0)
    r = backup_resume (run, err);
  if (r == 0) {
    /* Without a session yet, so that one that is not noted can be found. */
    r = backup_note_run (run, err);
    if (r == 0)
      r = begin_attempts (run, err);
    if (r == 0)
      r = backup_note_run (run, err);
  }
  if (r < 0)
    return r;
  if (run->retry > 0)
    control_set_lasting (run->control);
  /* A third of the lease: two lost renewals do no harm. */
  return control_keepalive_start (run->control, run->session,
                                  run->lease * 1000 / 3, run->timeout, err);
}
