/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk's store when its file fails: the Nth operation, for every N.  Guests'
 * writes go on; and whoever opens the store afterwards either finds a superset
 * of what has changed, or is told that the bitmap cannot be used, or finds
 * none.  And many writers at once, with regions retired all the time.  And what
 * takes the place of a store that has failed, also when that fails, and under
 * all that goes on meanwhile.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "disk.h"
#include "log.h"
#include "session.h"
#include "store.h"
#include "unit.h"

#define SIZE (4 << 20)
#define GRANULE 65536
#define NR_GRANULES (SIZE / GRANULE)

/* Operations that change the file or make it durable, in order. */
static _Atomic int countdown;   /* 1 = the next one fails; 0 = none does */

static bool
is_time (void)
{
  return atomic_load (&countdown) > 0 && atomic_fetch_sub (&countdown, 1) == 1;
}

static int
failing_pwrite (const struct store_io *io, void *file, const void *buf,
                size_t len, uint64_t off, unsigned flags)
{
  return is_time () ? -EIO
    : store_io_system.pwrite (io, file, buf, len, off, flags);
}

static int
failing_allocate (const struct store_io *io, void *file, uint64_t off,
                  uint64_t len)
{
  return is_time () ? -ENOSPC
    : store_io_system.allocate (io, file, off, len);
}

static int
failing_sync (const struct store_io *io, void *file)
{
  return is_time () ? -EIO : store_io_system.sync (io, file);
}

static int
failing_map (const struct store_io *io, void *file, uint64_t off, size_t len,
             void **ret)
{
  return is_time () ? -ENOMEM : store_io_system.map (io, file, off, len, ret);
}

static int
failing_sync_map (const struct store_io *io, void *file, void *addr,
                  size_t len)
{
  return is_time () ? -EIO
    : store_io_system.sync_map (io, file, addr, len);
}

static int
failing_rename (const struct store_io *io, const char *from, const char *to)
{
  return is_time () ? -EIO : store_io_system.rename (io, from, to);
}

static struct store_io failing_io;

/* In memory if possible: this test syncs a lot, and no power fails. */
static char dir[] = "/dev/shm/test-store.XXXXXX";
static char raw[64], store[64];

static struct disk_options
options (void)
{
  return (struct disk_options) {
    .name = "d", .file = raw, .store = store, .store_io = &failing_io,
    .store_region_size = 2 * GRANULE, .store_max_active = 8,
  };
}

static int
setup (void **state)
{
  log_set_handler (unit_ignore_log);
  if (mkdtemp (dir) == NULL) {
    strcpy (dir, "/tmp/test-store.XXXXXX");
    if (mkdtemp (dir) == NULL)
      return -1;
  }
  snprintf (raw, sizeof raw, "%s/raw", dir);
  snprintf (store, sizeof store, "%s/store", dir);
  failing_io = store_io_system;
  failing_io.pwrite = failing_pwrite;
  failing_io.allocate = failing_allocate;
  failing_io.sync = failing_sync;
  failing_io.map = failing_map;
  failing_io.sync_map = failing_sync_map;
  failing_io.rename = failing_rename;
  return 0;
}

static void
remove_files (void)
{
  char path[80];

  unlink (raw);
  unlink (store);
  snprintf (path, sizeof path, "%s.new", store);
  unlink (path);
  snprintf (path, sizeof path, "%s.damaged", store);
  unlink (path);
}

static int
teardown (void **state)
{
  remove_files ();
  rmdir (dir);
  return 0;
}

static void
make_raw (void)
{
  FILE *fp;

  remove_files ();
  fp = fopen (raw, "w");
  assert_non_null (fp);
  assert_int_equal (ftruncate (fileno (fp), SIZE), 0);
  fclose (fp);
}

/* What has been written since the base point, by granule. */
static bool truth[NR_GRANULES];

/* A new disk, on which nothing has been written, with a bitmap b. */
static struct disk *
open_new (void)
{
  const struct disk_options o = options ();
  struct error err = ERROR_INIT;
  struct disk *d;

  make_raw ();
  memset (truth, 0, sizeof truth);
  assert_int_equal (disk_open (&o, &d, &err), 0);
  assert_int_equal (disk_bitmap_add (d, "b", GRANULE, DIRTY_IS_PERSISTENT,
                                     &err), 0);
  return d;
}

static void
guest_write (struct disk *d, unsigned granule)
{
  static const char data[512] = "data";

  truth[granule] = true;
  assert_int_equal (disk_pwrite (d, data, sizeof data,
                                 (uint64_t) granule * GRANULE, 0), 0);
}

/* Freeze b, go on writing, and end it; then all of it counts anew. */
static void
back_up (struct disk *d, bool is_success)
{
  struct dirty_bitmap *bm = dirty_find (disk_dirty (d), "b");
  const struct point_id point = { { 1, 2, 3 } };
  bool before[NR_GRANULES];
  int r;

  if (bm == NULL)
    return;
  memcpy (before, truth, sizeof truth);
  dirty_prepare_freeze (disk_dirty (d), bm);
  gate_close (disk_gate (d));
  r = dirty_freeze (disk_dirty (d), bm, NULL);
  gate_open (disk_gate (d));
  if (r == 0) {
    memset (truth, 0, sizeof truth);
    guest_write (d, 40);
    guest_write (d, 3);
    gate_close (disk_gate (d));
    if (is_success)
      dirty_drop (disk_dirty (d), bm, &point);
    else
      dirty_merge_back (disk_dirty (d), bm);
    gate_open (disk_gate (d));
    /* Without it the drop may be undone, never be half done. */
    if (dirty_commit (disk_dirty (d)) < 0 || !is_success)
      for (unsigned i = 0; i < NR_GRANULES; i++)
        truth[i] |= before[i];
  }
  dirty_unref (bm);
}

/* Returns false if the disk could not be opened. */
static bool
run_scenario (void)
{
  const struct disk_options o = options ();
  struct error err = ERROR_INIT;
  struct disk *d;
  unsigned i;

  if (disk_open (&o, &d, &err) < 0)
    return false;
  disk_bitmap_add (d, "b", GRANULE, DIRTY_IS_PERSISTENT, &err);
  for (i = 0; i < 24; i++)
    guest_write (d, i * 5 % NR_GRANULES);
  back_up (d, true);
  if (disk_store (d))
    store_retire (disk_store (d), true);
  guest_write (d, 7);
  back_up (d, false);
  for (i = 0; i < 24; i++)
    guest_write (d, (i * 7 + 1) % NR_GRANULES);
  if (disk_store (d))
    store_retire (disk_store (d), false);
  disk_close (d);
  return true;
}

static void
check_superset (struct disk *d, const char *name)
{
  struct dirty_bitmap *bm = dirty_find (disk_dirty (d), name);
  struct dirty_info info;

  if (bm == NULL)
    return;
  assert_int_equal (dirty_get_info (bm, &info), 0);
  free (info.name);
  gate_close (disk_gate (d));
  for (unsigned i = 0; info.state != DIRTY_INCONSISTENT && i < NR_GRANULES;
       i++)
    if (truth[i] && !bitmap_get (dirty_bits (bm), (uint64_t) i * GRANULE))
      fail_msg ("granule %u is lost", i);
  gate_open (disk_gate (d));
  dirty_unref (bm);
}

/* Bitmap b is of that size, can be used, and has lost nothing. */
static void
check_consistent (struct disk *d, uint64_t size)
{
  struct dirty_bitmap *bm = dirty_find (disk_dirty (d), "b");
  struct dirty_info info;

  assert_non_null (bm);
  assert_int_equal (dirty_get_info (bm, &info), 0);
  assert_string_equal (info.reason, "");
  assert_int_equal (info.state, DIRTY_RECORDING);
  free (info.name);
  assert_int_equal (disk_size (d), size);
  gate_close (disk_gate (d));
  assert_int_equal (bitmap_size (dirty_bits (bm)), size);
  gate_open (disk_gate (d));
  dirty_unref (bm);
  check_superset (d, "b");
}

static void
test_faults (void **state)
{
  const struct disk_options o = options ();
  struct error err = ERROR_INIT;
  struct disk *d;
  int n;
  bool has_fired = true;

  for (n = 1; has_fired; n++) {
    make_raw ();
    memset (truth, 0, sizeof truth);
    atomic_store (&countdown, n);
    run_scenario ();
    has_fired = atomic_load (&countdown) <= 0;
    atomic_store (&countdown, 0);
    if (disk_open (&o, &d, &err) < 0)
      fail_msg ("operation %d: %s", n, err.msg);
    check_superset (d, "b");
    assert_int_equal (disk_close (d), 0);
  }
  /* The scenario without a fault has found its bitmap. */
  assert_true (n > 30);
}

/*---- A session's begin ----*/

static int
nothing_started (void *opaque, struct session *s, struct error *err)
{
  return 0;
}

static void
nothing_ending (void *opaque, struct session *s)
{
}

static void
nothing_ended (void *opaque, struct session *s, enum session_end how)
{
}

static struct session *
begin (struct session_manager *m, struct disk *d, int *ret)
{
  struct session_disk_request rd = { .disk = d, .bitmap = "b" };
  const struct session_request request = { .disks = &rd, .nr_disks = 1 };
  struct session *s = NULL;

  rd.mode = SESSION_AUTO;
  *ret = session_begin (m, &request, &s, NULL);
  return s;
}

static void
end (struct session_manager *m, struct session *s)
{
  const struct point_id id = *session_id (s);

  session_end (m, &id, true, NULL);
  session_unref (s);
}

/* An incremental one is begun only if what is recorded from then on is found
 * after a crash: a store that fails at that makes it fail, and nothing is
 * frozen.
 */
static bool
begin_with_fault (struct session_manager *m, int n, bool *has_failed)
{
  struct disk *d = open_new ();
  struct session *s;
  struct dirty_bitmap *bm;
  struct dirty_info info;
  size_t nr;
  bool has_fired;
  int r;

  s = begin (m, d, &r);
  assert_int_equal (r, 0);
  end (m, s);
  guest_write (d, 7);
  atomic_store (&countdown, n);
  s = begin (m, d, &r);
  has_fired = atomic_load (&countdown) <= 0;
  atomic_store (&countdown, 0);
  bm = dirty_find (disk_dirty (d), "b");
  if (r == 0 && session_disks (s, &nr)->mode == SESSION_INCREMENTAL)
    assert_false (dirty_is_inconsistent (bm));
  if (r < 0) {
    *has_failed = true;
    assert_int_equal (dirty_get_info (bm, &info), 0);
    free (info.name);
    assert_int_not_equal (info.state, DIRTY_FROZEN);
  }
  else
    end (m, s);
  dirty_unref (bm);
  assert_int_equal (disk_close (d), 0);
  return has_fired;
}

static void
test_begin_faults (void **state)
{
  static const struct session_ops ops = {
    .started = nothing_started, .ending = nothing_ending,
    .ended = nothing_ended,
  };
  struct session_manager *m;
  bool has_failed = false;
  int n;

  assert_int_equal (session_manager_new (&ops, NULL, &m), 0);
  for (n = 1; begin_with_fault (m, n, &has_failed); n++)
    ;
  assert_true (n > 1 && has_failed);
  session_manager_free (m);
}

/*---- Many writers ----*/

#define NR_THREADS 4
#define NR_WRITES 400

static _Atomic bool is_done;

static void *
write_often (void *opaque)
{
  static const char data[512] = "data";
  struct disk *d = opaque;
  static _Atomic unsigned next;
  unsigned i, seed = atomic_fetch_add (&next, 1) * 7919;

  for (i = 0; i < NR_WRITES; i++) {
    seed = seed * 1103515245 + 12345;
    assert_int_equal (disk_pwrite (d, data, sizeof data, (uint64_t)
                                   (seed >> 16) % NR_GRANULES * GRANULE, 0),
                      0);
  }
  return NULL;
}

static void *
retire_often (void *opaque)
{
  while (!atomic_load (&is_done))
    assert_int_equal (store_retire (opaque, false), 0);
  return NULL;
}

static void
test_writers (void **state)
{
  struct store_info info;
  pthread_t threads[NR_THREADS], retirer;
  struct disk *d;
  unsigned i;

  d = open_new ();
  atomic_store (&is_done, false);
  pthread_create (&retirer, NULL, retire_often, disk_store (d));
  for (i = 0; i < NR_THREADS; i++)
    pthread_create (&threads[i], NULL, write_often, d);
  for (i = 0; i < NR_THREADS; i++)
    pthread_join (threads[i], NULL);
  atomic_store (&is_done, true);
  pthread_join (retirer, NULL);
  store_get_info (disk_store (d), &info);
  assert_true (info.nr_active <= info.max_active);
  assert_int_equal (store_retire (disk_store (d), true), 0);
  store_get_info (disk_store (d), &info);
  assert_int_equal (info.nr_active, 0);
  assert_int_equal (disk_close (d), 0);
}

/* Sizes at which the map of intents or an array needs another page. */
static void
test_sizes (void **state)
{
  const struct disk_options o = options ();
  struct error err = ERROR_INIT;
  struct disk *d;
  static const uint64_t sizes[] = {
    UINT64_C (1) << 40, 512, (UINT64_C (1) << 32) + 512, SIZE, 0, SIZE
  };

  d = open_new ();
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    if (disk_resize (d, sizes[i], &err) < 0)
      fail_msg ("%s", err.msg);
    assert_int_equal (disk_size (d), sizes[i]);
    disk_abandon (d);
    if (disk_open (&o, &d, &err) < 0)
      fail_msg ("%s", err.msg);
    assert_int_equal (disk_size (d), sizes[i]);
  }
  memset (truth, 1, sizeof truth);
  check_superset (d, "b");
  assert_int_equal (disk_close (d), 0);
}

/* The disk's own file cannot be resized: bitmaps and store say what they said,
 * also to whoever opens it after a kill.
 */
static void
test_resize_fails (void **state)
{
  const struct disk_options o = options ();
  const struct rlimit limited = { UINT64_C (1) << 30, RLIM_INFINITY };
  const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
  struct error err = ERROR_INIT;
  struct disk *d;

  signal (SIGXFSZ, SIG_IGN);
  d = open_new ();
  guest_write (d, 5);
  assert_int_equal (setrlimit (RLIMIT_FSIZE, &limited), 0);
  assert_int_equal (disk_resize (d, UINT64_C (1) << 40, &err), -EFBIG);
  assert_int_equal (setrlimit (RLIMIT_FSIZE, &unlimited), 0);
  assert_non_null (strstr (err.msg, "cannot resize to 1099511627776"));
  assert_int_equal (disk_size (d), SIZE);
  guest_write (d, 63);
  check_consistent (d, SIZE);
  disk_abandon (d);
  assert_int_equal (disk_open (&o, &d, &err), 0);
  check_consistent (d, SIZE);
  /* And then it can. */
  assert_int_equal (disk_resize (d, 2 * SIZE, &err), 0);
  check_consistent (d, 2 * SIZE);
  assert_int_equal (disk_close (d), 0);
}

/*---- Queries ----*/

static void *
query_often (void *opaque)
{
  struct store_info info;
  uint64_t generation = 0;

  while (!atomic_load (&is_done)) {
    store_get_info (opaque, &info);
    assert_true (info.generation >= generation);
    generation = info.generation;
    assert_int_equal (info.region_size, 2 * GRANULE);
    assert_true (info.over_estimate <= SIZE);
    store_retire (opaque, false);
  }
  return NULL;
}

/* What a store is asked for while its table changes. */
static void
test_queries (void **state)
{
  struct error err = ERROR_INIT;
  pthread_t threads[2];
  struct disk *d;
  unsigned i;

  d = open_new ();
  atomic_store (&is_done, false);
  for (i = 0; i < 2; i++)
    pthread_create (&threads[i], NULL, query_often, disk_store (d));
  for (i = 0; i < 20; i++) {
    back_up (d, i % 2);
    assert_int_equal (disk_bitmap_add (d, "c", GRANULE, DIRTY_IS_PERSISTENT,
                                       &err), 0);
    assert_int_equal (disk_resize (d, i % 2 ? SIZE : SIZE + 512, &err), 0);
    assert_int_equal (disk_bitmap_remove (d, "c", &err), 0);
  }
  atomic_store (&is_done, true);
  for (i = 0; i < 2; i++)
    pthread_join (threads[i], NULL);
  check_consistent (d, SIZE);
  assert_int_equal (disk_close (d), 0);
}

/*---- A new one in its place ----*/

static void
assert_state (struct disk *d, const char *name, enum dirty_state state)
{
  struct dirty_bitmap *bm = dirty_find (disk_dirty (d), name);
  struct dirty_info info;

  assert_non_null (bm);
  assert_int_equal (dirty_get_info (bm, &info), 0);
  assert_true (info.is_persistent);
  assert_int_equal (info.state, state);
  if (state == DIRTY_INCONSISTENT)
    assert_non_null (strstr (info.reason, "the store failed"));
  free (info.name);
  dirty_unref (bm);
}

/* A disk with a bitmap b, whose store has failed. */
static struct disk *
open_failed (void)
{
  struct disk *d;
  unsigned i;

  d = open_new ();
  atomic_store (&countdown, 1);
  for (i = 0; !store_has_failed (disk_store (d)); i++)
    guest_write (d, i);
  assert_int_equal (atomic_load (&countdown), 0);
  return d;
}

/* Operation n of making the new one fails; and then none does.  What is in it
 * then is right after a kill.  Returns whether there is an operation n.
 */
static bool
replace_with_fault (int n)
{
  const struct disk_options o = options ();
  struct disk *d = open_failed ();
  struct error err = ERROR_INIT;
  bool has_fired;
  int r;

  atomic_store (&countdown, n);
  r = disk_bitmap_add (d, "c", GRANULE, DIRTY_IS_PERSISTENT, &err);
  has_fired = atomic_load (&countdown) <= 0;
  atomic_store (&countdown, 0);
  assert_true (has_fired || r == 0);
  guest_write (d, 50);
  if (r < 0 && disk_bitmap_add (d, "c", GRANULE, DIRTY_IS_PERSISTENT, &err) < 0)
    fail_msg ("operation %d: %s", n, err.msg);
  memset (truth, 0, sizeof truth);
  guest_write (d, 60);
  disk_abandon (d);
  if (disk_open (&o, &d, &err) < 0)
    fail_msg ("operation %d: %s", n, err.msg);
  assert_state (d, "b", DIRTY_INCONSISTENT);
  assert_state (d, "c", DIRTY_RECORDING);
  check_superset (d, "c");
  assert_int_equal (disk_close (d), 0);
  return has_fired;
}

static void
test_replace_faults (void **state)
{
  int n;

  for (n = 1; replace_with_fault (n); n++)
    ;
  assert_true (n > 5);
}

/* Not under a backup, which goes on; and its end is too late for the bitmap. */
static void
test_replace_frozen (void **state)
{
  struct error err = ERROR_INIT;
  struct dirty_bitmap *bm;
  struct disk *d;
  unsigned i;

  d = open_new ();
  guest_write (d, 33);
  bm = dirty_find (disk_dirty (d), "b");
  gate_close (disk_gate (d));
  assert_int_equal (dirty_freeze (disk_dirty (d), bm, &err), 0);
  gate_open (disk_gate (d));
  atomic_store (&countdown, 1);
  for (i = 0; !store_has_failed (disk_store (d)); i++)
    guest_write (d, i);
  assert_int_equal (disk_bitmap_add (d, "c", GRANULE, DIRTY_IS_PERSISTENT,
                                     &err), -EBUSY);
  gate_close (disk_gate (d));
  assert_true (bitmap_get (dirty_frozen_bits (bm), 33 * GRANULE));
  dirty_merge_back (disk_dirty (d), bm);
  gate_open (disk_gate (d));
  dirty_unref (bm);
  assert_state (d, "b", DIRTY_INCONSISTENT);
  assert_int_equal (disk_bitmap_add (d, "c", GRANULE, DIRTY_IS_PERSISTENT,
                                     &err), 0);
  assert_state (d, "c", DIRTY_RECORDING);
  assert_int_equal (disk_close (d), 0);
}

static void *
flush_often (void *opaque)
{
  while (!atomic_load (&is_done))
    assert_int_equal (disk_flush (opaque), 0);
  return NULL;
}

static void *
write_until_done (void *opaque)
{
  while (!atomic_load (&is_done))
    write_often (opaque);
  return NULL;
}

/* As query-block does it. */
static void *
look_often (void *opaque)
{
  struct dirty_info *infos;
  struct store_info info;
  struct store *s;
  size_t nr;

  while (!atomic_load (&is_done)) {
    s = disk_ref_store (opaque);
    assert_non_null (s);
    store_get_info (s, &info);
    store_unref (s);
    assert_int_equal (dirty_list (disk_dirty (opaque), &infos, &nr), 0);
    dirty_infos_free (infos, nr);
    dirty_commit (disk_dirty (opaque));
  }
  return NULL;
}

/* Two ask for persistent bitmaps. */
static void *
add_often (void *opaque)
{
  struct error err;

  while (!atomic_load (&is_done)) {
    disk_bitmap_add (opaque, "d", GRANULE, DIRTY_IS_PERSISTENT, &err);
    disk_bitmap_remove (opaque, "d", &err);
  }
  return NULL;
}

static void
test_replace_races (void **state)
{
  static void *(*const mains[]) (void *opaque) = {
    flush_often, write_until_done, look_often, add_often,
  };
  const struct disk_options o = options ();
  struct error err = ERROR_INIT;
  pthread_t threads[4];
  struct disk *d;
  unsigned i;

  d = open_new ();
  assert_int_equal (disk_start (d), 0);
  atomic_store (&is_done, false);
  for (i = 0; i < 4; i++)
    pthread_create (&threads[i], NULL, mains[i], d);
  for (i = 0; i < 20; i++) {
    atomic_store (&countdown, 1 + i % 5);
    while (atomic_load (&countdown) > 0)
      sched_yield ();
    while (disk_bitmap_add (d, "c", GRANULE, DIRTY_IS_PERSISTENT, &err) < 0)
      ;
    assert_int_equal (disk_bitmap_remove (d, "c", &err), 0);
  }
  atomic_store (&is_done, true);
  for (i = 0; i < 4; i++)
    pthread_join (threads[i], NULL);
  memset (truth, 0, sizeof truth);
  while (disk_bitmap_add (d, "c", GRANULE, DIRTY_IS_PERSISTENT, &err) < 0)
    ;
  guest_write (d, 13);
  disk_stop (d);
  disk_abandon (d);
  assert_int_equal (disk_open (&o, &d, &err), 0);
  assert_state (d, "c", DIRTY_RECORDING);
  check_superset (d, "c");
  assert_int_equal (disk_close (d), 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_faults),
    cmocka_unit_test (test_begin_faults),
    cmocka_unit_test (test_writers),
    cmocka_unit_test (test_sizes),
    cmocka_unit_test (test_resize_fails),
    cmocka_unit_test (test_queries),
    cmocka_unit_test (test_replace_faults),
    cmocka_unit_test (test_replace_frozen),
    cmocka_unit_test (test_replace_races),
  };

  return cmocka_run_group_tests (tests, setup, teardown);
}
