/* SPDX-License-Identifier: BSD-3-Clause */
/* dirtymap.c's rounding against a model that looks at every block. */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "dirtymap.h"
#include "range.h"
#include "unit.h"

#define MAX_SIZE 2000

struct model {
  uint64_t size;                /* in units */
  bool is_dirty[MAX_SIZE], is_zero[MAX_SIZE];
};

static void
random_model (struct model *m, uint64_t *rnd)
{
  uint64_t pos = 0, n;

  m->size = 1 + unit_random (rnd) % MAX_SIZE;
  while (pos < m->size) {
    bool dirty = unit_random (rnd) % 2, zero = unit_random (rnd) % 2;

    for (n = 1 + unit_random (rnd) % 60; n > 0 && pos < m->size; n--, pos++) {
      m->is_dirty[pos] = dirty;
      m->is_zero[pos] = zero;
    }
  }
}

/* What a cluster is: 0 left out, 1 data, 2 zero. */
static int
cluster_kind (const struct model *m, uint64_t off, uint64_t cluster,
              bool skip_zero)
{
  bool dirty = false, zero = true;
  uint64_t i;

  for (i = off; i < MIN (off + cluster, m->size); i++) {
    dirty |= m->is_dirty[i];
    zero &= m->is_zero[i];
  }
  return !dirty || (zero && skip_zero) ? 0 : zero ? 2 : 1;
}

static void
check_runs (const struct model *m, const struct dirty_runs *runs,
            uint64_t cluster, bool skip_zero)
{
  uint64_t off, i = 0;

  for (off = 0; off < m->size; off += cluster) {
    int kind = cluster_kind (m, off, cluster, skip_zero);

    while (i < runs->len && runs->ptr[i].off + runs->ptr[i].len <= off)
      i++;
    if (i == runs->len || runs->ptr[i].off > off)
      assert_int_equal (kind, 0);
    else
      assert_int_equal (kind, runs->ptr[i].is_zero ? 2 : 1);
  }
  for (i = 0; i < runs->len; i++) {
    const struct dirty_run *r = &runs->ptr[i];

    assert_int_equal (r->off % cluster, 0);
    assert_true (r->len > 0 && r->off + r->len <= m->size);
    assert_true (r->len % cluster == 0 || r->off + r->len == m->size);
    /* In order, and equal neighbours merged. */
    if (i > 0) {
      assert_true (r->off >= r[-1].off + r[-1].len);
      assert_true (r->off > r[-1].off + r[-1].len
                   || r->is_zero != r[-1].is_zero);
    }
  }
}

static void
test_model (void **state)
{
  static struct model m;
  uint64_t rnd = 1;
  int round;

  for (round = 0; round < 3000; round++) {
    struct dirty_rounder r = { 0 };
    struct dirty_runs runs = VECTOR_INIT;
    uint64_t pos = 0, n;

    random_model (&m, &rnd);
    r.cluster_size = UINT64_C (1) << unit_random (&rnd) % 8;
    r.skip_zero = unit_random (&rnd) % 2;
    while (pos < m.size) {
      uint64_t max = 1 + unit_random (&rnd) % 100;

      for (n = 1; n < max && pos + n < m.size; n++)
        if (m.is_dirty[pos+n] != m.is_dirty[pos]
            || m.is_zero[pos+n] != m.is_zero[pos])
          break;
      assert_int_equal (dirty_rounder_add (&r, pos, n, m.is_dirty[pos],
                                           m.is_zero[pos], &runs), 0);
      pos += n;
    }
    assert_int_equal (dirty_rounder_end (&r, m.size, &runs), 0);
    check_runs (&m, &runs, r.cluster_size, r.skip_zero);
    dirty_runs_reset (&runs);
  }
}

/* Work does not grow with the length of an extent. */
static void
test_huge (void **state)
{
  const uint64_t size = UINT64_C (1) << 60;
  struct dirty_rounder r = { .cluster_size = 65536 };
  struct dirty_runs runs = VECTOR_INIT;

  assert_int_equal (dirty_rounder_add (&r, 0, 100, false, true, &runs), 0);
  assert_int_equal (dirty_rounder_add (&r, 100, size - 200, true, false,
                                       &runs), 0);
  assert_int_equal (dirty_rounder_add (&r, size - 100, 100, false, false,
                                       &runs), 0);
  assert_int_equal (dirty_rounder_end (&r, size, &runs), 0);
  assert_int_equal (runs.len, 1);
  assert_int_equal (runs.ptr[0].off, 0);
  assert_int_equal (runs.ptr[0].len, size);
  assert_false (runs.ptr[0].is_zero);
  dirty_runs_reset (&runs);
}

/*---- A whole disk's map, from a server that answers as it likes ----*/

/* A disk whose units of 64 KiB are dirty and zero as a hash of their place
 * says; most of it alike, some parts dense.
 */
#define UNIT UINT64_C (65536)
#define NR_UNITS (UINT64_C (64) << 14)  /* 64 GiB */

static struct fake {
  enum { ALL, SHORT, TWO_THIRDS, LISTS_DIFFER, NOTHING } answer;
  bool is_dense;                /* as dense as can be, all over */
  bool is_clean;                /* likewise */
  bool is_wide;                 /* has extended headers */
  unsigned fail_at;             /* the call that fails; 0 = none */
  unsigned slow_at;             /* the call that takes its time; 0 = none */
  size_t slow_ranges, next_ranges;      /* of that one, and of the next */
  unsigned nr_calls;
  size_t nr_ranges, most_ranges;
  size_t most_extents;          /* that the lists of one call have room for */
} fake;

static uint32_t
fake_value (uint64_t unit, size_t list)
{
  /* A dense GiB in every 16, which ends with the disk. */
  bool is_dense = fake.is_dense || unit / 16384 % 16 == 15;
  uint32_t x = (uint32_t) (unit * UINT64_C (2654435761) >> 7) >> (list * 3);

  if (fake.is_clean)
    return 0;
  if (list == 0)
    return is_dense ? (x & 1) * (EXTENT_ZERO | EXTENT_HOLE) : 0;
  return is_dense ? unit & 1 : unit % 100003 == 7;
}

static uint64_t
fake_length (const struct blk_nbd_range *r, size_t list)
{
  switch (fake.answer) {
  case SHORT:
    return MIN (r->len, 3 * UNIT);
  case TWO_THIRDS:
    return MIN (r->len, round_up (r->len / 3 * 2, UNIT));
  case LISTS_DIFFER:
    return list ? r->len : MIN (r->len, round_up (r->len / 2, UNIT));
  case NOTHING:                 /* of one list of the third piece */
    return list == 1 && r->off > UINT64_C (7) << 30 ? 0 : r->len;
  default:
    return r->len;
  }
}

static int
fake_status (struct blk *blk, const struct blk_nbd_range *ranges, size_t nr,
             size_t nr_lists)
{
  const struct timespec slow = { .tv_sec = 1, .tv_nsec = 50000000 };
  size_t i, j, extents = 0;
  uint64_t off, end;

  fake.nr_ranges += nr;
  fake.most_ranges = MAX (fake.most_ranges, nr);
  if (fake.slow_at && fake.nr_calls == fake.slow_at)
    fake.next_ranges = nr;
  if (++fake.nr_calls == fake.fail_at)
    return -EIO;
  if (fake.nr_calls == fake.slow_at) {
    fake.slow_ranges = nr;
    nanosleep (&slow, NULL);
  }
  for (i = 0; i < nr; i++)
    for (j = 0; j < nr_lists; j++) {
      assert_true (range_is_within (ranges[i].off, ranges[i].len,
                                    blk_size (blk)));
      assert_int_equal (ranges[i].lists[j].len, 0);
      extents += j == 0 ? ranges[i].lists[j].max : 0;
      end = ranges[i].off + fake_length (&ranges[i], j);
      for (off = ranges[i].off; off < end; off += UNIT)
        if (extents_add (&ranges[i].lists[j], off, UNIT,
                         fake_value (off / UNIT, j)) > 0)
          break;
    }
  fake.most_extents = MAX (fake.most_extents, extents);
  return 0;
}

static void
check_unit (const struct dirty_runs *runs, size_t *i, uint64_t unit,
            bool is_incremental)
{
  const uint64_t off = unit * UNIT;
  const bool is_zero = fake_value (unit, 0) & EXTENT_ZERO;
  bool is_in;

  while (*i < runs->len && runs->ptr[*i].off + runs->ptr[*i].len <= off)
    ++*i;
  is_in = *i < runs->len && runs->ptr[*i].off <= off;
  if (is_in != (!is_incremental || fake_value (unit, 1))
      || (is_in && runs->ptr[*i].is_zero != is_zero))
    fail_msg ("unit %ju", (uintmax_t) unit);
}

/* Read all of it; the result is what the disk is. */
static void
check_map (uint64_t start, bool is_incremental)
{
  struct blk blk = { .name = (char *) "fake", .size = NR_UNITS * UNIT };
  const struct dirty_map_options o = {
    .blk = &blk, .is_incremental = is_incremental, .cluster_size = UNIT,
    .start = start, .status = fake_status,
    .max_status = fake.is_wide ? RANGE_MAX_SIZE : UINT32_MAX,
  };
  struct dirty_runs runs = VECTOR_INIT;
  struct error err = ERROR_INIT;
  struct dirty_map *m;
  uint64_t unit;
  size_t i = 0;
  int r;

  assert_int_equal (dirty_map_new (&o, &m), 0);
  while ((r = dirty_map_next (m, &runs, &err)) > 0)
    ;
  if (fake.fail_at) {
    assert_int_equal (r, -EIO);
    assert_non_null (strstr (err.msg, "fake: block status at offset"));
  }
  else if (fake.answer == NOTHING) {
    assert_int_equal (r, -EPROTO);
    assert_non_null (strstr (err.msg, "does not cover offset"));
  }
  else {
    assert_int_equal (r, 0);
    assert_true (runs.len == 0 || runs.ptr[0].off >= start);
    for (unit = start / UNIT; unit < NR_UNITS; unit++)
      check_unit (&runs, &i, unit, is_incremental);
  }
  assert_true (fake.most_extents <= 32768);
  dirty_map_free (m);
  dirty_runs_reset (&runs);
}

static void
test_map (void **state)
{
  fake = (struct fake) { .answer = ALL };
  check_map (0, true);
  /* Several at once, and little of it twice. */
  assert_true (fake.most_ranges >= 4);
  assert_true (fake.nr_ranges < 3 * NR_UNITS / 65536);
  fake = (struct fake) { .answer = ALL };
  check_map (5 * UNIT, false);
  fake = (struct fake) { .answer = TWO_THIRDS };
  check_map (0, true);
  fake = (struct fake) { .answer = LISTS_DIFFER };
  check_map (NR_UNITS / 3 * UNIT, true);
  fake = (struct fake) { .answer = ALL, .is_dense = true };
  check_map (0, true);
  assert_true (fake.nr_ranges < 5 * NR_UNITS / 65536);
}

/* With extended headers: one request at a time, and few where little is to be
 * said.
 */
static void
test_map_wide (void **state)
{
  fake = (struct fake) { .answer = ALL, .is_wide = true, .is_clean = true };
  check_map (0, true);
  assert_int_equal (fake.nr_ranges, 2);
  fake = (struct fake) { .answer = ALL, .is_wide = true };
  check_map (0, true);
  assert_int_equal (fake.most_ranges, 1);
  assert_true (fake.nr_ranges < NR_UNITS / 65536);
  fake = (struct fake) { .answer = ALL, .is_wide = true };
  check_map (5 * UNIT, false);
  fake = (struct fake) { .answer = TWO_THIRDS, .is_wide = true };
  check_map (0, true);
  fake = (struct fake) { .answer = LISTS_DIFFER, .is_wide = true };
  check_map (NR_UNITS / 3 * UNIT, true);
  fake = (struct fake) {
    .answer = ALL, .is_dense = true, .is_wide = true,
  };
  check_map (0, true);
  assert_true (fake.nr_ranges < 5 * NR_UNITS / 65536);
}

/* A server that answers for little at a time is not asked for everything again
 * and again.
 */
static void
test_map_short (void **state)
{
  fake = (struct fake) { .answer = SHORT };
  check_map ((NR_UNITS - 100000) * UNIT, true);
  assert_true (fake.nr_calls >= 10000);
  assert_true (fake.nr_ranges <= fake.nr_calls + 3);
}

/* One that takes more than a second is asked for less at once. */
static void
test_map_slow (void **state)
{
  fake = (struct fake) { .answer = ALL, .is_clean = true, .slow_at = 1 };
  check_map (0, true);
  assert_true (fake.slow_ranges >= 4);
  assert_true (fake.next_ranges > 0);
  assert_true (fake.next_ranges <= fake.slow_ranges / 2);
}

static void
test_map_fails (void **state)
{
  unsigned n;

  for (n = 1; n < 4; n++) {
    fake = (struct fake) { .answer = ALL, .fail_at = n };
    check_map (0, true);
  }
  fake = (struct fake) { .answer = NOTHING };
  check_map (0, true);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_model),
    cmocka_unit_test (test_huge),
    cmocka_unit_test (test_map),
    cmocka_unit_test (test_map_wide),
    cmocka_unit_test (test_map_short),
    cmocka_unit_test (test_map_slow),
    cmocka_unit_test (test_map_fails),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
