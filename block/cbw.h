/* SPDX-License-Identifier: BSD-3-Clause */
/* Copy-before-write: point-in-time views of a disk that goes on changing.
 *
 * Works in blocks of CBW_BLOCK_SIZE whatever the bitmap's granularity, unless
 * told otherwise.
 */
#ifndef TIDEMARK_CBW_H
#define TIDEMARK_CBW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bitmap.h"
#include "blk.h"
#include "error.h"
#include "gate.h"

#define CBW_BLOCK_SIZE UINT64_C (4096)
#define CBW_MAX_CLUSTER (UINT64_C (64) << 20)

enum cbw_on_error {
  CBW_BREAK_BACKUP,             /* the view is broken, the guest goes on */
  CBW_BREAK_GUEST_WRITE,        /* the guest's write fails */
};

struct cbw_options {
  const char *scratch_dir;      /* NULL = TMPDIR, else /var/tmp */
  uint64_t scratch_limit;       /* bytes; 0 = none */
  enum cbw_on_error on_error;
  /* Held granules are rounded out to this; power of two of at most
   * CBW_MAX_CLUSTER; 0 = as they are.
   */
  uint64_t cluster_size;
  /* Optional: called once when the view breaks, from a guest's thread inside
   * the gate, without locks.  Must not wait for the gate.
   */
  void (*broken) (void *opaque);
  void *opaque;
  /* NULL, or the scratch to use instead of a file in scratch_dir: a node as
   * large as the disk that reads as zeroes.  Ownership is taken, on failure
   * too.
   */
  struct blk *scratch;
  /* For a scratch that has a use of its own (job-none.c). */
  uint64_t block_size;          /* what is preserved at once; a power of two of
                                   CBW_BLOCK_SIZE to CBW_MAX_CLUSTER; 0 =
                                   CBW_BLOCK_SIZE */
  bool stores_zeroes;           /* write them to scratch too, by blk_zero */
};

struct cbw;                     /* the engine of one disk */
struct cbw_view;

/* node: the disk's; gate: for assertions.  Both must outlive the engine. */
int cbw_new (struct blk *node, struct gate *gate, struct cbw **ret);
/* All views have been freed. */
void cbw_free (struct cbw *cbw);

/* Prepare a view: all that can fail or block.  Any time. */
int cbw_view_new (struct cbw *cbw, const struct cbw_options *options,
                  struct cbw_view **ret, struct error *err);
/* From here on the view holds the disk as it is now: all of it (held NULL), or
 * only the granules set in held, rounded out, which must stay as it is until
 * cbw_view_stop.  Work does not depend on the disk's size.  [gate closed]
 */
void cbw_view_start (struct cbw_view *view, const struct bitmap *held);
/* The view holds nothing any more; its reads fail with -ESHUTDOWN.  Waits for
 * reads in progress.  [gate closed]
 */
void cbw_view_stop (struct cbw_view *view);
/* Give back scratch and maps of a view that is stopped.  Can take a while, so
 * it is not part of cbw_view_stop.  cbw_view_get_info still works.
 */
void cbw_view_discard (struct cbw_view *view);
/* Free a view that is stopped, or was never started.  The engine may be gone.
 * NULL is allowed.
 */
void cbw_view_free (struct cbw_view *view);

/* The view as a read-only node (owned by the view, not to be closed): pread,
 * extents, and trim, by which the reader gives up blocks that it has stored
 * (they leave the held set and the scratch).  Reading outside the held set is
 * -EIO, never newer data; so is every read once the view is broken.  It is
 * read-only for writes, yet can trim.  Ranges are given up in whole units of
 * 4 KiB (more on disks above 1 TiB); what a trim covers of a unit only in part
 * stays.  Extents outside the held set are reported as data.
 */
struct blk *cbw_view_blk (struct cbw_view *view);

/* Does a view hold the disk?  [gate closed] */
bool cbw_is_in_use (const struct cbw *cbw);

/* Called inside the gate before [off, off+len) changes; returns when the old
 * content of every held block in it is in scratch, or the view is broken.
 * 0, or -errno (only with CBW_BREAK_GUEST_WRITE): the write must not be made.
 * Returns at once if there is no view.
 */
int cbw_before_write (struct cbw *cbw, uint64_t off, uint64_t len);

struct cbw_view_info {
  uint64_t scratch_bytes;       /* in use */
  uint64_t copied_bytes;        /* preserved since the point; zeroes count,
                                   though they take no scratch */
  int error;                    /* -errno that broke the view; 0 = whole */
};
void cbw_view_get_info (struct cbw_view *view, struct cbw_view_info *ret);

#endif /* TIDEMARK_CBW_H */
