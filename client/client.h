/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the tidemark program share: its commands, exit codes. */
#ifndef TIDEMARK_CLIENT_H
#define TIDEMARK_CLIENT_H

#include "error.h"
#include "cmdline.h"

/* Exit codes, as the manual page lists them. */
enum {
  STATUS_OK = 0,
  STATUS_FAILED = 1,            /* nothing was stored, restored or changed */
  STATUS_USAGE = 2,             /* wrong options or arguments */
  STATUS_DAMAGED = 3,           /* verify found damage */
  STATUS_INTERRUPTED = 4,       /* by SIGINT, SIGTERM or SIGHUP */
  STATUS_PARTIAL = 5,           /* some disks are stored, others failed */
};

struct command {
  const char *name;
  const char *synopsis;         /* of the arguments */
  const char *summary;          /* one line */
  const struct option_spec *options;
  size_t min_args, max_args;
  int usage_status;             /* instead of STATUS_USAGE, if not 0 */
  /* Returns an exit code.  Prints its errors itself. */
  int (*run) (const struct options *options);
};

extern const struct command cmd_backup;
extern const struct command cmd_bitmap;
extern const struct command cmd_check;
extern const struct command cmd_info;
extern const struct command cmd_list;
extern const struct command cmd_map;
extern const struct command cmd_restore;
extern const struct command cmd_store;
extern const struct command cmd_verify;

/* Print the error and say which exit code belongs to it: STATUS_INTERRUPTED
 * for -ECANCELED, else STATUS_FAILED.
 */
int client_fail (const struct error *err);

/* Print a message about the command line; returns STATUS_USAGE, or what the
 * command has instead.
 */
int client_usage (const struct command *command, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

#endif /* TIDEMARK_CLIENT_H */
