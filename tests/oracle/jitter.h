/* SPDX-License-Identifier: BSD-3-Clause */
/* A node that lets other threads run at every request, so that races which
 * need two threads at one place within a microsecond happen often.
 */
#ifndef TIDEMARK_TESTS_JITTER_H
#define TIDEMARK_TESTS_JITTER_H

#include "blk.h"

/* Over child, of which it takes ownership.  Exits if there is no memory. */
struct blk *jitter_new (struct blk *child);

#endif /* TIDEMARK_TESTS_JITTER_H */
