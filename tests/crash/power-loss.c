/* SPDX-License-Identifier: BSD-3-Clause */
/* Power loss, at every step and in every way (I6).
 *
 * A disk with bitmaps in a store stands on a simulated machine (sim.h) and
 * gets random writes and commands, and is resized.  At each write and sync of
 * disk and store, the power is cut: machines are made of what may be left then,
 * and on each the disk is opened by the real code, under another boot id.  Its
 * bitmaps must say dirty for all that the disk has kept of writes since the
 * base point, and beyond what was written in few regions only (model.h).  What
 * a killed process leaves, which is all, must come back exactly.  On some of
 * the machines that happens again while the store recovers, and once more.
 *
 * With "image" the disk is a qcow2 image.  It must never be corrupt, and the
 * bitmaps that it stores itself, if the store is gone, are inconsistent or
 * right.
 *
 * usage: power-loss STATES [right|lose|late|fail|image] [THREADS]
 * STATES: how many machines to look at.  lose, late: mutants, which must be
 * found.  fail: some of the store's operations fail; guests must not notice,
 * and a bitmap is right or says that it is not.  THREADS: writers at once; what
 * they do then is not quite the same from run to run.  SEED=N in the
 * environment repeats the choices.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "disk.h"
#include "log.h"
#include "model.h"
#include "range.h"
#include "session.h"
#include "sim-image.h"
#include "sim-io.h"
#include "store.h"

#define NR_LEVELS 3             /* ends, and ends while recovering from one */
#define STORE "/store"         /* absolute: a disk does not change it */
#define MAX_THREADS 8
#define ROUNDS 300              /* of a world */

/* Sizes, so that arrays and maps are torn and regions are scarce. */
struct shape {
  uint64_t disk_size, region_size, max_active;
  uint64_t granularity[2];
};

static const struct shape shapes[] = {
  { (2 << 20) + 3 * 512, 16384, 8, { 512, 4096 } },
  { (1 << 20) + 512, 4096, 4, { 512, 65536 } },
  /* Its map of intents has more than one sector. */
  { 20 << 20, 4096, 64, { 4096, 4096 } },
};
#define NR_SHAPES (sizeof shapes / sizeof shapes[0])

static const struct shape image_shape = {
  (256 << 10) + 512, 8192, 8, { 512, 4096 }
};

struct world {
  const struct shape *shape;
  struct sim *sim;
  struct sim_io io;
  struct model *model;
  struct disk *disk;
  struct session_manager *sessions;
  struct session *session;
  char session_bitmap[16];
  uint64_t random;              /* of the commands */
  uint64_t cut_random;          /* of the power cuts, under sim's lock */
  unsigned nr_threads;
  _Atomic uint64_t next_writer;
  bool has_failed;              /* a command, for a fault */
  /* Writers, and retirement, against commands. */
  pthread_rwlock_t commands;
  _Atomic bool stop;
};

/* Machines are looked at by a thread of their own: the one that has come to a
 * step holds locks of the store.
 */
struct verifier {
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  struct world *w;
  struct sim *cut;              /* to be looked at; NULL = done */
  uint8_t boot;                 /* that it is opened in */
  bool is_exact;                /* nothing was lost */
  unsigned level;
  const char *what;
};

static struct verifier verifiers[NR_LEVELS];
static uint64_t seed;
static enum sim_io_mutant mutant;
static bool has_faults, is_image;
static _Atomic uint64_t nr_states;
static uint64_t max_states, nr_kills, nr_nested, max_extra;
static unsigned nr_worlds, nr_crashes;

static const char *const choice_names[SIM_NR_CHOICES] = {
  "all is left", "what was synced is left", "the disk's data alone is left",
  "all data and some of the store is left", "the store alone is left",
  "any of it is left", "some writes are left", "all up to a moment is left",
  "it is torn",
};

static void __attribute__ ((noreturn, format (printf, 1, 2)))
wrong (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  fprintf (stderr, "power-loss: SEED=%" PRIu64 ", world %u, after %" PRIu64
           " states: ", seed, nr_worlds, nr_states);
  vfprintf (stderr, fs, args);
  fprintf (stderr, "\n");
  va_end (args);
  /* At once: the machine at work is no leak. */
  fflush (NULL);
  _exit (mutant == SIM_IO_RIGHT ? 1 : 0);
}

/*---- Opening ----*/

static struct disk *
open_disk (const struct shape *shape, struct sim_io *io, const char *store)
{
  struct disk_options options = {
    .name = "d",
    .store = store,
    .store_io = &io->io,
    .store_region_size = shape->region_size,
    .store_max_active = shape->max_active,
  };
  struct blk *node;
  struct disk *disk;
  struct error err;

  if (!is_image)
    node = sim_disk_open (io, shape->disk_size);
  else if (sim_image_open (io, shape->disk_size, &node, &err) < 0)
    wrong ("the image cannot be opened: %s", err.msg);
  if (disk_new (node, &options, &disk, &err) < 0)
    wrong ("the disk cannot be opened: %s", err.msg);
  return disk;
}

static struct model_limits
limits_of (const struct world *w, bool is_exact)
{
  return (struct model_limits) {
    .region_size = w->shape->region_size,
    .max_regions = is_exact ? 0 : w->shape->max_active,
    .may_be_inconsistent = has_faults
      && atomic_load (&w->io.nr_calls) >= atomic_load (&w->io.fail_from),
  };
}

/*---- Looking at machines ----*/

static void verify (struct world *w, struct sim *cut, unsigned level,
                    uint8_t boot, bool is_exact, const char *what);

/* A torn sector is the end of an image: its header has no second copy. */
static enum sim_choice
draw_choice (uint64_t *random)
{
  return sim_random (random) % (is_image ? SIM_TORN : SIM_NR_CHOICES);
}

/* A machine on which the store is recovering. */
struct nested {
  struct world *w;
  struct sim *sim;
  const struct verifier *v;
  uint64_t random;
};

static void
nested_step (void *opaque)
{
  struct nested *n = opaque;
  const struct verifier *v = n->v;
  enum sim_choice choice = draw_choice (&n->random);

  nr_nested++;
  if (sim_random (&n->random) % 4 == 0)
    verify (n->w, sim_copy_locked (n->sim), v->level + 1, v->boot, v->is_exact,
            "it is killed during recovery");
  else
    verify (n->w, sim_cut_locked (n->sim, choice, &n->random), v->level + 1,
            v->boot + 1, false, "the power fails during recovery");
}

/* A write puts its number into each sector of an image. */
static void
read_image (struct disk *disk, uint32_t *ret, uint64_t nr)
{
  unsigned char *buf = malloc (nr * SIM_SECTOR);
  uint64_t i;

  if (buf == NULL)
    abort ();
  if (disk_pread (disk, buf, nr * SIM_SECTOR, 0, 0) < 0)
    wrong ("the image cannot be read");
  for (i = 0; i < nr; i++)
    memcpy (&ret[i], buf + i * SIM_SECTOR, sizeof ret[i]);
  free (buf);
}

static void
read_sectors (struct sim *sim, struct disk *disk, uint32_t *ret, uint64_t nr)
{
  if (is_image)
    read_image (disk, ret, nr);
  else
    sim_disk_read (sim, ret, nr);
}

static void
check_disk (struct world *w, struct sim *cut, struct disk *disk,
            const struct model_limits *limits, const char *what)
{
  const uint64_t nr = disk_size (disk) / SIM_SECTOR;
  uint32_t *sectors = malloc (nr * sizeof *sectors);
  char message[256] = "";
  uint64_t extra;

  if (sectors == NULL)
    abort ();
  read_sectors (cut, disk, sectors, nr);
  if (!model_check (w->model, disk, sectors, limits, message, &extra))
    wrong ("%s: %s", what, message);
  max_extra = MAX (max_extra, extra);
  free (sectors);
}

/* What the image holds by itself: as if the store were gone. */
static void
look_at_image (struct verifier *v, struct sim_io *io)
{
  struct model_limits limits = limits_of (v->w, v->is_exact);
  struct disk *disk = open_disk (v->w->shape, io, "");

  limits.may_be_inconsistent = limits.is_image = true;
  check_disk (v->w, v->cut, disk, &limits, v->what);
  disk_abandon (disk);
}

/* Open, check, and sometimes close and open once more. */
static void
look_at (struct verifier *v)
{
  struct world *w = v->w;
  struct sim *cut = v->cut;
  const struct model_limits limits = limits_of (w, v->is_exact);
  char message[256];
  struct nested nested = { w, cut, v, w->cut_random + nr_states };
  struct disk *disk;
  struct sim_io io;

  nr_states++;
  sim_io_init (&io, cut, v->boot);
  if (is_image && !sim_image_check (&io, message))
    wrong ("%s: the image is corrupt: %s", v->what, message);
  if (is_image && nr_states % 4 == 0) {
    look_at_image (v, &io);
    return;
  }
  if (v->level + 1 < NR_LEVELS
      && sim_random (&nested.random) % (8 << 2 * v->level) == 0)
    sim_on_step (cut, nested_step, &nested);
  disk = open_disk (w->shape, &io, STORE);
  sim_on_step (cut, NULL, NULL);
  check_disk (w, cut, disk, &limits, v->what);
  if (nr_states % 16 == 0) {
    if (disk_close (disk) < 0)
      wrong ("%s, then it cannot be closed", v->what);
    disk = open_disk (w->shape, &io, STORE);
    check_disk (w, cut, disk, &limits, "closed and opened again");
  }
  disk_abandon (disk);
}

static void *
verifier_main (void *arg)
{
  struct verifier *v = arg;

  pthread_mutex_lock (&v->lock);
  for (;;) {
    while (v->cut == NULL)
      pthread_cond_wait (&v->changed, &v->lock);
    look_at (v);
    sim_free (v->cut);
    v->cut = NULL;
    pthread_cond_broadcast (&v->changed);
  }
  return NULL;
}

static void
start_verifiers (void)
{
  struct verifier *v;
  unsigned i;

  for (i = 0; i < NR_LEVELS; i++) {
    v = &verifiers[i];
    v->level = i;
    pthread_mutex_init (&v->lock, NULL);
    pthread_cond_init (&v->changed, NULL);
    if (pthread_create (&v->thread, NULL, verifier_main, v) != 0)
      abort ();
    pthread_detach (v->thread);
  }
}

/* Takes cut. */
static void
verify (struct world *w, struct sim *cut, unsigned level, uint8_t boot,
        bool is_exact, const char *what)
{
  struct verifier *v = &verifiers[level];

  pthread_mutex_lock (&v->lock);
  v->w = w;
  v->boot = boot;
  v->is_exact = is_exact;
  v->what = what;
  v->cut = cut;
  pthread_cond_broadcast (&v->changed);
  while (v->cut)
    pthread_cond_wait (&v->changed, &v->lock);
  pthread_mutex_unlock (&v->lock);
}

static void
on_step (void *opaque)
{
  static const enum sim_choice worst[] = { SIM_DATA_ONLY, SIM_DATA_AND_RANDOM };
  struct world *w = opaque;
  enum sim_choice choice;
  unsigned i;

  for (i = 0; i < 4; i++) {
    choice = i < 2 ? worst[i] : draw_choice (&w->cut_random);
    verify (w, sim_cut_locked (w->sim, choice, &w->cut_random), 0, 2, false,
            choice_names[choice]);
  }
  if (sim_random (&w->cut_random) % 4 == 0) {
    nr_kills++;
    verify (w, sim_copy_locked (w->sim), 0, 1, true, "the process is killed");
  }
}

/*---- What happens on the disk ----*/

static bool
chance (uint64_t *random, unsigned one_in)
{
  return sim_random (random) % one_in == 0;
}

static void *
name_sectors (uint32_t number, uint64_t len)
{
  char *buf = calloc (1, len);
  uint64_t off;

  if (buf == NULL)
    abort ();
  for (off = 0; off < len; off += SIM_SECTOR)
    memcpy (buf + off, &number, sizeof number);
  return buf;
}

/* False: the model can take no more. */
static bool
write_disk (struct world *w, uint64_t *random)
{
  const uint64_t nr = model_size (w->model) / SIM_SECTOR;
  uint64_t first = sim_random (random) % nr, len;
  uint32_t number;
  void *buf;
  int r;

  /* Most are at a few places. */
  if (chance (random, 2))
    first = MIN (first % 8 * (nr / 8) + first % 5, nr - 1);
  len = 1 + sim_random (random) % (chance (random, 8) ? 64 : 4);
  len = MIN (len, nr - first) * SIM_SECTOR;
  first *= SIM_SECTOR;
  number = model_write (w->model, first, len);
  if (number == 0)
    return false;
  sim_disk_name_writes (number);
  switch (sim_random (random) % 6) {
  case 0:
    r = disk_zero (w->disk, len, first, BLK_MAY_UNMAP);
    break;
  case 1:
    r = disk_trim (w->disk, len, first, 0);
    break;
  default:
    buf = name_sectors (number, len);
    r = disk_pwrite (w->disk, buf, len, first,
                     chance (random, 16) ? BLK_FUA : 0);
    free (buf);
  }
  if (r < 0)
    wrong ("a write fails: %s", strerror (-r));
  return true;
}

static void
must (struct world *w, int r, struct error *err)
{
  if (r >= 0)
    model_end (w->model, true);
  else if (has_faults)
    w->has_failed = true;       /* what it has changed is open */
  else
    wrong ("a command fails: %s", err->msg);
}

/* The store has failed: the full backup makes the bitmap anew, and if that can
 * be written, a store in the place of the one that failed.
 */
static bool
is_lost (struct world *w, const char *name)
{
  struct dirty_bitmap *bm = dirty_find (disk_dirty (w->disk), name);
  bool yes;

  if (bm == NULL)
    abort ();
  yes = dirty_is_inconsistent (bm);
  dirty_unref (bm);
  return yes;
}

static void
begin_session (struct world *w, const char *name)
{
  const struct session_disk_request disk_request = {
    .disk = w->disk, .bitmap = name, .mode = SESSION_AUTO,
    .is_dirty_view = true,
  };
  const struct session_request request = {
    .disks = &disk_request, .nr_disks = 1,
  };
  struct error err;

  snprintf (w->session_bitmap, sizeof w->session_bitmap, "%s", name);
  model_freeze (w->model, name, is_lost (w, name));
  must (w, session_begin (w->sessions, &request, &w->session, &err), &err);
  if (w->has_failed)
    w->session = NULL;
}

static void
end_session (struct world *w, bool is_success)
{
  struct error err;

  if (is_success)
    model_drop (w->model, w->session_bitmap, session_id (w->session));
  else
    model_merge_back (w->model, w->session_bitmap);
  must (w, session_end (w->sessions, session_id (w->session), is_success,
                        &err), &err);
  session_unref (w->session);
  w->session = NULL;
}

/* Where the map of intents is, is known once there is a store. */
static void
set_mutant (struct world *w)
{
  struct store_info info;

  if (mutant == SIM_IO_RIGHT || disk_store (w->disk) == NULL)
    return;
  store_get_info (disk_store (w->disk), &info);
  w->io.mutant_off = info.intent_off;
  w->io.mutant_len = info.intent_len;
  w->io.mutant = mutant;
}

static void
retire (struct world *w, uint64_t *random)
{
  if (disk_store (w->disk))
    (void) store_retire (disk_store (w->disk), chance (random, 4));
}

static void
add_bitmap (struct world *w)
{
  const unsigned nr = model_nr_bitmaps (w->model);
  const bool is_disabled = chance (&w->random, 6);
  uint64_t granularity = w->shape->granularity[sim_random (&w->random) % 2];
  struct error err;
  char name[16];

  if (nr == MODEL_MAX_BITMAPS)
    return;
  snprintf (name, sizeof name, "b%u",
            (unsigned) sim_random (&w->random) % 1000);
  for (unsigned i = 0; i < nr; i++)
    if (strcmp (model_name (w->model, i), name) == 0)
      return;
  model_add (w->model, name, granularity, is_disabled);
  must (w, disk_bitmap_add (w->disk, name, granularity, DIRTY_IS_PERSISTENT
                            | (is_disabled ? DIRTY_IS_DISABLED : 0), &err),
        &err);
  set_mutant (w);
}

static void
merge_bitmap (struct world *w, const char *target, const char *source)
{
  struct dirty_bitmap *bm = dirty_find (disk_dirty (w->disk), source);
  struct error err;

  model_merge (w->model, target, source);
  must (w, disk_bitmap_merge (w->disk, target, &bm, 1, &err), &err);
  dirty_unref (bm);
}

/* A bitmap that is not frozen, or NULL. */
static const char *
any_bitmap (struct world *w)
{
  const unsigned nr = model_nr_bitmaps (w->model);
  unsigned i;

  if (nr == 0)
    return NULL;
  i = (unsigned) sim_random (&w->random) % nr;
  return model_is_frozen (w->model, i) ? NULL : model_name (w->model, i);
}

static void
change_bitmap (struct world *w, const char *name)
{
  const char *other = any_bitmap (w);
  char copy[16];
  struct error err;
  bool yes;

  snprintf (copy, sizeof copy, "%s", name);
  switch (sim_random (&w->random) % 8) {
  case 0:
    model_remove (w->model, copy);
    must (w, disk_bitmap_remove (w->disk, copy, &err), &err);
    break;
  case 1:
    model_clear (w->model, copy);
    must (w, disk_bitmap_clear (w->disk, copy, &err), &err);
    break;
  case 2:
    yes = chance (&w->random, 2);
    model_set_recording (w->model, copy, yes);
    must (w, yes ? disk_bitmap_enable (w->disk, copy, &err)
          : disk_bitmap_disable (w->disk, copy, &err), &err);
    break;
  case 3:
    if (other && other != name)
      merge_bitmap (w, copy, other);
    break;
  default:
    if (!w->session)
      begin_session (w, copy);
  }
}

/* To a size between a quarter and twice what it was first. */
static void
resize (struct world *w)
{
  const uint64_t nr = w->shape->disk_size / SIM_SECTOR;
  uint64_t size = nr / 4 + sim_random (&w->random) % (nr * 7 / 4);
  struct error err;

  size = (chance (&w->random, 4) ? nr : size) * SIM_SECTOR;
  model_resize (w->model, size);
  must (w, disk_resize (w->disk, size, &err), &err);
  set_mutant (w);
}

static void
command (struct world *w)
{
  const char *name = any_bitmap (w);

  if (!w->session && chance (&w->random, 6))
    resize (w);
  else if (w->session && chance (&w->random, 2))
    end_session (w, !chance (&w->random, 3));
  else if (name == NULL || chance (&w->random, 4))
    add_bitmap (w);
  else
    change_bitmap (w, name);
}

/*---- Worlds ----*/

/* Hold syncs up, so that others overtake. */
static void
on_sync (void *opaque, struct sim_file *file)
{
  struct world *w = opaque;
  static _Thread_local uint64_t random;

  if (w->nr_threads > 1)
    for (uint64_t n = sim_random (&random) % 64; n > 0; n--)
      sched_yield ();
}

static void
open_world (struct world *w, bool is_other_boot)
{
  sim_io_init (&w->io, w->sim, is_other_boot ? 2 : 1);
  w->disk = open_disk (w->shape, &w->io, STORE);
  if (!is_other_boot)
    return;
  /* From here on it is boot 1 again, for those that look on. */
  if (disk_close (w->disk) < 0)
    wrong ("the disk cannot be closed");
  w->io.boot_id = 1;
  w->disk = open_disk (w->shape, &w->io, STORE);
}

/* Go on with the machine open. */
static void
watch_world (struct world *w)
{
  if (session_manager_new (NULL, NULL, &w->sessions) < 0)
    abort ();
  set_mutant (w);
  if (has_faults) {
    w->io.fail_from = w->io.nr_calls + 1 + sim_random (&w->random) % 60;
    w->io.fail_to = w->io.fail_from + sim_random (&w->random) % 3;
  }
  sim_on_step (w->sim, on_step, w);
  sim_on_sync (w->sim, on_sync, w);
}

/* The machine is left behind: nothing of what the process still does to it
 * counts.
 */
static void
leave_world (struct world *w)
{
  sim_on_step (w->sim, NULL, NULL);
  sim_on_sync (w->sim, NULL, NULL);
  if (w->session)
    session_unref (w->session);
  w->session = NULL;
  session_manager_free (w->sessions);
  disk_abandon (w->disk);
  sim_free (w->sim);
}

/* Cleanly; the power is cut at the steps of that too. */
static void
close_world (struct world *w)
{
  if (w->session)
    end_session (w, chance (&w->random, 2));
  session_manager_free (w->sessions);
  if (disk_close (w->disk) < 0 && !has_faults)
    wrong ("the disk cannot be closed");
  sim_on_step (w->sim, NULL, NULL);
  sim_on_sync (w->sim, NULL, NULL);
}

static void
adopt (struct world *w, bool is_exact, const char *what)
{
  const uint64_t nr = disk_size (w->disk) / SIM_SECTOR;
  const struct model_limits limits = limits_of (w, is_exact);
  uint32_t *sectors = malloc (nr * sizeof *sectors);
  char message[256] = "";

  if (sectors == NULL)
    abort ();
  read_sectors (w->sim, w->disk, sectors, nr);
  if (!model_adopt (w->model, w->disk, sectors, &limits, message))
    wrong ("%s: %s", what, message);
  free (sectors);
}

/* What a clean end has left in the image is all that there is. */
static void
lose_store (struct world *w)
{
  if (sim_find (w->sim, STORE))
    sim_remove (w->sim, STORE);
  model_forget_bases (w->model);
}

/* The end of a process, and the next one on what is left. */
static void
start_again (struct world *w)
{
  static const char *const names[] = {
    "power cut", "killed", "closed", "closed, and the machine started anew",
  };
  const unsigned how = sim_random (&w->random) % 4;
  struct sim *left = NULL;

  if (has_faults) {
    w->has_failed = true;       /* an end is as good as a start */
    return;
  }
  nr_crashes++;
  if (how == 0)
    left = sim_cut (w->sim, draw_choice (&w->random), &w->random);
  else if (how == 1)
    left = sim_copy (w->sim);
  if (left) {
    leave_world (w);
    w->sim = left;
  }
  else
    close_world (w);
  if (how == 2) {
    if (is_image && chance (&w->random, 2))
      lose_store (w);
    sim_on_step (w->sim, on_step, w);
  }
  open_world (w, how == 0 || how == 3);
  adopt (w, how != 0, names[how]);
  watch_world (w);
}

static void *
writer_main (void *arg)
{
  struct world *w = arg;
  uint64_t random = atomic_fetch_add (&w->next_writer, 1) + w->random;
  bool goes_on = true;

  while (goes_on && !atomic_load (&w->stop) && nr_states < max_states) {
    pthread_rwlock_rdlock (&w->commands);
    if (chance (&random, 16))
      retire (w, &random);
    else
      goes_on = write_disk (w, &random);
    pthread_rwlock_unlock (&w->commands);
  }
  return NULL;
}

static void
act (struct world *w)
{
  const unsigned what = sim_random (&w->random) % 100;

  if (what < 8)
    command (w);
  else if (what < (is_image ? 16 : 9))
    start_again (w);
  else if (what < 19)
    (void) disk_flush (w->disk);
  else if (w->nr_threads > 0)
    sched_yield ();
  else if (what < 26)
    retire (w, &w->random);
  else
    write_disk (w, &w->random);
}

static void
run_threads (struct world *w)
{
  pthread_t threads[MAX_THREADS];
  unsigned i;

  for (i = 0; i < w->nr_threads; i++)
    if (pthread_create (&threads[i], NULL, writer_main, w) != 0)
      abort ();
  for (i = 0; i < ROUNDS && nr_states < max_states && !w->has_failed; i++) {
    usleep (100);
    pthread_rwlock_wrlock (&w->commands);
    act (w);
    pthread_rwlock_unlock (&w->commands);
  }
  atomic_store (&w->stop, true);
  for (i = 0; i < w->nr_threads; i++)
    pthread_join (threads[i], NULL);
}

static void
run_world (uint64_t world_seed, unsigned nr_threads)
{
  struct world w = { .random = world_seed, .nr_threads = nr_threads };
  pthread_rwlockattr_t attr;
  unsigned i;

  nr_worlds++;
  w.shape = &shapes[sim_random (&w.random) % NR_SHAPES];
  if (is_image)
    w.shape = &image_shape;
  w.cut_random = sim_random (&w.random);
  w.sim = sim_new ();
  w.model = model_new (w.shape->disk_size);
  pthread_rwlockattr_init (&attr);
  /* Else commands would never have their turn. */
  pthread_rwlockattr_setkind_np (&attr,
                                 PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  pthread_rwlock_init (&w.commands, &attr);
  pthread_rwlockattr_destroy (&attr);
  open_world (&w, false);
  watch_world (&w);
  add_bitmap (&w);
  if (nr_threads > 0)
    run_threads (&w);
  for (i = 0; i < ROUNDS && nr_threads == 0 && nr_states < max_states
         && !w.has_failed; i++)
    act (&w);
  leave_world (&w);
  pthread_rwlock_destroy (&w.commands);
  model_free (w.model);
}

/* Faults are meant. */
static void
ignore_log (enum log_level level, const char *msg)
{
}

int
main (int argc, char *argv[])
{
  const char *s = getenv ("SEED");
  const char *name = argc > 2 ? argv[2] : "right";
  const unsigned nr_threads = argc > 3 ? (unsigned) atoi (argv[3]) : 0;
  uint64_t random;

  if (argc < 2 || nr_threads > MAX_THREADS) {
    fprintf (stderr, "usage: power-loss STATES [right|lose|late|fail|image]"
             " [THREADS]\n");
    return 2;
  }
  max_states = strtoull (argv[1], NULL, 0);
  mutant = strcmp (name, "lose") == 0 ? SIM_IO_LOSE
    : strcmp (name, "late") == 0 ? SIM_IO_LATE : SIM_IO_RIGHT;
  has_faults = strcmp (name, "fail") == 0;
  is_image = strcmp (name, "image") == 0;
  seed = s ? strtoull (s, NULL, 0)
    : (uint64_t) time (NULL) << 16 ^ (uint64_t) getpid ();
  printf ("power-loss: SEED=%" PRIu64 "\n", seed);
  fflush (stdout);
  if (getenv ("VERBOSE") == NULL)
    log_set_handler (ignore_log);
  random = seed;
  start_verifiers ();
  while (nr_states < max_states)
    run_world (sim_random (&random), nr_threads);
  printf ("power-loss: %" PRIu64 " machines after power cuts are right (%"
          PRIu64 " after kills, %" PRIu64 " ended again), in %u worlds, %u"
          " crashes of which were gone on from; at most %" PRIu64
          " bytes dirty without reason\n", nr_states, nr_kills, nr_nested,
          nr_worlds, nr_crashes, max_extra);
  return mutant == SIM_IO_RIGHT ? 0 : 1;
}
