/* SPDX-License-Identifier: BSD-3-Clause */
/* What session.c (sessions come and go) and session-point.c (the point is taken
 * and let go) share.
 */
#ifndef TIDEMARK_SESSION_PRIVATE_H
#define TIDEMARK_SESSION_PRIVATE_H

#include <stdatomic.h>

#include "session.h"

enum session_state {
  SESSION_BEGINNING,
  SESSION_ACTIVE,
  SESSION_ENDING,
  SESSION_ENDED,
};

/* What was done to a bitmap before it was frozen, to be undone unless the
 * session ends in success.
 */
enum bitmap_change {
  BITMAP_KEPT,
  BITMAP_CREATED,
  BITMAP_ENABLED,
  BITMAP_REPLACED,              /* it was inconsistent */
};

struct hold {
  enum bitmap_change change;
  char reason[128];             /* REPLACED: why it was inconsistent */
  bool is_kept;                 /* at the end, even in success */
};

struct session {
  /* Fixed after begin. */
  struct session_manager *manager;      /* not used once ENDED */
  struct point_id id;
  int64_t time;
  unsigned lease;
  bool is_partial_ok;
  size_t nr_disks;
  struct session_disk *disks;   /* in the order of the request */
  struct hold *holds;           /* one for each of disks */
  size_t *order;                /* indexes of disks, by disk number */

  /* Atomic. */
  _Atomic unsigned refs;
  _Atomic int64_t touched;      /* CLOCK_MONOTONIC, ns */
  _Atomic size_t nr_broken;     /* views */

  /* Protected by manager->lock. */
  enum session_state state;
};

/* Take the point over all disks: views, made already, are started.  On failure
 * nothing has changed.
 */
int session_take_point (struct session *s,
                        const struct session_request *request,
                        struct error *err);

/* End what session_take_point began.  0, or -EIO if is_success was asked for
 * and could not be: the bits have been merged back.
 */
int session_release_point (struct session *s, bool is_success,
                           struct error *err);

#endif /* TIDEMARK_SESSION_PRIVATE_H */
