/* SPDX-License-Identifier: BSD-3-Clause */
/* The qcow2 driver when things go wrong: the Nth request to its file fails,
 * power is lost at any write, requests meet in the worst order, bytes of an
 * image are arbitrary.
 *
 * usage: test-qcow2-fault [SEED]
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blk-debug.h"
#include "byteorder.h"
#include "log.h"
#include "qcow2.h"
#include "qcow2-image.h"
#include "range.h"
#include "unit.h"

#define CLUSTER UINT64_C (4096)
#define NR_CLUSTERS 200
#define SIZE (CLUSTER * NR_CLUSTERS)
#define NR_SECTORS (SIZE / 512)
#define CAPACITY (UINT64_C (6) << 20)

static uint64_t random_state = 88172645463325252;

static uint64_t
rnd (uint64_t n)
{
  return (unit_random (&random_state) >> 11) % n;
}

/* --- an image whose sectors hold one byte value each, 0 to 31 */

/* Sets of values, a bit each: what sector i may read as, and what it may be
 * after a crash.
 */
struct model {
  uint32_t now[NR_SECTORS], stable[NR_SECTORS];
};

static struct model model;
static uint32_t cluster_size = CLUSTER;
static bool is_lazy;            /* images are made with lazy refcounts */
static unsigned nr_flushes;     /* that succeeded */
static struct file file;
static struct blk *node, *debug;

static void
open_image (bool is_new)
{
  struct qcow2_create_options create = {
    .size = SIZE, .cluster_size = cluster_size,
    .has_lazy_refcounts = is_lazy,
  };
  struct qcow2_open_options options = { 0 };
  struct error err = ERROR_INIT;
  int r;

  assert_int_equal (blk_debug_open (file_node (&file), &debug, &err), 0);
  r = is_new ? blk_qcow2_create (debug, &create, &node, &err)
    : blk_qcow2_open (debug, &options, &node, &err);
  if (r < 0)
    fail_msg ("%s", err.msg);
}

/* One change; if it fails its sectors may hold old or new. */
static int
change (unsigned op, unsigned first, unsigned nr, unsigned value)
{
  static uint8_t buf[SIZE];
  int r;

  value = op == 0 ? value : 0;
  for (unsigned i = first; i < first + nr; i++)
    model.stable[i] |= 1u << value;
  if (op == 0) {
    memset (buf, (int) value, nr * 512);
    r = blk_pwrite (node, buf, nr * 512, first * 512, 0);
  } else
    r = blk_zero (node, nr * 512, first * 512, op == 1 ? BLK_MAY_UNMAP : 0);
  for (unsigned i = first; i < first + nr; i++)
    model.now[i] = (r < 0 ? model.now[i] : 0) | 1u << value;
  return r;
}

static int
flush (void)
{
  int r = blk_flush (node);

  if (r == 0) {
    nr_flushes++;
    memcpy (model.stable, model.now, sizeof model.now);
  }
  return r;
}

/* Everything that the node holds is allowed; from here on it is what each
 * sector holds.
 */
static void
check_sectors (const uint32_t *may)
{
  static uint8_t buf[SIZE];

  assert_int_equal (blk_pread (node, buf, SIZE, 0, 0), 0);
  for (unsigned i = 0; i < NR_SECTORS; i++) {
    for (unsigned k = 1; k < 512; k++)
      if (buf[i * 512 + k] != buf[i * 512])
        fail_msg ("sector %u is mixed", i);
    if (buf[i * 512] > 31 || !(may[i] & 1u << buf[i * 512]))
      fail_msg ("sector %u is %u, allowed 0x%x", i, buf[i * 512], may[i]);
    model.now[i] = 1u << buf[i * 512];
  }
}

static bool
is_marked_dirty (const struct file *f)
{
  return load_be64 (f->bytes + 72) & QCOW2_INCOMPAT_DIRTY;
}

static void
check_image (const struct file *f, bool may_leak)
{
  struct image_report report;

  if (is_lazy && is_marked_dirty (f))
    return;
  image_check (f->bytes, f->size, &report);
  if (report.error)
    fail_msg ("%s: %llu", report.error, (unsigned long long) report.where);
  if (!may_leak)
    assert_int_equal (report.nr_leaks, 0);
}

/* Change i of the scenario: the same each time, all kinds of steps. */
static int
scenario_step (unsigned i)
{
  uint64_t state = random_state;
  unsigned first, nr, op;

  random_state = (i + 1) * UINT64_C (0x9e3779b97f4a7c15);
  op = (unsigned) rnd (5);
  first = (unsigned) rnd (NR_SECTORS - 1);
  nr = (unsigned) (1 + rnd (MIN (60, NR_SECTORS - first)));
  random_state = state;
  return op == 4 ? flush () : change (op > 2 ? 0 : op, first, nr, 1 + i % 31);
}

#define NR_STEPS 30

/* A new image, or one that has been written before. */
static void
begin (bool is_new)
{
  file_init (&file, CAPACITY);
  for (unsigned i = 0; i < NR_SECTORS; i++)
    model.now[i] = model.stable[i] = 1;
  open_image (true);
  if (!is_new) {
    for (unsigned i = 0; i < 20; i++)
      change (i % 3, (unsigned) rnd (NR_SECTORS - 40), 40, 1 + i % 31);
    assert_int_equal (flush (), 0);
    assert_int_equal (blk_close (node), 0);
    open_image (false);
  }
}

/* The image in file is sound, holds what it may, and can be worked with. */
static void
check_reopened (const uint32_t *may, bool may_leak)
{
  check_image (&file, may_leak);
  open_image (false);
  check_sectors (may);
  assert_int_equal (change (0, 0, NR_SECTORS / 2, 31), 0);
  assert_int_equal (blk_close (node), 0);
  assert_false (is_marked_dirty (&file));
  check_image (&file, may_leak);
  open_image (false);
  check_sectors (model.now);
  assert_int_equal (blk_close (node), 0);
}

/* --- failing requests */

/* One request fails: that is reported, all else works, and nothing is lost. */
static void
nth_fails_once (bool is_new, unsigned ops)
{
  unsigned nr_failed;
  bool has_fired = true;

  for (uint64_t n = 1; has_fired; n++) {
    begin (is_new);
    blk_debug_fail_nth (debug, ops, n, EIO, false);
    nr_failed = 0;
    for (unsigned i = 0; i < NR_STEPS; i++)
      nr_failed += scenario_step (i) < 0;
    nr_failed += flush () < 0;
    has_fired = blk_debug_has_fired (debug);
    /* Trims are advice: that one fails harms nobody. */
    if (has_fired && ops != BLK_DEBUG_TRIM)
      assert_int_equal (nr_failed, 1);
    blk_debug_fail_nth (debug, 0, 0, 0, false);
    check_sectors (model.now);
    assert_int_equal (blk_close (node), 0);
    check_reopened (model.now, false);
    file_destroy (&file);
  }
}

static void
test_one_failure (void **state)
{
  static const unsigned ops[] = {
    BLK_DEBUG_READ, BLK_DEBUG_WRITE, BLK_DEBUG_ZERO, BLK_DEBUG_TRIM,
    BLK_DEBUG_FLUSH,
  };

  for (size_t i = 0; i < 5; i++) {
    nth_fails_once (true, ops[i]);
    nth_fails_once (false, ops[i]);
  }
}

/* From the Nth on everything fails: what was flushed is there, the rest old or
 * new, and close says so.
 */
static void
nth_fails_for_ever (bool is_new)
{
  struct image_report report;
  bool has_fired = true;
  static uint32_t may[NR_SECTORS];
  int r;

  for (uint64_t n = 1; has_fired; n++) {
    begin (is_new);
    blk_debug_fail_nth (debug, BLK_DEBUG_ANY & ~BLK_DEBUG_TRIM, n, EIO, true);
    for (unsigned i = 0; i < NR_STEPS; i++)
      if (scenario_step (i) < 0)
        break;
    r = flush ();
    has_fired = blk_debug_has_fired (debug);
    assert_true (!has_fired || r < 0);
    r = blk_close (node);
    assert_true (!has_fired || r < 0);
    memcpy (may, model.stable, sizeof may);
    image_check (file.bytes, file.size, &report);
    if (report.has_header)
      check_reopened (may, true);
    else
      assert_true (is_new && has_fired);
    file_destroy (&file);
  }
}

static void
test_failing_for_ever (void **state)
{
  nth_fails_for_ever (true);
  nth_fails_for_ever (false);
}

/* --- power lost */

/* What the image may hold when power is lost after nr changes of the file, as
 * long as those were made by this step of the scenario.
 */
struct moment {
  size_t nr_changes;
  bool is_flushed;              /* a flush has succeeded by now */
  uint32_t stable[NR_SECTORS];
};

static struct moment moments[NR_STEPS + 1];

/* Every how manyth moment: one thread is at work, and the thread sanitizer
 * makes it 30 times slower.
 */
#ifdef __SANITIZE_THREAD__
enum { MOMENT_STRIDE = 7 };
#else
enum { MOMENT_STRIDE = 1 };
#endif

/* Only some sectors of a write reached the disk. */
static void
apply_torn (const struct change *c, uint8_t *bytes, uint64_t *size)
{
  struct change part = *c;

  for (uint64_t i = 0, n; i < c->len; i += n) {
    n = MIN (512 - (c->off + i) % 512, c->len - i);
    part.off = c->off + i;
    part.len = n;
    part.data = c->data ? c->data + i : NULL;
    if (rnd (2))
      change_apply (&part, bytes, size);
  }
}

/* From base (all changes up to first), with any subset of the next ones up to
 * end, whole or torn.
 */
static void
make_crashed (const struct file *base, struct file *ret,
              const struct change *changes, size_t first, size_t end)
{
  unsigned odds = (unsigned) rnd (4);

  file_init (ret, CAPACITY);
  memcpy (ret->bytes, base->bytes, CAPACITY);
  ret->size = base->size;
  for (size_t i = first; i < end; i++) {
    const struct change *c = &changes[i];

    if (c->what == CHANGE_RESIZE || odds == 3 || rnd (3) < odds)
      change_apply (c, ret->bytes, &ret->size);
    else if (c->what != CHANGE_FLUSH && rnd (2))
      apply_torn (c, ret->bytes, &ret->size);
  }
}

static void
check_crashed (const struct moment *m, bool is_new)
{
  struct image_report report;
  static uint32_t may[NR_SECTORS];

  image_check (file.bytes, file.size, &report);
  if (!report.has_header) {
    assert_true (is_new && !m->is_flushed);
    return;
  }
  memcpy (may, m->stable, sizeof may);
  check_reopened (may, true);
}

/* Run the scenario with all changes recorded, and the moments. */
static void
record (bool is_new, struct file *ret_base)
{
  begin (is_new);
  nr_flushes = 0;
  file_init (ret_base, CAPACITY);
  memcpy (ret_base->bytes, file.bytes, CAPACITY);
  ret_base->size = file.size;
  file.is_recording = true;
  for (unsigned i = 0; i < NR_STEPS; i++) {
    static struct moment before;

    memcpy (before.stable, model.stable, sizeof before.stable);
    scenario_step (i);
    /* Until a flush has returned the former set is what counts. */
    for (unsigned k = 0; k < NR_SECTORS; k++)
      moments[i].stable[k] = before.stable[k] | model.stable[k];
    moments[i].nr_changes = file.nr_changes;
    moments[i + 1].is_flushed = nr_flushes > 0;
  }
  assert_int_equal (blk_close (node), 0);
  memcpy (moments[NR_STEPS].stable, moments[NR_STEPS - 1].stable,
          sizeof model.stable);
  for (unsigned k = 0; k < NR_SECTORS; k++)
    moments[NR_STEPS].stable[k] |= model.now[k];
  moments[NR_STEPS].nr_changes = file.nr_changes;
}

static void
lose_power (bool is_new)
{
  struct file base, recorded;
  size_t first = 0;
  unsigned step = 0;

  memset (moments, 0, sizeof moments);
  record (is_new, &base);
  recorded = file;
  for (size_t end = 0; end <= recorded.nr_changes; end++) {
    while (step < NR_STEPS && moments[step].nr_changes < end)
      step++;
    for (unsigned i = 0; i < 2 && end % MOMENT_STRIDE == 0; i++) {
      make_crashed (&base, &file, recorded.changes, first, end);
      check_crashed (&moments[step], is_new);
      file_destroy (&file);
    }
    if (end < recorded.nr_changes
        && recorded.changes[end].what == CHANGE_FLUSH) {
      for (; first <= end; first++)
        change_apply (&recorded.changes[first], base.bytes, &base.size);
    }
  }
  file_destroy (&recorded);
  file_destroy (&base);
}

static void
test_power_lost (void **state)
{
  lose_power (true);
  lose_power (false);
  /* A refcount block for 128 KiB only: new ones come and go. */
  cluster_size = 512;
  lose_power (true);
  lose_power (false);
  cluster_size = CLUSTER;
}

/* --- lazy refcounts */

/* Marked before the first flush that leaves refcounts out, for as long as the
 * image is open, and mended by who opens it next.
 */
static void
test_lazy (void **state)
{
  struct image_report report;

  is_lazy = true;
  begin (false);
  assert_false (is_marked_dirty (&file));
  assert_int_equal (flush (), 0);
  assert_false (is_marked_dirty (&file));
  file.is_recording = true;
  assert_int_equal (change (1, 0, NR_SECTORS, 0), 0);
  assert_int_equal (change (0, 100, 160, 7), 0);
  assert_int_equal (flush (), 0);
  assert_true (is_marked_dirty (&file));
  /* Nothing was done about the refcounts yet. */
  image_check (file.bytes, file.size, &report);
  assert_true (report.error || report.nr_leaks > 0);
  assert_int_equal (blk_close (node), 0);
  assert_false (is_marked_dirty (&file));
  check_reopened (model.now, false);
  file_destroy (&file);
  is_lazy = false;
}

/* Images that are opened: a new one orders its writes as ever. */
static void
test_lazy_faults (void **state)
{
  is_lazy = true;
  nth_fails_once (false, BLK_DEBUG_WRITE);
  nth_fails_once (false, BLK_DEBUG_FLUSH);
  nth_fails_for_ever (false);
  lose_power (false);
  cluster_size = 512;
  lose_power (false);
  cluster_size = CLUSTER;
  is_lazy = false;
}

/* --- races */

struct request {
  pthread_t thread;
  enum { WRITE, READ, TRIM, FLUSH } what;
  uint64_t off, len;
  uint8_t buf[CLUSTER];
  atomic_bool is_done;
  int result;
};

static void *
run_request (void *opaque)
{
  struct request *r = opaque;

  switch (r->what) {
  case WRITE:
    r->result = blk_pwrite (node, r->buf, r->len, r->off, 0);
    break;
  case READ:
    r->result = blk_pread (node, r->buf, r->len, r->off, 0);
    break;
  case TRIM:
    r->result = blk_trim (node, r->len, r->off, 0);
    break;
  case FLUSH:
    r->result = blk_flush (node);
    break;
  }
  atomic_store (&r->is_done, true);
  return NULL;
}

static void
start (struct request *r, int what, uint64_t off, uint64_t len, int byte)
{
  r->what = what;
  r->off = off;
  r->len = len;
  memset (r->buf, byte, sizeof r->buf);
  atomic_init (&r->is_done, false);
  assert_int_equal (pthread_create (&r->thread, NULL, run_request, r), 0);
}

static void
finish (struct request *r)
{
  assert_int_equal (pthread_join (r->thread, NULL), 0);
  assert_int_equal (r->result, 0);
}

/* Until a request waits for a claim, seen in the driver's own count. */
static void
wait_for_waiter (void)
{
  struct qcow2 *q = (struct qcow2 *) node;
  unsigned nr = 0;

  while (nr == 0) {
    lock_acquire (&q->lock);
    nr = q->claims.nr_waiting;
    lock_release (&q->lock);
    sched_yield ();
  }
}

static void
expect_byte (uint64_t off, int byte)
{
  uint8_t got;

  assert_int_equal (blk_pread (node, &got, 1, off, 0), 0);
  assert_int_equal (got, byte);
}

/* Two writes to one new cluster: the second waits until the first is there. */
static void
test_two_writes_to_a_new_cluster (void **state)
{
  static struct request a, b;

  begin (true);
  assert_int_equal (qcow2_reserve (node, CLUSTER, 0), 0);
  blk_debug_break (debug, BLK_DEBUG_WRITE, 0, CAPACITY, "a");
  start (&a, WRITE, 0, 512, 1);
  assert_int_equal (blk_debug_wait_paused (debug, "a"), 0);
  start (&b, WRITE, 512, 512, 2);
  wait_for_waiter ();
  assert_false (atomic_load (&b.is_done));
  blk_debug_resume (debug, "a");
  finish (&a);
  finish (&b);
  expect_byte (0, 1);
  expect_byte (512, 2);
  assert_int_equal (blk_close (node), 0);
  check_image (&file, false);
  file_destroy (&file);
}

/* A trim of a cluster that is being written waits. */
static void
test_trim_during_write (void **state)
{
  static struct request a, b;

  begin (true);
  assert_int_equal (change (0, 0, 8, 5), 0);
  blk_debug_break (debug, BLK_DEBUG_WRITE, 0, CAPACITY, "a");
  start (&a, WRITE, 0, 512, 1);
  assert_int_equal (blk_debug_wait_paused (debug, "a"), 0);
  start (&b, TRIM, 0, CLUSTER, 0);
  wait_for_waiter ();
  assert_false (atomic_load (&b.is_done));
  blk_debug_resume (debug, "a");
  finish (&a);
  finish (&b);
  expect_byte (0, 0);
  assert_int_equal (blk_close (node), 0);
  check_image (&file, false);
  file_destroy (&file);
}

/* Writes to one allocated cluster do not wait for each other. */
static void
test_writes_in_place (void **state)
{
  static struct request a;

  begin (true);
  assert_int_equal (change (0, 0, 8, 5), 0);
  blk_debug_break (debug, BLK_DEBUG_WRITE, 0, CAPACITY, "a");
  start (&a, WRITE, 0, 512, 1);
  assert_int_equal (blk_debug_wait_paused (debug, "a"), 0);
  assert_int_equal (change (0, 1, 7, 6), 0);
  blk_debug_resume (debug, "a");
  finish (&a);
  expect_byte (0, 1);
  expect_byte (512, 6);
  assert_int_equal (blk_close (node), 0);
  file_destroy (&file);
}

/* A cluster that is being read is not given to other data: the flush that
 * would free it waits for the reader.
 */
static void
test_reader_keeps_its_cluster (void **state)
{
  static struct request a, b;

  begin (true);
  assert_int_equal (change (0, 0, 8, 5), 0);
  assert_int_equal (blk_close (node), 0);
  open_image (false);
  expect_byte (CLUSTER, 0);     /* the table is in the cache */
  blk_debug_break (debug, BLK_DEBUG_READ, 0, CAPACITY, "a");
  start (&a, READ, 0, CLUSTER, 0);
  assert_int_equal (blk_debug_wait_paused (debug, "a"), 0);
  assert_int_equal (blk_trim (node, CLUSTER, 0, 0), 0);
  start (&b, FLUSH, 0, 0, 0);
  /* Writes go on during that, and do not get the cluster. */
  for (unsigned i = 8; i < 400; i += 8)
    assert_int_equal (change (0, i, 8, 7), 0);
  assert_false (atomic_load (&b.is_done));
  blk_debug_resume (debug, "a");
  finish (&a);
  finish (&b);
  assert_int_equal (a.buf[0], 5);
  assert_int_equal (a.buf[CLUSTER - 1], 5);
  assert_int_equal (blk_close (node), 0);
  check_image (&file, false);
  file_destroy (&file);
}

/* While a flush waits for the disk, writes to new clusters do not, and what
 * they change meanwhile is written by the next one.
 */
static void
test_write_during_flush (void **state)
{
  static struct request a;

  begin (false);
  assert_int_equal (change (0, 100, 8, 5), 0);
  blk_debug_break (debug, BLK_DEBUG_FLUSH, 0, CAPACITY, "a");
  start (&a, FLUSH, 0, 0, 0);
  assert_int_equal (blk_debug_wait_paused (debug, "a"), 0);
  for (unsigned i = 0; i < NR_SECTORS; i += 40)
    assert_int_equal (change (0, i, 12, 9), 0);
  blk_debug_resume (debug, "a");
  finish (&a);
  assert_int_equal (flush (), 0);
  check_image (&file, false);
  check_sectors (model.now);
  assert_int_equal (blk_close (node), 0);
  check_reopened (model.now, false);
  file_destroy (&file);
}

/* --- arbitrary bytes */

/* Open whatever it is, read and change it; nothing but errors may come. */
static void
use_damaged (bool is_read_only)
{
  struct qcow2_open_options options = { .is_read_only = is_read_only };
  static uint8_t buf[SIZE];
  struct extents e;
  uint64_t size;

  if (blk_qcow2_open (file_node (&file), &options, &node, NULL) < 0)
    return;
  size = MIN (blk_size (node), SIZE);
  extents_init (&e, 8);
  for (uint64_t off = 0; off < size; off += 8 * CLUSTER) {
    (void) blk_pread (node, buf, MIN (8 * CLUSTER, size - off), off, 0);
    extents_clear (&e);
    (void) blk_extents (node, size - off, off, 0, rnd (2)
                        ? BLK_STATUS_DEPTH : BLK_STATUS_ALLOCATION, &e);
    if (is_read_only)
      continue;
    (void) blk_pwrite (node, buf, MIN (100, size - off), off, 0);
    (void) blk_zero (node, MIN (CLUSTER, size - off), off, 0);
    (void) blk_trim (node, MIN (9000, size - off), off, 0);
  }
  extents_free (&e);
  (void) blk_flush (node);
  (void) blk_close (node);
}

/* Somewhere in the header or a table of the image. */
static uint64_t
random_place (const uint8_t *good)
{
  uint64_t l1 = load_be64 (good + 40);
  uint64_t reftable = load_be64 (good + 48);
  uint64_t l2 = load_be64 (good + l1) & UINT64_C (0xfffffffffffe00);
  uint64_t block = load_be64 (good + reftable);

  switch (rnd (5)) {
  case 0: return rnd (512);
  case 1: return l1 + rnd (16);
  case 2: return reftable + rnd (16);
  case 3: return block + rnd (400);
  default: return l2 + rnd (NR_CLUSTERS * 8);
  }
}

static void
test_arbitrary_bytes (void **state)
{
  uint8_t *good = malloc (CAPACITY);
  uint64_t size;

  begin (false);
  assert_int_equal (blk_close (node), 0);
  memcpy (good, file.bytes, CAPACITY);
  size = file.size;
  for (unsigned i = 0; i < 1500; i++) {
    uint64_t nr = 1 + rnd (4);

    while (nr-- > 0) {
      uint64_t at = random_place (good);

      if (at < size)
        file.bytes[at] = (uint8_t) (rnd (3) ? rnd (256) : 1u << rnd (8));
    }
    use_damaged (i % 2);
    memcpy (file.bytes, good, size);
    memset (file.bytes + size, 0, CAPACITY - size);
    file.size = size;
  }
  free (good);
  file_destroy (&file);
}

int
main (int argc, char *argv[])
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_one_failure),
    cmocka_unit_test (test_failing_for_ever),
    cmocka_unit_test (test_power_lost),
    cmocka_unit_test (test_lazy),
    cmocka_unit_test (test_lazy_faults),
    cmocka_unit_test (test_two_writes_to_a_new_cluster),
    cmocka_unit_test (test_trim_during_write),
    cmocka_unit_test (test_writes_in_place),
    cmocka_unit_test (test_reader_keeps_its_cluster),
    cmocka_unit_test (test_write_during_flush),
    cmocka_unit_test (test_arbitrary_bytes),
  };

  log_set_handler (unit_ignore_log);
  if (argc > 1)
    random_state += strtoul (argv[1], NULL, 0) * 7919;
  return cmocka_run_group_tests (tests, NULL, NULL);
}
