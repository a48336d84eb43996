/* SPDX-License-Identifier: BSD-3-Clause */
/* After a power cut no more regions count as dirty than may be active at once,
 * also if the map of intents is spread over many pages, and after many
 * crashes.  And what else an intent makes durable.
 */
#include "config.h"

#include <string.h>

#include "intent.h"
#include "sim-io.h"
#include "store.h"
#include "unit/unit.h"

#define REGION UINT64_C (4096)
#define NR_REGIONS UINT64_C (200000)
#define MAX_ACTIVE 32
#define ROUNDS 40
#define NR_CUTS 20

struct fixture {
  struct sim *sim;
  struct sim_io io;
  struct store *store;
  uint64_t random;
};

static struct store *
open_store (struct sim_io *io)
{
  const struct store_options options = {
    .path = "store", .io = &io->io, .disk_size = NR_REGIONS * REGION,
    .region_size = REGION, .max_active = MAX_ACTIVE,
  };
  struct error err = ERROR_INIT;
  struct store *s;

  if (store_open (&options, &s, &err) < 0)
    fail_msg ("%s", err.msg);
  return s;
}

static int
setup (void **state)
{
  struct fixture *f = calloc (1, sizeof *f);

  assert_non_null (f);
  f->sim = sim_new ();
  f->random = 1;
  sim_io_init (&f->io, f->sim, 1);
  f->store = open_store (&f->io);
  *state = f;
  return 0;
}

static int
teardown (void **state)
{
  struct fixture *f = *state;

  store_abandon (f->store);
  sim_free (f->sim);
  free (f);
  return 0;
}

static void
mark (struct fixture *f, uint64_t nr)
{
  uint64_t i;

  for (i = 0; i < nr; i++)
    intent_mark (store_intent (f->store),
                 sim_random (&f->random) % NR_REGIONS * REGION, REGION);
}

static void
check_cut (struct fixture *f)
{
  struct sim *cut = sim_cut (f->sim, sim_random (&f->random) % SIM_NR_CHOICES,
                             &f->random);
  struct store_info before, after;
  struct store *s;
  struct sim_io io;

  store_get_info (f->store, &before);
  assert_true (before.nr_active <= before.max_active);
  sim_io_init (&io, cut, 2);
  s = open_store (&io);
  store_get_info (s, &after);
  assert_true (after.was_unclean);
  assert_true (after.recovered_regions <= before.max_active);
  assert_true (after.recovered_regions * REGION <= MAX_ACTIVE * REGION);
  store_abandon (s);
  sim_free (cut);
}

/* Regions all over the map, retired one way or the other. */
static void
test_many_pages (void **state)
{
  struct fixture *f = *state;
  unsigned i;

  for (i = 0; i < ROUNDS; i++) {
    mark (f, 1 + sim_random (&f->random) % (2 * MAX_ACTIVE));
    if (i % 3 == 0)
      assert_int_equal (store_retire (f->store, i % 2), 0);
    check_cut (f);
  }
  for (i = 0; i < NR_CUTS; i++)
    check_cut (f);
}

/* What was active when a process died is active in the next one. */
static void
test_many_kills (void **state)
{
  struct fixture *f = *state;
  struct store_info info;
  struct sim *left;
  unsigned i;

  for (i = 0; i < 20; i++) {
    mark (f, 2 * MAX_ACTIVE);
    left = sim_copy (f->sim);
    store_abandon (f->store);
    sim_free (f->sim);
    f->sim = left;
    sim_io_init (&f->io, f->sim, 1);
    f->store = open_store (&f->io);
    store_get_info (f->store, &info);
    assert_true (info.nr_active > 0);
    assert_int_equal (info.max_active, MAX_ACTIVE);
    check_cut (f);
  }
}

/* An intent that a killed process had stored but not made durable is durable
 * before the next one relies on it.
 */
static void
test_kill_within_commit (void **state)
{
  struct fixture *f = *state;
  struct store_info info;
  struct sim *left, *cut;
  struct store *s;
  struct sim_io io;

  mark (f, 1);
  store_get_info (f->store, &info);
  left = sim_copy (f->sim);
  store_abandon (f->store);
  sim_free (f->sim);
  f->sim = left;
  ((uint8_t *) sim_cache (sim_find (left, "store")))[info.intent_off + 100] = 1;
  sim_io_init (&f->io, f->sim, 1);
  f->store = open_store (&f->io);
  intent_mark (store_intent (f->store), 800 * REGION, REGION);
  cut = sim_cut (f->sim, SIM_NONE, &f->random);
  sim_io_init (&io, cut, 2);
  s = open_store (&io);
  store_get_info (s, &info);
  assert_int_equal (info.recovered_regions, 2);
  store_abandon (s);
  sim_free (cut);
}

/* The latest time of the live page. */
static uint64_t
time_of_change (struct sim *sim)
{
  const char *live = (char *) sim_cache (sim_find (sim, "store")) + 262144;
  uint64_t last = 0, t;

  for (unsigned i = 1; i <= 32; i++) {
    memcpy (&t, live + i * 64 + 8, sizeof t);
    last = t > last ? t : last;
  }
  return last;
}

/* The first change after a rest is not made without its time being on disk, so
 * that the disk's own time is believed after a power cut.
 */
static void
test_time_of_change (void **state)
{
  struct fixture *f = *state;
  struct sim *cut;

  store_change_begin (f->store);
  mark (f, 1);
  assert_true (time_of_change (f->sim) > 0);
  cut = sim_cut (f->sim, SIM_NONE, &f->random);
  assert_int_equal (time_of_change (cut), time_of_change (f->sim));
  sim_free (cut);
  store_change_end (f->store);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown (test_many_pages, setup, teardown),
    cmocka_unit_test_setup_teardown (test_many_kills, setup, teardown),
    cmocka_unit_test_setup_teardown (test_kill_within_commit, setup, teardown),
    cmocka_unit_test_setup_teardown (test_time_of_change, setup, teardown),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
