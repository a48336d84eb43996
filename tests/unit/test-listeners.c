/* SPDX-License-Identifier: BSD-3-Clause */
/* Addresses of a service: what is refused, URIs, files left and removed. */
#include "config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "listeners.h"

static char dir[] = "/tmp/test-listeners.XXXXXX";

static int
setup (void **state)
{
  return mkdtemp (dir) && chdir (dir) == 0 ? 0 : -1;
}

static int
teardown (void **state)
{
  /* Fails if a socket file was left. */
  return chdir ("/") == 0 && rmdir (dir) == 0 ? 0 : -1;
}

/* A bound set with one backup address. */
static struct listeners *
bound (const char *address)
{
  struct error err = ERROR_INIT;
  struct listeners *l;

  assert_int_equal (listeners_new (&l), 0);
  if (listeners_add_address (l, SERVICE_BACKUP, address, &err) < 0 ||
      listeners_bind (l, &err) < 0) {
    print_message ("%s\n", err.msg);
    listeners_free (l);
    return NULL;
  }
  return l;
}

static void
expect_uri (const struct listeners *l, const char *export, int control_fd,
            const char *expected)
{
  struct error err = ERROR_INIT;
  char *uri = listeners_backup_uri (l, export, control_fd, false, &err);
  char *port;

  assert_non_null (uri);
  /* A port that the kernel chose. */
  port = strstr (uri, "]:");
  port = port ? port + 1 : strrchr (uri, ':');
  if (strstr (expected, ":*/")) {
    size_t digits = strspn (port + 1, "0123456789");

    assert_true (digits > 0 && atoi (port + 1) > 0);
    memmove (port + 2, port + 1 + digits, strlen (port + 1 + digits) + 1);
    port[1] = '*';
  }
  assert_string_equal (uri, expected);
  free (uri);
}

static void
test_unix_uri (void **state)
{
  struct listeners *l = bound ("unix:a b&?#%.sock");
  char expected[200];

  assert_non_null (l);
  snprintf (expected, sizeof expected,
            "nbd+unix:///id/vda?socket=%s/a%%20b%%26%%3F%%23%%25.sock", dir);
  expect_uri (l, "id/vda", -1, expected);
  snprintf (expected, sizeof expected,
            "nbd+unix:///%%C3%%A9%%3F?socket=%s/a%%20b%%26%%3F%%23%%25.sock",
            dir);
  expect_uri (l, "\xc3\xa9?", -1, expected);
  assert_int_equal (access ("a b&?#%.sock", F_OK), 0);
  listeners_free (l);
}

/* Our end of a connection over TCP. */
static int
accepted (int domain, int *ret_peer)
{
  struct sockaddr_in6 in6 = { .sin6_family = AF_INET6,
                              .sin6_addr = IN6ADDR_LOOPBACK_INIT };
  struct sockaddr_in in = { .sin_family = AF_INET,
                            .sin_addr = { htonl (0x7f000009) } };
  struct sockaddr *addr =
    domain == AF_INET ? (struct sockaddr *) &in : (struct sockaddr *) &in6;
  socklen_t len = domain == AF_INET ? sizeof in : sizeof in6;
  int listener = socket (domain, SOCK_STREAM, 0), fd;

  if (listener < 0 || bind (listener, addr, len) < 0) {
    if (listener >= 0)
      close (listener);
    return -1;
  }
  assert_int_equal (listen (listener, 1), 0);
  assert_int_equal (getsockname (listener, addr, &len), 0);
  *ret_peer = socket (domain, SOCK_STREAM, 0);
  assert_int_equal (connect (*ret_peer, addr, len), 0);
  fd = accept (listener, NULL, NULL);
  assert_true (fd >= 0);
  close (listener);
  return fd;
}

static void
test_tcp_uri (void **state)
{
  struct listeners *l = bound ("127.0.0.1:0");
  int peer, fd = accepted (AF_INET, &peer);

  assert_non_null (l);
  expect_uri (l, "id/vda", -1, "nbd://127.0.0.1:*/id/vda");
  /* Bound to an address: that one, whatever the client came to. */
  expect_uri (l, "id/vda", fd, "nbd://127.0.0.1:*/id/vda");
  listeners_free (l);
  l = bound ("0.0.0.0:0");
  assert_non_null (l);
  expect_uri (l, "v", -1, "nbd://127.0.0.1:*/v");
  expect_uri (l, "v", fd, "nbd://127.0.0.9:*/v");
  listeners_free (l);
  close (fd);
  close (peer);
}

static void
test_ipv6_uri (void **state)
{
  struct listeners *l;
  int peer, fd = accepted (AF_INET6, &peer);

  if (fd < 0) {
    print_message ("no IPv6 here\n");
    return;
  }
  l = bound ("[::1]:0");
  assert_non_null (l);
  expect_uri (l, "v", -1, "nbd://[::1]:*/v");
  listeners_free (l);
  l = bound ("[::]:0");
  assert_non_null (l);
  expect_uri (l, "v", -1, "nbd://[::1]:*/v");
  expect_uri (l, "v", fd, "nbd://[::1]:*/v");
  listeners_free (l);
  close (fd);
  close (peer);
}

/* Of several, the one that the client can reach. */
static void
test_best_uri (void **state)
{
  struct error err = ERROR_INIT;
  struct listeners *l;
  char expected[100];
  int peer, fd = accepted (AF_INET, &peer), pair[2];

  assert_int_equal (socketpair (AF_UNIX, SOCK_STREAM, 0, pair), 0);
  assert_int_equal (listeners_new (&l), 0);
  assert_int_equal (listeners_add_address (l, SERVICE_LIVE, "127.0.0.2:0",
                                           &err), 0);
  assert_int_equal (listeners_add_address (l, SERVICE_BACKUP, "unix:s", &err),
                    0);
  assert_int_equal (listeners_add_address (l, SERVICE_BACKUP, "127.0.0.1:0",
                                           &err), 0);
  assert_int_equal (listeners_bind (l, &err), 0);
  snprintf (expected, sizeof expected, "nbd+unix:///v?socket=%s/s", dir);
  expect_uri (l, "v", pair[0], expected);
  expect_uri (l, "v", fd, "nbd://127.0.0.1:*/v");
  listeners_free (l);
  close (pair[0]);
  close (pair[1]);
  close (fd);
  close (peer);
}

static void
expect_refused (struct listeners *l, enum service_listener kind,
                const char *address, const char *text)
{
  struct error err = ERROR_INIT;

  assert_true (listeners_add_address (l, kind, address, &err) < 0);
  if (strstr (err.msg, text) == NULL)
    fail_msg ("no '%s' in '%s'", text, err.msg);
}

static void
test_refused (void **state)
{
  struct error err = ERROR_INIT;
  struct listeners *l;
  char text[100];

  assert_int_equal (listeners_new (&l), 0);
  assert_false (listeners_has (l, SERVICE_CONTROL));
  assert_null (listeners_backup_uri (l, "", -1, true, &err));
  assert_non_null (strstr (err.msg, "no backup listener"));
  assert_int_equal (listeners_add_address (l, SERVICE_CONTROL, "unix:s",
                                           &err), 0);
  assert_true (listeners_has (l, SERVICE_CONTROL));
  assert_false (listeners_has (l, SERVICE_BACKUP));
  expect_refused (l, SERVICE_CONTROL, "unix:s", "twice");
  expect_refused (l, SERVICE_LIVE, "unix:s", "twice");
  assert_false (listeners_has_tcp_control (l, text, sizeof text));
  assert_int_equal (listeners_add_address (l, SERVICE_CONTROL, "tcp:[::1]",
                                           &err), 0);
  assert_true (listeners_has_tcp_control (l, text, sizeof text));
  assert_string_equal (text, "[::1]:10811");
  expect_refused (l, SERVICE_LIVE, "", "live address");
  assert_int_equal (listeners_add_address (l, SERVICE_LIVE, "127.0.0.1:0",
                                           &err), 0);
  assert_int_equal (listeners_add_address (l, SERVICE_LIVE, "127.0.0.1:0",
                                           &err), 0);
  listeners_free (l);
}

/* Sockets that are given away are not closed twice; others are closed. */
static void
test_take (void **state)
{
  struct error err = ERROR_INIT;
  struct listeners *l = bound ("unix:s");
  int fd;

  assert_non_null (l);
  assert_int_equal (listeners_nr (l), 1);
  assert_int_equal (listeners_take_fd (l, 0, SERVICE_LIVE), -1);
  fd = listeners_take_fd (l, 0, SERVICE_BACKUP);
  assert_true (fd >= 0);
  assert_int_equal (listeners_take_fd (l, 0, SERVICE_BACKUP), -1);
  listeners_free (l);
  assert_int_equal (close (fd), 0);
  assert_int_equal (access ("s", F_OK), -1);

  assert_int_equal (listeners_new (&l), 0);
  fd = socket (AF_UNIX, SOCK_STREAM, 0);
  assert_true (listeners_add_socket (l, SERVICE_LIVE, fd, &err) < 0);
  assert_non_null (strstr (err.msg, "not a listening"));
  assert_int_equal (close (fd), -1);
  listeners_free (l);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_unix_uri),
    cmocka_unit_test (test_tcp_uri),
    cmocka_unit_test (test_ipv6_uri),
    cmocka_unit_test (test_best_uri),
    cmocka_unit_test (test_refused),
    cmocka_unit_test (test_take),
  };

  alarm (30);
  return cmocka_run_group_tests (tests, setup, teardown);
}
