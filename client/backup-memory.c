/* SPDX-License-Identifier: BSD-3-Clause */
/* How --memory is shared out.  Main thread.
 *
 * What is not the copy engines' buffers: the program and its libraries, about
 * 10 MiB; of each disk that is being pulled, libnbd's copy of a block status
 * reply, 2^20 extents at most, and the map's extents and batches of runs
 * (dirtymap.c, pull-map.c); and, of each thread that compresses, the library's
 * own, which is found out by a trial.
 */
#include "config.h"

#include <errno.h>

#include "backup.h"
#include "blk-qcow2.h"
#include "copy.h"
#include "range.h"
#include "size.h"

#define PROGRAM_MEMORY (UINT64_C (10) << 20)
#define PULL_MEMORY (UINT64_C (18) << 20)
/* What a thread of the copy engine has under way at least: two items. */
#define MIN_ITEM (UINT64_C (1) << 18)
/* With less than that one disk more makes nothing faster. */
#define MIN_SHARE (UINT64_C (8) << 20)

static uint64_t
least_items (const struct backup_run *run)
{
  return 2 * MAX (run->cluster_size, MIN_ITEM);
}

int
backup_set_memory (struct backup_run *run, uint64_t memory, struct error *err)
{
  const uint64_t other = PROGRAM_MEMORY + PULL_MEMORY;
  uint64_t a_thread;
  char a[SIZE_STRING_MAX], b[SIZE_STRING_MAX];

  run->memory_limit = memory;
  run->nr_threads = run->nr_connections ? run->nr_connections
    : COPY_DEFAULT_THREADS;
  if (run->compress) {
    run->pack_memory = qcow2_pack_memory (run->compression,
                                          run->compression_level,
                                          run->cluster_size);
    if (run->pack_memory == 0)
      return error_set_errno (err, ENOMEM, "--compress");
  }
  a_thread = run->pack_memory + least_items (run);
  if (memory < other + a_thread)
    return error_set (err, EINVAL, "--memory %s: clusters of this size and "
                      "this compression need %s", size_format (memory, a),
                      size_format (other + a_thread, b));
  run->nr_threads = (unsigned) MIN (run->nr_threads,
                                    (memory - other) / a_thread);
  return 0;
}

/* What each of n has for its buffers. */
static uint64_t
share (const struct backup_run *run, unsigned n)
{
  const uint64_t other = PROGRAM_MEMORY
    + n * (PULL_MEMORY + run->nr_threads * run->pack_memory);

  return other < run->memory_limit ? (run->memory_limit - other) / n : 0;
}

void
backup_share_out (struct backup_run *run)
{
  const uint64_t least = MAX (MIN_SHARE, run->nr_threads * least_items (run));
  unsigned n = (unsigned) MIN (run->nr_parallel, run->nr_disks);

  while (n > 1 && share (run, n) < least)
    n--;
  run->nr_parallel = n;
  run->memory = share (run, n);
}
