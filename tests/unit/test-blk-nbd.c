/* SPDX-License-Identifier: BSD-3-Clause */
/* blk-nbd against nbdkit, qemu-nbd, and a server that lies. */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "blk-nbd.h"
#include "fake-nbd.h"
#include "log.h"
#include "nbd-blk.h"
#include "nbd-uri.h"
#include "range.h"

#define MIB UINT64_C (1048576)
#define TIME_LIMIT 60           /* seconds for the whole program */

static char tmp[] = "/tmp/tidemark-test.XXXXXX";
static char sock[64], uri[128];
static pid_t server = -1;

static void
run (const char *fmt, ...)
{
  char cmd[1024];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (cmd, sizeof cmd, fmt, ap);
  va_end (ap);
  if (system (cmd) != 0)
    fail_msg ("failed: %s", cmd);
}

/* A server has bound sock, and listens too: between the two a client is
 * refused.
 */
static bool
is_listening (void)
{
  char line[512], path[256];
  FILE *fp = fopen ("/proc/net/unix", "r");
  unsigned flags;
  bool found = false;

  assert_non_null (fp);
  while (!found && fgets (line, sizeof line, fp))
    found = sscanf (line, "%*s %*s %*s %x %*s %*s %*s %255s", &flags,
                    path) == 2 && flags == 0x10000 && strcmp (path, sock) == 0;
  fclose (fp);
  return found;
}

/* Start COMMAND, which must listen on sock, and wait until it does. */
static void
start_server (const char *fmt, ...)
{
  char cmd[1024] = "exec ";
  va_list ap;
  int i;

  va_start (ap, fmt);
  vsnprintf (cmd + 5, sizeof cmd - 5, fmt, ap);
  va_end (ap);
  unlink (sock);
  server = fork ();
  if (server == 0) {
    execl ("/bin/sh", "sh", "-c", cmd, NULL);
    _exit (127);
  }
  for (i = 0; i < 1000 && !is_listening (); i++)
    nanosleep (&(struct timespec) { .tv_nsec = 5000000 }, NULL);
  if (i == 1000)
    fail_msg ("did not start: %s", cmd);
}

static void
end_server (int sig)
{
  if (server > 0) {
    kill (server, sig);
    waitpid (server, NULL, 0);
  }
  server = -1;
}

static int
teardown (void **state)
{
  end_server (SIGKILL);
  return 0;
}

static struct blk *
open_or_fail (const struct blk_nbd_options *o)
{
  struct error err = ERROR_INIT;
  struct blk *blk = NULL;

  if (blk_nbd_open (o, &blk, &err) < 0)
    fail_msg ("open %s: %s", o->uri, err.msg);
  return blk;
}

static struct blk *
open_writable (unsigned nr_connections)
{
  return open_or_fail (&(struct blk_nbd_options) {
    .uri = uri, .nr_connections = nr_connections,
    .is_allocation_optional = true,
  });
}

static size_t
nr_conns (struct blk *blk)
{
  return ((struct nbd_blk *) blk)->nr_conns;
}

/* Nothing is left of the calls that have returned. */
static void
check_idle (struct blk *blk)
{
  struct nbd_blk *s = (struct nbd_blk *) blk;
  size_t i;

  for (i = 0; i < s->nr_conns; i++) {
    assert_int_equal (atomic_load (&s->conns[i]->nr_calls), 0);
    assert_int_equal (atomic_load (&s->conns[i]->nr_streams), 0);
    assert_null (s->conns[i]->asleep);
    assert_false (s->conns[i]->is_polled);
  }
}

/* The contents that the disk must have, in parts owned by one thread each. */
#define NR_THREADS 8
#define PART (2 * MIB)
#define NR_STEPS 300

struct worker {
  pthread_t thread;
  struct blk *blk;
  uint64_t base;
  unsigned seed;
  bool is_bad;
  uint8_t shadow[PART];
};

static uint64_t
random_below (unsigned *seed, uint64_t n)
{
  return ((uint64_t) rand_r (seed) << 16 ^ rand_r (seed)) % n;
}

static bool
step (struct worker *w, uint8_t *buf)
{
  uint64_t off = random_below (&w->seed, PART);
  uint64_t len = 1 + random_below (&w->seed, MIN (PART - off, 100000));
  uint64_t i;
  int r;

  switch (rand_r (&w->seed) % 5) {
  case 0:
    r = blk_zero (w->blk, len, w->base + off,
                  rand_r (&w->seed) & (BLK_MAY_UNMAP | BLK_FUA));
    memset (w->shadow + off, 0, len);
    break;
  case 1:
  case 2:
    for (i = 0; i < len; i++)
      w->shadow[off + i] = w->seed + i;
    r = blk_pwrite (w->blk, w->shadow + off, len, w->base + off,
                    rand_r (&w->seed) & BLK_FUA);
    break;
  default:
    r = blk_pread (w->blk, buf, len, w->base + off, 0);
    if (r == 0 && memcmp (buf, w->shadow + off, len) != 0)
      r = -EIO;
  }
  return r == 0;
}

static void *
work (void *opaque)
{
  struct worker *w = opaque;
  uint8_t *buf = malloc (PART);
  int i;

  for (i = 0; i < NR_STEPS && !w->is_bad; i++)
    w->is_bad = !buf || !step (w, buf);
  if (!w->is_bad)
    w->is_bad = blk_pread (w->blk, buf, PART, w->base, 0) < 0 ||
                memcmp (buf, w->shadow, PART) != 0;
  free (buf);
  return NULL;
}

/* Neighbouring parts touch, not at a multiple of the server's block size: what
 * one thread writes must not undo what its neighbour writes.
 */
static void
check_random_io (struct blk *blk, uint64_t shift)
{
  struct worker *w = calloc (NR_THREADS, sizeof *w);
  int i;

  assert_non_null (w);
  for (i = 0; i < NR_THREADS; i++) {
    w[i].blk = blk;
    w[i].base = shift + i * PART;
    w[i].seed = i + 1;
    assert_int_equal (pthread_create (&w[i].thread, NULL, work, &w[i]), 0);
  }
  for (i = 0; i < NR_THREADS; i++) {
    pthread_join (w[i].thread, NULL);
    assert_false (w[i].is_bad);
  }
  assert_int_equal (blk_flush (blk), 0);
  free (w);
  check_idle (blk);
}

static void
test_io (void **state)
{
  struct blk *blk;

  start_server ("nbdkit -f -U %s memory 32M", sock);
  blk = open_writable (0);
  assert_int_equal (nr_conns (blk), 4);
  assert_int_equal (blk_size (blk), 32 * MIB);
  check_random_io (blk, 0);
  assert_int_equal (blk_close (blk), 0);
  blk = open_writable (1);
  check_random_io (blk, 16 * MIB);
  assert_int_equal (blk_close (blk), 0);
}

static void
test_min_block (void **state)
{
  struct blk *blk;
  char buf[10];

  start_server ("nbdkit -f -U %s --filter=blocksize-policy memory 32M "
                "blocksize-minimum=4096 blocksize-preferred=65536 "
                "blocksize-maximum=128k blocksize-error-policy=error", sock);
  blk = open_writable (0);
  assert_int_equal (((struct nbd_blk *) blk)->min_block, 4096);
  assert_int_equal (((struct nbd_blk *) blk)->max_payload, 131072);
  assert_int_equal (blk->block_size, 65536);
  check_random_io (blk, 1000);
  assert_int_equal (blk_pread (blk, buf, 10, 32 * MIB - 10, 0), 0);
  assert_int_equal (blk_trim (blk, 10000, 5, 0), 0);
  assert_int_equal (blk_pread (blk, buf, 10, 32 * MIB - 9, 0), -EINVAL);
  assert_int_equal (blk_close (blk), 0);
}

/* Writers of different bytes of one block of the server. */
#define SHARE 100
#define NR_ROUNDS 200

static void *
write_share (void *opaque)
{
  struct worker *w = opaque;
  uint8_t buf[SHARE];
  int i;

  for (i = 1; i <= NR_ROUNDS && !w->is_bad; i++) {
    memset (w->shadow, i, SHARE);
    w->is_bad = blk_pwrite (w->blk, w->shadow, SHARE, w->base, 0) < 0 ||
                blk_pread (w->blk, buf, SHARE, w->base, 0) < 0 ||
                memcmp (buf, w->shadow, SHARE) != 0;
  }
  return NULL;
}

static void
test_shared_block (void **state)
{
  struct worker *w = calloc (NR_THREADS, sizeof *w);
  struct blk *blk;
  int i;

  assert_non_null (w);
  start_server ("nbdkit -f -U %s --filter=blocksize-policy memory 1M "
                "blocksize-minimum=4096 blocksize-preferred=4096 "
                "blocksize-maximum=128k blocksize-error-policy=error", sock);
  blk = open_writable (0);
  for (i = 0; i < NR_THREADS; i++) {
    w[i].blk = blk;
    w[i].base = 4096 + i * SHARE;
    assert_int_equal (pthread_create (&w[i].thread, NULL, write_share, &w[i]),
                      0);
  }
  for (i = 0; i < NR_THREADS; i++) {
    pthread_join (w[i].thread, NULL);
    assert_false (w[i].is_bad);
  }
  assert_int_equal (blk_close (blk), 0);
  free (w);
}

static void
test_read_only (void **state)
{
  const struct blk_nbd_options o = { .uri = uri };
  const struct blk_nbd_options ro = { .uri = uri, .is_read_only = true };
  struct error err = ERROR_INIT;
  struct blk *blk = NULL;
  char c = 1;

  start_server ("nbdkit -f -r -U %s memory 1M", sock);
  assert_int_equal (blk_nbd_open (&o, &blk, &err), -EROFS);
  assert_non_null (strstr (err.msg, "read-only"));
  blk = open_or_fail (&ro);
  assert_int_equal (blk_pwrite (blk, &c, 1, 0, 0), -EPERM);
  assert_int_equal (blk_pread (blk, &c, 1, 0, 0), 0);
  assert_int_equal (c, 0);
  blk_close (blk);
}

/* A stream that reads the disk in pieces, and calls on the same node. */
#define PIECE 65536
#define DEPTH 16

struct reader {
  pthread_t thread;
  struct blk *blk;
  uint64_t off, end;
  uint64_t nr_done, give_up_after;
  bool is_bad;
  uint8_t bufs[DEPTH][PIECE];
  unsigned nr_free;
  uint8_t *free[DEPTH];
};

static int
reader_next (void *opaque, struct blk_read *read)
{
  struct reader *rd = opaque;
  struct extents e;
  char c;

  if (rd->off >= rd->end || rd->nr_free == 0)
    return 0;
  /* The caller may use the node meanwhile. */
  if (rd->off % (16 * PIECE) == 0) {
    extents_init (&e, 10);
    if (blk_pread (rd->blk, &c, 1, rd->off, 0) < 0 ||
        blk_extents (rd->blk, PIECE, rd->off, 0, BLK_STATUS_ALLOCATION,
                     &e) < 0)
      return -EIO;
    extents_free (&e);
  }
  *read = (struct blk_read) {
    .off = rd->off, .len = MIN (PIECE, rd->end - rd->off),
    .buf = rd->free[--rd->nr_free],
  };
  rd->off += read->len;
  return 1;
}

/* The pattern plugin: each 8 bytes hold their offset, big endian. */
static int
reader_done (void *opaque, struct blk_read *read, int error)
{
  struct reader *rd = opaque;
  uint64_t i;

  rd->free[rd->nr_free++] = read->buf;
  rd->nr_done++;
  if (error)
    return error;
  for (i = 0; i < read->len; i++) {
    uint64_t pos = read->off + i;

    if (((uint8_t *) read->buf)[i] != (uint8_t) (pos / 8 * 8 >>
                                                 (56 - pos % 8 * 8)))
      rd->is_bad = true;
  }
  return rd->nr_done == rd->give_up_after ? -ECANCELED : 0;
}

static void *
read_all (void *opaque)
{
  const struct blk_stream_ops ops = {
    .next = reader_next, .done = reader_done,
  };
  struct reader *rd = opaque;
  unsigned i;

  for (i = 0; i < DEPTH; i++)
    rd->free[i] = rd->bufs[i];
  rd->nr_free = DEPTH;
  if (blk_read_stream (rd->blk, DEPTH, &ops, rd) < 0)
    rd->is_bad = true;
  if (rd->nr_free != DEPTH)
    rd->is_bad = true;
  return NULL;
}

/* nr streams at once over nr_connections. */
static void
check_streams (unsigned nr, unsigned nr_connections)
{
  struct reader *rd = calloc (nr, sizeof *rd);
  struct blk *blk = open_or_fail (&(struct blk_nbd_options) {
    .uri = uri, .nr_connections = nr_connections, .is_read_only = true,
  });
  unsigned i;

  assert_non_null (rd);
  for (i = 0; i < nr; i++) {
    rd[i].blk = blk;
    rd[i].off = i * 8 * MIB + i;
    rd[i].end = (i + 1) * 8 * MIB;
    assert_int_equal (pthread_create (&rd[i].thread, NULL, read_all, &rd[i]),
                      0);
  }
  for (i = 0; i < nr; i++) {
    pthread_join (rd[i].thread, NULL);
    assert_false (rd[i].is_bad);
    assert_int_equal (rd[i].nr_done, 128);
  }
  check_idle (blk);
  blk_close (blk);
  free (rd);
}

static void
test_stream (void **state)
{
  start_server ("nbdkit -f -U %s pattern 64M", sock);
  check_streams (1, 1);
  check_streams (3, 1);
  check_streams (2, 2);
  check_streams (5, 3);
}

static void
test_stream_min_block (void **state)
{
  start_server ("nbdkit -f -U %s --filter=blocksize-policy pattern 64M "
                "blocksize-minimum=512 blocksize-preferred=4096 "
                "blocksize-maximum=32k blocksize-error-policy=error", sock);
  check_streams (3, 2);
}

static void
test_stream_gives_up (void **state)
{
  struct reader *rd = calloc (1, sizeof *rd);

  assert_non_null (rd);
  start_server ("nbdkit -f -U %s pattern 64M", sock);
  rd->blk = open_or_fail (&(struct blk_nbd_options) {
    .uri = uri, .is_read_only = true,
  });
  rd->end = 64 * MIB;
  rd->give_up_after = 20;
  read_all (rd);
  assert_true (rd->is_bad);     /* the error came back ... */
  assert_int_equal (rd->nr_free, DEPTH);        /* ... and every buffer */
  assert_in_range (rd->nr_done, 20, 20 + DEPTH);
  blk_close (rd->blk);
  free (rd);
}

/* The server is killed with calls in flight. */
static void *
read_until_error (void *opaque)
{
  struct worker *w = opaque;
  int r;

  do
    r = blk_pread (w->blk, w->shadow, PIECE, w->base, 0);
  while (r == 0);
  w->is_bad = r != -ENOTCONN && r != -EIO;
  return NULL;
}

static void
test_vanish (void **state)
{
  struct worker *w = calloc (NR_THREADS, sizeof *w);
  struct reader *rd = calloc (1, sizeof *rd);
  struct blk *blk;
  int i;

  assert_non_null (w);
  assert_non_null (rd);
  start_server ("nbdkit -f -U %s pattern 64M", sock);
  blk = open_or_fail (&(struct blk_nbd_options) {
    .uri = uri, .is_read_only = true,
  });
  for (i = 0; i < NR_THREADS; i++) {
    w[i].blk = blk;
    w[i].base = i * PIECE;
    assert_int_equal (pthread_create (&w[i].thread, NULL, read_until_error,
                                      &w[i]), 0);
  }
  while (atomic_load (&blk->stats.reads) < 100)
    sched_yield ();
  end_server (SIGKILL);
  for (i = 0; i < NR_THREADS; i++) {
    pthread_join (w[i].thread, NULL);
    assert_false (w[i].is_bad);
  }
  assert_int_equal (blk_pread (blk, w->shadow, 1, 0, 0), -ENOTCONN);
  rd->blk = blk;
  rd->off = 1;
  rd->end = MIB;
  read_all (rd);
  assert_true (rd->is_bad);
  assert_int_equal (rd->nr_free, DEPTH);
  blk_close (blk);
  free (w);
  free (rd);
}

/* Giving up ends calls and streams that would otherwise wait for ever. */
static void *
read_cancelled (void *opaque)
{
  struct worker *w = opaque;

  w->is_bad = blk_pread (w->blk, w->shadow, PIECE, w->base, 0) != -ECANCELED;
  return NULL;
}

static int
cancelled_done (void *opaque, struct blk_read *read, int error)
{
  struct reader *rd = opaque;

  rd->nr_done += error == -ECANCELED;
  return reader_done (opaque, read, error);
}

static void *
stream_cancelled (void *opaque)
{
  const struct blk_stream_ops ops = {
    .next = reader_next, .done = cancelled_done,
  };
  struct reader *rd = opaque;

  rd->is_bad = blk_read_stream (rd->blk, 1, &ops, rd) != -ECANCELED;
  return NULL;
}

static int
nr_in_flight (struct blk *blk)
{
  struct nbd_blk *s = (struct nbd_blk *) blk;
  int n = 0;
  size_t i;

  for (i = 0; i < s->nr_conns; i++)
    n += nbd_aio_in_flight (s->conns[i]->h);
  return n;
}

static void
test_cancel (void **state)
{
  struct worker *w = calloc (2, sizeof *w);
  struct reader *rd = calloc (1, sizeof *rd);
  struct blk *blk;
  int i;

  assert_non_null (w);
  assert_non_null (rd);
  start_server ("nbdkit -f -U %s --filter=delay pattern 64M rdelay=1000",
                sock);
  blk = open_or_fail (&(struct blk_nbd_options) {
    .uri = uri, .nr_connections = 2, .is_read_only = true,
  });
  for (i = 0; i < 2; i++) {
    w[i].blk = blk;
    assert_int_equal (pthread_create (&w[i].thread, NULL, read_cancelled,
                                      &w[i]), 0);
  }
  rd->blk = blk;
  rd->off = 1;
  rd->end = MIB;
  rd->free[rd->nr_free++] = rd->bufs[0];
  assert_int_equal (pthread_create (&rd->thread, NULL, stream_cancelled, rd),
                    0);
  while (nr_in_flight (blk) < 3)
    sched_yield ();
  blk_nbd_cancel (blk);
  for (i = 0; i < 2; i++) {
    pthread_join (w[i].thread, NULL);
    assert_false (w[i].is_bad);
  }
  pthread_join (rd->thread, NULL);
  assert_false (rd->is_bad);
  assert_int_equal (blk_pread (blk, w->shadow, 1, 0, 0), -ECANCELED);
  assert_int_equal (blk_read_stream (blk, 1, &(struct blk_stream_ops) {
                      .next = reader_next, .done = reader_done,
                    }, rd), -ECANCELED);
  blk_nbd_cancel (blk);
  blk_close (blk);
  free (w);
  free (rd);
}

/* A connection that dies while others live costs nobody anything. */
static void
test_retry (void **state)
{
  struct extents lists[2];
  const struct blk_nbd_range ranges[2] = {
    { 0, MIB, &lists[0] }, { MIB, MIB, &lists[1] },
  };
  struct blk *blk;
  struct nbd_blk *s;
  char c;
  size_t i;

  start_server ("nbdkit -f -U %s pattern 64M", sock);
  blk = open_or_fail (&(struct blk_nbd_options) {
    .uri = uri, .is_read_only = true,
  });
  s = (struct nbd_blk *) blk;
  for (i = 0; i + 1 < s->nr_conns; i++)
    shutdown (nbd_aio_get_fd (s->conns[i]->h), SHUT_RDWR);
  for (i = 0; i < 2; i++)
    extents_init (&lists[i], 1);
  assert_int_equal (blk_nbd_block_status_many (blk, ranges, 2, 1), 0);
  for (i = 0; i < 2; i++) {
    assert_int_equal (lists[i].ptr[0].off, i * MIB);
    extents_free (&lists[i]);
  }
  for (i = 0; i < 20; i++)
    assert_int_equal (blk_pread (blk, &c, 1, i * 8 + 7, 0), 0);
  blk_close (blk);
}

static const char *const two_contexts[] = { "x:one", "x:two" };

static struct blk *
open_fake (unsigned nr_connections)
{
  return open_or_fail (&(struct blk_nbd_options) {
    .uri = uri, .nr_connections = nr_connections, .contexts = two_contexts,
    .nr_contexts = 2,
  });
}

/* What a server with this lie makes of a block status and a read. */
static void
check_lie (enum fake_nbd_lie lie, int status_error, int read_error)
{
  struct fake_nbd *f = fake_nbd_start (sock, lie);
  struct blk *blk = open_fake (1);
  struct extents lists[3];
  static uint8_t buf[8192];
  int r;
  size_t i;

  for (i = 0; i < 3; i++)
    extents_init (&lists[i], 100);
  r = blk_nbd_block_status (blk, MIB, 0, lists, 3);
  if (r != status_error)
    fail_msg ("lie %d: status %d instead of %d", lie, r, status_error);
  r = blk_pread (blk, buf, sizeof buf, 4096, 0);
  if (r != read_error)
    fail_msg ("lie %d: read %d instead of %d", lie, r, read_error);
  for (i = 0; i < 3; i++) {
    if (status_error == 0) {
      assert_int_equal (lists[i].len, 2);
      assert_int_equal (extents_length (&lists[i]), MIB);
      assert_int_equal (lists[i].ptr[1].value, 1);
    }
    extents_free (&lists[i]);
  }
  blk_close (blk);
  fake_nbd_stop (f);
}

static void
test_lies (void **state)
{
  check_lie (FAKE_HONEST, 0, 0);
  check_lie (FAKE_ZERO_LENGTH, -EPROTO, 0);
  check_lie (FAKE_BEYOND_END, -EPROTO, 0);
  check_lie (FAKE_MISSING_CONTEXT, -EPROTO, 0);
  check_lie (FAKE_DUPLICATE_CONTEXT, -EPROTO, 0);
  check_lie (FAKE_NO_EXTENTS, -EPROTO, 0);
  check_lie (FAKE_SHORT_READ, 0, -EPROTO);
  check_lie (FAKE_CLOSE, -ENOTCONN, -ENOTCONN);
  check_lie (FAKE_BAD_MAGIC, -ENOTCONN, -ENOTCONN);
}

/* Lists that reach beyond the offset asked for keep what they have. */
static void
test_status_lists (void **state)
{
  struct fake_nbd *f = fake_nbd_start (sock, FAKE_HONEST);
  struct blk *blk = open_fake (1);
  struct extents lists[2];

  extents_init (&lists[0], 100);
  extents_init (&lists[1], 100);
  assert_int_equal (extents_add (&lists[1], 0, 100000, 7), 0);
  assert_int_equal (blk_nbd_block_status (blk, 65536, 0, lists, 2), 0);
  assert_int_equal (extents_length (&lists[0]), 65536);
  assert_int_equal (extents_length (&lists[1]), 100000);
  assert_int_equal (blk_nbd_block_status (blk, 65536, 65536, lists, 2), 0);
  assert_int_equal (extents_length (&lists[0]), 131072);
  assert_int_equal (extents_length (&lists[1]), 131072);
  assert_int_equal (lists[1].ptr[0].len, 100000);
  assert_int_equal (lists[1].ptr[1].value, 1);
  assert_int_equal (blk_nbd_block_status (blk, 1, MIB, lists, 2), -EINVAL);
  assert_int_equal (blk_nbd_block_status (blk, 1, 0, lists, 4), -EINVAL);
  extents_free (&lists[0]);
  extents_free (&lists[1]);
  blk_close (blk);
  fake_nbd_stop (f);
}

static void
test_silent (void **state)
{
  struct fake_nbd *f = fake_nbd_start (sock, FAKE_SILENT);
  struct worker *w = calloc (1, sizeof *w);

  assert_non_null (w);
  w->blk = open_fake (1);
  assert_int_equal (pthread_create (&w->thread, NULL, read_until_error, w), 0);
  fake_nbd_wait_request (f);
  fake_nbd_hang_up (f);
  pthread_join (w->thread, NULL);
  assert_false (w->is_bad);
  blk_close (w->blk);
  free (w);
  fake_nbd_stop (f);
}

/* Who polls for its own reply, which does not come, must see that another
 * thread has more to send than the socket takes at once.
 */
static void
test_wake_poller (void **state)
{
  struct fake_nbd *f = fake_nbd_start (sock, FAKE_SILENT_READS);
  struct worker *w = calloc (1, sizeof *w);
  char *data = calloc (1, FAKE_NBD_SIZE);

  assert_non_null (w);
  assert_non_null (data);
  w->blk = open_fake (1);
  assert_int_equal (pthread_create (&w->thread, NULL, read_until_error, w), 0);
  fake_nbd_wait_request (f);
  assert_int_equal (blk_pwrite (w->blk, data, FAKE_NBD_SIZE, 0, 0), 0);
  fake_nbd_hang_up (f);
  pthread_join (w->thread, NULL);
  assert_false (w->is_bad);
  blk_close (w->blk);
  free (data);
  free (w);
  fake_nbd_stop (f);
}

static void
test_one_client (void **state)
{
  struct fake_nbd *f = fake_nbd_start (sock, FAKE_ONE_CLIENT);
  struct blk *blk = open_fake (4);
  char c;

  assert_int_equal (nr_conns (blk), 1);
  assert_int_equal (blk_pread (blk, &c, 1, 0, 0), 0);
  assert_int_equal (c, 0x55);
  blk_close (blk);
  fake_nbd_stop (f);
}

static void
expect_open_error (const struct blk_nbd_options *o, int error,
                   const char *text)
{
  struct error err = ERROR_INIT;
  struct blk *blk = NULL;

  assert_int_equal (blk_nbd_open (o, &blk, &err), error);
  if (!strstr (err.msg, text))
    fail_msg ("\"%s\" is not in \"%s\"", text, err.msg);
}

static void
test_open_errors (void **state)
{
  const char *const contexts[] = { "qemu:dirty-bitmap:b0" };
  struct blk_nbd_options o = { .uri = uri };
  struct fake_nbd *f;

  unlink (sock);
  expect_open_error (&o, -ENOENT, uri);
  o.uri = "nbd:unix:";
  expect_open_error (&o, -EINVAL, "socket path");
  o.uri = "http://x/";
  expect_open_error (&o, -EINVAL, "not an NBD URI");
  o.uri = uri;
  f = fake_nbd_start (sock, FAKE_ODD_SIZE);
  expect_open_error (&o, -EPROTO, "not a multiple");
  fake_nbd_stop (f);
  start_server ("nbdkit -f -r -U %s memory 1M", sock);
  o.contexts = contexts;
  o.nr_contexts = 1;
  o.is_read_only = true;
  expect_open_error (&o, -ENOENT, "qemu:dirty-bitmap:b0");
}

static bool
has_name (char **names, size_t nr, const char *name)
{
  size_t i;

  for (i = 0; i < nr; i++)
    if (strcmp (names[i], name) == 0)
      return true;
  return false;
}

/* An image with two bitmaps, one of them with dirty bits, in qemu-nbd. */
static void
test_contexts (void **state)
{
  const char *const contexts[] = { "qemu:dirty-bitmap:b1" };
  struct extents lists[2];
  struct error err = ERROR_INIT;
  char **names = NULL;
  struct blk *blk;
  size_t nr = 0;

  run ("cd %s && qemu-img create -q -f qcow2 d.qcow2 8M && "
       "qemu-img bitmap --add d.qcow2 b0 && "
       "qemu-img bitmap --add -g 64k d.qcow2 b1 && "
       "qemu-io -c 'write 128k 64k' d.qcow2 >/dev/null", tmp);
  start_server ("qemu-nbd -t -e 4 -r -f qcow2 -x disk -B b0 -B b1 -k %s "
                "%s/d.qcow2", sock, tmp);
  snprintf (uri, sizeof uri, "nbd:unix:%s:exportname=disk", sock);
  if (blk_nbd_list_contexts (&(struct blk_nbd_options) { .uri = uri },
                             "qemu:dirty-bitmap:", &names, &nr, &err) < 0)
    fail_msg ("%s", err.msg);
  assert_int_equal (nr, 2);
  assert_true (has_name (names, nr, "qemu:dirty-bitmap:b0"));
  assert_true (has_name (names, nr, "qemu:dirty-bitmap:b1"));
  free (names[0]);
  free (names[1]);
  free (names);

  blk = open_or_fail (&(struct blk_nbd_options) {
    .uri = uri, .is_read_only = true, .contexts = contexts, .nr_contexts = 1,
  });
  extents_init (&lists[0], 100);
  extents_init (&lists[1], 100);
  assert_int_equal (blk_nbd_block_status (blk, 8 * MIB, 0, lists, 2), 0);
  assert_int_equal (lists[0].len, 3);
  assert_int_equal (lists[0].ptr[1].off, 128 * 1024);
  assert_int_equal (lists[0].ptr[1].value, 0);
  assert_int_equal (lists[0].ptr[2].value, EXTENT_HOLE | EXTENT_ZERO);
  assert_int_equal (lists[1].len, 3);
  assert_int_equal (lists[1].ptr[1].off, 128 * 1024);
  assert_int_equal (lists[1].ptr[1].len, 64 * 1024);
  assert_int_equal (lists[1].ptr[1].value, EXTENT_DIRTY);
  extents_free (&lists[0]);
  extents_free (&lists[1]);
  blk_close (blk);
}

static void
test_uris (void **state)
{
  static const char *const table[][2] = {
    { "nbd://h/x", "nbd://h/x" },
    { "nbd:unix:/a b?", "nbd+unix:///?socket=/a%20b%3F" },
    { "nbd:unix:/s:exportname=a/b:c", "nbd+unix:///a/b%3Ac?socket=/s" },
    { "nbd:h:10809", "nbd://h:10809/" },
    { "nbd:[::1]:1:exportname=x&y", "nbd://[::1]:1/x%26y" },
    { "nbd:h", NULL }, { "nbd:h:", NULL }, { "nbd::1", NULL },
    { "nbd:h:1x", NULL }, { "nbd:", NULL }, { "/dev/nbd0", NULL },
  };
  size_t i;

  for (i = 0; i < sizeof table / sizeof table[0]; i++) {
    struct error err = ERROR_INIT;
    char *ret = NULL;
    int r = nbd_uri_normalize (table[i][0], &ret, &err);

    if (table[i][1]) {
      assert_int_equal (r, 0);
      assert_string_equal (ret, table[i][1]);
    }
    else {
      assert_int_equal (r, -EINVAL);
      assert_non_null (strstr (err.msg, table[i][0]));
    }
    free (ret);
  }
  assert_false (nbd_uri_is_nbd ("nbd.raw"));
  assert_true (nbd_uri_is_nbd ("nbds+unix:///x"));
}

static void
no_log (enum log_level level, const char *msg)
{
}

static int
setup (void **state)
{
  snprintf (uri, sizeof uri, "nbd+unix:///?socket=%s", sock);
  return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown (name, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_uris), TEST (test_io), TEST (test_min_block),
    TEST (test_shared_block), TEST (test_wake_poller),
    TEST (test_read_only), TEST (test_stream), TEST (test_stream_min_block),
    TEST (test_stream_gives_up), TEST (test_vanish), TEST (test_cancel),
    TEST (test_retry), TEST (test_lies), TEST (test_status_lists),
    TEST (test_silent), TEST (test_one_client), TEST (test_open_errors),
    TEST (test_contexts),
  };
  char cmd[64];
  int r;

  alarm (TIME_LIMIT);
  signal (SIGPIPE, SIG_IGN);
  log_set_handler (no_log);
  if (!mkdtemp (tmp))
    return 1;
  snprintf (sock, sizeof sock, "%s/s", tmp);
  r = cmocka_run_group_tests (tests, NULL, NULL);
  snprintf (cmd, sizeof cmd, "rm -rf %s", tmp);
  return system (cmd) ? 1 : r;
}
