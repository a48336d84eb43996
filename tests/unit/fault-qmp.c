/* SPDX-License-Identifier: BSD-3-Clause */
/* Every allocation of JSON fails in turn, in every command: the reply is an
 * error, right, or missing; nothing is lost and no session is left that nobody
 * knows of.  (Leaks are for the address sanitizer to find.)
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "qmp.h"

/* How many allocations succeed before one fails; negative: all. */
static long countdown = -1;
static bool has_fired;

static void *
failing_malloc (size_t size)
{
  if (countdown == 0)
    has_fired = true;
  if (countdown >= 0 && countdown-- == 0)
    return NULL;
  return malloc (size);
}

static char dir[] = "/tmp/fault-qmp.XXXXXX";
static struct service *service;

static int
setup (void **state)
{
  struct error err = ERROR_INIT;
  FILE *fp;

  if (mkdtemp (dir) == NULL || chdir (dir) < 0)
    return -1;
  fp = fopen ("vda.raw", "w");
  if (fp == NULL || ftruncate (fileno (fp), 1 << 20) < 0 || fclose (fp))
    return -1;
  if (service_new (&service) == 0 &&
      service_add_disk (service, "vda,file=vda.raw", &err) == 0 &&
      service_add_bitmap (service, "vda/b", &err) == 0 &&
      service_add_address (service, SERVICE_BACKUP, "unix:s", &err) == 0 &&
      service_set_scratch_dir (service, dir, &err) == 0 &&
      service_open (service, &err) == 0 &&
      service_bind (service, &err) == 0 &&
      service_start (service, &err) == 0)
    return 0;
  print_error ("%s\n", err.msg);
  return -1;
}

static int
teardown (void **state)
{
  service_free (service);
  unlink ("vda.raw");
  unlink ("vda.raw.tidemark");
  return chdir ("/") == 0 && rmdir (dir) == 0 ? 0 : -1;
}

static json_t *
run (const char *text)
{
  bool is_negotiated = true;
  json_t *request = json_loads (text, 0, NULL), *reply;

  assert_non_null (request);
  json_set_alloc_funcs (failing_malloc, free);
  reply = qmp_dispatch (service, -1, NULL, &is_negotiated, request);
  json_set_alloc_funcs (malloc, free);
  countdown = -1;
  json_decref (request);
  return reply;
}

static void
end_sessions (size_t expected)
{
  struct session **sessions;
  size_t nr, i;

  assert_int_equal (session_list (service_sessions (service), &sessions, &nr),
                    0);
  assert_int_equal (nr, expected);
  for (i = 0; i < nr; i++)
    session_end (service_sessions (service), session_id (sessions[i]), false,
                 NULL);
  session_list_free (sessions, nr);
}

static bool
is_success (json_t *reply)
{
  assert_true (json_is_object (reply));
  assert_true (!json_object_get (reply, "return") !=
               !json_object_get (reply, "error"));
  return json_object_get (reply, "return") != NULL;
}

/* A command that changes nothing but, perhaps, begins a session. */
static void
check (const char *text)
{
  bool begins = strstr (text, "backup-begin") != NULL;
  char *right = NULL;
  long n;

  for (n = -1;; n++) {
    json_t *reply;
    bool success;

    countdown = n;
    has_fired = false;
    reply = run (text);
    success = reply && is_success (reply);
    /* When the reply itself cannot be made the session lives on: the client
     * is cut off, and it ends by its lease.
     */
    if (begins && reply)
      end_sessions (success);
    else if (begins)
      end_sessions (1);
    if (n == -1) {
      assert_non_null (reply);
      right = json_dumps (reply, 0);
    }
    else if (!has_fired) {
      char *last = json_dumps (reply, 0);

      if (!begins)
        assert_string_equal (last, right);
      free (last);
    }
    json_decref (reply);
    if (n >= 0 && !has_fired)
      break;
  }
  free (right);
  assert_true (n > 3);
}

static void
test_queries (void **state)
{
  check ("{\"execute\": \"query-block\"}");
  check ("{\"execute\": \"query-named-block-nodes\"}");
  check ("{\"execute\": \"query-version\", \"id\": [1, {}]}");
  check ("{\"execute\": \"query-commands\"}");
}

static void
test_errors (void **state)
{
  check ("{\"execute\": \"no-such-command\", \"id\": 1}");
  check ("{\"execute\": \"block-dirty-bitmap-add\", \"id\": 1}");
  check ("{\"execute\": \"backup-end\", \"arguments\": {\"success\": true, "
         "\"id\": \"00000000000000000000000000000000\"}}");
}

/* Two commands that undo each other. */
static void
check_pair (const char *text, const char *undo)
{
  long n;
  bool fired;

  for (n = 0;; n++) {
    json_t *reply;

    countdown = n;
    has_fired = false;
    reply = run (text);
    fired = has_fired;
    /* Whether or not the reply could be made, what was done can be undone. */
    if (!reply || is_success (reply))
      json_decref (run (undo));
    json_decref (reply);
    if (!fired)
      break;
  }
  assert_true (n > 1);
}

static void
test_nodes (void **state)
{
  static const char add[] = "{\"execute\": \"blockdev-add\", \"arguments\": "
    "{\"driver\": \"raw\", \"node-name\": \"n\", \"file\": "
    "{\"driver\": \"null-co\"}}}";
  static const char del[] = "{\"execute\": \"blockdev-del\", \"arguments\": "
    "{\"node-name\": \"n\"}}";
  json_t *reply;

  check_pair (add, del);
  reply = run (add);
  assert_true (is_success (reply));
  json_decref (reply);
  check ("{\"execute\": \"query-block\"}");
  check ("{\"execute\": \"query-block-exports\"}");
  check ("{\"execute\": \"blockdev-del\", \"arguments\": "
         "{\"node-name\": \"no\"}}");
  check ("{\"execute\": \"block-export-add\", \"arguments\": {\"type\": "
         "\"nbd\", \"id\": \"e\", \"node-name\": \"n\"}}");
  check ("{\"execute\": \"x-debug-block-dirty-bitmap-sha256\", "
         "\"arguments\": {\"node\": \"vda\", \"name\": \"b\"}}");
  check_pair ("{\"execute\": \"nbd-server-start\", \"arguments\": {\"addr\": "
              "{\"type\": \"unix\", \"data\": {\"path\": \"x\"}}}}",
              "{\"execute\": \"nbd-server-stop\"}");
  reply = run (del);
  assert_true (is_success (reply));
  json_decref (reply);
}

static void
test_backup (void **state)
{
  char text[100], id[POINT_ID_STRING_SIZE];
  struct session **sessions;
  size_t nr;

  check ("{\"execute\": \"backup-begin\", \"arguments\": "
         "{\"bitmap\": \"b\"}}");
  check ("{\"execute\": \"backup-begin\", \"arguments\": "
         "{\"mode\": \"copy\"}}");

  json_decref (run ("{\"execute\": \"backup-begin\", \"arguments\": "
                    "{\"bitmap\": \"b\"}}"));
  assert_int_equal (session_list (service_sessions (service), &sessions, &nr),
                    0);
  assert_int_equal (nr, 1);
  point_id_format (session_id (sessions[0]), id);
  session_list_free (sessions, nr);
  check ("{\"execute\": \"query-backups\"}");
  snprintf (text, sizeof text, "{\"execute\": \"backup-attach\", "
            "\"arguments\": {\"id\": \"%s\"}}", id);
  check (text);
  end_sessions (1);
}

/* A bitmap that cannot be trusted is never shown without saying so. */
static void
test_inconsistent (void **state)
{
  struct disk *disk = service_disk (service, 0);
  struct dirty_bitmap *bm = dirty_find (disk_dirty (disk), "b");
  json_t *reply, *bitmap;

  assert_non_null (bm);
  gate_close (disk_gate (disk));
  dirty_invalidate (disk_dirty (disk), bm, "a test \xff");
  gate_open (disk_gate (disk));
  dirty_unref (bm);
  check ("{\"execute\": \"query-block\"}");
  reply = run ("{\"execute\": \"query-block\"}");
  assert_int_equal (json_unpack (reply, "{s[{s{s[o]}}]}", "return",
                                 "inserted", "dirty-bitmaps", &bitmap), 0);
  assert_true (json_is_true (json_object_get (bitmap, "inconsistent")));
  assert_string_equal (json_string_value (json_object_get (bitmap, "reason")),
                       "a test ?");
  assert_string_equal (json_string_value (json_object_get (bitmap, "status")),
                       "inconsistent");
  json_decref (reply);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_queries),
    cmocka_unit_test (test_errors),
    cmocka_unit_test (test_nodes),
    cmocka_unit_test (test_backup),
    cmocka_unit_test (test_inconsistent),
  };

  alarm (30);
  return cmocka_run_group_tests (tests, setup, teardown);
}
