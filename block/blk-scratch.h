/* SPDX-License-Identifier: BSD-3-Clause */
/* Where copy-before-write keeps old data: unlinked sparse files that go
 * away with the process, whatever ends it.
 */
#ifndef TIDEMARK_BLK_SCRATCH_H
#define TIDEMARK_BLK_SCRATCH_H

#include "blk.h"

/* The directory that dir stands for: NULL = the environment's TMPDIR, else
 * /var/tmp.
 */
const char *blk_scratch_dir (const char *dir);

/* A node of size bytes, at most 4 PiB, over unlinked files in the directory
 * dir, as above.  It reads as zeroes where nothing has been written and is as
 * sparse as what is written to it; a trim gives space back.
 */
int blk_scratch_open (const char *dir, uint64_t size, struct blk **ret,
                      struct error *err);

#endif /* TIDEMARK_BLK_SCRATCH_H */
