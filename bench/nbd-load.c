/* SPDX-License-Identifier: BSD-3-Clause */
/* A load on an NBD export, with libnbd alone: so many requests of one size at
 * random places, so many in flight, over so many connections with a thread
 * each.  Prints one line of JSON.
 *
 * nbd-load --op=write|read --size=BYTES --count=N [--depth=N]
 *          [--connections=N] [--rate=N] [--seed=N] [--distinct] [--latency]
 *          [--no-flush] [--until-eof] URI
 *
 * --distinct: no place twice (count * size must fit the export); places are
 * the same for every run with the same seed.  A flush at the end is timed.
 *
 * --rate: so many requests per second and connection, at even times.  The
 * latency of one counts from when it was due, so that those which had to wait
 * for a free slot behind a slow one are seen too.
 *
 * --until-eof: until standard input ends, at least one request and at most
 * COUNT; the places repeat after the first 1,048,576.  Says "started" first.
 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libnbd.h>

#include "clock.h"

#define MAX_CONNECTIONS 64
#define POOL_SIZE (16 << 20)    /* random bytes to write from */
#define MAX_PLACES (1 << 20)    /* of a load without end */

struct load {
  const char *uri;
  bool is_write, is_distinct, is_latency, is_no_flush, is_until_eof;
  uint64_t size, count, depth, connections, rate, seed;
};

static struct load load = {
  .is_write = true, .size = 4096, .count = 100000, .depth = 32,
  .connections = 1, .seed = 1,
};

struct slot {
  struct client *client;
  struct slot *next;            /* free */
  int64_t start;                /* ns */
  char *buf;                    /* to read to */
};

struct client {
  pthread_t thread;
  struct nbd_handle *nbd;
  struct slot *slots, *free;
  int64_t start;                /* ns */
  uint64_t count, in_flight;
  uint64_t first;               /* place */
  uint64_t *latencies;          /* ns; one per request */
  uint64_t nr_done;
  bool has_failed;
};

static char *pool;
static uint64_t *places, nr_places;
static atomic_bool is_over;

static void __attribute__ ((noreturn))
die (const char *what)
{
  const char *why = nbd_get_error ();

  fprintf (stderr, "nbd-load: %s: %s\n", what, why ? why : strerror (errno));
  exit (EXIT_FAILURE);
}

/* xorshift64* */
static uint64_t
random_next (uint64_t *state)
{
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C (2685821657736338717);
}

static int
completed (void *user_data, int *error)
{
  struct slot *slot = user_data;
  struct client *c = slot->client;

  if (*error)
    c->has_failed = true;
  if (c->latencies)
    c->latencies[c->nr_done] = clock_ns () - slot->start;
  c->nr_done++;
  c->in_flight--;
  slot->next = c->free;
  c->free = slot;
  return 1;
}

/* When request I of a connection is due. */
static int64_t
due (const struct client *c, uint64_t i)
{
  return c->start + i * INT64_C (1000000000) / (int64_t) load.rate;
}

static void
issue (struct client *c, uint64_t i)
{
  struct slot *slot = c->free;
  const nbd_completion_callback cb = {
    .callback = completed, .user_data = slot
  };
  const uint64_t off = places[(c->first + i) % nr_places] * load.size;
  int64_t r;

  c->free = slot->next;
  if (c->latencies)
    slot->start = load.rate ? due (c, i) : clock_ns ();
  if (load.is_write)
    r = nbd_aio_pwrite (c->nbd, pool + (i * 4096) % (POOL_SIZE - load.size),
                        load.size, off, cb, 0);
  else
    r = nbd_aio_pread (c->nbd, slot->buf, load.size, off, cb, 0);
  if (r == -1)
    die ("request");
  c->in_flight++;
}

/* Wait for the server, or until the time UNTIL (ns; -1: no limit). */
static void
wait_for (struct client *c, int64_t until)
{
  const unsigned dir = nbd_aio_get_direction (c->nbd);
  struct pollfd fd = { .fd = nbd_aio_get_fd (c->nbd) };
  const int64_t left = until - clock_ns ();
  struct timespec ts = { 0 };

  if (dir & LIBNBD_AIO_DIRECTION_READ)
    fd.events |= POLLIN;
  if (dir & LIBNBD_AIO_DIRECTION_WRITE)
    fd.events |= POLLOUT;
  if (left > 0) {
    ts.tv_sec = left / 1000000000;
    ts.tv_nsec = left % 1000000000;
  }
  if (ppoll (&fd, 1, until == -1 ? NULL : &ts, NULL) == -1)
    die ("poll");
  if ((fd.revents & (POLLIN | POLLHUP | POLLERR) &&
       nbd_aio_notify_read (c->nbd) == -1) ||
      (fd.revents & POLLOUT &&
       nbd_aio_get_direction (c->nbd) & LIBNBD_AIO_DIRECTION_WRITE &&
       nbd_aio_notify_write (c->nbd) == -1))
    die ("connection");
}

static void *
run (void *opaque)
{
  struct client *c = opaque;
  uint64_t i = 0;

  c->start = clock_ns ();
  while (!c->has_failed) {
    if (is_over)
      c->count = i > 0 ? i : 1;
    while (i < c->count && c->free &&
           (!load.rate || due (c, i) <= clock_ns ()))
      issue (c, i++);
    if (i == c->count && c->in_flight == 0)
      break;
    wait_for (c, i < c->count && c->free && load.rate ? due (c, i) : -1);
  }
  if (load.is_write && !load.is_no_flush && !c->has_failed &&
      nbd_flush (c->nbd, 0) == -1)
    die ("flush");
  return NULL;
}

static void
prepare (struct client *c, uint64_t first)
{
  uint64_t i;

  c->nbd = nbd_create ();
  if (!c->nbd || nbd_set_pread_initialize (c->nbd, false) == -1 ||
      nbd_connect_uri (c->nbd, load.uri) == -1)
    die (load.uri);
  c->first = first;
  c->slots = calloc (load.depth, sizeof *c->slots);
  if (load.is_latency)
    c->latencies = calloc (c->count, sizeof *c->latencies);
  if (!c->slots || (load.is_latency && !c->latencies))
    die ("memory");
  for (i = 0; i < load.depth; i++) {
    c->slots[i].client = c;
    c->slots[i].buf = malloc (load.size);
    c->slots[i].next = c->free;
    c->free = &c->slots[i];
  }
}

/* The places of all requests, in units of their size; there are so many. */
static void
make_places (uint64_t size)
{
  uint8_t *used = load.is_distinct ? calloc (size / 8 + 1, 1) : NULL;
  uint64_t state = load.seed * UINT64_C (0x9e3779b97f4a7c15) + 1, i;

  nr_places = load.count;
  if (load.is_until_eof && nr_places > MAX_PLACES)
    nr_places = MAX_PLACES;
  places = calloc (nr_places, sizeof *places);
  if (!places || (load.is_distinct && !used))
    die ("memory");
  if (size == 0 || (load.is_distinct && nr_places > size)) {
    fprintf (stderr, "nbd-load: the export is too small\n");
    exit (EXIT_FAILURE);
  }
  for (i = 0; i < nr_places; i++) {
    uint64_t p;

    do
      p = random_next (&state) % size;
    while (used && (used[p / 8] >> (p % 8) & 1));
    if (used)
      used[p / 8] |= 1 << (p % 8);
    places[i] = p;
  }
  free (used);
}

static int
compare_u64 (const void *a, const void *b)
{
  uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return x < y ? -1 : x > y;
}

static void
print_latencies (const struct client *clients)
{
  uint64_t *all = calloc (load.count, sizeof *all);
  uint64_t i, n = 0;

  if (!all)
    die ("memory");
  for (i = 0; i < load.connections; i++) {
    memcpy (all + n, clients[i].latencies,
            clients[i].nr_done * sizeof *all);
    n += clients[i].nr_done;
  }
  qsort (all, n, sizeof *all, compare_u64);
  printf (", \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f",
          all[n / 2] / 1e3, all[n - 1 - n / 100] / 1e3, all[n - 1] / 1e3);
  free (all);
}

static uint64_t
number (const char *name, const char *s, uint64_t max)
{
  char *end;
  unsigned long long n = strtoull (s, &end, 10);

  if (end == s || *end || n == 0 || n > max) {
    fprintf (stderr, "nbd-load: --%s=%s: not a number from 1 to %" PRIu64
             "\n", name, s, max);
    exit (EXIT_FAILURE);
  }
  return n;
}

static void
parse (int argc, char **argv)
{
  static const struct option options[] = {
    { "op", required_argument, NULL, 'o' },
    { "size", required_argument, NULL, 's' },
    { "count", required_argument, NULL, 'c' },
    { "depth", required_argument, NULL, 'd' },
    { "connections", required_argument, NULL, 'C' },
    { "rate", required_argument, NULL, 'r' },
    { "seed", required_argument, NULL, 'S' },
    { "distinct", no_argument, NULL, 'D' },
    { "latency", no_argument, NULL, 'l' },
    { "no-flush", no_argument, NULL, 'n' },
    { "until-eof", no_argument, NULL, 'e' },
    { NULL }
  };
  int c;

  while ((c = getopt_long (argc, argv, "", options, NULL)) != -1) {
    switch (c) {
    case 'o': load.is_write = strcmp (optarg, "write") == 0; break;
    case 's': load.size = number ("size", optarg, POOL_SIZE / 2); break;
    case 'c': load.count = number ("count", optarg, 1000000000); break;
    case 'd': load.depth = number ("depth", optarg, 1024); break;
    case 'C':
      load.connections = number ("connections", optarg, MAX_CONNECTIONS);
      break;
    case 'r': load.rate = number ("rate", optarg, 1000000); break;
    case 'S': load.seed = number ("seed", optarg, UINT32_MAX); break;
    case 'D': load.is_distinct = true; break;
    case 'l': load.is_latency = true; break;
    case 'n': load.is_no_flush = true; break;
    case 'e': load.is_until_eof = true; break;
    default: exit (EXIT_FAILURE);
    }
  }
  if (optind + 1 != argc) {
    fprintf (stderr, "nbd-load: one URI is needed\n");
    exit (EXIT_FAILURE);
  }
  load.uri = argv[optind];
}

/* Ends the load with standard input. */
static void *
watch_stdin (void *unused)
{
  char c;

  while (read (STDIN_FILENO, &c, 1) == 1)
    ;
  is_over = true;
  return NULL;
}

int
main (int argc, char **argv)
{
  static struct client clients[MAX_CONNECTIONS];
  uint64_t state = 88172645463325252, i, start, done = 0;
  pthread_t watcher;
  double seconds;

  parse (argc, argv);
  pool = malloc (POOL_SIZE);
  if (!pool)
    die ("memory");
  for (i = 0; i < POOL_SIZE / 8; i++)
    ((uint64_t *) pool)[i] = random_next (&state);
  clients[0].nbd = nbd_create ();
  if (!clients[0].nbd || nbd_connect_uri (clients[0].nbd, load.uri) == -1)
    die (load.uri);
  make_places (nbd_get_size (clients[0].nbd) / load.size);
  nbd_close (clients[0].nbd);
  for (i = 0; i < load.connections; i++) {
    clients[i].count = load.count / load.connections +
                       (i < load.count % load.connections);
    prepare (&clients[i], done);
    done += clients[i].count;
  }
  if (load.is_until_eof) {
    if (pthread_create (&watcher, NULL, watch_stdin, NULL) != 0)
      die ("thread");
    printf ("started\n");
    fflush (stdout);
  }
  start = clock_ns ();
  for (i = 0; i < load.connections; i++)
    if (pthread_create (&clients[i].thread, NULL, run, &clients[i]) != 0)
      die ("thread");
  for (i = done = 0; i < load.connections; i++) {
    pthread_join (clients[i].thread, NULL);
    if (clients[i].has_failed)
      die ("a request failed");
    done += clients[i].nr_done;
  }
  seconds = (clock_ns () - start) / 1e9;
  printf ("{\"ops\": %" PRIu64 ", \"seconds\": %.6f, \"per_second\": %.1f",
          done, seconds, done / seconds);
  if (load.is_latency)
    print_latencies (clients);
  printf ("}\n");
  return 0;
}
