/* SPDX-License-Identifier: BSD-3-Clause */
/* tidemark: the client.  Finds the command, parses its options, runs it. */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "client.h"
#include "interrupt.h"
#include "log.h"
#include "progress.h"
#include "tls-options.h"

static const struct command *const commands[] = {
  &cmd_backup, &cmd_list, &cmd_info, &cmd_restore, &cmd_verify, &cmd_bitmap,
  &cmd_map, &cmd_check, &cmd_store,
};
#define NR_COMMANDS (sizeof commands / sizeof commands[0])

static const struct option_spec no_options[] = { { NULL } };

int
client_fail (const struct error *err)
{
  log_error ("%s", err->msg);
  return err->errnum == ECANCELED ? STATUS_INTERRUPTED : STATUS_FAILED;
}

static int
usage_status (const struct command *c)
{
  return c && c->usage_status ? c->usage_status : STATUS_USAGE;
}

int
client_usage (const struct command *command, const char *fmt, ...)
{
  va_list args;

  fprintf (stderr, "tidemark%s%s: ", command ? " " : "",
           command ? command->name : "");
  va_start (args, fmt);
  vfprintf (stderr, fmt, args);
  va_end (args);
  fprintf (stderr, "\nTry 'tidemark%s%s --help'.\n", command ? " " : "",
           command ? command->name : "");
  return usage_status (command);
}

static void
print_commands (FILE *fp)
{
  size_t i;

  for (i = 0; i < NR_COMMANDS; i++)
    fprintf (fp, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
}

static void
print_help (void)
{
  printf ("Usage: tidemark COMMAND [OPTION...] ARGUMENT...\n\n"
          "Back up disks over NBD into qcow2 chains, restore and verify "
          "them.\n\nCommands:\n");
  print_commands (stdout);
  printf ("\n  --help       this text; after a command, its own\n"
          "  --version    the version\n\n"
          "Exit codes: 0 done, 1 failed, 2 wrong options or arguments, 3 "
          "verify found\ndamage, 4 interrupted, 5 some disks are not backed "
          "up (--partial-ok); of check\n2 corruption, 3 leaks.\n"
          "See tidemark(1).\n");
}

static void
print_command_help (const struct command *c)
{
  printf ("Usage: tidemark %s [OPTION...] %s\n\n%s.\n\n", c->name,
          c->synopsis, c->summary);
  options_print_help (c->options, stdout);
  printf ("  %-28s %s\n", "    --help", "this text");
}

static const struct command *
find_command (const char *name)
{
  size_t i;

  for (i = 0; i < NR_COMMANDS; i++)
    if (strcmp (commands[i]->name, name) == 0)
      return commands[i];
  return NULL;
}

/* --help and its like, which work whatever else is there. */
static bool
handle_query (const struct command *c, int argc, char **argv)
{
  int i;

  for (i = 0; i < argc && strcmp (argv[i], "--") != 0; i++)
    if (strcmp (argv[i], "--help") == 0) {
      print_command_help (c);
      return true;
    }
    else if (strcmp (argv[i], "--long-options") == 0) {
      options_print_names (c->options, "\n", stdout);
      return true;
    }
  return false;
}

static int
usage_options (const struct command *c, const struct error *err)
{
  fprintf (stderr, "tidemark %s: %s\nAllowed options: ", c->name, err->msg);
  options_print_names (c->options, ", ", stderr);
  fprintf (stderr, "Try 'tidemark %s --help'.\n", c->name);
  return usage_status (c);
}

static int
run_command (const struct command *c, int argc, char **argv)
{
  struct options o;
  struct error err = ERROR_INIT;
  int status;

  if (handle_query (c, argc, argv))
    return STATUS_OK;
  if (options_parse (c->options ? c->options : no_options, argc, argv, &o,
                     &err) < 0)
    return usage_options (c, &err);
  if (o.nr_args < c->min_args)
    status = client_usage (c, "missing argument; it takes %s", c->synopsis);
  else if (o.nr_args > c->max_args)
    status = client_usage (c, "unexpected argument '%s'; it takes %s",
                           o.args[c->max_args], c->synopsis);
  else if (tls_options_init (&o, &err) < 0)
    status = client_usage (c, "%s", err.msg);
  else if (interrupt_init (&err) < 0)
    status = client_fail (&err);
  else {
    progress_init (options_has (&o, "json") ? PROGRESS_JSON
                   : options_has (&o, "quiet") ? PROGRESS_QUIET
                   : PROGRESS_HUMAN);
    status = c->run (&o);
  }
  tls_options_fini ();
  options_free (&o);
  return status;
}

static int
unknown_command (const char *name)
{
  fprintf (stderr, "tidemark: unknown %s '%s'; the commands are:\n",
           name[0] == '-' ? "option" : "command", name);
  print_commands (stderr);
  return STATUS_USAGE;
}

int
main (int argc, char **argv)
{
  const struct command *c;
  int status;

  if (argc < 2) {
    fprintf (stderr, "tidemark: a command is missing; the commands are:\n");
    print_commands (stderr);
    return STATUS_USAGE;
  }
  log_set_program ("tidemark");
  if (strcmp (argv[1], "--help") == 0 || strcmp (argv[1], "help") == 0)
    print_help ();
  else if (strcmp (argv[1], "--version") == 0)
    printf ("%s\n", PACKAGE_STRING);
  else {
    c = find_command (argv[1]);
    status = c ? run_command (c, argc - 2, argv + 2)
      : unknown_command (argv[1]);
    if (fflush (stdout) == EOF && status == STATUS_OK) {
      fprintf (stderr, "tidemark: cannot write to stdout: %s\n",
               strerror (errno));
      status = STATUS_FAILED;
    }
    interrupt_fini ();
    return status;
  }
  return fflush (stdout) == EOF ? STATUS_FAILED : STATUS_OK;
}
