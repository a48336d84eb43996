/* SPDX-License-Identifier: BSD-3-Clause */
/* tidemarkd's command line: one table of options, from which getopt's, --help
 * and --long-options are made.
 *
 * Options may come in any order: values are collected first, and disks are
 * configured before the bitmaps that name them.
 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exit-status.h"
#include "log.h"
#include "options.h"
#include "size.h"
#include "vector.h"

enum option_id {
  OPT_BACKUP_LISTEN = 256, OPT_BITMAP, OPT_CONTROL, OPT_DAEMON, OPT_DISK,
  OPT_LISTEN, OPT_LONG_OPTIONS, OPT_MAX_CONNECTIONS, OPT_PID_FILE,
  OPT_SCRATCH_DIR, OPT_SCRATCH_LIMIT, OPT_SHORT_OPTIONS, OPT_TLS, OPT_TLS_ALLOW,
  OPT_TLS_CERTIFICATES, OPT_TLS_PSK, OPT_TLS_VERIFY_PEER,
  OPT_HELP = 'h', OPT_VERBOSE = 'v', OPT_VERSION = 'V',
};

static const struct option_text {
  const char *name;
  enum option_id id;
  const char *arg;              /* NULL = takes none */
  const char *text;             /* NULL = not in --help */
} options[] = {
  { "backup-listen", OPT_BACKUP_LISTEN, "ADDRESS",
    "where backup clients read (NBD, read-only)" },
  { "bitmap", OPT_BITMAP, "DISK/NAME[,OPTION=...]",
    "record changes of the disk from the start" },
  { "control", OPT_CONTROL, "ADDRESS", "control socket (QMP)" },
  { "daemon", OPT_DAEMON, NULL, "run in the background" },
  { "disk", OPT_DISK, "NAME,file=PATH[,OPTION=...]", "a disk to serve" },
  { "help", OPT_HELP, NULL, "print this" },
  { "listen", OPT_LISTEN, "ADDRESS", "where the disks are served (NBD)" },
  { "long-options", OPT_LONG_OPTIONS, NULL, NULL },
  { "max-connections", OPT_MAX_CONNECTIONS, "NUMBER",
    "clients at once, of each kind of address" },
  { "pid-file", OPT_PID_FILE, "FILE", "write the process id when ready" },
  { "scratch-dir", OPT_SCRATCH_DIR, "DIR",
    "where old data goes while a backup is read" },
  { "scratch-limit", OPT_SCRATCH_LIMIT, "SIZE",
    "most old data to keep for a disk and a backup" },
  { "short-options", OPT_SHORT_OPTIONS, NULL, NULL },
  { "tls", OPT_TLS, "off|on|require",
    "TLS over TCP (require if it has files)" },
  { "tls-allow", OPT_TLS_ALLOW, "ROLE[/DISK]:NAME",
    "who may connect: guest, backup, admin" },
  { "tls-certificates", OPT_TLS_CERTIFICATES, "DIR",
    "ca-cert.pem, server-cert.pem, server-key.pem" },
  { "tls-psk", OPT_TLS_PSK, "FILE", "pre-shared keys, USER:HEXKEY" },
  { "tls-verify-peer", OPT_TLS_VERIFY_PEER, NULL,
    "clients need certificates, too" },
  { "verbose", OPT_VERBOSE, NULL, "say what is done" },
  { "version", OPT_VERSION, NULL, "print the version" },
};

#define NR_OPTIONS (sizeof options / sizeof options[0])

struct value {
  enum option_id id;
  const char *text;             /* points into argv */
};

DEFINE_VECTOR (value_vector, struct value);

static void
print_help (void)
{
  size_t i;

  printf ("Usage: tidemarkd --disk NAME,file=PATH [--bitmap DISK/NAME] ...\n"
          "         --listen ADDRESS --backup-listen ADDRESS "
          "--control unix:PATH\n\n"
          "Serves live disks over NBD, records what changes, and lets backup\n"
          "clients read them as of one instant.\n\n");
  for (i = 0; i < NR_OPTIONS; i++) {
    const struct option_text *o = &options[i];
    char left[64];

    if (o->text == NULL)
      continue;
    snprintf (left, sizeof left, "%s%c%s--%s%s%s", o->id < 256 ? "-" : "",
              o->id < 256 ? (int) o->id : ' ', o->id < 256 ? ", " : "   ",
              o->name, o->arg ? " " : "", o->arg ? o->arg : "");
    printf (strlen (left) > 32 ? "  %s\n%36s%s\n" : "  %-34s%s%s\n", left, "",
            o->text);
  }
  printf ("\nADDRESS is unix:PATH, a path beginning with /, HOST:PORT, "
          "[IPV6]:PORT or\n:PORT.  See tidemarkd(8).\n");
}

static void
print_options (bool is_long)
{
  size_t i;

  for (i = 0; i < NR_OPTIONS; i++)
    if (is_long)
      printf ("--%s\n", options[i].name);
    else if (options[i].id < 256)
      printf ("-%c\n", (int) options[i].id);
}

/* Returns the exit status. */
static int
answer (enum option_id id)
{
  switch ((int) id) {
  case OPT_HELP: print_help (); break;
  case OPT_LONG_OPTIONS: print_options (true); break;
  case OPT_SHORT_OPTIONS: print_options (false); break;
  case OPT_VERSION: printf ("tidemarkd %s\n", PACKAGE_VERSION); break;
  }
  return fflush (stdout) == 0 ? EXIT_STATUS_OK : EXIT_STATUS_FAILED;
}

static int
usage_error (const char *text)
{
  log_error ("%s (try --help)", text);
  return EXIT_STATUS_USAGE;
}

/* Collect options that have values.  -1 or the exit status. */
static int
collect (int argc, char *argv[], struct value_vector *values,
         struct daemon_options *ret)
{
  struct option long_options[NR_OPTIONS + 1];
  size_t i;
  int c;

  memset (long_options, 0, sizeof long_options);
  for (i = 0; i < NR_OPTIONS; i++)
    long_options[i] = (struct option) {
      .name = options[i].name,
      .has_arg = options[i].arg ? required_argument : no_argument,
      .val = (int) options[i].id,
    };
  while ((c = getopt_long (argc, argv, "hvV", long_options, NULL)) != -1) {
    const struct value value = { .id = (enum option_id) c, .text = optarg };

    switch (c) {
    case '?': return usage_error ("bad options");
    case OPT_HELP:
    case OPT_LONG_OPTIONS:
    case OPT_SHORT_OPTIONS:
    case OPT_VERSION: return answer (value.id);
    case OPT_DAEMON: ret->is_daemon = true; break;
    case OPT_VERBOSE: ret->is_verbose = true; break;
    case OPT_PID_FILE: ret->pid_file = optarg; break;
    default:
      if (value_vector_append (values, value) < 0)
        return usage_error ("no memory");
    }
  }
  if (optind < argc) {
    log_error ("'%s' is not an option (try --help)", argv[optind]);
    return EXIT_STATUS_USAGE;
  }
  return -1;
}

static int
set_scratch_limit (struct service *s, const char *text, struct error *err)
{
  uint64_t limit;
  int r = size_parse ("--scratch-limit", text, &limit, err);

  return r < 0 ? r : service_set_scratch_limit (s, limit);
}

/* In two passes: bitmaps need their disks. */
static int
configure (struct service *s, const struct value *value, bool is_second,
           struct error *err)
{
  const char *text = value->text;

  if (is_second != (value->id == OPT_BITMAP))
    return 0;
  switch ((int) value->id) {
  case OPT_DISK: return service_add_disk (s, text, err);
  case OPT_BITMAP: return service_add_bitmap (s, text, err);
  case OPT_LISTEN: return service_add_address (s, SERVICE_LIVE, text, err);
  case OPT_BACKUP_LISTEN:
    return service_add_address (s, SERVICE_BACKUP, text, err);
  case OPT_CONTROL:
    return service_add_address (s, SERVICE_CONTROL, text, err);
  case OPT_TLS: return service_set_tls (s, "tls", text, err);
  case OPT_TLS_ALLOW: return service_set_tls (s, "tls-allow", text, err);
  case OPT_TLS_CERTIFICATES:
    return service_set_tls (s, "tls-certificates", text, err);
  case OPT_TLS_PSK: return service_set_tls (s, "tls-psk", text, err);
  case OPT_TLS_VERIFY_PEER:
    return service_set_tls (s, "tls-verify-peer", "on", err);
  case OPT_MAX_CONNECTIONS:
    return service_set_max_connections (s, "--max-connections", text, err);
  case OPT_SCRATCH_DIR: return service_set_scratch_dir (s, text, err);
  case OPT_SCRATCH_LIMIT: return set_scratch_limit (s, text, err);
  }
  abort ();
}

static bool
has_option (const struct value_vector *values, enum option_id id)
{
  size_t i;

  for (i = 0; i < values->len; i++)
    if (values->ptr[i].id == id)
      return true;
  return false;
}

int
options_parse (int argc, char *argv[], struct service *s,
               struct daemon_options *ret)
{
  struct value_vector values = VECTOR_INIT;
  struct error err = ERROR_INIT;
  int status, pass;
  size_t i;

  status = collect (argc, argv, &values, ret);
  if (status < 0 && !has_option (&values, OPT_DISK) &&
      !has_option (&values, OPT_CONTROL))
    status = usage_error ("no --disk is given, nor --control to add some");
  for (pass = 0; pass < 2; pass++)
    for (i = 0; i < values.len && status < 0; i++)
      if (configure (s, &values.ptr[i], pass == 1, &err) < 0) {
        log_error ("%s", err.msg);
        status = EXIT_STATUS_USAGE;
      }
  if (status < 0 && service_complete (s, &err) < 0) {
    log_error ("%s", err.msg);
    status = EXIT_STATUS_USAGE;
  }
  value_vector_reset (&values);
  return status;
}
