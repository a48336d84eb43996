/* SPDX-License-Identifier: BSD-3-Clause */
/* Block status as libnbd has it: with 64-bit lengths, which need extended
 * headers, since its version 1.18, and with 32-bit ones before.  The only place
 * that knows of the difference; for blk-nbd.c, nbd-open.c and nbd-conn.c.
 */
#ifndef TIDEMARK_NBD_STATUS_H
#define TIDEMARK_NBD_STATUS_H

#include <stddef.h>
#include <stdint.h>

#include <libnbd.h>

/* What a reply says in one context, while it is being called back about. */
struct nbd_status {
  const char *context;
  uint64_t off;
  const void *entries;          /* see nbd_status_entry */
  size_t nr_entries;
};

struct nbd_status_entry {
  uint64_t len;
  uint64_t flags;
};

/* Entry i < nr_entries. */
struct nbd_status_entry nbd_status_entry (const struct nbd_status *status,
                                          size_t i);

/* Who gets the replies of one request; lasts until it has ended. */
struct nbd_status_sink {
  /* Under libnbd's lock of the handle. */
  void (*arrived) (void *opaque, const struct nbd_status *status);
  void *opaque;
};

/* What one request to the connected server can be about, in bytes; a multiple
 * of any block size.
 */
uint64_t nbd_status_max_length (struct nbd_handle *h);

/* As nbd_aio_block_status; len is at most that. */
int64_t nbd_status_issue (struct nbd_handle *h, uint64_t len, uint64_t off,
                          struct nbd_status_sink *sink,
                          nbd_completion_callback completion, uint32_t flags);

#endif /* TIDEMARK_NBD_STATUS_H */
