/* SPDX-License-Identifier: BSD-3-Clause */
/* tidemarkd's command line. */
#ifndef TIDEMARK_OPTIONS_H
#define TIDEMARK_OPTIONS_H

#include <stdbool.h>

#include "service.h"

struct daemon_options {
  const char *pid_file;         /* NULL = none; points into argv */
  bool is_daemon;
  bool is_verbose;
};

/* Configure s and fill *ret from the command line.  --help and the like are
 * answered here.  Returns -1 to go on, else the status to exit with; messages
 * have been printed.
 */
int options_parse (int argc, char *argv[], struct service *s,
                   struct daemon_options *ret);

#endif /* TIDEMARK_OPTIONS_H */
