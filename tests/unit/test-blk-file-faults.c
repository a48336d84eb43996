/* SPDX-License-Identifier: BSD-3-Clause */
/* block/blk-file when the kernel does less than it could: short transfers,
 * signals, calls that a file system lacks, write-backs that fail.
 *
 * This program has its own versions of the system calls that blk-file makes;
 * they take the place of the C library's.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "blk-file.h"
#include "log.h"
#include "unit/disk-model.h"

enum call {
  CALL_READ, CALL_WRITE, CALL_READ_NOWAIT, CALL_WRITE_DSYNC, CALL_SYNC,
  CALL_PUNCH, CALL_ZERO_RANGE, CALL_ALLOCATE, CALL_SEEK_DATA, CALL_SEEK_HOLE,
  CALL_TRUNCATE, NR_CALLS
};

/* What happens to the calls. */
static unsigned nr_calls[NR_CALLS];
static int fail_with[NR_CALLS];         /* errno; 0 = go on */
static unsigned fail_nth;               /* of all calls; 0 = none */
static unsigned nr_all;
static bool is_nth_fired;
static size_t most_bytes = SIZE_MAX;    /* per transfer */
static unsigned interrupt_every;        /* this many calls */
static bool is_sync_after_write_failing;        /* of WRITE_DSYNC */
static void (*during_sync) (void);      /* called once, while it runs */
static off_t seek_hole_result = -1;     /* -1 = the real one */

/* 0, or -1 with errno set. */
static int
enter (enum call call)
{
  nr_calls[call]++;
  nr_all++;
  if (interrupt_every && call <= CALL_ALLOCATE && call != CALL_READ_NOWAIT
      && nr_all % interrupt_every == 0) {
    errno = EINTR;
    return -1;
  }
  if (fail_nth && nr_all == fail_nth) {
    is_nth_fired = true;
    errno = EIO;
    return -1;
  }
  if (fail_with[call]) {
    errno = fail_with[call];
    return -1;
  }
  return 0;
}

ssize_t
pread (int fd, void *buf, size_t len, off_t off)
{
  if (enter (CALL_READ) < 0)
    return -1;
  return syscall (SYS_pread64, fd, buf, MIN (len, most_bytes), off);
}

ssize_t
pwrite (int fd, const void *buf, size_t len, off_t off)
{
  if (enter (CALL_WRITE) < 0)
    return -1;
  return syscall (SYS_pwrite64, fd, buf, MIN (len, most_bytes), off);
}

ssize_t
preadv2 (int fd, const struct iovec *iov, int nr, off_t off, int flags)
{
  assert_int_equal (nr, 1);
  assert_int_equal (flags, RWF_NOWAIT);
  if (enter (CALL_READ_NOWAIT) < 0)
    return -1;
  return syscall (SYS_pread64, fd, iov->iov_base,
                  MIN (iov->iov_len, most_bytes), off);
}

ssize_t
pwritev2 (int fd, const struct iovec *iov, int nr, off_t off, int flags)
{
  assert_int_equal (nr, 1);
  assert_int_equal (flags, RWF_DSYNC);
  if (enter (CALL_WRITE_DSYNC) < 0)
    return -1;
  if (is_sync_after_write_failing) {
    errno = EIO;
    return -1;
  }
  return syscall (SYS_pwrite64, fd, iov->iov_base,
                  MIN (iov->iov_len, most_bytes), off);
}

int
fdatasync (int fd)
{
  void (*f) (void) = during_sync;

  if (enter (CALL_SYNC) < 0)
    return -1;
  during_sync = NULL;
  if (f)
    f ();
  return 0;
}

int
fallocate (int fd, int mode, off_t off, off_t len)
{
  if (enter (mode & FALLOC_FL_PUNCH_HOLE ? CALL_PUNCH
             : mode & FALLOC_FL_ZERO_RANGE ? CALL_ZERO_RANGE
             : CALL_ALLOCATE) < 0)
    return -1;
  return (int) syscall (SYS_fallocate, fd, mode, off, len);
}

off_t
lseek (int fd, off_t off, int whence)
{
  if ((whence == SEEK_DATA || whence == SEEK_HOLE)
      && enter (whence == SEEK_DATA ? CALL_SEEK_DATA : CALL_SEEK_HOLE) < 0)
    return -1;
  if (whence == SEEK_HOLE && seek_hole_result >= 0)
    return seek_hole_result;
  return syscall (SYS_lseek, fd, off, whence);
}

int
ftruncate (int fd, off_t len)
{
  if (enter (CALL_TRUNCATE) < 0)
    return -1;
  return (int) syscall (SYS_ftruncate, fd, len);
}

/*----------------------------------------------------------------------*/

#define SIZE 102400

static char path[] = "./tidemark-test.XXXXXX";
static struct blk *blk;
static char buf[SIZE];

static void
no_log (enum log_level level, const char *msg)
{
}

static void
no_faults (void)
{
  memset (nr_calls, 0, sizeof nr_calls);
  memset (fail_with, 0, sizeof fail_with);
  fail_nth = nr_all = interrupt_every = 0;
  most_bytes = SIZE_MAX;
  is_sync_after_write_failing = is_nth_fired = false;
  seek_hole_result = -1;
}

static void
open_blk (void)
{
  struct error err = ERROR_INIT;

  if (blk_file_open (path, 0, &blk, &err) < 0)
    fail_msg ("%s", err.msg);
}

static int
set_up (void **state)
{
  int fd;

  no_faults ();
  memset (buf, 1, sizeof buf);
  fd = open (path, O_RDWR | O_TRUNC);
  if (fd < 0 || ftruncate (fd, SIZE) < 0)
    return -1;
  close (fd);
  open_blk ();
  no_faults ();
  return 0;
}

static int
tear_down (void **state)
{
  no_faults ();
  return blk_close (blk);
}

static void
test_short_transfers (void **state)
{
  struct disk_model m;
  unsigned i;

  most_bytes = 777;
  interrupt_every = 3;
  disk_model_init (&m, blk, 5);
  for (i = 0; i < 60; i++) {
    disk_model_step (&m);
    disk_model_check (&m);
  }
  disk_model_free (&m);
}

/* These bytes are zero, all others ones; then make all of them ones. */
static void
expect_zero (uint64_t len, uint64_t off)
{
  static char out[SIZE];

  memset (out, 1, sizeof out);
  assert_int_equal (blk_pread (blk, out, SIZE, 0, 0), 0);
  assert_true (is_zero_buffer (out + off, len));
  assert_memory_equal (out, buf, off);
  assert_memory_equal (out + off + len, buf, SIZE - off - len);
  assert_int_equal (blk_pwrite (blk, buf, SIZE, 0, 0), 0);
  memset (nr_calls, 0, sizeof nr_calls);
}

static void
zero_some (unsigned flags)
{
  assert_int_equal (blk_zero (blk, 8192, 4096, flags), 0);
}

/* What a file system lacks is tried once, then what it has is used. */
static void
test_missing_calls (void **state)
{
  assert_int_equal (blk_pwrite (blk, buf, SIZE, 0, 0), 0);
  memset (nr_calls, 0, sizeof nr_calls);
  zero_some (BLK_MAY_UNMAP);
  assert_int_equal (nr_calls[CALL_PUNCH], 1);
  expect_zero (8192, 4096);
  zero_some (0);
  assert_int_equal (nr_calls[CALL_ZERO_RANGE], 1);
  assert_int_equal (nr_calls[CALL_PUNCH], 0);
  expect_zero (8192, 4096);

  /* As tmpfs. */
  fail_with[CALL_ZERO_RANGE] = EOPNOTSUPP;
  zero_some (BLK_FAST);
  assert_int_equal (nr_calls[CALL_ZERO_RANGE], 1);
  assert_int_equal (nr_calls[CALL_PUNCH], 1);
  assert_int_equal (nr_calls[CALL_ALLOCATE], 1);
  expect_zero (8192, 4096);
  zero_some (0);
  assert_int_equal (nr_calls[CALL_ZERO_RANGE], 0);
  assert_int_equal (nr_calls[CALL_ALLOCATE], 1);
  expect_zero (8192, 4096);

  /* The range is not what it takes: another may be. */
  fail_with[CALL_PUNCH] = EINVAL;
  zero_some (0);
  assert_int_equal (nr_calls[CALL_WRITE], 1);
  expect_zero (8192, 4096);
  fail_with[CALL_PUNCH] = 0;
  zero_some (0);
  assert_int_equal (nr_calls[CALL_WRITE], 0);
  expect_zero (8192, 4096);

  /* Nothing at all. */
  fail_with[CALL_PUNCH] = EOPNOTSUPP;
  zero_some (BLK_MAY_UNMAP);
  assert_int_equal (nr_calls[CALL_PUNCH], 1);
  assert_int_equal (nr_calls[CALL_WRITE], 1);
  expect_zero (8192, 4096);
  zero_some (BLK_FUA);
  assert_int_equal (nr_calls[CALL_PUNCH], 0);
  assert_int_equal (nr_calls[CALL_SYNC], 1);
  expect_zero (8192, 4096);
  assert_int_equal (blk_zero (blk, 1, 0, BLK_FAST), -EOPNOTSUPP);
  assert_int_equal (blk_zero (blk, 1, 0, BLK_FAST | BLK_MAY_UNMAP),
                    -EOPNOTSUPP);
  /* A trim does nothing then. */
  assert_int_equal (blk_trim (blk, 4096, 0, 0), 0);
  expect_zero (0, 0);
}

static void
test_fallocate_error (void **state)
{
  fail_with[CALL_PUNCH] = ENOSPC;
  assert_int_equal (blk_zero (blk, 4096, 0, BLK_MAY_UNMAP), -ENOSPC);
  assert_int_equal (blk_trim (blk, 4096, 0, 0), -ENOSPC);
}

/* After a failed write-back no flush says that all is well. */
static void
test_failed_flush (void **state)
{
  assert_int_equal (blk_pwrite (blk, buf, 4096, 0, 0), 0);
  assert_int_equal (blk_flush (blk), 0);
  fail_with[CALL_SYNC] = ENOSPC;
  assert_int_equal (blk_flush (blk), -ENOSPC);
  no_faults ();
  assert_int_equal (blk_flush (blk), -ENOSPC);
  assert_int_equal (blk_zero (blk, 1, 0, BLK_FUA), -ENOSPC);
  assert_int_equal (blk_trim (blk, 1, 0, BLK_FUA), -ENOSPC);
  assert_int_equal (nr_calls[CALL_SYNC], 0);
  /* Reads and writes go on. */
  assert_int_equal (blk_pwrite (blk, buf, 4096, 0, 0), 0);
  assert_int_equal (blk_pread (blk, buf, 4096, 0, 0), 0);
  assert_int_equal (blk_close (blk), 0);
  open_blk ();
  assert_int_equal (blk_flush (blk), 0);
}

static void
test_fua (void **state)
{
  assert_int_equal (blk_pwrite (blk, buf, 4096, 0, BLK_FUA), 0);
  assert_int_equal (nr_calls[CALL_WRITE_DSYNC], 1);
  assert_int_equal (nr_calls[CALL_SYNC], 0);

  /* The write itself failed: nothing is lost. */
  fail_with[CALL_WRITE_DSYNC] = fail_with[CALL_WRITE] = ENOSPC;
  assert_int_equal (blk_pwrite (blk, buf, 4096, 0, BLK_FUA), -ENOSPC);
  no_faults ();
  assert_int_equal (blk_flush (blk), 0);
  no_faults ();

  /* The kernel does not know it: write, then sync; it is not asked again. */
  fail_with[CALL_WRITE_DSYNC] = EOPNOTSUPP;
  assert_int_equal (blk_pwrite (blk, buf, 4096, 0, BLK_FUA), 0);
  assert_int_equal (blk_pwrite (blk, buf, 4096, 0, BLK_FUA), 0);
  assert_int_equal (nr_calls[CALL_WRITE_DSYNC], 1);
  assert_int_equal (nr_calls[CALL_WRITE], 2);
  assert_int_equal (nr_calls[CALL_SYNC], 2);
  fail_with[CALL_SYNC] = EIO;
  assert_int_equal (blk_pwrite (blk, buf, 4096, 0, BLK_FUA), -EIO);
}

static void
other_flush_fails (void)
{
  fail_with[CALL_SYNC] = EIO;
  assert_int_equal (blk_flush (blk), -EIO);
  fail_with[CALL_SYNC] = 0;
}

/* Two flushes at once, of which the kernel tells the failure to the other
 * one only.
 */
static void
test_two_flushes (void **state)
{
  during_sync = other_flush_fails;
  assert_int_equal (blk_flush (blk), -EIO);
}

/* The write-back within a write failed: as a failed flush. */
static void
test_failed_fua (void **state)
{
  is_sync_after_write_failing = true;
  assert_int_equal (blk_pwrite (blk, buf, 4096, 0, BLK_FUA), -EIO);
  no_faults ();
  assert_int_equal (blk_flush (blk), -EIO);
}

static void
test_nowait (void **state)
{
  static char out[SIZE];

  assert_int_equal (blk_pwrite (blk, buf, SIZE, 0, 0), 0);
  assert_int_equal (blk_pread (blk, out, SIZE, 0, BLK_NOWAIT), 0);
  assert_memory_equal (out, buf, SIZE);
  most_bytes = 4096;
  assert_int_equal (blk_pread (blk, out, SIZE, 0, BLK_NOWAIT), -EAGAIN);
  assert_int_equal (nr_calls[CALL_READ_NOWAIT], 2);
  assert_int_equal (blk_pread (blk, out, 4096, 0, BLK_NOWAIT), 0);
  fail_with[CALL_READ_NOWAIT] = EIO;
  assert_int_equal (blk_pread (blk, out, 4096, 0, BLK_NOWAIT), -EAGAIN);
}

static void
test_probe (void **state)
{
  assert_int_equal (blk_close (blk), 0);
  fail_with[CALL_READ_NOWAIT] = EOPNOTSUPP;
  fail_with[CALL_SEEK_DATA] = EINVAL;
  open_blk ();
  assert_int_equal (blk->can & (BLK_CAN_NOWAIT | BLK_CAN_EXTENTS), 0);
}

/* What SEEK_HOLE may say while somebody else changes the file. */
static void
test_odd_seeks (void **state)
{
  struct extents e;

  assert_int_equal (blk_pwrite (blk, buf, SIZE, 0, 0), 0);
  extents_init (&e, 100);
  seek_hole_result = 0;
  assert_int_equal (blk_extents (blk, SIZE, 0, 0, BLK_STATUS_ALLOCATION, &e),
                    0);
  assert_int_equal (e.len, 1);
  assert_int_equal (e.ptr[0].len, SIZE);
  assert_int_equal (e.ptr[0].value, 0);
  seek_hole_result = -1;

  extents_clear (&e);
  fail_with[CALL_SEEK_HOLE] = ENXIO;
  assert_int_equal (blk_extents (blk, 9000, 100, 0, BLK_STATUS_ALLOCATION,
                                 &e), 0);
  assert_int_equal (extents_length (&e), 9000);
  assert_int_equal (e.ptr[0].value, 0);

  extents_clear (&e);
  fail_with[CALL_SEEK_HOLE] = EIO;
  assert_int_equal (blk_extents (blk, 9000, 100, 0, BLK_STATUS_ALLOCATION,
                                 &e), -EIO);
  assert_int_equal (e.len, 0);
  extents_free (&e);
}

static void
test_failed_resize (void **state)
{
  fail_with[CALL_TRUNCATE] = ENOSPC;
  assert_int_equal (blk_resize (blk, 2 * SIZE), -ENOSPC);
  assert_int_equal (blk_size (blk), SIZE);
  assert_int_equal (blk_resize (blk, 512), -ENOSPC);
  assert_int_equal (blk_size (blk), SIZE);
}

/* Every request fails once, at every system call that it makes: the request
 * fails or does its work otherwise, and the next ones work.
 */
static void
test_every_call_fails (void **state)
{
  static char out[SIZE];
  unsigned n, nr_failed = 0;
  bool has_fired = true;

  for (n = 1; has_fired; n++) {
    int r = 0;

    assert_int_equal (blk_pwrite (blk, buf, SIZE, 0, 0), 0);
    no_faults ();
    fail_nth = n;
    r |= blk_zero (blk, 4096, 0, BLK_MAY_UNMAP);
    r |= blk_zero (blk, 4096, 4096, 0);
    r |= blk_pwrite (blk, buf, 4096, 0, 0);
    r |= blk_pread (blk, out, 8192, 0, 0);
    has_fired = is_nth_fired;
    if (has_fired) {
      assert_int_equal (r, -EIO);
      nr_failed++;
    }
    no_faults ();
    assert_int_equal (blk_pread (blk, out, SIZE, 0, 0), 0);
    assert_memory_equal (out + 8192, buf + 8192, SIZE - 8192);
  }
  assert_int_equal (nr_failed, 4);
}

int
main (void)
{
#define T(t) cmocka_unit_test_setup_teardown (t, set_up, tear_down)
  const struct CMUnitTest tests[] = {
    T (test_short_transfers), T (test_missing_calls),
    T (test_fallocate_error), T (test_failed_flush), T (test_fua),
    T (test_two_flushes), T (test_failed_fua), T (test_nowait), T (test_probe),
    T (test_odd_seeks), T (test_failed_resize), T (test_every_call_fails),
  };
  int fd, failed;

  unit_start ();
  log_set_handler (no_log);
  fd = mkstemp (path);
  if (fd < 0) {
    perror (path);
    return 1;
  }
  close (fd);
  failed = cmocka_run_group_tests (tests, NULL, NULL);
  unlink (path);
  return failed ? 1 : 0;
}
