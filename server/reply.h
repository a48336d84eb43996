/* SPDX-License-Identifier: BSD-3-Clause */
/* Replies of the transmission phase: encoding and sending. */
#ifndef TIDEMARK_REPLY_H
#define TIDEMARK_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "extents.h"
#include "nbd-protocol.h"
#include "request.h"

/* The longest reply without payload: an error chunk with its text. */
#define REPLY_SMALL_MAX 128
#define REPLY_MAX_TEXT \
  (REPLY_SMALL_MAX - NBD_EXTENDED_REPLY_SIZE - 6)

/* Content chunks in the reply to one read, at most. */
#define REPLY_MAX_CHUNKS 16
#define REPLY_CHUNK_HEAD_MAX (NBD_EXTENDED_REPLY_SIZE + 12)
#define REPLY_HEADS_SIZE (REPLY_MAX_CHUNKS * REPLY_CHUNK_HEAD_MAX)
#define REPLY_MAX_IOV (2 * REPLY_MAX_CHUNKS)

/* Zeroes within a read are sent as a hole if they are at least this long, or
 * all of the read: shorter ones cost more in chunks than they save.
 */
#define REPLY_MIN_HOLE 32768

struct conn;
struct slot;

/* Pure: */

/* A reply without payload to out (REPLY_SMALL_MAX); returns its length. */
size_t reply_encode_small (const struct request_env *env,
                           const struct request_head *head,
                           struct request_error error, void *out);

struct reply_chunk {
  uint64_t pos;                 /* in the buffer */
  uint64_t len;
  bool is_hole;
};

/* Split len bytes at buf, read from off, into at most max chunks; returns how
 * many.  Neighbours differ in is_hole.
 */
size_t reply_find_holes (const void *buf, uint64_t len, uint64_t off,
                         size_t max, struct reply_chunk *chunks);

/* Bytes that reply_encode_status needs for nr extents. */
size_t reply_status_size (bool is_extended, size_t nr);
/* One block status chunk to out; returns its length.  In a compact reply an
 * extent that does not fit 32 bits is cut short, and ends the chunk.
 */
size_t reply_encode_status (bool is_extended, const struct request_head *head,
                            uint32_t context_id, bool is_last,
                            const struct extents *extents, void *out);

/* Sending: */

/* Queue the reply of a slot that read slot->head.len bytes. */
void reply_read (struct slot *slot);
/* Queue the len bytes at slot->buf, encoded chunks. */
void reply_chunks (struct slot *slot, size_t len);
/* Queue a reply without payload and release the slot. */
void reply_small (struct slot *slot, struct request_error error);
/* Queue encoded small replies of the receiving thread. */
void reply_add_small (struct conn *c, const void *data, size_t len);

/* Send what is queued as far as that is possible without waiting; the rest is
 * left to the connection's sender thread.  Any thread, no lock held.
 * may_wait: only the receiving thread; wait until all of it, or nearly so, has
 * been sent.
 */
void reply_flush (struct conn *c, bool may_wait);

/* The sender thread. */
void *reply_sender_thread (void *conn);

#endif /* TIDEMARK_REPLY_H */
