/* SPDX-License-Identifier: BSD-3-Clause */
/* Checking a qcow2 image: every reference counted and held against the
 * refcounts, and, if wanted, the refcounts mended.
 */
#ifndef TIDEMARK_QCOW2_CHECK_H
#define TIDEMARK_QCOW2_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "blk.h"
#include "error.h"

enum qcow2_repair {
  QCOW2_REPAIR_NONE,
  QCOW2_REPAIR_LEAKS,           /* refcounts that are too high */
  QCOW2_REPAIR_ALL,             /* wrong refcounts, wrong "copied" flags, the
                                   dirty and corrupt bits */
};

struct qcow2_check_options {
  enum qcow2_repair repair;
  /* Host clusters counted at once, 4 bytes of memory each; 0 = 16 Mi.  Each
   * such window of the file costs one pass over all tables.
   */
  uint64_t window;
  /* What is found, a line each, before it is mended.  NULL = nobody listens. */
  void (*report) (void *opaque, bool is_leak, const char *msg);
  /* True: give up with -ECANCELED.  NULL = never. */
  bool (*is_cancelled) (void *opaque);
  void *opaque;
};

struct qcow2_check_result {
  uint64_t corruptions, leaks;  /* that are left */
  uint64_t corruptions_fixed, leaks_fixed;
  uint64_t total_clusters;      /* of the disk */
  uint64_t allocated_clusters, compressed_clusters;
  uint64_t image_end;           /* bytes, behind the last cluster in use */
};

/* Takes ownership of file, on failure too; it must be writable for a repair,
 * and no one else may use it.  0: the check was completed, whatever it found.
 * -errno: it was not, and *err says why; a repair may then have been begun,
 * which has made nothing worse.
 */
int blk_qcow2_check (struct blk *file,
                     const struct qcow2_check_options *options,
                     struct qcow2_check_result *ret, struct error *err);

#endif /* TIDEMARK_QCOW2_CHECK_H */
