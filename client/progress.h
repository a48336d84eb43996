/* SPDX-License-Identifier: BSD-3-Clause */
/* What the program tells: lines for people, a progress bar on a terminal, or
 * one JSON object per line.
 *
 * Results and events go to stdout; the bar, warnings and errors to stderr.
 */
#ifndef TIDEMARK_PROGRESS_H
#define TIDEMARK_PROGRESS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum progress_mode {
  PROGRESS_HUMAN,               /* lines; a bar if stderr is a terminal */
  PROGRESS_JSON,                /* events */
  PROGRESS_QUIET,               /* warnings and errors only */
};

/* Once, before threads start.  Takes over the log as well. */
void progress_init (enum progress_mode mode);
enum progress_mode progress_get_mode (void);

/* A line for people; nothing in the other modes.  Any thread. */
void progress_say (const char *fmt, ...)
  __attribute__ ((format (printf, 1, 2)));

/* {"event": NAME, ...data} in JSON mode, else nothing.  Takes the reference to
 * data, an object; a NULL (out of memory) sends the bare name.
 */
void progress_event (const char *name, json_t *data);

/* Measure some work of total units, bytes.  One at a time. */
void progress_begin (const char *label, uint64_t total);
/* Any thread, cheap. */
void progress_add (uint64_t n);
/* Remove the bar. */
void progress_end (void);

#endif /* TIDEMARK_PROGRESS_H */
