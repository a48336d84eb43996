/* SPDX-License-Identifier: BSD-3-Clause */
/* wire.c over connections that are lost by script: what is read is right and
 * whole, and it ends when it should.
 *
 * source_open and the calls of blk-nbd that wire.c makes are ours.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "log.h"
#include "progress.h"
#include "source.h"
#include "unit.h"
#include "wire.h"

#define SIZE UINT64_C (65536)
#define PIECE UINT64_C (1024)
#define NR_PIECES (SIZE / PIECE)
#define DEPTH 8
#define MAX_OPENS 8

/* What the nth set of connections does. */
struct step {
  int open_error;               /* or: */
  unsigned nr_good;             /* calls and reads that are answered */
  bool is_silent;               /* those after are not answered until it is
                                   cancelled; else it is lost */
  bool has_other_size;
};

static struct {
  /* Fixed. */
  const struct step *steps;     /* after the last one, the last one again */
  unsigned nr_steps;
  int attach_error;

  /* Protected by lock. */
  pthread_mutex_t lock;
  pthread_cond_t cond;
  unsigned nr_opens, nr_attaches, nr_open;
  unsigned nr_waiting;          /* for an answer that does not come */
} g = { .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER };

struct node {
  struct blk blk;               /* first */
  struct step step;
  bool is_cancelled;            /* protected by g.lock */
};

/* One answer: 0, or what its loss is. */
static int
answer (struct blk *blk)
{
  struct node *n = (struct node *) blk;
  int r = -ENOTCONN;

  pthread_mutex_lock (&g.lock);
  if (n->is_cancelled)
    r = -ECANCELED;
  else if (n->step.nr_good > 0) {
    n->step.nr_good--;
    r = 0;
  }
  else if (n->step.is_silent) {
    g.nr_waiting++;
    pthread_cond_broadcast (&g.cond);
    while (!n->is_cancelled)
      pthread_cond_wait (&g.cond, &g.lock);
    g.nr_waiting--;
    r = -ECANCELED;
  }
  pthread_mutex_unlock (&g.lock);
  return r;
}

static uint8_t
byte_at (uint64_t off)
{
  return (uint8_t) (off / PIECE * 7 + 1);
}

static int
node_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  int r = answer (blk);

  /* A lost one has perhaps come in part. */
  memset (buf, r == 0 ? byte_at (off) : 0xee, len);
  return r;
}

static int
node_read_stream (struct blk *blk, unsigned depth,
                  const struct blk_stream_ops *ops, void *opaque)
{
  struct blk_read reads[DEPTH];
  unsigned i, n;
  int r = 1, e = 0;

  assert_true (depth <= DEPTH);
  while (r > 0 && e == 0) {
    for (n = 0; n < depth && (r = ops->next (opaque, &reads[n])) > 0; n++)
      ;
    /* The last first. */
    for (i = n; i-- > 0;)
      if (ops->done (opaque, &reads[i], node_pread (
            blk, reads[i].buf, reads[i].len, reads[i].off, 0)) < 0)
        e = -EIO;
    if (n == 0)
      break;
    r = 1;
  }
  return r < 0 ? r : e;
}

static int
node_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  return answer (blk);
}

static int
node_close (struct blk *blk)
{
  pthread_mutex_lock (&g.lock);
  g.nr_open--;
  pthread_mutex_unlock (&g.lock);
  blk_fini (blk);
  free (blk);
  return 0;
}

static const struct blk_driver node_driver = {
  .name = "scripted", .close = node_close, .pread = node_pread,
  .read_stream = node_read_stream, .trim = node_trim,
};

int
source_open (const char *uri, bool is_foreign, const char *context,
             unsigned nr_connections, struct blk **ret, struct error *err)
{
  struct node *n;
  unsigned i;

  assert_true (is_foreign);
  pthread_mutex_lock (&g.lock);
  i = g.nr_opens < g.nr_steps ? g.nr_opens : g.nr_steps - 1;
  g.nr_opens++;
  pthread_cond_broadcast (&g.cond);
  if (g.steps[i].open_error == 0)
    g.nr_open++;
  pthread_mutex_unlock (&g.lock);
  if (g.steps[i].open_error)
    return error_set (err, g.steps[i].open_error, "attempt %u", i);
  n = calloc (1, sizeof *n);
  assert_non_null (n);
  n->step = g.steps[i];
  assert_int_equal (blk_init (&n->blk, &node_driver, "n", uri, n->step.
                              has_other_size ? SIZE / 2 : SIZE,
                              BLK_IS_READ_ONLY | BLK_CAN_TRIM), 0);
  *ret = &n->blk;
  return 0;
}

void
blk_nbd_cancel (struct blk *blk)
{
  struct node *n = (struct node *) blk;

  pthread_mutex_lock (&g.lock);
  n->is_cancelled = true;
  pthread_cond_broadcast (&g.cond);
  pthread_mutex_unlock (&g.lock);
}

/* One extent of each list, of value 1; of an answer that is lost there is some
 * already, and it is wrong.
 */
int
blk_nbd_block_status_many (struct blk *blk,
                           const struct blk_nbd_range *ranges, size_t nr,
                           size_t nr_lists)
{
  int r = answer (blk);
  size_t i, j;

  for (i = 0; i < nr; i++)
    for (j = 0; j < nr_lists; j++) {
      assert_int_equal (ranges[i].lists[j].len, 0);
      assert_int_equal (extents_add (&ranges[i].lists[j], ranges[i].off,
                                     ranges[i].len / (r < 0 ? 2 : 1),
                                     r == 0), 0);
    }
  return r;
}

/*---- Streams ----*/

static struct reader {
  unsigned next;
  unsigned nr_done[NR_PIECES], nr_failed;
  uint8_t buf[NR_PIECES][PIECE];
} reader;

uint64_t
blk_nbd_max_status (const struct blk *blk)
{
  return UINT32_MAX;
}

static int
attach (void *opaque, struct error *err)
{
  pthread_mutex_lock (&g.lock);
  g.nr_attaches++;
  pthread_mutex_unlock (&g.lock);
  return g.attach_error ? error_set (err, g.attach_error, "the session is gone")
    : 0;
}

static struct blk *
open_wire (const struct step *steps, unsigned nr, unsigned retry)
{
  const struct wire_options o = {
    .uri = "nbd://x", .retry = retry, .timeout = 1, .attach = attach,
  };
  struct error err = ERROR_INIT;
  struct blk *blk;

  memset (&reader, 0, sizeof reader);
  g.steps = steps;
  g.nr_steps = nr;
  g.nr_opens = g.nr_attaches = 0;
  g.attach_error = 0;
  assert_int_equal (wire_open (&o, &blk, &err), 0);
  assert_int_equal (blk_size (blk), SIZE);
  return blk;
}

static void
close_wire (struct blk *blk)
{
  blk_close (blk);
  assert_int_equal (g.nr_open, 0);
}

#define STEPS(s) s, sizeof (s) / sizeof (s)[0]

static int
reader_next (void *opaque, struct blk_read *read)
{
  struct reader *r = opaque;

  if (r->next == NR_PIECES)
    return 0;
  read->off = r->next * PIECE;
  read->len = PIECE;
  read->buf = r->buf[r->next++];
  read->opaque = NULL;
  return 1;
}

static int
reader_done (void *opaque, struct blk_read *read, int error)
{
  struct reader *r = opaque;

  assert_ptr_equal (read->buf, r->buf[read->off / PIECE]);
  r->nr_done[read->off / PIECE]++;
  r->nr_failed += error < 0;
  if (error == 0)
    assert_int_equal (*(uint8_t *) read->buf, byte_at (read->off));
  return 0;
}

static const struct blk_stream_ops reader_ops = {
  .next = reader_next, .done = reader_done,
};

/* What was begun has had its end, once. */
static void
check_reader (const struct reader *r)
{
  unsigned i;

  for (i = 0; i < NR_PIECES; i++)
    assert_int_equal (r->nr_done[i], i < r->next);
}

static void
test_stream (void **state)
{
  /* Losses at the first, and between, and just after a new connection. */
  static const struct step steps[] = {
    { .nr_good = 0 }, { .nr_good = 13 }, { .nr_good = 0 }, { .nr_good = 1 },
    { .nr_good = 20 }, { .nr_good = 1000 },
  };
  struct blk *blk = open_wire (STEPS (steps), 60);
  struct error err = ERROR_INIT;

  assert_int_equal (blk_read_stream (blk, DEPTH, &reader_ops,
                                     &reader), 0);
  assert_int_equal (reader.next, NR_PIECES);
  assert_int_equal (reader.nr_failed, 0);
  check_reader (&reader);
  assert_int_equal (g.nr_opens, 6);
  assert_int_equal (g.nr_attaches, 5);
  assert_int_equal (wire_error (blk, &err), 0);
  close_wire (blk);
}

/* A stream that cannot go on: all that was begun fails, and it is said why. */
static void
check_gives_up (const struct step *steps, unsigned nr, unsigned retry,
                int attach_error, int wanted, const char *text)
{
  struct blk *blk = open_wire (steps, nr, retry);
  struct error err = ERROR_INIT;

  g.attach_error = attach_error;
  assert_int_equal (blk_read_stream (blk, DEPTH, &reader_ops,
                                     &reader), wanted);
  assert_true (reader.next < NR_PIECES);
  assert_true (reader.nr_failed > 0);
  check_reader (&reader);
  assert_int_equal (wire_error (blk, &err), wanted);
  if (!strstr (err.msg, text))
    fail_msg ("\"%s\" in \"%s\"", text, err.msg);
  /* For good. */
  assert_int_equal (blk_pread (blk, reader.buf, 512, 0, 0), wanted);
  close_wire (blk);
}

static void
test_gives_up (void **state)
{
  static const struct step lost[] = { { .nr_good = 9 }, { .nr_good = 1000 } };
  static const struct step other[] = {
    { .nr_good = 9 }, { .nr_good = 1000, .has_other_size = true },
  };
  static const struct step away[] = {
    { .nr_good = 9 }, { .open_error = ECONNREFUSED },
  };

  check_gives_up (STEPS (lost), 0, 0, -ENOTCONN, "nbd://x: the connection to "
                  "the server was lost");
  assert_int_equal (g.nr_attaches, 0);
  assert_int_equal (g.nr_opens, 1);
  check_gives_up (STEPS (lost), 60, EREMOTEIO, -EREMOTEIO,
                  "the session is gone");
  assert_int_equal (g.nr_opens, 1);
  check_gives_up (STEPS (other), 60, 0, -EREMOTEIO, "another size");
  check_gives_up (STEPS (away), 1, 0, -ENOTCONN, "within 1 s: attempt 1");
  assert_true (g.nr_opens > 2);
}

static void
test_tries_again (void **state)
{
  static const struct step steps[] = {
    { .nr_good = 9 }, { .open_error = ECONNREFUSED },
    { .open_error = ETIMEDOUT }, { .nr_good = 1000 },
  };
  struct blk *blk = open_wire (STEPS (steps), 60);

  assert_int_equal (blk_read_stream (blk, DEPTH, &reader_ops,
                                     &reader), 0);
  check_reader (&reader);
  assert_int_equal (g.nr_opens, 4);
  assert_int_equal (g.nr_attaches, 3);
  close_wire (blk);
}

/*---- Other calls ----*/

static void
test_status (void **state)
{
  static const struct step steps[] = {
    { .nr_good = 0 }, { .nr_good = 0 }, { .nr_good = 1000 },
  };
  struct blk *blk = open_wire (STEPS (steps), 60);
  struct extents lists[4];
  const struct blk_nbd_range ranges[2] = {
    { .off = 0, .len = SIZE / 2, .lists = lists },
    { .off = SIZE / 2, .len = SIZE / 2, .lists = lists + 2 },
  };
  size_t i;

  for (i = 0; i < 4; i++)
    extents_init (&lists[i], 100);
  assert_int_equal (wire_block_status (blk, ranges, 2, 2), 0);
  /* Nothing of the answers that were lost. */
  for (i = 0; i < 4; i++) {
    assert_int_equal (lists[i].len, 1);
    assert_int_equal (lists[i].ptr[0].off, i / 2 * (SIZE / 2));
    assert_int_equal (lists[i].ptr[0].len, SIZE / 2);
    assert_int_equal (lists[i].ptr[0].value, 1);
    extents_free (&lists[i]);
  }
  assert_int_equal (g.nr_opens, 3);
  close_wire (blk);
}

static atomic_uint nr_logged_trims;

static void
count_trims (enum log_level level, const char *msg)
{
  nr_logged_trims += strstr (msg, ": trim of ") != NULL;
}

static void
test_pread_and_trim (void **state)
{
  static const struct step steps[] = {
    { .nr_good = 0 }, { .nr_good = 1 }, { .nr_good = 1 },
  };
  struct blk *blk = open_wire (STEPS (steps), 60);
  uint8_t buf[512];

  assert_int_equal (blk_pread (blk, buf, sizeof buf, 5 * PIECE, 0), 0);
  assert_int_equal (buf[0], byte_at (5 * PIECE));
  assert_int_equal (g.nr_opens, 2);
  /* Lost, and that is all right; who comes next connects. */
  log_set_handler (count_trims);
  wire_trim (blk, PIECE, 0);
  log_set_handler (NULL);
  assert_int_equal (nr_logged_trims, 0);
  assert_int_equal (g.nr_opens, 2);
  assert_int_equal (blk_pread (blk, buf, sizeof buf, 0, 0), 0);
  assert_int_equal (g.nr_opens, 3);
  close_wire (blk);
}

/*---- Silence and the end ----*/

static void
test_silence_is_a_loss (void **state)
{
  static const struct step steps[] = {
    { .nr_good = 11, .is_silent = true }, { .nr_good = 1000 },
  };
  struct blk *blk = open_wire (STEPS (steps), 60);

  assert_int_equal (blk_read_stream (blk, DEPTH, &reader_ops,
                                     &reader), 0);
  check_reader (&reader);
  assert_int_equal (g.nr_opens, 2);
  close_wire (blk);
}

static void *
read_thread (void *opaque)
{
  struct blk *blk = opaque;
  uint8_t buf[512];

  return (void *) (intptr_t) blk_pread (blk, buf, sizeof buf, 0, 0);
}

static void
wait_until (const unsigned *what, unsigned n)
{
  pthread_mutex_lock (&g.lock);
  while (*what < n)
    pthread_cond_wait (&g.cond, &g.lock);
  pthread_mutex_unlock (&g.lock);
}

/* While something else holds it up it is not, for longer than the limit. */
static void
test_held (void **state)
{
  static const struct step steps[] = {
    { .is_silent = true }, { .nr_good = 1000 },
  };
  const struct timespec ts = { .tv_sec = 1, .tv_nsec = 600000000 };
  struct blk *blk = open_wire (STEPS (steps), 60);
  pthread_t thread;
  void *result;

  wire_hold (blk, true);
  assert_int_equal (pthread_create (&thread, NULL, read_thread, blk), 0);
  wait_until (&g.nr_waiting, 1);
  nanosleep (&ts, NULL);
  assert_int_equal (g.nr_opens, 1);
  wire_hold (blk, false);
  pthread_join (thread, &result);
  assert_ptr_equal (result, NULL);
  assert_int_equal (g.nr_opens, 2);
  close_wire (blk);
}

/* Whatever is waited for: an answer, or the next attempt to connect. */
static void
test_cancel (void **state)
{
  static const struct step silent[] = { { .is_silent = true } };
  static const struct step away[] = {
    { .nr_good = 0 }, { .open_error = ECONNREFUSED },
  };
  struct error err = ERROR_INIT;
  pthread_t thread;
  struct blk *blk;
  void *result;
  int i;

  for (i = 0; i < 2; i++) {
    blk = i == 0 ? open_wire (STEPS (silent), 300)
      : open_wire (STEPS (away), 300);
    assert_int_equal (pthread_create (&thread, NULL, read_thread, blk), 0);
    wait_until (i == 0 ? &g.nr_waiting : &g.nr_opens, i == 0 ? 1 : 5);
    wire_cancel (blk);
    pthread_join (thread, &result);
    assert_int_equal ((intptr_t) result, -ECANCELED);
    assert_int_equal (wire_error (blk, &err), -ECANCELED);
    close_wire (blk);
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_stream),
    cmocka_unit_test (test_gives_up),
    cmocka_unit_test (test_tries_again),
    cmocka_unit_test (test_status),
    cmocka_unit_test (test_pread_and_trim),
    cmocka_unit_test (test_silence_is_a_loss),
    cmocka_unit_test (test_held),
    cmocka_unit_test (test_cancel),
  };

  progress_init (PROGRESS_QUIET);
  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
