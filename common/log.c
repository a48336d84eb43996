/* SPDX-License-Identifier: BSD-3-Clause */
/* Where log lines go: see log.h.  The setters are for one thread before the
 * others start; log_message is for any thread.
 */
#include "config.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

#include "error.h"
#include "log.h"

static log_handler current_handler;
static const char *program = "tidemark";
static atomic_bool is_debug;

void
log_set_handler (log_handler handler)
{
  current_handler = handler;
}

void
log_set_program (const char *name)
{
  program = name;
}

void
log_set_debug (bool debug)
{
  atomic_store_explicit (&is_debug, debug, memory_order_relaxed);
}

bool
log_is_debug (void)
{
  return atomic_load_explicit (&is_debug, memory_order_relaxed);
}

void
log_message (enum log_level level, const char *fmt, ...)
{
  char msg[1024];
  va_list args;

  va_start (args, fmt);
  vsnprintf (msg, sizeof msg, fmt, args);
  va_end (args);
  make_one_line (msg);

  if (current_handler)
    current_handler (level, msg);
  else if (level <= LOG_LEVEL_WARNING || log_is_debug ())
    fprintf (stderr, "%s: %s%s\n", program,
             level == LOG_LEVEL_WARNING ? "warning: " : "", msg);
}
