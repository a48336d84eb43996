/* SPDX-License-Identifier: BSD-3-Clause */
/* common/sockaddr: text forms, listening, stale sockets, activation. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "sockaddr.h"
#include "unit/unit.h"

/* Takes the place of the C library's: makes the moment between bind and listen
 * long, in which a socket looks stale.
 */
static bool is_listen_slow;

int
listen (int fd, int backlog)
{
  if (is_listen_slow)
    nanosleep (&(struct timespec) { .tv_nsec = 2000000 }, NULL);
  return (int) syscall (SYS_listen, fd, backlog);
}

static char dir[] = "/tmp/tidemark-test.XXXXXX";

static int
set_up (void **state)
{
  return mkdtemp (dir) ? 0 : -1;
}

static int
tear_down (void **state)
{
  return rmdir (dir);
}

static void
expect_address (const char *s, const char *default_port, bool is_unix,
                const char *host, const char *port, const char *formatted)
{
  struct error err = ERROR_INIT;
  struct sock_address addr, again;
  char buf[400];

  if (sock_address_parse ("--listen", s, default_port, &addr, &err) < 0)
    fail_msg ("%s: %s", s, err.msg);
  assert_int_equal (addr.is_unix, is_unix);
  assert_string_equal (is_unix ? addr.path : addr.host, host);
  if (!is_unix)
    assert_string_equal (addr.port, port);
  sock_address_format (&addr, buf, sizeof buf);
  assert_string_equal (buf, formatted);
  assert_int_equal (sock_address_parse ("x", buf, NULL, &again, &err), 0);
  assert_memory_equal (&addr, &again, sizeof addr);
}

static void
test_parse (void **state)
{
  expect_address ("unix:/run/x", NULL, true, "/run/x", "", "unix:/run/x");
  expect_address ("/run/x:1", NULL, true, "/run/x:1", "", "unix:/run/x:1");
  expect_address ("unix:x", NULL, true, "x", "", "unix:x");
  expect_address ("tcp:host:10809", NULL, false, "host", "10809",
                  "host:10809");
  expect_address ("host:1", NULL, false, "host", "1", "host:1");
  expect_address ("host", "10809", false, "host", "10809", "host:10809");
  expect_address ("10.0.0.1:0", "1", false, "10.0.0.1", "0", "10.0.0.1:0");
  expect_address (":10810", NULL, false, "", "10810", ":10810");
  expect_address ("[::1]:10810", NULL, false, "::1", "10810",
                  "[::1]:10810");
  expect_address ("tcp:[fe80::1%eth0]", "7", false, "fe80::1%eth0", "7",
                  "[fe80::1%eth0]:7");
  expect_address ("tcp:unix:80", NULL, false, "unix", "80", "tcp:unix:80");
}

static void
expect_error (const char *s, const char *text)
{
  struct error err = ERROR_INIT;
  struct sock_address addr;

  assert_true (sock_address_parse ("--listen", s, NULL, &addr, &err) < 0);
  if (strncmp (err.msg, "--listen: ", 10) != 0 || !strstr (err.msg, text))
    fail_msg ("%s: no \"%s\" in: %s", s, text, err.msg);
}

static void
test_bad (void **state)
{
  char path[120] = "unix:/", host[300];

  expect_error ("", "is empty");
  expect_error ("unix:", "is empty");
  expect_error ("host", "has no port");
  expect_error ("tcp:", "has no port");
  expect_error ("host:", "is not a port");
  expect_error ("host:65536", "is not a port");
  expect_error ("host:-1", "is not a port");
  expect_error ("host:nbd", "is not a port");
  expect_error ("host:999999999999999999999999999999999999", "not a port");
  expect_error ("::1", "in brackets");
  expect_error ("a:b:1", "in brackets");
  expect_error ("[::1", "is not an address");
  expect_error ("[]:1", "is not an address");
  expect_error ("[::1]x:1", "is not an address");
  expect_error ("[::1]", "has no port");
  memset (path + 6, 'x', 107);
  path[5 + 108] = '\0';
  expect_error (path, "108 bytes, at most 107");
  memset (host, 'h', sizeof host);
  strcpy (host + sizeof host - 3, ":1");
  expect_error (host, "host name is too long");
}

static struct sock_address
address (const char *s)
{
  struct error err = ERROR_INIT;
  struct sock_address addr;

  if (sock_address_parse ("test", s, NULL, &addr, &err) < 0)
    fail_msg ("%s: %s", s, err.msg);
  return addr;
}

static struct sock_address
unix_address (const char *name)
{
  char buf[80];

  snprintf (buf, sizeof buf, "unix:%s/%s", dir, name);
  return address (buf);
}

/* Connect to addr, accept on one of fds, pass a byte. */
static void
expect_connection (const struct sock_address *addr, int fd)
{
  struct error err = ERROR_INIT;
  int client, server;
  char c = 'x';

  client = sock_address_connect (addr, -1, &err);
  if (client < 0)
    fail_msg ("%s", err.msg);
  assert_int_equal (fcntl (client, F_GETFL) & O_NONBLOCK, 0);
  assert_int_equal (fcntl (client, F_GETFD), FD_CLOEXEC);
  server = accept (fd, NULL, NULL);
  assert_true (server >= 0);
  assert_int_equal (write (client, "y", 1), 1);
  assert_int_equal (read (server, &c, 1), 1);
  assert_int_equal (c, 'y');
  close (client);
  close (server);
}

static void
test_unix (void **state)
{
  struct sock_address addr = unix_address ("sock");
  int fds[SOCK_ADDRESS_MAX_FDS];
  struct error err = ERROR_INIT;

  assert_int_equal (sock_address_listen (&addr, fds, &err), 1);
  assert_int_equal (fcntl (fds[0], F_GETFD), FD_CLOEXEC);
  assert_true (fcntl (fds[0], F_GETFL) & O_NONBLOCK);
  expect_connection (&addr, fds[0]);
  close (fds[0]);
  assert_int_equal (sock_address_connect (&addr, -1, &err), -ECONNREFUSED);
  assert_non_null (strstr (err.msg, addr.path));
  assert_int_equal (unlink (addr.path), 0);
  assert_int_equal (sock_address_connect (&addr, -1, &err), -ENOENT);
}

/* A socket file whose server is gone is replaced, one in use is not. */
static void
test_stale (void **state)
{
  struct sock_address addr = unix_address ("sock");
  int fds[SOCK_ADDRESS_MAX_FDS], other[SOCK_ADDRESS_MAX_FDS];
  struct error err = ERROR_INIT;

  assert_int_equal (sock_address_listen (&addr, fds, &err), 1);
  assert_int_equal (sock_address_listen (&addr, other, &err), -EADDRINUSE);
  assert_non_null (strstr (err.msg, "another process is listening"));
  assert_non_null (strstr (err.msg, addr.path));
  /* The connection test itself is in the queue. */
  close (accept (fds[0], NULL, NULL));
  expect_connection (&addr, fds[0]);

  close (fds[0]);
  assert_int_equal (sock_address_listen (&addr, other, &err), 1);
  expect_connection (&addr, other[0]);
  close (other[0]);
  assert_int_equal (unlink (addr.path), 0);
}

/* A server whose queue is full is not dead. */
static void
test_stale_full_queue (void **state)
{
  struct sock_address addr = unix_address ("sock");
  struct sockaddr_un sun = { .sun_family = AF_UNIX };
  int fds[SOCK_ADDRESS_MAX_FDS], fd, clients[3], i;
  struct error err = ERROR_INIT;

  strcpy (sun.sun_path, addr.path);
  fd = socket (AF_UNIX, SOCK_STREAM, 0);
  assert_int_equal (bind (fd, (struct sockaddr *) &sun, sizeof sun), 0);
  assert_int_equal (listen (fd, 1), 0);
  for (i = 0; i < 3; i++) {
    clients[i] = socket (AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (connect (clients[i], (struct sockaddr *) &sun, sizeof sun) < 0)
      assert_int_equal (errno, EAGAIN);
  }
  assert_int_equal (sock_address_listen (&addr, fds, &err), -EADDRINUSE);
  for (i = 0; i < 3; i++)
    close (clients[i]);
  close (fd);
  assert_int_equal (unlink (addr.path), 0);
}

static void
test_not_a_socket (void **state)
{
  struct sock_address addr = unix_address ("file");
  int fds[SOCK_ADDRESS_MAX_FDS];
  struct error err = ERROR_INIT;

  close (open (addr.path, O_CREAT | O_WRONLY, 0600));
  assert_int_equal (sock_address_listen (&addr, fds, &err), -EEXIST);
  assert_non_null (strstr (err.msg, "is not a socket"));
  assert_int_equal (unlink (addr.path), 0);
  addr = unix_address ("no/sock");
  assert_int_equal (sock_address_listen (&addr, fds, &err), -ENOENT);
}

struct racer {
  struct sock_address addr;
  pthread_barrier_t *barrier;
  int result;
  int fd;
};

static void *
race (void *arg)
{
  struct racer *racer = arg;
  int fds[SOCK_ADDRESS_MAX_FDS];

  pthread_barrier_wait (racer->barrier);
  racer->result = sock_address_listen (&racer->addr, fds, NULL);
  racer->fd = racer->result > 0 ? fds[0] : -1;
  return NULL;
}

/* Several start at once over a stale socket: one wins and stays reachable. */
static void
test_stale_race (void **state)
{
  struct sock_address addr = unix_address ("sock");
  struct racer racers[4];
  pthread_barrier_t barrier;
  pthread_t threads[4];
  unsigned round, i, nr_won;
  int fd = -1;

  is_listen_slow = true;
  pthread_barrier_init (&barrier, NULL, 4);
  for (round = 0; round < 10; round++) {
    nr_won = 0;
    for (i = 0; i < 4; i++) {
      racers[i] = (struct racer) { .addr = addr, .barrier = &barrier };
      assert_int_equal (pthread_create (&threads[i], NULL, race, &racers[i]),
                        0);
    }
    for (i = 0; i < 4; i++) {
      pthread_join (threads[i], NULL);
      if (racers[i].result > 0) {
        nr_won++;
        fd = racers[i].fd;
      }
      else
        assert_int_equal (racers[i].result, -EADDRINUSE);
    }
    assert_int_equal (nr_won, 1);
    close (sock_address_connect (&addr, -1, NULL));
    /* The first in the queue may be another racer's question. */
    assert_true (accept (fd, NULL, NULL) >= 0);
    close (fd);
  }
  is_listen_slow = false;
  pthread_barrier_destroy (&barrier);
  assert_int_equal (unlink (addr.path), 0);
}

/* The port of a listening socket. */
static unsigned
port_of (int fd)
{
  struct sockaddr_storage ss;
  socklen_t len = sizeof ss;
  char port[8];

  assert_int_equal (getsockname (fd, (struct sockaddr *) &ss, &len), 0);
  assert_int_equal (getnameinfo ((struct sockaddr *) &ss, len, NULL, 0, port,
                                 sizeof port, NI_NUMERICSERV), 0);
  return (unsigned) atoi (port);
}

static void
test_tcp (void **state)
{
  struct sock_address addr = address ("127.0.0.1:0");
  int fds[SOCK_ADDRESS_MAX_FDS], other[SOCK_ADDRESS_MAX_FDS];
  struct error err = ERROR_INIT;
  char buf[80];

  assert_int_equal (sock_address_listen (&addr, fds, &err), 1);
  snprintf (buf, sizeof buf, "127.0.0.1:%u", port_of (fds[0]));
  addr = address (buf);
  expect_connection (&addr, fds[0]);
  assert_int_equal (sock_address_listen (&addr, other, &err), -EADDRINUSE);
  assert_non_null (strstr (err.msg, buf));
  close (fds[0]);
  assert_int_equal (sock_address_connect (&addr, -1, &err), -ECONNREFUSED);
  assert_non_null (strstr (err.msg, buf));
}

/* ":0": IPv4 and IPv6, as far as the machine has them, on one port. */
static void
test_tcp_any (void **state)
{
  struct sock_address addr = address (":0"), to;
  int fds[SOCK_ADDRESS_MAX_FDS], nr, i;
  struct sockaddr_storage ss;
  struct error err = ERROR_INIT;
  char buf[80];
  socklen_t len;

  nr = sock_address_listen (&addr, fds, &err);
  if (nr < 1)
    fail_msg ("%s", err.msg);
  for (i = 0; i < nr; i++) {
    assert_int_equal (port_of (fds[i]), port_of (fds[0]));
    len = sizeof ss;
    assert_int_equal (getsockname (fds[i], (struct sockaddr *) &ss, &len), 0);
    snprintf (buf, sizeof buf, ss.ss_family == AF_INET6 ? "[::1]:%u"
              : "127.0.0.1:%u", port_of (fds[0]));
    to = address (buf);
    /* The wildcard takes a loopback connection of its own protocol only. */
    if (ss.ss_family == AF_INET || nr > 1)
      expect_connection (&to, fds[i]);
  }
  for (i = 0; i < nr; i++)
    close (fds[i]);
}

static void
test_unknown_host (void **state)
{
  struct sock_address addr = address ("256.256.256.256.invalid:1");
  int fds[SOCK_ADDRESS_MAX_FDS];
  struct error err = ERROR_INIT;

  assert_true (sock_address_connect (&addr, -1, &err) < 0);
  assert_non_null (strstr (err.msg, addr.host));
  assert_true (sock_address_listen (&addr, fds, &err) < 0);
}

/* What sock_activation_fds says in a child with these variables ("" = not
 * set, "self" = the child's own id) and descriptor 3 as given.
 */
static int
activation (const char *pid, const char *fds, int fd)
{
  struct error err = ERROR_INIT;
  pid_t child = fork ();
  char buf[32];
  int status, r;

  assert_true (child >= 0);
  if (child == 0) {
    snprintf (buf, sizeof buf, "%d", (int) getpid ());
    unsetenv ("LISTEN_PID");
    unsetenv ("LISTEN_FDS");
    if (*pid)
      setenv ("LISTEN_PID", strcmp (pid, "self") == 0 ? buf : pid, 1);
    if (*fds)
      setenv ("LISTEN_FDS", fds, 1);
    if (fd >= 0)
      dup2 (fd, 3);
    else
      close (3);
    r = sock_activation_fds (&err);
    if (r > 0 && (getenv ("LISTEN_PID") || getenv ("LISTEN_FDS")
                  || fcntl (3, F_GETFD) != FD_CLOEXEC
                  || !(fcntl (3, F_GETFL) & O_NONBLOCK)))
      _exit (99);
    _exit (r < 0 ? (*err.msg ? 100 : 98) : r);
  }
  assert_int_equal (waitpid (child, &status, 0), child);
  assert_true (WIFEXITED (status));
  return WEXITSTATUS (status);
}

static void
test_activation (void **state)
{
  struct sock_address addr = unix_address ("sock");
  int fds[SOCK_ADDRESS_MAX_FDS], plain;

  assert_int_equal (sock_address_listen (&addr, fds, NULL), 1);
  plain = socket (AF_UNIX, SOCK_STREAM, 0);
  assert_int_equal (activation ("", "", fds[0]), 0);
  assert_int_equal (activation ("self", "", fds[0]), 0);
  assert_int_equal (activation ("1", "1", fds[0]), 0);
  assert_int_equal (activation ("self", "1", fds[0]), 1);
  assert_int_equal (activation ("self", "1", -1), 100);
  assert_int_equal (activation ("self", "1", plain), 100);
  assert_int_equal (activation ("self", "0", fds[0]), 100);
  assert_int_equal (activation ("self", "x", fds[0]), 100);
  assert_int_equal (activation ("self", "-1", fds[0]), 100);
  assert_int_equal (activation ("self", "1x", fds[0]), 100);
  assert_int_equal (activation ("self", "99999999999", fds[0]), 100);
  assert_int_equal (activation ("x", "1", fds[0]), 100);
  close (plain);
  close (fds[0]);
  assert_int_equal (unlink (addr.path), 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_parse),
    cmocka_unit_test (test_bad),
    cmocka_unit_test (test_unix),
    cmocka_unit_test (test_stale),
    cmocka_unit_test (test_stale_full_queue),
    cmocka_unit_test (test_not_a_socket),
    cmocka_unit_test (test_stale_race),
    cmocka_unit_test (test_tcp),
    cmocka_unit_test (test_tcp_any),
    cmocka_unit_test (test_unknown_host),
    cmocka_unit_test (test_activation),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, set_up, tear_down);
}
