/* SPDX-License-Identifier: BSD-3-Clause */
/* Pull sessions: modes and their reasons, what success and anything else do
 * to the bitmaps, and that a begin that fails changes nothing.
 */
#include "config.h"

#include "disk-util.h"

#define SIZE (MiB)

/* What the manager called, as letters: s(tarted), e(nding), and of ended the
 * first letter of the reason in capitals.
 */
struct fixture {
  struct session_manager *m;
  struct disk *disk;            /* "d" */
  _Atomic unsigned nr_calls;
  char calls[100];
  int started_result;
  bool saw_reads;
};

/* Calls come one at a time; the count tells of the letter. */
static void
note (struct fixture *f, char c)
{
  f->calls[atomic_load (&f->nr_calls) % 100] = c;
  atomic_fetch_add (&f->nr_calls, 1);
}

/* A view can be read when it is exported, and until ending returns. */
static int
read_views (struct session *s)
{
  const struct session_disk *disks;
  size_t nr;
  char c;
  int r = 0;

  disks = session_disks (s, &nr);
  for (size_t i = 0; r == 0 && i < nr; i++)
    if (disks[i].size > 0)
      r = blk_pread (cbw_view_blk (disks[i].view), &c, 1, 0, 0);
  return r;
}

static int
started (void *opaque, struct session *s, struct error *err)
{
  struct fixture *f = opaque;

  note (f, 's');
  f->saw_reads &= read_views (s) != -ESHUTDOWN;
  return f->started_result < 0
    ? error_set (err, -f->started_result, "no exports today") : 0;
}

static void
ending (void *opaque, struct session *s)
{
  struct fixture *f = opaque;

  f->saw_reads &= read_views (s) != -ESHUTDOWN;
  note (f, 'e');
}

static void
ended (void *opaque, struct session *s, enum session_end how)
{
  static const char letters[] = "SALXQ";

  note (opaque, letters[how]);
}

static const struct session_ops ops = {
  .started = started, .ending = ending, .ended = ended,
};

static int
setup (void **state)
{
  struct fixture *f = calloc (1, sizeof *f);

  f->saw_reads = true;
  f->disk = debug_disk ("d", SIZE, CBW_BREAK_BACKUP);
  fill (f->disk, 0, SIZE, 'a');
  assert_int_equal (session_manager_new (&ops, f, &f->m), 0);
  *state = f;
  return 0;
}

static int
teardown (void **state)
{
  struct fixture *f = *state;

  session_manager_free (f->m);
  assert_true (f->saw_reads);
  disk_close (f->disk);
  free (f);
  return 0;
}

static int
begin_one (struct fixture *f, const char *bitmap, enum session_mode mode,
           bool is_dirty_view, struct session **ret, struct error *err)
{
  struct session_disk_request rd = {
    .disk = f->disk, .bitmap = bitmap, .mode = mode,
    .is_dirty_view = is_dirty_view,
  };
  struct session_request request = { .disks = &rd, .nr_disks = 1 };

  return session_begin (f->m, &request, ret, err);
}

/* Begin, check mode and reason, and end as told. */
static struct point_id
run_session (struct fixture *f, const char *bitmap, enum session_mode mode,
             enum session_mode expected, const char *why, bool is_success)
{
  struct session *s;
  const struct session_disk *sd;
  struct point_id id;
  size_t nr;

  assert_int_equal (begin_one (f, bitmap, mode, false, &s, NULL), 0);
  sd = session_disks (s, &nr);
  assert_int_equal (nr, 1);
  assert_int_equal (sd->mode, expected);
  if (!strstr (sd->why, why))
    fail_msg ("'%s' does not say '%s'", sd->why, why);
  id = *session_id (s);
  assert_int_equal (session_end (f->m, &id, is_success, NULL), 0);
  session_unref (s);
  return id;
}

static struct dirty_info
info_of (struct fixture *f, const char *name)
{
  struct dirty_bitmap *bm = dirty_find (disk_dirty (f->disk), name);
  struct dirty_info info;

  assert_non_null (bm);
  assert_int_equal (dirty_get_info (bm, &info), 0);
  dirty_unref (bm);
  free (info.name);
  info.name = NULL;
  return info;
}

static struct point_id
base_of (struct fixture *f, const char *name)
{
  return info_of (f, name).base;
}

static void
assert_no_bitmap (struct fixture *f, const char *name)
{
  struct dirty_bitmap *bm = dirty_find (disk_dirty (f->disk), name);

  assert_null (bm);
}

static void
test_first_full_then_incremental (void **state)
{
  struct fixture *f = *state;
  struct point_id p1, p2;
  struct session *s;
  const struct session_disk *sd;
  struct dirty_info info;
  size_t nr;

  p1 = run_session (f, "b", SESSION_AUTO, SESSION_FULL, "no bitmap 'b'",
                    true);
  info = info_of (f, "b");
  assert_true (point_id_is_equal (&info.base, &p1));
  assert_int_equal (info.state, DIRTY_RECORDING);
  assert_int_equal (info.dirty_bytes, 0);
  assert_int_equal (info.granularity, 65536);

  fill (f->disk, 100000, 10, 'b');
  assert_int_equal (begin_one (f, "b", SESSION_AUTO, true, &s, NULL), 0);
  sd = session_disks (s, &nr);
  assert_int_equal (sd->mode, SESSION_INCREMENTAL);
  assert_non_null (strstr (sd->why, "counts from point"));
  assert_true (point_id_is_equal (&sd->base, &p1));
  assert_int_equal (sd->dirty_bytes, 65536);
  assert_int_equal (sd->granularity, 65536);
  assert_int_equal (sd->size, SIZE);
  assert_int_equal (info_of (f, "b").state, DIRTY_FROZEN);
  fill (f->disk, 0, 1, 'c');
  fill (f->disk, 65536, 65536, 'c');
  assert_int_equal (read_same (cbw_view_blk (sd->view), 100000, 10), 'b');
  assert_int_equal (blk_pread (cbw_view_blk (sd->view), &(char) { 0 }, 1, 0,
                               0), -EIO);
  p2 = *session_id (s);
  assert_int_equal (session_end (f->m, &p2, true, NULL), 0);
  session_unref (s);
  /* What came after the point, and only that, is left. */
  info = info_of (f, "b");
  assert_int_equal (info.dirty_bytes, 2 * 65536);
  assert_true (point_id_is_equal (&info.base, &p2));
  assert_string_equal (f->calls, "seSseS");
}

static void
test_abort_loses_nothing (void **state)
{
  struct fixture *f = *state;
  struct point_id p1;
  struct session *s;
  struct dirty_info info;

  p1 = run_session (f, "b", SESSION_FULL, SESSION_FULL, "asked for", true);
  fill (f->disk, 65536, 1, 'b');
  assert_int_equal (begin_one (f, "b", SESSION_INCREMENTAL, true, &s, NULL),
                    0);
  fill (f->disk, 3 * 65536, 1, 'b');
  assert_int_equal (session_end (f->m, session_id (s), false, NULL), 0);
  session_unref (s);
  info = info_of (f, "b");
  assert_int_equal (info.dirty_bytes, 2 * 65536);
  assert_true (point_id_is_equal (&info.base, &p1));
  assert_int_equal (info.state, DIRTY_RECORDING);
  assert_string_equal (f->calls, "seSseA");
}

/* Full backups leave bitmaps that they did not finish as they were. */
static void
test_aborted_full (void **state)
{
  struct fixture *f = *state;
  struct dirty_bitmap *bm;
  struct point_id base;

  run_session (f, "b", SESSION_AUTO, SESSION_FULL, "no bitmap 'b'", false);
  assert_no_bitmap (f, "b");

  assert_int_equal (disk_bitmap_add (f->disk, "b", 4096, false, NULL), 0);
  fill (f->disk, 0, 1, 'b');
  run_session (f, "b", SESSION_AUTO, SESSION_FULL, "no base point yet",
               false);
  assert_int_equal (info_of (f, "b").dirty_bytes, 4096);
  base = base_of (f, "b");
  assert_true (point_id_is_none (&base));

  assert_int_equal (disk_bitmap_disable (f->disk, "b", NULL), 0);
  run_session (f, "b", SESSION_AUTO, SESSION_FULL, "is disabled", false);
  assert_int_equal (info_of (f, "b").state, DIRTY_DISABLED);

  bm = dirty_find (disk_dirty (f->disk), "b");
  gate_close (disk_gate (f->disk));
  dirty_invalidate (disk_dirty (f->disk), bm, "the cat was here");
  gate_open (disk_gate (f->disk));
  dirty_unref (bm);
  run_session (f, "b", SESSION_AUTO, SESSION_FULL,
               "is inconsistent: the cat was here", false);
  assert_int_equal (info_of (f, "b").state, DIRTY_INCONSISTENT);
  assert_string_equal (info_of (f, "b").reason, "the cat was here");
}

/* ... and on success make them record and count from their point. */
static void
test_finished_full (void **state)
{
  struct fixture *f = *state;
  struct dirty_bitmap *bm;
  struct point_id id, base;

  assert_int_equal (disk_bitmap_add (f->disk, "b", 4096, true, NULL), 0);
  id = run_session (f, "b", SESSION_AUTO, SESSION_FULL, "is disabled", true);
  assert_int_equal (info_of (f, "b").state, DIRTY_RECORDING);
  base = base_of (f, "b");
  assert_true (point_id_is_equal (&base, &id));

  bm = dirty_find (disk_dirty (f->disk), "b");
  gate_close (disk_gate (f->disk));
  dirty_invalidate (disk_dirty (f->disk), bm, "why");
  gate_open (disk_gate (f->disk));
  dirty_unref (bm);
  id = run_session (f, "b", SESSION_AUTO, SESSION_FULL, "is inconsistent",
                    true);
  assert_int_equal (info_of (f, "b").state, DIRTY_RECORDING);
  assert_int_equal (info_of (f, "b").granularity, 4096);
  base = base_of (f, "b");
  assert_true (point_id_is_equal (&base, &id));
  run_session (f, "b", SESSION_AUTO, SESSION_INCREMENTAL, "counts from",
               true);
}

static void
test_copy_touches_no_bitmap (void **state)
{
  struct fixture *f = *state;
  struct session *s;
  const struct session_disk *sd;
  size_t nr;

  assert_int_equal (disk_bitmap_add (f->disk, "b", 0, false, NULL), 0);
  assert_int_equal (begin_one (f, NULL, SESSION_COPY, true, &s, NULL), 0);
  sd = session_disks (s, &nr);
  assert_null (sd->bitmap);
  assert_null (sd->bitmap_name);
  assert_int_equal (sd->granularity, 0);
  assert_int_equal (sd->dirty_bytes, SIZE);
  assert_int_equal (info_of (f, "b").state, DIRTY_RECORDING);
  fill (f->disk, 0, SIZE, 'b');
  assert_int_equal (read_same (cbw_view_blk (sd->view), 0, SIZE), 'a');
  assert_int_equal (session_end (f->m, session_id (s), true, NULL), 0);
  session_unref (s);
  assert_int_equal (info_of (f, "b").dirty_bytes, SIZE);
}

/* Success for one disk of two: the other one's bits are merged back, though its
 * view has broken; a session that may lose disks lives until all are lost.
 */
static void
test_kept_bitmaps (void **state)
{
  struct fixture *f = *state;
  struct disk *other = debug_disk ("e", SIZE, CBW_BREAK_BACKUP);
  struct session_disk_request rd[2] = {
    { .disk = f->disk, .bitmap = "b" }, { .disk = other, .bitmap = "c" },
  };
  struct session_request request = {
    .disks = rd, .nr_disks = 2, .is_partial_ok = true, .scratch_limit = 65536,
  };
  const char *keep[2] = { "e", "e" }, *bad[2] = { "d", "f" };
  struct error err = ERROR_INIT;
  struct dirty_info *infos;
  struct point_id first, id;
  struct session *s;
  size_t nr;

  assert_int_equal (session_begin (f->m, &request, &s, &err), 0);
  first = *session_id (s);
  assert_int_equal (session_end (f->m, &first, true, NULL), 0);
  session_unref (s);
  fill (f->disk, 0, 1, 'b');
  fill (other, 0, 1, 'b');
  assert_int_equal (session_begin (f->m, &request, &s, &err), 0);
  id = *session_id (s);
  fill (other, 0, 4 * 65536, 'c');
  assert_int_equal (session_end_keep (f->m, &id, bad, 2, &err), -EINVAL);
  assert_string_equal (err.msg, "Disk 'f' is not in this backup");
  assert_int_equal (session_end_keep (f->m, &id, keep, 2, &err), -EINVAL);
  assert_string_equal (err.msg, "Disk 'e' is named twice");
  assert_int_equal (session_end_keep (f->m, &id, keep, 1, &err), 0);
  session_unref (s);
  /* Whoever has not had the answer asks again. */
  assert_int_equal (session_end_keep (f->m, &id, keep, 1, &err), 0);
  assert_string_equal (f->calls, "seSseS");
  assert_int_equal (info_of (f, "b").dirty_bytes, 0);
  first = base_of (f, "b");
  assert_true (point_id_is_equal (&first, &id));
  assert_int_equal (dirty_list (disk_dirty (other), &infos, &nr), 0);
  assert_int_equal (infos[0].dirty_bytes, 4 * 65536);
  assert_false (point_id_is_equal (&infos[0].base, &id));
  dirty_infos_free (infos, nr);

  /* All are broken. */
  assert_int_equal (session_begin (f->m, &request, &s, &err), 0);
  fill (other, 0, 4 * 65536, 'd');
  fill (f->disk, 0, 4 * 65536, 'd');
  WAIT_FOR (atomic_load (&f->nr_calls) == 9);
  assert_string_equal (f->calls, "seSseSseX");
  session_unref (s);
  disk_close (other);
}

static void
assert_refused (struct fixture *f, const char *bitmap, enum session_mode mode,
                int error, const char *text)
{
  struct session *s = NULL;
  struct error err = ERROR_INIT;

  assert_int_equal (begin_one (f, bitmap, mode, false, &s, &err), error);
  assert_null (s);
  if (!strstr (err.msg, text))
    fail_msg ("'%s' does not say '%s'", err.msg, text);
  assert_false (gate_is_closed (disk_gate (f->disk)));
  assert_false (session_uses_disk (f->m, f->disk));
}

static void
test_incremental_or_an_error (void **state)
{
  struct fixture *f = *state;
  struct dirty_bitmap *bm;

  assert_refused (f, "b", SESSION_INCREMENTAL, -ENOENT,
                  "Dirty bitmap 'b' not found");
  assert_int_equal (disk_bitmap_add (f->disk, "b", 0, false, NULL), 0);
  assert_refused (f, "b", SESSION_INCREMENTAL, -EINVAL, "no base point yet");
  assert_int_equal (disk_bitmap_disable (f->disk, "b", NULL), 0);
  assert_refused (f, "b", SESSION_INCREMENTAL, -EINVAL, "is disabled");
  bm = dirty_find (disk_dirty (f->disk), "b");
  gate_close (disk_gate (f->disk));
  dirty_invalidate (disk_dirty (f->disk), bm, "why");
  gate_open (disk_gate (f->disk));
  dirty_unref (bm);
  assert_refused (f, "b", SESSION_INCREMENTAL, -EINVAL,
                  "Bitmap 'b' is inconsistent and cannot be used");
  assert_int_equal (f->nr_calls, 0);
}

static void
test_bad_requests (void **state)
{
  struct fixture *f = *state;
  struct session_disk_request rd[2] = {
    { .disk = f->disk, .bitmap = "b" }, { .disk = f->disk, .bitmap = "c" },
  };
  struct session_request request = { .disks = rd, .nr_disks = 2 };
  struct error err = ERROR_INIT;
  struct session *s;

  assert_refused (f, NULL, SESSION_AUTO, -EINVAL, "needs a bitmap");
  assert_refused (f, "b", SESSION_COPY, -EINVAL, "touches no bitmap");
  assert_refused (f, "", SESSION_AUTO, -EINVAL, "cannot be empty");
  assert_int_equal (session_begin (f->m, &request, &s, &err), -EINVAL);
  assert_string_equal (err.msg, "disk 'd' is named twice");
  request.nr_disks = 0;
  assert_int_equal (session_begin (f->m, &request, &s, &err), -EINVAL);
  request.nr_disks = 1;
  request.lease = SESSION_MAX_LEASE + 1;
  assert_int_equal (session_begin (f->m, &request, &s, &err), -EINVAL);
  assert_non_null (strstr (err.msg, "86401"));
  request.lease = SESSION_MAX_LEASE;
  for (size_t i = 0; i < 3; i++) {
    rd[0].cluster_size = (uint64_t[]) { 256, 3000, 128 * MiB }[i];
    assert_int_equal (session_begin (f->m, &request, &s, &err), -EINVAL);
    assert_non_null (strstr (err.msg, "cluster size"));
  }
  rd[0].cluster_size = 0;
  request.scratch_dir = "/nonexistent/dir";
  assert_int_equal (session_begin (f->m, &request, &s, &err), -ENOENT);
  assert_non_null (strstr (err.msg, "/nonexistent/dir"));
  assert_no_bitmap (f, "b");
  assert_int_equal (f->nr_calls, 0);
}

/* The second disk refuses: the first is as it was. */
static void
test_failed_begin_changes_nothing (void **state)
{
  struct fixture *f = *state;
  struct disk *first = debug_disk ("e", SIZE, CBW_BREAK_BACKUP);
  struct session_disk_request rd[3] = {
    { .disk = first, .bitmap = "new", .mode = SESSION_AUTO },
    { .disk = f->disk, .bitmap = "none", .mode = SESSION_INCREMENTAL },
  };
  struct session_request request = { .disks = rd, .nr_disks = 2 };
  struct error err = ERROR_INIT;
  struct dirty_info *infos;
  struct session *s;
  size_t nr;

  assert_int_equal (disk_bitmap_add (first, "off", 4096, true, NULL), 0);
  assert_int_equal (disk_bitmap_add (first, "on", 4096, false, NULL), 0);
  fill (first, 0, 1, 'x');
  for (int i = 0; i < 3; i++) {
    rd[0].bitmap = (const char *[]) { "new", "off", "on" }[i];
    assert_int_equal (session_begin (f->m, &request, &s, &err), -ENOENT);
    assert_int_equal (dirty_list (disk_dirty (first), &infos, &nr), 0);
    assert_int_equal (nr, 2);
    assert_int_equal (infos[0].state, DIRTY_DISABLED);
    assert_int_equal (infos[0].dirty_bytes, 0);
    assert_int_equal (infos[1].state, DIRTY_RECORDING);
    assert_int_equal (infos[1].dirty_bytes, 4096);
    dirty_infos_free (infos, nr);
  }
  /* Nothing is held, and writes go on. */
  free (blk_debug_trace (disk_node (first)));
  fill (first, 0, 1, 'y');
  CLEANUP_FREE char *trace = blk_debug_trace (disk_node (first));
  assert_string_equal (trace, "write 0+1");
  disk_close (first);
}

static void
test_failed_start_is_undone (void **state)
{
  struct fixture *f = *state;

  f->started_result = -EMFILE;
  assert_refused (f, "b", SESSION_AUTO, -EMFILE, "no exports today");
  assert_no_bitmap (f, "b");
  f->started_result = 0;
  run_session (f, "b", SESSION_AUTO, SESSION_FULL, "no bitmap", true);
  assert_string_equal (f->calls, "sseS");
}

static void
test_busy_bitmap_and_several_sessions (void **state)
{
  struct fixture *f = *state;
  struct session *a, *b, *c;
  struct error err = ERROR_INIT;
  const struct session_disk *sd;
  size_t nr;

  assert_int_equal (begin_one (f, "a", SESSION_AUTO, false, &a, NULL), 0);
  assert_int_equal (begin_one (f, "a", SESSION_AUTO, false, &b, &err),
                    -EBUSY);
  assert_string_equal (err.msg, "Bitmap 'a' is currently in use by another"
                       " operation and cannot be used");
  fill (f->disk, 0, SIZE, 'b');
  assert_int_equal (begin_one (f, "b", SESSION_AUTO, false, &b, NULL), 0);
  fill (f->disk, 0, SIZE, 'c');
  assert_int_equal (begin_one (f, NULL, SESSION_COPY, false, &c, NULL), 0);
  fill (f->disk, 0, SIZE, 'd');
  sd = session_disks (b, &nr);
  assert_int_equal (read_same (cbw_view_blk (sd->view), 0, SIZE), 'b');
  assert_int_equal (session_end (f->m, session_id (b), true, NULL), 0);
  sd = session_disks (a, &nr);
  assert_int_equal (read_same (cbw_view_blk (sd->view), 0, SIZE), 'a');
  assert_int_equal (session_end (f->m, session_id (a), false, NULL), 0);
  sd = session_disks (c, &nr);
  assert_int_equal (read_same (cbw_view_blk (sd->view), 0, SIZE), 'c');
  assert_no_bitmap (f, "a");
  assert_int_equal (info_of (f, "b").dirty_bytes, SIZE);
  assert_true (session_uses_disk (f->m, f->disk));
  assert_int_equal (session_end (f->m, session_id (c), true, NULL), 0);
  assert_false (session_uses_disk (f->m, f->disk));
  session_unref (a);
  session_unref (b);
  session_unref (c);
}

static void
test_limit (void **state)
{
  struct fixture *f = *state;
  struct session *s[SESSION_MAX], *more, **list;
  struct error err = ERROR_INIT;
  size_t nr;

  for (int i = 0; i < SESSION_MAX; i++)
    assert_int_equal (begin_one (f, NULL, SESSION_COPY, false, &s[i], NULL),
                      0);
  assert_int_equal (begin_one (f, NULL, SESSION_COPY, false, &more, &err),
                    -EBUSY);
  assert_non_null (strstr (err.msg, "64"));
  assert_int_equal (session_list (f->m, &list, &nr), 0);
  assert_int_equal (nr, SESSION_MAX);
  for (size_t i = 0; i < nr; i++)
    assert_ptr_equal (list[i], s[i]);
  session_list_free (list, nr);
  assert_int_equal (session_end (f->m, session_id (s[7]), true, NULL), 0);
  assert_int_equal (begin_one (f, NULL, SESSION_COPY, false, &more, NULL), 0);
  session_unref (more);
  for (int i = 0; i < SESSION_MAX; i++)
    session_unref (s[i]);
}

static void
test_attach_and_queries (void **state)
{
  struct fixture *f = *state;
  struct session *s, *again;
  struct point_id id, none = { .bytes = { 1 } };
  struct error err = ERROR_INIT;
  const struct session_disk *sd;
  char text[POINT_ID_STRING_SIZE], name[64];
  size_t nr;
  int64_t before = (int64_t) time (NULL);

  assert_int_equal (begin_one (f, "b", SESSION_AUTO, false, &s, NULL), 0);
  id = *session_id (s);
  assert_true (session_time (s) >= before);
  assert_int_equal (session_lease (s), SESSION_DEFAULT_LEASE);
  assert_in_range (session_lease_left (s), SESSION_DEFAULT_LEASE - 20,
                   SESSION_DEFAULT_LEASE);
  point_id_format (&id, text);
  snprintf (name, sizeof name, "%s/d", text);
  sd = session_disks (s, &nr);
  assert_string_equal (sd->export_name, name);
  assert_string_equal (sd->bitmap_name, "b");
  assert_int_equal (session_attach (f->m, &id, &again, NULL), 0);
  assert_ptr_equal (s, again);
  session_unref (again);
  assert_int_equal (session_attach (f->m, &none, &again, &err), -ENOENT);
  assert_non_null (strstr (err.msg, "01000000"));
  assert_int_equal (session_end (f->m, &none, true, &err), -ENOENT);
  assert_int_equal (session_end (f->m, &id, true, NULL), 0);
  /* Whoever has not had the answer may ask again. */
  assert_int_equal (session_end (f->m, &id, true, NULL), 0);
  assert_int_equal (session_end (f->m, &id, false, &err), -ENOENT);
  assert_non_null (strstr (err.msg, "has ended (success)"));
  assert_int_equal (session_attach (f->m, &id, &again, &err), -ENOENT);
  /* A reference outlives the end. */
  assert_string_equal (session_disks (s, &nr)->export_name, name);
  session_unref (s);
  assert_string_equal (session_mode_name (SESSION_INCREMENTAL),
                       "incremental");
  assert_string_equal (session_end_name (SESSION_END_SHUTDOWN), "shutdown");
}

/* Nothing to back up is no error. */
static void
test_empty_disk (void **state)
{
  struct fixture *f = *state;
  struct disk *disk = debug_disk ("empty", 0, CBW_BREAK_BACKUP);
  struct session_disk_request rd = { .disk = disk, .bitmap = "b" };
  struct session_request request = { .disks = &rd, .nr_disks = 1 };
  struct session *s;
  size_t nr;

  for (int i = 0; i < 2; i++) {
    assert_int_equal (session_begin (f->m, &request, &s, NULL), 0);
    assert_int_equal (session_disks (s, &nr)->dirty_bytes, 0);
    assert_int_equal (session_disks (s, &nr)->mode,
                      i ? SESSION_INCREMENTAL : SESSION_FULL);
    assert_int_equal (session_end (f->m, session_id (s), true, NULL), 0);
    session_unref (s);
  }
  disk_close (disk);
}

static void
test_shutdown_merges_back (void **state)
{
  struct fixture *f = *state;
  struct session *s, *t;

  run_session (f, "b", SESSION_AUTO, SESSION_FULL, "", true);
  fill (f->disk, 0, 1, 'b');
  assert_int_equal (begin_one (f, "b", SESSION_AUTO, false, &s, NULL), 0);
  assert_int_equal (begin_one (f, "c", SESSION_AUTO, false, &t, NULL), 0);
  session_manager_free (f->m);
  f->m = NULL;
  assert_string_equal (f->calls, "seSsseQeQ");
  assert_int_equal (info_of (f, "b").dirty_bytes, 65536);
  assert_int_equal (info_of (f, "b").state, DIRTY_RECORDING);
  assert_no_bitmap (f, "c");
  session_unref (s);
  session_unref (t);
}

#define TEST(f) cmocka_unit_test_setup_teardown (f, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_first_full_then_incremental),
    TEST (test_abort_loses_nothing),
    TEST (test_aborted_full),
    TEST (test_finished_full),
    TEST (test_copy_touches_no_bitmap),
    TEST (test_kept_bitmaps),
    TEST (test_incremental_or_an_error),
    TEST (test_bad_requests),
    TEST (test_failed_begin_changes_nothing),
    TEST (test_failed_start_is_undone),
    TEST (test_busy_bitmap_and_several_sessions),
    TEST (test_limit),
    TEST (test_attach_and_queries),
    TEST (test_empty_disk),
    TEST (test_shutdown_merges_back),
  };

  limit_test_time ();
  log_set_handler (unit_ignore_log);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
