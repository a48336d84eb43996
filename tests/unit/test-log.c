/* SPDX-License-Identifier: BSD-3-Clause */
/* common/log: levels, handler, one line per message. */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "log.h"
#include "unit/unit.h"

static enum log_level last_level;
static char last[2000];
static unsigned nr_messages;

static void
handler (enum log_level level, const char *msg)
{
  last_level = level;
  snprintf (last, sizeof last, "%s", msg);
  nr_messages++;
}

static void
test_handler (void **state)
{
  log_set_handler (handler);
  log_error ("%s: %d", "x", 1);
  assert_int_equal (last_level, LOG_LEVEL_ERROR);
  assert_string_equal (last, "x: 1");
  log_info ("a\nb");
  assert_int_equal (last_level, LOG_LEVEL_INFO);
  assert_string_equal (last, "a b");

  nr_messages = 0;
  log_debug ("not wanted");
  assert_int_equal (nr_messages, 0);
  log_set_debug (true);
  log_debug ("wanted");
  assert_int_equal (nr_messages, 1);
  log_set_debug (false);
  log_set_handler (NULL);
}

/* What goes to stderr without a handler. */
static void
test_stderr (void **state)
{
  char text[1000] = "";
  FILE *file = tmpfile ();
  int saved = dup (STDERR_FILENO);
  size_t len;

  assert_non_null (file);
  fflush (stderr);
  dup2 (fileno (file), STDERR_FILENO);
  log_set_program ("prog");
  log_error ("bad");
  log_warning ("odd");
  log_info ("quiet");
  fflush (stderr);
  dup2 (saved, STDERR_FILENO);
  close (saved);
  rewind (file);
  len = fread (text, 1, sizeof text - 1, file);
  text[len] = '\0';
  fclose (file);
  assert_string_equal (text, "prog: bad\nprog: warning: odd\n");
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_handler),
    cmocka_unit_test (test_stderr),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
