/* SPDX-License-Identifier: BSD-3-Clause */
/* The Nth allocation of session_begin fails, for N = 1, 2, 3 ... until none
 * does.  After each nothing has changed: bitmaps, views, gates, descriptors;
 * and the next session can begin.
 *
 * Linked with --wrap for the allocating functions.
 */
#include "config.h"

#include <dirent.h>

#include "disk-util.h"
#include "fault-alloc.h"

#define SIZE (MiB)

static unsigned
nr_descriptors (void)
{
  DIR *dir = opendir ("/proc/self/fd");
  unsigned n = 0;

  assert_non_null (dir);
  while (readdir (dir))
    n++;
  closedir (dir);
  return n;
}

static void
assert_unchanged (struct disk *disk, const char *name, uint64_t dirty_bytes)
{
  struct dirty_info *infos;
  CLEANUP_FREE char *trace = NULL;
  size_t nr;

  assert_int_equal (dirty_list (disk_dirty (disk), &infos, &nr), 0);
  assert_int_equal (nr, name ? 1 : 0);
  if (name) {
    assert_string_equal (infos[0].name, name);
    assert_int_equal (infos[0].state, DIRTY_RECORDING);
    assert_int_equal (infos[0].dirty_bytes, dirty_bytes);
    assert_false (infos[0].is_busy);
  }
  dirty_infos_free (infos, nr);
  assert_false (gate_is_closed (disk_gate (disk)));
  free (blk_debug_trace (disk_node (disk)));
  fill (disk, 0, 1, 'x');
  trace = blk_debug_trace (disk_node (disk));
  assert_string_equal (trace, "write 0+1");
}

static void
test_begin (void **state)
{
  struct disk *a = debug_disk ("a", SIZE, CBW_BREAK_BACKUP);
  struct disk *b = debug_disk ("b", SIZE, CBW_BREAK_BACKUP);
  struct session_disk_request rd[2] = {
    { .disk = b, .bitmap = "old", .mode = SESSION_AUTO },
    { .disk = a, .bitmap = "new", .mode = SESSION_AUTO },
  };
  struct session_request request = { .disks = rd, .nr_disks = 2 };
  struct session_manager *m;
  struct session *s;
  unsigned n, nr_fds;
  int r;

  assert_int_equal (session_manager_new (NULL, NULL, &m), 0);
  assert_int_equal (disk_bitmap_add (b, "old", 4096, false, NULL), 0);
  fill (b, 0, 1, 'x');
  nr_fds = nr_descriptors ();
  for (n = 1;; n++) {
    struct error err = ERROR_INIT;

    left = n;
    r = session_begin (m, &request, &s, &err);
    if (left > 0)
      break;
    assert_int_equal (r, -ENOMEM);
    assert_true (err.msg[0] != '\0');
    assert_unchanged (a, NULL, 0);
    assert_unchanged (b, "old", 4096);
    assert_false (session_uses_disk (m, a));
    assert_int_equal (nr_descriptors (), nr_fds);
  }
  left = 0;
  assert_int_equal (r, 0);
  assert_true (n > 15);
  assert_int_equal (session_end (m, session_id (s), true, NULL), 0);
  session_unref (s);
  session_manager_free (m);
  disk_close (a);
  disk_close (b);
}

/* The same of a guest's write that has to preserve old data: the view breaks,
 * the guest's data is right.
 */
static void
test_write (void **state)
{
  for (unsigned n = 1;; n++) {
    static char buf[SIZE];
    struct disk *disk = debug_disk ("d", SIZE, CBW_BREAK_BACKUP);
    struct cbw_view *view;
    struct cbw_view_info info;
    bool has_fired;

    /* So that memory below the disk has its pages. */
    fill (disk, 0, SIZE, 'a');
    view = full_view (disk);
    memset (buf, 'x', SIZE);
    left = n;
    assert_int_equal (disk_pwrite (disk, buf, SIZE, 0, 0), 0);
    has_fired = left == 0;
    left = 0;
    cbw_view_get_info (view, &info);
    assert_true (info.error == 0 || (has_fired && info.error == -ENOMEM));
    assert_int_equal (read_same (disk_blk (disk), 0, SIZE), 'x');
    end_view (disk, view);
    disk_close (disk);
    if (!has_fired) {
      assert_true (n > 1);
      break;
    }
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_begin),
    cmocka_unit_test (test_write),
  };

  limit_test_time ();
  log_set_handler (unit_ignore_log);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
