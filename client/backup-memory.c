/* SPDX-License-Identifier: BSD-3-Clause */
/* How --memory is shared out.  Main thread.
 *
 * What is not the copy engine's buffers: the program and its libraries, about
 * 10 MiB; libnbd's copy of a block status reply, 2^20 extents at most; the
 * map's extents and batches of runs (dirtymap.c, pull.c); and, of each thread
 * that compresses, the library's own, which is found out by a trial.
 */
#include "config.h"

#include <errno.h>

#include "backup.h"
#include "blk-qcow2.h"
#include "copy.h"
#include "range.h"
#include "size.h"

#define OTHER_MEMORY (UINT64_C (28) << 20)
/* What a thread of the copy engine has under way at least: two items. */
#define MIN_ITEM (UINT64_C (1) << 18)

int
backup_share_memory (struct backup_run *run, uint64_t memory,
                     struct error *err)
{
  const uint64_t items = 2 * MAX (run->cluster_size, MIN_ITEM);
  uint64_t pack = 0, least;
  char a[SIZE_STRING_MAX], b[SIZE_STRING_MAX];

  run->nr_threads = run->nr_connections ? run->nr_connections
    : COPY_DEFAULT_THREADS;
  if (run->compress) {
    pack = qcow2_pack_memory (run->compression, run->compression_level,
                              run->cluster_size);
    if (pack == 0)
      return error_set_errno (err, ENOMEM, "--compress");
  }
  least = OTHER_MEMORY + pack + items;
  if (memory < least)
    return error_set (err, EINVAL, "--memory %s: clusters of this size and "
                      "this compression need %s",
                      size_format (memory, a), size_format (least, b));
  while (run->nr_threads > 1
         && OTHER_MEMORY + run->nr_threads * (pack + items) > memory)
    run->nr_threads--;
  run->memory = memory - OTHER_MEMORY - run->nr_threads * pack;
  return 0;
}
