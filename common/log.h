/* SPDX-License-Identifier: BSD-3-Clause */
/* Where log lines go.  The program installs a handler once, before threads
 * start; without one, warnings and errors go to stderr as "PROGRAM: text".
 */
#ifndef TIDEMARK_LOG_H
#define TIDEMARK_LOG_H

#include <stdbool.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO,
                 LOG_LEVEL_DEBUG };

/* Called from any thread; msg has no newline. */
typedef void (*log_handler) (enum log_level level, const char *msg);

void log_set_handler (log_handler handler);
void log_set_program (const char *name);
void log_set_debug (bool debug);
bool log_is_debug (void);

#define log_error(...) log_message (LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_message (LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_message (LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) \
  do { \
    if (log_is_debug ()) log_message (LOG_LEVEL_DEBUG, __VA_ARGS__); \
  } while (0)

void log_message (enum log_level level, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

#endif /* TIDEMARK_LOG_H */
