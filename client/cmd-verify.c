/* SPDX-License-Identifier: BSD-3-Clause */
/* tidemark verify: check stored backups without restoring them.  Main thread.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "interrupt.h"
#include "progress.h"
#include "repo.h"
#include "size.h"
#include "verify.h"

static const struct option_spec options[] = {
  { "at", 0, "WHEN", "only this backup and what it is based on: a number, a "
    "point, a time" },
  { "disk", 'd', "NAME", "only this disk (repeatable)" },
  { "json", 0, NULL, "print one JSON object per event" },
  { "no-data", 0, NULL, "check all but the content of the clusters" },
  { "quiet", 'q', NULL, "print warnings and errors only" },
  { "threads", 0, "N", "read with N threads, 1 to 64 (default: processors, at "
    "most 8)" },
  { NULL }
};

struct verify {
  struct verify_options options;
  const char *at;
  int64_t nr_damages;
  uint64_t nr_backups, bytes;
};

static int
verify_backup (struct verify *v, const struct chain *chain,
               const struct backup *b, struct error *err)
{
  uint64_t bytes = b->manifest ? b->manifest->data_bytes : 0;
  char label[64], size[SIZE_STRING_MAX];
  int64_t n, m;

  snprintf (label, sizeof label, "%.40s %u", chain->disk, b->number);
  progress_begin (label, v->options.skip_data ? 0 : bytes);
  n = verify_backing (chain, b);
  m = verify_layer (chain, b, &v->options, err);
  progress_end ();
  if (m < 0)
    return (int) m;
  n += m;
  v->nr_damages += n;
  v->nr_backups++;
  v->bytes += bytes;
  progress_say ("%s: backup %u: %s, %s of data", chain->folder, b->number,
                n ? "DAMAGED" : "good", size_format (bytes, size));
  progress_event ("verified", json_pack (
    "{s:s, s:i, s:b, s:I, s:I}", "disk", chain->disk,
    "number", (int) b->number, "good", n == 0, "damages", (json_int_t) n,
    "bytes", (json_int_t) bytes));
  return 0;
}

/* One backup and all that it needs. */
static int
verify_at (struct verify *v, const struct chain *chain, struct error *err)
{
  const struct backup *b;
  int r = chain_select (chain, v->at, &b, err);

  for (; r == 0 && b; b = chain_backing (chain, b))
    r = verify_backup (v, chain, b, err);
  return r;
}

static int
verify_all (struct verify *v, const struct chain *chain, struct error *err)
{
  int64_t n = verify_folder (chain, err);
  size_t i;
  int r = n < 0 ? (int) n : 0;

  if (n > 0)
    v->nr_damages += n;
  for (i = 0; i < chain->len && r == 0; i++)
    r = verify_backup (v, chain, &chain->ptr[i], err);
  return r;
}

static int
verify_disk (struct verify *v, const struct repo *repo, const char *disk,
             struct error *err)
{
  struct chain *chain;
  int r = chain_open (repo->path, repo->dirfd, disk, false, &chain, err);

  if (r < 0)
    return r;
  r = v->at ? verify_at (v, chain, err) : verify_all (v, chain, err);
  chain_close (chain);
  return r;
}

static int
verify_repo (struct verify *v, const struct repo *repo,
             const struct options *o, struct error *err)
{
  const char *disk;
  char **names;
  size_t nr, i;
  int r = 0;

  if (options_has (o, "disk")) {
    for (i = 0; r == 0 && (disk = options_get_nth (o, "disk", i)); i++)
      r = verify_disk (v, repo, disk, err);
    return r;
  }
  r = repo_disks (repo, &names, &nr, err);
  if (r < 0)
    return r;
  for (i = 0; i < nr && r == 0; i++)
    r = verify_disk (v, repo, names[i], err);
  repo_free_names (names, nr);
  return r;
}

static int
summary (const struct verify *v)
{
  char size[SIZE_STRING_MAX];

  progress_say ("%ju backup%s checked, %s of data: %s",
                (uintmax_t) v->nr_backups, v->nr_backups == 1 ? "" : "s",
                size_format (v->bytes, size),
                v->nr_damages ? "DAMAGED" : "all good");
  progress_event ("summary", json_pack (
    "{s:I, s:I, s:I}", "backups", (json_int_t) v->nr_backups,
    "damages", (json_int_t) v->nr_damages, "bytes", (json_int_t) v->bytes));
  return v->nr_damages ? STATUS_DAMAGED : STATUS_OK;
}

static int
cmd_verify_run (const struct options *o)
{
  struct verify v = { .at = options_get (o, "at") };
  struct error err = ERROR_INIT;
  uint64_t threads = 0;
  struct repo *repo;
  int r = options_get_number (o, "threads", false, 1, 64, &threads, &err);

  if (r < 0)
    return client_usage (&cmd_verify, "%s", err.msg);
  v.options.nr_threads = (unsigned) threads;
  v.options.skip_data = options_has (o, "no-data");
  v.options.cancel = interrupt_flag ();
  r = repo_open (o->args[0], &repo, &err);
  if (r < 0)
    return client_fail (&err);
  r = verify_repo (&v, repo, o, &err);
  repo_close (repo);
  if (r == -ECANCELED)
    interrupt_error (&err);
  return r < 0 ? client_fail (&err) : summary (&v);
}

const struct command cmd_verify = {
  .name = "verify",
  .synopsis = "REPOSITORY",
  .summary = "check stored backups by their checksums",
  .options = options,
  .min_args = 1,
  .max_args = 1,
  .run = cmd_verify_run,
};
