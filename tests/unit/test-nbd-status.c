/* SPDX-License-Identifier: BSD-3-Clause */
/* Block status of several ranges at once (blk-nbd.h). */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "blk-nbd.h"
#include "fake-nbd.h"
#include "unit.h"

#define MIB UINT64_C (1048576)

static char tmp[] = "/tmp/tidemark-test.XXXXXX";
static char sock[64], uri[128];

static struct blk *
open_fake (void)
{
  static const char *const contexts[] = { "x:one" };
  const struct blk_nbd_options o = {
    .uri = uri, .nr_connections = 1, .contexts = contexts, .nr_contexts = 1,
  };
  struct error err = ERROR_INIT;
  struct blk *blk = NULL;

  if (blk_nbd_open (&o, &blk, &err) < 0)
    fail_msg ("%s", err.msg);
  return blk;
}

/* Several ranges at once: the server of this test waits for all of them, and
 * answers the last one first.
 */
static void
check_many (enum fake_nbd_lie lie, int error)
{
  const uint64_t len = MIB / FAKE_NBD_GROUP;
  struct fake_nbd *f = fake_nbd_start (sock, lie);
  struct blk *blk = open_fake ();
  struct blk_nbd_range ranges[FAKE_NBD_GROUP];
  struct extents lists[FAKE_NBD_GROUP][2];
  size_t i, j;

  for (i = 0; i < FAKE_NBD_GROUP; i++) {
    for (j = 0; j < 2; j++)
      extents_init (&lists[i][j], 100);
    ranges[i] = (struct blk_nbd_range) {
      .off = i * len, .len = len, .lists = lists[i],
    };
  }
  assert_int_equal (blk_nbd_block_status_many (blk, ranges, FAKE_NBD_GROUP,
                                               2), error);
  for (i = 0; i < FAKE_NBD_GROUP; i++)
    for (j = 0; j < 2; j++) {
      if (error == 0) {
        assert_int_equal (lists[i][j].ptr[0].off, i * len);
        assert_int_equal (extents_length (&lists[i][j]), len);
        assert_int_equal (lists[i][j].ptr[1].value, 1);
      }
      extents_free (&lists[i][j]);
    }
  ranges[FAKE_NBD_GROUP - 1].len = len + 1;
  assert_int_equal (blk_nbd_block_status_many (blk, ranges, FAKE_NBD_GROUP,
                                               2), -EINVAL);
  blk_close (blk);
  fake_nbd_stop (f);
}

static void
test_status_many (void **state)
{
  check_many (FAKE_LAST_FIRST, 0);
  check_many (FAKE_FAILED_STATUS, -EIO);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_status_many),
  };
  int r;

  unit_start ();
  if (!mkdtemp (tmp))
    return 1;
  snprintf (sock, sizeof sock, "%s/s", tmp);
  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", sock);
  r = cmocka_run_group_tests (tests, NULL, NULL);
  unlink (sock);
  rmdir (tmp);
  return r;
}
