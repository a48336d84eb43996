/* SPDX-License-Identifier: BSD-3-Clause */
/* Every allocation fails in turn, in each command that adds or removes nodes,
 * exports, the NBD server or objects: it is done or it is not, as its reply
 * says.  If it is not, everything is as it was, and the same command works
 * right after.  (Leaks are for the address sanitizer to find.)
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

#include "blk-file.h"
#include "blk-qcow2.h"
#include "fault-alloc.h"
#include "qmp.h"

#define SIZE (UINT64_C (1) << 20)

static char dir[] = "/tmp/fault-nodes.XXXXXX";
static struct service *service;

/*---- Commands ----*/

/* One whose allocation nr fails, 0 = none; *ret_fired: it has that many. */
static json_t *
run (const char *text, unsigned nr, bool *ret_fired)
{
  bool is_negotiated = true;
  json_error_t error;
  json_t *request = json_loads (text, 0, &error), *reply;

  if (request == NULL)
    fail_msg ("%s: %s", text, error.text);
  left = nr;
  reply = qmp_dispatch (service, -1, NULL, &is_negotiated, request);
  if (ret_fired)
    *ret_fired = nr > 0 && left == 0;
  left = 0;
  json_decref (request);
  return reply;
}

static bool
is_success (const json_t *reply)
{
  return json_object_get (reply, "return") != NULL;
}

static void
must (const char *text)
{
  json_t *reply = run (text, 0, NULL);

  if (!is_success (reply))
    fail_msg ("%s: %s", text, json_string_value (json_object_get (
      json_object_get (reply, "error"), "desc")));
  json_decref (reply);
}

/* The numbers in names that the server gives do not count. */
static void
forget_numbers (char *text)
{
  static const char name[] = "#block";
  char *p = text, *end;

  while ((p = strstr (p, name)) != NULL) {
    p += strlen (name);
    for (end = p; *end >= '0' && *end <= '9'; end++)
      ;
    memmove (p, end, strlen (end) + 1);
  }
}

/* All that can be asked for. */
static char *
look (void)
{
  static const char *const queries[] = {
    "{\"execute\": \"query-named-block-nodes\"}",
    "{\"execute\": \"query-block\"}",
    "{\"execute\": \"query-block-exports\"}",
  };
  json_t *replies = json_array ();
  char *ret;
  size_t i;

  for (i = 0; i < sizeof queries / sizeof queries[0]; i++)
    json_array_append_new (replies, run (queries[i], 0, NULL));
  ret = json_dumps (replies, 0);
  json_decref (replies);
  assert_non_null (ret);
  forget_numbers (ret);
  return ret;
}

static void
expect_state (const char *expected, const char *text, unsigned n)
{
  char *now = look ();

  if (strcmp (now, expected) != 0)
    fail_msg ("%s: with allocation %u failing: expected %s, but it is %s",
              text, n, expected, now);
  free (now);
}

/* command, and what undoes it.  How many allocations it makes, and one. */
static unsigned
check (const char *command, const char *undo)
{
  char *before = look (), *after;
  json_t *reply;
  bool has_fired = true;
  unsigned n;

  must (command);
  after = look ();
  must (undo);
  expect_state (before, undo, 0);
  for (n = 1; has_fired; n++) {
    reply = run (command, n, &has_fired);
    assert_true (has_fired || reply != NULL);
    if (reply && !is_success (reply)) {
      expect_state (before, command, n);
      must (command);
    }
    expect_state (after, command, n);
    json_decref (reply);
    must (undo);
    expect_state (before, undo, n);
  }
  free (before);
  free (after);
  return n - 1;
}

/* Both ways. */
static void
check_both (const char *command, const char *undo)
{
  assert_true (check (command, undo) > 1);
  must (command);
  check (undo, command);
  must (undo);
}

/*---- Fixtures ----*/

static int
make_file (const char *name)
{
  FILE *fp = fopen (name, "w");

  return fp && ftruncate (fileno (fp), (off_t) SIZE) == 0 && fclose (fp) == 0
    ? 0 : -1;
}

static int
make_image (const char *name)
{
  const struct qcow2_create_options options = {
    .size = SIZE, .backing_file = "base.raw", .backing_format = "raw",
  };
  struct error err = ERROR_INIT;
  struct blk *file, *image;

  if (blk_file_open (name, BLK_FILE_CREATE | BLK_FILE_ANY_SIZE, &file, &err)
      == 0 && blk_qcow2_create (file, &options, &image, &err) == 0
      && blk_close (image) == 0)
    return 0;
  print_error ("%s\n", err.msg);
  return -1;
}

static int
make_keys (void)
{
  FILE *fp = fopen ("keys.psk", "w");

  return fp && fputs ("alice:00112233445566778899aabbccddeeff\n", fp) >= 0
    && fclose (fp) == 0 ? 0 : -1;
}

static int
setup (void **state)
{
  struct error err = ERROR_INIT;

  if (mkdtemp (dir) == NULL || chdir (dir) < 0 || make_file ("vda.raw") < 0
      || make_file ("base.raw") < 0 || make_file ("a.raw") < 0
      || make_image ("a.qcow2") < 0 || make_keys () < 0)
    return -1;
  if (service_new (&service) == 0 &&
      service_add_disk (service, "vda,file=vda.raw", &err) == 0 &&
      service_add_bitmap (service, "vda/b", &err) == 0 &&
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
  static const char *const names[] = {
    "vda.raw", "vda.raw.tidemark", "base.raw", "a.raw", "a.tidemark",
    "a.qcow2", "keys.psk"
  };
  size_t i;

  service_free (service);
  for (i = 0; i < sizeof names / sizeof names[0]; i++)
    unlink (names[i]);
  return chdir ("/") == 0 && rmdir (dir) == 0 ? 0 : -1;
}

/*---- Tests ----*/

#define ADD(text) \
  "{\"execute\": \"blockdev-add\", \"arguments\": {" text "}}"
#define DEL(name) \
  "{\"execute\": \"blockdev-del\", \"arguments\": {\"node-name\": \"" name \
  "\"}}"
#define FILE_NODE(path) \
  "\"driver\": \"file\", \"filename\": \"" path "\""

static void
test_nodes (void **state)
{
  check_both (ADD ("\"driver\": \"null-co\", \"node-name\": \"n\""),
              DEL ("n"));
  check_both (ADD ("\"driver\": \"raw\", \"node-name\": \"n\", \"offset\": 512,"
                   " \"size\": 4096, \"file\": {" FILE_NODE ("a.raw") "}"),
              DEL ("n"));
  check_both (ADD ("\"driver\": \"blkdebug\", \"node-name\": \"n\", \"image\":"
                   " {" FILE_NODE ("a.raw") "}, \"inject-error\": [{\"event\":"
                   " \"read_aio\", \"errno\": 5}]"), DEL ("n"));
}

/* It writes through one reference, and reads through the other. */
static void
test_references (void **state)
{
  must (ADD (FILE_NODE ("a.qcow2") ", \"node-name\": \"file\""));
  must (ADD (FILE_NODE ("base.raw") ", \"node-name\": \"base\", "
             "\"read-only\": true"));
  check_both (ADD ("\"driver\": \"qcow2\", \"node-name\": \"n\", \"file\": "
                   "\"file\", \"backing\": \"base\""), DEL ("n"));
  must (DEL ("base"));
  must (DEL ("file"));
}

#define BITMAP(command, more) \
  "{\"execute\": \"block-dirty-bitmap-" command "\", \"arguments\": {" \
  "\"node\": \"n\", \"name\": \"p\"" more "}}"

/* The bitmap is there; and as it was, or for a reason not.  Was it? */
static bool
is_bitmap_sound (void)
{
  char *text = look ();
  bool is_lost = strstr (text, "\"inconsistent\": true") != NULL;

  assert_non_null (strstr (text, "\"name\": \"p\""));
  assert_true (!is_lost || strstr (text, "the store failed: "));
  free (text);
  return !is_lost;
}

/* The store could not be opened: what it had is there. */
static bool
is_of_opening (const json_t *reply)
{
  const char *desc = json_string_value (json_object_get (
    json_object_get (reply, "error"), "desc"));

  return desc && (strstr (desc, "': cannot write")
                  || strstr (desc, "': cannot recover"));
}

/* One allocation of command fails; after it it has been done. */
static bool
do_with_fault (const char *command, unsigned n)
{
  bool has_fired;
  json_t *reply = run (command, n, &has_fired);

  if (reply && !is_success (reply)) {
    must (command);
    assert_true (!is_of_opening (reply) || is_bitmap_sound ());
  }
  json_decref (reply);
  return has_fired;
}

/* A store with a bitmap is opened and closed.  There may be no memory for its
 * table: then the store has failed, and works again as soon as somebody asks
 * for a bitmap.
 */
static void
test_store (void **state)
{
  unsigned n, nr_lost = 0;
  bool goes_on = true;
  char add[300];

  snprintf (add, sizeof add, ADD (
    "\"driver\": \"raw\", \"node-name\": \"n\", "
    "\"store\": \"%s/a.tidemark\", "
    "\"file\": {" FILE_NODE ("a.raw") "}"), dir);
  must (add);
  must (BITMAP ("add", ", \"persistent\": true"));
  for (n = 1; goes_on; n++) {
    goes_on = do_with_fault (DEL ("n"), n);
    goes_on |= do_with_fault (add, n);
    if (is_bitmap_sound ())
      continue;
    nr_lost++;
    must (BITMAP ("remove", ""));
    must (BITMAP ("add", ", \"persistent\": true"));
  }
  assert_true (n > 50 && nr_lost < n / 2);
  must (DEL ("n"));
}

static void
test_exports (void **state)
{
  check_both ("{\"execute\": \"nbd-server-start\", \"arguments\": {\"addr\": "
              "{\"type\": \"unix\", \"data\": {\"path\": \"x\"}}}}",
              "{\"execute\": \"nbd-server-stop\"}");
  must ("{\"execute\": \"nbd-server-start\", \"arguments\": {\"addr\": "
        "{\"type\": \"unix\", \"data\": {\"path\": \"x\"}}}}");
  must (ADD ("\"driver\": \"null-co\", \"node-name\": \"n\""));
  must ("{\"execute\": \"block-dirty-bitmap-add\", \"arguments\": {\"node\": "
        "\"n\", \"name\": \"m\", \"disabled\": true}}");
  check_both ("{\"execute\": \"block-export-add\", \"arguments\": {\"type\": "
              "\"nbd\", \"id\": \"e\", \"node-name\": \"n\", \"name\": \"x\", "
              "\"description\": \"y\", \"bitmaps\": [\"m\"]}}",
              "{\"execute\": \"block-export-del\", \"arguments\": {\"id\": "
              "\"e\"}}");
  check_both ("{\"execute\": \"nbd-server-add\", \"arguments\": {\"device\": "
              "\"n\"}}", "{\"execute\": \"nbd-server-remove\", \"arguments\": "
              "{\"name\": \"n\"}}");
  must (DEL ("n"));
  must ("{\"execute\": \"nbd-server-stop\"}");
}

static void
test_objects (void **state)
{
  check_both ("{\"execute\": \"object-add\", \"arguments\": {\"qom-type\": "
              "\"tls-creds-psk\", \"id\": \"o\", \"endpoint\": \"server\", "
              "\"dir\": \".\"}}", "{\"execute\": \"object-del\", "
              "\"arguments\": {\"id\": \"o\"}}");
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_nodes),
    cmocka_unit_test (test_references),
    cmocka_unit_test (test_store),
    cmocka_unit_test (test_exports),
    cmocka_unit_test (test_objects),
  };

  alarm (60);
  return cmocka_run_group_tests (tests, setup, teardown);
}
