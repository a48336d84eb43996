/* SPDX-License-Identifier: BSD-3-Clause */
/* The Nth socket call of the server fails, for N = 1, 2, 3 ... until none
 * does; likewise the Nth request to the node.  A connection may be lost, an
 * error may be told; wrong data, a lost server or a leak may not be.  And
 * sockets that take and give single bytes change nothing.
 */
#include "config.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>
#include <libnbd.h>

#include "blk-debug.h"
#include "blk-mem.h"
#include "conn.h"
#include "disk.h"
#include "export.h"
#include "log.h"
#include "nbd-server.h"
#include "sockaddr.h"

#define SIZE (UINT64_C (4) << 20)

static char dir[] = "/tmp/tidemark-test.XXXXXX";
static char path[64];

/* Socket calls of the server: the one that fails, and how small they are. */
static _Atomic long calls_left;
static _Atomic bool has_fired;
static _Atomic int fail_errno;
static _Atomic size_t max_bytes;

static bool
fails (void)
{
  if (atomic_fetch_sub (&calls_left, 1) != 1)
    return false;
  atomic_store (&has_fired, true);
  errno = atomic_load (&fail_errno);
  return true;
}

static ssize_t
test_recvmsg (int fd, struct msghdr *msg, int flags)
{
  struct iovec v = msg->msg_iov[0];
  struct msghdr small = { .msg_iov = &v, .msg_iovlen = 1 };

  if (fails ())
    return errno ? -1 : 0;
  if (atomic_load (&max_bytes) == 0)
    return recvmsg (fd, msg, flags);
  if (v.iov_len > atomic_load (&max_bytes))
    v.iov_len = atomic_load (&max_bytes);
  return recvmsg (fd, &small, flags);
}

static ssize_t
test_sendmsg (int fd, const struct msghdr *msg, int flags)
{
  struct iovec v = msg->msg_iov[0];
  const struct msghdr small = { .msg_iov = &v, .msg_iovlen = 1 };

  if (fails ()) {
    if (errno == 0)
      errno = EPIPE;
    return -1;
  }
  if (atomic_load (&max_bytes) == 0)
    return sendmsg (fd, msg, flags);
  if (v.iov_len > atomic_load (&max_bytes))
    v.iov_len = atomic_load (&max_bytes);
  return sendmsg (fd, &small, flags);
}

static const struct socket_ops test_ops = {
  .recvmsg = test_recvmsg, .sendmsg = test_sendmsg,
};

struct fixture {
  struct blk *debug;
  struct disk *disk;
  struct export_table *exports;
  struct nbd_server *server;
};

static void
start (struct fixture *f)
{
  const struct disk_options disk_options = { .name = "d" };
  const struct nbd_server_options options = { .exports = NULL };
  struct nbd_server_options server_options = options;
  struct export_options export_options = { .name = "d" };
  struct sock_address addr = { .is_unix = true };
  int fds[SOCK_ADDRESS_MAX_FDS];
  struct blk *mem;

  assert_int_equal (blk_mem_new (SIZE, &mem), 0);
  assert_int_equal (blk_debug_open (mem, &f->debug, NULL), 0);
  assert_int_equal (disk_new (f->debug, &disk_options, &f->disk, NULL), 0);
  assert_int_equal (disk_bitmap_add (f->disk, "b", 4096, false, NULL), 0);
  assert_int_equal (export_table_new (&f->exports), 0);
  export_options.blk = disk_blk (f->disk);
  export_options.disk = f->disk;
  assert_int_equal (export_add (f->exports, &export_options, NULL), 0);
  server_options.exports = f->exports;
  server_options.nr_workers = 4;
  assert_int_equal (nbd_server_new (&server_options, &f->server, NULL), 0);
  strcpy (addr.path, path);
  assert_int_equal (sock_address_listen (&addr, fds, NULL), 1);
  assert_int_equal (nbd_server_add_socket (f->server, fds[0], NULL), 0);
  assert_int_equal (nbd_server_start (f->server, NULL), 0);
}

static void
stop (struct fixture *f)
{
  nbd_server_free (f->server);
  assert_int_equal (export_remove (f->exports, "d"), 0);
  export_table_free (f->exports);
  assert_int_equal (disk_close (f->disk), 0);
  unlink (path);
}

static int
count_extents (void *opaque, const char *context, uint64_t off,
               uint32_t *entries, size_t nr, int *error)
{
  size_t *dirty = opaque, i;

  for (i = 0; strncmp (context, "qemu:", 5) == 0 && i < nr; i += 2)
    if (entries[i+1])
      *dirty += entries[i];
  return 0;
}

static bool
read_equals (struct nbd_handle *nbd, int c, uint64_t off, size_t len)
{
  static char buf[100000], expected[100000];

  if (nbd_pread (nbd, buf, len, off, 0) < 0)
    return false;
  memset (expected, c, len);
  assert_memory_equal (buf, expected, len);
  return true;
}

/* A connection that does a little of everything.  False if something failed;
 * what did not fail is right.
 */
static bool
work (struct nbd_handle *nbd)
{
  static char buf[100000];
  size_t dirty = 0;

  if (nbd_add_meta_context (nbd, "qemu:dirty-bitmap:b") < 0
      || nbd_add_meta_context (nbd, "base:allocation") < 0
      || nbd_set_export_name (nbd, "d") < 0
      || nbd_connect_unix (nbd, path) < 0)
    return false;
  memset (buf, 'a', sizeof buf);
  if (nbd_pwrite (nbd, buf, 4096, 0, 0) < 0
      || nbd_pwrite (nbd, buf, sizeof buf, 1 << 20, 0) < 0
      || nbd_pwrite (nbd, buf, 4096, 2 << 20, LIBNBD_CMD_FLAG_FUA) < 0
      || nbd_flush (nbd, 0) < 0
      || nbd_zero (nbd, 4096, 4096, 0) < 0
      || nbd_trim (nbd, 4096, 8192, 0) < 0
      || !read_equals (nbd, 'a', 0, 4096)
      || !read_equals (nbd, 'a', 1 << 20, sizeof buf)
      || !read_equals (nbd, 0, 4096, 4096)
      || nbd_cache (nbd, 4096, 0, 0) < 0
      || nbd_block_status (nbd, SIZE, 0,
                           (nbd_extent_callback) { .callback = count_extents,
                                                   .user_data = &dirty },
                           0) < 0)
    return false;
  assert_true (dirty >= 12288 + 102400 + 4096);
  nbd_shutdown (nbd, 0);
  return true;
}

static bool
run_client (void)
{
  struct nbd_handle *nbd = nbd_create ();
  bool r;

  assert_non_null (nbd);
  r = work (nbd);
  nbd_close (nbd);
  return r;
}

static void
fail_sockets (int errnum)
{
  struct fixture f;
  long n;

  atomic_store (&fail_errno, errnum);
  for (n = 1; ; ++n) {
    bool ok;

    start (&f);
    atomic_store (&has_fired, false);
    atomic_store (&calls_left, n);
    ok = run_client ();
    if (!atomic_load (&has_fired)) {
      assert_true (ok);
      atomic_store (&calls_left, 0);
      stop (&f);
      break;
    }
    /* The server lives on, and the disk is as it should be. */
    atomic_store (&calls_left, 0);
    assert_true (run_client ());
    stop (&f);
    assert_true (n < 1000);
  }
  assert_true (n > 10);
}

static void
test_sockets_break (void **state)
{
  fail_sockets (ECONNRESET);
}

static void
test_sockets_end (void **state)
{
  fail_sockets (0);
}

static void
test_calls_are_interrupted (void **state)
{
  struct fixture f;
  long n;

  atomic_store (&fail_errno, EINTR);
  for (n = 1; n < 60; ++n) {
    start (&f);
    atomic_store (&calls_left, n);
    assert_true (run_client ());
    stop (&f);
  }
  atomic_store (&calls_left, 0);
}

static void
test_single_bytes (void **state)
{
  static const size_t sizes[] = { 1, 7, 4095 };
  struct fixture f;
  size_t i;

  for (i = 0; i < sizeof sizes / sizeof sizes[0]; ++i) {
    start (&f);
    atomic_store (&max_bytes, sizes[i]);
    assert_true (run_client ());
    atomic_store (&max_bytes, 0);
    stop (&f);
  }
}

static void
test_node_fails (void **state)
{
  struct fixture f;
  uint64_t n;
  bool fired;

  for (n = 1; ; ++n) {
    bool ok;

    start (&f);
    blk_debug_fail_nth (f.debug, BLK_DEBUG_ANY, n, EIO, false);
    ok = run_client ();
    fired = blk_debug_has_fired (f.debug);
    /* An error is told, and not when there was none. */
    assert_int_equal (ok, !fired);
    blk_debug_fail_nth (f.debug, 0, 0, 0, false);
    assert_true (run_client ());
    stop (&f);
    if (!fired)
      break;
    assert_true (n < 200);
  }
  assert_true (n > 8);
}

static void
quiet (enum log_level level, const char *msg)
{
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_sockets_break),
    cmocka_unit_test (test_sockets_end),
    cmocka_unit_test (test_calls_are_interrupted),
    cmocka_unit_test (test_single_bytes),
    cmocka_unit_test (test_node_fails),
  };
  int r;

  alarm (120);
  log_set_handler (quiet);
  if (mkdtemp (dir) == NULL)
    return 1;
  snprintf (path, sizeof path, "%s/sock", dir);
  socket_ops = &test_ops;
  r = cmocka_run_group_tests (tests, NULL, NULL);
  rmdir (dir);
  return r;
}
