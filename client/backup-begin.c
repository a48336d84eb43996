/* SPDX-License-Identifier: BSD-3-Clause */
/* Beginning and ending a backup's session: what is to be pulled from where,
 * and on which chain it is to be stored.  Main thread.
 *
 * I9: for an incremental the base point is looked for in the chain; where it
 * is not, the session is given up and begun anew with mode full for that disk.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "backup.h"
#include "hooks.h"
#include "interrupt.h"
#include "log.h"
#include "progress.h"
#include "range.h"
#include "source.h"

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

static char *
dup_string (const json_t *o, const char *key)
{
  const char *s = json_string_value (json_object_get (o, key));

  return s ? strdup (s) : NULL;
}

/* The dirty context: the one besides base:allocation. */
static char *
find_context (const json_t *contexts)
{
  size_t i;
  const char *s;

  for (i = 0; i < json_array_size (contexts); i++) {
    s = json_string_value (json_array_get (contexts, i));
    if (s && strcmp (s, "base:allocation") != 0)
      return strdup (s);
  }
  return NULL;
}

static int
parse_disk (const struct backup_run *run, const json_t *o,
            struct backup_disk *d, struct error *err)
{
  const char *mode = json_string_value (json_object_get (o, "mode"));
  const char *base = json_string_value (json_object_get (o, "base"));
  const char *why = json_string_value (json_object_get (o, "why"));
  json_int_t size = json_integer_value (json_object_get (o, "size"));
  const json_t *dirty = json_object_get (o, "dirty-bytes");

  d->name = dup_string (o, "disk");
  d->uri = dup_string (o, "uri");
  d->bitmap = dup_string (o, "bitmap");
  if (d->name)
    d->asked = backup_asked_mode (run->options, d->name);
  d->is_incremental = mode && strcmp (mode, "incremental") == 0;
  d->is_aside = d->is_incremental ? d->asked == BACKUP_DIFFERENTIAL
    : mode && strcmp (mode, "copy") == 0;
  if (d->is_incremental)
    d->context = find_context (json_object_get (o, "contexts"));
  snprintf (d->why, sizeof d->why, "%s", why ? why : "");
  make_one_line (d->why);
  if (!d->name || !d->uri || !mode
      || (!d->is_incremental && !d->is_aside && strcmp (mode, "full") != 0)
      || size <= 0 || (uint64_t) size > RANGE_MAX_SIZE
      || !json_is_integer (dirty) || json_integer_value (dirty) < 0
      || (d->is_incremental
          && (!d->context || !base || point_id_parse (base, &d->base) < 0)))
    return error_set (err, EPROTO, "backup-begin: malformed answer for disk "
                      "'%s'", d->name ? d->name : "?");
  d->size = (uint64_t) size;
  d->dirty_bytes = (uint64_t) json_integer_value (dirty);
  return 0;
}

static int
check_uris (struct backup_run *run, struct error *err)
{
  char *uri;
  size_t i;
  int r = 0;

  for (i = 0; i < run->nr_disks && r == 0; i++) {
    r = control_check_uri (run->control, run->disks[i].uri, &uri, err);
    if (r == 0) {
      free (run->disks[i].uri);
      run->disks[i].uri = uri;
    }
  }
  return r;
}

static int
check_once (const struct backup_run *run, struct error *err)
{
  size_t i, j;

  for (i = 0; i < run->nr_disks; i++)
    for (j = 0; j < i; j++)
      if (strcmp (run->disks[j].name, run->disks[i].name) == 0)
        return error_set (err, EPROTO, "backup-begin: the server named disk "
                          "'%s' twice", run->disks[i].name);
  return 0;
}

/* Is the mode one that was asked for?  That it is incremental where full was
 * wanted is looked at later.
 */
static bool
is_mode_asked (const struct backup_disk *d)
{
  bool is_copy = d->is_aside && !d->is_incremental;

  if (d->asked == BACKUP_COPY || is_copy)
    return d->asked == BACKUP_COPY && is_copy;
  return d->is_incremental
    || d->asked == BACKUP_AUTO || d->asked == BACKUP_FULL;
}

static int
check_asked (const struct backup_run *run, struct error *err)
{
  const char *asked;
  size_t i, j;

  for (i = 0; i < run->nr_disks; i++) {
    const char *name = run->disks[i].name;

    for (j = 0; (asked = options_get_nth (run->options, "disk", j)); j++)
      if (strcmp (asked, name) == 0)
        break;
    if (j > 0 && !asked)
      return error_set (err, EPROTO, "backup-begin: the server answered with "
                        "disk '%s', which was not asked for", name);
    if (!is_mode_asked (&run->disks[i]))
      return error_set (err, EPROTO, "backup-begin: malformed answer for disk "
                        "'%s': mode %s was asked for", name,
                        backup_mode_name (run->disks[i].asked));
  }
  return 0;
}

static int
open_chain (struct backup_run *run, struct backup_disk *d, struct error *err)
{
  int r = chain_open (run->repo->path, run->repo->dirfd, d->name, true,
                      &d->chain, err);

  if (r == 0)
    d->number = d->chain->max_number + 1;
  return r;
}

int
backup_parse_answer (struct backup_run *run, const json_t *o,
                     struct error *err)
{
  const char *id = json_string_value (json_object_get (o, "id"));
  const json_t *disks = json_object_get (o, "disks");
  size_t nr = json_array_size (disks), i;
  int r = 0;

  if (!id || point_id_parse (id, &run->point) < 0)
    return error_set (err, EPROTO, "backup-begin: malformed answer");
  /* From here on there is something to end. */
  point_id_format (&run->point, run->session);
  if (nr == 0)
    return error_set (err, EPROTO, "backup-begin: malformed answer");
  run->time = json_integer_value (json_object_get (o, "time"));
  run->disks = calloc (nr, sizeof *run->disks);
  if (!run->disks)
    return error_set_errno (err, ENOMEM, "disks");
  run->nr_disks = nr;
  for (i = 0; i < nr && r == 0; i++)
    r = parse_disk (run, json_array_get (disks, i), &run->disks[i], err);
  if (r == 0)
    r = check_uris (run, err);
  if (r == 0)
    r = check_once (run, err);
  for (i = 0; i < nr && r == 0; i++)
    r = open_chain (run, &run->disks[i], err);
  return r;
}

/* Names of the disks whose bitmaps stay as they are. */
static json_t *
kept_bitmaps (const struct backup_run *run)
{
  json_t *a = json_array ();
  size_t i;

  for (i = 0; i < run->nr_disks; i++)
    if (run->disks[i].is_failed
        || (run->disks[i].is_aside && run->disks[i].is_incremental))
      json_array_append_new (a, json_string (run->disks[i].name));
  return a;
}

static int
call_end (struct backup_run *run, bool is_success, bool *ret_is_refused,
          struct error *err)
{
  struct control_call call = { .command = "backup-end", .is_final = true };
  json_t *kept = kept_bitmaps (run);
  int r;

  call.args = json_pack ("{s:s, s:b}", "id", run->session, "success",
                         is_success);
  if (call.args && is_success && json_array_size (kept) > 0)
    json_object_set (call.args, "keep", kept);
  json_decref (kept);
  r = control_call (run->control, &call, NULL, err);
  *ret_is_refused = call.error_class[0] != '\0';
  return r;
}

/* The end of a backup that is stored is worth some attempts: if the answer was
 * lost and not the request, the server says yes once more.
 */
int
backup_end_session (struct backup_run *run, bool is_success,
                    struct error *err)
{
  const time_t end = time (NULL) + (time_t) run->retry;
  struct timespec delay = { .tv_nsec = 100000000 };
  bool is_refused;
  int r;

  if (!run->control || !run->session[0])
    return 0;
  control_keepalive_stop (run->control);
  r = call_end (run, is_success, &is_refused, err);
  while (r < 0 && !is_refused && is_success && time (NULL) < end
         && !interrupt_is_set ()) {
    nanosleep (&delay, NULL);
    delay.tv_sec = MIN (delay.tv_sec * 2 + 1, 5);
    r = call_end (run, is_success, &is_refused, err);
  }
  run->session[0] = '\0';
  return r;
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
    r = check_asked (run, err);
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
  return control_keepalive_start (run->control, run->session, run->lease / 3,
                                  run->timeout, err);
}

int
backup_decide_nbd (struct backup_run *run, struct backup_disk *d,
                   struct error *err)
{
  const char *bitmap = options_get (run->options, "bitmap");

  d->asked = backup_asked_mode (run->options, d->name);
  d->is_aside = d->asked == BACKUP_COPY || d->asked == BACKUP_DIFFERENTIAL;
  backup_check_chain (d, 0, d->reason);
  if (d->asked == BACKUP_FULL || d->asked == BACKUP_COPY)
    snprintf (d->why, sizeof d->why, "asked for");
  else if (d->reason[0] && d->asked != BACKUP_AUTO)
    return backup_refuse (d, err);
  else if (d->reason[0])
    snprintf (d->why, sizeof d->why, "%s", d->reason);
  else if (!bitmap)
    return error_set (err, EINVAL, "the chain of disk '%s' is not empty: name "
                      "the server's bitmap for an incremental (--bitmap NAME),"
                      " or ask for --full", d->name);
  else {
    d->is_incremental = true;
    snprintf (d->why, sizeof d->why, "bitmap '%s' is managed by the server's "
              "user, who vouches for it", bitmap);
  }
  if (bitmap && d->asked != BACKUP_COPY) {
    d->bitmap = strdup (bitmap);
    d->context = d->is_incremental ? source_context (bitmap) : NULL;
    if (!d->bitmap || (d->is_incremental && !d->context))
      return error_set_errno (err, ENOMEM, "%s", d->name);
  }
  return 0;
}

int
backup_begin_nbd (struct backup_run *run, struct error *err)
{
  const char *name = options_get (run->options, "disk");
  struct backup_disk *d;
  /* What a run with a session has left is in the way of numbers. */
  int r = repo_clear (run->repo, err);

  if (r < 0)
    return r;
  r = point_id_random (&run->point);
  if (r < 0)
    return error_set_errno (err, -r, "random numbers");
  run->time = (int64_t) time (NULL);
  run->disks = d = calloc (1, sizeof *run->disks);
  if (!d)
    return error_set_errno (err, ENOMEM, "%s", name);
  run->nr_disks = 1;
  d->name = strdup (name);
  d->uri = strdup (run->source);
  if (!d->name || !d->uri)
    return error_set_errno (err, ENOMEM, "%s", name);
  r = open_chain (run, d, err);
  return r < 0 ? r : backup_decide_nbd (run, d, err);
}
