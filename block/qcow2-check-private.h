/* SPDX-License-Identifier: BSD-3-Clause */
/* Shared by qcow2-check.c, which compares and mends, and qcow2-check-walk.c,
 * which goes through all references.
 */
#ifndef TIDEMARK_QCOW2_CHECK_PRIVATE_H
#define TIDEMARK_QCOW2_CHECK_PRIVATE_H

#include "qcow2-check.h"
#include "qcow2.h"

/* A check in progress; one thread. */
struct check {
  struct qcow2 *q;
  const struct qcow2_check_options *options;
  struct qcow2_check_result *result;
  struct error *err;

  uint64_t file_clusters;       /* a last one that is not whole counts */
  uint64_t nr;                  /* host clusters that are looked at: up to the
                                   last that is referenced or has a refcount */
  /* Only references to [first, first+len) are counted. */
  uint64_t first, len;
  uint32_t *counts;             /* len of them; saturating */
  bool *is_used;                /* by windows: has something */
  uint64_t window;
  uint64_t highest;             /* one more than the last cluster referenced */
  bool is_first;                /* the pass that reports damage of tables */
  bool is_flag_pass;            /* the one that reports wrong flags */
  bool is_rebuilding;           /* the old refcount structures do not count */
  /* A table could not be followed: what it refers to looks like leaks, so
   * nothing may be given up.
   */
  bool is_incomplete;
  bool needs_rebuild;           /* refcounts cannot be mended in place */

  uint8_t *l2;                  /* a cluster */
  uint8_t *block;               /* a cluster: refcount block block_index */
  uint64_t block_index;         /* UINT64_MAX = none */
};

/* One finding. */
void check_found (struct check *c, bool is_leak, const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));
/* -errno of reading what, with the message. */
int check_failed (struct check *c, int error, const char *what);

/* --- qcow2-check-walk.c */

/* Bytes of an L2 entry. */
static inline unsigned
check_l2_entry_size (const struct qcow2 *q)
{
  return q->header.incompatible & QCOW2_INCOMPAT_EXTENDED_L2 ? 16 : 8;
}

/* Count the references of every table to the window's clusters; in the first
 * pass report damage of the tables themselves.
 */
int check_walk (struct check *c);
/* References of the bytes [off, off+len). */
void check_refer (struct check *c, uint64_t off, uint64_t len,
                  const char *what);
/* Call each for every L2 table of the L1 table (offset, entries) whose place
 * is sound, with the table in c->l2.
 */
int check_each_l2 (struct check *c, uint64_t l1_offset, uint64_t l1_size,
                   int (*each) (struct check *c, uint64_t i, uint64_t entry));

#endif /* TIDEMARK_QCOW2_CHECK_PRIVATE_H */
