/* SPDX-License-Identifier: BSD-3-Clause */
/* The export table: names, references, and removal that waits. */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "blk-mem.h"
#include "export.h"

static struct blk *node;

static int
add (struct export_table *t, const char *name, struct error *err)
{
  const struct export_options options = { .name = name, .blk = node };

  return export_add (t, &options, err);
}

static void
test_names (void **state)
{
  struct error error = ERROR_INIT;
  struct export_table *t;
  struct export *e, **list;
  char *long_name = calloc (1, EXPORT_NAME_MAX + 2);
  size_t nr;

  assert_non_null (long_name);
  assert_int_equal (export_table_new (&t), 0);
  assert_null (export_find (t, ""));
  assert_int_equal (add (t, "one", &error), 0);
  e = export_find (t, "");
  assert_string_equal (export_name (e), "one");
  export_unref (e);
  assert_int_equal (add (t, "two", &error), 0);
  assert_null (export_find (t, ""));
  assert_int_equal (add (t, "one", &error), -EEXIST);
  assert_non_null (strstr (error.msg, "one"));
  assert_int_equal (add (t, "", &error), 0);
  e = export_find (t, "");
  assert_string_equal (export_name (e), "");
  export_unref (e);

  memset (long_name, 'n', EXPORT_NAME_MAX + 1);
  assert_int_equal (add (t, long_name, &error), -EINVAL);
  long_name[EXPORT_NAME_MAX] = '\0';
  assert_int_equal (add (t, long_name, &error), 0);

  assert_int_equal (export_list (t, &list, &nr), 0);
  assert_int_equal (nr, 4);
  assert_string_equal (export_name (list[1]), "two");
  assert_int_equal (export_remove (t, "two"), 0);
  assert_int_equal (export_remove (t, "two"), -ENOENT);
  /* A reference outlives the removal, but lets nobody in. */
  assert_string_equal (export_name (list[1]), "two");
  assert_false (export_enter (list[1]));
  assert_true (export_enter (list[0]));
  export_leave (list[0]);
  export_list_free (list, nr);
  assert_int_equal (export_remove (t, "one"), 0);
  assert_int_equal (export_remove (t, ""), 0);
  assert_int_equal (export_remove (t, long_name), 0);
  export_table_free (t);
  free (long_name);
}

static void
test_no_bitmaps (void **state)
{
  struct dirty_bitmap **bitmaps;
  struct export_table *t;
  struct export *e;
  char **names;
  size_t nr;

  assert_int_equal (export_table_new (&t), 0);
  assert_int_equal (add (t, "x", NULL), 0);
  e = export_find (t, "x");
  assert_null (export_find_bitmap (e, "b"));
  assert_int_equal (export_bitmaps (e, &bitmaps, &names, &nr), 0);
  assert_int_equal (nr, 0);
  free (bitmaps);
  free (names);
  export_unref (e);
  assert_int_equal (export_remove (t, "x"), 0);
  export_table_free (t);
}

/* Many threads go in and out while the export is removed: after the removal
 * nobody is inside.
 */
#define NR_THREADS 4

static _Atomic bool is_removed;
static _Atomic unsigned nr_entered;

static void *
use (void *opaque)
{
  struct export *e = opaque;

  while (export_enter (e)) {
    /* cmocka's assertions are for the main thread only. */
    if (atomic_load (&is_removed))
      abort ();
    atomic_fetch_add (&nr_entered, 1);
    if (atomic_load (&is_removed))
      abort ();
    export_leave (e);
  }
  export_unref (e);
  return NULL;
}

static void
test_removal_waits (void **state)
{
  pthread_t threads[NR_THREADS];
  struct export_table *t;
  unsigned round, i;

  assert_int_equal (export_table_new (&t), 0);
  for (round = 0; round < 100; ++round) {
    atomic_store (&is_removed, false);
    atomic_store (&nr_entered, 0);
    assert_int_equal (add (t, "x", NULL), 0);
    for (i = 0; i < NR_THREADS; ++i)
      assert_int_equal (pthread_create (&threads[i], NULL, use,
                                        export_find (t, "x")), 0);
    while (atomic_load (&nr_entered) < 100)
      sched_yield ();
    assert_int_equal (export_remove (t, "x"), 0);
    atomic_store (&is_removed, true);
    for (i = 0; i < NR_THREADS; ++i)
      pthread_join (threads[i], NULL);
  }
  export_table_free (t);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_names),
    cmocka_unit_test (test_no_bitmaps),
    cmocka_unit_test (test_removal_waits),
  };
  int r;

  if (blk_mem_new (65536, &node) < 0)
    return 1;
  r = cmocka_run_group_tests (tests, NULL, NULL);
  blk_close (node);
  return r;
}
