/* SPDX-License-Identifier: BSD-3-Clause */
/* SIGINT, SIGTERM and SIGHUP.  They are blocked, and one thread reads them: it
 * sets a flag and writes a byte to a pipe, nothing else, so that a fork finds
 * no lock taken by it.  Whoever works looks at the flag or polls the pipe.  No
 * call is interrupted, and no thread has to be where a handler may run.
 * Who presses the key once more wants the end at once, but not everything that
 * comes twice means that: timeout(1) signals the process and then its group.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "clock.h"
#include "interrupt.h"

/* Signals that follow the first one sooner are the same one. */
#define SAME_NS INT64_C (1000000000)

static volatile bool flag;
static int which;
static int fds[2] = { -1, -1 };
static pthread_t thread;
static bool has_thread;
static int signal_fd;
static int stop_fds[2];         /* a byte ends the thread */
static sigset_t blocked_before;
static void (*sigpipe_before) (int);

static void
die_of (int sig)
{
  sigset_t one;

  sigemptyset (&one);
  sigaddset (&one, sig);
  signal (sig, SIG_DFL);
  pthread_sigmask (SIG_UNBLOCK, &one, NULL);
  raise (sig);
}

static void
handle (int sig)
{
  static int64_t first_ns;

  if (__atomic_load_n (&flag, __ATOMIC_RELAXED)) {
    if (clock_ns () - first_ns >= SAME_NS)
      die_of (sig);
    return;
  }
  first_ns = clock_ns ();
  __atomic_store_n (&which, sig, __ATOMIC_RELAXED);
  __atomic_store_n (&flag, true, __ATOMIC_RELEASE);
  if (write (fds[1], "", 1) < 0) {
    /* The pipe is full: it is readable already. */
  }
}

static void *
signal_thread (void *opaque)
{
  struct pollfd p[2] = {
    { .fd = signal_fd, .events = POLLIN },
    { .fd = stop_fds[0], .events = POLLIN },
  };
  struct signalfd_siginfo info;

  (void) opaque;
  while (!p[1].revents) {
    if (poll (p, 2, -1) > 0 && p[0].revents
        && read (signal_fd, &info, sizeof info) == sizeof info)
      handle ((int) info.ssi_signo);
  }
  return NULL;
}

/* Block them, but for those that nohup, or a shell, has made us ignore: they
 * mean it.
 */
static int
open_signals (struct error *err)
{
  static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
  struct sigaction old;
  sigset_t ours;
  size_t i;
  int e;

  sigpipe_before = signal (SIGPIPE, SIG_IGN);
  sigemptyset (&ours);
  for (i = 0; i < sizeof signals / sizeof signals[0]; i++)
    if (sigaction (signals[i], NULL, &old) < 0 || old.sa_handler != SIG_IGN)
      sigaddset (&ours, signals[i]);
  e = pthread_sigmask (SIG_BLOCK, &ours, &blocked_before);
  if (e)
    return error_set_errno (err, e, "pthread_sigmask");
  signal_fd = signalfd (-1, &ours, SFD_CLOEXEC);
  return signal_fd < 0 ? error_set_errno (err, errno, "signalfd") : 0;
}

int
interrupt_init (struct error *err)
{
  int e = open_signals (err);

  if (e < 0)
    return e;
  if (pipe2 (fds, O_CLOEXEC | O_NONBLOCK) < 0
      || pipe2 (stop_fds, O_CLOEXEC) < 0)
    return error_set_errno (err, errno, "pipe");
  e = pthread_create (&thread, NULL, signal_thread, NULL);
  has_thread = e == 0;
  return e ? error_set_errno (err, e, "thread") : 0;
}

void
interrupt_fini (void)
{
  /* Not closed, as a child process may have it open as well. */
  if (has_thread && write (stop_fds[1], "", 1) == 1)
    pthread_join (thread, NULL);
  has_thread = false;
}

void
interrupt_before_exec (void)
{
  if (fds[0] < 0)
    return;
  signal (SIGPIPE, sigpipe_before);
  pthread_sigmask (SIG_SETMASK, &blocked_before, NULL);
}

const volatile bool *
interrupt_flag (void)
{
  return &flag;
}

bool
interrupt_is_set (void)
{
  return __atomic_load_n (&flag, __ATOMIC_ACQUIRE);
}

int
interrupt_fd (void)
{
  return fds[0];
}

void
interrupt_sleep (int ms)
{
  struct pollfd p = { .fd = fds[0], .events = POLLIN };

  poll (&p, 1, ms);
}

int
interrupt_error (struct error *err)
{
  const char *name = sigabbrev_np (__atomic_load_n (&which, __ATOMIC_RELAXED));

  return error_set (err, ECANCELED, "interrupted by SIG%s",
                    name ? name : "?");
}

static void *
watch_thread (void *arg)
{
  const struct interrupt_watch *w = arg;
  struct pollfd p[2] = {
    { .fd = fds[0], .events = POLLIN },
    { .fd = w->stop_fds[0], .events = POLLIN },
  };

  while (poll (p, 2, -1) < 0 && errno == EINTR)
    ;
  if (p[0].revents)
    w->fn (w->opaque);
  return NULL;
}

int
interrupt_watch_start (struct interrupt_watch *w, void (*fn) (void *opaque),
                       void *opaque, struct error *err)
{
  int e;

  w->fn = fn;
  w->opaque = opaque;
  if (pipe2 (w->stop_fds, O_CLOEXEC) < 0)
    return error_set_errno (err, errno, "pipe");
  e = pthread_create (&w->thread, NULL, watch_thread, w);
  if (e) {
    close (w->stop_fds[0]);
    close (w->stop_fds[1]);
    return error_set_errno (err, e, "thread");
  }
  w->is_started = true;
  return 0;
}

void
interrupt_watch_stop (struct interrupt_watch *w)
{
  if (!w->is_started)
    return;
  close (w->stop_fds[1]);
  pthread_join (w->thread, NULL);
  close (w->stop_fds[0]);
  w->is_started = false;
}
