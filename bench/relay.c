/* SPDX-License-Identifier: BSD-3-Clause */
/* A network between two programs of this machine, for benchmarks and tests: a
 * link that delays and limits what passes both ways, and that can be cut,
 * reset, stalled and closed to new connections.
 *
 * relay [--delay=MICROSECONDS] [--rate=BYTES] [--window=BYTES]
 *       LISTEN TARGET [LISTEN TARGET]...
 *
 * An address is HOST:PORT in numbers, or the path of a Unix socket.  All
 * connections share one link, which has, each way, its own rate (bytes per
 * second; 0 = no limit), delay and a queue of QUEUE_NS.  A connection has at
 * most --window bytes under way in one direction, as TCP has (default: what
 * a sender on Linux keeps at most, 4 MiB).
 *
 * Commands, a line each on standard input:
 *   cut | reset | stall | refuse | go | count
 *   at BYTES COMMAND           when so many have come down, once
 * Each is answered by "UP DOWN", the bytes that were delivered to targets and
 * to clients until then; what "at" waited for says "at UP DOWN".  It ends with
 * its standard input.
 *
 * One thread.  Each round reads at most one piece of each connection, so that
 * they share the link evenly.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"

#define PIECE 65536
#define QUEUE_NS INT64_C (5000000)
#define MAX_LISTENERS 16
#define NEVER INT64_MAX

enum { UP, DOWN };

struct piece {
  struct piece *next;
  int64_t due;                  /* ns */
  size_t len, pos;              /* len 0: the end */
  char data[];
};

/* One direction of one connection. */
struct way {
  struct piece *first, *last;
  size_t queued;
  bool at_end;                  /* nothing more to read */
};

struct pair {
  struct pair *next;
  int fds[2];                   /* client, target; way i reads from fds[i] */
  struct way ways[2];
  struct pollfd polls[2];
  bool is_broken;
};

struct listener {
  int fd;
  const char *target;
};

static int64_t delay;           /* ns, one way */
static uint64_t rate, window = 4 << 20;
static int64_t link_free[2];    /* ns: when the link has sent all it has */
static uint64_t delivered[2];
static bool is_stalled, is_refusing;
static struct listener listeners[MAX_LISTENERS];
static size_t nr_listeners;
static struct pair *pairs;
static uint64_t at_bytes = UINT64_MAX;
static char at_command[32];

static void __attribute__ ((noreturn))
die (const char *what)
{
  fprintf (stderr, "relay: %s: %s\n", what, strerror (errno));
  exit (EXIT_FAILURE);
}

/* A socket that is bound to, or connected to, the address; -1 if that fails. */
static int
open_socket (const char *address, bool is_listener)
{
  struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
                            .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV };
  struct sockaddr_un sun = { .sun_family = AF_UNIX };
  struct addrinfo unix_info = { .ai_family = AF_UNIX,
                                .ai_addr = (struct sockaddr *) &sun,
                                .ai_addrlen = sizeof sun };
  struct addrinfo *info = &unix_info;
  const char *colon = strrchr (address, ':');
  const int on = 1;
  char host[64];
  int fd;

  if (address[0] != '/' && colon && colon - address < (int) sizeof host) {
    snprintf (host, sizeof host, "%.*s", (int) (colon - address), address);
    if (getaddrinfo (host, colon + 1, &hints, &info) != 0)
      return errno = EINVAL, -1;
  }
  else
    snprintf (sun.sun_path, sizeof sun.sun_path, "%s", address);
  fd = socket (info->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd >= 0)
    setsockopt (fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (fd >= 0
      && ((is_listener ? bind : connect) (fd, info->ai_addr, info->ai_addrlen)
          < 0 || (is_listener && listen (fd, 64) < 0))) {
    close (fd);
    fd = -1;
  }
  if (info != &unix_info)
    freeaddrinfo (info);
  return fd;
}

static void
accept_one (const struct listener *l)
{
  struct pair *p;
  int client = accept4 (l->fd, NULL, NULL, SOCK_CLOEXEC), target = -1;

  if (client >= 0 && !is_refusing)
    target = open_socket (l->target, false);
  if (target < 0) {
    if (client >= 0)
      close (client);
    return;
  }
  fcntl (client, F_SETFL, O_NONBLOCK);
  fcntl (target, F_SETFL, O_NONBLOCK);
  p = calloc (1, sizeof *p);
  if (!p)
    die ("memory");
  p->fds[0] = client;
  p->fds[1] = target;
  p->next = pairs;
  pairs = p;
}

static void
free_pair (struct pair *p)
{
  struct piece *piece;
  int i;

  for (i = 0; i < 2; i++) {
    close (p->fds[i]);
    while ((piece = p->ways[i].first)) {
      p->ways[i].first = piece->next;
      free (piece);
    }
  }
  free (p);
}

static void
cut_all (bool is_reset)
{
  const struct linger linger = { .l_onoff = 1 };
  struct pair *p;
  int i;

  while ((p = pairs)) {
    pairs = p->next;
    for (i = 0; is_reset && i < 2; i++)
      setsockopt (p->fds[i], SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    free_pair (p);
  }
}

/*---- What passes ----*/

static bool
is_busy (int i, int64_t t)
{
  return link_free[i] - t > QUEUE_NS;
}

static bool
wants_more (const struct way *w, int i, int64_t t)
{
  return !w->at_end && w->queued < window && !is_busy (i, t);
}

static void
read_piece (struct pair *p, int i, int64_t t)
{
  static char buf[PIECE];
  struct way *w = &p->ways[i];
  struct piece *piece;
  ssize_t n = recv (p->fds[i], buf, sizeof buf, 0);

  if (n < 0 && errno == EAGAIN)
    return;
  if (n <= 0) {
    n = 0;
    w->at_end = true;
  }
  piece = malloc (sizeof *piece + (size_t) n);
  if (!piece)
    die ("memory");
  memcpy (piece->data, buf, (size_t) n);
  link_free[i] = (link_free[i] > t ? link_free[i] : t)
    + (rate ? (int64_t) ((uint64_t) n * UINT64_C (1000000000) / rate) : 0);
  *piece = (struct piece) { .due = link_free[i] + delay, .len = (size_t) n };
  if (w->last)
    w->last->next = piece;
  else
    w->first = piece;
  w->last = piece;
  w->queued += (size_t) n;
}

static void
remove_first (struct way *w)
{
  struct piece *piece = w->first;

  w->first = piece->next;
  if (!w->first)
    w->last = NULL;
  free (piece);
}

/* All that is due, as far as it is taken. */
static void
deliver (struct pair *p, int i, int64_t t)
{
  struct way *w = &p->ways[i];
  struct piece *piece;
  ssize_t n;

  while ((piece = w->first) && piece->due <= t) {
    if (piece->len == 0)
      shutdown (p->fds[!i], SHUT_WR);
    else {
      n = send (p->fds[!i], piece->data + piece->pos, piece->len - piece->pos,
                MSG_NOSIGNAL);
      if (n < 0) {
        p->is_broken = errno != EAGAIN;
        return;
      }
      piece->pos += (size_t) n;
      w->queued -= (size_t) n;
      delivered[i] += (uint64_t) n;
    }
    if (piece->pos == piece->len)
      remove_first (w);
  }
}

static bool
has_ended (const struct pair *p)
{
  return p->is_broken || (p->ways[UP].at_end && p->ways[DOWN].at_end
                          && !p->ways[UP].first && !p->ways[DOWN].first);
}

/* What to poll the connection for; and when to look again, at the latest. */
static int64_t
prepare_pair (struct pair *p, int64_t t)
{
  const struct way *w;
  int64_t next = NEVER;
  int i;

  for (i = 0; i < 2; i++)
    p->polls[i] = (struct pollfd) { .fd = -1 };
  for (i = 0; i < 2; i++) {
    w = &p->ways[i];
    if (wants_more (w, i, t))
      p->polls[i].events |= POLLIN;
    else if (is_busy (i, t) && !w->at_end
             && link_free[i] - QUEUE_NS < next)
      next = link_free[i] - QUEUE_NS;
    if (is_stalled || !w->first)
      continue;
    if (w->first->due <= t)
      p->polls[!i].events |= POLLOUT;
    else if (w->first->due < next)
      next = w->first->due;
  }
  for (i = 0; i < 2; i++)
    if (p->polls[i].events)
      p->polls[i].fd = p->fds[i];
  return next;
}

static void
run_pair (struct pair *p, int64_t t)
{
  int i;

  for (i = 0; i < 2; i++) {
    if (p->polls[i].revents && wants_more (&p->ways[i], i, t)
        && p->polls[i].events & POLLIN)
      read_piece (p, i, t);
    if (!is_stalled)
      deliver (p, i, t);
  }
}

/*---- Commands ----*/

static void
obey (const char *command)
{
  if (strcmp (command, "cut") == 0)
    cut_all (false);
  else if (strcmp (command, "reset") == 0)
    cut_all (true);
  else if (strcmp (command, "stall") == 0)
    is_stalled = true;
  else if (strcmp (command, "refuse") == 0)
    is_refusing = true;
  else if (strcmp (command, "go") == 0)
    is_stalled = is_refusing = false;
  else if (strcmp (command, "count") != 0) {
    errno = EINVAL;
    die (command);
  }
}

static void
say (const char *prefix)
{
  printf ("%s%" PRIu64 " %" PRIu64 "\n", prefix, delivered[UP],
          delivered[DOWN]);
  fflush (stdout);
}

static void
take_line (const char *line)
{
  if (sscanf (line, "at %" SCNu64 " %31s", &at_bytes, at_command) != 2)
    obey (line);
  say ("");
}

static void
read_commands (void)
{
  static char buf[4096];
  static size_t len;
  char *end;
  ssize_t n = read (STDIN_FILENO, buf + len, sizeof buf - len - 1);

  if (n <= 0)
    exit (EXIT_SUCCESS);
  len += (size_t) n;
  buf[len] = '\0';
  while ((end = strchr (buf, '\n'))) {
    *end = '\0';
    take_line (buf);
    len -= (size_t) (end + 1 - buf);
    memmove (buf, end + 1, len + 1);
  }
  if (len == sizeof buf - 1) {
    errno = E2BIG;
    die ("command");
  }
}

/*---- The loop ----*/

static void
run_pairs (int64_t t)
{
  struct pair **link = &pairs, *p;

  while ((p = *link)) {
    run_pair (p, t);
    if (has_ended (p)) {
      *link = p->next;
      free_pair (p);
    }
    else
      link = &p->next;
  }
  if (delivered[DOWN] >= at_bytes) {
    at_bytes = UINT64_MAX;
    obey (at_command);
    say ("at ");
  }
}

static void
wait_for (struct pollfd *fds, nfds_t nr, int64_t timeout)
{
  const struct timespec ts = {
    .tv_sec = timeout / 1000000000, .tv_nsec = timeout % 1000000000,
  };

  if (ppoll (fds, nr, timeout == NEVER ? NULL : &ts, NULL) < 0
      && errno != EINTR)
    die ("poll");
}

static void
loop (void)
{
  static struct pollfd fds[4096];
  const size_t first = 1 + nr_listeners;
  struct pair *p;
  int64_t t, next, at;
  size_t i, n;

  for (;;) {
    t = clock_ns ();
    next = NEVER;
    fds[0] = (struct pollfd) { .fd = STDIN_FILENO, .events = POLLIN };
    for (i = 0; i < nr_listeners; i++)
      fds[1 + i] = (struct pollfd) { .fd = listeners[i].fd,
                                     .events = POLLIN };
    n = first;
    for (p = pairs; p && n + 2 <= sizeof fds / sizeof fds[0]; p = p->next) {
      at = prepare_pair (p, t);
      next = at < next ? at : next;
      fds[n++] = p->polls[0];
      fds[n++] = p->polls[1];
    }
    wait_for (fds, n, next == NEVER ? NEVER : next > t ? next - t : 0);
    n = first;
    for (p = pairs; p && n + 2 <= sizeof fds / sizeof fds[0]; p = p->next) {
      p->polls[0] = fds[n++];
      p->polls[1] = fds[n++];
    }
    run_pairs (clock_ns ());
    /* They change the list. */
    if (fds[0].revents)
      read_commands ();
    for (i = 0; i < nr_listeners; i++)
      if (fds[1 + i].revents)
        accept_one (&listeners[i]);
  }
}

static uint64_t
number (const char *name, const char *s)
{
  char *end;
  unsigned long long n = strtoull (s, &end, 10);

  if (end == s || *end || n > UINT32_MAX) {
    fprintf (stderr, "relay: --%s=%s: not a number up to %" PRIu32 "\n", name,
             s, UINT32_MAX);
    exit (EXIT_FAILURE);
  }
  return n;
}

int
main (int argc, char **argv)
{
  static const struct option options[] = {
    { "delay", required_argument, NULL, 'd' },
    { "rate", required_argument, NULL, 'r' },
    { "window", required_argument, NULL, 'w' },
    { NULL }
  };
  int c;

  while ((c = getopt_long (argc, argv, "", options, NULL)) != -1)
    switch (c) {
    case 'd': delay = (int64_t) number ("delay", optarg) * 1000; break;
    case 'r': rate = number ("rate", optarg); break;
    case 'w': window = number ("window", optarg); break;
    default: return EXIT_FAILURE;
    }
  argc -= optind;
  argv += optind;
  if (argc == 0 || argc % 2 != 0 || argc / 2 > MAX_LISTENERS) {
    fprintf (stderr, "relay: pairs of addresses are needed\n");
    return EXIT_FAILURE;
  }
  for (; argc > 0; argc -= 2, argv += 2) {
    listeners[nr_listeners].target = argv[1];
    listeners[nr_listeners].fd = open_socket (argv[0], true);
    if (listeners[nr_listeners++].fd < 0)
      die (argv[0]);
  }
  loop ();
}
