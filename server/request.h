/* SPDX-License-Identifier: BSD-3-Clause */
/* Requests of the transmission phase: decoding, checking, execution. */
#ifndef TIDEMARK_REQUEST_H
#define TIDEMARK_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbd-protocol.h"

/* The largest payload of a read or write: what a client may expect that asked
 * for no limits (nbd: "Size constraints").
 */
#define REQUEST_MAX_PAYLOAD (UINT32_C (32) << 20)

/* A longer payload of a compact request is read and thrown away up to here,
 * so that the client gets an error; beyond, the connection is dropped.
 */
#define REQUEST_MAX_SKIP (UINT32_C (64) << 20)

/* Extents in the whole reply to a block status request, all contexts
 * together, and in one context at least.  The protocol asks for at most 2^20
 * in one chunk; QEMU stops here, too.
 */
#define REQUEST_MAX_EXTENTS 131072
#define REQUEST_MIN_EXTENTS 1024

struct request_head {
  uint16_t flags;
  uint16_t type;
  uint64_t cookie;
  uint64_t off;
  uint64_t len;                 /* as sent: of the effect or the payload */
};

/* What negotiation and the export decide about a request. */
struct request_env {
  bool is_structured;           /* or extended */
  bool is_extended;
  bool is_read_only;
  bool can_trim;
  bool can_fast_zero;
  size_t nr_contexts;
  uint64_t size;                /* of the export, now */
};

/* An answer that is an error; error 0 = none. */
struct request_error {
  uint32_t error;               /* NBD_E... */
  const char *text;             /* static */
};

static inline size_t
request_head_size (bool is_extended)
{
  return is_extended ? NBD_EXTENDED_REQUEST_SIZE : NBD_REQUEST_SIZE;
}

/* False if the magic number is not the one that was negotiated. */
bool request_decode (const void *wire, bool is_extended,
                     struct request_head *ret);

/* True if a payload of head->len bytes follows the header. */
bool request_has_payload (const struct request_env *env,
                          const struct request_head *head);

/* True if the client cannot be served any more after this header. */
bool request_is_fatal (const struct request_env *env,
                       const struct request_head *head);

/* Everything that can be refused without looking at the payload, in the order
 * of the protocol's text: command, flags, permission, range, size.
 */
struct request_error request_check (const struct request_env *env,
                                    const struct request_head *head);

/* A block status request with payload: its effect length to *ret_len, and
 * which contexts (by index) to wanted[nr_contexts].
 */
struct request_error request_decode_status (const struct request_env *env,
                                            const struct request_head *head,
                                            const void *payload,
                                            uint64_t *ret_len, bool *wanted);

struct conn;
struct slot;

/* Carry out slot's request, which has been checked, and queue its reply.
 * Worker threads, and the connection's own for what does not wait.
 */
void request_execute (struct slot *slot);

/* Try to read at once what is in memory.  False: it would have to wait. */
bool request_read_now (struct slot *slot);

/* A write whose payload is at data.  No slot, no copy. */
struct request_error request_write_now (struct conn *conn,
                                        const struct request_head *head,
                                        const void *data);

#endif /* TIDEMARK_REQUEST_H */
