/* SPDX-License-Identifier: BSD-3-Clause */
/* Journals: small files that are replaced as a whole, with a checksum.  Any
 * thread; one writer of each.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "files.h"
#include "journal.h"
#include "manifest.h"
#include "range.h"
#include "seal.h"

#define JOURNAL_FORMAT "tidemark journal"
#define JOURNAL_VERSION 1
#define JOURNAL_MAX 65536
#define RUN_FILE "run.partial"
#define RUN_FILE_NEW "run.new.partial"
#define RUN_MAX (16 * 1024 * 1024)

/* Takes the reference to o. */
static int
replace (int dirfd, const char *name, const char *new_name, json_t *o)
{
  CLEANUP_FREE char *text = seal_json (o);
  int r;

  if (!text)
    return -ENOMEM;
  r = file_write_at (dirfd, new_name, text, 0644);
  if (r == 0 && renameat (dirfd, new_name, dirfd, name) < 0)
    r = -errno;
  return r;
}

static json_t *
load (int dirfd, const char *name, size_t max, int *ret_error)
{
  CLEANUP_FREE char *text = NULL;
  json_error_t jerr;
  json_t *o;

  *ret_error = file_read_at (dirfd, name, max, &text);
  if (*ret_error < 0)
    return NULL;
  o = json_loads (text, JSON_REJECT_DUPLICATES, &jerr);
  if (json_is_object (o) && seal_is_good (text, o))
    return o;
  json_decref (o);
  *ret_error = -EBADMSG;
  return NULL;
}

static json_t *
progress_to_json (const struct journal *j)
{
  const struct sums_state *s = &j->sums;

  return json_pack ("{s:I, s:I, s:I, s:I, s:I, s:i, s:I, s:I}",
                    "next-cluster", (json_int_t) s->next,
                    "sums-offset", (json_int_t) s->offset,
                    "sums-records", (json_int_t) s->nr_records,
                    "data-clusters", (json_int_t) s->totals.data_clusters,
                    "zero-clusters", (json_int_t) s->totals.zero_clusters,
                    "run-type", (int) s->run_type,
                    "run-first", (json_int_t) s->run_first,
                    "run-count", (json_int_t) s->run_count);
}

static json_t *
complete_to_json (const struct journal *j)
{
  char root[SUMS_HEX_SIZE];

  sums_hash_format (j->root, root);
  return json_pack ("{s:I, s:I, s:I, s:I, s:s}",
                    "data-bytes", (json_int_t) j->data_bytes,
                    "zero-bytes", (json_int_t) j->zero_bytes,
                    "image-bytes", (json_int_t) j->image_bytes,
                    "finished", (json_int_t) j->finished,
                    "sums-sha256", root);
}

int
journal_write (int dirfd, const struct journal_key *key,
               const struct journal *j, struct error *err)
{
  char name[BACKUP_NAME_MAX], new_name[BACKUP_NAME_MAX];
  char id[POINT_ID_STRING_SIZE];
  json_t *o;
  int r;

  point_id_format (&key->session, id);
  o = json_pack ("{s:s, s:i, s:s, s:i, s:s, s:i, s:o}",
                 "format", JOURNAL_FORMAT, "version", JOURNAL_VERSION,
                 "disk", key->disk, "number", (int) key->number,
                 "session", id, "cluster-size", (int) key->cluster_size,
                 j->is_complete ? "complete" : "progress",
                 j->is_complete ? complete_to_json (j)
                 : progress_to_json (j));
  backup_name (key->number, key->is_full, ".journal.partial", name);
  backup_name (key->number, key->is_full, ".journal.new.partial", new_name);
  r = replace (dirfd, name, new_name, o);
  return r < 0 ? error_set_errno (err, -r, "%s", name) : 0;
}

static bool
parse_progress (const json_t *o, struct journal *j)
{
  struct sums_state *s = &j->sums;
  uint64_t type = 0;
  bool ok = json_get_size (o, "next-cluster", &s->next)
    && json_get_size (o, "sums-offset", &s->offset)
    && json_get_size (o, "sums-records", &s->nr_records)
    && json_get_size (o, "data-clusters", &s->totals.data_clusters)
    && json_get_size (o, "zero-clusters", &s->totals.zero_clusters)
    && json_get_size (o, "run-type", &type) && type <= SUMS_ZERO
    && json_get_size (o, "run-first", &s->run_first)
    && json_get_size (o, "run-count", &s->run_count);

  s->run_type = (enum sums_type) type;
  return ok;
}

static bool
parse_complete (const json_t *o, struct journal *j)
{
  const char *root = json_string_value (json_object_get (o, "sums-sha256"));
  uint64_t finished;

  if (!json_get_size (o, "data-bytes", &j->data_bytes)
      || !json_get_size (o, "zero-bytes", &j->zero_bytes)
      || !json_get_size (o, "image-bytes", &j->image_bytes)
      || !json_get_size (o, "finished", &finished)
      || !root || sums_hash_parse (root, j->root) < 0)
    return false;
  j->finished = (int64_t) finished;
  return true;
}

/* What makes it another one's, or NULL. */
static const char *
find_mismatch (const json_t *o, const struct journal_key *key)
{
  const char *format = json_string_value (json_object_get (o, "format"));
  const char *disk = json_string_value (json_object_get (o, "disk"));
  const char *id = json_string_value (json_object_get (o, "session"));
  struct point_id session;
  uint64_t n;

  if (!format || strcmp (format, JOURNAL_FORMAT) != 0)
    return "it is no journal";
  if (!json_get_size (o, "version", &n) || n != JOURNAL_VERSION)
    return "it is of another version";
  if (!disk || strcmp (disk, key->disk) != 0)
    return "it is another disk's";
  if (!json_get_size (o, "number", &n) || n != key->number)
    return "it is another backup's";
  if (!id || point_id_parse (id, &session) < 0
      || !point_id_is_equal (&session, &key->session))
    return "it is of another session";
  if (!json_get_size (o, "cluster-size", &n) || n != key->cluster_size)
    return "it is of another cluster size";
  return NULL;
}

static bool
parse (const json_t *o, struct journal *j)
{
  const json_t *complete = json_object_get (o, "complete");

  j->is_complete = complete != NULL;
  return complete ? parse_complete (complete, j)
    : parse_progress (json_object_get (o, "progress"), j);
}

int
journal_read (int dirfd, const struct journal_key *key, struct journal *ret,
              struct error *err)
{
  const char *mismatch = NULL;
  char name[BACKUP_NAME_MAX];
  json_t *o;
  int r;

  backup_name (key->number, key->is_full, ".journal.partial", name);
  o = load (dirfd, name, JOURNAL_MAX, &r);
  if (r == -ENOENT)
    return r;
  memset (ret, 0, sizeof *ret);
  if (o)
    mismatch = find_mismatch (o, key);
  if (o && (mismatch || !parse (o, ret)))
    r = -EBADMSG;
  json_decref (o);
  if (mismatch)
    return error_set (err, EBADMSG, "%s: %s", name, mismatch);
  return r < 0 ? error_set_errno (err, -r, "%s", name) : 0;
}

int
journal_write_run (int dirfd, const json_t *run, struct error *err)
{
  int r = replace (dirfd, RUN_FILE, RUN_FILE_NEW, json_deep_copy (run));

  if (r == 0 && fsync (dirfd) < 0)
    r = -errno;
  return r < 0 ? error_set_errno (err, -r, RUN_FILE) : 0;
}

int
journal_read_run (int dirfd, json_t **ret)
{
  int r;

  *ret = load (dirfd, RUN_FILE, RUN_MAX, &r);
  return r;
}

bool
journal_has_run (int dirfd)
{
  return faccessat (dirfd, RUN_FILE, F_OK, 0) == 0;
}

void
journal_remove_run (int dirfd)
{
  unlinkat (dirfd, RUN_FILE, 0);
  unlinkat (dirfd, RUN_FILE_NEW, 0);
}
