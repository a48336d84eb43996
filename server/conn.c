/* SPDX-License-Identifier: BSD-3-Clause */
/* One NBD connection: its life and its receiving thread.
 *
 * The thread does the handshake, then takes requests from what it receives,
 * many from one receive.  What needs not wait (reads of what is in memory,
 * writes that the page cache takes, see inline-policy.h) it does itself, the
 * rest it gives to the workers.  Before it waits for the client it sends what
 * it has queued.
 *
 * I10: a client can have CONN_MAX_REQUESTS requests and about CONN_MAX_BYTES
 * in flight; then nothing more is received until it has read replies.
 *
 * The end: no more is received; the requests in progress are finished and
 * their replies sent, or dropped if the client is gone; only then does the
 * connection count as finished, so that nothing of it changes the disk later.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include "clock.h"
#include "conn.h"
#include "log.h"
#include "nbd-errno.h"
#include "range.h"
#include "sockaddr.h"

/* The receiving thread sends after this many bytes of replies of its own, or
 * this many replies without payload, even if more requests are at hand.
 */
#define FLUSH_BYTES (128 * 1024)
#define FLUSH_SMALL 128

/* What a block status request may take for its reply. */
#define STATUS_COST (REQUEST_MAX_EXTENTS * UINT64_C (16))

/* Slots. */

/* Large buffers are mapped, so that giving one back always gives its memory
 * back.  All are aligned to pages, for drivers that care.
 */
#define MAP_BUFFER (128 * 1024)

static void *
buffer_alloc (size_t cap)
{
  void *buf;

  if (cap < MAP_BUFFER)
    return posix_memalign (&buf, 4096, cap) == 0 ? buf : NULL;
  buf = mmap (NULL, cap, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
              -1, 0);
  return buf == MAP_FAILED ? NULL : buf;
}

static void
slot_drop_buffer (struct slot *slot)
{
  if (slot->cap < MAP_BUFFER)
    free (slot->buf);
  else
    munmap (slot->buf, slot->cap);
  slot->buf = NULL;
  slot->cap = 0;
}

static void
slot_free (struct slot *slot)
{
  slot_drop_buffer (slot);
  free (slot);
}

int
slot_reserve (struct slot *slot, size_t len, size_t used)
{
  size_t cap = slot->cap ? slot->cap : 4096;
  void *buf;

  if (len <= slot->cap)
    return 0;
  while (cap < len)
    cap *= 2;
  buf = buffer_alloc (cap);
  if (buf == NULL)
    return -ENOMEM;
  if (used > 0)
    memcpy (buf, slot->buf, used);
  slot_drop_buffer (slot);
  slot->buf = buf;
  slot->cap = cap;
  return 0;
}

void
slot_release_locked (struct slot *slot)
{
  struct conn *c = slot->conn;

  lock_assert_held (&c->lock);
  c->nr_requests--;
  c->nr_bytes -= slot->cost;
  if (slot->cap > CONN_KEEP_BUFFER
      || c->kept_bytes + slot->cap > CONN_KEEP_BYTES)
    slot_drop_buffer (slot);
  c->kept_bytes += slot->cap;
  slot->next = c->free_slots;
  c->free_slots = slot;
}

static bool
has_room_locked (struct conn *c, uint64_t cost)
{
  return c->nr_requests < CONN_MAX_REQUESTS
    && (c->nr_requests == 0 || c->nr_bytes + cost <= CONN_MAX_BYTES)
    && c->small_len <= CONN_SMALL_LIMIT;
}

static struct slot *
slot_take_locked (struct conn *c, uint64_t cost)
{
  struct slot *slot = c->free_slots;

  if (slot) {
    c->free_slots = slot->next;
    c->kept_bytes -= slot->cap;
  }
  else {
    slot = calloc (1, sizeof *slot);
    if (slot == NULL)
      return NULL;
    slot->conn = c;
  }
  slot->cost = cost;
  c->nr_requests++;
  c->nr_bytes += cost;
  return slot;
}

/* Send what the receiving thread has completed.  It waits for the client only
 * after large replies.
 */
static void
flush_own (struct conn *c)
{
  bool may_wait = c->rx_queued >= FLUSH_BYTES;

  if (c->rx_small_len == 0 && c->rx_queued == 0)
    return;
  if (c->rx_small_len > 0)
    reply_add_small (c, c->rx_small, c->rx_small_len);
  c->rx_small_len = c->rx_queued = 0;
  reply_flush (c, may_wait);
}

/* A slot for the request, once there is room for cost bytes more.  NULL if
 * out of memory.
 */
static struct slot *
slot_acquire (struct conn *c, const struct request_head *head, uint64_t cost)
{
  struct slot *slot;

  lock_acquire (&c->lock);
  if (!has_room_locked (c, cost)) {
    lock_release (&c->lock);
    flush_own (c);
    lock_acquire (&c->lock);
    while (!has_room_locked (c, cost))
      lock_wait (&c->lock, &c->room);
  }
  slot = slot_take_locked (c, cost);
  lock_release (&c->lock);
  if (slot)
    slot->head = *head;
  return slot;
}

static void
slot_release (struct slot *slot)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&slot->conn->lock);
  slot_release_locked (slot);
}

/* As slot_acquire, with a buffer of len bytes. */
static struct slot *
slot_acquire_buffer (struct conn *c, const struct request_head *head,
                     size_t len)
{
  struct slot *slot = slot_acquire (c, head, len);

  if (slot && slot_reserve (slot, len, 0) < 0) {
    slot_release (slot);
    return NULL;
  }
  return slot;
}

/* Workers. */

static void
run_slot (struct work *work)
{
  struct slot *slot = (struct slot *) work; /* its first member */
  struct conn *c = slot->conn;

  request_execute (slot);
  reply_flush (c, false);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  c->nr_working--;
  pthread_cond_broadcast (&c->room);
}

static void
submit (struct slot *slot)
{
  struct conn *c = slot->conn;

  lock_acquire (&c->lock);
  c->nr_working++;
  lock_release (&c->lock);
  slot->work.run = run_slot;
  workers_submit (c->env.workers, &slot->work);
}

/* Receiving. */

/* Receiving fails with EAGAIN after so many seconds; 0 = never. */
static void
set_receive_timeout (struct conn *c, unsigned seconds)
{
  const struct timeval timeout = { .tv_sec = seconds };

  setsockopt (c->fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  c->is_timed = seconds > 0;
}

/* Nothing came for a while: give back the memory that is kept for reuse, and
 * the pages of those buffers in which there is nothing.
 */
static void
free_kept_memory (struct conn *c)
{
  struct slot *slot;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  while ((slot = c->free_slots) != NULL) {
    c->free_slots = slot->next;
    slot_free (slot);
  }
  c->kept_bytes = 0;
  if (c->memory && c->rx_pos == c->rx_end && c->small_len == 0
      && !c->is_sending)
    madvise (c->memory, CONN_MEMORY, MADV_DONTNEED);
}

/* Receive into v, at least one byte.  False at the end of the connection. */
static bool
receive (struct conn *c, struct iovec *v, size_t nr, size_t *ret)
{
  struct msghdr msg = { .msg_iov = v, .msg_iovlen = nr };
  ssize_t n;

  flush_own (c);
  for (;;) {
    n = conn_recvmsg (c, &msg, 0);
    if (n < 0 && errno == EAGAIN) {
      free_kept_memory (c);
      set_receive_timeout (c, 0);
    }
    else if (n >= 0 || errno != EINTR)
      break;
  }
  if (!c->is_timed)
    set_receive_timeout (c, CONN_IDLE_SECONDS);
  if (n <= 0 || atomic_load (&c->is_stopping)) {
    if (c->tls && tls_recv_error (c->tls))
      log_debug ("nbd: TLS: %s", tls_recv_error (c->tls));
    return false;
  }
  *ret = n;
  return true;
}

/* Have at least need (<= CONN_RX_SIZE) bytes at rx_pos. */
static bool
fill (struct conn *c, size_t need)
{
  struct iovec v;
  size_t n;

  while (c->rx_end - c->rx_pos < need) {
    if (c->rx_pos == c->rx_end)
      c->rx_pos = c->rx_end = 0;
    else if (CONN_RX_SIZE - c->rx_pos < need) {
      memmove (c->rx, c->rx + c->rx_pos, c->rx_end - c->rx_pos);
      c->rx_end -= c->rx_pos;
      c->rx_pos = 0;
    }
    v.iov_base = c->rx + c->rx_end;
    v.iov_len = CONN_RX_SIZE - c->rx_end;
    if (!receive (c, &v, 1, &n))
      return false;
    c->rx_end += n;
  }
  return true;
}

/* Receive exactly len bytes to buf: what is there already, then straight from
 * the socket, along with what follows.
 */
static bool
receive_payload (struct conn *c, uint8_t *buf, size_t len)
{
  size_t n = MIN (len, c->rx_end - c->rx_pos);
  struct iovec v[2];

  memcpy (buf, c->rx + c->rx_pos, n);
  c->rx_pos += n;
  while (n < len) {
    size_t part;

    v[0] = (struct iovec) { .iov_base = buf + n, .iov_len = len - n };
    v[1] = (struct iovec) { .iov_base = c->rx, .iov_len = CONN_RX_SIZE };
    c->rx_pos = c->rx_end = 0;
    if (!receive (c, v, 2, &part))
      return false;
    c->rx_end = part - MIN (part, len - n);
    n += MIN (part, len - n);
  }
  return true;
}

/* Answer a request without payload in the reply. */
static void
reply_own (struct conn *c, const struct request_head *head,
           struct request_error error)
{
  c->rx_small_len += reply_encode_small (&c->request_env, head, error,
                                         c->rx_small + c->rx_small_len);
  if (c->rx_small_len > MIN (FLUSH_SMALL, CONN_RX_SMALL - REPLY_SMALL_MAX))
    flush_own (c);
}

/* Refuse a request.  The answer must not overtake the payload: a client looks
 * for it only when it has sent all.
 */
static bool
refuse_request (struct conn *c, const struct request_head *head,
                struct request_error error)
{
  uint64_t len = request_has_payload (&c->request_env, head) ? head->len : 0;
  size_t n;

  while (len > 0) {
    if (!fill (c, 1))
      return false;
    n = MIN (len, c->rx_end - c->rx_pos);
    c->rx_pos += n;
    len -= n;
  }
  reply_own (c, head, error);
  return true;
}

static const struct request_error no_error = { .text = "" };
static const struct request_error no_memory = {
  .error = NBD_ENOMEM, .text = "out of memory",
};

static void
start_read (struct conn *c, const struct request_head *head)
{
  struct slot *slot = slot_acquire_buffer (c, head, head->len);

  if (slot == NULL)
    reply_own (c, head, no_memory);
  else if (!request_read_now (slot))
    submit (slot);
  else {
    c->rx_queued += head->len;
    if (c->rx_queued >= FLUSH_BYTES)
      flush_own (c);
  }
}

/* Carry out or hand over, as the policy says (NULL: hand over). */
static void
start_slot (struct slot *slot, struct inline_policy *policy)
{
  struct conn *c = slot->conn;
  uint64_t start;

  if (policy == NULL || !inline_policy_try (policy)) {
    submit (slot);
    return;
  }
  start = clock_ns ();
  request_execute (slot);
  inline_policy_took (policy, clock_ns () - start);
  c->rx_queued++;
}

static struct inline_policy *
policy_for (struct conn *c, const struct request_head *head)
{
  if (head->flags & NBD_CMD_FLAG_FUA)
    return NULL;
  switch (head->type) {
  case NBD_CMD_WRITE:
    return &c->inline_write;
  case NBD_CMD_TRIM:
  case NBD_CMD_WRITE_ZEROES:
    return head->len <= CONN_INLINE_ZERO ? &c->inline_zero : NULL;
  case NBD_CMD_BLOCK_STATUS:
    return &c->inline_status;
  default:
    return NULL;
  }
}

/* A request without payload that has passed the checks. */
static void
start_request (struct conn *c, const struct request_head *head)
{
  struct slot *slot;

  if (head->len == 0 && head->type != NBD_CMD_FLUSH)
    reply_own (c, head, no_error);
  else if (head->type == NBD_CMD_READ)
    start_read (c, head);
  else {
    slot = slot_acquire (c, head, head->type == NBD_CMD_BLOCK_STATUS
                         && !(head->flags & NBD_CMD_FLAG_REQ_ONE)
                         ? STATUS_COST : 0);
    if (slot == NULL) {
      reply_own (c, head, no_memory);
      return;
    }
    slot->status_len = head->len;
    memset (slot->wanted, true, c->contexts.len * sizeof slot->wanted[0]);
    start_slot (slot, policy_for (c, head));
  }
}

/* A write that is wholly in the receive buffer. */
static void
write_from_rx (struct conn *c, const struct request_head *head)
{
  struct inline_policy *policy = policy_for (c, head);
  struct request_error error;
  struct slot *slot;
  uint64_t start;

  if (policy && inline_policy_try (policy)) {
    start = clock_ns ();
    error = request_write_now (c, head, c->rx + c->rx_pos);
    inline_policy_took (policy, clock_ns () - start);
    reply_own (c, head, error);
    return;
  }
  slot = slot_acquire_buffer (c, head, head->len);
  if (slot == NULL) {
    reply_own (c, head, no_memory);
    return;
  }
  memcpy (slot->buf, c->rx + c->rx_pos, head->len);
  submit (slot);
}

static bool
start_small_write (struct conn *c, const struct request_head *head)
{
  if (!fill (c, head->len))
    return false;
  if (head->len == 0)
    reply_own (c, head, no_error);
  else
    write_from_rx (c, head);
  c->rx_pos += head->len;
  return true;
}

static bool
start_large_write (struct conn *c, const struct request_head *head)
{
  struct slot *slot = slot_acquire_buffer (c, head, head->len);

  if (slot == NULL)
    return refuse_request (c, head, no_memory);
  if (!receive_payload (c, slot->buf, head->len)) {
    slot_release (slot);
    return false;
  }
  submit (slot);
  return true;
}

/* A block status request that names some of the contexts. */
static bool
start_status_payload (struct conn *c, const struct request_head *head)
{
  bool wanted[META_MAX_CONTEXTS];
  struct request_error error;
  struct slot *slot;
  uint64_t len = 0;

  if (!fill (c, head->len))
    return false;
  error = request_decode_status (&c->request_env, head, c->rx + c->rx_pos,
                                 &len, wanted);
  c->rx_pos += head->len;
  if (error.error) {
    reply_own (c, head, error);
    return true;
  }
  slot = slot_acquire (c, head, head->flags & NBD_CMD_FLAG_REQ_ONE
                       ? 0 : STATUS_COST);
  if (slot == NULL) {
    reply_own (c, head, no_memory);
    return true;
  }
  slot->status_len = len;
  memcpy (slot->wanted, wanted, c->contexts.len * sizeof wanted[0]);
  start_slot (slot, policy_for (c, head));
  return true;
}

/* What the checks need to know now. */
static struct request_error
check (struct conn *c, const struct request_head *head)
{
  if (!export_enter (c->export))
    return (struct request_error) {
      .error = NBD_ESHUTDOWN, .text = nbd_errno_text (NBD_ESHUTDOWN),
    };
  c->request_env.size = blk_size (export_blk (c->export));
  export_leave (c->export);
  return request_check (&c->request_env, head);
}

/* Take one request.  False: the connection ends. */
static bool
take_request (struct conn *c)
{
  size_t head_size = request_head_size (c->request_env.is_extended);
  struct request_error error;
  struct request_head head;

  if (!fill (c, head_size))
    return false;
  if (!request_decode (c->rx + c->rx_pos, c->request_env.is_extended, &head)
      || head.type == NBD_CMD_DISC
      || request_is_fatal (&c->request_env, &head))
    return false;
  c->rx_pos += head_size;
  error = check (c, &head);
  if (error.error)
    return refuse_request (c, &head, error);
  if (!request_has_payload (&c->request_env, &head)) {
    start_request (c, &head);
    return true;
  }
  if (head.type == NBD_CMD_BLOCK_STATUS)
    return start_status_payload (c, &head);
  if (head.len <= CONN_INLINE_WRITE)
    return start_small_write (c, &head);
  return start_large_write (c, &head);
}

/* Life. */

static int
transmission_begin (struct conn *c)
{
  uint8_t *memory = mmap (NULL, CONN_MEMORY, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  if (memory == MAP_FAILED)
    return -ENOMEM;
  c->memory = c->rx = memory;
  c->small[0] = memory + CONN_RX_SIZE;
  c->small[1] = c->small[0] + CONN_SMALL_SIZE;
  return -pthread_create (&c->sender, NULL, reply_sender_thread, c);
}

static void
transmission_end (struct conn *c)
{
  flush_own (c);
  lock_acquire (&c->lock);
  while (c->nr_requests > 0 || c->nr_working > 0 || c->is_sending)
    lock_wait (&c->lock, &c->room);
  c->is_ending = true;
  pthread_cond_signal (&c->handed_over);
  lock_release (&c->lock);
  pthread_join (c->sender, NULL);
}

static void *
conn_thread (void *arg)
{
  struct conn *c = arg;
  int r = handshake_run (c);

  if (r == 0)
    r = transmission_begin (c);
  if (r == 0) {
    while (!atomic_load (&c->is_dead) && !atomic_load (&c->is_stopping)
           && take_request (c))
      ;
    transmission_end (c);
  }
  else if (r != -ECONNRESET)
    log_debug ("nbd: connection closed: %s", strerror (-r));
  if (c->tls && !atomic_load (&c->is_dead))
    tls_end (c->tls);
  /* The client sees the end now; conn_join closes. */
  shutdown (c->fd, SHUT_RDWR);
  c->env.finished (c->env.opaque, c);
  return NULL;
}

static void
conn_free (struct conn *c)
{
  struct slot *slot;

  while ((slot = c->free_slots) != NULL) {
    c->free_slots = slot->next;
    slot_free (slot);
  }
  meta_contexts_reset (&c->contexts);
  export_unref (c->meta_export);
  export_unref (c->export);
  tls_free (c->tls);
  if (c->memory)
    munmap (c->memory, CONN_MEMORY);
  pthread_cond_destroy (&c->room);
  pthread_cond_destroy (&c->handed_over);
  lock_destroy (&c->lock);
  close (c->fd);
  free (c);
}

int
conn_start (const struct conn_env *env, int fd, struct conn **ret)
{
  struct conn *c = calloc (1, sizeof *c);
  int r;

  if (c == NULL) {
    close (fd);
    return -ENOMEM;
  }
  c->env = *env;
  c->fd = fd;
  c->is_local = sock_is_unix (fd);
  clock_gettime (CLOCK_MONOTONIC, &c->deadline);
  c->deadline.tv_sec += env->handshake_timeout;
  c->replies_tail = &c->replies;
  lock_init (&c->lock, LOCK_RANK_CONN);
  cond_init (&c->room);
  cond_init (&c->handed_over);
  *ret = c;
  r = pthread_create (&c->thread, NULL, conn_thread, c);
  if (r != 0)
    conn_free (c);
  return -r;
}

void
conn_stop (struct conn *c, bool is_now)
{
  atomic_store (&c->is_stopping, true);
  if (is_now)
    atomic_store (&c->is_dead, true);
  shutdown (c->fd, is_now ? SHUT_RDWR : SHUT_RD);
}

void
conn_join (struct conn *c)
{
  pthread_join (c->thread, NULL);
  conn_free (c);
}
