/* SPDX-License-Identifier: BSD-3-Clause */
/* bitmap.c against a naive model after every step, at the ends of its limits,
 * and with threads that set and search at once.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <setjmp.h>
#include <cmocka.h>

#include "bitmap.h"
#include "cleanup.h"

/* One byte per granule. */
struct model {
  uint64_t size, gran, nr;
  uint8_t *dirty;
};

static void
model_init (struct model *m, uint64_t size, uint64_t gran)
{
  m->size = size;
  m->gran = gran;
  m->nr = div_round_up (size, gran);
  m->dirty = calloc (m->nr + 1, 1);
  assert_non_null (m->dirty);
}

static void
model_set (struct model *m, uint64_t off, uint64_t len)
{
  uint64_t i;

  for (i = 0; i < m->nr; i++)
    if (range_overlaps (off, len, i * m->gran, m->gran))
      m->dirty[i] = 1;
}

static void
model_clear (struct model *m, uint64_t off, uint64_t len)
{
  uint64_t i, end;

  for (i = 0; i < m->nr; i++) {
    end = MIN ((i + 1) * m->gran, m->size);
    if (off <= i * m->gran && off + len >= end)
      m->dirty[i] = 0;
  }
}

static bool
model_next (const struct model *m, uint64_t off, uint64_t len, uint8_t value,
            struct range *ret)
{
  const uint64_t end = MIN (off + len, m->size);
  uint64_t pos = off, start;

  while (pos < end && m->dirty[pos / m->gran] != value)
    pos = (pos / m->gran + 1) * m->gran;
  if (pos >= end)
    return false;
  start = pos;
  while (pos < end && m->dirty[pos / m->gran] == value)
    pos = (pos / m->gran + 1) * m->gran;
  ret->off = start;
  ret->len = MIN (pos, end) - start;
  return true;
}

static uint64_t
model_count (const struct model *m, uint64_t *ret_bytes)
{
  uint64_t i, n = 0;

  *ret_bytes = 0;
  for (i = 0; i < m->nr; i++)
    if (m->dirty[i]) {
      n++;
      *ret_bytes += MIN (m->gran, m->size - i * m->gran);
    }
  return n;
}

static uint64_t
random_below (uint64_t n)
{
  return n == 0 ? 0 : ((uint64_t) random () << 31 | random ()) % n;
}

/* A range that often begins or ends at, or one beside, a granule's edge. */
static void
random_range (const struct model *m, uint64_t *off, uint64_t *len)
{
  uint64_t end;

  *off = random_below (m->size + 1);
  end = *off + random_below (m->size - *off + 1);
  if (random () % 2)
    end = MIN (*off + random_below (3 * m->gran), m->size);
  if (random () % 2)
    *off = round_down (*off, m->gran) + random () % 2;
  if (random () % 2)
    end = round_down (end, m->gran) + (uint64_t) (random () % 2);
  if (random () % 8 == 0)
    end = m->size;
  *off = MIN (*off, m->size);
  end = MIN (end, m->size);
  *len = end > *off ? end - *off : 0;
}

static void
check_next (const struct bitmap *b, const struct model *m, uint64_t off,
            uint64_t len)
{
  struct range got = { 0 }, want = { 0 };
  bool r;

  r = bitmap_next_dirty (b, off, len, &got);
  assert_int_equal (r, model_next (m, off, len, 1, &want));
  assert_int_equal (got.off, want.off);
  assert_int_equal (got.len, want.len);
  got.off = got.len = want.off = want.len = 0;
  r = bitmap_next_clean (b, off, len, &got);
  assert_int_equal (r, model_next (m, off, len, 0, &want));
  assert_int_equal (got.off, want.off);
  assert_int_equal (got.len, want.len);
}

static void
check (const struct bitmap *b, const struct model *m)
{
  uint64_t bytes, off, len;
  struct range got, want;
  unsigned i;

  assert_int_equal (bitmap_size (b), m->size);
  assert_int_equal (bitmap_granularity (b), m->gran);
  assert_int_equal (bitmap_count (b), model_count (m, &bytes));
  assert_int_equal (bitmap_dirty_bytes (b), bytes);
  /* Every run, in order. */
  for (off = 0; model_next (m, off, m->size - off, 1, &want);
       off = want.off + want.len) {
    assert_true (bitmap_next_dirty (b, off, m->size - off, &got));
    assert_int_equal (got.off, want.off);
    assert_int_equal (got.len, want.len);
  }
  assert_false (bitmap_next_dirty (b, off, m->size - off, &got));
  for (i = 0; i < 4; i++) {
    random_range (m, &off, &len);
    check_next (b, m, off, len);
    if (off < m->size)
      assert_int_equal (bitmap_get (b, off), m->dirty[off / m->gran]);
  }
}

static void
resize_both (struct bitmap *b, struct model *m, uint64_t size)
{
  struct model n;

  assert_int_equal (bitmap_resize (b, size), 0);
  model_init (&n, size, m->gran);
  memcpy (n.dirty, m->dirty, MIN (n.nr, m->nr));
  free (m->dirty);
  *m = n;
}

static void
run_against_model (uint64_t size, uint64_t gran, unsigned steps)
{
  struct bitmap *b;
  struct model m;
  uint64_t off, len;

  assert_int_equal (bitmap_new (size, gran, &b), 0);
  model_init (&m, size, gran);
  check (b, &m);
  while (steps-- > 0) {
    random_range (&m, &off, &len);
    switch (random () % 16) {
    case 0:
      bitmap_clear_all (b);
      memset (m.dirty, 0, m.nr);
      break;
    case 1:
      resize_both (b, &m, random_below (2 * size + 1));
      break;
    case 2: case 3: case 4: case 5:
      bitmap_clear (b, off, len);
      model_clear (&m, off, len);
      break;
    default:
      bitmap_set (b, off, len);
      model_set (&m, off, len);
    }
    check (b, &m);
  }
  bitmap_free (b);
  free (m.dirty);
}

static void
test_model (void **state)
{
  static const uint64_t granules[] = { 512, 4096, 65536,
                                       BITMAP_MAX_GRANULARITY };
  static const uint64_t nr_granules[] = { 0, 1, 2, 63, 64, 65, 500, 5000 };
  size_t i, j;

  srandom (1);
  for (i = 0; i < sizeof granules / sizeof granules[0]; i++)
    for (j = 0; j < sizeof nr_granules / sizeof nr_granules[0]; j++) {
      run_against_model (granules[i] * nr_granules[j], granules[i], 60);
      if (nr_granules[j] > 0) {
        run_against_model (granules[i] * nr_granules[j] - 1, granules[i], 60);
        run_against_model (granules[i] * nr_granules[j] - granules[i] + 1,
                           granules[i], 60);
      }
    }
  /* Three levels. */
  run_against_model (UINT64_C (512) * 300000 - 511, 512, 20);
}

/* Over words that have bits: as if these had been set, once their parts have
 * been summarized; parts without any need not be.
 */
static void
summarize_against_model (uint64_t nr, unsigned nr_runs)
{
  const uint64_t nr_words = round_up (div_round_up (nr, 64), 512);
  uint64_t *words = calloc (nr_words, sizeof *words);
  struct model m;
  struct bitmap *b;
  uint64_t first, i, w;

  assert_non_null (words);
  model_init (&m, nr * 512 - 511, 512);
  while (nr_runs-- > 0) {
    first = (uint64_t) random () % nr;
    model_set (&m, first * 512, MIN (nr - first, (uint64_t) random () % 200
                                     + 1) * 512);
  }
  for (i = 0; i < nr; i++)
    if (m.dirty[i])
      words[i / 64] |= UINT64_C (1) << (i % 64);
  assert_int_equal (bitmap_new_at (m.size, 512, words, &b), 0);
  assert_int_equal (bitmap_count (b), 0);
  for (w = 0; w < nr_words; w += 512)
    if (!is_zero_buffer (words + w, 4096))
      bitmap_summarize (b, w, 512);
  check (b, &m);
  bitmap_free (b);
  free (words);
  free (m.dirty);
}

static void
test_summarize (void **state)
{
  srandom (2);
  summarize_against_model (1, 1);
  summarize_against_model (64 * 64, 3);
  summarize_against_model (64 * 64 + 1, 3);
  summarize_against_model (600000, 0);
  summarize_against_model (600000, 1);
  summarize_against_model (600000, 40);
}

static void
test_merge (void **state)
{
  static const uint64_t granules[] = { 512, 1024, 4096, 65536, 1 << 20 };
  const uint64_t size = 3 * 1024 * 1024 + 5;
  struct bitmap *dst, *src;
  struct model m, n;
  uint64_t off, len, g;
  size_t i, j, k;

  srandom (2);
  for (i = 0; i < 5; i++)
    for (j = 0; j < 5; j++) {
      assert_int_equal (bitmap_new (size, granules[i], &dst), 0);
      assert_int_equal (bitmap_new (size, granules[j], &src), 0);
      model_init (&m, size, granules[i]);
      model_init (&n, size, granules[j]);
      for (k = 0; k < 12; k++) {
        random_range (&n, &off, &len);
        len = MIN (len, 100000);
        bitmap_set (src, off, len);
        model_set (&n, off, len);
        random_range (&m, &off, &len);
        len = MIN (len, 100000);
        bitmap_set (dst, off, len);
        model_set (&m, off, len);
        bitmap_merge (dst, src);
        for (g = 0; g < n.nr; g++)
          if (n.dirty[g])
            model_set (&m, g * n.gran, MIN (n.gran, size - g * n.gran));
        check (dst, &m);
        check (src, &n);
        if (k == 6) {
          bitmap_clear_all (dst);
          memset (m.dirty, 0, m.nr);
        }
      }
      bitmap_merge (dst, dst);
      check (dst, &m);
      bitmap_free (dst);
      bitmap_free (src);
      free (m.dirty);
      free (n.dirty);
    }
}

static void
test_copy (void **state)
{
  struct bitmap *b, *c;
  struct model m;

  assert_int_equal (bitmap_new (1000000, 4096, &b), 0);
  bitmap_set (b, 0, 1);
  bitmap_set (b, 999999, 1);
  bitmap_set (b, 500000, 100000);
  assert_int_equal (bitmap_copy (b, 550000, &c), 0);
  model_init (&m, 550000, 4096);
  model_set (&m, 0, 1);
  model_set (&m, 500000, 50000);
  check (c, &m);
  bitmap_free (c);
  bitmap_free (b);
  free (m.dirty);
}

/* The largest disk: the last byte, the whole range, the lengths between. */
static void
test_largest (void **state)
{
  const uint64_t size = RANGE_MAX_SIZE;
  struct bitmap *b;
  struct range r;

  assert_int_equal (bitmap_new (size, BITMAP_MAX_GRANULARITY, &b), 0);
  assert_false (bitmap_next_dirty (b, 0, size, &r));
  assert_true (bitmap_next_clean (b, 0, size, &r));
  assert_int_equal (r.len, size);
  bitmap_set (b, size - 1, 1);
  assert_int_equal (bitmap_dirty_bytes (b), BITMAP_MAX_GRANULARITY);
  assert_true (bitmap_next_dirty (b, 0, size, &r));
  assert_int_equal (r.off, size - BITMAP_MAX_GRANULARITY);
  assert_int_equal (r.len, BITMAP_MAX_GRANULARITY);
  /* A length that would overflow is clipped by searches. */
  assert_true (bitmap_next_dirty (b, 1, UINT64_MAX, &r));
  assert_int_equal (r.off + r.len, size);
  assert_false (bitmap_next_dirty (b, size, 1, &r));
  assert_false (bitmap_next_dirty (b, UINT64_MAX, UINT64_MAX, &r));
  bitmap_clear (b, 0, size);
  assert_int_equal (bitmap_count (b), 0);
  assert_false (bitmap_next_dirty (b, 0, size, &r));
  bitmap_free (b);

  /* One short of it: the last granule counts at its real length. */
  assert_int_equal (bitmap_new (size - 1, BITMAP_MAX_GRANULARITY, &b), 0);
  bitmap_set (b, size - BITMAP_MAX_GRANULARITY - 1,
              BITMAP_MAX_GRANULARITY);
  assert_int_equal (bitmap_dirty_bytes (b), 2 * BITMAP_MAX_GRANULARITY - 1);
  assert_int_equal (bitmap_count (b), 2);
  bitmap_free (b);

  /* More address space than there is: an error, nothing worse. */
  b = NULL;
  assert_int_equal (bitmap_new (size, BITMAP_MIN_GRANULARITY, &b), -ENOMEM);
  assert_null (b);
}

static uint64_t
resident_bytes (void)
{
  unsigned long total, resident;
  CLEANUP_FCLOSE FILE *fp = fopen ("/proc/self/statm", "r");

  assert_non_null (fp);
  assert_int_equal (fscanf (fp, "%lu %lu", &total, &resident), 2);
  return (uint64_t) resident * (uint64_t) sysconf (_SC_PAGESIZE);
}

/* Memory only where bits are set, and given back by clearing. */
static void
test_memory (void **state)
{
  const uint64_t size = UINT64_C (16) << 40, gran = 65536;
  const uint64_t before = resident_bytes ();
  struct bitmap *b;
  struct range r;
  uint64_t i, off = 0, n = 0;

  (void) before;                /* sanitizers use memory of their own */

  assert_int_equal (bitmap_new (size, gran, &b), 0);
  assert_true (bitmap_memory (b) >= size / gran / 8);
  assert_true (bitmap_memory (b) < size / gran / 64 * 65 / 8 + 65536);
  assert_false (bitmap_next_dirty (b, 0, size, &r));
  for (i = 0; i < 100; i++)
    bitmap_set (b, size / 100 * i, 1);
  while (bitmap_next_dirty (b, off, size - off, &r)) {
    n++;
    off = r.off + r.len;
  }
  assert_int_equal (n, 100);
#if !defined (__SANITIZE_ADDRESS__) && !defined (__SANITIZE_THREAD__)
  assert_true (resident_bytes () - before < 2 << 20);
#endif
  bitmap_set (b, 0, size);
  assert_int_equal (bitmap_dirty_bytes (b), size);
#if !defined (__SANITIZE_ADDRESS__) && !defined (__SANITIZE_THREAD__)
  assert_true (resident_bytes () - before > 32 << 20);
  assert_true (resident_bytes () - before < 36 << 20);
#endif
  bitmap_clear_all (b);
  assert_false (bitmap_next_dirty (b, 0, size, &r));
  assert_int_equal (bitmap_count (b), 0);
#if !defined (__SANITIZE_ADDRESS__) && !defined (__SANITIZE_THREAD__)
  assert_true (resident_bytes () - before < 2 << 20);
#endif
  bitmap_free (b);
}

/* Threads set scattered bits, each often one that another sets at the same
 * time; each looks for its bit as soon as bitmap_set has returned.
 */
#define STRESS_GRANULES (UINT64_C (1) << 20)
#define STRESS_THREADS 4
#define STRESS_SETS 4000

static struct bitmap *stress_bitmap;
static uint64_t stress_offsets[STRESS_SETS];
static atomic_uint stress_arrived[STRESS_SETS];

static void *
stress_setter (void *arg)
{
  unsigned i, *missed = arg;
  struct range r;
  uint64_t before;

  for (i = 0; i < STRESS_SETS; i++) {
    const uint64_t off = stress_offsets[i];
    const uint64_t len = i % 64 == 0 ? 4096 * 200 : 1;

    /* Two at least set it at the same time. */
    atomic_fetch_add (&stress_arrived[i], 1);
    while (atomic_load (&stress_arrived[i]) < 2)
      sched_yield ();
    bitmap_set (stress_bitmap, off, len);
    if (!bitmap_next_dirty (stress_bitmap, 0, off + 1, &r)
        || !bitmap_next_dirty (stress_bitmap, off, 1, &r)
        || !bitmap_get (stress_bitmap, off + len - 1))
      ++*missed;
    /* From the end of the word before, so that the summary is read. */
    before = MAX (round_down (off, 4096 * 64), 4096) - 4096;
    if (!bitmap_next_dirty (stress_bitmap, before, off + 1 - before, &r)
        || r.off > off)
      ++*missed;
  }
  return NULL;
}

static void
test_stress (void **state)
{
  pthread_t threads[STRESS_THREADS];
  unsigned missed[STRESS_THREADS], round, i;
  struct model m;

  srandom (3);
  for (round = 0; round < 4; round++) {
    assert_int_equal (bitmap_new (STRESS_GRANULES * 4096, 4096,
                                  &stress_bitmap), 0);
    model_init (&m, STRESS_GRANULES * 4096, 4096);
    memset (stress_arrived, 0, sizeof stress_arrived);
    for (i = 0; i < STRESS_SETS; i++)
      stress_offsets[i] = random_below ((STRESS_GRANULES - 200) * 4096);
    for (i = 0; i < STRESS_THREADS; i++) {
      missed[i] = 0;
      assert_int_equal (pthread_create (&threads[i], NULL, stress_setter,
                                        &missed[i]), 0);
    }
    for (i = 0; i < STRESS_THREADS; i++) {
      assert_int_equal (pthread_join (threads[i], NULL), 0);
      assert_int_equal (missed[i], 0);
    }
    for (i = 0; i < STRESS_SETS; i++)
      memset (&m.dirty[stress_offsets[i] / 4096], 1, 1);
    for (i = 0; i < STRESS_SETS; i += 64)
      memset (&m.dirty[stress_offsets[i] / 4096], 1,
              (stress_offsets[i] + 4096 * 200 - 1) / 4096
              - stress_offsets[i] / 4096 + 1);
    check (stress_bitmap, &m);
    bitmap_free (stress_bitmap);
    free (m.dirty);
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_model),
    cmocka_unit_test (test_summarize),
    cmocka_unit_test (test_merge),
    cmocka_unit_test (test_copy),
    cmocka_unit_test (test_largest),
    cmocka_unit_test (test_memory),
    cmocka_unit_test (test_stress),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
