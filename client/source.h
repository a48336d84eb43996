/* SPDX-License-Identifier: BSD-3-Clause */
/* NBD exports as sources. */
#ifndef TIDEMARK_SOURCE_H
#define TIDEMARK_SOURCE_H

#include "blk.h"
#include "error.h"

/* The metadata context of a bitmap: "qemu:dirty-bitmap:NAME", or bitmap itself
 * if it is the full name of a context.  The caller frees it; NULL if out of
 * memory.
 */
char *source_context (const char *bitmap);

/* Open for reading with base:allocation and, unless NULL, a dirty context.  If
 * the export does not have that one, the message lists those that it has.
 * is_foreign: a server has named the URI, not the user.
 */
int source_open (const char *uri, bool is_foreign, const char *context,
                 unsigned nr_connections, struct blk **ret,
                 struct error *err);

/* For interrupt_watch_start: gives up waiting for the server of the node that
 * opaque is.
 */
void source_cancel (void *opaque);

#endif /* TIDEMARK_SOURCE_H */
