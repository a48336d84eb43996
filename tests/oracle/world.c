/* SPDX-License-Identifier: BSD-3-Clause */
/* See world.h. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "world.h"

#define START_MS 60000          /* for a server to listen, a guest to come */

extern char **environ;

static struct world_options o;
static pid_t server, relay;
static FILE *to_relay, *from_relay;
static atomic_uint nr_hits;
/* One kill or command at a time. */
static pthread_mutex_t hitting = PTHREAD_MUTEX_INITIALIZER;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
/* Protected by lock. */
static bool is_down;
static unsigned current_epoch;
static unsigned nr_caught_up;   /* guests, in this epoch */
static enum { IDLE, SPAWN, END } wanted;        /* of the keeper */

static pthread_t keeper;

static void __attribute__ ((noreturn))
failed (const char *what)
{
  fprintf (stderr, "oracle: %s: %s\n", what, strerror (errno));
  world_abandon ();
  _exit (1);
}

static void
set_path (struct sockaddr_un *a, const char *name)
{
  *a = (struct sockaddr_un) { .sun_family = AF_UNIX };
  if ((size_t) snprintf (a->sun_path, sizeof a->sun_path, "%s/%s", o.dir, name)
      >= sizeof a->sun_path)
    failed ("a path that is too long");
}

static void
move (const char *from, const char *to)
{
  struct sockaddr_un a, b;

  set_path (&a, from);
  set_path (&b, to);
  if (rename (a.sun_path, b.sun_path) < 0)
    failed (a.sun_path);
}

/* Until somebody listens there.  No event says so of another program. */
static void
wait_listening (const char *name, pid_t pid)
{
  const struct timespec pause = { .tv_nsec = 5000000 };
  const int64_t end = clock_ms () + START_MS;
  struct sockaddr_un a;
  int fd, r;

  set_path (&a, name);
  for (;;) {
    fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
      failed ("socket");
    r = connect (fd, (struct sockaddr *) &a, sizeof a);
    close (fd);
    if (r == 0)
      return;
    if (clock_ms () > end || waitpid (pid, NULL, WNOHANG) != 0)
      failed (a.sun_path);
    nanosleep (&pause, NULL);
  }
}

/* Starts the servers: a child that asks for that gets a signal when the thread
 * that has started it ends, and stock nbdkit does.
 */
static void *
keeper_thread (void *arg)
{
  int r;

  pthread_mutex_lock (&lock);
  while (wanted != END) {
    if (wanted == SPAWN) {
      r = posix_spawnp (&server, o.server[0], NULL, NULL, o.server, environ);
      if (r != 0) {
        errno = r;
        failed (o.server[0]);
      }
      wanted = IDLE;
      pthread_cond_broadcast (&changed);
    }
    pthread_cond_wait (&changed, &lock);
  }
  pthread_mutex_unlock (&lock);
  return NULL;
}

static void
spawn_server (void)
{
  pthread_mutex_lock (&lock);
  wanted = SPAWN;
  pthread_cond_broadcast (&changed);
  while (wanted == SPAWN)
    pthread_cond_wait (&changed, &lock);
  pthread_mutex_unlock (&lock);
}

/* What it leaves is replaced, except the relay's socket, which is put aside. */
static void
start_server (void)
{
  static const char *const sockets[] = { "live.sock", "ctl.sock",
                                         "backup.sock" };
  struct sockaddr_un a;
  size_t i;

  for (i = 0; i < 3; i++) {
    set_path (&a, sockets[i]);
    unlink (a.sun_path);
  }
  spawn_server ();
  for (i = 0; i < 3; i++)
    wait_listening (sockets[i], server);
  move ("backup.sock", "backup-server.sock");
}

static void
start_relay (void)
{
  struct sockaddr_un a[4];
  char *argv[] = { (char *) o.relay, a[0].sun_path, a[1].sun_path,
                   a[2].sun_path, a[3].sun_path, NULL };
  posix_spawn_file_actions_t actions;
  int in[2], out[2];

  set_path (&a[0], "backup.sock");
  set_path (&a[1], "backup-server.sock");
  set_path (&a[2], "ctl-relay.sock");
  set_path (&a[3], "ctl.sock");
  if (pipe2 (in, O_CLOEXEC) < 0 || pipe2 (out, O_CLOEXEC) < 0)
    failed ("pipe");
  posix_spawn_file_actions_init (&actions);
  posix_spawn_file_actions_adddup2 (&actions, in[0], 0);
  posix_spawn_file_actions_adddup2 (&actions, out[1], 1);
  errno = posix_spawnp (&relay, o.relay, &actions, NULL, argv, environ);
  if (errno != 0)
    failed (o.relay);
  posix_spawn_file_actions_destroy (&actions);
  close (in[0]);
  close (out[1]);
  to_relay = fdopen (in[1], "w");
  from_relay = fdopen (out[0], "r");
  if (to_relay == NULL || from_relay == NULL)
    failed ("fdopen");
  wait_listening ("backup.sock", relay);
  wait_listening ("ctl-relay.sock", relay);
}

/* Returns when it has been done. */
static void
tell_relay (const char *command)
{
  char line[100];

  if (fprintf (to_relay, "%s\n", command) < 0 || fflush (to_relay) != 0 ||
      fgets (line, sizeof line, from_relay) == NULL)
    failed ("the relay has gone");
}

void
world_start (const struct world_options *options)
{
  o = *options;
  errno = pthread_create (&keeper, NULL, keeper_thread, NULL);
  if (errno != 0)
    failed ("thread");
  start_server ();
  start_relay ();
}

int
world_stop (void)
{
  int status;

  fclose (to_relay);
  if (waitpid (relay, &status, 0) < 0 || status != 0)
    failed ("the relay has failed");
  fclose (from_relay);
  if (kill (server, SIGTERM) < 0 || waitpid (server, &status, 0) < 0)
    failed ("the server has gone");
  pthread_mutex_lock (&lock);
  wanted = END;
  pthread_cond_broadcast (&changed);
  pthread_mutex_unlock (&lock);
  pthread_join (keeper, NULL);
  return status;
}

void
world_abandon (void)
{
  if (server > 0)
    kill (server, SIGKILL);
}

unsigned
world_nr_hits (void)
{
  return atomic_load (&nr_hits);
}

unsigned
world_nr_hits_done (void)
{
  unsigned nr;

  pthread_mutex_lock (&hitting);
  nr = atomic_load (&nr_hits);
  pthread_mutex_unlock (&hitting);
  return nr;
}

void
world_cut (bool with_reset)
{
  pthread_mutex_lock (&hitting);
  atomic_fetch_add (&nr_hits, 1);
  tell_relay (with_reset ? "reset" : "cut");
  /* Who began since the first count has been hit as well. */
  atomic_fetch_add (&nr_hits, 1);
  pthread_mutex_unlock (&hitting);
}

/* The guests have sent again what was under way. */
static void
wait_guests (void)
{
  struct timespec end;

  clock_gettime (CLOCK_REALTIME, &end);
  end.tv_sec += START_MS / 1000;
  pthread_mutex_lock (&lock);
  is_down = false;
  current_epoch++;
  nr_caught_up = 0;
  pthread_cond_broadcast (&changed);
  while (nr_caught_up < o.nr_guests) {
    errno = pthread_cond_timedwait (&changed, &lock, &end);
    if (errno != 0)
      failed ("the guests do not come back");
  }
  pthread_mutex_unlock (&lock);
}

void
world_kill_server (void)
{
  int status;

  pthread_mutex_lock (&hitting);
  atomic_fetch_add (&nr_hits, 1);
  tell_relay ("refuse");
  pthread_mutex_lock (&lock);
  is_down = true;
  pthread_mutex_unlock (&lock);
  if (kill (server, SIGKILL) < 0 || waitpid (server, &status, 0) < 0 ||
      !WIFSIGNALED (status) || WTERMSIG (status) != SIGKILL)
    failed ("the server has ended by itself");
  move ("backup.sock", "backup-relay.sock");
  start_server ();
  move ("backup-relay.sock", "backup.sock");
  wait_guests ();
  tell_relay ("go");
  /* Who began since the relay refused has been hit as well. */
  atomic_fetch_add (&nr_hits, 1);
  pthread_mutex_unlock (&hitting);
}

bool
world_wait_restarted (unsigned *epoch)
{
  bool is_new;

  pthread_mutex_lock (&lock);
  while (is_down)
    pthread_cond_wait (&changed, &lock);
  is_new = current_epoch != *epoch;
  *epoch = current_epoch;
  pthread_mutex_unlock (&lock);
  return is_new;
}

void
world_caught_up (unsigned epoch)
{
  pthread_mutex_lock (&lock);
  if (epoch == current_epoch) {
    nr_caught_up++;
    pthread_cond_broadcast (&changed);
  }
  pthread_mutex_unlock (&lock);
}
