/* SPDX-License-Identifier: BSD-3-Clause */
/* Views of a disk: what they hold, what they show, what they cost. */
#include "config.h"

#include "blk-scratch.h"
#include "disk-util.h"

static struct cbw_view *
new_view (struct disk *disk, const struct cbw_options *given,
          const struct bitmap *held)
{
  struct cbw_options options = *given;
  struct cbw_view *view;

  assert_int_equal (cbw_view_new (disk_cbw (disk), &options, &view, NULL), 0);
  start_view (disk, view, held);
  return view;
}

static uint64_t
scratch_bytes (struct cbw_view *view)
{
  struct cbw_view_info info;

  cbw_view_get_info (view, &info);
  return info.scratch_bytes;
}

static int
view_error (struct cbw_view *view)
{
  struct cbw_view_info info;

  cbw_view_get_info (view, &info);
  return info.error;
}

/* Can the range be read?  If so it must be byte. */
static bool
shows (struct cbw_view *view, uint64_t off, uint64_t len, int byte)
{
  CLEANUP_FREE unsigned char *buf = malloc (len);
  int r = blk_pread (cbw_view_blk (view), buf, len, off, 0);

  if (r == -EIO)
    return false;
  assert_int_equal (r, 0);
  for (uint64_t i = 0; i < len; i++)
    assert_int_equal (buf[i], byte);
  return true;
}

static void
test_full_view_keeps_the_point (void **state)
{
  struct disk *disk = debug_disk ("d", 16 * BLOCK, CBW_BREAK_BACKUP);
  struct cbw_view *view;

  fill (disk, 0, 16 * BLOCK, 'a');
  view = full_view (disk);
  fill (disk, 3 * BLOCK + 5, 10, 'b');
  fill (disk, 8 * BLOCK, 2 * BLOCK, 'b');
  assert_int_equal (disk_zero (disk, BLOCK, 12 * BLOCK, 0), 0);
  assert_int_equal (disk_trim (disk, BLOCK, 14 * BLOCK, 0), 0);
  assert_true (shows (view, 0, 16 * BLOCK, 'a'));
  assert_true (shows (view, 3 * BLOCK + 7, 100, 'a'));
  assert_int_equal (read_same (disk_blk (disk), 3 * BLOCK + 5, 10), 'b');
  /* A second write of the same block must not overwrite the old data. */
  fill (disk, 3 * BLOCK, BLOCK, 'c');
  assert_true (shows (view, 0, 16 * BLOCK, 'a'));
  end_view (disk, view);
  assert_int_equal (disk_close (disk), 0);
}

static void
test_only_touched_blocks_are_copied_once (void **state)
{
  struct disk *disk = debug_disk ("d", 64 * BLOCK, CBW_BREAK_BACKUP);
  struct blk *node = disk_node (disk);
  struct cbw_view *view;
  CLEANUP_FREE char *t0 = NULL, *t1 = NULL, *t2 = NULL;

  fill (disk, 0, 64 * BLOCK, 'a');
  view = full_view (disk);
  t0 = blk_debug_trace (node);
  fill (disk, 4 * BLOCK + 100, 8, 'b');
  t1 = blk_debug_trace (node);
  assert_string_equal (t1, "read 16384+4096\nwrite 16484+8");
  fill (disk, 4 * BLOCK + 200, 8, 'b');
  t2 = blk_debug_trace (node);
  assert_string_equal (t2, "write 16584+8");
  assert_int_equal (scratch_bytes (view), BLOCK);
  end_view (disk, view);
  disk_close (disk);
}

static void
test_zeroes_take_no_scratch (void **state)
{
  struct disk *disk = debug_disk ("d", 16 * BLOCK, CBW_BREAK_BACKUP);
  struct cbw_view *view;

  fill (disk, 4 * BLOCK, BLOCK, 'a');
  view = full_view (disk);
  fill (disk, 0, 16 * BLOCK, 'b');
  assert_int_equal (scratch_bytes (view), BLOCK);
  assert_true (shows (view, 0, 4 * BLOCK, 0));
  assert_true (shows (view, 4 * BLOCK, BLOCK, 'a'));
  assert_true (shows (view, 5 * BLOCK, 11 * BLOCK, 0));
  end_view (disk, view);
  disk_close (disk);
}

/* Held granules are rounded out to the cluster; nothing else can be read. */
static void
test_dirty_view_holds_rounded_granules (void **state)
{
  static const struct { uint64_t gran, cluster, first, end; } cases[] = {
    /* One dirty granule at 100 KiB; what is held, in KiB. */
    { 512, 0, 100, 104 }, { 4 * KiB, 0, 100, 104 },
    { 32 * KiB, 0, 96, 128 }, { 4 * KiB, 64 * KiB, 64, 128 },
    { 512, 128 * KiB, 0, 128 }, { 64 * KiB, 16 * KiB, 64, 128 },
    { 4 * KiB, MiB, 0, 250 },
  };
  const uint64_t size = 250 * KiB;

  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    struct disk *disk = debug_disk ("d", size, CBW_BREAK_BACKUP);
    struct cbw_options options = { .cluster_size = cases[i].cluster };
    struct cbw_view *view;
    struct bitmap *held;

    fill (disk, 0, size, 'a');
    assert_int_equal (bitmap_new (size, cases[i].gran, &held), 0);
    bitmap_set (held, 100 * KiB, 1);
    view = new_view (disk, &options, held);
    for (int pass = 0; pass < 2; pass++) {
      for (uint64_t off = 0; off < size; off += 512) {
        bool is_held = off >= cases[i].first * KiB
          && off < cases[i].end * KiB;

        assert_int_equal (shows (view, off, 512, 'a'), is_held);
      }
      fill (disk, 0, size, 'b');
    }
    assert_int_equal (scratch_bytes (view),
                      (cases[i].end - cases[i].first) * KiB);
    /* A read that leaves the held set fails, it is not cut. */
    if (cases[i].end * KiB < size)
      assert_false (shows (view, cases[i].end * KiB - 512, 1024, 'a'));
    end_view (disk, view);
    bitmap_free (held);
    disk_close (disk);
  }
}

static void
test_reader_gives_up (void **state)
{
  struct disk *disk = debug_disk ("d", 16 * BLOCK + 512, CBW_BREAK_BACKUP);
  struct blk *node = disk_node (disk);
  struct cbw_view *view;
  struct blk *blk;
  CLEANUP_FREE char *t0 = NULL, *t1 = NULL;

  fill (disk, 0, 16 * BLOCK + 512, 'a');
  view = full_view (disk);
  blk = cbw_view_blk (view);
  fill (disk, 0, 4 * BLOCK, 'b');
  assert_int_equal (scratch_bytes (view), 4 * BLOCK);

  /* Only whole blocks go. */
  assert_int_equal (blk_trim (blk, 2 * BLOCK, BLOCK / 2, 0), 0);
  assert_int_equal (scratch_bytes (view), 3 * BLOCK);
  assert_true (shows (view, 0, BLOCK, 'a'));
  assert_false (shows (view, BLOCK, BLOCK, 'a'));
  assert_true (shows (view, 2 * BLOCK, BLOCK, 'a'));
  assert_int_equal (blk_trim (blk, 2 * BLOCK, BLOCK / 2, 0), 0);
  assert_int_equal (scratch_bytes (view), 3 * BLOCK);

  /* What was given up before it was copied never is; so is the tail. */
  assert_int_equal (blk_trim (blk, 6 * BLOCK + 512, 10 * BLOCK, 0), 0);
  t0 = blk_debug_trace (node);
  fill (disk, 10 * BLOCK, 6 * BLOCK + 512, 'c');
  t1 = blk_debug_trace (node);
  assert_string_equal (t1, "write 40960+25088");
  assert_false (shows (view, 16 * BLOCK, 512, 'a'));
  assert_int_equal (blk_trim (blk, blk_size (blk), 0, 0), 0);
  assert_int_equal (scratch_bytes (view), 0);
  end_view (disk, view);
  disk_close (disk);
}

static void
test_view_cannot_be_written (void **state)
{
  struct disk *disk = debug_disk ("d", MiB, CBW_BREAK_BACKUP);
  struct cbw_view *view = full_view (disk);
  struct blk *blk = cbw_view_blk (view);

  assert_int_equal (blk_pwrite (blk, "x", 1, 0, 0), -EPERM);
  assert_int_equal (blk_zero (blk, 1, 0, 0), -EPERM);
  assert_int_equal (blk_pread (blk, &(char) { 0 }, 1, MiB, 0), -EINVAL);
  end_view (disk, view);
  disk_close (disk);
}

static void
test_scratch_limit_breaks_the_view (void **state)
{
  struct disk *disk = debug_disk ("d", MiB, CBW_BREAK_BACKUP);
  struct cbw_options options = { .scratch_limit = 2 * BLOCK };
  struct cbw_view *view;

  fill (disk, 0, MiB, 'a');
  view = new_view (disk, &options, NULL);
  fill (disk, 0, 2 * BLOCK, 'b');
  assert_int_equal (view_error (view), 0);
  /* What is given up can be used again. */
  assert_int_equal (blk_trim (cbw_view_blk (view), BLOCK, 0, 0), 0);
  fill (disk, 8 * BLOCK, BLOCK, 'b');
  assert_int_equal (view_error (view), 0);
  assert_true (shows (view, 8 * BLOCK, 4 * BLOCK, 'a'));
  fill (disk, 9 * BLOCK, BLOCK, 'b');
  assert_int_equal (view_error (view), -ENOSPC);
  assert_int_equal (read_same (disk_blk (disk), 8 * BLOCK, 2 * BLOCK), 'b');
  assert_false (shows (view, 8 * BLOCK, BLOCK, 'a'));
  assert_false (shows (view, 20 * BLOCK, BLOCK, 'a'));
  end_view (disk, view);
  disk_close (disk);
}

static void
test_scratch_limit_fails_the_write (void **state)
{
  struct disk *disk = debug_disk ("d", MiB, CBW_BREAK_BACKUP);
  struct cbw_options options = {
    .scratch_limit = BLOCK, .on_error = CBW_BREAK_GUEST_WRITE,
  };
  struct cbw_view *view;
  char buf[8] = "b";

  fill (disk, 0, MiB, 'a');
  view = new_view (disk, &options, NULL);
  fill (disk, 0, 1, 'b');
  assert_int_equal (disk_pwrite (disk, buf, 8, BLOCK, 0), -ENOSPC);
  assert_int_equal (read_same (disk_blk (disk), BLOCK, BLOCK), 'a');
  assert_int_equal (view_error (view), 0);
  assert_true (shows (view, 0, MiB, 'a'));
  assert_int_equal (scratch_bytes (view), BLOCK);
  /* Once there is room it goes on. */
  assert_int_equal (blk_trim (cbw_view_blk (view), BLOCK, 0, 0), 0);
  assert_int_equal (disk_pwrite (disk, buf, 8, BLOCK, 0), 0);
  assert_true (shows (view, BLOCK, MiB - BLOCK, 'a'));
  end_view (disk, view);
  disk_close (disk);
}

static void
test_stopped_view_cannot_be_read (void **state)
{
  struct disk *disk = debug_disk ("d", MiB, CBW_BREAK_BACKUP);
  struct cbw_view *view = full_view (disk);
  struct extents extents;
  char buf[8];

  stop_view (disk, view);
  extents_init (&extents, 10);
  assert_int_equal (blk_pread (cbw_view_blk (view), buf, 8, 0, 0),
                    -ESHUTDOWN);
  assert_int_equal (blk_trim (cbw_view_blk (view), MiB, 0, 0), -ESHUTDOWN);
  assert_int_equal (blk_extents (cbw_view_blk (view), MiB, 0, 0,
                                 BLK_STATUS_ALLOCATION, &extents),
                    -ESHUTDOWN);
  extents_free (&extents);
  cbw_view_discard (view);
  assert_int_equal (scratch_bytes (view), 0);
  cbw_view_free (view);
  disk_close (disk);
}

static void
test_several_views_at_once (void **state)
{
  struct disk *disk = debug_disk ("d", 8 * BLOCK, CBW_BREAK_BACKUP);
  struct cbw_view *views[4];

  for (int i = 0; i < 4; i++) {
    fill (disk, 0, 8 * BLOCK, 'a' + i);
    views[i] = full_view (disk);
  }
  fill (disk, 0, 6 * BLOCK, 'z');
  end_view (disk, views[1]);
  fill (disk, 0, 8 * BLOCK, 'y');
  for (int i = 0; i < 4; i++)
    if (i != 1)
      assert_true (shows (views[i], 0, 8 * BLOCK, 'a' + i));
  end_view (disk, views[3]);
  end_view (disk, views[0]);
  end_view (disk, views[2]);
  disk_close (disk);
}

/* Extents tell the point, whatever has become of the disk. */
static void
test_extents (void **state)
{
  struct disk *disk = debug_disk ("d", 16 * MiB, CBW_BREAK_BACKUP);
  const uint32_t hole = EXTENT_HOLE | EXTENT_ZERO;
  static const uint64_t ends[] = { 2, 4, 8, 9, 16 };
  struct cbw_view *view;
  struct extents extents;

  fill (disk, 2 * MiB, 2 * MiB, 'a');
  fill (disk, 8 * MiB, MiB, 'a');
  view = full_view (disk);
  for (int pass = 0; pass < 3; pass++) {
    extents_init (&extents, 100);
    assert_int_equal (blk_extents (cbw_view_blk (view), 16 * MiB, 0, 0,
                                   BLK_STATUS_ALLOCATION, &extents), 0);
    assert_int_equal (extents.len, 5);
    for (size_t i = 0; i < 5; i++) {
      assert_int_equal (extents.ptr[i].off + extents.ptr[i].len,
                        ends[i] * MiB);
      assert_int_equal (extents.ptr[i].value, i % 2 ? 0 : hole);
    }
    extents_free (&extents);
    if (pass == 0)
      assert_int_equal (disk_trim (disk, 4 * MiB, 3 * MiB, 0), 0);
    else
      fill (disk, 0, 16 * MiB, 'b');
  }
  extents_init (&extents, 100);
  assert_int_equal (blk_extents (cbw_view_blk (view), 16 * MiB, 0, BLK_ONE,
                                 BLK_STATUS_ALLOCATION, &extents), 0);
  assert_int_equal (extents.len, 1);
  assert_int_equal (extents.ptr[0].len, 2 * MiB);
  extents_free (&extents);
  extents_init (&extents, 2);
  assert_int_equal (blk_extents (cbw_view_blk (view), 16 * MiB, 0, 0,
                                 BLK_STATUS_ALLOCATION, &extents), 0);
  assert_int_equal (extents.len, 2);
  extents_free (&extents);
  end_view (disk, view);
  disk_close (disk);
}

/* However many blocks were copied, the disk is asked once: the end of a file's
 * data may be far to seek.
 */
static void
test_extents_asked_once (void **state)
{
  struct disk *disk = debug_disk ("d", 64 * BLOCK, CBW_BREAK_BACKUP);
  struct cbw_view *view;
  struct extents extents;
  CLEANUP_FREE char *before = NULL, *trace = NULL;

  fill (disk, 0, 64 * BLOCK, 'a');
  view = full_view (disk);
  for (uint64_t i = 0; i < 64; i += 2)
    fill (disk, i * BLOCK, BLOCK, 'b');
  before = blk_debug_trace (disk_node (disk));
  extents_init (&extents, 100);
  assert_int_equal (blk_extents (cbw_view_blk (view), 64 * BLOCK, 0, 0,
                                 BLK_STATUS_ALLOCATION, &extents), 0);
  assert_int_equal (extents.len, 1);
  assert_int_equal (extents_length (&extents), 64 * BLOCK);
  extents_free (&extents);
  trace = blk_debug_trace (disk_node (disk));
  assert_string_equal (trace, "extents 4096+258048");
  end_view (disk, view);
  disk_close (disk);
}

/* Outside the held set nothing is ever called a hole. */
static void
test_extents_outside (void **state)
{
  struct disk *disk = debug_disk ("d", MiB, CBW_BREAK_BACKUP);
  struct cbw_options options = { .cluster_size = 0 };
  struct cbw_view *view;
  struct bitmap *held;
  struct extents extents;

  assert_int_equal (bitmap_new (MiB, 64 * KiB, &held), 0);
  bitmap_set (held, 128 * KiB, 1);
  view = new_view (disk, &options, held);
  extents_init (&extents, 100);
  assert_int_equal (blk_extents (cbw_view_blk (view), MiB, 0, 0,
                                 BLK_STATUS_ALLOCATION, &extents), 0);
  assert_int_equal (extents.len, 3);
  assert_int_equal (extents.ptr[0].value, 0);
  assert_int_equal (extents.ptr[0].len, 128 * KiB);
  assert_int_equal (extents.ptr[1].value, EXTENT_HOLE | EXTENT_ZERO);
  assert_int_equal (extents.ptr[1].len, 64 * KiB);
  assert_int_equal (extents.ptr[2].value, 0);
  extents_free (&extents);
  end_view (disk, view);
  bitmap_free (held);
  disk_close (disk);
}

/* A node whose hole ends within a block; writes are lost. */
#define ODD_END 300000

static int
odd_close (struct blk *blk)
{
  blk_fini (blk);
  free (blk);
  return 0;
}

static int
odd_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
           unsigned flags)
{
  for (uint64_t i = 0; i < len; i++)
    ((char *) buf)[i] = off + i < ODD_END ? 0 : 'a';
  return 0;
}

static int
odd_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  return 0;
}

static int
odd_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
             enum blk_status status, struct extents *extents)
{
  if (off >= ODD_END)
    return extents_add (extents, off, len, 0) < 0 ? -ENOMEM : 0;
  return extents_add (extents, off, MIN (len, ODD_END - off),
                      EXTENT_HOLE | EXTENT_ZERO) < 0 ? -ENOMEM : 0;
}

static void
test_hole_that_ends_within_a_block (void **state)
{
  static const struct blk_driver driver = {
    .name = "odd", .close = odd_close, .pread = odd_pread,
    .pwrite = odd_pwrite, .extents = odd_extents,
  };
  struct disk_options options = { .name = "d" };
  struct blk *node = calloc (1, sizeof *node);
  struct disk *disk;
  struct cbw_view *view;

  assert_int_equal (blk_init (node, &driver, "odd", NULL, MiB,
                              BLK_CAN_EXTENTS), 0);
  assert_int_equal (disk_new (node, &options, &disk, NULL), 0);
  view = full_view (disk);
  fill (disk, 0, MiB, 'b');
  assert_true (shows (view, 0, ODD_END, 0));
  assert_true (shows (view, ODD_END, MiB - ODD_END, 'a'));
  assert_int_equal (scratch_bytes (view),
                    MiB - round_down (ODD_END, BLOCK));
  end_view (disk, view);
  disk_close (disk);
}

static uint64_t
resident_bytes (void)
{
  CLEANUP_FCLOSE FILE *fp = fopen ("/proc/self/statm", "r");
  unsigned long long resident;

  assert_non_null (fp);
  assert_int_equal (fscanf (fp, "%*u %llu", &resident), 1);
  return resident * (uint64_t) sysconf (_SC_PAGESIZE);
}

/* Taking a view of a large disk, trimming it and giving it up again touches
 * no memory to speak of and takes no time that grows with it.
 */
static void
test_large_disk (void **state)
{
  const uint64_t size = UINT64_C (16) << 40;
  struct disk *disk = debug_disk ("d", size, CBW_BREAK_BACKUP);
  struct cbw_view *view;
  struct blk *blk;
  uint64_t before;

  fill (disk, size - BLOCK, BLOCK, 'a');
  before = resident_bytes ();
  view = full_view (disk);
  blk = cbw_view_blk (view);
  assert_int_equal (disk_trim (disk, MiB << 10, size - (MiB << 10), 0), 0);
  assert_int_equal (scratch_bytes (view), BLOCK);
  assert_true (shows (view, size - BLOCK, BLOCK, 'a'));
  assert_true (shows (view, size - MiB, BLOCK, 0));
  /* Units are larger here: less than one does not go, and that is harmless. */
  assert_int_equal (blk_trim (blk, BLOCK, size / 2 + BLOCK, 0), 0);
  assert_true (shows (view, size / 2 + BLOCK, BLOCK, 0));
  assert_int_equal (blk_trim (blk, 64 * KiB, size - 64 * KiB, 0), 0);
  assert_false (shows (view, size - BLOCK, BLOCK, 'a'));
  assert_int_equal (scratch_bytes (view), 0);
  assert_true (resident_bytes () < before + 8 * MiB);
  end_view (disk, view);
  disk_close (disk);
}

/* The scratch node itself, over the seam between two of its files. */
static void
test_scratch_files (void **state)
{
  const uint64_t seam = UINT64_C (1) << 40, size = 4 * seam;
  CLEANUP_FREE unsigned char *buf = malloc (4 * BLOCK);
  struct blk *scratch;
  struct error err = ERROR_INIT;

  assert_int_equal (blk_scratch_open ("/tmp", size, &scratch, NULL), 0);
  assert_int_equal (read_same (scratch, seam - BLOCK, 2 * BLOCK), 0);
  memset (buf, 'x', 2 * BLOCK);
  assert_int_equal (blk_pwrite (scratch, buf, 2 * BLOCK, seam - BLOCK, 0), 0);
  assert_int_equal (read_same (scratch, seam - BLOCK, 2 * BLOCK), 'x');
  assert_int_equal (read_same (scratch, seam + BLOCK, BLOCK), 0);
  assert_int_equal (read_same (scratch, 0, BLOCK), 0);
  assert_int_equal (read_same (scratch, seam - 2 * BLOCK, BLOCK), 0);
  /* Just written: it is there without waiting. */
  assert_int_equal (blk_pread (scratch, buf, 4 * BLOCK, seam - 2 * BLOCK,
                               BLK_NOWAIT), 0);
  assert_int_equal (buf[0], 0);
  assert_int_equal (buf[BLOCK], 'x');
  assert_int_equal (blk_trim (scratch, 3 * BLOCK, seam - 3 * BLOCK, 0), 0);
  assert_int_equal (read_same (scratch, seam - BLOCK, BLOCK), 0);
  assert_int_equal (read_same (scratch, seam, BLOCK), 'x');
  assert_int_equal (blk_trim (scratch, size, 0, 0), 0);
  assert_int_equal (read_same (scratch, seam, BLOCK), 0);
  blk_close (scratch);
  assert_int_equal (blk_scratch_open ("/tmp", UINT64_C (1) << 60, &scratch,
                                      &err), -EFBIG);
  assert_int_equal (blk_scratch_open ("/dev/null", size, &scratch, &err),
                    -ENOTDIR);
  assert_non_null (strstr (err.msg, "/dev/null"));
}

static void
test_bad_options (void **state)
{
  struct disk *disk = debug_disk ("d", MiB, CBW_BREAK_BACKUP);
  struct cbw_options options = { .cluster_size = 12345 };
  struct cbw_view *view;
  struct error err = ERROR_INIT;

  assert_int_equal (cbw_view_new (disk_cbw (disk), &options, &view, &err),
                    -EINVAL);
  assert_non_null (strstr (err.msg, "12345"));
  options = (struct cbw_options) { .scratch_dir = "/nonexistent/dir" };
  assert_int_equal (cbw_view_new (disk_cbw (disk), &options, &view, &err),
                    -ENOENT);
  assert_non_null (strstr (err.msg, "/nonexistent/dir"));
  disk_close (disk);
}

/* Random changes and trims against a copy of the point, block states known. */
static void
test_model (void **state)
{
  enum { NR = 64 };
  const uint64_t size = NR * BLOCK - 1000;
  uint64_t seed = test_seed ();

  for (int round = 0; round < 20; round++) {
    struct disk *disk = debug_disk ("d", size, CBW_BREAK_BACKUP);
    CLEANUP_FREE unsigned char *point = malloc (size);
    CLEANUP_FREE unsigned char *buf = malloc (size);
    bool given_up[NR] = { false };
    struct cbw_view *view;

    for (int i = 0; i < NR; i += 1 + (int) (rnd (&seed) % 3))
      fill (disk, (uint64_t) i * BLOCK, MIN (BLOCK, size - i * BLOCK),
            1 + (int) (rnd (&seed) % 200));
    assert_int_equal (disk_pread (disk, point, size, 0, 0), 0);
    view = full_view (disk);
    for (int step = 0; step < 60; step++) {
      uint64_t off = rnd (&seed) % size;
      uint64_t len = 1 + rnd (&seed) % MIN (size - off, 9 * BLOCK);
      bool is_outside = false;
      int r;

      switch (rnd (&seed) % 5) {
      case 0:
        assert_int_equal (disk_trim (disk, len, off, 0), 0);
        break;
      case 1:
        assert_int_equal (disk_zero (disk, len, off, BLK_MAY_UNMAP), 0);
        break;
      case 2:
        assert_int_equal (blk_trim (cbw_view_blk (view), len, off, 0), 0);
        for (uint64_t i = 0; i < NR; i++)
          if (i * BLOCK >= off
              && MIN ((i + 1) * BLOCK, size) <= off + len)
            given_up[i] = true;
        break;
      default:
        fill (disk, off, len, 201 + (int) (rnd (&seed) % 50));
      }
      off = rnd (&seed) % size;
      len = 1 + rnd (&seed) % (size - off);
      for (uint64_t i = off / BLOCK; i * BLOCK < off + len; i++)
        is_outside |= given_up[i];
      r = blk_pread (cbw_view_blk (view), buf, len, off, 0);
      assert_int_equal (r, is_outside ? -EIO : 0);
      if (r == 0)
        assert_memory_equal (buf, point + off, len);
    }
    end_view (disk, view);
    disk_close (disk);
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_full_view_keeps_the_point),
    cmocka_unit_test (test_only_touched_blocks_are_copied_once),
    cmocka_unit_test (test_zeroes_take_no_scratch),
    cmocka_unit_test (test_dirty_view_holds_rounded_granules),
    cmocka_unit_test (test_reader_gives_up),
    cmocka_unit_test (test_view_cannot_be_written),
    cmocka_unit_test (test_scratch_limit_breaks_the_view),
    cmocka_unit_test (test_scratch_limit_fails_the_write),
    cmocka_unit_test (test_stopped_view_cannot_be_read),
    cmocka_unit_test (test_several_views_at_once),
    cmocka_unit_test (test_extents),
    cmocka_unit_test (test_extents_asked_once),
    cmocka_unit_test (test_extents_outside),
    cmocka_unit_test (test_hole_that_ends_within_a_block),
    cmocka_unit_test (test_large_disk),
    cmocka_unit_test (test_scratch_files),
    cmocka_unit_test (test_bad_options),
    cmocka_unit_test (test_model),
  };

  limit_test_time ();
  log_set_handler (unit_ignore_log);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
