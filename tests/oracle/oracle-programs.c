/* SPDX-License-Identifier: BSD-3-Clause */
/* The oracle test of the whole programs.
 *
 * A server (tidemarkd or nbdkit with our plugin) serves two disks.  Guests
 * write to them over several NBD connections each.  Two repositories are
 * filled by "tidemark backup" meanwhile: both disks or one, incremental or
 * full, with the client killed at any moment.  Every image that it says is
 * stored is restored through its chain, by "qemu-img convert" and "tidemark
 * restore" in turn, and must be a state that the disks have had at a single
 * moment between the start of the client and its first word about the pull
 * (history.c).  A run that goes on with what a killed one has left is judged by
 * the moment of that one.
 *
 * usage: oracle-programs DIR LIVE-SOCKET CONTROL TIDEMARK POINTS
 * The exports are "a" and "b".  DIR/final-a.raw and final-b.raw become what the
 * last backup holds, with the guests gone.
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
#include "writer.h"

#define NR_DISKS 2
#define NR_REPOS 2
#define NR_WRITERS 4
#define RATE 300                /* operations per second of each writer */
#define CHUNK UINT64_C (65536)
#define NR_SAMPLES 24           /* points that are restored again at the end */
#define BUSY_SECONDS 20
#define LINE_SIZE 4096

extern char **environ;

static uint64_t seed;
static uint64_t disk_size;
static const char *dir, *live_socket, *control, *tidemark;
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
  bool wants[NR_DISKS];
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
  bool has_left_session;        /* a client was killed with SIGKILL */
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
  struct nbd_handle *nbd[NR_DISKS];
};

static struct nbd_handle *
handle_of (struct guest *g, unsigned disk)
{
  return ((struct nbd_guest *) g)->nbd[disk];
}

static int
nbd_result (int r)
{
  if (r == 0)
    return 0;
  fprintf (stderr, "oracle: guest: %s\n", nbd_get_error ());
  return -EIO;
}

static int
guest_pread (struct guest *g, unsigned disk, void *buf, uint64_t len,
             uint64_t off)
{
  return nbd_result (nbd_pread (handle_of (g, disk), buf, len, off, 0));
}

static int
guest_pwrite (struct guest *g, unsigned disk, const void *buf, uint64_t len,
              uint64_t off, bool is_fua)
{
  return nbd_result (nbd_pwrite (handle_of (g, disk), buf, len, off,
                                 is_fua ? LIBNBD_CMD_FLAG_FUA : 0));
}

static int
guest_zero (struct guest *g, unsigned disk, uint64_t len, uint64_t off,
            bool may_unmap)
{
  return nbd_result (nbd_zero (handle_of (g, disk), len, off,
                               may_unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE));
}

static int
guest_trim (struct guest *g, unsigned disk, uint64_t len, uint64_t off)
{
  return nbd_result (nbd_trim (handle_of (g, disk), len, off, 0));
}

static int
guest_flush (struct guest *g, unsigned disk)
{
  return nbd_result (nbd_flush (handle_of (g, disk), 0));
}

static void
guest_close (struct guest *g)
{
  unsigned i;

  for (i = 0; i < NR_DISKS; i++) {
    nbd_shutdown (handle_of (g, i), 0);
    nbd_close (handle_of (g, i));
  }
  free (g);
}

static struct nbd_handle *
connect_disk (unsigned disk)
{
  struct nbd_handle *nbd = nbd_create ();
  const char name[] = { disk_letter (disk), '\0' };

  if (nbd == NULL || nbd_set_export_name (nbd, name) < 0
      || nbd_connect_unix (nbd, live_socket) < 0)
    die ("%s: %s", live_socket, nbd_get_error ());
  return nbd;
}

static struct guest *
guest_connect (void *opaque)
{
  struct nbd_guest *g = calloc (1, sizeof *g);
  unsigned i;

  if (g == NULL)
    die ("out of memory");
  g->guest = (struct guest) {
    .pread = guest_pread, .pwrite = guest_pwrite, .zero = guest_zero,
    .trim = guest_trim, .flush = guest_flush, .close = guest_close,
  };
  for (i = 0; i < NR_DISKS; i++)
    g->nbd[i] = connect_disk (i);
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

struct run {
  struct repo *repo;
  struct history_point *point;
  bool has_begun;               /* it has said so */
  struct what what;
  int signal;                   /* to send; 0 = none */
  int64_t signal_at;            /* ms */
  bool signal_on_begin;
  bool is_signalled;
  struct stored stored[NR_DISKS];       /* image NULL = not stored */
};

static void
choose_what (struct repo *repo, struct what *what)
{
  static const char *const sizes[] = { "4k", "32k", "128k" };
  const unsigned how = next_random (&repo->random) % 32;
  const unsigned one = next_random (&repo->random) % NR_DISKS;
  unsigned i;

  for (i = 0; i < NR_DISKS; i++)
    what->wants[i] = how < 24 || i == one;
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
  if (next_random (&repo->random) % 5 == 0) {
    run->signal = next_random (&repo->random) % 2 ? SIGTERM : SIGKILL;
    run->signal_on_begin = next_random (&repo->random) % 2;
    run->signal_at = clock_ms () + next_random (&repo->random) % 60;
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
  struct stored *s;

  if (event == NULL)
    die ("the client prints an event without a name");
  if (strcmp (event, "disk-begin") == 0) {
    if (!run->has_begun)
      history_point_returned (run->point);
    run->has_begun = true;
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
  if (name == NULL || name[0] < 'a' || name[0] >= disk_letter (NR_DISKS)
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
send_signal (struct run *run, pid_t pid)
{
  if (run->signal == 0 || run->is_signalled)
    return;
  if (run->signal_on_begin ? !run->has_begun : clock_ms () < run->signal_at)
    return;
  kill (pid, run->signal);
  run->is_signalled = true;
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
    send_signal (run, pid);
    if (poll (&p, 1, run->signal && !run->is_signalled ? 1 : -1) == 0)
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
  const char *argv[16] = { tidemark, "backup", "--json", "--lease", "1" };
  int argc = 5, fds[2], status;
  pid_t pid;

  if (run->what.is_full)
    argv[argc++] = "--full";
  if (run->what.cluster_size) {
    argv[argc++] = "--cluster-size";
    argv[argc++] = run->what.cluster_size;
  }
  if (run->what.wants[0] != run->what.wants[1]) {
    argv[argc++] = "--disk";
    argv[argc++] = run->what.wants[0] ? "a" : "b";
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
  for (i = 0; i < NR_DISKS; i++) {
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
    for (i = 0; i < NR_DISKS; i++)
      if (run->stored[i].image)
        fprintf (stderr, "oracle: the image is %s\n", run->stored[i].image);
    atomic_store (&has_failed, true);
  }
}

/* A session that a killed client has left behind holds the bitmap until its
 * lease of a second has run out.
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

/* False: nothing was to be had, try again. */
static bool
finish_run (struct run *run, int status, int64_t since)
{
  struct repo *repo = run->repo;
  unsigned i;

  if (status != 0 && !run->is_signalled) {
    if (!may_be_busy (repo, since))
      die ("tidemark backup: status %d: %s", status, read_log (repo));
    leave_session (run, false);
    return false;
  }
  if (status != 0) {
    repo->nr_killed++;
    repo->has_left_session |= WIFSIGNALED (status);
  }
  for (i = 0; status == 0 && i < NR_DISKS; i++)
    if (run->what.wants[i] != (run->stored[i].image != NULL))
      die ("tidemark backup ends well, but disk %c is%s stored",
           disk_letter (i), run->what.wants[i] ? " not" : "");
  if (run->stored[0].image || run->stored[1].image)
    judge_run (run);
  leave_session (run, WIFSIGNALED (status));
  repo->nr_backups++;
  return true;
}

/* is_last: a plain backup of everything. */
static void
one_backup (struct repo *repo, bool is_last)
{
  const int64_t since = clock_ms ();
  struct run run;
  int status;

  do {
    choose_run (repo, &run);
    if (is_last) {
      run.signal = 0;
      run.what.wants[0] = run.what.wants[1] = true;
    }
    run.point = history_point_open (history);
    status = run_client (&run);
  } while (!finish_run (&run, status, since));
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

  for (i = repo->stored.len - NR_DISKS; i < repo->stored.len; i++) {
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
    .nr_disks = NR_DISKS, .nr_cells = disk_size / CELL, .rate = RATE,
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

  if (argc != 6)
    die ("usage: oracle-programs DIR LIVE-SOCKET CONTROL TIDEMARK POINTS");
  dir = argv[1];
  live_socket = argv[2];
  control = argv[3];
  tidemark = argv[4];
  atomic_store (&points_left, atoi (argv[5]));
  seed = s ? strtoull (s, NULL, 0)
    : (uint64_t) time (NULL) << 16 ^ (uint64_t) getpid ();
  printf ("oracle: SEED=%" PRIu64 "\n", seed);
  fflush (stdout);
  nbd = connect_disk (0);
  disk_size = (uint64_t) nbd_get_size (nbd);
  nbd_close (nbd);
  history = history_new (seed, NR_DISKS, disk_size / CELL);
  random = seed + 1;
  for (i = 0; i < NR_REPOS; i++) {
    repos[i].number = i;
    repos[i].path = format ("%s/repo-%u", dir, i);
    repos[i].random = next_random (&random);
  }

  run_all (repos);

  printf ("oracle: right under %" PRIu64 " operations of the guests:\n",
          history_count (history));
  for (i = 0; i < NR_REPOS; i++) {
    printf ("  repository %u: %u backups, of which %u killed, %u gone on with;"
            " %zu images stored; disks begun full %u, incremental %u; busy %u"
            " times\n", i, repos[i].nr_backups, repos[i].nr_killed,
            repos[i].nr_resumed, repos[i].stored.len, repos[i].nr_full,
            repos[i].nr_incremental, repos[i].nr_busy);
    free_repo (&repos[i]);
  }
  history_free (history);
  return 0;
}
