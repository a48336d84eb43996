/* SPDX-License-Identifier: BSD-3-Clause */
/* dirtymap.c's rounding against a model that looks at every block. */
#include "config.h"

#include <string.h>

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

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_model),
    cmocka_unit_test (test_huge),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
