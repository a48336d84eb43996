/* SPDX-License-Identifier: BSD-3-Clause */
/* Replies: encoding, and the sender's role.
 *
 * Whoever completes a request queues its reply under the connection's lock.
 * If nobody is sending he takes the sender's role (is_sending) and sends, with
 * the lock released, until the queue is empty: replies that others queue
 * meanwhile go out in his next sendmsg.  He never waits for the client: when
 * the socket is full, the role passes to the connection's sender thread, which
 * may.  So no worker, and no other connection, ever waits for a slow client.
 *
 * Any worker, the connection's receiving and sender threads.
 */
#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "byteorder.h"
#include "conn.h"
#include "nbd-errno.h"
#include "range.h"
#include "reply.h"

/* A chunk's header to out; returns its length. */
static size_t
encode_head (bool is_extended, const struct request_head *head,
             uint16_t flags, uint16_t type, uint32_t len, uint8_t *out)
{
  store_be16 (out + 4, flags);
  store_be16 (out + 6, type);
  store_be64 (out + 8, head->cookie);
  if (is_extended) {
    store_be32 (out, NBD_EXTENDED_REPLY_MAGIC);
    store_be64 (out + 16, head->off);
    store_be64 (out + 24, len);
    return NBD_EXTENDED_REPLY_SIZE;
  }
  store_be32 (out, NBD_STRUCTURED_REPLY_MAGIC);
  store_be32 (out + 16, len);
  return NBD_STRUCTURED_REPLY_SIZE;
}

static size_t
encode_simple (const struct request_head *head, uint32_t error, uint8_t *out)
{
  store_be32 (out, NBD_SIMPLE_REPLY_MAGIC);
  store_be32 (out + 4, error);
  store_be64 (out + 8, head->cookie);
  return NBD_SIMPLE_REPLY_SIZE;
}

static size_t
encode_error (const struct request_env *env, const struct request_head *head,
              struct request_error error, uint8_t *out)
{
  size_t text_len = MIN (strlen (error.text), REPLY_MAX_TEXT), n;

  n = encode_head (env->is_extended, head, NBD_REPLY_FLAG_DONE,
                   NBD_REPLY_TYPE_ERROR, 6 + text_len, out);
  store_be32 (out + n, error.error);
  store_be16 (out + n + 4, text_len);
  memcpy (out + n + 6, error.text, text_len);
  return n + 6 + text_len;
}

size_t
reply_encode_small (const struct request_env *env,
                    const struct request_head *head,
                    struct request_error error, void *out)
{
  if (env->is_structured && error.error)
    return encode_error (env, head, error, out);
  /* A read has to be answered by a chunk, an empty one too. */
  if (env->is_extended || (env->is_structured && head->type == NBD_CMD_READ))
    return encode_head (env->is_extended, head, NBD_REPLY_FLAG_DONE,
                        NBD_REPLY_TYPE_NONE, 0, out);
  return encode_simple (head, error.error, out);
}

/* The end of the 4 KiB block that holds pos: blocks are aligned on the disk,
 * so that the first may be shorter.
 */
static uint64_t
block_end (uint64_t len, uint64_t off, uint64_t pos)
{
  return MIN (len, pos + 4096 - (off + pos) % 4096);
}

/* The length of the run of blocks at pos that are all zero, or all not. */
static uint64_t
run_length (const uint8_t *buf, uint64_t len, uint64_t off, uint64_t pos,
            bool *ret_is_zero)
{
  uint64_t end = block_end (len, off, pos), next;
  bool is_zero = is_zero_buffer (buf + pos, end - pos);

  while (end < len) {
    next = block_end (len, off, end);
    if (is_zero_buffer (buf + end, next - end) != is_zero)
      break;
    end = next;
  }
  *ret_is_zero = is_zero;
  return end - pos;
}

size_t
reply_find_holes (const void *buf, uint64_t len, uint64_t off, size_t max,
                  struct reply_chunk *chunks)
{
  uint64_t pos = 0, run;
  bool is_hole, is_new;
  size_t nr = 0;

  while (pos < len) {
    run = run_length (buf, len, off, pos, &is_hole);
    if (run < REPLY_MIN_HOLE && run < len)
      is_hole = false;
    is_new = nr == 0 || chunks[nr-1].is_hole != is_hole;
    /* The last chunk has to hold all of the rest, which is then data. */
    if (is_new && nr == max - 1 && pos + run < len) {
      is_hole = false;
      is_new = nr == 0 || chunks[nr-1].is_hole;
      run = len - pos;
    }
    if (is_new)
      chunks[nr++] = (struct reply_chunk) {
        .pos = pos, .len = run, .is_hole = is_hole,
      };
    else
      chunks[nr-1].len += run;
    pos += run;
  }
  return nr;
}

size_t
reply_status_size (bool is_extended, size_t nr)
{
  return is_extended ? NBD_EXTENDED_REPLY_SIZE + 8 + nr * 16
    : NBD_STRUCTURED_REPLY_SIZE + 4 + nr * 8;
}

static size_t
encode_status_extended (const struct extents *extents, uint32_t context_id,
                        uint8_t *out)
{
  size_t i;

  store_be32 (out, context_id);
  store_be32 (out + 4, extents->len);
  for (i = 0; i < extents->len; ++i) {
    store_be64 (out + 8 + i * 16, extents->ptr[i].len);
    store_be64 (out + 16 + i * 16, extents->ptr[i].value);
  }
  return 8 + extents->len * 16;
}

/* Longest extent that a compact reply can tell, 64 KiB aligned. */
#define MAX_COMPACT_EXTENT UINT32_C (0xffff0000)

static size_t
encode_status_compact (const struct extents *extents, uint32_t context_id,
                       uint8_t *out)
{
  const struct extent *e;
  bool is_cut = false;
  size_t i;

  store_be32 (out, context_id);
  for (i = 0; i < extents->len && !is_cut; ++i) {
    e = &extents->ptr[i];
    is_cut = e->len > UINT32_MAX;
    store_be32 (out + 4 + i * 8, is_cut ? MAX_COMPACT_EXTENT : e->len);
    store_be32 (out + 8 + i * 8, e->value);
  }
  return 4 + i * 8;
}

size_t
reply_encode_status (bool is_extended, const struct request_head *head,
                     uint32_t context_id, bool is_last,
                     const struct extents *extents, void *out)
{
  uint8_t *p = out;
  size_t n = is_extended ? NBD_EXTENDED_REPLY_SIZE : NBD_STRUCTURED_REPLY_SIZE;
  size_t len = is_extended
    ? encode_status_extended (extents, context_id, p + n)
    : encode_status_compact (extents, context_id, p + n);

  encode_head (is_extended, head, is_last ? NBD_REPLY_FLAG_DONE : 0,
               is_extended ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT
               : NBD_REPLY_TYPE_BLOCK_STATUS, len, p);
  return n + len;
}

static void
queue (struct slot *slot)
{
  struct conn *c = slot->conn;
  uint64_t bytes = 0;
  unsigned i;

  for (i = 0; i < slot->nr_iov; ++i)
    bytes += slot->iov[i].iov_len;
  slot->reply_bytes = bytes;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  c->unsent_bytes += bytes;
  slot->next = NULL;
  *c->replies_tail = slot;
  c->replies_tail = &slot->next;
}

static void
add_iov (struct slot *slot, void *base, size_t len)
{
  slot->iov[slot->nr_iov++] =
    (struct iovec) { .iov_base = base, .iov_len = len };
}

/* One content chunk: its header to p, which is returned behind it. */
static uint8_t *
add_chunk (struct slot *slot, const struct reply_chunk *chunk, bool is_last,
           uint8_t *p)
{
  bool is_extended = slot->conn->request_env.is_extended;
  uint8_t *start = p;

  p += encode_head (is_extended, &slot->head,
                    is_last ? NBD_REPLY_FLAG_DONE : 0,
                    chunk->is_hole ? NBD_REPLY_TYPE_OFFSET_HOLE
                    : NBD_REPLY_TYPE_OFFSET_DATA,
                    chunk->is_hole ? 12 : 8 + chunk->len, p);
  store_be64 (p, slot->head.off + chunk->pos);
  p += 8;
  if (chunk->is_hole) {
    store_be32 (p, chunk->len);
    p += 4;
  }
  add_iov (slot, start, p - start);
  if (!chunk->is_hole)
    add_iov (slot, slot->buf + chunk->pos, chunk->len);
  return p;
}

void
reply_read (struct slot *slot)
{
  struct reply_chunk chunks[REPLY_MAX_CHUNKS];
  uint8_t *p = slot->heads;
  size_t nr, i;

  slot->nr_iov = 0;
  if (!slot->conn->request_env.is_structured) {
    add_iov (slot, p, encode_simple (&slot->head, NBD_SUCCESS, p));
    add_iov (slot, slot->buf, slot->head.len);
  }
  else {
    nr = reply_find_holes (slot->buf, slot->head.len, slot->head.off,
                           slot->head.flags & NBD_CMD_FLAG_DF
                           ? 1 : REPLY_MAX_CHUNKS, chunks);
    for (i = 0; i < nr; ++i)
      p = add_chunk (slot, &chunks[i], i == nr - 1, p);
  }
  queue (slot);
}

void
reply_chunks (struct slot *slot, size_t len)
{
  slot->nr_iov = 0;
  add_iov (slot, slot->buf, len);
  queue (slot);
}

static void
add_small_locked (struct conn *c, const void *data, size_t len)
{
  lock_assert_held (&c->lock);
  memcpy (c->small[c->small_index] + c->small_len, data, len);
  c->small_len += len;
}

void
reply_small (struct slot *slot, struct request_error error)
{
  struct conn *c = slot->conn;
  uint8_t reply[REPLY_SMALL_MAX];
  size_t len = reply_encode_small (&c->request_env, &slot->head, error, reply);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  add_small_locked (c, reply, len);
  slot_release_locked (slot);
}

/* Wait while too much is waiting to be sent, so that a client that reads no
 * replies is given no more.
 */
void
reply_add_small (struct conn *c, const void *data, size_t len)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  while (c->small_len > CONN_SMALL_LIMIT)
    lock_wait (&c->lock, &c->room);
  add_small_locked (c, data, len);
}

/* Give up the batch that has been sent and gather the next one.  False if
 * there is none: the role is given up, too.
 */
static bool
next_batch (struct conn *c)
{
  struct slot *slot;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  while ((slot = c->sent) != NULL) {
    c->sent = slot->next;
    c->unsent_bytes -= slot->reply_bytes;
    slot_release_locked (slot);
  }
  c->iov_pos = c->nr_iov = 0;
  if (c->small_len > 0) {
    c->iov[c->nr_iov++] = (struct iovec) {
      .iov_base = c->small[c->small_index], .iov_len = c->small_len,
    };
    c->small_index ^= 1;
    c->small_len = 0;
  }
  while ((slot = c->replies) != NULL
         && c->nr_iov + slot->nr_iov <= CONN_SEND_IOV) {
    memcpy (&c->iov[c->nr_iov], slot->iov,
            slot->nr_iov * sizeof slot->iov[0]);
    c->nr_iov += slot->nr_iov;
    c->replies = slot->next;
    slot->next = c->sent;
    c->sent = slot;
  }
  if (c->replies == NULL)
    c->replies_tail = &c->replies;
  if (c->nr_iov == 0)
    c->is_sending = false;
  pthread_cond_broadcast (&c->room);
  return c->nr_iov > 0;
}

/* Skip the n bytes of the batch that have been sent. */
static void
advance (struct conn *c, size_t n)
{
  while (n > 0) {
    struct iovec *v = &c->iov[c->iov_pos];
    size_t part = MIN (n, v->iov_len);

    v->iov_base = (uint8_t *) v->iov_base + part;
    v->iov_len -= part;
    n -= part;
    if (v->iov_len == 0)
      c->iov_pos++;
  }
}

/* Batches that whoever completed a request sends, before he leaves the rest to
 * the sender thread: a worker must not become the sender of a busy connection.
 */
#define MAX_BATCHES 8

/* Send until nothing is queued; by the holder of the role.  False if the
 * socket is full, or there is too much, and flags has MSG_DONTWAIT: the role
 * is still held.
 */
static bool
send_queued (struct conn *c, int flags)
{
  struct msghdr msg = { .msg_name = NULL };
  unsigned nr_batches = 0;
  ssize_t n;

  for (;;) {
    if (atomic_load (&c->is_dead))
      c->iov_pos = c->nr_iov;
    if (c->iov_pos == c->nr_iov) {
      if (!next_batch (c))
        return true;
      if ((flags & MSG_DONTWAIT) && ++nr_batches > MAX_BATCHES)
        return false;
      continue;
    }
    msg.msg_iov = &c->iov[c->iov_pos];
    msg.msg_iovlen = c->nr_iov - c->iov_pos;
    n = conn_sendmsg (c, &msg, flags);
    if (n >= 0)
      advance (c, n);
    else if (errno == EAGAIN && (flags & MSG_DONTWAIT))
      return false;
    else if (errno != EINTR) {
      /* The receiving thread ends the connection. */
      atomic_store (&c->is_dead, true);
      shutdown (c->fd, SHUT_RDWR);
    }
  }
}

void
reply_flush (struct conn *c, bool may_wait)
{
  bool is_mine;

  lock_acquire (&c->lock);
  is_mine = !c->is_sending && (c->small_len > 0 || c->replies);
  if (is_mine)
    c->is_sending = true;
  while (!is_mine && may_wait && c->unsent_bytes > CONN_MAX_UNSENT)
    lock_wait (&c->lock, &c->room);
  lock_release (&c->lock);
  if (is_mine && !send_queued (c, may_wait ? 0 : MSG_DONTWAIT)) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
    c->is_handed_over = true;
    pthread_cond_signal (&c->handed_over);
  }
}

void *
reply_sender_thread (void *conn)
{
  struct conn *c = conn;

  lock_acquire (&c->lock);
  while (!c->is_ending || c->is_handed_over) {
    if (!c->is_handed_over) {
      lock_wait (&c->lock, &c->handed_over);
      continue;
    }
    c->is_handed_over = false;
    lock_release (&c->lock);
    send_queued (c, 0);
    lock_acquire (&c->lock);
  }
  lock_release (&c->lock);
  return NULL;
}
