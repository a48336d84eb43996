/* SPDX-License-Identifier: BSD-3-Clause */
/* block/blk-file on tmpfs and on the file system of the build tree: contents,
 * extents, resize, locks, and everything that cannot be opened.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "blk-file.h"
#include "unit/disk-model.h"

/* Where files are made; each test runs in both. */
static char dirs[2][64] = { "/dev/shm/tidemark-test.XXXXXX",
                            "./tidemark-test.XXXXXX" };
static const char *dir;
static char path[128];

/* Set path to a file of size bytes, all hole. */
static void
make_file (uint64_t size)
{
  int fd;

  snprintf (path, sizeof path, "%s/disk", dir);
  fd = open (path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
  assert_true (fd >= 0);
  assert_int_equal (ftruncate (fd, (off_t) size), 0);
  close (fd);
}

static struct blk *
open_file (unsigned flags)
{
  struct error err = ERROR_INIT;
  struct blk *blk;

  if (blk_file_open (path, flags, &blk, &err) < 0)
    fail_msg ("%s", err.msg);
  return blk;
}

static void
expect_error (const char *name, unsigned flags, int errnum, const char *text)
{
  struct error err = ERROR_INIT;
  struct blk *blk;
  int r = blk_file_open (name, flags, &blk, &err);

  if (r != -errnum || err.errnum != errnum)
    fail_msg ("%s: %d instead of %d: %s", name, r, -errnum, err.msg);
  if (!strstr (err.msg, name) || !strstr (err.msg, text))
    fail_msg ("%s: no \"%s\" in: %s", name, text, err.msg);
  assert_int_equal (blk_file_open (name, flags, &blk, NULL), -errnum);
}

static void
test_model (void **state)
{
  struct disk_model m;
  struct blk *blk;
  unsigned i;

  make_file (100352);
  blk = open_file (0);
  disk_model_init (&m, blk, 3);
  disk_model_check (&m);
  for (i = 0; i < 300; i++) {
    disk_model_step (&m);
    disk_model_check (&m);
  }
  assert_int_equal (blk_close (blk), 0);

  /* It is all in the file. */
  blk = open_file (BLK_FILE_READ_ONLY);
  m.blk = blk;
  disk_model_check (&m);
  assert_int_equal (blk_pwrite (blk, "x", 1, 0, 0), -EPERM);
  assert_int_equal (blk_flush (blk), 0);
  disk_model_free (&m);
  assert_int_equal (blk_close (blk), 0);
  unlink (path);
}

static void
expect_extents (struct blk *blk, unsigned flags, enum blk_status status,
                size_t nr, const struct extent *expected)
{
  struct extents e;
  size_t i;

  extents_init (&e, 100);
  assert_int_equal (blk_extents (blk, blk_size (blk), 0, flags, status, &e),
                    0);
  assert_int_equal (e.len, nr);
  for (i = 0; i < nr; i++) {
    assert_int_equal (e.ptr[i].off, expected[i].off);
    assert_int_equal (e.ptr[i].len, expected[i].len);
    assert_int_equal (e.ptr[i].value, expected[i].value);
  }
  extents_free (&e);
}

static void
test_extents (void **state)
{
  const unsigned hole = EXTENT_HOLE | EXTENT_ZERO;
  const struct extent expected[] = {
    { 0, 1 << 20, hole }, { 1 << 20, 65536, 0 },
    { (1 << 20) + 65536, (3 << 20) - 65536, hole },
  };
  const struct extent empty = { 0, 4 << 20, hole };
  const struct extent depth = { 0, 4 << 20, 1 };
  static char buf[65536];
  struct blk *blk;

  make_file (4 << 20);
  blk = open_file (0);
  assert_true (blk->can & BLK_CAN_EXTENTS);
  expect_extents (blk, 0, BLK_STATUS_ALLOCATION, 1, &empty);
  memset (buf, 1, sizeof buf);
  assert_int_equal (blk_pwrite (blk, buf, 65536, 1 << 20, BLK_FUA), 0);
  expect_extents (blk, 0, BLK_STATUS_ALLOCATION, 3, expected);
  expect_extents (blk, BLK_ONE, BLK_STATUS_ALLOCATION, 1, expected);
  expect_extents (blk, 0, BLK_STATUS_DEPTH, 1, &depth);
  assert_int_equal (blk_trim (blk, 65536, 1 << 20, 0), 0);
  expect_extents (blk, 0, BLK_STATUS_ALLOCATION, 1, &empty);
  assert_int_equal (blk_close (blk), 0);
  unlink (path);
}

static uint64_t
allocated_bytes (void)
{
  struct stat st;

  assert_int_equal (stat (path, &st), 0);
  return (uint64_t) st.st_blocks * 512;
}

/* Zeroes give space back or take it, as asked; both are fast. */
static void
test_zero_space (void **state)
{
  static char buf[1 << 20];
  struct blk *blk;

  make_file (1 << 20);
  blk = open_file (0);
  memset (buf, 1, sizeof buf);
  assert_int_equal (blk_pwrite (blk, buf, sizeof buf, 0, 0), 0);
  assert_int_equal (blk_flush (blk), 0);
  assert_true (allocated_bytes () >= 1 << 20);
  assert_int_equal (blk_zero (blk, 1 << 20, 0, BLK_FAST | BLK_MAY_UNMAP), 0);
  assert_int_equal (allocated_bytes (), 0);
  assert_int_equal (blk_zero (blk, 1 << 20, 0, BLK_FAST), 0);
  assert_true (allocated_bytes () >= 1 << 20);
  assert_int_equal (blk_pread (blk, buf, sizeof buf, 0, 0), 0);
  assert_true (is_zero_buffer (buf, sizeof buf));
  assert_int_equal (blk_trim (blk, 1 << 20, 0, BLK_FUA), 0);
  assert_int_equal (allocated_bytes (), 0);
  assert_int_equal (blk_close (blk), 0);
  unlink (path);
}

static void
test_nowait (void **state)
{
  struct blk *blk;
  char c = 0;
  int r;

  make_file (65536);
  blk = open_file (0);
  assert_int_equal (blk_pwrite (blk, "x", 1, 1000, 0), 0);
  /* Just written, so in the cache. */
  r = blk_pread (blk, &c, 1, 1000, BLK_NOWAIT);
  /* A file in memory never waits. */
  assert_true (strncmp (path, "/dev/shm/", 9) != 0
               || (blk->can & BLK_CAN_NOWAIT));
  if (blk->can & BLK_CAN_NOWAIT) {
    assert_int_equal (r, 0);
    assert_int_equal (c, 'x');
  }
  else
    assert_int_equal (r, -EAGAIN);
  assert_int_equal (blk_close (blk), 0);
  unlink (path);
}

static void
test_resize (void **state)
{
  struct stat st;
  struct blk *blk;
  char c = 0;

  make_file (4096);
  blk = open_file (0);
  assert_int_equal (blk_pwrite (blk, "x", 1, 4095, 0), 0);
  assert_int_equal (blk_resize (blk, 8192), 0);
  assert_int_equal (blk_size (blk), 8192);
  assert_int_equal (blk_pwrite (blk, "y", 1, 8191, 0), 0);
  assert_int_equal (blk_resize (blk, 512), 0);
  assert_int_equal (blk_pread (blk, &c, 1, 512, 0), -EINVAL);
  assert_int_equal (blk_resize (blk, 4096), 0);
  assert_int_equal (blk_pread (blk, &c, 1, 4095, 0), 0);
  assert_int_equal (c, 0);
  assert_int_equal (blk_close (blk), 0);
  assert_int_equal (stat (path, &st), 0);
  assert_int_equal (st.st_size, 4096);
  unlink (path);
}

/* Somebody else cuts the file short under us: an error, no loop, no zeroes. */
static void
test_shrunk (void **state)
{
  struct extents e;
  struct blk *blk;
  char c;

  make_file (65536);
  blk = open_file (0);
  assert_int_equal (blk_pwrite (blk, "x", 1, 0, 0), 0);
  assert_int_equal (truncate (path, 8192), 0);
  assert_int_equal (blk_pread (blk, &c, 1, 8192, 0), -EIO);
  extents_init (&e, 10);
  assert_int_equal (blk_extents (blk, 65536, 0, 0, BLK_STATUS_ALLOCATION,
                                 &e), 0);
  assert_int_equal (extents_length (&e), 65536);
  extents_free (&e);
  assert_int_equal (blk_close (blk), 0);
  unlink (path);
}

static void
test_create (void **state)
{
  struct blk *blk;

  snprintf (path, sizeof path, "%s/new", dir);
  blk = open_file (BLK_FILE_CREATE);
  assert_int_equal (blk_size (blk), 0);
  assert_int_equal (blk_resize (blk, 1024), 0);
  assert_int_equal (blk_close (blk), 0);
  expect_error (path, BLK_FILE_CREATE, EEXIST, "cannot be created");
  blk = open_file (0);
  assert_int_equal (blk_size (blk), 1024);
  assert_int_equal (blk_close (blk), 0);
  unlink (path);
}

static void
test_sizes (void **state)
{
  struct blk *blk;

  make_file (513);
  expect_error (path, 0, EINVAL, "513 bytes, is not a multiple of 512");
  blk = open_file (BLK_FILE_ANY_SIZE);
  assert_int_equal (blk_size (blk), 513);
  assert_int_equal (blk_pwrite (blk, "x", 1, 512, 0), 0);
  assert_int_equal (blk_pwrite (blk, "x", 1, 513, 0), -ENOSPC);
  assert_int_equal (blk_close (blk), 0);
  make_file (0);
  blk = open_file (0);
  assert_int_equal (blk_size (blk), 0);
  assert_int_equal (blk_close (blk), 0);
  unlink (path);
}

static void
test_cannot_open (void **state)
{
  struct sockaddr_un sun = { .sun_family = AF_UNIX };
  char name[100];
  int fd;

  snprintf (name, sizeof name, "%s/missing", dir);
  expect_error (name, 0, ENOENT, "cannot be opened: No such file");
  expect_error (name, BLK_FILE_READ_ONLY, ENOENT, "cannot be opened");
  expect_error (dir, 0, EISDIR, "is a directory");
  expect_error (dir, BLK_FILE_READ_ONLY, EISDIR, "is a directory");
  expect_error ("/dev/null", 0, EINVAL, "is a character device");

  snprintf (name, sizeof name, "%s/fifo", dir);
  assert_int_equal (mkfifo (name, 0600), 0);
  expect_error (name, 0, EINVAL, "is a pipe");
  expect_error (name, BLK_FILE_READ_ONLY, EINVAL, "is a pipe");
  unlink (name);

  snprintf (name, sizeof name, "%s/sock", dir);
  fd = socket (AF_UNIX, SOCK_STREAM, 0);
  strcpy (sun.sun_path, name);
  assert_int_equal (bind (fd, (struct sockaddr *) &sun, sizeof sun), 0);
  expect_error (name, 0, EINVAL, "is a socket");
  close (fd);
  unlink (name);
}

/* Files that the user must not read or write (root may do everything). */
static void
test_permissions (void **state)
{
  struct blk *blk;

  make_file (512);
  assert_int_equal (chmod (path, 0400), 0);
  assert_int_equal (chmod (dir, 0755), 0);
  if (geteuid () == 0)
    assert_int_equal (seteuid (65534), 0);
  if (faccessat (AT_FDCWD, path, F_OK, AT_EACCESS) == 0) {
    expect_error (path, 0, EACCES, "cannot be opened");
    if (seteuid (0) == 0) {
      assert_int_equal (chmod (path, 0444), 0);
      assert_int_equal (seteuid (65534), 0);
    }
    expect_error (path, 0, EACCES, "cannot be opened for writing");
    blk = open_file (BLK_FILE_READ_ONLY);
    assert_true (blk_is_read_only (blk));
    assert_int_equal (blk_close (blk), 0);
  }
  if (geteuid () == 65534)
    assert_int_equal (seteuid (0), 0);
  unlink (path);
}

static void
test_locks (void **state)
{
  struct blk *writer, *reader, *other;

  make_file (512);
  writer = open_file (0);
  expect_error (path, 0, EBUSY, "in use");
  expect_error (path, BLK_FILE_READ_ONLY, EBUSY, "in use");
  other = open_file (BLK_FILE_NO_LOCK);
  assert_int_equal (blk_close (other), 0);
  /* Closing another descriptor of the file has not dropped the lock. */
  expect_error (path, 0, EBUSY, "in use");
  assert_int_equal (blk_close (writer), 0);

  reader = open_file (BLK_FILE_READ_ONLY);
  other = open_file (BLK_FILE_READ_ONLY);
  expect_error (path, 0, EBUSY, "in use");
  assert_int_equal (blk_close (reader), 0);
  assert_int_equal (blk_close (other), 0);
  writer = open_file (0);
  assert_int_equal (blk_close (writer), 0);
  unlink (path);
}

static void
test_from_fd (void **state)
{
  struct error err = ERROR_INIT;
  struct blk *blk;
  int fd;

  make_file (512);
  fd = open (path, O_RDONLY);
  assert_int_equal (blk_file_from_fd (fd, "name", 0, &blk, &err), -EINVAL);
  assert_string_equal (err.msg, "name: not open for writing");
  /* It was ours no more. */
  assert_int_equal (fcntl (fd, F_GETFD), -1);
  fd = open (path, O_WRONLY);
  assert_int_equal (blk_file_from_fd (fd, "name", 0, &blk, &err), -EINVAL);
  fd = open (path, O_RDWR);
  assert_int_equal (blk_file_from_fd (fd, "name", 0, &blk, &err), 0);
  assert_string_equal (blk->name, "name");
  assert_int_equal (blk_size (blk), 512);
  assert_int_equal (blk_close (blk), 0);
  assert_int_equal (fcntl (fd, F_GETFD), -1);
  unlink (path);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_model),
    cmocka_unit_test (test_extents),
    cmocka_unit_test (test_zero_space),
    cmocka_unit_test (test_nowait),
    cmocka_unit_test (test_resize),
    cmocka_unit_test (test_shrunk),
    cmocka_unit_test (test_create),
    cmocka_unit_test (test_sizes),
    cmocka_unit_test (test_cannot_open),
    cmocka_unit_test (test_permissions),
    cmocka_unit_test (test_locks),
    cmocka_unit_test (test_from_fd),
  };
  int failed = 0;
  size_t i;

  unit_start ();
  for (i = 0; i < 2; i++) {
    dir = dirs[i];
    if (!mkdtemp (dirs[i])) {
      perror (dirs[i]);
      return 1;
    }
    failed += cmocka_run_group_tests_name (dirs[i], tests, NULL, NULL);
    if (rmdir (dirs[i]) < 0) {
      perror (dirs[i]);
      failed++;
    }
  }
  return failed ? 1 : 0;
}
