/* SPDX-License-Identifier: BSD-3-Clause */
/* Manifests.  Main thread.
 *
 * I8: a backup appears in the repository only when all that it names is on
 * stable storage.  The rename of a manifest from NAME.json.partial to
 * NAME.json makes a backup appear; here it is only written and synced under
 * its partial name, repo_commit renames it when the rest is durable.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cleanup.h"
#include "files.h"
#include "manifest.h"
#include "range.h"
#include "seal.h"

#define MANIFEST_FORMAT "tidemark backup"
#define MANIFEST_VERSION 1
#define MANIFEST_MAX_SIZE (1024 * 1024)

const char *
backup_name (unsigned number, bool is_full, const char *suffix,
             char ret[BACKUP_NAME_MAX])
{
  snprintf (ret, BACKUP_NAME_MAX, "%06u-%s%s", number,
            is_full ? "full" : "inc", suffix);
  return ret;
}

bool
backup_name_parse (const char *name, unsigned *ret_number, bool *ret_is_full,
                   const char **ret_suffix)
{
  static const char *const suffixes[] = {
    ".qcow2", ".json", ".sums", ".pending",
    ".qcow2.partial", ".json.partial", ".sums.partial",
    ".journal.partial", ".journal.new.partial",
  };
  const char *rest;
  size_t i;

  if (strspn (name, "0123456789") != 6 || name[6] != '-')
    return false;
  if (strncmp (name + 7, "full", 4) == 0)
    rest = name + 11;
  else if (strncmp (name + 7, "inc", 3) == 0)
    rest = name + 10;
  else
    return false;
  for (i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++)
    if (strcmp (rest, suffixes[i]) == 0) {
      *ret_number = (unsigned) strtoul (name, NULL, 10);
      *ret_is_full = name[7] == 'f';
      *ret_suffix = rest;
      return *ret_number > 0;
    }
  return false;
}

bool
manifest_is_trunk (const struct manifest *m)
{
  return strcmp (m->mode, "differential") != 0
    && strcmp (m->mode, "copy") != 0;
}

void
manifest_free (struct manifest *m)
{
  if (!m)
    return;
  free (m->disk);
  free (m->source);
  free (m->bitmap);
  free (m->mode);
  free (m->why);
  free (m->tool);
  json_decref (m->disks);
  free (m);
}

const char *
time_format (int64_t t, char ret[TIME_STRING_SIZE])
{
  time_t tt = (time_t) t;
  struct tm tm;

  if (!gmtime_r (&tt, &tm)
      || strftime (ret, TIME_STRING_SIZE, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
    snprintf (ret, TIME_STRING_SIZE, "?");
  return ret;
}

static int
time_parse (const char *s, int64_t *ret)
{
  struct tm tm = { 0 };
  const char *end = strptime (s, "%Y-%m-%dT%H:%M:%SZ", &tm);

  if (!end || *end)
    return -EINVAL;
  *ret = (int64_t) timegm (&tm);
  return 0;
}

static void
set_point (json_t *o, const char *key, const struct point_id *id)
{
  char s[POINT_ID_STRING_SIZE];

  point_id_format (id, s);
  json_object_set_new (o, key,
                       point_id_is_none (id) ? json_null () : json_string (s));
}

static void
set_backup_name (json_t *o, const char *key, unsigned number, bool is_full,
                 const char *suffix)
{
  char s[BACKUP_NAME_MAX];

  json_object_set_new (o, key, number == 0 ? json_null () :
                       json_string (backup_name (number, is_full, suffix, s)));
}

json_t *
manifest_to_json (const struct manifest *m)
{
  char t1[TIME_STRING_SIZE], t2[TIME_STRING_SIZE], root[SUMS_HEX_SIZE];
  json_t *o;

  o = json_pack ("{s:s, s:i, s:i, s:s, s:s, s:s, s:s?}",
                 "format", MANIFEST_FORMAT, "version", MANIFEST_VERSION,
                 "number", (int) m->number, "disk", m->disk,
                 "mode", m->mode, "why", m->why, "bitmap", m->bitmap);
  if (!o)
    return NULL;
  set_backup_name (o, "image", m->number, m->is_full, ".qcow2");
  set_backup_name (o, "backing", m->backing_number, m->is_backing_full,
                   ".qcow2");
  set_backup_name (o, "sums", m->number, m->is_full, ".sums");
  sums_hash_format (m->root, root);
  json_object_set_new (o, "sums-sha256", json_string (root));
  set_point (o, "point", &m->point);
  set_point (o, "base-point", &m->base);
  set_point (o, "parent-point", &m->parent);
  set_point (o, "session", &m->session);
  json_object_set (o, "disks", m->disks);
  json_object_set_new (o, "time", json_string (time_format (m->time, t1)));
  json_object_set_new (o, "finished",
                       json_string (time_format (m->finished, t2)));
  json_object_set_new (o, "source", json_string (m->source));
  json_object_set_new (o, "virtual-size",
                       json_integer ((json_int_t) m->virtual_size));
  json_object_set_new (o, "cluster-size",
                       json_integer ((json_int_t) m->cluster_size));
  json_object_set_new (o, "dirty-bytes",
                       json_integer ((json_int_t) m->dirty_bytes));
  json_object_set_new (o, "data-bytes",
                       json_integer ((json_int_t) m->data_bytes));
  json_object_set_new (o, "zero-bytes",
                       json_integer ((json_int_t) m->zero_bytes));
  json_object_set_new (o, "image-bytes",
                       json_integer ((json_int_t) m->image_bytes));
  json_object_set_new (o, "tool", json_string (m->tool));
  return o;
}

int
manifest_write_partial (int dirfd, const struct manifest *m,
                        struct error *err)
{
  char name[BACKUP_NAME_MAX];
  CLEANUP_FREE char *text = seal_json (manifest_to_json (m));
  int r;

  backup_name (m->number, m->is_full, ".json.partial", name);
  r = text ? file_write_at (dirfd, name, text, 0444) : -ENOMEM;
  return r < 0 ? error_set_errno (err, -r, "%s", name) : 0;
}

static bool
get_string (const json_t *o, const char *key, bool is_optional, char **ret)
{
  const json_t *v = json_object_get (o, key);

  if (is_optional && json_is_null (v))
    return true;
  if (!json_is_string (v))
    return false;
  *ret = strdup (json_string_value (v));
  return *ret != NULL;
}

bool
json_get_size (const json_t *o, const char *key, uint64_t *ret)
{
  const json_t *v = json_object_get (o, key);

  if (!json_is_integer (v) || json_integer_value (v) < 0
      || (uint64_t) json_integer_value (v) > RANGE_MAX_SIZE)
    return false;
  *ret = (uint64_t) json_integer_value (v);
  return true;
}

static bool
get_point (const json_t *o, const char *key, bool is_optional,
           struct point_id *ret)
{
  const json_t *v = json_object_get (o, key);

  if (is_optional && json_is_null (v))
    return true;
  return json_is_string (v)
    && point_id_parse (json_string_value (v), ret) == 0;
}

static bool
get_time (const json_t *o, const char *key, int64_t *ret)
{
  const char *s = json_string_value (json_object_get (o, key));

  return s && time_parse (s, ret) == 0;
}

static bool
get_backing (const json_t *o, struct manifest *m)
{
  const json_t *v = json_object_get (o, "backing");
  const char *suffix;

  if (json_is_null (v))
    return m->is_full;
  return json_is_string (v) && !m->is_full
    && backup_name_parse (json_string_value (v), &m->backing_number,
                          &m->is_backing_full, &suffix)
    && strcmp (suffix, ".qcow2") == 0 && m->backing_number < m->number;
}

static bool
is_name (const json_t *o, const char *key, const struct manifest *m,
         const char *suffix)
{
  const char *s = json_string_value (json_object_get (o, key));
  char name[BACKUP_NAME_MAX];

  backup_name (m->number, m->is_full, suffix, name);
  return s && strcmp (s, name) == 0;
}

/* Returns the key that is wrong, or NULL. */
static const char *
fill (struct manifest *m, const json_t *o)
{
  uint64_t number, cluster_size;
  const char *root = json_string_value (json_object_get (o, "sums-sha256"));

#define CHECK(key, ok) if (!(ok)) return key
  CHECK ("number", json_get_size (o, "number", &number) && number == m->number);
  CHECK ("image", is_name (o, "image", m, ".qcow2"));
  CHECK ("sums", is_name (o, "sums", m, ".sums"));
  CHECK ("sums-sha256", root && sums_hash_parse (root, m->root) == 0);
  CHECK ("backing", get_backing (o, m));
  CHECK ("disk", get_string (o, "disk", false, &m->disk));
  CHECK ("mode", get_string (o, "mode", false, &m->mode));
  CHECK ("why", get_string (o, "why", false, &m->why));
  CHECK ("bitmap", get_string (o, "bitmap", true, &m->bitmap));
  CHECK ("source", get_string (o, "source", false, &m->source));
  CHECK ("tool", get_string (o, "tool", false, &m->tool));
  CHECK ("point", get_point (o, "point", false, &m->point));
  CHECK ("session", get_point (o, "session", false, &m->session));
  CHECK ("base-point", get_point (o, "base-point", true, &m->base));
  CHECK ("parent-point", get_point (o, "parent-point", m->is_full,
                                    &m->parent));
  CHECK ("time", get_time (o, "time", &m->time));
  CHECK ("finished", get_time (o, "finished", &m->finished));
  CHECK ("virtual-size", json_get_size (o, "virtual-size", &m->virtual_size));
  CHECK ("cluster-size", json_get_size (o, "cluster-size", &cluster_size)
         && is_power_of_2 (cluster_size) && cluster_size >= 512
         && cluster_size <= SUMS_MAX_CLUSTER_SIZE);
  m->cluster_size = (uint32_t) cluster_size;
  CHECK ("dirty-bytes", json_get_size (o, "dirty-bytes", &m->dirty_bytes));
  CHECK ("data-bytes", json_get_size (o, "data-bytes", &m->data_bytes));
  CHECK ("zero-bytes", json_get_size (o, "zero-bytes", &m->zero_bytes));
  CHECK ("image-bytes", json_get_size (o, "image-bytes", &m->image_bytes));
  CHECK ("disks", json_is_array (json_object_get (o, "disks")));
#undef CHECK
  m->disks = json_incref (json_object_get (o, "disks"));
  return NULL;
}

static int
parse (const char *text, const char *path, struct manifest *m,
       struct error *err)
{
  json_error_t jerr;
  json_t *o = json_loads (text, JSON_REJECT_DUPLICATES, &jerr);
  const char *format, *wrong;
  json_int_t version;
  int r = 0;

  if (!json_is_object (o)) {
    json_decref (o);
    return error_set (err, EBADMSG, "%s: not a JSON object: %s", path,
                      jerr.text);
  }
  format = json_string_value (json_object_get (o, "format"));
  version = json_integer_value (json_object_get (o, "version"));
  if (!format || strcmp (format, MANIFEST_FORMAT) != 0)
    r = error_set (err, EBADMSG, "%s: not a manifest", path);
  else if (version != MANIFEST_VERSION)
    r = error_set (err, ENOTSUP, "%s: format version %jd; this program reads "
                   "version %d", path, (intmax_t) version, MANIFEST_VERSION);
  else if (!seal_is_good (text, o))
    r = error_set (err, EBADMSG, "%s: the manifest's own checksum is wrong",
                   path);
  else if ((wrong = fill (m, o)) != NULL)
    r = error_set (err, EBADMSG, "%s: \"%s\" is missing or not allowed", path,
                   wrong);
  json_decref (o);
  return r;
}

int
manifest_read (int dirfd, const char *folder, const char *name,
               struct manifest **ret, struct error *err)
{
  struct manifest *m = calloc (1, sizeof *m);
  CLEANUP_FREE char *text = NULL;
  char path[512];
  const char *suffix;
  int r;

  snprintf (path, sizeof path, "%s/%s", folder, name);
  if (!m)
    return error_set_errno (err, ENOMEM, "%s", path);
  if (!backup_name_parse (name, &m->number, &m->is_full, &suffix))
    r = error_set (err, EINVAL, "%s: not a manifest's name", path);
  else if ((r = file_read_at (dirfd, name, MANIFEST_MAX_SIZE, &text)) < 0)
    r = error_set_errno (err, -r, "%s", path);
  else
    r = parse (text, path, m, err);
  if (r < 0)
    manifest_free (m);
  else
    *ret = m;
  return r;
}
