/* SPDX-License-Identifier: BSD-3-Clause */
/* The simulated machine: what a power cut may leave behind, and what it may
 * not.
 */
#include "config.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "sim.h"
#include "unit/unit.h"

#define CELL 512
#define NR_CELLS 8
#define SIZE (NR_CELLS * CELL)
#define NR_CUTS 400

struct fixture {
  struct sim *sim;
  struct sim_file *data, *other;
  uint64_t random;
};

static int
setup (void **state)
{
  struct fixture *f = calloc (1, sizeof *f);

  assert_non_null (f);
  f->sim = sim_new ();
  f->data = sim_create (f->sim, "data", true, 8, 4096, 4096);
  f->other = sim_create (f->sim, "other", false, CELL, SIZE, 2 * SIZE);
  f->random = 1;
  *state = f;
  return 0;
}

static int
teardown (void **state)
{
  struct fixture *f = *state;

  sim_free (f->sim);
  free (f);
  return 0;
}

/* Fill cells of a file with one byte. */
static void
fill (struct sim_file *file, uint64_t first, uint64_t nr, int byte)
{
  static unsigned char buf[SIZE];

  memset (buf, byte, nr * CELL);
  assert_int_equal (sim_write (file, buf, nr * CELL, first * CELL), 0);
}

/* What a cut leaves of other's cells: the byte of each, -1 if torn. */
static void
cut (struct fixture *f, enum sim_choice choice, int *ret)
{
  struct sim *machine = sim_cut (f->sim, choice, &f->random);
  struct sim_file *file = sim_find (machine, "other");
  static unsigned char buf[SIZE];
  int i, j;

  assert_non_null (file);
  assert_int_equal (sim_read (file, buf, SIZE, 0), 0);
  for (i = 0; i < NR_CELLS; i++) {
    ret[i] = buf[i * CELL];
    for (j = 1; j < CELL; j++)
      if (buf[i * CELL + j] != buf[i * CELL])
        ret[i] = -1;
  }
  sim_free (machine);
}

/* Which bytes cell i can have, by the choice, as a set of bits. */
static unsigned
possible (struct fixture *f, enum sim_choice choice, int i)
{
  unsigned set = 0;
  int n, cells[NR_CELLS];

  for (n = 0; n < NR_CUTS; n++) {
    cut (f, choice, cells);
    set |= cells[i] < 0 ? 1u << 31 : 1u << cells[i];
  }
  return set;
}

static void
test_unsynced_may_be_lost (void **state)
{
  struct fixture *f = *state;

  fill (f->other, 3, 2, 1);
  fill (f->other, 4, 2, 2);
  assert_int_equal (possible (f, SIM_NONE, 4), 1u << 0);
  assert_int_equal (possible (f, SIM_ALL, 4), 1u << 2);
  assert_int_equal (possible (f, SIM_ALL, 3), 1u << 1);
  assert_int_equal (possible (f, SIM_RANDOM, 4), 1u << 0 | 1u << 1 | 1u << 2);
  assert_int_equal (possible (f, SIM_RANDOM, 3), 1u << 0 | 1u << 1);
  assert_int_equal (possible (f, SIM_RANDOM, 2), 1u << 0);
  assert_int_equal (possible (f, SIM_WRITES, 4), 1u << 0 | 1u << 1 | 1u << 2);
  assert_int_equal (possible (f, SIM_PREFIX, 4), 1u << 0 | 1u << 1 | 1u << 2);
  assert_int_equal (possible (f, SIM_TORN, 3), 1u << 31 | 1u << 0 | 1u << 1);
  assert_int_equal (possible (f, SIM_DATA_ONLY, 4), 1u << 0);
  assert_int_equal (possible (f, SIM_OTHERS_ONLY, 4), 1u << 2);
}

/* Writes are torn at cells, and reordered. */
static void
test_reordered (void **state)
{
  struct fixture *f = *state;
  int n, cells[NR_CELLS], torn = 0, swapped = 0;

  fill (f->other, 0, 2, 1);
  fill (f->other, 2, 1, 2);
  for (n = 0; n < NR_CUTS; n++) {
    cut (f, SIM_RANDOM, cells);
    torn += cells[0] != cells[1];
    cut (f, SIM_WRITES, cells);
    assert_int_equal (cells[0], cells[1]);
    swapped += cells[2] == 2 && cells[0] == 0;
    cut (f, SIM_PREFIX, cells);
    assert_false (cells[2] == 2 && cells[0] == 0);
  }
  assert_true (torn > 0);
  assert_true (swapped > 0);
}

static void
test_synced_is_certain (void **state)
{
  struct fixture *f = *state;
  enum sim_choice choice;

  fill (f->other, 0, NR_CELLS, 1);
  sim_sync (f->other, 0, 0);
  assert_int_equal (sim_nr_unsynced (f->sim), 0);
  for (choice = 0; choice < SIM_NR_CHOICES; choice++)
    assert_int_equal (possible (f, choice, 5), 1u << 1);
  /* Of what comes after, only that. */
  fill (f->other, 5, 1, 2);
  assert_int_equal (possible (f, SIM_RANDOM, 5), 1u << 1 | 1u << 2);
  assert_int_equal (possible (f, SIM_RANDOM, 6), 1u << 1);
  /* And of a part only that part. */
  fill (f->other, 6, 1, 3);
  sim_sync (f->other, 6 * CELL, CELL);
  assert_int_equal (possible (f, SIM_RANDOM, 6), 1u << 3);
  assert_int_equal (possible (f, SIM_RANDOM, 5), 1u << 1 | 1u << 2);
}

static void
test_failed_sync (void **state)
{
  struct fixture *f = *state;

  fill (f->other, 0, 2, 1);
  sim_sync_fails (f->other, 0, 0);
  assert_int_equal (possible (f, SIM_RANDOM, 0), 1u << 0 | 1u << 1);
  /* The next sync succeeds, but the pages were clean by then. */
  sim_sync (f->other, 0, 0);
  assert_int_equal (possible (f, SIM_RANDOM, 0), 1u << 0 | 1u << 1);
  /* What is written again is synced. */
  fill (f->other, 0, 1, 2);
  sim_sync (f->other, 0, 0);
  assert_int_equal (possible (f, SIM_RANDOM, 0), 1u << 2);
  assert_int_equal (possible (f, SIM_RANDOM, 1), 1u << 0 | 1u << 1);
}

/* What is stored into a mapping may reach the disk at any time. */
static void
test_mapping (void **state)
{
  struct fixture *f = *state;
  unsigned char *cache = sim_cache (f->other);

  sim_mapped (f->other, 0, 4096, true);
  memset (cache + CELL, 1, CELL);
  sim_step (f->sim);
  memset (cache + CELL, 2, CELL);
  assert_int_equal (possible (f, SIM_RANDOM, 1), 1u << 0 | 1u << 1 | 1u << 2);
  memset (cache + CELL, 3, CELL);
  sim_sync (f->other, 0, 4096);
  assert_int_equal (possible (f, SIM_RANDOM, 1), 1u << 3);
  /* A write that follows is not older than the stores before it. */
  memset (cache + CELL, 4, CELL);
  fill (f->other, 5, 1, 9);
  assert_int_equal (possible (f, SIM_RANDOM, 1), 1u << 3 | 1u << 4);
}

static void
test_data_only (void **state)
{
  struct fixture *f = *state;
  uint64_t word = 7, got;
  struct sim *machine;

  assert_int_equal (sim_write (f->data, &word, 8, 16), 0);
  fill (f->other, 1, 1, 1);
  machine = sim_cut (f->sim, SIM_DATA_ONLY, &f->random);
  sim_read (sim_find (machine, "data"), &got, 8, 16);
  assert_int_equal (got, 7);
  sim_free (machine);
  machine = sim_cut (f->sim, SIM_OTHERS_ONLY, &f->random);
  sim_read (sim_find (machine, "data"), &got, 8, 16);
  assert_int_equal (got, 0);
  sim_free (machine);
}

/* A copy's caches are whole, and are not durable. */
static void
test_copy (void **state)
{
  struct fixture *f = *state;
  struct sim *old = f->sim;
  unsigned char byte;

  sim_mapped (f->other, 0, 4096, true);
  fill (f->other, 0, 1, 1);
  fill (f->other, 0, 1, 2);
  memset ((char *) sim_cache (f->other) + CELL, 3, CELL);
  f->sim = sim_copy (old);
  sim_free (old);
  f->other = sim_find (f->sim, "other");
  assert_int_equal (sim_read (f->other, &byte, 1, CELL), 0);
  assert_int_equal (byte, 3);
  assert_int_equal (possible (f, SIM_RANDOM, 0), 1u << 0 | 1u << 1 | 1u << 2);
  assert_int_equal (possible (f, SIM_RANDOM, 1), 1u << 0 | 1u << 3);
  memset ((char *) sim_cache (f->other) + CELL, 4, CELL);
  sim_sync (f->other, 0, 0);
  assert_int_equal (possible (f, SIM_RANDOM, 0), 1u << 2);
  assert_int_equal (possible (f, SIM_RANDOM, 1), 1u << 4);
}

static void
count_step (void *opaque)
{
  struct fixture *f = opaque;
  struct sim *machine = sim_copy_locked (f->sim);
  unsigned char byte;

  sim_read (sim_find (machine, "other"), &byte, 1, 0);
  assert_int_equal (byte, 5);
  sim_free (machine);
  f->random++;
}

static void
test_steps (void **state)
{
  struct fixture *f = *state;

  sim_on_step (f->sim, count_step, f);
  f->random = 0;
  fill (f->other, 0, 1, 5);
  sim_sync (f->other, 0, 0);
  sim_step (f->sim);
  assert_int_equal (f->random, 3);
  assert_int_equal (sim_nr_steps (f->sim), 3);
}

/* The size of a file and the first byte of its last cell after a cut. */
static void
check_end (struct fixture *f, enum sim_choice choice, uint64_t size,
           unsigned char expected)
{
  struct sim *cut = sim_cut (f->sim, choice, &f->random);
  struct sim_file *file = sim_find (cut, "other");
  unsigned char byte;

  assert_int_equal (sim_size (file), size);
  assert_int_equal (sim_read (file, &byte, 1, size - CELL), 0);
  assert_int_equal (byte, expected);
  sim_free (cut);
}

/* A size is durable with the next sync; before that both are possible. */
static void
test_sizes (void **state)
{
  struct fixture *f = *state;

  fill (f->other, NR_CELLS - 1, 1, 7);
  sim_sync (f->other, 0, 0);
  assert_int_equal (sim_resize (f->other, SIZE - CELL), 0);
  check_end (f, SIM_ALL, SIZE - CELL, 0);
  check_end (f, SIM_NONE, SIZE, 7);
  sim_sync (f->other, 0, CELL);
  check_end (f, SIM_NONE, SIZE - CELL, 0);
  assert_int_equal (sim_resize (f->other, SIZE), 0);
  fill (f->other, NR_CELLS - 1, 1, 8);
  check_end (f, SIM_ALL, SIZE, 8);
  check_end (f, SIM_NONE, SIZE - CELL, 0);
  sim_sync (f->other, 0, 0);
  check_end (f, SIM_NONE, SIZE, 8);
}

static void
test_names_and_sizes (void **state)
{
  struct fixture *f = *state;
  unsigned char byte;

  fill (f->other, NR_CELLS - 1, 1, 1);
  assert_int_equal (sim_resize (f->other, 4 * SIZE), -ENOSPC);
  assert_int_equal (sim_resize (f->other, SIZE - CELL), 0);
  assert_int_equal (sim_nr_unsynced (f->sim), 0);
  assert_int_equal (sim_resize (f->other, SIZE), 0);
  assert_int_equal (sim_read (f->other, &byte, 1, SIZE - 1), 0);
  assert_int_equal (byte, 0);
  assert_int_equal (sim_read (f->other, &byte, 1, SIZE), -EINVAL);
  assert_int_equal (sim_write (f->other, &byte, 1, SIZE), -EINVAL);
  sim_rename (f->sim, "other", "data");
  assert_null (sim_find (f->sim, "other"));
  assert_ptr_equal (sim_find (f->sim, "data"), f->other);
  sim_remove (f->sim, "data");
  assert_null (sim_find (f->sim, "data"));
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown (name, setup, teardown)
    T (test_unsynced_may_be_lost),
    T (test_reordered),
    T (test_synced_is_certain),
    T (test_failed_sync),
    T (test_mapping),
    T (test_data_only),
    T (test_copy),
    T (test_steps),
    T (test_sizes),
    T (test_names_and_sizes),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
