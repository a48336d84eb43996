/* SPDX-License-Identifier: BSD-3-Clause */
/* Random requests to a block device against an array of bytes.
 *
 *   blk-device DEVICE      destroys what is on it
 *   blk-device ro DEVICE   it must be refused for writing as read-only
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "blk-file.h"
#include "unit/disk-model.h"

static const char *path;
static bool is_read_only;

static void
test_model (void **state)
{
  struct error err = ERROR_INIT;
  struct disk_model m;
  struct blk *blk, *second;
  unsigned i;

  if (blk_file_open (path, 0, &blk, &err) < 0)
    fail_msg ("%s", err.msg);
  /* Zeroes that keep their space are not always fast on a device. */
  assert_int_equal (blk_zero (blk, blk_size (blk), 0, BLK_FAST),
                    -EOPNOTSUPP);
  assert_int_equal (blk_zero (blk, blk_size (blk), 0, 0), 0);
  disk_model_init (&m, blk, 7);
  for (i = 0; i < 60; i++) {
    disk_model_step (&m);
    disk_model_check (&m);
  }
  disk_model_free (&m);
  assert_int_equal (blk_file_open (path, 0, &second, &err), -EBUSY);
  assert_int_equal (blk_resize (blk, 4096), -ENOTSUP);
  assert_int_equal (blk_resize (blk, blk_size (blk)), 0);
  assert_int_equal (blk_close (blk), 0);
}

static void
test_read_only (void **state)
{
  struct error err = ERROR_INIT;
  struct blk *blk;

  assert_true (blk_file_open (path, 0, &blk, &err) < 0);
  assert_non_null (strstr (err.msg, path));
  if (blk_file_open (path, BLK_FILE_READ_ONLY, &blk, &err) < 0)
    fail_msg ("%s", err.msg);
  assert_true (blk_is_read_only (blk));
  assert_int_equal (blk_close (blk), 0);
}

int
main (int argc, char *argv[])
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_model),
  };
  const struct CMUnitTest read_only_tests[] = {
    cmocka_unit_test (test_read_only),
  };

  is_read_only = argc == 3 && strcmp (argv[1], "ro") == 0;
  if (argc != 2 && !is_read_only) {
    fprintf (stderr, "usage: %s [ro] DEVICE\n", argv[0]);
    return 1;
  }
  path = argv[argc - 1];
  unit_start ();
  return is_read_only ? cmocka_run_group_tests (read_only_tests, NULL, NULL)
    : cmocka_run_group_tests (tests, NULL, NULL);
}
