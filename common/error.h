/* SPDX-License-Identifier: BSD-3-Clause */
/* Error messages for open, create and configuration functions.
 *
 * A struct error lives on the caller's stack; setting it allocates nothing.
 * Data-path functions return 0 or -errno and take no struct error.
 */
#ifndef TIDEMARK_ERROR_H
#define TIDEMARK_ERROR_H

struct error {
  int errnum;                   /* positive errno; 0 = not set */
  char msg[256];                /* always NUL terminated, one line */
};

#define ERROR_INIT { .errnum = 0, .msg = "" }

/* Set *err from errnum (positive) and a printf message, truncated to fit.
 * err may be NULL.  Returns -errnum, so that callers can
 * "return error_set (err, EINVAL, ...)".
 */
int error_set (struct error *err, int errnum, const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));

/* As error_set, with ": " and the text of errnum added at the end. */
int error_set_errno (struct error *err, int errnum, const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));

/* Put "PREFIX: " in front of the message that *err already has. */
void error_prefix (struct error *err, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

/* The same with FOLDER/NAME, unless the message begins with a file of that
 * folder already, as that of a node does.
 */
void error_prefix_file (struct error *err, const char *folder,
                        const char *name);

/* Put spaces in the place of control characters, and return text: what a user
 * or a peer has put into a message cannot forge lines of a log, or do things to
 * a terminal.
 */
char *make_one_line (char *text);

#endif /* TIDEMARK_ERROR_H */
