/* SPDX-License-Identifier: BSD-3-Clause */
/* How much metadata of an image is kept in memory: QEMU's options and rules
 * (qemu: docs/qcow2-cache.txt), with a slice in the place of its cache entry.
 *
 * I10: a limit is passed only by changed slices that a commit is writing, and
 * by those of the steps in progress (qcow2-meta.c).
 *
 * Pure, but for qcow2_cache_is_full; any thread.
 */
#include "config.h"

#include <errno.h>
#include <limits.h>

#include "qcow2.h"
#include "range.h"

/* What a node has if nobody says otherwise, bytes: QEMU's maximum for what is
 * written to; less for the layers of a chain, of which there can be many.
 */
#define DEFAULT_L2_WRITE (UINT64_C (32) << 20)
#define DEFAULT_L2_READ (UINT64_C (2) << 20)
#define DEFAULT_REFCOUNT (UINT64_C (1) << 20)
/* QEMU's: L2 slices; clusters of refcounts. */
#define MIN_L2 2
#define MIN_REFCOUNT 4

int
qcow2_cache_check (const struct qcow2_cache_sizes *sizes, struct error *err)
{
  if (sizes->has_total && sizes->has_l2 && sizes->has_refcount)
    return error_set (err, EINVAL, "cache-size, l2-cache-size and "
                      "refcount-cache-size may not be set at the same time");
  if (sizes->has_total && sizes->has_l2 && sizes->l2 > sizes->total)
    return error_set (err, EINVAL, "l2-cache-size may not exceed cache-size");
  if (sizes->has_total && sizes->has_refcount
      && sizes->refcount > sizes->total)
    return error_set (err, EINVAL,
                      "refcount-cache-size may not exceed cache-size");
  return 0;
}

int
qcow2_cache_slice (const struct qcow2_cache_sizes *sizes,
                   const struct qcow2_header *h, unsigned *ret_bits,
                   struct error *err)
{
  const uint64_t size = sizes->l2_entry;

  *ret_bits = MIN (h->cluster_bits, QCOW2_MAX_SLICE_BITS);
  if (!sizes->has_l2_entry)
    return 0;
  if (!is_power_of_2 (size) || size < 1u << QCOW2_MIN_CLUSTER_BITS
      || size > UINT64_C (1) << h->cluster_bits)
    return error_set (err, EINVAL, "L2 cache entry size must be a power of two"
                      " between %d and the cluster size (%d)",
                      1 << QCOW2_MIN_CLUSTER_BITS, 1 << h->cluster_bits);
  *ret_bits = MIN (*ret_bits, log2_exact (size));
  return 0;
}

/* Divide the total: as much as there is use for goes to the L2 tables. */
static void
split (uint64_t total, uint64_t all_l2, uint64_t min_refcount, uint64_t *l2,
       uint64_t *refcount)
{
  if (total > min_refcount && total - min_refcount > all_l2)
    *l2 = all_l2;
  else
    *l2 = total - MIN (total, min_refcount);
  *refcount = total - *l2;
}

int
qcow2_cache_set (const struct qcow2_cache_sizes *sizes,
                 const struct qcow2_header *h, unsigned slice_bits,
                 bool is_read_only, struct qcow2_cache_limits *ret,
                 struct error *err)
{
  const uint64_t cluster = UINT64_C (1) << h->cluster_bits;
  const uint64_t all_l2 = div_round_up (h->size, qcow2_l1_span (h)) * cluster;
  const uint64_t min_refcount = MIN_REFCOUNT * cluster;
  uint64_t l2 = is_read_only ? DEFAULT_L2_READ : DEFAULT_L2_WRITE;
  uint64_t refcount = DEFAULT_REFCOUNT;

  if (qcow2_cache_check (sizes, err) < 0)
    return -EINVAL;
  if (sizes->has_l2)
    l2 = sizes->l2;
  if (sizes->has_refcount)
    refcount = sizes->refcount;
  if (sizes->has_total && sizes->has_l2)
    refcount = sizes->total - l2;
  else if (sizes->has_total && sizes->has_refcount)
    l2 = sizes->total - refcount;
  else if (sizes->has_total)
    split (sizes->total, all_l2, min_refcount, &l2, &refcount);
  l2 >>= slice_bits;
  refcount = MAX (refcount, min_refcount) >> slice_bits;
  if (refcount > INT_MAX)
    return error_set (err, EINVAL, "Refcount cache size too big");
  ret->max_slices[QCOW2_L2] = MAX (l2, MIN_L2);
  ret->max_slices[QCOW2_REFCOUNT] = refcount;
  for (unsigned kind = 0; kind < 2; kind++)
    ret->max_dirty[kind] = MAX (ret->max_slices[kind] / 2, 1);
  return 0;
}

bool
qcow2_cache_is_full (const struct qcow2 *q)
{
  lock_assert_held (&q->lock);
  for (unsigned kind = 0; kind < 2; kind++)
    if (q->dirty[kind].len >= q->limits.max_dirty[kind])
      return true;
  return false;
}
