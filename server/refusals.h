/* SPDX-License-Identifier: BSD-3-Clause */
/* What the log says of clients that are refused: some lines, then numbers, so
 * that a scanner does not fill it.
 */
#ifndef TIDEMARK_REFUSALS_H
#define TIDEMARK_REFUSALS_H

#include <stdbool.h>
#include <stdint.h>

/* So many lines at once, then one in so many milliseconds. */
#define REFUSALS_BURST 20
#define REFUSALS_INTERVAL 10000

struct refusals;

int refusals_new (struct refusals **ret);
/* Says how many were not shown at the end.  NULL is allowed. */
void refusals_free (struct refusals *r);

/* A client on the socket fd of "nbd" or "control" was refused: a warning if
 * there is room for one, else a line for those who want to see everything.
 * Any thread.
 */
void refusals_log (struct refusals *r, const char *server, int fd,
                   const char *why);

/* For it, and for tests: is there room for a line at this time?  Then *ret is
 * how many have had none since the last line.
 */
bool refusals_take (struct refusals *r, int64_t now_ms, uint64_t *ret);

#endif /* TIDEMARK_REFUSALS_H */
