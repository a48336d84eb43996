/* SPDX-License-Identifier: BSD-3-Clause */
/* tidemarkd: from start to stop.
 *
 * With --daemon the child does all the work and the parent only waits for it:
 * it exits when the child has told it, through a pipe, that it listens, or
 * when the child has ended.  Signals are blocked before any thread starts and
 * read from a signalfd.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include "cleanup.h"
#include "exit-status.h"
#include "log.h"
#include "options.h"
#include "service.h"
#include "systemd.h"

static bool is_verbose;

static void
log_to_stderr (enum log_level level, const char *msg)
{
  if (level <= LOG_LEVEL_WARNING || is_verbose)
    fprintf (stderr, "tidemarkd: %s%s\n",
             level == LOG_LEVEL_WARNING ? "warning: " : "", msg);
}

static void
log_to_syslog (enum log_level level, const char *msg)
{
  static const int priorities[] =
    { LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

  if (level <= LOG_LEVEL_WARNING || is_verbose)
    syslog (priorities[level], "%s", msg);
}

/* Signals that end the program, as a file descriptor. */
static int
open_signals (void)
{
  sigset_t set;
  int fd;

  signal (SIGPIPE, SIG_IGN);
  sigemptyset (&set);
  sigaddset (&set, SIGTERM);
  sigaddset (&set, SIGINT);
  sigaddset (&set, SIGHUP);
  if (sigprocmask (SIG_BLOCK, &set, NULL) < 0)
    return -1;
  fd = signalfd (-1, &set, SFD_CLOEXEC);
  return fd;
}

/* Each connection and each disk takes a descriptor or two, of which the usual
 * limit lets a program have 1024 unless it asks.
 */
static void
raise_file_limit (void)
{
  struct rlimit limit;

  if (getrlimit (RLIMIT_NOFILE, &limit) < 0)
    return;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit (RLIMIT_NOFILE, &limit) < 0)
    log_debug ("files: %s", strerror (errno));
}

/* The parent: returns the status to exit with. */
static int
wait_for_child (pid_t pid, int ready_fd)
{
  char byte;
  ssize_t n;
  int status;

  do
    n = read (ready_fd, &byte, 1);
  while (n < 0 && errno == EINTR);
  if (n == 1)
    return EXIT_STATUS_OK;
  if (waitpid (pid, &status, 0) == pid && WIFEXITED (status) &&
      WEXITSTATUS (status) != EXIT_STATUS_OK)
    return WEXITSTATUS (status);
  log_error ("the background process ended before it was ready");
  return EXIT_STATUS_FAILED;
}

/* Go on in a child, of a session of its own.  *ret_ready_fd is what to write
 * to when ready.
 */
static int
fork_daemon (int *ret_ready_fd, struct error *err)
{
  int fds[2];
  pid_t pid;

  if (pipe2 (fds, O_CLOEXEC) < 0)
    return error_set_errno (err, errno, "--daemon: pipe");
  fflush (NULL);
  pid = fork ();
  if (pid < 0) {
    int errnum = errno;

    close (fds[0]);
    close (fds[1]);
    return error_set_errno (err, errnum, "--daemon: fork");
  }
  if (pid > 0) {
    close (fds[1]);
    _exit (wait_for_child (pid, fds[0]));
  }
  close (fds[0]);
  setsid ();
  *ret_ready_fd = fds[1];
  return 0;
}

/* Nothing of the terminal is kept.  Messages go to syslog from now on. */
static int
leave_terminal (struct error *err)
{
  CLEANUP_CLOSE int fd = open ("/dev/null", O_RDWR | O_CLOEXEC);

  if (fd < 0 || dup2 (fd, 0) < 0 || dup2 (fd, 1) < 0 || dup2 (fd, 2) < 0 ||
      chdir ("/") < 0)
    return error_set_errno (err, errno, "--daemon");
  openlog ("tidemarkd", LOG_PID, LOG_DAEMON);
  log_set_handler (log_to_syslog);
  return 0;
}

/* The file appears complete, or not at all. */
static int
write_pid_file (const char *path, struct error *err)
{
  CLEANUP_FREE char *temporary = NULL;
  FILE *fp;

  if (asprintf (&temporary, "%s.%ld", path, (long) getpid ()) < 0)
    return error_set_errno (err, ENOMEM, "--pid-file");
  fp = fopen (temporary, "we");
  if (fp == NULL)
    return error_set_errno (err, errno, "--pid-file '%s'", path);
  fprintf (fp, "%ld\n", (long) getpid ());
  if (fclose (fp) != 0 || rename (temporary, path) < 0) {
    int errnum = errno;

    unlink (temporary);
    return error_set_errno (err, errnum, "--pid-file '%s'", path);
  }
  return 0;
}

/* Unless it is another process's by now. */
static void
remove_pid_file (const char *path)
{
  long pid = 0;
  FILE *fp = fopen (path, "re");

  if (fp) {
    if (fscanf (fp, "%ld", &pid) != 1)
      pid = 0;
    fclose (fp);
    if (pid != (long) getpid ())
      return;
  }
  if (unlink (path) < 0 && errno != ENOENT)
    log_warning ("--pid-file '%s': cannot remove: %s", path,
                 strerror (errno));
}

/* Until a signal or "quit". */
static void
wait_for_end (struct service *s, int signal_fd)
{
  struct pollfd fds[2] = {
    { .fd = signal_fd, .events = POLLIN },
    { .fd = service_quit_fd (s), .events = POLLIN },
  };
  struct signalfd_siginfo info;

  while (poll (fds, 2, -1) < 0 && errno == EINTR)
    ;
  if (fds[0].revents &&
      read (signal_fd, &info, sizeof info) == sizeof info)
    log_info ("stopping: %s", strsignal ((int) info.ssi_signo));
  else
    log_info ("stopping: quit");
}

static int
start (struct service *s, struct error *err)
{
  int r = service_open (s, err);

  if (r == 0)
    r = service_bind (s, err);
  return r < 0 ? r : service_start (s, err);
}

/* Everybody who waits for it is told that the sockets listen. */
static int
announce (const struct daemon_options *options, const char *pid_file,
          int ready_fd, struct error *err)
{
  char state[64];
  int r;

  if (pid_file) {
    r = write_pid_file (pid_file, err);
    if (r < 0)
      return r;
  }
  if (options->is_daemon) {
    r = leave_terminal (err);
    if (r < 0)
      return r;
    if (write (ready_fd, "", 1) != 1)
      return error_set_errno (err, errno, "--daemon");
  }
  snprintf (state, sizeof state, "READY=1\nMAINPID=%ld", (long) getpid ());
  systemd_notify (state);
  return 0;
}

/* A daemon leaves the directory that relative names refer to. */
static char *
absolute_path (const char *path)
{
  CLEANUP_FREE char *cwd = NULL;
  char *ret;

  if (path[0] == '/')
    return strdup (path);
  cwd = getcwd (NULL, 0);
  return cwd && asprintf (&ret, "%s/%s", cwd, path) >= 0 ? ret : NULL;
}

/* From here on in the process that serves.  *ret_pid_file: is to be removed
 * when the disks are closed, and freed.
 */
static int
run (struct service *s, const struct daemon_options *options, int ready_fd,
     char **ret_pid_file, struct error *err)
{
  CLEANUP_CLOSE int signal_fd = open_signals ();
  CLEANUP_FREE char *pid_file = NULL;
  int r;

  if (signal_fd < 0)
    return error_set_errno (err, errno, "signals");
  if (options->pid_file) {
    pid_file = absolute_path (options->pid_file);
    if (pid_file == NULL)
      return error_set_errno (err, errno, "--pid-file");
  }
  r = start (s, err);
  if (r < 0)
    return r;
  r = announce (options, pid_file, ready_fd, err);
  *ret_pid_file = pid_file;
  pid_file = NULL;
  if (r == 0) {
    wait_for_end (s, signal_fd);
    systemd_notify ("STOPPING=1");
  }
  return r;
}

int
main (int argc, char *argv[])
{
  struct daemon_options options = { .pid_file = NULL };
  struct error err = ERROR_INIT;
  CLEANUP_CLOSE int ready_fd = -1;
  CLEANUP_FREE char *pid_file = NULL;
  struct service *s;
  int status, r;

  log_set_program ("tidemarkd");
  log_set_handler (log_to_stderr);
  if (service_new (&s) < 0) {
    log_error ("no memory");
    return EXIT_STATUS_FAILED;
  }
  status = options_parse (argc, argv, s, &options);
  if (status >= 0) {
    service_free (s);
    return status;
  }
  is_verbose = options.is_verbose;
  log_set_debug (is_verbose);
  raise_file_limit ();
  r = systemd_add_sockets (s, &err);
  if (r == 0 && !service_has_listeners (s)) {
    log_error ("nothing to serve: give --listen, --backup-listen or --control "
               "(try --help)");
    service_free (s);
    return EXIT_STATUS_USAGE;
  }
  if (r >= 0 && options.is_daemon)
    r = fork_daemon (&ready_fd, &err);
  if (r >= 0)
    r = run (s, &options, ready_fd, &pid_file, &err);
  if (r < 0)
    log_error ("%s", err.msg);
  if (service_free (s) < 0)
    r = -EIO;
  if (pid_file)
    remove_pid_file (pid_file);
  return r < 0 ? EXIT_STATUS_FAILED : EXIT_STATUS_OK;
}
