/* SPDX-License-Identifier: BSD-3-Clause */
/* SIGINT, SIGTERM and SIGHUP.  The handler sets a flag and writes one byte to
 * a pipe, nothing else; whoever works looks at the flag or polls the pipe.
 * Who presses the key once more wants the end at once, but not everything that
 * comes twice means that: timeout(1) signals the process and then its group.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "interrupt.h"

/* Signals that follow the first one sooner are the same one. */
#define SAME_NS INT64_C (1000000000)

static volatile bool flag;
static int which;
static int64_t first_ns;        /* of the handler */
static int fds[2] = { -1, -1 };

static void
handler (int sig)
{
  int saved = errno;

  if (__atomic_load_n (&flag, __ATOMIC_RELAXED)) {
    if (clock_ns () - __atomic_load_n (&first_ns, __ATOMIC_RELAXED)
        >= SAME_NS) {
      /* Blocked until we return. */
      signal (sig, SIG_DFL);
      raise (sig);
    }
    errno = saved;
    return;
  }
  __atomic_store_n (&first_ns, clock_ns (), __ATOMIC_RELAXED);
  __atomic_store_n (&which, sig, __ATOMIC_RELAXED);
  __atomic_store_n (&flag, true, __ATOMIC_RELEASE);
  if (write (fds[1], "", 1) < 0) {
    /* The pipe is full: it is readable already. */
  }
  errno = saved;
}

int
interrupt_init (struct error *err)
{
  static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
  struct sigaction sa;
  size_t i;

  if (pipe2 (fds, O_CLOEXEC | O_NONBLOCK) < 0)
    return error_set_errno (err, errno, "pipe");
  memset (&sa, 0, sizeof sa);
  /* One at a time. */
  sigemptyset (&sa.sa_mask);
  for (i = 0; i < sizeof signals / sizeof signals[0]; i++)
    sigaddset (&sa.sa_mask, signals[i]);
  for (i = 0; i < sizeof signals / sizeof signals[0]; i++) {
    struct sigaction old;

    /* nohup and shells that ignore a signal for us mean it. */
    if (sigaction (signals[i], NULL, &old) == 0
        && old.sa_handler == SIG_IGN)
      continue;
    sa.sa_handler = handler;
    sa.sa_flags = SA_RESTART;
    if (sigaction (signals[i], &sa, NULL) < 0)
      return error_set_errno (err, errno, "sigaction");
  }
  sa.sa_handler = SIG_IGN;
  sa.sa_flags = 0;
  if (sigaction (SIGPIPE, &sa, NULL) < 0)
    return error_set_errno (err, errno, "sigaction");
  return 0;
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
