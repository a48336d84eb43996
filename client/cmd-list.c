/* SPDX-License-Identifier: BSD-3-Clause */
/* tidemark list and tidemark info: what is in a repository.  Main thread. */
#include "config.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "chain.h"
#include "client.h"
#include "progress.h"
#include "repo.h"
#include "size.h"

static const struct option_spec list_options[] = {
  { "disk", 'd', "NAME", "only this disk (repeatable)" },
  { "json", 0, NULL, "print one JSON object" },
  { NULL }
};

static const struct option_spec info_options[] = {
  { "at", 0, "WHEN", "which backup: a number, a point, a time (default: "
    "latest)" },
  { "disk", 'd', "NAME", "only this disk (repeatable)" },
  { "json", 0, NULL, "print one JSON object" },
  { NULL }
};

/* Call fn for each disk that --disk names, or for all. */
typedef int (*chain_fn) (const struct chain *chain, void *opaque,
                         struct error *err);

static int
call_chain (const struct repo *repo, const char *disk, chain_fn fn,
            void *opaque, struct error *err)
{
  struct chain *chain;
  int r = chain_open (repo->path, repo->dirfd, disk, false, &chain, err);

  if (r < 0)
    return r;
  r = fn (chain, opaque, err);
  chain_close (chain);
  return r;
}

static int
for_each_chain (const struct repo *repo, const struct options *o, chain_fn fn,
                void *opaque, struct error *err)
{
  const char *disk;
  char **names;
  size_t nr, i;
  int r = 0;

  if (options_has (o, "disk")) {
    for (i = 0; r == 0 && (disk = options_get_nth (o, "disk", i)); i++)
      r = call_chain (repo, disk, fn, opaque, err);
    return r;
  }
  r = repo_disks (repo, &names, &nr, err);
  if (r < 0)
    return r;
  for (i = 0; i < nr && r == 0; i++)
    r = call_chain (repo, names[i], fn, opaque, err);
  repo_free_names (names, nr);
  return r;
}

static json_t *
backup_json (const struct backup *b)
{
  json_t *o;

  if (!b->manifest)
    return json_pack ("{s:i, s:s}", "number", (int) b->number,
                      "error", b->error.msg);
  o = manifest_to_json (b->manifest);
  if (o)
    json_object_set_new (o, "confirmed", json_boolean (!b->is_pending));
  return o;
}

static int
print_json (json_t *o, struct error *err)
{
  int r = o && json_dumpf (o, stdout, JSON_INDENT (2)) == 0 ? 0 : -ENOMEM;

  json_decref (o);
  putchar ('\n');
  return r < 0 ? error_set_errno (err, ENOMEM, "JSON") : 0;
}

static void
print_backup (const struct chain *chain, const struct backup *b)
{
  const struct manifest *m = b->manifest;
  char time[TIME_STRING_SIZE], point[POINT_ID_STRING_SIZE];
  char size[SIZE_STRING_MAX], stored[SIZE_STRING_MAX];

  if (!m) {
    printf ("%-12s %6u  damaged: %s\n", chain->disk, b->number, b->error.msg);
    return;
  }
  point_id_format (&m->point, point);
  printf ("%-12s %6u  %-12s %-20s  %10s %10s  %.12s\n", chain->disk,
          b->number, m->mode, time_format (m->time, time),
          size_format (m->virtual_size, size),
          size_format (m->data_bytes, stored), point);
}

static int
list_chain (const struct chain *chain, void *opaque, struct error *err)
{
  json_t *disks = opaque, *backups = disks ? json_array () : NULL;
  size_t i;

  for (i = 0; i < chain->len; i++)
    if (disks)
      json_array_append_new (backups, backup_json (&chain->ptr[i]));
    else
      print_backup (chain, &chain->ptr[i]);
  if (disks && json_array_append_new (disks, json_pack (
        "{s:s, s:o}", "disk", chain->disk, "backups", backups)) < 0)
    return error_set_errno (err, ENOMEM, "JSON");
  return 0;
}

static int
list_repo (const struct repo *repo, const struct options *o,
           struct error *err)
{
  json_t *disks = options_has (o, "json") ? json_array () : NULL;
  char id[POINT_ID_STRING_SIZE];
  int r;

  if (!disks)
    printf ("%-12s %6s  %-12s %-20s  %10s %10s  %s\n", "DISK", "NUMBER",
            "MODE", "TIME", "SIZE", "STORED", "POINT");
  r = for_each_chain (repo, o, list_chain, disks, err);
  if (!disks)
    return r;
  if (r < 0) {
    json_decref (disks);
    return r;
  }
  point_id_format (&repo->id, id);
  return print_json (json_pack ("{s:s, s:s, s:o}", "repository", repo->path,
                                "id", id, "disks", disks), err);
}

static int
cmd_list_run (const struct options *o)
{
  struct error err = ERROR_INIT;
  struct repo *repo;
  int r = repo_open (o->args[0], &repo, &err);

  if (r == 0) {
    r = list_repo (repo, o, &err);
    repo_close (repo);
  }
  return r < 0 ? client_fail (&err) : STATUS_OK;
}

static void
print_point (const char *what, const struct point_id *id)
{
  char s[POINT_ID_STRING_SIZE];

  point_id_format (id, s);
  printf ("  %-13s %s\n", what, point_id_is_none (id) ? "none" : s);
}

static void
print_bytes (const char *what, uint64_t bytes)
{
  char s[SIZE_STRING_MAX];

  printf ("  %-13s %s (%ju bytes)\n", what, size_format (bytes, s),
          (uintmax_t) bytes);
}

static void
print_info (const struct chain *chain, const struct backup *b)
{
  const struct manifest *m = b->manifest;
  char t[TIME_STRING_SIZE], root[SUMS_HEX_SIZE], name[BACKUP_NAME_MAX];

  printf ("%s/%s\n", chain->folder,
          backup_name (b->number, b->is_full, ".qcow2", name));
  printf ("  %-13s %s (%s)\n", "mode", m->mode, m->why);
  printf ("  %-13s %s\n", "time", time_format (m->time, t));
  printf ("  %-13s %s\n", "finished", time_format (m->finished, t));
  print_point ("point", &m->point);
  print_point ("base point", &m->base);
  printf ("  %-13s %s\n", "source", m->source);
  printf ("  %-13s %s\n", "bitmap", m->bitmap ? m->bitmap : "none");
  print_bytes ("size", m->virtual_size);
  print_bytes ("clusters", m->cluster_size);
  print_bytes ("dirty", m->dirty_bytes);
  print_bytes ("data", m->data_bytes);
  print_bytes ("zeroes", m->zero_bytes);
  print_bytes ("image file", m->image_bytes);
  sums_hash_format (m->root, root);
  printf ("  %-13s %s\n", "checksum", root);
  printf ("  %-13s %s\n", "server", b->is_pending
          ? "has not confirmed this backup" : "has confirmed this backup");
  printf ("  %-13s %s\n", "written by", m->tool);
  printf ("  %-13s", "chain");
  for (; b; b = chain_backing (chain, b))
    printf (" %s%s", backup_name (b->number, b->is_full, "", name),
            b->is_full ? "" : " ->");
  putchar ('\n');
}

struct info {
  const char *at;
  json_t *disks;                /* NULL: for people */
};

static int
info_chain (const struct chain *chain, void *opaque, struct error *err)
{
  struct info *info = opaque;
  const struct backup *b, *i;
  char name[BACKUP_NAME_MAX];
  json_t *o, *layers;
  int r = chain_select (chain, info->at, &b, err);

  if (r == 0)
    r = chain_check_usable (chain, b, err);
  if (r < 0)
    return r;
  if (!info->disks) {
    print_info (chain, b);
    return 0;
  }
  o = backup_json (b);
  layers = json_array ();
  for (i = b; i; i = chain_backing (chain, i))
    json_array_append_new (layers, json_string (
      backup_name (i->number, i->is_full, ".qcow2", name)));
  json_object_set_new (o, "chain", layers);
  if (json_array_append_new (info->disks, o) < 0)
    return error_set_errno (err, ENOMEM, "JSON");
  return 0;
}

static int
cmd_info_run (const struct options *o)
{
  struct info info = { .at = options_get (o, "at") };
  struct error err = ERROR_INIT;
  char id[POINT_ID_STRING_SIZE];
  struct repo *repo;
  int r = repo_open (o->args[0], &repo, &err);

  if (r < 0)
    return client_fail (&err);
  point_id_format (&repo->id, id);
  if (options_has (o, "json"))
    info.disks = json_array ();
  else
    printf ("%s: repository %s\n", repo->path, id);
  r = for_each_chain (repo, o, info_chain, &info, &err);
  if (r == 0 && info.disks)
    r = print_json (json_pack ("{s:s, s:s, s:o}", "repository", repo->path,
                               "id", id, "disks", info.disks), &err);
  else
    json_decref (info.disks);
  repo_close (repo);
  return r < 0 ? client_fail (&err) : STATUS_OK;
}

const struct command cmd_list = {
  .name = "list",
  .synopsis = "REPOSITORY",
  .summary = "list the backups in a repository",
  .options = list_options,
  .min_args = 1,
  .max_args = 1,
  .run = cmd_list_run,
};

const struct command cmd_info = {
  .name = "info",
  .synopsis = "REPOSITORY",
  .summary = "show one backup of each disk and its chain",
  .options = info_options,
  .min_args = 1,
  .max_args = 1,
  .run = cmd_info_run,
};
