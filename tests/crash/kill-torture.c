/* SPDX-License-Identifier: BSD-3-Clause */
/* A server is killed (SIGKILL) at any moment, over and over.
 *
 * It serves two raw disks, each with a persistent bitmap.  Guests write to
 * them over several connections; at times "tidemark backup" runs.  After each
 * kill the disks and their stores are opened here, by the code of the server,
 * and the bits are held against the disk files themselves: a block that
 * differs from what the last backup holds must be dirty, and none may be
 * dirty that nobody has asked to change since then.  Every few kills the
 * guests rest while a backup is made: it must be incremental, and what is
 * restored from it must be what the disk file holds.  After KILLS_OF_REPO kills
 * a new repository is begun, by a full backup: else what a restore costs would
 * grow with every kill.
 *
 * usage: kill-torture DIR TIDEMARK KILLS SERVER ARGUMENT...
 * The server is to serve DIR/a.raw and DIR/b.raw as "a" and "b", each with a
 * bitmap "k", on DIR/live.sock, and listen on DIR/ctl.sock.
 * SEED=N in the environment repeats the choices (not the moments).
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>
#include <libnbd.h>

#include "disk.h"
#include "log.h"
#include "range.h"
#include "sim.h"

#define NR_DISKS 2
#define NR_GUESTS 4             /* each has a connection to each disk */
#define DISK_SIZE ((UINT64_C (8) << 20) + 3 * 512)
#define GRANULE UINT64_C (65536)
#define NR_GRANULES ((DISK_SIZE + GRANULE - 1) / GRANULE)
#define MAX_WRITE UINT64_C (65536)
#define BITMAP "k"
#define NR_KINDS 4
#define START_SECONDS 30
#define KILLS_OF_REPO 48
#define MAX_REST_US UINT64_C (10000)    /* what is done to a server comes soon
                                           after its start, or never */

extern char **environ;

struct asked {
  _Atomic bool granules[NR_GRANULES];
};

struct torture_disk {
  char name[2];
  char *path;
  unsigned char *base;          /* what the base point holds */
  struct point_id base_point;
  struct asked since_base;      /* to change */
  struct asked since_begin;     /* of the last backup */
  char *image;                  /* of the last backup, "" = none; and its */
  struct point_id image_point;
};

static struct torture_disk disks[NR_DISKS];
static uint64_t seed, choices;
static const char *dir, *tidemark;
static char *const *server_argv;
static pid_t server_pid;
static char *live_socket, *repo;
static unsigned nr_kills, nr_backups, nr_cut_off, nr_restored, nr_starts;
static unsigned nr_repos;
static _Atomic uint64_t nr_requests;

/* What the time goes into. */
enum phase {
  PHASE_START, PHASE_WORK, PHASE_CHECK, PHASE_BACKUP, PHASE_RESTORE, NR_PHASES
};
static int64_t phase_us[NR_PHASES];

static void __attribute__ ((noreturn, format (printf, 1, 2)))
die (const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  fprintf (stderr, "kill-torture: SEED=%" PRIu64 ", after %u kills: ", seed,
           nr_kills);
  vfprintf (stderr, fmt, args);
  fprintf (stderr, "\n");
  va_end (args);
  if (server_pid > 0)
    kill (server_pid, SIGKILL);
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

static void
rest_us (uint64_t us)
{
  struct timespec t = {
    .tv_sec = (time_t) (us / 1000000), .tv_nsec = (long) (us % 1000000) * 1000
  };

  nanosleep (&t, NULL);
}

static int64_t
now_us (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec * INT64_C (1000000) + t.tv_nsec / 1000;
}

static void
count_time (enum phase phase, int64_t since)
{
  phase_us[phase] += now_us () - since;
}

/*---- Programs ----*/

/* Both outputs to a file in DIR. */
static pid_t
start (const char *log, char *const *argv)
{
  char *path = format ("%s/%s", dir, log);
  posix_spawn_file_actions_t actions;
  pid_t pid;
  int r;

  posix_spawn_file_actions_init (&actions);
  posix_spawn_file_actions_addopen (&actions, 1, path,
                                    O_WRONLY | O_CREAT | O_TRUNC, 0666);
  posix_spawn_file_actions_adddup2 (&actions, 1, 2);
  r = posix_spawnp (&pid, argv[0], &actions, NULL, argv, environ);
  if (r != 0)
    die ("%s: %s", argv[0], strerror (r));
  posix_spawn_file_actions_destroy (&actions);
  free (path);
  return pid;
}

static char *
read_log (const char *log)
{
  char *path = format ("%s/%s", dir, log);
  char *text = calloc (1, 65536);
  FILE *fp = fopen (path, "r");

  if (text == NULL)
    die ("out of memory");
  if (fp) {
    text[fread (text, 1, 65535, fp)] = '\0';
    fclose (fp);
  }
  free (path);
  return text;
}

static int
wait_for_end (pid_t pid)
{
  int status;

  if (waitpid (pid, &status, 0) < 0)
    die ("waitpid: %m");
  return status;
}

static bool
answers (const char *path)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  bool yes;

  snprintf (addr.sun_path, sizeof addr.sun_path, "%s", path);
  yes = fd >= 0 && connect (fd, (struct sockaddr *) &addr, sizeof addr) == 0;
  if (fd >= 0)
    close (fd);
  return yes;
}

static void
start_server (void)
{
  static const char *const sockets[] = { "live.sock", "ctl.sock",
                                         "backup.sock" };
  const time_t end = time (NULL) + START_SECONDS;
  const int64_t since = now_us ();
  char *path;
  unsigned i;

  /* A killed nbdkit leaves its own. */
  for (i = 0; i < 3; i++) {
    path = format ("%s/%s", dir, sockets[i]);
    unlink (path);
    free (path);
  }
  server_pid = start ("server.log", server_argv);
  nr_starts++;
  for (i = 0; i < 2; i++) {
    path = format ("%s/%s", dir, sockets[i]);
    while (!answers (path)) {
      if (waitpid (server_pid, NULL, WNOHANG) != 0 || time (NULL) > end)
        die ("the server does not start: %s", read_log ("server.log"));
      rest_us (1000);
    }
    free (path);
  }
  count_time (PHASE_START, since);
}

static void
kill_server (int how)
{
  int status;

  kill (server_pid, how);
  status = wait_for_end (server_pid);
  server_pid = 0;
  if (how == SIGKILL
      ? !WIFSIGNALED (status) || WTERMSIG (status) != SIGKILL : status != 0)
    die ("the server ended with status %d: %s", status,
         read_log ("server.log"));
}

/*---- Guests ----*/

struct torture_guest {
  pthread_t thread;
  uint64_t random;
  struct nbd_handle *nbd[NR_DISKS];
  unsigned char *buf;
};

static void
ask (struct torture_disk *d, uint64_t off, uint64_t len)
{
  uint64_t g;

  for (g = off / GRANULE; g <= (off + len - 1) / GRANULE; g++) {
    atomic_store (&d->since_base.granules[g], true);
    atomic_store (&d->since_begin.granules[g], true);
  }
}

/* One request; false: the server is gone. */
static bool
request (struct torture_guest *g)
{
  const uint64_t sectors = DISK_SIZE / 512;
  const unsigned i = (unsigned) sim_random (&g->random) % NR_DISKS;
  uint64_t first = sim_random (&g->random) % sectors, len, n, word;

  /* Half of them within a few granules, so that some stay clean. */
  if (sim_random (&g->random) % 8)
    first = first % (sectors / 16) + sim_random (&g->random) % 2;
  len = 1 + sim_random (&g->random) % (sim_random (&g->random) % 8
                                       ? 16 : MAX_WRITE / 512);
  len = MIN (len, sectors - first) * 512;
  first *= 512;
  ask (&disks[i], first, len);
  atomic_fetch_add (&nr_requests, 1);
  switch (sim_random (&g->random) % NR_KINDS) {
  case 0:
    return nbd_zero (g->nbd[i], len, first,
                     sim_random (&g->random) % 2
                     ? LIBNBD_CMD_FLAG_NO_HOLE : 0) == 0;
  case 1:
    return nbd_trim (g->nbd[i], len, first, 0) == 0;
  default:
    for (n = 0; n < len / 8; n++) {
      word = n % 64 ? g->random + n : g->random;
      memcpy (g->buf + n * 8, &word, 8);
    }
    return nbd_pwrite (g->nbd[i], g->buf, len, first,
                       sim_random (&g->random) % 64 ? 0
                       : LIBNBD_CMD_FLAG_FUA) == 0;
  }
}

static void *
guest_main (void *arg)
{
  struct torture_guest *g = arg;

  while (request (g))
    ;
  return NULL;
}

static struct nbd_handle *
connect_disk (unsigned disk)
{
  struct nbd_handle *nbd = nbd_create ();

  if (nbd == NULL || nbd_set_export_name (nbd, disks[disk].name) < 0
      || nbd_connect_unix (nbd, live_socket) < 0)
    die ("%s: %s", live_socket, nbd_get_error ());
  return nbd;
}

static void
start_guests (struct torture_guest *guests)
{
  unsigned i, j;

  for (i = 0; i < NR_GUESTS; i++) {
    guests[i].random = sim_random (&choices);
    guests[i].buf = malloc (MAX_WRITE);
    if (guests[i].buf == NULL)
      die ("out of memory");
    for (j = 0; j < NR_DISKS; j++)
      guests[i].nbd[j] = connect_disk (j);
    if (pthread_create (&guests[i].thread, NULL, guest_main, &guests[i]) != 0)
      die ("cannot start a thread");
  }
}

static void
join_guests (struct torture_guest *guests)
{
  unsigned i, j;

  for (i = 0; i < NR_GUESTS; i++) {
    pthread_join (guests[i].thread, NULL);
    for (j = 0; j < NR_DISKS; j++)
      nbd_close (guests[i].nbd[j]);
    free (guests[i].buf);
  }
}

/*---- Backups ----*/

static pid_t
start_backup (void)
{
  char *control = format ("unix:%s/ctl.sock", dir);
  const char *const argv[] = {
    /* Nothing is there to come back to before the client has ended. */
    tidemark, "backup", "--json", "--retry", "0", "-b", BITMAP, control, repo,
    NULL
  };
  unsigned i;
  pid_t pid;

  for (i = 0; i < NR_DISKS; i++)
    memset (&disks[i].since_begin, 0, sizeof disks[i].since_begin);
  pid = start ("backup.log", (char *const *) argv);
  free (control);
  nr_backups++;
  return pid;
}

static struct torture_disk *
disk_of (const json_t *o)
{
  const char *name = json_string_value (json_object_get (o, "disk"));

  if (name == NULL || name[0] < 'a' || name[0] >= 'a' + NR_DISKS)
    die ("the client speaks of an unknown disk");
  return &disks[name[0] - 'a'];
}

/* An event that the client has printed. */
static void
take_event (const json_t *o, bool is_first)
{
  const char *event = json_string_value (json_object_get (o, "event"));
  const char *mode = json_string_value (json_object_get (o, "mode"));
  const char *why = json_string_value (json_object_get (o, "why"));
  const char *image = json_string_value (json_object_get (o, "image"));
  const char *point = json_string_value (json_object_get (o, "point"));
  struct torture_disk *d;

  if (event && strcmp (event, "disk-begin") == 0) {
    if (!is_first && mode && strcmp (mode, "full") == 0)
      die ("a needless full backup of %s: %s", disk_of (o)->name,
           why ? why : "for no reason");
  }
  else if (event && strcmp (event, "stored") == 0) {
    d = disk_of (o);
    if (image == NULL || point == NULL
        || point_id_parse (point, &d->image_point) < 0)
      die ("the client stores something unheard of");
    free (d->image);
    d->image = format ("%s/%s", repo, image);
  }
}

static void
take_events (bool is_first)
{
  char *text = read_log ("backup.log"), *line, *rest = text;
  json_t *o;

  while ((line = strsep (&rest, "\n")) != NULL) {
    o = json_loads (line, 0, NULL);
    if (o == NULL)              /* messages, and a line cut off */
      continue;
    take_event (o, is_first);
    json_decref (o);
  }
  free (text);
}

static void
read_file (const char *path, unsigned char *ret)
{
  int fd = open (path, O_RDONLY | O_CLOEXEC);
  struct stat st;

  if (fd < 0 || fstat (fd, &st) < 0 || (uint64_t) st.st_size != DISK_SIZE
      || pread (fd, ret, DISK_SIZE, 0) != (ssize_t) DISK_SIZE)
    die ("cannot read all of %s", path);
  close (fd);
}

/* What the last backup of a disk holds. */
static void
restore (struct torture_disk *d, unsigned char *ret)
{
  char *out = format ("%s/restored.raw", dir);
  char point[POINT_ID_STRING_SIZE];
  const int64_t since = now_us ();
  const char *const by_qemu[] = {
    "qemu-img", "convert", "-f", "qcow2", "-O", "raw", d->image, out, NULL
  };
  const char *const by_us[] = {
    tidemark, "restore", "--quiet", "--force", "--disk", d->name, "--at",
    point, repo, out, NULL
  };

  point_id_format (&d->image_point, point);
  unlink (out);
  if (wait_for_end (start ("restore.log", (char *const *)
                           (sim_random (&choices) % 2 ? by_qemu : by_us))))
    die ("cannot restore %s: %s", d->image, read_log ("restore.log"));
  read_file (out, ret);
  free (out);
  nr_restored++;
  count_time (PHASE_RESTORE, since);
}

/* The base point of a disk is its last backup. */
static void
move_base (struct torture_disk *d)
{
  restore (d, d->base);
  d->base_point = d->image_point;
  memcpy (&d->since_base, &d->since_begin, sizeof d->since_base);
}

/* The guests rest: a backup has all that the disks hold. */
static void
backup_at_rest (bool is_first)
{
  unsigned char *now = malloc (DISK_SIZE);
  int64_t since = now_us ();
  unsigned i;

  if (now == NULL)
    die ("out of memory");
  if (wait_for_end (start_backup ()) != 0)
    die ("tidemark backup: %s", read_log ("backup.log"));
  take_events (is_first);
  count_time (PHASE_BACKUP, since);
  for (i = 0; i < NR_DISKS; i++) {
    read_file (disks[i].path, now);
    move_base (&disks[i]);
    if (memcmp (now, disks[i].base, DISK_SIZE) != 0)
      die ("%s is not what disk %s holds", disks[i].image, disks[i].name);
  }
  free (now);
}

/* With the server up and the guests at rest. */
static void
begin_repo (void)
{
  char *old = repo;
  char *const rm[] = { (char *) "rm", (char *) "-rf", old, NULL };

  repo = format ("%s/repo%u", dir, ++nr_repos);
  backup_at_rest (true);
  if (old && wait_for_end (start ("rm.log", rm)) != 0)
    die ("cannot remove %s: %s", old, read_log ("rm.log"));
  free (old);
}

/*---- Bits after a kill ----*/

static struct disk *
open_disk (const struct torture_disk *d)
{
  const struct disk_options options = { .name = d->name, .file = d->path };
  struct disk *disk;
  struct error err;

  if (disk_open (&options, &disk, &err) < 0)
    die ("%s", err.msg);
  return disk;
}

static void
check_bits (const struct torture_disk *d, struct dirty_bitmap *bm,
            const unsigned char *now)
{
  const bool *asked = (const bool *) d->since_base.granules;
  struct extents e;
  uint64_t g, off, len;
  bool is_dirty;

  extents_init (&e, NR_GRANULES + 1);
  if (dirty_extents (bm, DISK_SIZE, 0, &e) < 0)
    die ("cannot read the bits of disk %s", d->name);
  for (g = 0; g < NR_GRANULES; g++) {
    off = g * GRANULE;
    len = MIN (GRANULE, DISK_SIZE - off);
    is_dirty = extents_find (&e, off)->value != 0;
    if (!is_dirty && memcmp (now + off, d->base + off, len) != 0)
      die ("disk %s has changed at %" PRIu64 " and is clean", d->name, off);
    if (is_dirty && !asked[g])
      die ("disk %s is dirty at %" PRIu64 " for no reason", d->name, off);
  }
  extents_free (&e);
}

/* The disk as the killed server has left it. */
static void
check_disk (struct torture_disk *d, unsigned char *now)
{
  struct disk *disk = open_disk (d);
  struct dirty_bitmap *bm = dirty_find (disk_dirty (disk), BITMAP);
  struct dirty_info info;

  if (bm == NULL || dirty_get_info (bm, &info) < 0)
    die ("disk %s has lost its bitmap", d->name);
  if (info.state == DIRTY_INCONSISTENT || !info.is_recording || info.is_busy)
    die ("disk %s: the bitmap is not as it should be: %s", d->name,
         info.reason);
  if (!point_id_is_equal (&info.base, &d->base_point)) {
    /* The backup has got through before the kill. */
    if (!point_id_is_equal (&info.base, &d->image_point))
      die ("disk %s counts from a point that is no backup's", d->name);
    move_base (d);
  }
  read_file (d->path, now);
  check_bits (d, bm, now);
  free (info.name);
  dirty_unref (bm);
  disk_abandon (disk);
}

static void
check_disks (void)
{
  unsigned char *now = malloc (DISK_SIZE);
  const int64_t since = now_us (), restoring = phase_us[PHASE_RESTORE];
  unsigned i;

  if (now == NULL)
    die ("out of memory");
  for (i = 0; i < NR_DISKS; i++)
    check_disk (&disks[i], now);
  free (now);
  count_time (PHASE_CHECK, since);
  phase_us[PHASE_CHECK] -= phase_us[PHASE_RESTORE] - restoring;
}

/*---- The torture ----*/

/* Guests write, perhaps a backup runs, the server is killed. */
static void
kill_at_work (void)
{
  struct torture_guest guests[NR_GUESTS];
  const bool has_backup = sim_random (&choices) % 4 == 0;
  const bool waits = sim_random (&choices) % 4 == 0;
  const int64_t since = now_us ();
  pid_t backup = 0;
  int status = 0;

  start_guests (guests);
  rest_us (sim_random (&choices) % MAX_REST_US);
  if (has_backup)
    backup = start_backup ();
  if (has_backup && waits)
    status = wait_for_end (backup);
  if (status != 0)
    die ("tidemark backup: %s", read_log ("backup.log"));
  rest_us (sim_random (&choices) % (has_backup ? 6 * MAX_REST_US
                                    : MAX_REST_US));
  kill_server (SIGKILL);
  nr_kills++;
  join_guests (guests);
  if (has_backup && !waits)
    status = wait_for_end (backup);
  nr_cut_off += status != 0;
  if (has_backup)
    take_events (false);
  count_time (PHASE_WORK, since);
}

static void
torture (unsigned kills)
{
  start_server ();
  begin_repo ();
  while (nr_kills < kills) {
    kill_at_work ();
    check_disks ();
    start_server ();
    if (nr_kills % KILLS_OF_REPO == 0)
      begin_repo ();
    else if (sim_random (&choices) % 16 == 0)
      backup_at_rest (false);
    if (sim_random (&choices) % 32 == 0) {
      kill_server (SIGTERM);
      check_disks ();
      start_server ();
    }
    if (nr_kills % 1000 == 0) {
      printf ("kill-torture: %u kills\n", nr_kills);
      fflush (stdout);
    }
  }
  backup_at_rest (false);
  kill_server (SIGTERM);
  check_disks ();
}

static void
make_disk (unsigned i)
{
  struct torture_disk *d = &disks[i];
  int fd;

  d->name[0] = (char) ('a' + i);
  d->path = format ("%s/%s.raw", dir, d->name);
  d->base = calloc (1, DISK_SIZE);
  fd = open (d->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (d->base == NULL || fd < 0 || ftruncate (fd, (off_t) DISK_SIZE) < 0)
    die ("%s: %m", d->path);
  close (fd);
}

static void
ignore_log (enum log_level level, const char *msg)
{
}

int
main (int argc, char *argv[])
{
  const char *s = getenv ("SEED");
  unsigned i;

  if (argc < 5)
    die ("usage: kill-torture DIR TIDEMARK KILLS SERVER ARGUMENT...");
  dir = argv[1];
  tidemark = argv[2];
  server_argv = &argv[4];
  live_socket = format ("%s/live.sock", dir);
  seed = s ? strtoull (s, NULL, 0)
    : (uint64_t) time (NULL) << 16 ^ (uint64_t) getpid ();
  printf ("kill-torture: SEED=%" PRIu64 "\n", seed);
  fflush (stdout);
  choices = seed;
  signal (SIGPIPE, SIG_IGN);
  log_set_handler (ignore_log);
  for (i = 0; i < NR_DISKS; i++)
    make_disk (i);

  torture ((unsigned) atoi (argv[3]));

  printf ("kill-torture: right after %u kills and %u starts, %" PRIu64
          " requests; %u backups, of which %u were cut off; %u restored\n",
          nr_kills, nr_starts, atomic_load (&nr_requests), nr_backups,
          nr_cut_off, nr_restored);
  printf ("kill-torture: seconds: %.1f starting, %.1f at work, %.1f looking at"
          " bits, %.1f backing up at rest, %.1f restoring\n",
          (double) phase_us[PHASE_START] / 1e6,
          (double) phase_us[PHASE_WORK] / 1e6,
          (double) phase_us[PHASE_CHECK] / 1e6,
          (double) phase_us[PHASE_BACKUP] / 1e6,
          (double) phase_us[PHASE_RESTORE] / 1e6);
  for (i = 0; i < NR_DISKS; i++) {
    free (disks[i].path);
    free (disks[i].base);
    free (disks[i].image);
  }
  free (live_socket);
  free (repo);
  return 0;
}
