/* SPDX-License-Identifier: BSD-3-Clause */
/* Checking and mending a qcow2 image.
 *
 *   1 a pass over all tables reports what is wrong with themselves, and finds
 *     the windows of the file in which something is in use
 *   2 for each of those: count the references, compare with the refcounts
 *   3 the "copied" flags of the active tables against the refcounts
 *
 * A repair does 2 and 3 again, writing, and then the check once more, so that
 * what is reported as left is what is left.  Refcounts are changed in place;
 * where that cannot be, because the structures themselves are damaged or
 * missing, new ones are built behind the end of the file and the header is
 * switched over to them.
 *
 * Invariants:
 * - Nothing is lowered if a table could not be followed: what hangs from it
 *   only looks leaked.
 * - A repair that is cut off at any moment has made nothing worse: refcounts
 *   become right one by one, flags after them, the header's bits last.
 *
 * Memory: a window (64 MiB), two clusters, the refcount table (8 MiB at most),
 * a new one in a rebuild, pieces of other tables.
 *
 * Called by one thread, which has the file for itself.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "qcow2-check-private.h"

#define WINDOW (UINT64_C (1) << 24)
/* More than that cannot be counted in a sensible time. */
#define MAX_CLUSTERS (UINT64_C (1) << 32)

void
check_found (struct check *c, bool is_leak, const char *fmt, ...)
{
  char msg[200];
  va_list ap;

  if (is_leak)
    c->result->leaks++;
  else
    c->result->corruptions++;
  if (!c->options->report)
    return;
  va_start (ap, fmt);
  vsnprintf (msg, sizeof msg, fmt, ap);
  va_end (ap);
  c->options->report (c->options->opaque, is_leak, msg);
}

int
check_failed (struct check *c, int error, const char *what)
{
  return error_set_errno (c->err, -error, "%s: checking %s", c->q->blk.name,
                          what);
}

static int
write_failed (struct check *c, int error)
{
  return error_set_errno (c->err, -error, "%s: mending it", c->q->blk.name);
}

/* --- refcount blocks */

/* Entries of a refcount block. */
static uint64_t
per_block (const struct check *c)
{
  return UINT64_C (1) << c->q->refblock_bits;
}

static uint64_t
max_refcount (const struct check *c)
{
  unsigned order = c->q->header.refcount_order;

  return order == 6 ? UINT64_MAX : (UINT64_C (1) << (1u << order)) - 1;
}

/* Where block i is; 0 = there is none that can be used. */
static uint64_t
block_place (const struct check *c, uint64_t i)
{
  const struct qcow2_table *t = &c->q->reftable;
  uint64_t off = i < t->len ? t->entries[i] : 0;

  return (off & (c->q->cluster_size - 1))
    || off >= c->file_clusters << c->q->cluster_bits ? 0 : off;
}

/* Block i into c->block; zeroes where there is none. */
static int
load_block (struct check *c, uint64_t i)
{
  uint64_t off = block_place (c, i);
  int error = 0;

  if (c->block_index == i)
    return 0;
  c->block_index = UINT64_MAX;
  if (off)
    error = qcow2_file_read (c->q, c->block, c->q->cluster_size, off);
  else
    memset (c->block, 0, c->q->cluster_size);
  if (error < 0)
    return check_failed (c, error, "a refcount block");
  c->block_index = i;
  return 0;
}

static int
stored_refcount (struct check *c, uint64_t cluster, uint64_t *ret)
{
  int error = load_block (c, cluster >> c->q->refblock_bits);

  if (error == 0)
    *ret = qcow2_refcount_get (c->block, cluster & (per_block (c) - 1),
                               c->q->header.refcount_order);
  return error;
}

/* --- windows */

/* Count the references to the clusters from first on. */
static int
count_window (struct check *c, uint64_t first)
{
  c->first = first;
  c->len = MIN (c->window, c->nr - first);
  memset (c->counts, 0, c->len * sizeof *c->counts);
  return check_walk (c);
}

/* The clusters [first, first+len) of block i against what was counted. */
static int
compare_block (struct check *c, uint64_t i, uint64_t first, uint64_t len)
{
  unsigned order = c->q->header.refcount_order;
  uint64_t have, want, cluster;
  int error = load_block (c, i);

  if (error < 0)
    return error;
  for (uint64_t k = 0; k < len; k++) {
    cluster = first + k;
    want = c->counts[cluster - c->first];
    have = qcow2_refcount_get (c->block, cluster & (per_block (c) - 1), order);
    if (have || want)
      c->result->image_end = (cluster + 1) << c->q->cluster_bits;
    if (have < want) {
      check_found (c, false, "cluster %" PRIu64 " has refcount %" PRIu64
                   " and %" PRIu64 " references", cluster, have, want);
      c->needs_rebuild |= block_place (c, i) == 0;
    } else if (have > want)
      check_found (c, true, "cluster %" PRIu64 " is leaked: refcount %" PRIu64
                   ", %" PRIu64 " references", cluster, have, want);
  }
  return 0;
}

/* Refcounts cannot be mended in a place that something else uses too. */
static void
check_own_places (struct check *c)
{
  const struct qcow2_header *h = &c->q->header;
  uint64_t i, off, n = h->reftable_clusters;

  for (i = 0; i < n; i++) {
    off = (h->reftable_offset >> c->q->cluster_bits) + i;
    if (off - c->first < c->len && c->counts[off - c->first] > 1)
      c->needs_rebuild = true;
  }
  for (i = 0; i < c->q->reftable.len; i++) {
    off = block_place (c, i) >> c->q->cluster_bits;
    if (off && off - c->first < c->len && c->counts[off - c->first] > 1)
      c->needs_rebuild = true;
  }
}

/* The header and L1 cannot be moved: what shares a cluster with them changes
 * with them, and no refcount makes that right.
 */
static void
check_fixed_places (struct check *c)
{
  const struct qcow2_header *h = &c->q->header;
  uint64_t l1 = h->l1_offset >> c->q->cluster_bits, i;
  uint64_t n = div_round_up ((uint64_t) h->l1_size * 8, c->q->cluster_size);

  if (c->first == 0 && c->len > 0 && c->counts[0] > 1)
    check_found (c, false, "cluster 0 is the header's and is used by something"
                 " else, too");
  for (i = l1; i < l1 + n; i++)
    if (i - c->first < c->len && c->counts[i - c->first] > 1)
      check_found (c, false, "cluster %" PRIu64 " is the L1 table's and is used"
                   " by something else, too", i);
}

/* Call each for the blocks of the window. */
static int
each_block (struct check *c,
            int (*each) (struct check *c, uint64_t i, uint64_t first,
                         uint64_t len))
{
  uint64_t n, end = c->first + c->len;
  int error;

  for (uint64_t i = c->first; i < end; i += n) {
    n = MIN (per_block (c), end - i);
    error = each (c, i >> c->q->refblock_bits, i, n);
    if (error < 0)
      return error;
  }
  return 0;
}

static int
compare_window (struct check *c, uint64_t first)
{
  int error = count_window (c, first);

  if (error < 0)
    return error;
  check_own_places (c);
  check_fixed_places (c);
  return each_block (c, compare_block);
}

/* Call each for the windows in which something is in use. */
static int
each_window (struct check *c, int (*each) (struct check *c, uint64_t first))
{
  int error;

  for (uint64_t first = 0; first < c->nr; first += c->window)
    if (c->is_used[first / c->window]) {
      error = each (c, first);
      if (error < 0)
        return error;
    }
  return 0;
}

/* --- the "copied" flags */

/* Whether the flag of entry, number i of what, is wrong. */
static int
check_flag (struct check *c, uint64_t entry, const char *what, uint64_t i,
            bool *ret_wrong)
{
  uint64_t refcount = 0;
  int error;

  error = stored_refcount (c, (entry & QCOW2_OFFSET_MASK)
                           >> c->q->cluster_bits, &refcount);
  *ret_wrong = error == 0 && (refcount == 1) != !!(entry & QCOW2_COPIED);
  if (*ret_wrong && c->is_flag_pass)
    check_found (c, false, "%s %" PRIu64 " %s the copied flag, but its cluster"
                 " has refcount %" PRIu64, what, i,
                 entry & QCOW2_COPIED ? "has" : "lacks", refcount);
  return error;
}

static bool
has_flag (const struct check *c, uint64_t entry)
{
  uint64_t host = entry & QCOW2_OFFSET_MASK;

  return !(entry & QCOW2_COMPRESSED) && host
    && (host & (c->q->cluster_size - 1)) == 0
    && !(c->q->header.incompatible & QCOW2_INCOMPAT_DATA_FILE);
}

static bool
is_mending_all (const struct check *c)
{
  return !c->is_flag_pass && c->options->repair == QCOW2_REPAIR_ALL;
}

/* The entries of the table in c->l2; mended, if that is wanted. */
static int
check_l2_flags (struct check *c, uint64_t i, uint64_t table)
{
  unsigned size = check_l2_entry_size (c->q);
  uint64_t nr = c->q->cluster_size / size, entry;
  bool is_wrong, is_changed = false;
  int error;

  for (uint64_t k = 0; k < nr; k++) {
    entry = load_be64 (c->l2 + k * size);
    if (!has_flag (c, entry)
        && (entry & (QCOW2_COMPRESSED | QCOW2_COPIED))
        != (QCOW2_COMPRESSED | QCOW2_COPIED))
      continue;
    is_wrong = true;            /* a compressed one with the flag */
    if (has_flag (c, entry)) {
      error = check_flag (c, entry, "guest cluster", i * nr + k, &is_wrong);
      if (error < 0)
        return error;
    }
    if (is_wrong && is_mending_all (c)) {
      store_be64 (c->l2 + k * size, entry ^ QCOW2_COPIED);
      is_changed = true;
    }
  }
  if (!is_changed)
    return 0;
  error = blk_pwrite (c->q->file, c->l2, c->q->cluster_size, table, 0);
  return error < 0 ? write_failed (c, error) : 0;
}

static int
check_l1_flags (struct check *c, uint64_t i, uint64_t entry)
{
  uint8_t field[8];
  bool is_wrong;
  int error = check_flag (c, entry, "L1 entry", i, &is_wrong);

  if (error < 0)
    return error;
  if (is_wrong && is_mending_all (c)) {
    store_be64 (field, entry ^ QCOW2_COPIED);
    error = blk_pwrite (c->q->file, field, sizeof field,
                        c->q->header.l1_offset + i * 8, 0);
    if (error < 0)
      return write_failed (c, error);
  }
  return check_l2_flags (c, i, entry & QCOW2_OFFSET_MASK);
}

static int
check_flags (struct check *c)
{
  c->block_index = UINT64_MAX;
  return check_each_l2 (c, c->q->header.l1_offset, c->q->header.l1_size,
                        check_l1_flags);
}

/* --- the check */

/* Which windows have refcounts. */
static void
find_blocks (struct check *c)
{
  uint64_t first, w;

  for (uint64_t i = 0; i < c->q->reftable.len; i++) {
    first = i << c->q->refblock_bits;
    if (first >= c->file_clusters)
      return;
    if (c->q->reftable.entries[i] == 0)
      continue;
    c->highest = MAX (c->highest,
                      MIN (first + per_block (c), c->file_clusters));
    w = first / c->window;
    c->is_used[w] = true;
  }
}

static int
load_reftable (struct check *c)
{
  const struct qcow2_header *h = &c->q->header;

  free (c->q->reftable.entries);
  memset (&c->q->reftable, 0, sizeof c->q->reftable);
  return qcow2_table_load (c->q, "refcount table", h->reftable_offset,
                           ((uint64_t) h->reftable_clusters
                            << c->q->cluster_bits) / 8,
                           &c->q->reftable, c->err);
}

/* Everything, reporting. */
static int
check_once (struct check *c)
{
  int error;

  c->file_clusters = div_round_up (blk_size (c->q->file), c->q->cluster_size);
  if (c->file_clusters > MAX_CLUSTERS)
    return error_set (c->err, EFBIG, "%s: a file of %" PRIu64 " clusters is"
                      " too large for a check (%" PRIu64 " are allowed)",
                      c->q->blk.name, c->file_clusters, MAX_CLUSTERS);
  free (c->is_used);
  c->is_used = calloc (c->file_clusters / c->window + 1, sizeof *c->is_used);
  if (!c->is_used)
    return check_failed (c, -ENOMEM, "it");
  c->is_incomplete = c->needs_rebuild = false;
  c->block_index = UINT64_MAX;
  c->first = c->len = c->highest = 0;
  c->is_first = true;
  error = load_reftable (c);
  if (error == 0)
    error = check_walk (c);
  if (error < 0)
    return error;
  find_blocks (c);
  c->nr = c->highest;
  c->is_first = false;
  error = each_window (c, compare_window);
  c->is_flag_pass = true;
  if (error == 0)
    error = check_flags (c);
  c->is_flag_pass = false;
  return error;
}

/* --- mending in place */

static int
mend_block (struct check *c, uint64_t i, uint64_t first, uint64_t len)
{
  unsigned order = c->q->header.refcount_order;
  uint64_t have, want, k, place = block_place (c, i);
  bool is_changed = false;
  int error;

  c->block_index = UINT64_MAX;
  if (place == 0)
    return 0;
  error = load_block (c, i);
  for (uint64_t n = 0; n < len && error == 0; n++) {
    k = (first + n) & (per_block (c) - 1);
    want = c->counts[first + n - c->first];
    have = qcow2_refcount_get (c->block, k, order);
    if (have > want ? c->is_incomplete
        : have == want || c->options->repair != QCOW2_REPAIR_ALL
        || want > max_refcount (c))
      continue;
    qcow2_refcount_set (c->block, k, order, want);
    is_changed = true;
  }
  if (error < 0 || !is_changed)
    return error;
  /* Behind the end nothing is in use: what grows into it is not leaked. */
  if (first + len == c->nr && !c->is_incomplete)
    for (k = ((first + len - 1) & (per_block (c) - 1)) + 1; k < per_block (c);
         k++)
      qcow2_refcount_set (c->block, k, order, 0);
  error = blk_pwrite (c->q->file, c->block, c->q->cluster_size, place, 0);
  return error < 0 ? write_failed (c, error) : 0;
}

static int
mend_window (struct check *c, uint64_t first)
{
  int error = count_window (c, first);

  return error < 0 ? error : each_block (c, mend_block);
}

/* --- mending by new structures */

/* Where the new ones are going to be, behind everything. */
struct rebuild {
  uint64_t first;               /* cluster: of the blocks, then the table */
  uint64_t nr_blocks, nr_table;
};

static void
plan_rebuild (const struct check *c, struct rebuild *r)
{
  uint64_t total = 0, before;

  r->first = MAX (c->file_clusters, c->nr);
  r->nr_blocks = r->nr_table = 0;
  do {
    before = total;
    total = r->first + r->nr_blocks + r->nr_table;
    r->nr_blocks = div_round_up (total, per_block (c));
    r->nr_table = div_round_up (r->nr_blocks * 8, c->q->cluster_size);
  } while (r->first + r->nr_blocks + r->nr_table != before);
}

/* Write the new blocks of one window. */
static int
write_new_blocks (struct check *c, const struct rebuild *r, uint64_t first)
{
  unsigned order = c->q->header.refcount_order;
  uint64_t i, want, end;
  int error;

  error = count_window (c, first);
  c->block_index = UINT64_MAX;
  for (i = first; i < first + c->len && error == 0; i = end) {
    end = MIN (i + per_block (c), first + c->len);
    memset (c->block, 0, c->q->cluster_size);
    for (uint64_t k = i; k < end; k++) {
      want = c->counts[k - first] + (k >= r->first);
      if (want > max_refcount (c))
        return error_set (c->err, EOVERFLOW, "%s: cluster %" PRIu64 " has %"
                          PRIu64 " references, more than its refcount can"
                          " hold", c->q->blk.name, k, want);
      qcow2_refcount_set (c->block, k & (per_block (c) - 1), order, want);
    }
    error = blk_pwrite (c->q->file, c->block, c->q->cluster_size,
                        (r->first + (i >> c->q->refblock_bits))
                        << c->q->cluster_bits, 0);
    if (error < 0)
      return write_failed (c, error);
  }
  return error;
}

static int
write_new_table (struct check *c, const struct rebuild *r)
{
  uint64_t len = r->nr_table << c->q->cluster_bits;
  uint64_t off = (r->first + r->nr_blocks) << c->q->cluster_bits;
  CLEANUP_FREE uint8_t *table = calloc (1, len);
  uint8_t fields[12];
  int error;

  if (!table)
    return write_failed (c, -ENOMEM);
  for (uint64_t i = 0; i < r->nr_blocks; i++)
    store_be64 (table + i * 8, (r->first + i) << c->q->cluster_bits);
  error = blk_pwrite (c->q->file, table, len, off, 0);
  if (error == 0)
    error = blk_flush (c->q->file);
  store_be64 (fields, off);
  store_be32 (fields + 8, (uint32_t) r->nr_table);
  if (error == 0)
    error = blk_pwrite (c->q->file, fields, sizeof fields, 48, 0);
  if (error == 0)
    error = blk_flush (c->q->file);
  if (error < 0)
    return write_failed (c, error);
  c->q->header.reftable_offset = off;
  c->q->header.reftable_clusters = (uint32_t) r->nr_table;
  return 0;
}

static int
rebuild (struct check *c)
{
  struct rebuild r;
  uint64_t end;
  int error;

  plan_rebuild (c, &r);
  end = r.first + r.nr_blocks + r.nr_table;
  if (end > MAX_CLUSTERS
      || r.nr_table << c->q->cluster_bits > MAX (QCOW2_MAX_REFTABLE_BYTES,
                                                 c->q->cluster_size))
    return error_set (c->err, EFBIG, "%s: it needs too large a refcount"
                      " table", c->q->blk.name);
  error = blk_resize (c->q->file, end << c->q->cluster_bits);
  if (error < 0)
    return write_failed (c, error);
  c->is_rebuilding = true;
  c->nr = end;
  for (uint64_t first = 0; first < end && error == 0; first += c->window)
    error = write_new_blocks (c, &r, first);
  c->is_rebuilding = false;
  if (error == 0)
    error = write_new_table (c, &r);
  c->file_clusters = end;
  return error < 0 ? error : load_reftable (c);
}

/* --- all of it */

/* The image is sound: the header no longer says otherwise. */
static int
clear_bits (struct check *c)
{
  uint64_t bits = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
  uint8_t field[8];
  int error;

  if (c->q->header.version < 3 || !(c->q->header.incompatible & bits))
    return 0;
  store_be64 (field, c->q->header.incompatible & ~bits);
  error = blk_pwrite (c->q->file, field, sizeof field, 72, 0);
  if (error == 0)
    error = blk_flush (c->q->file);
  if (error < 0)
    return write_failed (c, error);
  c->q->header.incompatible &= ~bits;
  return 0;
}

static int
mend (struct check *c)
{
  int error;

  if (c->needs_rebuild) {
    /* In place nothing could be trusted. */
    if (c->is_incomplete || c->options->repair != QCOW2_REPAIR_ALL)
      return 0;
    error = rebuild (c);
  } else
    error = each_window (c, mend_window);
  if (error == 0) {
    error = blk_flush (c->q->file);
    if (error < 0)
      return write_failed (c, error);
    error = check_flags (c);
  }
  if (error == 0) {
    error = blk_flush (c->q->file);
    if (error < 0)
      return write_failed (c, error);
  }
  return error;
}

static int
check_and_mend (struct check *c)
{
  const struct qcow2_check_options *options = c->options;
  struct qcow2_check_options silent = *options;
  struct qcow2_check_result found;
  int error;

  error = check_once (c);
  if (error < 0 || options->repair == QCOW2_REPAIR_NONE)
    return error;
  found = *c->result;
  if (found.leaks > 0
      || (found.corruptions > 0 && options->repair == QCOW2_REPAIR_ALL)) {
    error = mend (c);
    silent.report = NULL;
    c->options = &silent;
    memset (c->result, 0, sizeof *c->result);
    c->result->total_clusters = found.total_clusters;
    if (error == 0)
      error = check_once (c);
    c->options = options;
    if (error < 0)
      return error;
    c->result->leaks_fixed = found.leaks - MIN (found.leaks, c->result->leaks);
    c->result->corruptions_fixed = found.corruptions
      - MIN (found.corruptions, c->result->corruptions);
  }
  if (options->repair == QCOW2_REPAIR_ALL && c->result->corruptions == 0)
    error = clear_bits (c);
  return error;
}

int
blk_qcow2_check (struct blk *file, const struct qcow2_check_options *options,
                 struct qcow2_check_result *ret, struct error *err)
{
  struct check c = {
    .options = options, .result = ret, .err = err,
    .window = options->window ? options->window : WINDOW,
  };
  const struct qcow2_cache_sizes cache = { .has_total = false };
  struct qcow2_header h;
  int error, r;

  memset (ret, 0, sizeof *ret);
  error = qcow2_header_read (file, &h, err);
  if (error == 0 && options->repair && blk_is_read_only (file))
    error = error_set (err, EPERM, "%s is read-only", file->name);
  if (error < 0) {
    blk_close (file);
    return error;
  }
  error = qcow2_new (file, &h, true, &cache, &c.q, err);
  if (error < 0)
    return error;
  c.window = round_up (c.window, per_block (&c));
  ret->total_clusters = div_round_up (h.size, c.q->cluster_size);
  c.counts = malloc (c.window * sizeof *c.counts);
  c.l2 = malloc (c.q->cluster_size);
  c.block = malloc (c.q->cluster_size);
  error = c.counts && c.l2 && c.block ? check_and_mend (&c)
    : check_failed (&c, -ENOMEM, "it");
  free (c.counts);
  free (c.l2);
  free (c.block);
  free (c.is_used);
  r = qcow2_destroy (c.q);
  if (error == 0 && r < 0)
    error = error_set_errno (err, -r, "closing it");
  return error;
}
