/* SPDX-License-Identifier: BSD-3-Clause */
/* tidemark check: is a qcow2 image sound, and can it be mended?  Main thread.
 * Its exit codes are those of qemu-img check.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <jansson.h>

#include "blk-file.h"
#include "client.h"
#include "interrupt.h"
#include "log.h"
#include "progress.h"
#include "qcow2-check.h"

#define MAX_REPORTS 100

enum {
  CHECK_CLEAN = 0,
  CHECK_FAILED = 1,             /* wrong options too */
  CHECK_CORRUPT = 2,
  CHECK_LEAKS = 3,
};

static const struct option_spec options[] = {
  { "json", 0, NULL, "print one JSON object" },
  { "quiet", 'q', NULL, "print errors only" },
  { "repair", 'r', "WHAT", "mend leaks, or all" },
  { NULL }
};

struct check_run {
  bool is_quiet;
  unsigned nr_reports;
};

static void
report (void *opaque, bool is_leak, const char *msg)
{
  struct check_run *run = opaque;

  if (run->is_quiet || ++run->nr_reports > MAX_REPORTS)
    return;
  fprintf (stderr, "%s: %s\n", is_leak ? "leak" : "ERROR", msg);
  if (run->nr_reports == MAX_REPORTS)
    fprintf (stderr, "(no more than %d are shown)\n", MAX_REPORTS);
}

static bool
is_cancelled (void *opaque)
{
  return interrupt_is_set ();
}

static void
print_json (const char *file, const struct qcow2_check_result *r)
{
  json_t *j = json_pack (
    "{s:s, s:s, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
    "filename", file, "format", "qcow2", "check-errors", 0,
    "corruptions", (json_int_t) r->corruptions,
    "leaks", (json_int_t) r->leaks,
    "corruptions-fixed", (json_int_t) r->corruptions_fixed,
    "leaks-fixed", (json_int_t) r->leaks_fixed,
    "total-clusters", (json_int_t) r->total_clusters,
    "allocated-clusters", (json_int_t) r->allocated_clusters,
    "compressed-clusters", (json_int_t) r->compressed_clusters,
    "image-end-offset", (json_int_t) r->image_end);

  if (j)
    json_dumpf (j, stdout, JSON_INDENT (2) | JSON_PRESERVE_ORDER);
  putchar ('\n');
  json_decref (j);
}

static void
print_text (const struct qcow2_check_result *r)
{
  if (r->corruptions_fixed || r->leaks_fixed)
    printf ("mended: %" PRIu64 " errors, %" PRIu64 " leaked clusters\n",
            r->corruptions_fixed, r->leaks_fixed);
  if (r->corruptions)
    printf ("%" PRIu64 " errors: data may be corrupted, or may become so with"
            " the next write\n", r->corruptions);
  if (r->leaks)
    printf ("%" PRIu64 " leaked clusters: space is wasted, no data is at"
            " risk\n", r->leaks);
  if (!r->corruptions && !r->leaks)
    printf ("no errors were found\n");
  printf ("%" PRIu64 "/%" PRIu64 " clusters are allocated, %" PRIu64
          " of them compressed; the image ends at %" PRIu64 "\n",
          r->allocated_clusters, r->total_clusters, r->compressed_clusters,
          r->image_end);
}

static int
check_file (const char *file, const struct qcow2_check_options *o,
            struct qcow2_check_result *ret, struct error *err)
{
  unsigned flags = BLK_FILE_ANY_SIZE;
  struct blk *blk;
  int r;

  if (o->repair == QCOW2_REPAIR_NONE)
    flags |= BLK_FILE_READ_ONLY;
  r = blk_file_open (file, flags, &blk, err);
  return r < 0 ? r : blk_qcow2_check (blk, o, ret, err);
}

static int
cmd_check_run (const struct options *o)
{
  struct check_run run = { .is_quiet = options_has (o, "quiet") };
  struct qcow2_check_options check = {
    .report = report, .is_cancelled = is_cancelled, .opaque = &run,
  };
  const char *repair = options_get (o, "repair");
  struct qcow2_check_result result;
  struct error err = ERROR_INIT;

  if (repair && strcmp (repair, "leaks") == 0)
    check.repair = QCOW2_REPAIR_LEAKS;
  else if (repair && strcmp (repair, "all") == 0)
    check.repair = QCOW2_REPAIR_ALL;
  else if (repair)
    return client_usage (&cmd_check, "--repair %s: allowed are leaks and all",
                         repair);
  if (check_file (o->args[0], &check, &result, &err) < 0)
    return client_fail (&err);
  if (options_has (o, "json"))
    print_json (o->args[0], &result);
  else if (!run.is_quiet)
    print_text (&result);
  return result.corruptions ? CHECK_CORRUPT
    : result.leaks ? CHECK_LEAKS : CHECK_CLEAN;
}

const struct command cmd_check = {
  .name = "check",
  .synopsis = "IMAGE",
  .summary = "check a qcow2 image and mend it",
  .options = options,
  .min_args = 1,
  .max_args = 1,
  .usage_status = CHECK_FAILED,
  .run = cmd_check_run,
};
