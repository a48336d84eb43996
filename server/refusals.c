/* SPDX-License-Identifier: BSD-3-Clause */
/* Refused clients in the log: a bucket of REFUSALS_BURST lines that gets one
 * more in each REFUSALS_INTERVAL.
 *
 * A line that finds the bucket empty is counted, and the next one that is shown
 * says how many there were.  So the log grows by a bounded amount a day, and no
 * refusal is left out of its numbers.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "clock.h"
#include "lock.h"
#include "log.h"
#include "range.h"
#include "refusals.h"
#include "sockaddr.h"

struct refusals {
  struct lock lock;
  /* Protected by lock. */
  bool has_begun;
  int64_t filled;               /* the time up to which lines were added */
  unsigned nr_lines;            /* in the bucket */
  uint64_t nr_hidden;           /* since the last line */
};

int
refusals_new (struct refusals **ret)
{
  struct refusals *r = calloc (1, sizeof *r);

  if (r == NULL)
    return -ENOMEM;
  lock_init (&r->lock, LOCK_RANK_LEAF);
  *ret = r;
  return 0;
}

void
refusals_free (struct refusals *r)
{
  if (r == NULL)
    return;
  if (r->nr_hidden > 0)
    log_warning ("%" PRIu64 " more refusals of clients", r->nr_hidden);
  lock_destroy (&r->lock);
  free (r);
}

bool
refusals_take (struct refusals *r, int64_t now_ms, uint64_t *ret)
{
  int64_t nr_new;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&r->lock);
  if (!r->has_begun) {
    r->has_begun = true;
    r->filled = now_ms;
    r->nr_lines = REFUSALS_BURST;
  }
  nr_new = MAX (now_ms - r->filled, 0) / REFUSALS_INTERVAL;
  r->filled += nr_new * REFUSALS_INTERVAL;
  r->nr_lines = (unsigned) MIN (r->nr_lines + nr_new, REFUSALS_BURST);
  if (r->nr_lines == 0) {
    r->nr_hidden++;
    return false;
  }
  r->nr_lines--;
  *ret = r->nr_hidden;
  r->nr_hidden = 0;
  return true;
}

void
refusals_log (struct refusals *r, const char *server, int fd, const char *why)
{
  char peer[SOCK_PEER_MAX], before[64] = "";
  enum log_level level = LOG_LEVEL_WARNING;
  uint64_t nr_hidden = 0;

  if (!refusals_take (r, clock_ms (), &nr_hidden))
    level = LOG_LEVEL_INFO;
  if (nr_hidden > 0)
    snprintf (before, sizeof before, " (and %" PRIu64 " refusals before)",
              nr_hidden);
  log_message (level, "%s: %s: %s%s", server,
               sock_peer_format (fd, peer, sizeof peer), why, before);
}
