/* SPDX-License-Identifier: BSD-3-Clause */
/* The NBD server of server/ over disks of its own, for the protocol tests.
 *
 *   nbd-test-server [--listen ADDRESS]... [--disk NAME,KEY=VALUE...]...
 *                   [--bitmap DISK/NAME[,granularity=N][,disabled=on]]...
 *                   [--max-connections N] [--handshake-timeout SECONDS]
 *                   [--workers N] [--tls KEY=VALUE]... [--until-signal]
 *
 * Keys of a disk: size (of a disk in memory) or file (a raw file), readonly,
 * description, plain=on (the node itself, no disk around it), debug=on (a
 * blk-debug node below).
 *
 * Commands come from standard input, one per line, and each is answered by one
 * line on standard output: "ok", "error TEXT", or what was asked for.  The
 * program says "ready" first and ends at the end of its input; with
 * --until-signal it reads nothing and ends on SIGTERM.
 */
#include "config.h"

#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blk-debug.h"
#include "blk-file.h"
#include "blk-mem.h"
#include "cleanup.h"
#include "disk.h"
#include "export.h"
#include "keyval.h"
#include "log.h"
#include "nbd-server.h"
#include "size.h"
#include "sockaddr.h"

#define MAX_DISKS 64

struct test_disk {
  char name[EXPORT_NAME_MAX + 1];
  struct blk *plain;            /* or disk */
  struct disk *disk;
  struct blk *debug;
};

static struct test_disk disks[MAX_DISKS];
static size_t nr_disks;
static struct export_table *exports;

static void
check (int r, const struct error *err)
{
  if (r < 0)
    errx (1, "%s", err->msg[0] ? err->msg : strerror (-r));
}

static bool
is_on (const struct keyvals *kv, const char *key)
{
  const char *value = keyvals_get (kv, key);

  return value && strcmp (value, "on") == 0;
}

static struct test_disk *
find_disk (const char *name)
{
  size_t i;

  for (i = 0; i < nr_disks; ++i)
    if (strcmp (disks[i].name, name) == 0)
      return &disks[i];
  return NULL;
}

static struct blk *
open_node (const struct keyvals *kv, struct test_disk *d)
{
  const char *file = keyvals_get (kv, "file");
  const char *size = keyvals_get (kv, "size");
  struct error error = ERROR_INIT;
  struct blk *node;
  uint64_t bytes = 0;

  if (file)
    check (blk_file_open (file, is_on (kv, "readonly") ? BLK_FILE_READ_ONLY
                          : 0, &node, &error), &error);
  else {
    check (size_parse ("size", size ? size : "1M", &bytes, &error), &error);
    check (blk_mem_new (bytes, &node), &error);
  }
  if (is_on (kv, "debug")) {
    check (blk_debug_open (node, &d->debug, &error), &error);
    node = d->debug;
  }
  return node;
}

static void
add_export (struct test_disk *d, const char *description, bool is_read_only)
{
  struct error error = ERROR_INIT;
  const struct export_options options = {
    .name = d->name, .description = description,
    .blk = d->disk ? disk_blk (d->disk) : d->plain,
    .is_read_only = is_read_only, .disk = d->disk,
  };

  check (export_add (exports, &options, &error), &error);
}

static void
add_disk (const char *spec)
{
  static const char *const keys[] = {
    "name", "size", "file", "readonly", "description", "plain", "debug", NULL
  };
  struct error error = ERROR_INIT;
  struct disk_options options = { .name = "disk" };
  struct test_disk *d = &disks[nr_disks++];
  struct blk *node;
  struct keyvals kv;

  if (nr_disks == MAX_DISKS)
    errx (1, "too many disks");
  check (keyvals_parse (spec, "name", &kv, &error), &error);
  check (keyvals_check (&kv, "--disk", keys, &error), &error);
  snprintf (d->name, sizeof d->name, "%s", keyvals_get (&kv, "name"));
  node = open_node (&kv, d);
  if (is_on (&kv, "plain"))
    d->plain = node;
  else
    check (disk_new (node, &options, &d->disk, &error), &error);
  add_export (d, keyvals_get (&kv, "description"), is_on (&kv, "readonly"));
  keyvals_free (&kv);
}

/* The disk of "DISK/BITMAP" (cut there) and the bitmap's name. */
static struct disk *
split_name (char *s, const char **ret_bitmap)
{
  char *slash = strchr (s, '/');
  struct test_disk *d;

  if (slash == NULL)
    return NULL;
  *slash = '\0';
  *ret_bitmap = slash + 1;
  d = find_disk (s);
  return d ? d->disk : NULL;
}

static void
add_bitmap (const char *spec)
{
  static const char *const keys[] = {
    "bitmap", "granularity", "disabled", NULL
  };
  struct error error = ERROR_INIT;
  uint64_t granularity = 0;
  CLEANUP_FREE char *name = NULL;
  const char *bitmap, *value;
  struct disk *disk;
  struct keyvals kv;

  check (keyvals_parse (spec, "bitmap", &kv, &error), &error);
  check (keyvals_check (&kv, "--bitmap", keys, &error), &error);
  name = strdup (keyvals_get (&kv, "bitmap"));
  disk = name ? split_name (name, &bitmap) : NULL;
  if (disk == NULL)
    errx (1, "--bitmap %s: no such disk", spec);
  value = keyvals_get (&kv, "granularity");
  if (value)
    check (size_parse ("granularity", value, &granularity, &error), &error);
  check (disk_bitmap_add (disk, bitmap, granularity, is_on (&kv, "disabled"),
                          &error), &error);
  keyvals_free (&kv);
}

/* Commands. */

static void
answer (int r, const struct error *err)
{
  if (r < 0)
    printf ("error %s\n", err && err->msg[0] ? err->msg : strerror (-r));
  else
    puts ("ok");
}

static void
command_bitmap (char *args,
                int (*function) (struct disk *, const char *, struct error *))
{
  struct error error = ERROR_INIT;
  const char *bitmap;
  struct disk *disk = split_name (args, &bitmap);

  answer (disk ? function (disk, bitmap, &error) : -ENOENT, &error);
}

/* fail DISK OPS NTH ERRNO STICKY */
static void
command_fail (const char *args)
{
  unsigned ops, sticky;
  struct test_disk *d;
  char name[256];
  uint64_t n;
  int errnum;

  if (sscanf (args, "%255s %u %" SCNu64 " %d %u", name, &ops, &n, &errnum,
              &sticky) != 5
      || (d = find_disk (name)) == NULL || d->debug == NULL) {
    answer (-EINVAL, NULL);
    return;
  }
  blk_debug_fail_nth (d->debug, ops, n, errnum, sticky);
  answer (0, NULL);
}

/* pause|wait|resume|fired DISK [OPS] */
static void
command_debug (const char *command, const char *args)
{
  struct test_disk *d;
  char name[256];
  unsigned ops = 0;

  if (sscanf (args, "%255s %u", name, &ops) < 1
      || (d = find_disk (name)) == NULL || d->debug == NULL)
    answer (-EINVAL, NULL);
  else if (strcmp (command, "pause") == 0)
    answer (blk_debug_break (d->debug, ops, 0, UINT64_C (1) << 62, "tag"),
            NULL);
  else if (strcmp (command, "wait") == 0)
    answer (blk_debug_wait_paused (d->debug, "tag"), NULL);
  else if (strcmp (command, "resume") == 0)
    answer (blk_debug_resume (d->debug, "tag"), NULL);
  else
    puts (blk_debug_has_fired (d->debug) ? "yes" : "no");
}

/* Remove an export while other commands go on. */
static pthread_t removing;
static char removing_name[EXPORT_NAME_MAX + 1];

static void *
removing_thread (void *arg)
{
  return (void *) (intptr_t) export_remove (exports, removing_name);
}

static void
command_remove_start (const char *name)
{
  snprintf (removing_name, sizeof removing_name, "%s", name);
  answer (-pthread_create (&removing, NULL, removing_thread, NULL), NULL);
}

static void
command_remove_wait (void)
{
  void *r;

  pthread_join (removing, &r);
  answer ((intptr_t) r, NULL);
}

/* trace DISK: what reached its node since the last time, "; " between. */
static void
command_trace (const char *name)
{
  struct test_disk *d = find_disk (name);
  CLEANUP_FREE char *trace = d && d->debug ? blk_debug_trace (d->debug) : NULL;
  char *p = trace;

  while (p && (p = strchr (p, '\n')) != NULL)
    *p = ';';
  puts (trace ? trace : "");
}

static void
run_command (struct nbd_server *server, char *line)
{
  char *args = strchrnul (line, ' ');

  if (*args)
    *args++ = '\0';
  if (strcmp (line, "connections") == 0)
    printf ("%u\n", nbd_server_nr_connections (server));
  else if (strcmp (line, "export-remove") == 0)
    answer (export_remove (exports, args), NULL);
  else if (strcmp (line, "export-remove-start") == 0)
    command_remove_start (args);
  else if (strcmp (line, "export-remove-wait") == 0)
    command_remove_wait ();
  else if (strcmp (line, "trace") == 0)
    command_trace (args);
  else if (strcmp (line, "bitmap-remove") == 0)
    command_bitmap (args, disk_bitmap_remove);
  else if (strcmp (line, "bitmap-clear") == 0)
    command_bitmap (args, disk_bitmap_clear);
  else if (strcmp (line, "fail") == 0)
    command_fail (args);
  else if (strcmp (line, "pause") == 0 || strcmp (line, "wait") == 0
           || strcmp (line, "resume") == 0 || strcmp (line, "fired") == 0)
    command_debug (line, args);
  else
    answer (-ENOSYS, NULL);
  fflush (stdout);
}

static void
listen_on (struct nbd_server *server, const char *address)
{
  int fds[SOCK_ADDRESS_MAX_FDS], n, i;
  struct error error = ERROR_INIT;
  struct sock_address addr;

  check (sock_address_parse ("--listen", address, "10809", &addr, &error),
         &error);
  n = sock_address_listen (&addr, fds, &error);
  check (n, &error);
  for (i = 0; i < n; ++i)
    check (nbd_server_add_socket (server, fds[i], &error), &error);
}

static void
close_disks (void)
{
  size_t i;

  for (i = 0; i < nr_disks; ++i) {
    export_remove (exports, disks[i].name);
    if (disks[i].disk)
      disk_close (disks[i].disk);
    else
      blk_close (disks[i].plain);
  }
  export_table_free (exports);
}

static void
run_commands (struct nbd_server *server)
{
  CLEANUP_FREE char *line = NULL;
  size_t cap = 0;
  ssize_t n;

  while ((n = getline (&line, &cap, stdin)) > 0) {
    if (line[n-1] == '\n')
      line[n-1] = '\0';
    run_command (server, line);
  }
}

static void
run (struct nbd_server *server, bool until_signal)
{
  struct error error = ERROR_INIT;
  sigset_t set;
  int sig;

  sigemptyset (&set);
  sigaddset (&set, SIGTERM);
  if (until_signal)
    pthread_sigmask (SIG_BLOCK, &set, NULL);
  check (nbd_server_start (server, &error), &error);
  puts ("ready");
  fflush (stdout);
  if (until_signal)
    sigwait (&set, &sig);
  else
    run_commands (server);
  nbd_server_free (server);
}

static void
set_tls (struct server_tls *tls, char *option)
{
  struct error error = ERROR_INIT;
  char *value = strchrnul (option, '=');

  if (*value)
    *value++ = '\0';
  check (server_tls_set (tls, option, value, &error), &error);
}

int
main (int argc, char **argv)
{
  static const struct option long_options[] = {
    { "listen", required_argument, NULL, 'l' },
    { "disk", required_argument, NULL, 'd' },
    { "bitmap", required_argument, NULL, 'b' },
    { "max-connections", required_argument, NULL, 'c' },
    { "handshake-timeout", required_argument, NULL, 't' },
    { "workers", required_argument, NULL, 'w' },
    { "tls", required_argument, NULL, 'T' },
    { "until-signal", no_argument, NULL, 's' },
    { "debug", no_argument, NULL, 'v' },
    { NULL }
  };
  struct nbd_server_options options = { .exports = NULL };
  const char *addresses[8];
  struct error error = ERROR_INIT;
  struct nbd_server *server;
  struct server_tls *tls;
  size_t nr_addresses = 0, i;
  bool until_signal = false;
  int c;

  check (export_table_new (&exports), &error);
  check (server_tls_new (&tls), &error);
  while ((c = getopt_long (argc, argv, "", long_options, NULL)) != -1) {
    if (c == 'l' && nr_addresses < 8)
      addresses[nr_addresses++] = optarg;
    else if (c == 'd')
      add_disk (optarg);
    else if (c == 'b')
      add_bitmap (optarg);
    else if (c == 'c')
      options.max_connections = atoi (optarg);
    else if (c == 't')
      options.handshake_timeout = atoi (optarg);
    else if (c == 'w')
      options.nr_workers = atoi (optarg);
    else if (c == 'T')
      set_tls (tls, optarg);
    else if (c == 's')
      until_signal = true;
    else if (c == 'v')
      log_set_debug (true);
    else
      return 1;
  }
  options.exports = exports;
  check (server_tls_load (tls, &error), &error);
  options.tls = tls;
  check (nbd_server_new (&options, &server, &error), &error);
  for (i = 0; i < nr_addresses; ++i)
    listen_on (server, addresses[i]);
  run (server, until_signal);
  server_tls_free (tls);
  close_disks ();
  return 0;
}
