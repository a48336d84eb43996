/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands of the user's around a backup and around its point.  Main thread, at
 * times when there is no other but that of interrupt.c, which takes no locks:
 * a child may go on without exec.
 *
 * A guest is frozen by a process that thaws it in any case: when it is told
 * (freeze_end), when the time is over, and when we are gone.
 *   FREEZING -> FROZEN  [says 'F']      or thaws, says 'E' and ends
 *   FROZEN   -> ended   [thaws; says 'T' in time, 'L' late, 'X' failed]
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "hooks.h"
#include "interrupt.h"
#include "log.h"

struct freeze {
  pid_t pid;
  int fd;
  const char *command;
  unsigned limit;
};

/* In the child. */
static void
exec_shell (const char *command, const char *arg)
{
  size_t len = strlen (command) + sizeof " \"$@\"";
  char *line = malloc (len);
  int null = open ("/dev/null", O_RDONLY);

  if (!line)
    _exit (127);
  snprintf (line, len, "%s \"$@\"", command);
  dup2 (null, STDIN_FILENO);
  dup2 (STDERR_FILENO, STDOUT_FILENO);
  interrupt_before_exec ();
  setenv ("TIDEMARK_HOOK", arg, 1);
  execl ("/bin/sh", "sh", "-c", line, "sh", arg, (char *) NULL);
  _exit (127);
}

/* Until it ends or the time is over. */
static bool
wait_child (pid_t pid, unsigned limit, int *ret_status)
{
  struct pollfd pfd = { .fd = -1, .events = POLLIN };
  const int64_t end = clock_ms () + limit * INT64_C (1000);
  int64_t left = 1;

  if (limit > 0) {
    pfd.fd = (int) syscall (SYS_pidfd_open, pid, 0);
    while (pfd.fd >= 0 && (left = end - clock_ms ()) > 0
           && poll (&pfd, 1, (int) left) <= 0)
      ;
    if (pfd.fd >= 0)
      close (pfd.fd);
  }
  if (left <= 0)
    kill (-pid, SIGKILL);
  while (waitpid (pid, ret_status, 0) < 0 && errno == EINTR)
    ;
  return left > 0;
}

int
hook_run (const char *command, const char *arg, unsigned limit,
          struct error *err)
{
  int status = 0;
  pid_t pid = fork ();

  if (pid < 0)
    return error_set_errno (err, errno, "fork");
  if (pid == 0) {
    if (limit > 0)
      setpgid (0, 0);
    exec_shell (command, arg);
  }
  if (limit > 0)
    setpgid (pid, pid);
  if (!wait_child (pid, limit, &status))
    return error_set (err, ETIMEDOUT, "%.100s %s: not done after %u s", command,
                      arg, limit);
  if (WIFSIGNALED (status))
    return error_set (err, EIO, "%.100s %s: ended by signal %d", command, arg,
                      WTERMSIG (status));
  if (WEXITSTATUS (status) != 0)
    return error_set (err, EIO, "%.100s %s: failed with status %d", command,
                      arg, WEXITSTATUS (status));
  return 0;
}

static void
say (int fd, char c)
{
  /* Whoever should read it may be gone. */
  (void) !send (fd, &c, 1, MSG_NOSIGNAL);
}

/* The process that thaws. */
static void
guard (const char *command, unsigned limit, int fd)
{
  struct pollfd pfd = { .fd = fd, .events = POLLIN };
  const int64_t end = clock_ms () + limit * INT64_C (1000);
  struct error err = ERROR_INIT;
  bool is_frozen = hook_run (command, "freeze", limit, &err) == 0;
  int64_t left = 0;
  char c;

  if (!is_frozen)
    log_error ("%s", err.msg);
  else {
    say (fd, 'F');
    while ((left = end - clock_ms ()) > 0 && poll (&pfd, 1, (int) left) <= 0)
      ;
    /* The end of the stream is our parent's. */
    if (left > 0 && recv (fd, &c, 1, 0) <= 0)
      left = 0;
  }
  if (hook_run (command, "thaw", limit, &err) < 0) {
    log_error ("%s", err.msg);
    say (fd, is_frozen ? 'X' : 'E');
  }
  else
    say (fd, !is_frozen ? 'E' : left > 0 ? 'T' : 'L');
  _exit (0);
}

/* What the guard says; 0 if it says nothing any more. */
static char
listen_to (const struct freeze *f)
{
  ssize_t n;
  char c;

  do
    n = recv (f->fd, &c, 1, 0);
  while (n < 0 && errno == EINTR);
  return n == 1 ? c : 0;
}

static void
dismiss (struct freeze *f)
{
  close (f->fd);
  while (waitpid (f->pid, NULL, 0) < 0 && errno == EINTR)
    ;
  free (f);
}

int
freeze_begin (const char *command, unsigned limit, struct freeze **ret,
              struct error *err)
{
  struct freeze *f = calloc (1, sizeof *f);
  int fds[2];

  if (!f || socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
    free (f);
    return error_set_errno (err, errno, "socketpair");
  }
  f->command = command;
  f->limit = limit;
  f->fd = fds[0];
  f->pid = fork ();
  if (f->pid == 0) {
    close (fds[0]);
    /* Signals of the terminal are for our parent. */
    setpgid (0, 0);
    guard (command, limit, fds[1]);
  }
  close (fds[1]);
  if (f->pid < 0) {
    int e = errno;

    close (f->fd);
    free (f);
    return error_set_errno (err, e, "fork");
  }
  if (listen_to (f) == 'F') {
    *ret = f;
    return 0;
  }
  dismiss (f);
  return error_set (err, EIO, "the guest could not be frozen by '%.100s'",
                    command);
}

int
freeze_end (struct freeze *f, struct error *err)
{
  int r = 0;
  char c;

  if (!f)
    return 0;
  say (f->fd, 'd');
  c = listen_to (f);
  if (c == 'L')
    r = error_set (err, ETIMEDOUT, "the guest was thawed after %u s, before "
                   "the server had taken the point", f->limit);
  else if (c != 'T')
    log_error ("the guest could not be thawed by '%.100s'", f->command);
  dismiss (f);
  return r;
}
