/* SPDX-License-Identifier: BSD-3-Clause */
/* The control server's threads: events, peers that do not read, the end. */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
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

#include "qmp.h"
#include "qmp-args.h"
#include "sockaddr.h"

#define TIMEOUT 20000           /* ms */

struct fixture {
  char dir[32];
  struct sock_address addr;
  struct service *service;
  struct qmp_server *q;
};

static int
setup (void **state)
{
  struct fixture *f = calloc (1, sizeof *f);
  int fds[SOCK_ADDRESS_MAX_FDS];
  struct error err = ERROR_INIT;

  strcpy (f->dir, "/tmp/test-qmp.XXXXXX");
  assert_non_null (mkdtemp (f->dir));
  f->addr.is_unix = true;
  snprintf (f->addr.path, sizeof f->addr.path, "%s/s", f->dir);
  assert_int_equal (sock_address_listen (&f->addr, fds, &err), 1);
  assert_int_equal (service_new (&f->service), 0);
  assert_int_equal (qmp_server_new (f->service, 0, &f->q), 0);
  assert_int_equal (qmp_server_add_socket (f->q, fds[0], &err), 0);
  assert_int_equal (qmp_server_start (f->q, &err), 0);
  *state = f;
  return 0;
}

static int
teardown (void **state)
{
  struct fixture *f = *state;

  qmp_server_free (f->q);
  service_free (f->service);
  unlink (f->addr.path);
  rmdir (f->dir);
  free (f);
  return 0;
}

/* Wait for bytes or the end; false when the time is up. */
static bool
is_readable (int fd)
{
  struct pollfd p = { .fd = fd, .events = POLLIN };

  return poll (&p, 1, TIMEOUT) == 1;
}

/* The next line, into buf; its length, or 0 at the end. */
static size_t
read_line (int fd, char *buf, size_t size)
{
  size_t n = 0;

  while (n < size - 1) {
    assert_true (is_readable (fd));
    if (read (fd, &buf[n], 1) <= 0)
      return 0;
    if (buf[n++] == '\n')
      break;
  }
  buf[n] = '\0';
  return n;
}

/* Read the one message that is coming, of any length; returns that. */
static size_t
read_message (int fd)
{
  static char buf[65536];
  size_t total = 0;
  ssize_t n;

  do {
    assert_true (is_readable (fd));
    n = read (fd, buf, sizeof buf);
    assert_true (n > 0);
    total += (size_t) n;
  } while (buf[n - 1] != '\n');
  return total;
}

/* How many messages end in what can be read now. */
static size_t
count_messages (int fd)
{
  static char buf[65536];
  size_t count = 0;
  ssize_t n, i;

  assert_true (is_readable (fd));
  n = read (fd, buf, sizeof buf);
  assert_true (n > 0);
  for (i = 0; i < n; i++)
    count += buf[i] == '\n';
  return count;
}

static void
expect_line (int fd, const char *start)
{
  char line[1000];

  assert_true (read_line (fd, line, sizeof line) > 0);
  line[strlen (start)] = '\0';
  assert_string_equal (line, start);
}

static void
send_text (int fd, const char *text)
{
  assert_int_equal (send (fd, text, strlen (text), MSG_NOSIGNAL),
                    strlen (text));
}

static int
connect_peer (struct fixture *f, bool negotiate)
{
  struct error err = ERROR_INIT;
  int fd = sock_address_connect (&f->addr, -1, &err);

  assert_true (fd >= 0);
  expect_line (fd, "{\"QMP\": ");
  if (negotiate) {
    send_text (fd, "{\"execute\": \"qmp_capabilities\"}");
    expect_line (fd, "{\"return\": {}}");
  }
  return fd;
}

static json_t *
event_data (size_t len)
{
  char *text = malloc (len + 1);
  json_t *data;

  memset (text, 'x', len);
  text[len] = '\0';
  data = json_pack ("{ss}", "text", text);
  free (text);
  assert_non_null (data);
  return data;
}

/* Only those past qmp_capabilities get events. */
static void
test_events (void **state)
{
  struct fixture *f = *state;
  int a = connect_peer (f, true), b = connect_peer (f, false);
  json_t *data = event_data (3);

  qmp_event (f->q, "ONE", data);
  qmp_event (f->q, "TWO", data);
  expect_line (a, "{\"event\": \"ONE\", \"timestamp\": {\"seconds\": ");
  expect_line (a, "{\"event\": \"TWO\", ");
  send_text (b, "{\"execute\": \"qmp_capabilities\"}");
  expect_line (b, "{\"return\": {}}");
  qmp_event (f->q, "THREE", data);
  expect_line (a, "{\"event\": \"THREE\", ");
  expect_line (b, "{\"event\": \"THREE\", ");
  json_decref (data);
  close (a);
  close (b);
}

/* A peer that does not read is cut off; what it cost is bounded. */
static void
test_deaf_peer (void **state)
{
  const size_t nr = 120, size = 65536;
  struct fixture *f = *state;
  int deaf = connect_peer (f, true), other = connect_peer (f, true);
  json_t *data = event_data (size);
  static char buf[65536];
  size_t i, total = 0;
  ssize_t n;

  for (i = 0; i < nr; i++) {
    qmp_event (f->q, "BIG", data);
    assert_true (read_message (other) > size);
  }
  json_decref (data);
  for (;;) {
    assert_true (is_readable (deaf));
    n = read (deaf, buf, sizeof buf);
    if (n <= 0)
      break;
    total += (size_t) n;
  }
  /* What the socket holds, and the backlog that was never sent. */
  assert_true (total < QMP_MAX_BACKLOG);
  send_text (other, "{\"execute\": \"query-version\"}");
  expect_line (other, "{\"return\": ");
  close (deaf);
  close (other);
}

/* A peer that reads late, but within the limit, gets everything. */
static void
test_late_peer (void **state)
{
  struct fixture *f = *state;
  int fd = connect_peer (f, true), i;
  json_t *data = event_data (5000);
  static char line[5200];

  for (i = 0; i < 100; i++)
    qmp_event (f->q, "LATE", data);
  json_decref (data);
  for (i = 0; i < 100; i++) {
    assert_true (read_line (fd, line, sizeof line) > 5000);
    assert_memory_equal (line, "{\"event\": \"LATE\"", 16);
  }
  close (fd);
}

/* Stopped: no request is answered, no connection taken, events still go. */
static void
test_stop (void **state)
{
  struct fixture *f = *state;
  int fd = connect_peer (f, true);
  json_t *data = event_data (3);
  char line[100];

  qmp_server_stop (f->q);
  send_text (fd, "{\"execute\": \"query-version\"}");
  qmp_event (f->q, "LAST", data);
  json_decref (data);
  qmp_server_free (f->q);
  f->q = NULL;
  expect_line (fd, "{\"event\": \"LAST\", ");
  assert_int_equal (read_line (fd, line, sizeof line), 0);
  close (fd);
}

static void *
free_thread (void *q)
{
  qmp_server_free (q);
  return NULL;
}

/* More is waiting than the socket holds: a peer that reads gets all of it
 * after the end was asked for, one that does not cannot hold it up.
 */
static void
test_flush (void **state)
{
  struct fixture *f = *state;
  int fd = connect_peer (f, true), deaf = connect_peer (f, true), i;
  json_t *data = event_data (65536);
  pthread_t thread;
  char byte;

  for (i = 0; i < 20; i++)
    qmp_event (f->q, "FLUSH", data);
  json_decref (data);
  assert_int_equal (pthread_create (&thread, NULL, free_thread, f->q), 0);
  f->q = NULL;
  while (i > 0)
    i -= (int) count_messages (fd);
  assert_int_equal (i, 0);
  assert_true (is_readable (fd));
  assert_int_equal (read (fd, &byte, 1), 0);
  assert_int_equal (pthread_join (thread, NULL), 0);
  close (fd);
  close (deaf);
}

/* A reply is complete although the server ends at once. */
static void
test_last_reply (void **state)
{
  struct fixture *f = *state;
  int fd = connect_peer (f, true);
  char line[100];

  send_text (fd, "{\"execute\": \"quit\"}");
  assert_true (is_readable (service_quit_fd (f->service)));
  qmp_server_free (f->q);
  f->q = NULL;
  expect_line (fd, "{\"return\": {}}");
  assert_int_equal (read_line (fd, line, sizeof line), 0);
  close (fd);
}

static void
test_text (void **state)
{
  static const struct { const char *in, *out; } cases[] = {
    { "", "" }, { "plain", "plain" }, { "\xc3\xa9", "\xc3\xa9" },
    { "a\xff" "b", "a?b" }, { "\xc3", "?" }, { "\xc3\xa9\xff", "???" },
  };
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    json_t *text = qmp_text (cases[i].in);

    assert_string_equal (json_string_value (text), cases[i].out);
    json_decref (text);
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown (test_events, setup, teardown),
    cmocka_unit_test_setup_teardown (test_deaf_peer, setup, teardown),
    cmocka_unit_test_setup_teardown (test_late_peer, setup, teardown),
    cmocka_unit_test_setup_teardown (test_stop, setup, teardown),
    cmocka_unit_test_setup_teardown (test_flush, setup, teardown),
    cmocka_unit_test_setup_teardown (test_last_reply, setup, teardown),
    cmocka_unit_test (test_text),
  };

  alarm (60);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
