/* SPDX-License-Identifier: BSD-3-Clause */
/* The live disk: what is refused, in what order things happen, the bitmap
 * commands, and the disk as a node.
 */
#include "config.h"

#include "disk-util.h"

#define SIZE (MiB)

static void
test_names (void **state)
{
  static const char *const bad[] = {
    "", "a/b", "a b", "d\xc3\xa4", "a:b", "a\n",
  };
  static const char *const good[] = { "a", "vda", "vm-1_disk.0", "..." };
  char longest[DISK_NAME_MAX + 2];
  struct disk_options options = { .name = longest };
  struct error err = ERROR_INIT;
  struct disk *disk;

  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    options.name = bad[i];
    assert_int_equal (disk_new (debug_node (SIZE), &options, &disk, &err),
                      -EINVAL);
    assert_non_null (strstr (err.msg, "disk name"));
    /* Before anything is opened. */
    assert_int_equal (disk_open (&options, &disk, &err), -EINVAL);
  }
  for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
    options.name = good[i];
    assert_int_equal (disk_new (debug_node (SIZE), &options, &disk, &err), 0);
    assert_string_equal (disk_name (disk), good[i]);
    disk_close (disk);
  }
  options.name = memset (longest, 'x', sizeof longest);
  longest[DISK_NAME_MAX + 1] = '\0';
  assert_int_equal (disk_new (debug_node (SIZE), &options, &disk, &err),
                    -EINVAL);
  longest[DISK_NAME_MAX] = '\0';
  assert_int_equal (disk_new (debug_node (SIZE), &options, &disk, &err), 0);
  disk_close (disk);
}

static void
test_numbers_ascend (void **state)
{
  struct disk *a = debug_disk ("a", SIZE, CBW_BREAK_BACKUP);
  struct disk *b = debug_disk ("b", SIZE, CBW_BREAK_BACKUP);

  assert_true (disk_number (a) < disk_number (b));
  disk_close (a);
  disk_close (b);
}

static uint64_t
dirty_bytes (struct disk *disk, const char *name)
{
  struct dirty_bitmap *bm = dirty_find (disk_dirty (disk), name);
  struct dirty_info info;

  assert_non_null (bm);
  assert_int_equal (dirty_get_info (bm, &info), 0);
  free (info.name);
  dirty_unref (bm);
  return info.dirty_bytes;
}

static void
test_every_change_marks (void **state)
{
  struct disk *disk = debug_disk ("d", SIZE, CBW_BREAK_BACKUP);

  assert_int_equal (disk_bitmap_add (disk, "b", 4096, false, NULL), 0);
  assert_int_equal (disk_bitmap_add (disk, "off", 4096, true, NULL), 0);
  fill (disk, 4095, 2, 'x');
  assert_int_equal (dirty_bytes (disk, "b"), 8192);
  assert_int_equal (disk_zero (disk, 1, 3 * 4096, BLK_MAY_UNMAP), 0);
  assert_int_equal (dirty_bytes (disk, "b"), 12288);
  assert_int_equal (disk_trim (disk, 4096, 4 * 4096, 0), 0);
  assert_int_equal (dirty_bytes (disk, "b"), 16384);
  assert_int_equal (dirty_bytes (disk, "off"), 0);
  assert_int_equal (disk_flush (disk), 0);
  assert_int_equal (disk_cache (disk, SIZE, 0), 0);
  assert_int_equal (read_same (disk_blk (disk), 4096, 1), 'x');
  assert_int_equal (dirty_bytes (disk, "b"), 16384);
  disk_close (disk);
}

/* Neither reaches the bitmaps nor leaves anybody inside the gate. */
static void
test_refused (void **state)
{
  struct disk *disk = debug_disk ("d", SIZE, CBW_BREAK_BACKUP);
  char buf[16] = "";

  assert_int_equal (disk_bitmap_add (disk, "b", 4096, false, NULL), 0);
  assert_int_equal (disk_pwrite (disk, buf, 16, SIZE - 8, 0), -ENOSPC);
  assert_int_equal (disk_pwrite (disk, buf, 16, UINT64_MAX - 8, 0), -ENOSPC);
  assert_int_equal (disk_zero (disk, UINT64_MAX, 1, 0), -ENOSPC);
  assert_int_equal (disk_trim (disk, SIZE + 1, 0, 0), -ENOSPC);
  assert_int_equal (disk_pread (disk, buf, 16, SIZE - 8, 0), -EINVAL);
  assert_int_equal (disk_pwrite (disk, buf, 0, SIZE, 0), 0);
  assert_int_equal (disk_pwrite (disk, buf, 0, 0, 0), 0);
  assert_int_equal (dirty_bytes (disk, "b"), 0);
  assert_false (gate_is_entered (disk_gate (disk)));
  disk_close (disk);
}

/* A failed write leaves its bits set and the gate empty. */
static void
test_failed_write (void **state)
{
  struct disk *disk = debug_disk ("d", SIZE, CBW_BREAK_BACKUP);

  assert_int_equal (disk_bitmap_add (disk, "b", 4096, false, NULL), 0);
  blk_debug_fail_nth (disk_node (disk), BLK_DEBUG_ANY, 1, EIO, true);
  assert_int_equal (disk_pwrite (disk, "x", 1, 0, 0), -EIO);
  assert_int_equal (disk_trim (disk, 4096, 8192, 0), -EIO);
  assert_int_equal (disk_flush (disk), -EIO);
  assert_int_equal (dirty_bytes (disk, "b"), 8192);
  assert_false (gate_is_entered (disk_gate (disk)));
  assert_int_equal (disk_close (disk), -EIO);
}

static void
test_close_flushes (void **state)
{
  struct disk *disk = debug_disk ("d", SIZE, CBW_BREAK_BACKUP);

  blk_debug_fail_nth (disk_node (disk), BLK_DEBUG_FLUSH, 1, EIO, true);
  assert_int_equal (disk_close (disk), -EIO);
}

/* Exactly these requests reach the node. */
static void
test_requests_below (void **state)
{
  struct disk *disk = debug_disk ("d", SIZE, CBW_BREAK_BACKUP);
  struct blk *blk = disk_blk (disk), *node = disk_node (disk);
  CLEANUP_FREE char *trace = NULL;
  struct extents extents;
  char buf[16] = "";

  free (blk_debug_trace (node));
  assert_int_equal (blk_size (blk), SIZE);
  assert_int_equal (blk->can, node->can);
  assert_int_equal (blk_pwrite (blk, buf, 16, 32, 0), 0);
  assert_int_equal (blk_pread (blk, buf, 8, 32, 0), 0);
  assert_int_equal (blk_zero (blk, 512, 512, 0), 0);
  assert_int_equal (blk_trim (blk, 4096, 4096, 0), 0);
  assert_int_equal (blk_flush (blk), 0);
  extents_init (&extents, 2);
  assert_int_equal (blk_extents (blk, SIZE, 0, 0, BLK_STATUS_ALLOCATION,
                                 &extents), 0);
  extents_free (&extents);
  trace = blk_debug_trace (node);
  assert_string_equal (trace, "write 32+16\nread 32+8\nzero 512+512\n"
                       "trim 4096+4096\nflush\nextents 0+1048576");
  disk_close (disk);
}

static void
test_fua_reaches_the_node (void **state)
{
  struct disk *disk = debug_disk ("d", SIZE, CBW_BREAK_BACKUP);
  CLEANUP_FREE char *trace = NULL;

  free (blk_debug_trace (disk_node (disk)));
  assert_int_equal (disk_pwrite (disk, "x", 1, 0, BLK_FUA), 0);
  assert_int_equal (blk_pwrite (disk_blk (disk), "x", 1, 0, BLK_FUA), 0);
  trace = blk_debug_trace (disk_node (disk));
  assert_string_equal (trace, "write 0+1 fua\nwrite 0+1 fua");
  disk_close (disk);
}

static int
open_file_disk (bool is_read_only, struct disk **ret)
{
  char path[] = "/tmp/tidemark-disk-XXXXXX";
  struct disk_options options = {
    .name = "d", .file = path, .is_read_only = is_read_only,
  };
  int fd = mkstemp (path), r;

  assert_true (fd >= 0);
  assert_int_equal (ftruncate (fd, SIZE), 0);
  close (fd);
  r = disk_open (&options, ret, NULL);
  unlink (path);
  return r;
}

static void
test_read_only (void **state)
{
  struct disk *disk;
  char buf[8];

  assert_int_equal (open_file_disk (true, &disk), 0);
  assert_true (blk_is_read_only (disk_blk (disk)));
  assert_int_equal (disk_pread (disk, buf, 8, 0, 0), 0);
  assert_int_equal (disk_pwrite (disk, buf, 8, 0, 0), -EPERM);
  assert_int_equal (disk_zero (disk, 8, 0, 0), -EPERM);
  assert_int_equal (disk_trim (disk, 8, 0, 0), -EPERM);
  assert_int_equal (disk_flush (disk), 0);
  assert_int_equal (disk_close (disk), 0);
}

static void
test_open_file (void **state)
{
  struct disk *disk;
  struct disk_options missing = { .name = "d", .file = "/nonexistent/x" };
  struct error err = ERROR_INIT;

  assert_int_equal (open_file_disk (false, &disk), 0);
  fill (disk, 100, 1000, 'x');
  assert_int_equal (read_same (disk_blk (disk), 100, 1000), 'x');
  assert_int_equal (disk_default_granularity (disk), 65536);
  assert_int_equal (disk_close (disk), 0);
  assert_int_equal (disk_open (&missing, &disk, &err), -ENOENT);
  assert_non_null (strstr (err.msg, "/nonexistent/x"));
}

static void
test_bitmap_commands (void **state)
{
  struct disk *disk = debug_disk ("d", SIZE, CBW_BREAK_BACKUP);
  struct dirty_bitmap *source;
  struct error err = ERROR_INIT;

  assert_int_equal (disk_bitmap_add (disk, "b", 0, false, NULL), 0);
  assert_int_equal (disk_bitmap_add (disk, "b", 0, false, &err), -EEXIST);
  assert_string_equal (err.msg, "Bitmap already exists: b");
  fill (disk, 0, 1, 'x');
  assert_int_equal (dirty_bytes (disk, "b"), 65536);
  assert_int_equal (disk_bitmap_clear (disk, "b", NULL), 0);
  assert_int_equal (dirty_bytes (disk, "b"), 0);
  assert_int_equal (disk_bitmap_disable (disk, "b", NULL), 0);
  fill (disk, 0, 1, 'x');
  assert_int_equal (dirty_bytes (disk, "b"), 0);
  assert_int_equal (disk_bitmap_enable (disk, "b", NULL), 0);
  fill (disk, 0, 1, 'x');
  assert_int_equal (dirty_bytes (disk, "b"), 65536);
  assert_int_equal (disk_bitmap_add (disk, "c", 4096, true, NULL), 0);
  source = dirty_find (disk_dirty (disk), "b");
  assert_int_equal (disk_bitmap_merge (disk, "c", &source, 1, NULL), 0);
  dirty_unref (source);
  assert_int_equal (dirty_bytes (disk, "c"), 65536);
  assert_int_equal (disk_bitmap_remove (disk, "b", NULL), 0);
  assert_int_equal (disk_bitmap_remove (disk, "b", &err), -ENOENT);
  assert_int_equal (disk_bitmap_clear (disk, "no", &err), -ENOENT);
  assert_int_equal (disk_bitmap_enable (disk, "no", &err), -ENOENT);
  assert_int_equal (disk_bitmap_disable (disk, "no", &err), -ENOENT);
  assert_int_equal (disk_bitmap_merge (disk, "no", NULL, 0, &err), -ENOENT);
  /* The gate is open again after failures too. */
  fill (disk, 0, 1, 'x');
  disk_close (disk);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_names),
    cmocka_unit_test (test_numbers_ascend),
    cmocka_unit_test (test_every_change_marks),
    cmocka_unit_test (test_refused),
    cmocka_unit_test (test_failed_write),
    cmocka_unit_test (test_close_flushes),
    cmocka_unit_test (test_requests_below),
    cmocka_unit_test (test_fua_reaches_the_node),
    cmocka_unit_test (test_read_only),
    cmocka_unit_test (test_open_file),
    cmocka_unit_test (test_bitmap_commands),
  };

  limit_test_time ();
  log_set_handler (unit_ignore_log);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
