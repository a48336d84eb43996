/* SPDX-License-Identifier: BSD-3-Clause */
/* block/blk: the choke point, over a driver that notes every call. */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

#include "blk.h"
#include "log.h"
#include "range.h"
#include "unit/unit.h"

#define SIZE UINT64_C (1048576)

/* Takes the place of the C library's: a clock that can be put forward. */
static time_t clock_offset;

int
clock_gettime (clockid_t id, struct timespec *ts)
{
  int r = (int) syscall (SYS_clock_gettime, id, ts);

  ts->tv_sec += clock_offset;
  return r;
}

/* What the driver was asked for, and what it answers. */
static char calls[8192];
static int result;              /* of every call */
static int zero_result;
static unsigned fail_call;      /* the call that fails with result; 0 = all */
static unsigned nr_calls;
static uint64_t extent_offset, extent_step;
static unsigned extent_value;   /* of the first; then one more each */

static unsigned nr_logged;
static char last_log[512];

static void
log_line (enum log_level level, const char *msg)
{
  nr_logged++;
  snprintf (last_log, sizeof last_log, "%s", msg);
}

static int
note (const char *op, uint64_t len, uint64_t off, unsigned flags)
{
  size_t n = strlen (calls);

  snprintf (calls + n, sizeof calls - n, "%s %llu+%llu/%x;", op,
            (unsigned long long) off, (unsigned long long) len, flags);
  nr_calls++;
  return fail_call == 0 || fail_call == nr_calls ? result : 0;
}

static int
fake_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  memset (buf, (int) (off >> 12) & 0xff, len);
  return note ("read", len, off, flags);
}

static int
fake_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
             unsigned flags)
{
  return note (is_zero_buffer (buf, len) ? "write0" : "write", len, off,
               flags);
}

static int
fake_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  int r = note ("zero", len, off, flags);

  return zero_result ? zero_result : r;
}

static int
fake_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  return note ("trim", len, off, flags);
}

static int
fake_flush (struct blk *blk)
{
  return note ("flush", 0, 0, 0);
}

/* Extents of extent_step bytes from off + extent_offset, up to the end. */
static int
fake_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
              enum blk_status status, struct extents *e)
{
  uint64_t pos = off + extent_offset;
  unsigned value = extent_value;

  while (extent_step && pos < off + len) {
    if (extents_add (e, pos, extent_step, value++) > 0)
      break;
    pos += extent_step;
  }
  return note ("extents", len, off, flags);
}

static int
fake_cache (struct blk *blk, uint64_t len, uint64_t off)
{
  return note ("cache", len, off, 0);
}

static int
fake_resize (struct blk *blk, uint64_t size)
{
  blk->size = size;
  return note ("resize", size, 0, 0);
}

static int
fake_close (struct blk *blk)
{
  blk_fini (blk);
  return result;
}

/* Nothing but what a driver must have. */
static const struct blk_driver least_driver = {
  .name = "least", .close = fake_close, .pread = fake_pread,
  .pwrite = fake_pwrite, .flush = fake_flush,
};

static const struct blk_driver full_driver = {
  .name = "full", .close = fake_close, .pread = fake_pread,
  .pwrite = fake_pwrite, .zero = fake_zero, .trim = fake_trim,
  .flush = fake_flush, .extents = fake_extents, .cache = fake_cache,
  .resize = fake_resize,
};

#define ALL (BLK_CAN_TRIM | BLK_CAN_ZERO | BLK_CAN_FAST_ZERO \
             | BLK_CAN_CACHE | BLK_CAN_EXTENTS | BLK_CAN_NOWAIT | BLK_CAN_FUA)

static struct blk blk;
static char buf[SIZE];

static void
forget (void)
{
  calls[0] = '\0';
  nr_calls = 0;
}

static void
set_up (const struct blk_driver *driver, unsigned can)
{
  memset (&blk, 0, sizeof blk);
  assert_int_equal (blk_init (&blk, driver, "node", NULL, SIZE, can), 0);
  memset (buf, 1, sizeof buf);
  result = zero_result = 0;
  fail_call = 0;
  extent_offset = extent_step = 0;
  extent_value = 1;
  nr_logged = 0;
  forget ();
}

static void
expect_calls (const char *text)
{
  assert_string_equal (calls, text);
  forget ();
}

static void
test_ranges (void **state)
{
  static const struct range bad[] = {
    { 0, SIZE + 1 }, { SIZE, 1 }, { SIZE - 1, 2 }, { SIZE + 1, 0 },
    { 1, UINT64_MAX }, { UINT64_MAX, 1 }, { UINT64_MAX, UINT64_MAX },
    { UINT64_C (1) << 63, UINT64_C (1) << 63 },
  };
  struct extents e;
  size_t i;

  set_up (&full_driver, ALL);
  extents_init (&e, 10);
  for (i = 0; i < sizeof bad / sizeof *bad; i++) {
    uint64_t off = bad[i].off, len = bad[i].len;

    assert_int_equal (blk_pread (&blk, buf, len, off, 0), -EINVAL);
    assert_int_equal (blk_pwrite (&blk, buf, len, off, 0), -ENOSPC);
    assert_int_equal (blk_zero (&blk, len, off, 0), -ENOSPC);
    assert_int_equal (blk_trim (&blk, len, off, 0), -ENOSPC);
    assert_int_equal (blk_cache (&blk, len, off), -EINVAL);
    assert_int_equal (blk_extents (&blk, len, off, 0, BLK_STATUS_ALLOCATION,
                                   &e), -EINVAL);
  }
  /* Nothing at all is fine, up to the end. */
  memset (buf, 1, sizeof buf);
  assert_int_equal (blk_pread (&blk, buf, 0, SIZE, 0), 0);
  assert_int_equal (blk_pwrite (&blk, buf, 0, SIZE, BLK_FUA), 0);
  assert_int_equal (blk_zero (&blk, 0, SIZE, 0), 0);
  assert_int_equal (blk_trim (&blk, 0, SIZE, 0), 0);
  assert_int_equal (blk_cache (&blk, 0, SIZE), 0);
  assert_int_equal (e.len, 0);
  expect_calls ("");
  /* None of these is the disk's failure. */
  assert_int_equal (nr_logged, 0);
  assert_int_equal (blk.stats.failures, 0);
  assert_int_equal (blk_pwrite (&blk, buf, 1, SIZE - 1, 0), 0);
  assert_int_equal (blk_pread (&blk, buf, SIZE, 0, 0), 0);
  expect_calls ("write 1048575+1/0;read 0+1048576/0;");
  blk_close (&blk);
}

static void
test_flags (void **state)
{
  unsigned flag;
  struct extents e;

  set_up (&full_driver, ALL);
  extents_init (&e, 10);
  for (flag = 1; flag < 1u << 8; flag <<= 1) {
    if (flag != BLK_NOWAIT)
      assert_int_equal (blk_pread (&blk, buf, 1, 0, flag), -EINVAL);
    if (flag != BLK_FUA) {
      assert_int_equal (blk_pwrite (&blk, buf, 1, 0, flag), -EINVAL);
      assert_int_equal (blk_trim (&blk, 1, 0, flag), -EINVAL);
    }
    if (!(flag & (BLK_FUA | BLK_MAY_UNMAP | BLK_FAST | BLK_KEEP_ZERO)))
      assert_int_equal (blk_zero (&blk, 1, 0, flag), -EINVAL);
    if (flag != BLK_ONE)
      assert_int_equal (blk_extents (&blk, 1, 0, flag, BLK_STATUS_ALLOCATION,
                                     &e), -EINVAL);
  }
  expect_calls ("");
  blk_close (&blk);
}

static void
test_read_only (void **state)
{
  set_up (&full_driver, BLK_IS_READ_ONLY);
  assert_int_equal (blk_pwrite (&blk, buf, 1, 0, 0), -EPERM);
  assert_int_equal (blk_zero (&blk, 1, 0, 0), -EPERM);
  assert_int_equal (blk_trim (&blk, 1, 0, 0), -EPERM);
  assert_int_equal (blk_resize (&blk, 0), -EPERM);
  expect_calls ("");
  assert_int_equal (blk_pread (&blk, buf, 1, 0, 0), 0);
  assert_int_equal (blk_flush (&blk), 0);
  expect_calls ("read 0+1/0;flush 0+0/0;");
  blk_close (&blk);

  /* A view: given up, never written. */
  set_up (&full_driver, BLK_IS_READ_ONLY | BLK_CAN_TRIM);
  assert_int_equal (blk_trim (&blk, 1, 0, 0), 0);
  assert_int_equal (blk_pwrite (&blk, buf, 1, 0, 0), -EPERM);
  expect_calls ("trim 0+1/0;");
  blk_close (&blk);
}

/* What the driver cannot do. */
static void
test_least_driver (void **state)
{
  struct extents e;

  set_up (&least_driver, 0);
  extents_init (&e, 10);
  assert_int_equal (blk_zero (&blk, 1 << 19, 512, BLK_MAY_UNMAP), 0);
  expect_calls ("write0 512+262144/0;write0 262656+262144/0;");
  assert_int_equal (blk_zero (&blk, 5, 0, BLK_FUA), 0);
  expect_calls ("write0 0+5/0;flush 0+0/0;");
  assert_int_equal (blk_zero (&blk, 5, 0, BLK_FAST), -EOPNOTSUPP);
  assert_int_equal (blk_trim (&blk, 5, 0, BLK_FUA), 0);
  assert_int_equal (blk_cache (&blk, 5, 0), 0);
  assert_int_equal (blk_resize (&blk, 0), -ENOTSUP);
  assert_int_equal (blk_pread (&blk, buf, 5, 0, BLK_NOWAIT), -EAGAIN);
  expect_calls ("");
  assert_int_equal (blk_pwrite (&blk, buf, 5, 0, BLK_FUA), 0);
  expect_calls ("write 0+5/0;flush 0+0/0;");
  assert_int_equal (blk_extents (&blk, 5, 7, 0, BLK_STATUS_ALLOCATION, &e),
                    0);
  assert_int_equal (blk_extents (&blk, 5, 12, 0, BLK_STATUS_DEPTH, &e), 0);
  assert_int_equal (e.len, 2);
  assert_int_equal (e.ptr[0].value, 0);
  assert_int_equal (e.ptr[1].value, 1);
  assert_int_equal (e.ptr[1].off, 12);
  assert_int_equal (nr_logged, 0);
  extents_free (&e);
  blk_close (&blk);
}

static void
test_fua (void **state)
{
  set_up (&full_driver, ALL);
  assert_int_equal (blk_pwrite (&blk, buf, 5, 0, BLK_FUA), 0);
  assert_int_equal (blk_zero (&blk, 5, 0, BLK_FUA | BLK_FAST), 0);
  assert_int_equal (blk_trim (&blk, 5, 0, BLK_FUA), 0);
  expect_calls ("write 0+5/1;zero 0+5/5;trim 0+5/1;");
  blk_close (&blk);

  set_up (&full_driver, ALL & ~(unsigned) BLK_CAN_FUA);
  assert_int_equal (blk_pwrite (&blk, buf, 5, 0, BLK_FUA), 0);
  expect_calls ("write 0+5/0;flush 0+0/0;");
  assert_int_equal (blk_zero (&blk, 5, 0, BLK_FUA), 0);
  expect_calls ("zero 0+5/0;flush 0+0/0;");
  assert_int_equal (blk_trim (&blk, 5, 0, BLK_FUA), 0);
  expect_calls ("trim 0+5/0;flush 0+0/0;");
  assert_int_equal (blk.stats.flushes, 3);

  /* No flush after a failure; a failed flush is a failed request. */
  result = -EIO;
  assert_int_equal (blk_pwrite (&blk, buf, 5, 0, BLK_FUA), -EIO);
  expect_calls ("write 0+5/0;");
  fail_call = 2;
  assert_int_equal (blk_zero (&blk, 5, 0, BLK_FUA), -EIO);
  expect_calls ("zero 0+5/0;flush 0+0/0;");
  result = 0;
  blk_close (&blk);
}

static void
test_split (void **state)
{
  size_t i;

  set_up (&full_driver, ALL);
  blk.max_request = 4096;
  assert_int_equal (blk_pread (&blk, buf, 10000, 4096, 0), 0);
  expect_calls ("read 4096+4096/0;read 8192+4096/0;read 12288+1808/0;");
  for (i = 0; i < 10000; i++)
    assert_int_equal (buf[i], (i + 4096) >> 12);
  /* One flush at the end instead of one per piece. */
  assert_int_equal (blk_pwrite (&blk, buf, 8192, 0, BLK_FUA), 0);
  expect_calls ("write 0+4096/0;write 4096+4096/0;flush 0+0/0;");
  assert_int_equal (blk_pwrite (&blk, buf, 4096, 0, BLK_FUA), 0);
  expect_calls ("write 0+4096/1;");
  assert_int_equal (blk_zero (&blk, 4097, 0, BLK_MAY_UNMAP), 0);
  expect_calls ("zero 0+4096/2;zero 4096+1/2;");
  assert_int_equal (blk_trim (&blk, 4097, 0, BLK_FUA), 0);
  expect_calls ("trim 0+4096/0;trim 4096+1/0;flush 0+0/0;");
  assert_int_equal (blk_cache (&blk, 4097, 0), 0);
  expect_calls ("cache 0+4096/0;cache 4096+1/0;");
  /* The second piece fails: nothing after it. */
  result = -EIO;
  fail_call = 2;
  assert_int_equal (blk_pread (&blk, buf, 20000, 0, 0), -EIO);
  expect_calls ("read 0+4096/0;read 4096+4096/0;");
  result = 0;
  /* Counted as one request each. */
  assert_int_equal (blk.stats.reads, 2);
  assert_int_equal (blk.stats.writes, 2);
  assert_int_equal (blk.stats.written_bytes, 8192 + 4096);
  blk_close (&blk);
}

static void
test_zero_fallback (void **state)
{
  set_up (&full_driver, ALL);
  zero_result = -EOPNOTSUPP;
  assert_int_equal (blk_zero (&blk, 5, 1, 0), 0);
  expect_calls ("zero 1+5/0;write0 1+5/0;");
  assert_int_equal (blk_zero (&blk, 5, 1, BLK_FUA), 0);
  expect_calls ("zero 1+5/1;write0 1+5/0;flush 0+0/0;");
  assert_int_equal (blk_zero (&blk, 5, 1, BLK_FAST), -EOPNOTSUPP);
  expect_calls ("zero 1+5/4;");
  /* Not the disk's failure. */
  assert_int_equal (nr_logged, 0);
  assert_int_equal (blk.stats.failures, 0);
  zero_result = -EIO;
  assert_int_equal (blk_zero (&blk, 5, 1, 0), -EIO);
  expect_calls ("zero 1+5/0;");
  assert_int_equal (nr_logged, 1);
  blk_close (&blk);
}

static void
test_trim_is_advice (void **state)
{
  set_up (&full_driver, ALL);
  result = -EOPNOTSUPP;
  assert_int_equal (blk_trim (&blk, 5, 1, 0), 0);
  result = -EIO;
  assert_int_equal (blk_trim (&blk, 5, 1, 0), -EIO);
  result = 0;
  blk_close (&blk);
}

static void
test_nowait (void **state)
{
  set_up (&full_driver, ALL);
  assert_int_equal (blk_pread (&blk, buf, 5, 0, BLK_NOWAIT), 0);
  expect_calls ("read 0+5/8;");
  result = -EAGAIN;
  assert_int_equal (blk_pread (&blk, buf, 5, 0, BLK_NOWAIT), -EAGAIN);
  assert_int_equal (nr_logged, 0);
  assert_int_equal (blk.stats.reads, 1);
  assert_int_equal (blk_pread (&blk, buf, 5, 0, 0), -EAGAIN);
  assert_int_equal (nr_logged, 1);
  result = 0;
  blk_close (&blk);
}

static void
test_log (void **state)
{
  unsigned i;

  set_up (&full_driver, ALL);
  result = -EIO;
  assert_int_equal (blk_pread (&blk, buf, 5, 7, 0), -EIO);
  assert_string_equal (last_log, "node: read of 5 bytes at offset 7 failed: "
                       "Input/output error");
  assert_int_equal (blk_pwrite (&blk, buf, 6, 8, 0), -EIO);
  assert_string_equal (last_log, "node: write of 6 bytes at offset 8 failed: "
                       "Input/output error");
  assert_int_equal (blk_flush (&blk), -EIO);
  assert_int_equal (nr_logged, 3);
  /* A disk that fails does not flood the log. */
  for (i = 0; i < 10000; i++)
    assert_int_equal (blk_pread (&blk, buf, 5, 7, 0), -EIO);
  /* (The ten of another window if the clock strikes here.) */
  assert_in_range (nr_logged, 10, 20);
  assert_non_null (strstr (last_log, "further failures"));
  assert_int_equal (blk.stats.failures, 10003);
  /* Later it is reported again. */
  nr_logged = 0;
  clock_offset += 60;
  for (i = 0; i < 10000; i++)
    assert_int_equal (blk_pread (&blk, buf, 5, 7, 0), -EIO);
  assert_in_range (nr_logged, 10, 20);
  result = 0;
  blk_close (&blk);
}

/* A node whose driver reads from blk. */
static int
upper_pread (struct blk *upper, void *b, uint64_t len, uint64_t off,
             unsigned flags)
{
  int r = blk_pread (&blk, b, len, off, flags);

  return zero_result ? zero_result : r;
}

/* A failure is reported where it happened, not by the nodes above again. */
static void
test_log_once (void **state)
{
  static const struct blk_driver upper_driver = {
    .name = "upper", .close = fake_close, .pread = upper_pread,
    .pwrite = fake_pwrite,
  };
  struct blk upper;

  set_up (&full_driver, ALL);
  memset (&upper, 0, sizeof upper);
  assert_int_equal (blk_init (&upper, &upper_driver, "upper", NULL, SIZE, 0),
                    0);
  result = -EIO;
  assert_int_equal (blk_pread (&upper, buf, 5, 7, 0), -EIO);
  assert_int_equal (nr_logged, 1);
  assert_non_null (strstr (last_log, "node: read"));
  assert_int_equal (upper.stats.failures, 1);
  /* Another failure, the upper node's own. */
  zero_result = -ENOMEM;
  assert_int_equal (blk_pread (&upper, buf, 5, 7, 0), -ENOMEM);
  assert_int_equal (nr_logged, 3);
  assert_non_null (strstr (last_log, "upper: read"));
  result = 0;
  assert_int_equal (blk_pread (&upper, buf, 5, 7, 0), -ENOMEM);
  assert_int_equal (nr_logged, 4);
  blk_close (&upper);
  blk_close (&blk);
}

static int
ask_extents (uint64_t len, uint64_t off, unsigned flags, struct extents *e)
{
  return blk_extents (&blk, len, off, flags, BLK_STATUS_ALLOCATION, e);
}

static void
test_extents (void **state)
{
  struct extents e;

  set_up (&full_driver, ALL);
  extents_init (&e, 4);
  extent_step = 10;
  assert_int_equal (ask_extents (30, 5, 0, &e), 0);
  assert_int_equal (e.len, 3);
  /* Append: the list fills up. */
  assert_int_equal (ask_extents (30, 35, 0, &e), 0);
  assert_int_equal (e.len, 4);
  assert_int_equal (extents_length (&e), 40);
  /* It is full: nothing more, and no error. */
  extent_value = 7;
  assert_int_equal (ask_extents (30, 45, 0, &e), 0);
  assert_int_equal (extents_length (&e), 40);

  extents_clear (&e);
  assert_int_equal (ask_extents (30, 5, BLK_ONE, &e), 0);
  assert_int_equal (e.len, 1);
  assert_int_equal (extents_length (&e), 10);
  extents_free (&e);
  blk_close (&blk);
}

/* A driver that does not do what it should. */
static void
test_bad_extents (void **state)
{
  struct extents e;

  set_up (&full_driver, ALL);
  extents_init (&e, 100);
  assert_int_equal (ask_extents (30, 5, 0, &e), -EPROTO);      /* none */
  extent_step = 40;
  assert_int_equal (ask_extents (30, 5, 0, &e), -EPROTO);      /* too long */
  assert_int_equal (e.len, 0);
  extent_step = 10;
  extent_offset = 10;
  assert_int_equal (ask_extents (30, 5, 0, &e), -EPROTO);      /* gap */
  assert_int_equal (e.len, 0);
  extent_offset = 0;
  assert_int_equal (nr_logged, 3);

  /* On failure the list is as it was, a merge undone too. */
  assert_int_equal (extents_add (&e, 0, 5, 1), 0);
  result = -EIO;
  assert_int_equal (ask_extents (30, 5, 0, &e), -EIO);
  assert_int_equal (e.len, 1);
  assert_int_equal (extents_length (&e), 5);
  result = 0;
  assert_int_equal (ask_extents (30, 5, 0, &e), 0);
  assert_int_equal (e.len, 3);
  assert_int_equal (e.ptr[0].len, 15);
  extents_free (&e);
  blk_close (&blk);
}

static void
test_resize (void **state)
{
  set_up (&full_driver, ALL);
  assert_int_equal (blk_resize (&blk, RANGE_MAX_SIZE + 1), -EFBIG);
  assert_int_equal (blk_resize (&blk, 4096), 0);
  assert_int_equal (blk_size (&blk), 4096);
  assert_int_equal (blk_pread (&blk, buf, 1, 4096, 0), -EINVAL);
  expect_calls ("resize 0+4096/0;");
  blk_close (&blk);
  assert_int_equal (blk_close (NULL), 0);
}

/* A stream of four reads, the third beyond the end. */
struct stream_test {
  struct blk_read reads[4];
  unsigned nr_asked, nr_done;
  int errors[4];
  unsigned stop_at;             /* next or done give up at this one */
  bool is_stop_in_done;
};

static int
test_next (void *opaque, struct blk_read *read)
{
  struct stream_test *t = opaque;

  if (t->nr_asked == t->stop_at && !t->is_stop_in_done)
    return -ECANCELED;
  if (t->nr_asked == 4)
    return 0;
  *read = t->reads[t->nr_asked++];
  return 1;
}

static int
test_done (void *opaque, struct blk_read *read, int error)
{
  struct stream_test *t = opaque;

  t->errors[t->nr_done++] = error;
  return t->is_stop_in_done && t->nr_done == t->stop_at ? -ESHUTDOWN : 0;
}

static const struct blk_stream_ops test_ops = { test_next, test_done };

static void
init_stream (struct stream_test *t, unsigned stop_at, bool is_stop_in_done)
{
  *t = (struct stream_test) {
    .reads = {
      { .off = 0, .len = 4096, .buf = buf },
      { .off = 4096, .len = 8192, .buf = buf },
      { .off = SIZE - 1, .len = 2, .buf = buf },
      { .off = 0, .len = 0, .buf = buf },
    },
    .stop_at = stop_at, .is_stop_in_done = is_stop_in_done,
  };
}

/* A driver's own stream: one read at a time, checked ones only. */
static int
fake_read_stream (struct blk *b, unsigned depth,
                  const struct blk_stream_ops *ops, void *opaque)
{
  struct blk_read read;
  int r;

  assert_true (depth >= 1);
  while ((r = ops->next (opaque, &read)) > 0) {
    assert_true (range_is_within (read.off, read.len, SIZE));
    assert_true (read.len > 0 && read.len <= 4096);
    r = ops->done (opaque, &read, note ("stream", read.len, read.off, 0));
    if (r < 0)
      break;
  }
  return r;
}

static void
check_stream (const char *expected)
{
  struct stream_test t;

  init_stream (&t, 9, false);
  assert_int_equal (blk_read_stream (&blk, 0, &test_ops, &t), 0);
  expect_calls (expected);
  assert_int_equal (t.nr_done, 4);
  assert_int_equal (t.errors[0], 0);
  assert_int_equal (t.errors[2], -EINVAL);
  assert_int_equal (t.errors[3], 0);
  assert_int_equal (blk.stats.read_bytes, 4096 + 8192);
  assert_int_equal (blk.stats.reads, 2);
  forget ();
  init_stream (&t, 2, false);
  assert_int_equal (blk_read_stream (&blk, 4, &test_ops, &t), -ECANCELED);
  assert_int_equal (t.nr_done, 2);
  init_stream (&t, 1, true);
  assert_int_equal (blk_read_stream (&blk, 4, &test_ops, &t), -ESHUTDOWN);
  assert_int_equal (t.nr_done, 1);
  /* A failed read is told to done, and the stream goes on. */
  result = -EIO;
  init_stream (&t, 9, false);
  assert_int_equal (blk_read_stream (&blk, 4, &test_ops, &t), 0);
  assert_int_equal (t.nr_done, 4);
  assert_int_equal (t.errors[0], -EIO);
  assert_true (nr_logged > 0);
  result = 0;
}

static void
test_stream (void **state)
{
  struct blk_driver driver = full_driver;

  set_up (&full_driver, ALL);
  check_stream ("read 0+4096/0;read 4096+8192/0;");
  blk_close (&blk);
  /* With a driver's own: what is too long for it is read in pieces. */
  driver.read_stream = fake_read_stream;
  set_up (&driver, ALL);
  blk.max_request = 4096;
  check_stream ("stream 0+4096/0;read 4096+4096/0;read 8192+4096/0;");
  blk_close (&blk);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_ranges),
    cmocka_unit_test (test_flags),
    cmocka_unit_test (test_read_only),
    cmocka_unit_test (test_least_driver),
    cmocka_unit_test (test_fua),
    cmocka_unit_test (test_split),
    cmocka_unit_test (test_zero_fallback),
    cmocka_unit_test (test_trim_is_advice),
    cmocka_unit_test (test_nowait),
    cmocka_unit_test (test_log),
    cmocka_unit_test (test_log_once),
    cmocka_unit_test (test_extents),
    cmocka_unit_test (test_bad_extents),
    cmocka_unit_test (test_resize),
    cmocka_unit_test (test_stream),
  };

  unit_start ();
  log_set_handler (log_line);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
