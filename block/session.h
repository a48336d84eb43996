/* SPDX-License-Identifier: BSD-3-Clause */
/* Pull sessions: frozen bitmaps and point-in-time views over one or more disks
 * of one instant, with a lease.
 */
#ifndef TIDEMARK_SESSION_H
#define TIDEMARK_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cbw.h"
#include "dirty.h"
#include "disk.h"
#include "error.h"
#include "point.h"

#define SESSION_DEFAULT_LEASE 300       /* seconds */
#define SESSION_MAX_LEASE 86400
#define SESSION_MAX 64                  /* at once in a process */

enum session_mode {
  SESSION_AUTO,                 /* incremental if the bitmap allows */
  SESSION_INCREMENTAL,          /* or an error */
  SESSION_FULL,                 /* all blocks; the bitmap (made if it is not
                                   there) counts from this point on success */
  SESSION_COPY,                 /* all blocks; no bitmap is touched */
};

struct session_disk_request {
  struct disk *disk;
  const char *bitmap;           /* NULL only with SESSION_COPY */
  enum session_mode mode;
  bool is_dirty_view;           /* hold only the frozen bitmap's granules */
  uint64_t cluster_size;        /* round held granules out; 0 = not */
};

struct session_request {
  const struct session_disk_request *disks;
  size_t nr_disks;
  unsigned lease;               /* seconds; 0 = default */
  bool is_partial_ok;           /* a view that breaks does not end the session
                                   unless all of them are broken */
  /* NULL = the disk's. */
  const char *scratch_dir;
  uint64_t scratch_limit;
};

/* What one disk of a session is.  Fixed after begin. */
struct session_disk {
  struct disk *disk;
  enum session_mode mode;       /* INCREMENTAL, FULL or COPY */
  char why[160];                /* why this mode, in words */
  struct dirty_bitmap *bitmap;  /* frozen; NULL with COPY */
  char *bitmap_name;            /* NULL with COPY */
  uint64_t granularity;         /* 0 with COPY */
  uint64_t dirty_bytes;         /* to pull: frozen dirty, or the disk's size */
  uint64_t size;                /* of the disk at the point */
  struct point_id base;         /* INCREMENTAL: what it counts from */
  bool is_dirty_view;           /* as asked for */
  struct cbw_view *view;
  char *export_name;            /* "SESSIONID/DISKNAME" */
};

enum session_end {
  SESSION_END_SUCCESS, SESSION_END_ABORT, SESSION_END_LEASE,
  SESSION_END_SCRATCH, SESSION_END_SHUTDOWN,
};

struct session;
struct session_manager;

/* Called as sessions come and go, from any thread, without locks held.  The
 * server makes and removes the exports.  ending runs before the views stop and
 * must return only when no request uses them any more.
 */
struct session_ops {
  int (*started) (void *opaque, struct session *s, struct error *err);
  void (*ending) (void *opaque, struct session *s);
  void (*ended) (void *opaque, struct session *s, enum session_end how);
};

/* Starts the thread that watches leases. */
int session_manager_new (const struct session_ops *ops, void *opaque,
                         struct session_manager **ret);
/* Ends every session as SESSION_END_SHUTDOWN: bits are merged back. */
void session_manager_free (struct session_manager *m);

/* Take the point and hold it.  On failure nothing has changed.  *ret is a
 * reference (session_unref).
 */
int session_begin (struct session_manager *m,
                   const struct session_request *request,
                   struct session **ret, struct error *err);

/* A reference to the session called id, its lease renewed.  -ENOENT. */
int session_attach (struct session_manager *m, const struct point_id *id,
                    struct session **ret, struct error *err);

/* End it.  is_success: bits are dropped and the bitmaps count from its point;
 * refused with -EIO if a view broke (it then ends as aborted).  Else they are
 * merged back.  -ENOENT, with a message that says how it ended if that was not
 * long ago; a session that is just ending for another reason has ended by
 * then.  One that has ended in success may be ended so again: whoever asks has
 * not had the answer.
 */
int session_end (struct session_manager *m, const struct point_id *id,
                 bool is_success, struct error *err);

/* The same in success, except that the bits of the disks called keep are merged
 * back; their views may be broken.  -EINVAL if there is no such disk in the
 * session, or one is named twice: nothing has happened then.
 */
int session_end_keep (struct session_manager *m, const struct point_id *id,
                      const char *const *keep, size_t nr_keep,
                      struct error *err);

/* References to all sessions; free the array with session_list_free. */
int session_list (struct session_manager *m, struct session ***ret,
                  size_t *ret_nr);
void session_list_free (struct session **sessions, size_t nr);

/* True if a session holds the disk. */
bool session_uses_disk (struct session_manager *m, const struct disk *disk);

struct session *session_ref (struct session *s);
void session_unref (struct session *s);

/* Traffic: the lease starts anew.  Any thread, no lock. */
void session_touch (struct session *s);

/* The id of the session is the id of its point. */
const struct point_id *session_id (const struct session *s);
/* Seconds since the epoch at the point. */
int64_t session_time (const struct session *s);
unsigned session_lease (const struct session *s);
/* Seconds until the lease runs out. */
unsigned session_lease_left (const struct session *s);
const struct session_disk *session_disks (const struct session *s,
                                          size_t *ret_nr);
const char *session_mode_name (enum session_mode mode);
const char *session_end_name (enum session_end how);

#endif /* TIDEMARK_SESSION_H */
