/* SPDX-License-Identifier: BSD-3-Clause */
/* How --memory is shared out among disks that are pulled side by side. */
#include "config.h"

#include <errno.h>

#include "backup.h"
#include "copy.h"
#include "unit.h"

#define MIB (UINT64_C (1) << 20)
/* What the program, and the map of one disk, take at least: measured. */
#define PROGRAM (UINT64_C (10) << 20)
#define MAP (UINT64_C (16) << 20)

struct row {
  uint64_t memory;              /* MiB */
  unsigned cluster;             /* KiB */
  unsigned connections, parallel;
  size_t nr_disks;
  int level;                    /* of zstd; 0 = no compression */
  int result;
};

static int
share_out (const struct row *row, struct backup_run *run)
{
  int r;

  *run = (struct backup_run) {
    .cluster_size = row->cluster << 10,
    .compress = row->level > 0,
    .compression = QCOW2_COMPRESSION_ZSTD,
    .compression_level = row->level,
    .nr_connections = row->connections,
    .nr_parallel = row->parallel,
    .nr_disks = row->nr_disks,
  };
  r = backup_set_memory (run, row->memory * MIB, NULL);
  if (r == 0)
    backup_share_out (run);
  return r;
}

static void
check_row (const struct row *row)
{
  struct backup_run run;
  const int r = share_out (row, &run);
  uint64_t each, all;

  assert_int_equal (r, row->result);
  if (r < 0)
    return;
  assert_in_range (run.nr_parallel, 1, row->parallel);
  assert_true (run.nr_parallel <= row->nr_disks);
  assert_true (run.nr_threads >= 1);
  if (row->connections)
    assert_true (run.nr_threads <= row->connections);
  /* Each thread has two items or more. */
  assert_true (run.memory >= run.nr_threads * 2 * run.cluster_size);
  each = MAP + run.memory;
  if (row->level)
    each += run.nr_threads * qcow2_pack_memory (run.compression, row->level,
                                                run.cluster_size);
  all = PROGRAM + run.nr_parallel * each;
  assert_true (all <= row->memory * MIB);
  /* Nor is most of it left lying there. */
  assert_true (all >= row->memory * MIB * 3 / 4);
}

static void
test_bound (void **state)
{
  static const struct row rows[] = {
    { 32, 64, 0, 4, 1, 0, 0 }, { 32, 64, 0, 4, 9, 0, 0 },
    { 64, 64, 0, 4, 2, 0, 0 }, { 64, 64, 8, 16, 3, 3, 0 },
    { 256, 64, 0, 1, 4, 0, 0 }, { 256, 64, 0, 4, 4, 0, 0 },
    { 256, 64, 0, 16, 100, 0, 0 }, { 256, 64, 64, 16, 100, 9, 0 },
    { 256, 2048, 4, 4, 4, 3, 0 }, { 1024, 64, 0, 16, 16, 0, 0 },
    { 4096, 2048, 4, 16, 16, 9, 0 }, { 96, 2048, 0, 4, 4, 19, 0 },
    { 64, 2048, 0, 4, 4, 19, -EINVAL },
  };
  size_t i;

  for (i = 0; i < sizeof rows / sizeof rows[0]; i++)
    check_row (&rows[i]);
}

/* The default is enough for four disks. */
static void
test_default (void **state)
{
  const struct row row = { 256, 64, 0, 4, 10, 0, 0 };
  struct backup_run run;

  assert_int_equal (share_out (&row, &run), 0);
  assert_int_equal (run.nr_parallel, 4);
  assert_int_equal (run.nr_threads, COPY_DEFAULT_THREADS);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_bound), cmocka_unit_test (test_default),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
