/* SPDX-License-Identifier: BSD-3-Clause */
/* What intents cost, and how many are taken ahead, over a map that is durable
 * by definition.
 */
#include "config.h"

#include <string.h>

#include "intent.h"
#include "unit.h"

#define REGION UINT64_C (65536)
#define NR_REGIONS UINT64_C (16384)
#define WORTH 8                 /* as AHEAD_WORTH in intent.c */

static unsigned nr_map_syncs, nr_array_syncs;
static uint64_t nr_bytes;

static int
sync_map (void *opaque, size_t off, size_t len)
{
  nr_map_syncs++;
  nr_bytes += len;
  return 0;
}

static int
sync_arrays (void *opaque)
{
  nr_array_syncs++;
  return 0;
}

static void
failed (void *opaque, const char *what, int error)
{
  fail_msg ("%s", what);
}

struct fixture {
  _Atomic uint8_t map[65536];
  struct intent *in;
  uint64_t random;
};

static struct fixture f;

static void
start (uint64_t nr_regions, uint64_t max_active)
{
  static const struct intent_ops ops = {
    .sync_map = sync_map, .sync_arrays = sync_arrays, .failed = failed,
  };

  memset (&f, 0, sizeof f);
  f.random = 1;
  nr_map_syncs = nr_array_syncs = 0;
  nr_bytes = 0;
  assert_true (intent_map_size (nr_regions * REGION, REGION)
               <= sizeof f.map);
  assert_int_equal (intent_new (nr_regions * REGION, REGION, max_active,
                                f.map, sizeof f.map, &ops, NULL, &f.in), 0);
}

static int
teardown (void **state)
{
  intent_free (f.in);
  return 0;
}

static void
mark (uint64_t region)
{
  intent_mark (f.in, region * REGION, 512);
}

static uint64_t
any_region (uint64_t nr)
{
  return unit_random (&f.random) % nr;
}

/* The first write has no more dirty after a power cut than its region. */
static void
test_first_alone (void **state)
{
  start (NR_REGIONS, NR_REGIONS);
  mark (7);
  assert_int_equal (intent_nr_active (f.in), 1);
  mark (7);
  assert_int_equal (nr_map_syncs, 1);
}

/* Random writes all over a cold disk: few commits, of a page each. */
static void
test_cold (void **state)
{
  unsigned i;

  start (NR_REGIONS, NR_REGIONS);
  for (i = 0; i < 100000; i++)
    mark (any_region (NR_REGIONS));
  assert_in_range (nr_map_syncs, 1, NR_REGIONS / 8);
  assert_int_equal (nr_bytes, nr_map_syncs * UINT64_C (4096));
  assert_int_equal (nr_array_syncs, 0);
}

static void
test_upwards (void **state)
{
  unsigned i;

  start (NR_REGIONS, NR_REGIONS);
  for (i = 0; i < NR_REGIONS; i++)
    mark (i);
  assert_in_range (nr_map_syncs, 1, 40);
  assert_int_equal (nr_array_syncs, 0);
}

/* Never many times more than have been asked for. */
static void
test_in_proportion (void **state)
{
  uint64_t nr = 0;
  static bool asked[NR_REGIONS];
  unsigned i;

  start (NR_REGIONS, NR_REGIONS);
  for (i = 0; i < 3000; i++) {
    const uint64_t r = any_region (NR_REGIONS);

    nr += !asked[r];
    asked[r] = true;
    mark (r);
    assert_in_range (intent_nr_active (f.in), nr, nr * (1 + WORTH));
  }
}

/* Those that nobody asks for go with the next pass, and few come back. */
static void
test_in_vain (void **state)
{
  uint64_t sum = 0;
  unsigned i;

  start (NR_REGIONS, NR_REGIONS);
  for (i = 0; i < 100; i++) {
    mark (i * 100 % NR_REGIONS);
    sum += intent_nr_active (f.in);
    assert_int_equal (intent_retire (f.in, false), 0);
    assert_int_equal (intent_retire (f.in, false), 0);
    assert_int_equal (intent_nr_active (f.in), 0);
  }
  assert_in_range (sum, 100, 300);
}

/* More regions than can be active, over many pages of the map: what is taken
 * ahead is of little use, and costs little.
 */
static void
test_scarce (void **state)
{
  const uint64_t nr_regions = 400000, max_active = 1024;
  unsigned i;

  start (nr_regions, max_active);
  for (i = 0; i < 20000; i++) {
    mark (any_region (nr_regions));
    assert_in_range (intent_nr_active (f.in), 1, max_active);
  }
  /* A quarter has to go each time; with nothing taken ahead that makes 78. */
  assert_in_range (nr_array_syncs, 1, 150);
}

/* What is asked for is marked as such: it stays over a pass. */
static void
test_used_stays (void **state)
{
  unsigned i;

  start (NR_REGIONS, NR_REGIONS);
  for (i = 0; i < 64; i++)
    mark (i);
  assert_true (intent_nr_active (f.in) > 64);
  assert_int_equal (intent_retire (f.in, false), 0);
  assert_int_equal (intent_nr_active (f.in), 64);
  assert_int_equal (intent_retire (f.in, false), 0);
  assert_int_equal (intent_nr_active (f.in), 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test_teardown (test_first_alone, teardown),
    cmocka_unit_test_teardown (test_cold, teardown),
    cmocka_unit_test_teardown (test_upwards, teardown),
    cmocka_unit_test_teardown (test_in_proportion, teardown),
    cmocka_unit_test_teardown (test_in_vain, teardown),
    cmocka_unit_test_teardown (test_scarce, teardown),
    cmocka_unit_test_teardown (test_used_stays, teardown),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
