/* SPDX-License-Identifier: BSD-3-Clause */
/* Exports that are added and removed while the process runs, by ids of their
 * own, and the NBD server that nbd-server-start starts.
 */
#ifndef TIDEMARK_BLOCK_EXPORT_H
#define TIDEMARK_BLOCK_EXPORT_H

#include "service.h"
#include "sockaddr.h"

struct block_exports;

struct block_export_bitmap {
  struct disk *disk;
  const char *name;
};

struct block_export_options {
  const char *id;
  struct disk *disk;
  const char *node_name;        /* as it was asked for */
  const char *name;             /* of the NBD export */
  const char *description;      /* or NULL */
  bool is_writable;
  /* QEMU's rules: at most one export has a bitmap, and it is busy meanwhile;
   * a read-only one refuses a bitmap that records.
   */
  const struct block_export_bitmap *bitmaps;
  size_t nr_bitmaps;
};

struct block_export_info {
  char *id;
  char *node_name;
};

/* Exports go into the live table of s. */
int block_exports_new (struct service *s, struct block_exports **ret);
/* Stops the NBD server, then removes all exports.  NULL is allowed. */
void block_exports_free (struct block_exports *be);

/* All of these: inside a command, with QEMU's messages. */

int block_export_add (struct block_exports *be,
                      const struct block_export_options *options,
                      struct error *err);
bool block_export_exists (struct block_exports *be, const char *id);
/* is_safe: -EBUSY if clients are connected.  Returns when no request uses it
 * any more.  Sends BLOCK_EXPORT_DELETED.
 */
int block_export_remove (struct block_exports *be, const char *id,
                         bool is_safe, struct error *err);
/* The caller frees the members and the array. */
int block_export_list (struct block_exports *be,
                       struct block_export_info **ret, size_t *ret_nr);
void block_export_list_free (struct block_export_info *infos, size_t nr);

/* max_connections 0 = no limit but the server's own.  creds: see
 * nbd-server.h.
 */
int block_exports_start_server (struct block_exports *be,
                                const struct sock_address *addr,
                                unsigned max_connections,
                                struct tls_creds *creds, struct error *err);
/* Exports go with it, as in QEMU. */
int block_exports_stop_server (struct block_exports *be, struct error *err);
/* Is there anybody who serves exports? */
bool block_exports_are_served (struct block_exports *be);

#endif /* TIDEMARK_BLOCK_EXPORT_H */
