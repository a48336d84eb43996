/* SPDX-License-Identifier: BSD-3-Clause */
/* Many connections at once, deep queues, sizes for every path of the server;
 * some connections break off in the middle, exports come and go.  Each thread
 * keeps to a region of its own and compares all that it reads.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <libnbd.h>

#include "blk-mem.h"
#include "disk.h"
#include "export.h"
#include "nbd-server.h"
#include "range.h"
#include "sockaddr.h"

#define NR_THREADS 12
#define SLOT_SIZE (UINT64_C (256) << 10)
#define NR_SLOTS 16
#define REGION (SLOT_SIZE * NR_SLOTS)
#define SECONDS 2

/* cmocka's assertions are for the main thread only. */
#define CHECK(condition) \
  do { \
    if (!(condition)) { \
      fprintf (stderr, "%s:%d: failed: %s (%s)\n", __FILE__, __LINE__, \
               #condition, nbd_get_error () ? nbd_get_error () : ""); \
      abort (); \
    } \
  } while (0)

static char dir[] = "/tmp/tidemark-test.XXXXXX";
static char path[64];
static struct timespec deadline;

struct slot_state {
  unsigned char *buf;           /* of the request in flight */
  unsigned char *shadow;        /* what the region holds */
  int64_t cookie;               /* 0 = idle */
  bool is_read;
  size_t off, len;              /* in the slot's range */
};

struct worker {
  pthread_t thread;
  unsigned index;
  unsigned seed;
  bool breaks_off;              /* now and then */
  struct slot_state slots[NR_SLOTS];
  unsigned long nr_done;
};

static bool
is_over (void)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return now.tv_sec > deadline.tv_sec
    || (now.tv_sec == deadline.tv_sec && now.tv_nsec > deadline.tv_nsec);
}

static struct nbd_handle *
connect_to (const char *export)
{
  struct nbd_handle *nbd = nbd_create ();

  if (nbd == NULL || nbd_set_export_name (nbd, export) < 0
      || nbd_connect_unix (nbd, path) < 0) {
    nbd_close (nbd);
    return NULL;
  }
  return nbd;
}

/* One more request on an idle slot. */
static void
issue (struct worker *w, struct nbd_handle *nbd, unsigned i)
{
  static const size_t lengths[] = {
    1, 512, 4096, 4096, 4096, 20000, 65536, 65537, 200000, SLOT_SIZE,
  };
  struct slot_state *s = &w->slots[i];
  uint64_t start = w->index * REGION + i * SLOT_SIZE;
  unsigned flags = rand_r (&w->seed) % 50 == 0 ? LIBNBD_CMD_FLAG_FUA : 0;

  s->len = lengths[rand_r (&w->seed) % (sizeof lengths / sizeof lengths[0])];
  s->off = rand_r (&w->seed) % (SLOT_SIZE - s->len + 1);
  s->is_read = rand_r (&w->seed) % 2;
  if (s->is_read)
    s->cookie = nbd_aio_pread (nbd, s->buf, s->len, start + s->off,
                               NBD_NULL_COMPLETION, 0);
  else if (rand_r (&w->seed) % 4 == 0) {
    memset (s->shadow + s->off, 0, s->len);
    s->cookie = nbd_aio_zero (nbd, s->len, start + s->off,
                              NBD_NULL_COMPLETION, flags);
  }
  else {
    memset (s->buf, rand_r (&w->seed) % 255 + 1, s->len);
    memcpy (s->shadow + s->off, s->buf, s->len);
    s->cookie = nbd_aio_pwrite (nbd, s->buf, s->len, start + s->off,
                                NBD_NULL_COMPLETION, flags);
  }
  CHECK (s->cookie > 0);
}

/* Take what has completed; compare what was read. */
static void
reap (struct worker *w, struct nbd_handle *nbd)
{
  unsigned i;
  int r;

  for (i = 0; i < NR_SLOTS; ++i) {
    struct slot_state *s = &w->slots[i];

    if (s->cookie == 0)
      continue;
    r = nbd_aio_command_completed (nbd, s->cookie);
    CHECK (r != -1);
    if (r == 0)
      continue;
    /* After a break the last requests of the old connection may yet run. */
    if (s->is_read && !w->breaks_off)
      CHECK (memcmp (s->buf, s->shadow + s->off, s->len) == 0);
    s->cookie = 0;
    w->nr_done++;
  }
}

static void
finish_all (struct worker *w, struct nbd_handle *nbd)
{
  while (nbd_aio_in_flight (nbd) > 0) {
    CHECK (nbd_poll (nbd, -1) != -1);
    reap (w, nbd);
  }
  reap (w, nbd);
}

/* A known state at the beginning of a connection. */
static void
reset (struct worker *w, struct nbd_handle *nbd)
{
  unsigned i;

  CHECK (nbd_zero (nbd, REGION, w->index * REGION, 0) == 0);
  for (i = 0; i < NR_SLOTS; ++i) {
    memset (w->slots[i].shadow, 0, SLOT_SIZE);
    w->slots[i].cookie = 0;
  }
}

static void *
run_worker (void *opaque)
{
  struct worker *w = opaque;
  struct nbd_handle *nbd;
  unsigned n, i;

  while (!is_over () || w->nr_done == 0) {
    nbd = connect_to ("d");
    CHECK (nbd != NULL);
    reset (w, nbd);
    for (n = 0; n < 200 && (!is_over () || w->nr_done == 0); ++n) {
      for (i = 0; i < NR_SLOTS; ++i)
        if (w->slots[i].cookie == 0)
          issue (w, nbd, i);
      CHECK (nbd_poll (nbd, -1) != -1);
      reap (w, nbd);
    }
    if (!w->breaks_off) {
      finish_all (w, nbd);
      CHECK (nbd_shutdown (nbd, 0) == 0);
    }
    nbd_close (nbd);
  }
  return NULL;
}

/* Exports come and go while clients use them: data or an error. */
static void *
use_other_export (void *opaque)
{
  struct nbd_handle *nbd;
  char buf[4096];

  while (!is_over ()) {
    nbd = connect_to ("other");
    if (nbd == NULL)
      continue;
    while (nbd_pread (nbd, buf, sizeof buf, 0, 0) == 0)
      ;
    CHECK (nbd_get_errno () == ESHUTDOWN);
    nbd_close (nbd);
  }
  return NULL;
}

static void
come_and_go (struct export_table *exports)
{
  const struct timespec moment = { .tv_nsec = 3000000 };
  struct export_options options = { .name = "other" };
  struct blk *node;

  while (!is_over ()) {
    assert_int_equal (blk_mem_new (65536, &node), 0);
    options.blk = node;
    assert_int_equal (export_add (exports, &options, NULL), 0);
    nanosleep (&moment, NULL);  /* let some of them in */
    assert_int_equal (export_remove (exports, "other"), 0);
    assert_int_equal (blk_close (node), 0);
  }
}

static void
start_worker (struct worker *w, unsigned index)
{
  unsigned i;

  w->index = index;
  w->seed = index + 1;
  w->breaks_off = index % 3 == 0;
  for (i = 0; i < NR_SLOTS; ++i) {
    w->slots[i].buf = calloc (1, SLOT_SIZE);
    w->slots[i].shadow = calloc (1, SLOT_SIZE);
    assert_non_null (w->slots[i].buf);
    assert_non_null (w->slots[i].shadow);
  }
  assert_int_equal (pthread_create (&w->thread, NULL, run_worker, w), 0);
}

static void
join_worker (struct worker *w)
{
  unsigned i;

  pthread_join (w->thread, NULL);
  for (i = 0; i < NR_SLOTS; ++i) {
    free (w->slots[i].buf);
    free (w->slots[i].shadow);
  }
}

static void
test_many_connections (void **state)
{
  static struct worker workers[NR_THREADS];
  const struct disk_options disk_options = { .name = "d" };
  struct nbd_server_options options = { .nr_workers = 4 };
  struct export_options export_options = { .name = "d" };
  struct sock_address addr = { .is_unix = true };
  int fds[SOCK_ADDRESS_MAX_FDS];
  struct export_table *exports;
  struct nbd_server *server;
  struct disk *disk;
  pthread_t other;
  struct blk *mem;
  unsigned i;

  assert_int_equal (blk_mem_new (NR_THREADS * REGION, &mem), 0);
  assert_int_equal (disk_new (mem, &disk_options, &disk, NULL), 0);
  assert_int_equal (disk_bitmap_add (disk, "b", 65536, false, NULL), 0);
  assert_int_equal (export_table_new (&exports), 0);
  export_options.blk = disk_blk (disk);
  export_options.disk = disk;
  assert_int_equal (export_add (exports, &export_options, NULL), 0);
  options.exports = exports;
  assert_int_equal (nbd_server_new (&options, &server, NULL), 0);
  strcpy (addr.path, path);
  assert_int_equal (sock_address_listen (&addr, fds, NULL), 1);
  assert_int_equal (nbd_server_add_socket (server, fds[0], NULL), 0);
  assert_int_equal (nbd_server_start (server, NULL), 0);

  clock_gettime (CLOCK_MONOTONIC, &deadline);
  deadline.tv_sec += SECONDS;
  for (i = 0; i < NR_THREADS; ++i)
    start_worker (&workers[i], i);
  assert_int_equal (pthread_create (&other, NULL, use_other_export, NULL), 0);
  come_and_go (exports);
  for (i = 0; i < NR_THREADS; ++i)
    join_worker (&workers[i]);
  pthread_join (other, NULL);

  nbd_server_free (server);
  assert_int_equal (export_remove (exports, "d"), 0);
  export_table_free (exports);
  assert_int_equal (disk_close (disk), 0);
  unlink (path);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_many_connections),
  };
  int r;

  alarm (120);
  if (mkdtemp (dir) == NULL)
    return 1;
  snprintf (path, sizeof path, "%s/sock", dir);
  r = cmocka_run_group_tests (tests, NULL, NULL);
  rmdir (dir);
  return r;
}
