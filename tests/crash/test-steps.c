/* SPDX-License-Identifier: BSD-3-Clause */
/* The power is cut, or the process killed, at every step of a resize and of a
 * clean end (I6), in every way that sim.h knows, and again while the store
 * recovers from that; or one of the store's operations fails.  Whatever is left
 * opens: the disk has one of the two sizes, and its bitmaps are right for it
 * (model.h), and one slot of the store's table is durable.  Only where an
 * operation has failed may they be INCONSISTENT, with a reason.
 *
 * The same commands in the same order lead up to each step: test N is about
 * step N alone, until there is no step N.
 */
#include "config.h"

#include <string.h>

#include "disk.h"
#include "log.h"
#include "model.h"
#include "session.h"
#include "sim-io.h"
#include "store-format.h"
#include "store.h"
#include "unit/unit.h"

#define STORE "/store"
#define REGION UINT64_C (4096)
#define MAX_ACTIVE 8
#define SECTOR SIM_SECTOR
#define OLD_SIZE ((UINT64_C (1) << 20) + 3 * SECTOR)
#ifdef __SANITIZE_THREAD__
#define SEEDS 1
#define NESTED_STEPS 3
#else
#define SEEDS 2                 /* of each way, for those with a choice */
#define NESTED_STEPS 1          /* of so many steps one is nested */
#endif
#define MAX_CUTS (SIM_NR_CHOICES * SEEDS + 1)

/* Sizes in bytes. */
struct change {
  uint64_t from, to;            /* the same: the disk is closed */
  bool is_nested;               /* the power fails again */
};

static const struct change changes[] = {
  { OLD_SIZE, 512 << 10 },              /* whole regions and granules go */
  { OLD_SIZE, (512 << 10) + SECTOR, true },     /* a region stays in part */
  { OLD_SIZE, OLD_SIZE - SECTOR },      /* no region goes, one granule does */
  { OLD_SIZE, SECTOR },                 /* all but one sector */
  { (64 << 10) + SECTOR, 64 << 10 },    /* a word of bits goes */
  { 640 << 10, OLD_SIZE, true },        /* it grows */
  { OLD_SIZE, OLD_SIZE, true },
};
#define NR_CHANGES (sizeof changes / sizeof changes[0])

struct cut {
  struct sim *sim;
  bool is_kill;
};

struct world {
  struct sim *sim;
  struct sim_io io;
  struct model *model;
  struct disk *disk;
  uint64_t step, wanted;        /* of the change, or a recovery from it */
  unsigned seeds;
  struct cut cuts[MAX_CUTS];    /* of the step that is wanted */
  size_t nr_cuts;
};

static uint64_t nr_machines;

static struct disk *
open_disk (struct sim_io *io, uint64_t size)
{
  const struct disk_options options = {
    .name = "d", .store = STORE, .store_io = &io->io,
    .store_region_size = REGION, .store_max_active = MAX_ACTIVE,
  };
  struct disk *disk;
  struct error err;

  if (disk_new (sim_disk_open (io, size), &options, &disk, &err) < 0)
    fail_msg ("the disk cannot be opened: %s", err.msg);
  return disk;
}

/*---- What leads up to a change ----*/

static void
add_bitmap (struct world *w, const char *name, uint64_t granularity,
            bool is_disabled)
{
  struct error err;

  model_add (w->model, name, granularity, is_disabled);
  assert_int_equal (
    disk_bitmap_add (w->disk, name, granularity, DIRTY_IS_PERSISTENT
                     | (is_disabled ? DIRTY_IS_DISABLED : 0), &err), 0);
  model_end (w->model, true);
}

static void
write_sectors (struct world *w, uint64_t off, uint64_t nr)
{
  const uint64_t size = model_size (w->model);
  const uint64_t len = MIN (nr * SECTOR, size - MIN (off, size));
  static char buf[64 * SECTOR];

  if (len == 0)
    return;
  sim_disk_name_writes (model_write (w->model, off, len));
  assert_int_equal (disk_pwrite (w->disk, buf, len, off, 0), 0);
}

/* The bitmap counts from a point. */
static void
back_up (struct world *w, const char *name)
{
  const struct session_disk_request disk_request = {
    .disk = w->disk, .bitmap = name, .mode = SESSION_AUTO,
  };
  const struct session_request request = {
    .disks = &disk_request, .nr_disks = 1,
  };
  struct session_manager *sessions;
  struct session *s;
  struct error err;

  assert_int_equal (session_manager_new (NULL, NULL, &sessions), 0);
  model_freeze (w->model, name, false);
  assert_int_equal (session_begin (sessions, &request, &s, &err), 0);
  model_end (w->model, true);
  write_sectors (w, 0, 1);
  model_drop (w->model, name, session_id (s));
  assert_int_equal (session_end (sessions, session_id (s), true, &err), 0);
  model_end (w->model, true);
  session_unref (s);
  session_manager_free (sessions);
}

/* At the beginning, around the size to come, and at the end. */
static void
write_around (struct world *w, const struct change *c, uint64_t shift)
{
  const uint64_t edge = MIN (c->from, c->to);

  write_sectors (w, shift * SECTOR, 1);
  write_sectors (w, edge - SECTOR, 2);
  write_sectors (w, edge + shift * REGION, 9);
  write_sectors (w, c->from - SECTOR * (1 + shift), 1);
}

static void
prepare (struct world *w, const struct change *c)
{
  memset (w, 0, sizeof *w);
  w->sim = sim_new ();
  sim_io_init (&w->io, w->sim, 1);
  w->model = model_new (c->from);
  w->disk = open_disk (&w->io, c->from);
  add_bitmap (w, "fine", 512, false);
  add_bitmap (w, "coarse", 65536, false);
  add_bitmap (w, "rests", 4096, true);
  write_around (w, c, 0);
  back_up (w, "fine");
  /* Bits that are on disk, and bits that only an intent speaks for. */
  write_around (w, c, 1);
  assert_int_equal (disk_flush (w->disk), 0);
  assert_int_equal (store_retire (disk_store (w->disk), true), 0);
  write_around (w, c, 2);
}

static void
leave (struct world *w)
{
  sim_on_step (w->sim, NULL, NULL);
  if (w->disk)
    disk_abandon (w->disk);
  sim_free (w->sim);
  model_free (w->model);
}

/* The change itself. */
static int
begin_change (struct world *w, const struct change *c)
{
  struct disk *disk = w->disk;
  struct error err;

  if (c->from != c->to) {
    model_resize (w->model, c->to);
    return disk_resize (disk, c->to, &err);
  }
  w->disk = NULL;
  return disk_close (disk);
}

static void
end_change (struct world *w, const struct change *c)
{
  if (c->from != c->to)
    model_end (w->model, true);
  else
    w->disk = open_disk (&w->io, 0);
}

/*---- Machines ----*/

static void
add_cut (struct world *w, struct sim *sim, bool is_kill)
{
  assert_true (w->nr_cuts < MAX_CUTS);
  w->cuts[w->nr_cuts++] = (struct cut) { sim, is_kill };
}

/* All that may be left if it ends here. */
static void
on_step (void *opaque)
{
  struct world *w = opaque;
  uint64_t random = w->wanted;
  unsigned choice, i;

  if (++w->step != w->wanted)
    return;
  for (choice = 0; choice < SIM_NR_CHOICES; choice++)
    for (i = 0; i < (choice <= SIM_DATA_ONLY ? 1 : w->seeds); i++)
      add_cut (w, sim_cut_locked (w->sim, choice, &random), false);
  add_cut (w, sim_copy_locked (w->sim), true);
}

static void
check_disk (struct world *w, struct sim *sim, struct disk *disk, bool is_kill,
            bool has_fault)
{
  const uint64_t nr = disk_size (disk) / SECTOR;
  const struct model_limits limits = {
    .region_size = REGION,
    .max_regions = is_kill ? 0 : MAX_ACTIVE,
    .may_be_inconsistent = has_fault,
  };
  uint32_t *sectors = calloc (nr, sizeof *sectors);
  char message[256] = "";
  uint64_t extra;

  assert_non_null (sectors);
  sim_disk_read (sim, sectors, nr);
  nr_machines++;
  if (!model_check (w->model, disk, sectors, &limits, message, &extra))
    fail_msg ("step %d, %s: %s", (int) w->wanted, is_kill ? "killed"
              : "power cut", message);
  free (sectors);
}

/* What the cut leaves of a slot is the same in any case. */
static bool
is_slot_durable (const struct world *w, uint64_t off)
{
  const char *all = sim_cache (sim_find (w->cuts[SIM_ALL].sim, STORE));
  const char *none = sim_cache (sim_find (w->cuts[SIM_NONE].sim, STORE));

  return memcmp (all + off, none + off, STORE_SLOT_SIZE) == 0;
}

static void
check_slots (const struct world *w)
{
  assert_true (w->nr_cuts == 0 || is_slot_durable (w, 0)
               || is_slot_durable (w, STORE_SLOT_SIZE));
}

/* The power fails again, at step n of recovering from a cut; false: there is no
 * such step.
 */
static bool
look_again (struct world *w, struct sim *cut, uint64_t n, uint8_t boot)
{
  struct world again = {
    .sim = sim_copy (cut), .wanted = n, .seeds = 1
  };
  struct disk *disk;
  struct sim_io io;
  size_t i;

  sim_io_init (&io, again.sim, boot);
  sim_on_step (again.sim, on_step, &again);
  disk_abandon (open_disk (&io, 0));
  sim_on_step (again.sim, NULL, NULL);
  sim_free (again.sim);
  check_slots (&again);
  for (i = 0; i < again.nr_cuts; i++) {
    sim_io_init (&io, again.cuts[i].sim, boot + !again.cuts[i].is_kill);
    disk = open_disk (&io, 0);
    check_disk (w, again.cuts[i].sim, disk, false, false);
    disk_abandon (disk);
    sim_free (again.cuts[i].sim);
  }
  return again.nr_cuts > 0;
}

/* It opens, and again after a clean end. */
static void
look_at (struct world *w, const struct cut *cut, bool is_nested)
{
  const uint8_t boot = cut->is_kill ? 1 : 2;
  struct disk *disk;
  struct sim_io io;
  uint64_t n = 1;

  while (is_nested && look_again (w, cut->sim, n, boot))
    n++;
  sim_io_init (&io, cut->sim, boot);
  disk = open_disk (&io, 0);
  check_disk (w, cut->sim, disk, cut->is_kill, false);
  assert_int_equal (disk_close (disk), 0);
  disk = open_disk (&io, 0);
  check_disk (w, cut->sim, disk, cut->is_kill, false);
  disk_abandon (disk);
}

/*---- Tests ----*/

/* False: it has fewer steps. */
static bool
cut_at (const struct change *c, uint64_t n)
{
  struct world w;
  size_t i;

  prepare (&w, c);
  w.wanted = n;
  w.seeds = SEEDS;
  sim_on_step (w.sim, on_step, &w);
  assert_int_equal (begin_change (&w, c), 0);
  sim_on_step (w.sim, NULL, NULL);
  check_slots (&w);
  for (i = 0; i < w.nr_cuts; i++) {
    look_at (&w, &w.cuts[i], c->is_nested && w.cuts[i].is_kill
             && n % NESTED_STEPS == 0);
    sim_free (w.cuts[i].sim);
  }
  end_change (&w, c);
  check_disk (&w, w.sim, w.disk, true, false);
  leave (&w);
  return w.nr_cuts > 0;
}

static void
test_cut_at_every_step (void **state)
{
  uint64_t n;
  size_t i;

  for (i = 0; i < NR_CHANGES; i++) {
    for (n = 1; cut_at (&changes[i], n); n++)
      ;
    assert_true (n > 5);
    print_message ("%d KiB to %d KiB: %d steps\n",
                   (int) (changes[i].from >> 10),
                   (int) (changes[i].to >> 10), (int) n - 1);
  }
  print_message ("%d machines are right\n", (int) nr_machines);
}

static void
check_reasons (struct disk *disk)
{
  struct dirty_info *infos;
  size_t nr, i;

  assert_int_equal (dirty_list (disk_dirty (disk), &infos, &nr), 0);
  for (i = 0; i < nr; i++)
    assert_true (infos[i].state != DIRTY_INCONSISTENT
                 || infos[i].reason[0] != '\0');
  dirty_infos_free (infos, nr);
}

/* What a process leaves that was killed, or whose machine was, after operation
 * n of the store has failed during the change.  False: it has fewer.
 */
static bool
fail_at (const struct change *c, uint64_t n, bool is_kill)
{
  struct world w;
  struct sim *left;
  struct disk *disk;
  struct sim_io io;
  uint64_t random = n;
  bool has_fired;
  int r;

  prepare (&w, c);
  w.io.fail_from = w.io.fail_to = w.io.nr_calls + n;
  r = begin_change (&w, c);
  has_fired = w.io.nr_calls >= w.io.fail_from;
  assert_true (has_fired || r == 0);
  left = is_kill ? sim_copy (w.sim) : sim_cut (w.sim, SIM_RANDOM, &random);
  sim_io_init (&io, left, is_kill ? 1 : 2);
  disk = open_disk (&io, 0);
  check_disk (&w, left, disk, is_kill, has_fired);
  check_reasons (disk);
  disk_abandon (disk);
  sim_free (left);
  leave (&w);
  return has_fired;
}

static void
test_every_operation_fails (void **state)
{
  uint64_t n;
  size_t i;
  int kill;

  for (i = 0; i < NR_CHANGES; i++)
    for (kill = 0; kill < 2; kill++) {
      for (n = 1; fail_at (&changes[i], n, kill); n++)
        ;
      assert_true (n > 5);
    }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_cut_at_every_step),
    cmocka_unit_test (test_every_operation_fails),
  };

  alarm (300);                  /* it is mostly computing */
  log_set_handler (unit_ignore_log);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
