/* SPDX-License-Identifier: BSD-3-Clause */
/* What the server says of a session's disks, which is not believed before it
 * has been looked at.  Main thread.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup.h"
#include "log.h"
#include "range.h"

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

int
backup_refuse_empty (const char *disk, struct error *err)
{
  return error_set (err, EINVAL, "disk '%s' has 0 bytes: there is nothing to "
                    "back up; name the others with --disk", disk);
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
  if (d->name && json_is_integer (json_object_get (o, "size")) && size == 0)
    return backup_refuse_empty (d->name, err);
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

int
backup_open_chain (struct backup_run *run, struct backup_disk *d,
                   struct error *err)
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
    r = backup_open_chain (run, &run->disks[i], err);
  return r;
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

int
backup_check_answer (const struct backup_run *run, struct error *err)
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
