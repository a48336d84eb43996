/* SPDX-License-Identifier: BSD-3-Clause */
/* The oracle test of the whole programs.
 *
 * A server (tidemarkd or nbdkit with our plugin) serves two to four disks.
 * Guests write to them over several NBD connections each.  Two repositories are
 * filled by "tidemark backup" meanwhile: all disks or some, incremental or
 * full, with the client killed, the network cut and the server killed at any
 * moment (world.h).  Every image that the client says is
 * stored is restored through its chain, by "qemu-img convert" and "tidemark
 * restore" in turn, and must be a state that the disks have had at a single
 * moment between the start of the client and its first word about the pull
 * (history.c).  A run that goes on with what a killed one has left is judged by
 * the moment of that one.  No bitmap is lost by all this: what is backed up
 * again is incremental.
 *
 * usage: oracle-programs DIR TIDEMARK RELAY POINTS DISKS SERVER...
 * The command SERVER... listens on live.sock, ctl.sock and backup.sock in DIR;
 * its exports are "a", "b" and so on.  DIR/final-a.raw and so on become what
 * the last backup holds, with the guests gone.
 * SEED=N in the environment repeats the choices.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>
#include <libnbd.h>

#include "clock.h"
#include "history.h"
#include "range.h"
#include "vector.h"
#include "world.h"
#include "writer.h"

#define MAX_DISKS 4
#define NR_REPOS 2
#define NR_WRITERS 4
#define RATE 300                /* operations per second of each writer */
#define CHUNK UINT64_C (65536)
#define NR_SAMPLES 24           /* points that are restored again at the end */
/* Seconds: short, but not so short that a slow client cannot renew it. */
#if defined (__SANITIZE_ADDRESS__) || defined (__SANITIZE_THREAD__)
#define LEASE "4"
#else
#define LEASE "1"
#endif
#define BUSY_SECONDS 20
#define LINE_SIZE 4096

extern char **environ;

static uint64_t seed;
static uint64_t disk_size;
static const char *dir, *tidemark;
static char *live_socket, *control;
static unsigned nr_disks;
static struct history *history;
static struct writers *writers;
static atomic_int points_left;
static atomic_bool has_failed;
/* Points are judged one at a time. */
static pthread_mutex_t judge = PTHREAD_MUTEX_INITIALIZER;

/* An image that the client has said is stored. */
struct stored {
  unsigned disk;
  char *image;                  /* path */
  char *point;
  uint64_t hash;                /* of what it was first restored to */
};

DEFINE_VECTOR (stored_list, struct stored);

/* What a run is asked for. */
struct what {
  bool wants[MAX_DISKS];
  bool is_full;
  const char *cluster_size;     /* NULL = default */
};

struct repo {
  unsigned number;
  char *path;
  uint64_t random;
  pthread_t thread;
  struct stored_list stored;
  unsigned nr_backups, nr_full, nr_incremental, nr_killed, nr_busy, nr_resumed;
  unsigned nr_hit;              /* runs that failed by the world */
  bool has_left_session;        /* a client may have left one */
  /* The point of the session that it left, for a run that goes on with it.
   * NULL = there is none.
   */
  struct history_point *left;
  struct what what;             /* was wanted last */
};

static void __attribute__ ((noreturn, format (printf, 1, 2)))
die (const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  fprintf (stderr, "oracle: ");
  vfprintf (stderr, fmt, args);
  fprintf (stderr, "\noracle: FAILED; repeat with SEED=%" PRIu64 "\n", seed);
  va_end (args);
  world_abandon ();
  _exit (1);
}

static char * __attribute__ ((format (printf, 1, 2)))
format (const char *fmt, ...)
{
  va_list args;
  char *s;

  va_start (args, fmt);
  if (vasprintf (&s, fmt, args) < 0)
    die ("out of memory");
  va_end (args);
  return s;
}

static char
disk_letter (unsigned disk)
{
  return (char) ('a' + disk);
}

/* The guests, over NBD. */

struct nbd_guest {
  struct guest guest;
  struct nbd_handle *nbd[MAX_DISKS];
  unsigned epoch;               /* of the server that they lead to */
  unsigned caught_up;           /* the last that has been said */
};

static void connect_disks (struct nbd_guest *g);
static void disconnect_disks (struct nbd_guest *g);

static struct nbd_handle *
handle_of (struct guest *g, unsigned disk)
{
  return ((struct nbd_guest *) g)->nbd[disk];
}

/* The server may have been killed in the middle: then the same is sent to the
 * next one.  True: try again.
 */
static bool
is_again (struct guest *guest, int r)
{
  struct nbd_guest *g = (struct nbd_guest *) guest;

  if (r == 0 || !world_wait_restarted (&g->epoch))
    return false;
  disconnect_disks (g);
  connect_disks (g);
  return true;
}

static int
nbd_result (struct guest *guest, int r)
{
  struct nbd_guest *g = (struct nbd_guest *) guest;

  if (r != 0) {
    fprintf (stderr, "oracle: guest: %s\n", nbd_get_error ());
    return -EIO;
  }
  if (g->caught_up != g->epoch) {
    g->caught_up = g->epoch;
    world_caught_up (g->epoch);
  }
  return 0;
}

static int
guest_pread (struct guest *g, unsigned disk, void *buf, uint64_t len,
             uint64_t off)
{
  int r;

  do
    r = nbd_pread (handle_of (g, disk), buf, len, off, 0);
  while (is_again (g, r));
  return nbd_result (g, r);
}

static int
guest_pwrite (struct guest *g, unsigned disk, const void *buf, uint64_t len,
              uint64_t off, bool is_fua)
{
  const uint32_t flags = is_fua ? LIBNBD_CMD_FLAG_FUA : 0;
  int r;

  do
    r = nbd_pwrite (handle_of (g, disk), buf, len, off, flags);
  while (is_again (g, r));
  return nbd_result (g, r);
}

static int
guest_zero (struct guest *g, unsigned disk, uint64_t len, uint64_t off,
            bool may_unmap)
{
  const uint32_t flags = may_unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE;
  int r;

  do
    r = nbd_zero (handle_of (g, disk), len, off, flags);
  while (is_again (g, r));
  return nbd_result (g, r);
}

static int
guest_trim (struct guest *g, unsigned disk, uint64_t len, uint64_t off)
{
  int r;

  do
    r = nbd_trim (handle_of (g, disk), len, off, 0);
  while (is_again (g, r));
  return nbd_result (g, r);
}

static int
guest_flush (struct guest *g, unsigned disk)
{
  int r;

  do
    r = nbd_flush (handle_of (g, disk), 0);
  while (is_again (g, r));
  return nbd_result (g, r);
}

static void
disconnect_disks (struct nbd_guest *g)
{
  unsigned i;

  for (i = 0; i < nr_disks; i++) {
    nbd_shutdown (g->nbd[i], 0);
    nbd_close (g->nbd[i]);
  }
}

static void
guest_close (struct guest *g)
{
  disconnect_disks ((struct nbd_guest *) g);
  free (g);
}

/* NULL if there is no server just now. */
static struct nbd_handle *
connect_disk (unsigned disk)
{
  struct nbd_handle *nbd = nbd_create ();
  const char name[] = { disk_letter (disk), '\0' };

  if (nbd == NULL || nbd_set_export_name (nbd, name) < 0)
    die ("%s", nbd_get_error ());
  if (nbd_connect_unix (nbd, live_socket) == 0)
    return nbd;
  nbd_close (nbd);
  return NULL;
}

static bool
try_connect (struct nbd_guest *g)
{
  unsigned i;

  for (i = 0; i < nr_disks; i++) {
    g->nbd[i] = connect_disk (i);
    if (g->nbd[i] == NULL) {
      while (i-- > 0)
        nbd_close (g->nbd[i]);
      return false;
    }
  }
  return true;
}

/* To one server all of them, whose epoch is known, though others may be killed
 * meanwhile.
 */
static void
connect_disks (struct nbd_guest *g)
{
  const struct timespec pause = { .tv_nsec = 10000000 };
  const int64_t end = clock_ms () + BUSY_SECONDS * 1000;

  world_wait_restarted (&g->epoch);
  for (;;) {
    const bool is_connected = try_connect (g);

    if (!world_wait_restarted (&g->epoch) && is_connected)
      return;
    if (is_connected)
      disconnect_disks (g);
    if (clock_ms () > end)
      die ("%s: cannot connect", live_socket);
    nanosleep (&pause, NULL);
  }
}

static struct guest *
guest_connect (void *opaque)
{
  struct nbd_guest *g = calloc (1, sizeof *g);

  if (g == NULL)
    die ("out of memory");
  g->guest = (struct guest) {
    .pread = guest_pread, .pwrite = guest_pwrite, .zero = guest_zero,
    .trim = guest_trim, .flush = guest_flush, .close = guest_close,
  };
  connect_disks (g);
  return &g->guest;
}

/* Running programs. */

/* stdout_fd -1: to the log as well. */
static pid_t
start (const struct repo *repo, char *const *argv, int stdout_fd)
{
  char *log = format ("%s/log-%u", dir, repo->number);
  posix_spawn_file_actions_t actions;
  pid_t pid;
  int r;

  posix_spawn_file_actions_init (&actions);
  posix_spawn_file_actions_addopen (&actions, 2, log,
                                    O_WRONLY | O_CREAT | O_TRUNC, 0666);
  posix_spawn_file_actions_adddup2 (&actions,
                                    stdout_fd < 0 ? 2 : stdout_fd, 1);
  r = posix_spawnp (&pid, argv[0], &actions, NULL, argv, environ);
  if (r != 0)
    die ("%s: %s", argv[0], strerror (r));
  posix_spawn_file_actions_destroy (&actions);
  free (log);
  return pid;
}

/* What the last program of the repository has said. */
static char *
read_log (const struct repo *repo)
{
  char *path = format ("%s/log-%u", dir, repo->number);
  char *text = calloc (1, LINE_SIZE);
  FILE *fp = fopen (path, "r");

  if (text && fp)
    text[fread (text, 1, LINE_SIZE - 1, fp)] = '\0';
  if (fp)
    fclose (fp);
  free (path);
  return text;
}

static void
must_run (const struct repo *repo, char *const *argv)
{
  int status;

  if (waitpid (start (repo, argv, -1), &status, 0) < 0 || status != 0)
    die ("%s %s: status %d: %s", argv[0], argv[1], status, read_log (repo));
}

/* One run of "tidemark backup". */

/* What befalls it. */
enum blow {
  BLOW_NONE, BLOW_TERM, BLOW_KILL,      /* signals */
  BLOW_CUT, BLOW_RESET,                 /* of all connections of backups */
  BLOW_SERVER,                          /* is killed */
};

static const enum blow blows[16] = {
  BLOW_TERM, BLOW_TERM, BLOW_TERM, BLOW_TERM, BLOW_KILL, BLOW_KILL, BLOW_KILL,
  BLOW_KILL, BLOW_CUT, BLOW_CUT, BLOW_CUT, BLOW_RESET, BLOW_RESET, BLOW_RESET,
  BLOW_SERVER, BLOW_SERVER,
};

struct run {
  struct repo *repo;
  struct history_point *point;
  bool has_begun;               /* it has said so */
  struct what what;
  enum blow blow;
  int64_t blow_at;              /* ms */
  bool is_on_begin;             /* ... or when it has begun */
  bool is_hit;                  /* it has been dealt */
  struct stored stored[MAX_DISKS];      /* image NULL = not stored */
};

static void
choose_what (struct repo *repo, struct what *what)
{
  static const char *const sizes[] = { "4k", "32k", "128k" };
  const unsigned how = next_random (&repo->random) % 32;
  const unsigned one = next_random (&repo->random) % nr_disks;
  const uint64_t some = next_random (&repo->random);
  unsigned i;

  for (i = 0; i < nr_disks; i++)
    what->wants[i] = how < 24 || i == one || (how < 28 && some >> i & 1);
  what->is_full = next_random (&repo->random) % 16 == 0;
  what->cluster_size = NULL;
  if (next_random (&repo->random) % 4 == 0)
    what->cluster_size = sizes[next_random (&repo->random) % 3];
}

/* What a killed run wanted is mostly wanted again: only that can be gone on
 * with.
 */
static void
choose_run (struct repo *repo, struct run *run)
{
  memset (run, 0, sizeof *run);
  run->repo = repo;
  if (repo->left == NULL || next_random (&repo->random) % 4 == 0)
    choose_what (repo, &repo->what);
  run->what = repo->what;
  if (next_random (&repo->random) % 5 < 2) {
    run->blow = blows[next_random (&repo->random) % 16];
    run->is_on_begin = next_random (&repo->random) % 2;
    run->blow_at = clock_ms () + next_random (&repo->random) % 60;
  }
}

/* The run goes on with the session that a killed one has left: what it stores
 * is the point of that one.
 */
static void
go_on (struct run *run)
{
  if (run->has_begun || run->repo->left == NULL)
    die ("the client goes on with a session that nobody left");
  history_point_close (run->point);
  run->point = run->repo->left;
  run->repo->left = NULL;
  run->has_begun = true;
  run->repo->nr_resumed++;
}

/* The run has ended; its point is NULL if it has been judged.  A killed one may
 * leave its session, of which it need not have said a word; one that has not
 * begun leaves the session that it found.
 */
static void
leave_session (struct run *run, bool is_killed)
{
  struct repo *repo = run->repo;

  if (run->has_begun && repo->left) {
    history_point_close (repo->left);
    repo->left = NULL;
  }
  if (run->point == NULL)
    return;
  if (!is_killed || repo->left) {
    if (is_killed)
      history_point_returned (repo->left);
    history_point_close (run->point);
  }
  else
    repo->left = run->point;
}

/* An event that the client prints. */
static void
take_event (struct run *run, const json_t *o)
{
  const char *event = json_string_value (json_object_get (o, "event"));
  const char *name = json_string_value (json_object_get (o, "disk"));
  const char *image = json_string_value (json_object_get (o, "image"));
  const char *point = json_string_value (json_object_get (o, "point"));
  const char *mode = json_string_value (json_object_get (o, "mode"));
  const char *why = json_string_value (json_object_get (o, "why"));
  struct stored *s;

  if (event == NULL)
    die ("the client prints an event without a name");
  if (strcmp (event, "disk-begin") == 0) {
    if (!run->has_begun)
      history_point_returned (run->point);
    run->has_begun = true;
    if (why && strstr (why, "inconsistent"))
      die ("a bitmap is lost: %s", why);
    if (mode && strcmp (mode, "full") == 0)
      run->repo->nr_full++;
    else
      run->repo->nr_incremental++;
    return;
  }
  if (strcmp (event, "resumed") == 0) {
    go_on (run);
    return;
  }
  if (strcmp (event, "stored") != 0)
    return;
  if (name == NULL || name[0] < 'a' || name[0] >= disk_letter (nr_disks)
      || image == NULL || point == NULL)
    die ("the client stores something unheard of");
  s = &run->stored[name[0] - 'a'];
  s->disk = (unsigned) (name[0] - 'a');
  s->image = format ("%s/%s", run->repo->path, image);
  s->point = format ("%s", point);
}

static void
take_line (struct run *run, const char *line)
{
  json_error_t e;
  json_t *o = json_loads (line, 0, &e);

  if (o == NULL)
    die ("the client prints \"%s\": %s", line, e.text);
  take_event (run, o);
  json_decref (o);
}

static void
deal_blow (struct run *run, pid_t pid)
{
  if (run->blow == BLOW_NONE || run->is_hit)
    return;
  if (run->is_on_begin ? !run->has_begun : clock_ms () < run->blow_at)
    return;
  run->is_hit = true;
  switch (run->blow) {
  case BLOW_NONE:
    break;
  case BLOW_TERM:
  case BLOW_KILL:
    kill (pid, run->blow == BLOW_TERM ? SIGTERM : SIGKILL);
    break;
  case BLOW_CUT:
  case BLOW_RESET:
    world_cut (run->blow == BLOW_RESET);
    break;
  case BLOW_SERVER:
    world_kill_server ();
  }
}

/* Read what it prints, line by line, until it ends. */
static void
follow (struct run *run, pid_t pid, int fd)
{
  char buf[LINE_SIZE], *end;
  struct pollfd p = { .fd = fd, .events = POLLIN };
  size_t len = 0;
  ssize_t n;

  for (;;) {
    deal_blow (run, pid);
    if (poll (&p, 1, run->blow != BLOW_NONE && !run->is_hit ? 1 : -1) == 0)
      continue;
    n = read (fd, buf + len, sizeof buf - 1 - len);
    if (n <= 0)
      break;
    len += (size_t) n;
    buf[len] = '\0';
    while ((end = strchr (buf, '\n')) != NULL) {
      *end = '\0';
      take_line (run, buf);
      len -= (size_t) (end + 1 - buf);
      memmove (buf, end + 1, len + 1);
    }
    if (len == sizeof buf - 1)
      die ("the client prints a line without an end");
  }
}

static int
run_client (struct run *run)
{
  const char *argv[24] = { tidemark, "backup", "--json", "--lease", LEASE };
  char letters[MAX_DISKS][2] = { "" };
  int argc = 5, fds[2], status;
  unsigned i;
  pid_t pid;

  if (run->what.is_full)
    argv[argc++] = "--full";
  if (run->what.cluster_size) {
    argv[argc++] = "--cluster-size";
    argv[argc++] = run->what.cluster_size;
  }
  for (i = 0; i < nr_disks; i++)
    if (run->what.wants[i]) {
      letters[i][0] = disk_letter (i);
      argv[argc++] = "--disk";
      argv[argc++] = letters[i];
    }
  argv[argc++] = control;
  argv[argc] = run->repo->path;
  if (pipe2 (fds, O_CLOEXEC) < 0)
    die ("pipe: %m");
  pid = start (run->repo, (char *const *) argv, fds[1]);
  close (fds[1]);
  follow (run, pid, fds[0]);
  close (fds[0]);
  if (waitpid (pid, &status, 0) < 0)
    die ("waitpid: %m");
  if (!run->has_begun)
    history_point_returned (run->point);
  return status;
}

/* Restoring and judging. */

static uint64_t
add_hash (uint64_t hash, const uint64_t *words, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++)
    hash = (hash ^ words[i]) * UINT64_C (0x100000001b3);
  return hash;
}

/* Restore s to a file; its path. */
static char *
restore (struct repo *repo, const struct stored *s)
{
  char *out = format ("%s/restored-%u.raw", dir, repo->number);
  const char letter[] = { disk_letter (s->disk), '\0' };
  const char *const by_qemu[] = {
    "qemu-img", "convert", "-f", "qcow2", "-O", "raw", s->image, out, NULL
  };
  const char *const by_us[] = {
    tidemark, "restore", "--quiet", "--force", "--disk", letter, "--at",
    s->point, repo->path, out, NULL
  };

  unlink (out);
  must_run (repo, (char *const *) (next_random (&repo->random) % 2
                                   ? by_qemu : by_us));
  return out;
}

/* Go through a restored file.  point NULL: for the hash only. */
static uint64_t
read_restored (const char *path, unsigned disk, struct history_point *point)
{
  static __thread uint64_t buf[CHUNK / 8];
  uint64_t off, n, hash = UINT64_C (0xcbf29ce484222325);
  struct stat st;
  int fd = open (path, O_RDONLY | O_CLOEXEC);

  if (fd < 0 || fstat (fd, &st) < 0)
    die ("%s: %m", path);
  if ((uint64_t) st.st_size != disk_size)
    die ("%s: %jd bytes were restored, not %" PRIu64, path,
         (intmax_t) st.st_size, disk_size);
  for (off = 0; off < disk_size; off += n) {
    n = MIN (CHUNK, disk_size - off);
    if (pread (fd, buf, n, (off_t) off) != (ssize_t) n)
      die ("%s: %m", path);
    hash = add_hash (hash, buf, n / 8);
    if (point)
      history_point_check (point, disk, off / CELL, n / CELL, buf);
  }
  close (fd);
  return hash;
}

/* Every image stored by the run. */
static void
judge_run (struct run *run)
{
  struct repo *repo = run->repo;
  bool ok;
  char *path;
  unsigned i;

  pthread_mutex_lock (&judge);
  for (i = 0; i < nr_disks; i++) {
    if (run->stored[i].image == NULL)
      continue;
    path = restore (repo, &run->stored[i]);
    run->stored[i].hash = read_restored (path, i, run->point);
    free (path);
    if (stored_list_append (&repo->stored, run->stored[i]) < 0)
      die ("out of memory");
  }
  ok = history_point_verdict (run->point);
  run->point = NULL;
  pthread_mutex_unlock (&judge);
  if (!ok) {
    for (i = 0; i < nr_disks; i++)
      if (run->stored[i].image)
        fprintf (stderr, "oracle: the image is %s\n", run->stored[i].image);
    atomic_store (&has_failed, true);
  }
}

/* A session that a killed client has left behind holds the bitmap until its
 * lease has run out.
 */
static bool
may_be_busy (struct repo *repo, int64_t since)
{
  char *text = read_log (repo);
  const bool is_busy = strstr (text, "in use") != NULL;

  free (text);
  if (!is_busy || !repo->has_left_session)
    return false;
  if (clock_ms () > since + BUSY_SECONDS * 1000)
    die ("the session of a killed client does not go away");
  repo->nr_busy++;
  return true;
}

static bool
has_stored (const struct run *run)
{
  unsigned i;

  for (i = 0; i < nr_disks; i++)
    if (run->stored[i].image)
      return true;
  return false;
}

/* False: nothing was to be had, try again.  is_hit: the world was hit while the
 * client ran, which may then fail.
 */
static bool
finish_run (struct run *run, int status, bool is_hit, int64_t since)
{
  struct repo *repo = run->repo;
  const bool was_signalled =
    run->is_hit && (run->blow == BLOW_TERM || run->blow == BLOW_KILL);
  bool has_left;
  unsigned i;

  if (status != 0 && !was_signalled && !is_hit) {
    if (!may_be_busy (repo, since))
      die ("tidemark backup: status %d: %s", status, read_log (repo));
    leave_session (run, false);
    return false;
  }
  has_left = WIFSIGNALED (status) || (status != 0 && is_hit);
  if (status != 0) {
    if (was_signalled)
      repo->nr_killed++;
    else
      repo->nr_hit++;
    repo->has_left_session |= has_left;
  }
  for (i = 0; status == 0 && i < nr_disks; i++)
    if (run->what.wants[i] != (run->stored[i].image != NULL))
      die ("tidemark backup ends well, but disk %c is%s stored",
           disk_letter (i), run->what.wants[i] ? " not" : "");
  if (has_stored (run))
    judge_run (run);
  leave_session (run, has_left);
  repo->nr_backups++;
  return true;
}

/* is_last: a plain backup of everything. */
static void
one_backup (struct repo *repo, bool is_last)
{
  const int64_t since = clock_ms ();
  unsigned i, nr_hits;
  struct run run;
  int status;

  do {
    choose_run (repo, &run);
    if (is_last) {
      run.blow = BLOW_NONE;
      for (i = 0; i < nr_disks; i++)
        run.what.wants[i] = true;
    }
    nr_hits = world_nr_hits ();
    run.point = history_point_open (history);
    status = run_client (&run);
  } while (!finish_run (&run, status, world_nr_hits_done () != nr_hits, since));
}

static void *
repo_main (void *arg)
{
  struct repo *repo = arg;

  while (atomic_fetch_sub (&points_left, 1) > 0 && !atomic_load (&has_failed)
         && !writers_have_failed (writers))
    one_backup (repo, false);
  return NULL;
}

/* The end: nobody writes any more. */

static void
keep_final (struct repo *repo)
{
  const struct stored *s;
  char *from, *to;
  size_t i;

  for (i = repo->stored.len - nr_disks; i < repo->stored.len; i++) {
    s = &repo->stored.ptr[i];
    from = restore (repo, s);
    to = format ("%s/final-%c.raw", dir, disk_letter (s->disk));
    if (rename (from, to) < 0)
      die ("%s: %m", to);
    free (from);
    free (to);
  }
}

/* Older points must still be what they were. */
static void
restore_again (struct repo *repo)
{
  const size_t step = repo->stored.len / (NR_SAMPLES / NR_REPOS) + 1;
  const char *const verify[] = { tidemark, "verify", "--quiet", repo->path,
                                 NULL };
  const struct stored *s;
  char *path;
  size_t i;

  for (i = 0; i < repo->stored.len; i += step) {
    s = &repo->stored.ptr[i];
    path = restore (repo, s);
    if (read_restored (path, s->disk, NULL) != s->hash)
      die ("%s restores to something else than before", s->image);
    free (path);
  }
  must_run (repo, (char *const *) verify);
}

static void
free_repo (struct repo *repo)
{
  size_t i;

  for (i = 0; i < repo->stored.len; i++) {
    free (repo->stored.ptr[i].image);
    free (repo->stored.ptr[i].point);
  }
  stored_list_reset (&repo->stored);
  free (repo->path);
}

static void
run_all (struct repo *repos)
{
  const struct writers_options options = {
    .history = history, .seed = seed, .nr_threads = NR_WRITERS,
    .nr_disks = nr_disks, .nr_cells = disk_size / CELL, .rate = RATE,
    .connect = guest_connect,
  };
  unsigned i;

  writers = writers_start (&options);
  for (i = 0; i < NR_REPOS; i++)
    if (pthread_create (&repos[i].thread, NULL, repo_main, &repos[i]) != 0)
      die ("cannot start a thread");
  for (i = 0; i < NR_REPOS; i++)
    pthread_join (repos[i].thread, NULL);
  if (!writers_stop (writers))
    die ("the guests have failed");
  for (i = 0; i < NR_REPOS && !atomic_load (&has_failed); i++) {
    /* A session that a killed client has left has an older point. */
    if (repos[i].left)
      one_backup (&repos[i], true);
    one_backup (&repos[i], true);
    keep_final (&repos[i]);
    restore_again (&repos[i]);
  }
  if (atomic_load (&has_failed))
    die ("a backup is wrong");
}

int
main (int argc, char *argv[])
{
  struct repo repos[NR_REPOS] = { 0 };
  const char *s = getenv ("SEED");
  struct nbd_handle *nbd;
  uint64_t random;
  unsigned i;
  int status;

  if (argc < 7)
    die ("usage: oracle-programs DIR TIDEMARK RELAY POINTS DISKS SERVER...");
  dir = argv[1];
  live_socket = format ("%s/live.sock", dir);
  control = format ("%s/ctl-relay.sock", dir);
  tidemark = argv[2];
  atomic_store (&points_left, atoi (argv[4]));
  nr_disks = (unsigned) atoi (argv[5]);
  if (nr_disks < 1 || nr_disks > MAX_DISKS)
    die ("1 to %d disks", MAX_DISKS);
  seed = s ? strtoull (s, NULL, 0)
    : (uint64_t) time (NULL) << 16 ^ (uint64_t) getpid ();
  printf ("oracle: SEED=%" PRIu64 "\n", seed);
  fflush (stdout);
  world_start (&(struct world_options) {
      .dir = dir, .relay = argv[3], .server = argv + 6,
      .nr_guests = NR_WRITERS,
    });
  nbd = connect_disk (0);
  if (nbd == NULL)
    die ("%s: %s", live_socket, nbd_get_error ());
  disk_size = (uint64_t) nbd_get_size (nbd);
  nbd_close (nbd);
  history = history_new (seed, nr_disks, disk_size / CELL);
  random = seed + 1;
  for (i = 0; i < NR_REPOS; i++) {
    repos[i].number = i;
    repos[i].path = format ("%s/repo-%u", dir, i);
    repos[i].random = next_random (&random);
  }

  run_all (repos);
  status = world_stop ();
  if (status != 0)
    die ("the server ends with status %d", status);

  printf ("oracle: right under %" PRIu64 " operations of the guests:\n",
          history_count (history));
  printf ("  cuts and kills of the server: %u\n", world_nr_hits () / 2);
  for (i = 0; i < NR_REPOS; i++) {
    printf ("  repository %u: %u backups, of which %u killed, %u failed by cuts"
            " or the server's death, %u gone on with; %zu images stored; disks"
            " begun full %u, incremental %u; busy %u times\n", i,
            repos[i].nr_backups, repos[i].nr_killed, repos[i].nr_hit,
            repos[i].nr_resumed, repos[i].stored.len, repos[i].nr_full,
            repos[i].nr_incremental, repos[i].nr_busy);
    free_repo (&repos[i]);
  }
  history_free (history);
  return 0;
}
