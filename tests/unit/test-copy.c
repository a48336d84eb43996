/* SPDX-License-Identifier: BSD-3-Clause */
/* copy.c: contents, order, zeroes, every read and write failing in turn, and
 * being cancelled.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <setjmp.h>
#include <cmocka.h>

#include "blk-debug.h"
#include "blk-mem.h"
#include "copy.h"
#include "log.h"
#include "range.h"

#define UNIT UINT64_C (4096)
#define NR_UNITS 512
#define DISK_SIZE (UNIT * NR_UNITS)

static struct blk *source, *target;
static char content[DISK_SIZE];         /* of the source */

/* What the callbacks see.  Items are of random length, with gaps. */
struct job {
  unsigned seed;
  bool is_sparse;               /* some units are left out */
  bool knows_zeroes;            /* items that are zero say so */
  int fail_next, fail_reserve, fail_data;       /* countdown; 0 = never */

  /* Under the engine's lock. */
  uint64_t pos, reserved;
  bool is_next, is_ended;

  /* Atomic. */
  _Atomic unsigned data[NR_UNITS], done[NR_UNITS];
  atomic_int nr_data, nr_done;
  bool expected[NR_UNITS];
};

static bool
is_zero_unit (uint64_t i)
{
  return is_zero_buffer (content + i * UNIT, UNIT);
}

static struct job job;

static struct job *
new_job (unsigned seed)
{
  memset (&job, 0, sizeof job);
  job.seed = seed;
  return &job;
}

static int
job_next (void *opaque, struct copy_item *ret)
{
  struct job *j = opaque;
  uint64_t i, n;

  assert_false (j->is_next);
  assert_false (j->is_ended);
  j->is_next = true;
  if (j->fail_next > 0 && --j->fail_next == 0)
    return -ENOLINK;
  i = j->pos / UNIT;
  while (i < NR_UNITS && j->is_sparse && rand_r (&j->seed) % 3 == 0)
    i++;
  if (i == NR_UNITS) {
    j->is_ended = true;
    return 0;
  }
  ret->off = i * UNIT;
  ret->is_zero = j->knows_zeroes && is_zero_unit (i);
  n = (unsigned) rand_r (&j->seed) % 8 + 1;
  do {
    j->expected[i++] = true;
  } while (--n > 0 && i < NR_UNITS
           && (!j->knows_zeroes || is_zero_unit (i) == ret->is_zero));
  ret->len = i * UNIT - ret->off;
  j->pos = i * UNIT;
  j->is_next = false;
  return 1;
}

static int
job_reserve (void *opaque, const struct copy_item *item)
{
  struct job *j = opaque;

  if (j->fail_reserve > 0 && --j->fail_reserve == 0)
    return -ENOSPC;
  assert_true (item->off >= j->reserved);
  assert_int_equal (item->off + item->len, j->pos);
  j->reserved = item->off + item->len;
  return 0;
}

static int
job_data (void *opaque, const struct copy_item *item, const void *buf)
{
  struct job *j = opaque;
  uint64_t i;

  if (j->fail_data > 0 && atomic_fetch_add (&j->nr_data, 1) + 1
      == j->fail_data)
    return -EILSEQ;
  if (buf == NULL)
    assert_true (item->is_zero);
  else
    assert_memory_equal (buf, content + item->off, item->len);
  for (i = item->off / UNIT; i * UNIT < item->off + item->len; i++)
    atomic_fetch_add (&j->data[i], 1);
  return 0;
}

static void
job_done (void *opaque, const struct copy_item *item)
{
  struct job *j = opaque;
  uint64_t i;

  atomic_fetch_add (&j->nr_done, 1);
  for (i = item->off / UNIT; i * UNIT < item->off + item->len; i++) {
    assert_int_equal (atomic_load (&j->data[i]), 1);
    assert_int_equal (atomic_fetch_add (&j->done[i], 1), 0);
  }
}

static const struct copy_ops ops = {
  .next = job_next, .reserve = job_reserve, .data = job_data,
  .done = job_done,
};

static void
quiet (enum log_level level, const char *msg)
{
}

static int
setup (void **state)
{
  struct blk *mem;
  uint64_t i;

  log_set_handler (quiet);
  srandom (1);
  memset (content, 0, sizeof content);
  for (i = 0; i < NR_UNITS; i++)
    if (random () % 3)
      content[i * UNIT + (uint64_t) random () % UNIT]
        = (char) (random () % 255 + 1);
  assert_int_equal (blk_mem_new (DISK_SIZE, &mem), 0);
  assert_int_equal (blk_pwrite (mem, content, DISK_SIZE, 0, 0), 0);
  assert_int_equal (blk_debug_open (mem, &source, NULL), 0);
  assert_int_equal (blk_mem_new (DISK_SIZE, &mem), 0);
  assert_int_equal (blk_debug_open (mem, &target, NULL), 0);
  return 0;
}

static int
teardown (void **state)
{
  assert_int_equal (blk_close (source), 0);
  assert_int_equal (blk_close (target), 0);
  return 0;
}

/* Fill the target so that whatever is not written shows. */
static void
fill_target (char c)
{
  char buf[UNIT];
  uint64_t i;

  memset (buf, c, sizeof buf);
  for (i = 0; i < NR_UNITS; i++)
    assert_int_equal (blk_pwrite (target, buf, UNIT, i * UNIT, 0), 0);
}

/* Units that are done hold the source's content; those that were not asked
 * for hold what the target was filled with.
 */
static void
check_target (const struct job *j, char c)
{
  static char buf[UNIT], old[UNIT];
  uint64_t i;

  memset (old, c, sizeof old);
  for (i = 0; i < NR_UNITS; i++) {
    assert_int_equal (blk_pread (target, buf, UNIT, i * UNIT, 0), 0);
    if (atomic_load (&j->done[i]))
      assert_memory_equal (buf, content + i * UNIT, UNIT);
    else if (!j->expected[i])
      assert_memory_equal (buf, old, UNIT);
  }
}

static void
check_complete (const struct job *j, const struct copy_stats *stats)
{
  uint64_t i, n = 0;

  for (i = 0; i < NR_UNITS; i++) {
    assert_int_equal (atomic_load (&j->done[i]), j->expected[i]);
    n += j->expected[i] ? UNIT : 0;
  }
  assert_int_equal (stats->written_bytes + stats->zero_bytes, n);
  assert_int_equal (j->reserved, j->pos);
}

static void
test_content (void **state)
{
  static const unsigned threads[] = { 0, 1, 3, 8 };
  static const unsigned depths[] = { 0, 1, 5 };
  struct copy_stats stats;
  unsigned i, k;

  for (i = 0; i < 4 * 3 * 4; i++)
    for (k = 0; k < 2; k++) {
      struct copy_options options = {
        .nr_threads = threads[i % 4], .depth = depths[i / 4 % 3],
        .max_item = 8 * UNIT, .detect_zeroes = i / 12 % 2,
        .zero_unit = i / 12 == 3 ? UNIT : 0,
      };
      struct job *j = new_job (i);

      j->is_sparse = k;
      j->knows_zeroes = i / 24;
      fill_target ('x');
      assert_int_equal (copy_run (source, target, &options, &ops, j, &stats,
                                  NULL), 0);
      check_target (j, 'x');
      check_complete (j, &stats);
    }
}

static void
test_zero_units (void **state)
{
  struct copy_options options = { .max_item = 8 * UNIT };
  uint64_t i, zero = 0;
  struct copy_stats stats;
  char *trace;

  for (i = 0; i < NR_UNITS; i++)
    zero += is_zero_unit (i) ? UNIT : 0;
  assert_true (zero > 0);

  /* Not looked for: all is written. */
  assert_int_equal (copy_run (source, target, &options, &ops, new_job (1),
                              &stats, NULL), 0);
  assert_int_equal (stats.written_bytes, DISK_SIZE);
  assert_int_equal (stats.read_bytes, DISK_SIZE);

  /* By units: each zero unit is found, and zeroed. */
  options.detect_zeroes = true;
  options.zero_unit = UNIT;
  fill_target ('x');
  assert_int_equal (copy_run (source, target, &options, &ops, new_job (1),
                              &stats, NULL), 0);
  assert_int_equal (stats.zero_bytes, zero);
  check_target (&job, 'x');

  /* Known beforehand and a target that is zero: not read, not written. */
  assert_int_equal (blk_zero (target, DISK_SIZE, 0, BLK_MAY_UNMAP), 0);
  options.target_is_zero = true;
  free (blk_debug_trace (target));
  new_job (1)->knows_zeroes = true;
  assert_int_equal (copy_run (source, target, &options, &ops, &job, &stats,
                              NULL), 0);
  assert_int_equal (stats.zero_bytes, zero);
  assert_int_equal (stats.read_bytes, DISK_SIZE - zero);
  trace = blk_debug_trace (target);
  assert_non_null (strstr (trace, "write "));
  assert_null (strstr (trace, "zero "));
  free (trace);
  check_target (&job, '\0');
}

static int
next_unaligned (void *opaque, struct copy_item *ret)
{
  bool *is_done = opaque;

  if (*is_done)
    return 0;
  *is_done = true;
  ret->off = UNIT * 3 / 2;
  ret->len = UNIT * 3;
  return 1;
}

/* Units lie where they lie on the disk, not from the item's start on. */
static void
test_unaligned_units (void **state)
{
  const struct copy_options options = { .detect_zeroes = true,
                                        .zero_unit = UNIT };
  const struct copy_ops unaligned = { .next = next_unaligned };
  struct copy_stats stats;
  bool is_done = false;
  char *trace;

  assert_int_equal (blk_zero (source, DISK_SIZE, 0, 0), 0);
  assert_int_equal (blk_pwrite (source, "x", 1, UNIT * 2, 0), 0);
  assert_int_equal (blk_pwrite (source, "x", 1, UNIT * 4 - 1, 0), 0);
  free (blk_debug_trace (target));
  assert_int_equal (copy_run (source, target, &options, &unaligned, &is_done,
                              &stats, NULL), 0);
  assert_int_equal (stats.zero_bytes, UNIT);
  assert_int_equal (stats.written_bytes, 2 * UNIT);
  trace = blk_debug_trace (target);
  assert_string_equal (trace, "zero 6144+2048 unmap\nwrite 8192+8192\n"
                       "zero 16384+2048 unmap");
  free (trace);
}

/* The first error is told with node, operation and place, nothing is called
 * done that is not, and the engine comes to an end.
 */
static void
check_failed (struct blk *node, const char *what, int errnum, int r,
              const struct error *err)
{
  char text[100];

  assert_int_equal (r, -errnum);
  assert_int_equal (err->errnum, errnum);
  snprintf (text, sizeof text, "%s: %s of ", node->name, what);
  if (strncmp (err->msg, text, strlen (text)) != 0
      || strstr (err->msg, " at offset ") == NULL)
    fail_msg ("\"%s\" does not begin with \"%s\"", err->msg, text);
}

static void
fail_each (struct blk *node, unsigned op, const char *what,
           unsigned nr_threads, bool is_sticky)
{
  const struct copy_options options = {
    .nr_threads = nr_threads, .depth = 4, .max_item = 8 * UNIT,
    .detect_zeroes = true, .zero_unit = UNIT,
  };
  struct error err;
  uint64_t n = 1;
  int r;

  for (;; n += n < 10 ? 1 : 13) {
    fill_target ('x');
    blk_debug_fail_nth (node, op, n, ENXIO, is_sticky);
    r = copy_run (source, target, &options, &ops, new_job ((unsigned) n),
                  NULL, &err);
    if (!blk_debug_has_fired (node))
      break;
    check_failed (node, what, ENXIO, r, &err);
    blk_debug_fail_nth (node, op, 0, 0, false);
    check_target (&job, 'x');
  }
  assert_int_equal (r, 0);
  assert_true (n > 10);
  blk_debug_fail_nth (node, op, 0, 0, false);
}

static void
test_faults (void **state)
{
  unsigned nr_threads;

  for (nr_threads = 1; nr_threads <= 3; nr_threads += 2) {
    fail_each (source, BLK_DEBUG_READ, "read", nr_threads, false);
    fail_each (source, BLK_DEBUG_READ, "read", nr_threads, true);
    fail_each (target, BLK_DEBUG_WRITE, "write", nr_threads, false);
    fail_each (target, BLK_DEBUG_WRITE, "write", nr_threads, true);
    fail_each (target, BLK_DEBUG_ZERO, "zero", nr_threads, false);
  }
}

static void
test_callback_faults (void **state)
{
  const struct copy_options options = { .nr_threads = 3, .depth = 4,
                                        .max_item = 8 * UNIT };
  struct error err;
  int n, r;

  for (n = 1; n < 40; n += 3) {
    fill_target ('x');
    new_job (0)->fail_next = n;
    r = copy_run (source, target, &options, &ops, &job, NULL, &err);
    assert_int_equal (r, -ENOLINK);
    assert_memory_equal (err.msg, "list of ranges to copy: ", 24);
    check_target (&job, 'x');

    new_job (0)->fail_reserve = n;
    r = copy_run (source, target, &options, &ops, &job, NULL, &err);
    check_failed (target, "reservation", ENOSPC, r, &err);

    new_job (0)->fail_data = n;
    r = copy_run (source, target, &options, &ops, &job, NULL, &err);
    check_failed (source, "handling", EILSEQ, r, &err);
  }
}

/* Cancelled while a read waits: it is let go on and its data dropped. */
struct canceller {
  bool cancel;
  struct copy_options options;
  int r;
  struct error err;
};

static void *
run_cancelled (void *arg)
{
  struct canceller *c = arg;

  c->r = copy_run (source, target, &c->options, &ops, new_job (0), NULL,
                   &c->err);
  return NULL;
}

static void
test_cancel (void **state)
{
  struct canceller c = { .options = { .nr_threads = 2, .depth = 2,
                                      .max_item = 8 * UNIT } };
  const uint64_t off = 100 * UNIT;
  pthread_t thread;

  c.options.cancel = &c.cancel;
  fill_target ('x');
  assert_int_equal (blk_debug_break (source, BLK_DEBUG_READ, off, UNIT, "a"),
                    0);
  assert_int_equal (pthread_create (&thread, NULL, run_cancelled, &c), 0);
  assert_int_equal (blk_debug_wait_paused (source, "a"), 0);
  __atomic_store_n (&c.cancel, true, __ATOMIC_RELAXED);
  assert_int_equal (blk_debug_resume (source, "a"), 0);
  assert_int_equal (pthread_join (thread, NULL), 0);
  assert_int_equal (c.r, -ECANCELED);
  assert_int_equal (c.err.errnum, ECANCELED);
  assert_int_equal (atomic_load (&job.done[off / UNIT]), 0);
  check_target (&job, 'x');

  /* Before it begins: nothing is asked for. */
  assert_int_equal (copy_run (source, target, &c.options, &ops, new_job (0),
                              NULL, &c.err), -ECANCELED);
  assert_int_equal (job.pos, 0);
}

static int
next_nothing (void *opaque, struct copy_item *ret)
{
  return 0;
}

static void
test_nothing_to_do (void **state)
{
  const struct copy_ops nothing = { .next = next_nothing };
  struct copy_stats stats = { 1, 1, 1 };

  assert_int_equal (copy_run (source, target, NULL, &nothing, NULL, &stats,
                              NULL), 0);
  assert_int_equal (stats.read_bytes + stats.written_bytes
                    + stats.zero_bytes, 0);
}

/* More memory than there is: an error before anything is read. */
static void
test_no_memory (void **state)
{
  const struct copy_options options = { .depth = 16,
                                        .max_item = SIZE_MAX / 64 };
  struct error err;

  assert_int_equal (copy_run (source, target, &options, &ops, new_job (0),
                              NULL, &err), -ENOMEM);
  assert_int_equal (err.errnum, ENOMEM);
  assert_int_equal (job.pos, 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown (test_content, setup, teardown),
    cmocka_unit_test_setup_teardown (test_zero_units, setup, teardown),
    cmocka_unit_test_setup_teardown (test_unaligned_units, setup, teardown),
    cmocka_unit_test_setup_teardown (test_faults, setup, teardown),
    cmocka_unit_test_setup_teardown (test_callback_faults, setup, teardown),
    cmocka_unit_test_setup_teardown (test_cancel, setup, teardown),
    cmocka_unit_test_setup_teardown (test_nothing_to_do, setup, teardown),
    cmocka_unit_test_setup_teardown (test_no_memory, setup, teardown),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
