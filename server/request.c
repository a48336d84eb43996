/* SPDX-License-Identifier: BSD-3-Clause */
/* Requests: decoding and checking (pure), and carrying them out.
 *
 * I10: nothing in a request fails an assertion or makes us allocate more than
 * the limits in request.h and conn.h.  Lengths are 64 bits throughout and are
 * narrowed in reply.c only.
 *
 * Checking and the functions *_now: the connection's receiving thread.
 * request_execute: a worker, or that thread.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "byteorder.h"
#include "conn.h"
#include "nbd-errno.h"
#include "range.h"
#include "request.h"

/* Zeroing and trimming of more than this is done in pieces, so that a
 * connection that ends or an export that goes need not wait for all of it.
 */
#define ZERO_PIECE (UINT64_C (256) << 20)

bool
request_decode (const void *wire, bool is_extended, struct request_head *ret)
{
  const uint8_t *p = wire;

  ret->flags = load_be16 (p + 4);
  ret->type = load_be16 (p + 6);
  ret->cookie = load_be64 (p + 8);
  ret->off = load_be64 (p + 16);
  ret->len = is_extended ? load_be64 (p + 24) : load_be32 (p + 24);
  return load_be32 (p) == (is_extended ? NBD_EXTENDED_REQUEST_MAGIC
                           : NBD_REQUEST_MAGIC);
}

bool
request_has_payload (const struct request_env *env,
                     const struct request_head *head)
{
  if (env->is_extended)
    return head->flags & NBD_CMD_FLAG_PAYLOAD_LEN;
  return head->type == NBD_CMD_WRITE;
}

bool
request_is_fatal (const struct request_env *env,
                  const struct request_head *head)
{
  return request_has_payload (env, head)
    && head->len > (env->is_extended ? REQUEST_MAX_PAYLOAD
                    : REQUEST_MAX_SKIP);
}

static struct request_error
refuse (uint32_t error, const char *text)
{
  return (struct request_error) { .error = error, .text = text };
}

static const struct request_error ok = { .error = NBD_SUCCESS, .text = "" };

/* The flags that the command may have. */
static unsigned
allowed_flags (const struct request_env *env, uint16_t type)
{
  unsigned flags = NBD_CMD_FLAG_FUA;    /* on any, for old clients' sake */

  switch (type) {
  case NBD_CMD_READ:
    if (env->is_structured)
      flags |= NBD_CMD_FLAG_DF;
    break;
  case NBD_CMD_WRITE:
    if (env->is_extended)
      flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
    break;
  case NBD_CMD_WRITE_ZEROES:
    flags |= NBD_CMD_FLAG_NO_HOLE;
    if (env->can_fast_zero)
      flags |= NBD_CMD_FLAG_FAST_ZERO;
    break;
  case NBD_CMD_BLOCK_STATUS:
    flags |= NBD_CMD_FLAG_REQ_ONE;
    if (env->is_extended && env->nr_contexts > 0)
      flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
    break;
  }
  return flags;
}

static struct request_error
check_read (const struct request_env *env, const struct request_head *head)
{
  if (!range_is_within (head->off, head->len, env->size))
    return refuse (NBD_EINVAL, "read beyond the end of the export");
  if (head->len > REQUEST_MAX_PAYLOAD)
    return refuse (env->is_structured ? NBD_EOVERFLOW : NBD_EINVAL,
                   "read of more than 32 MiB");
  return ok;
}

static struct request_error
check_write (const struct request_env *env, const struct request_head *head)
{
  if (env->is_read_only)
    return refuse (NBD_EPERM, "export is read-only");
  if (!request_has_payload (env, head) && head->type == NBD_CMD_WRITE)
    return refuse (NBD_EINVAL, "write without payload");
  if (!range_is_within (head->off, head->len, env->size))
    return refuse (NBD_ENOSPC, "write beyond the end of the export");
  if (head->type == NBD_CMD_WRITE && head->len > REQUEST_MAX_PAYLOAD)
    return refuse (NBD_EINVAL, "write of more than 32 MiB");
  return ok;
}

static struct request_error
check_trim (const struct request_env *env, const struct request_head *head)
{
  if (!env->can_trim)
    return refuse (env->is_read_only ? NBD_EPERM : NBD_EINVAL,
                   "export cannot be trimmed");
  if (!range_is_within (head->off, head->len, env->size))
    return refuse (NBD_EINVAL, "trim beyond the end of the export");
  return ok;
}

static struct request_error
check_status (const struct request_env *env, const struct request_head *head)
{
  bool has_payload = request_has_payload (env, head);

  if (env->nr_contexts == 0)
    return refuse (NBD_EINVAL, "no metadata context was negotiated");
  if (has_payload && (head->len < 12 || head->len % 4 != 0
                      || head->len > 8 + env->nr_contexts * 4))
    return refuse (NBD_EINVAL, "malformed payload");
  if (!has_payload && head->len == 0)
    return refuse (NBD_EINVAL, "block status of nothing");
  if (!range_is_within (head->off, has_payload ? 0 : head->len, env->size))
    return refuse (NBD_EINVAL, "block status beyond the end of the export");
  return ok;
}

static struct request_error
check_flush (const struct request_env *env, const struct request_head *head)
{
  if (head->off != 0 || head->len != 0)
    return refuse (NBD_EINVAL, "flush of a range");
  return ok;
}

static struct request_error
check_cache (const struct request_env *env, const struct request_head *head)
{
  if (!range_is_within (head->off, head->len, env->size))
    return refuse (NBD_EINVAL, "cache beyond the end of the export");
  return ok;
}

static struct request_error
(*const checkers[]) (const struct request_env *,
                     const struct request_head *) = {
  [NBD_CMD_READ] = check_read,
  [NBD_CMD_WRITE] = check_write,
  [NBD_CMD_FLUSH] = check_flush,
  [NBD_CMD_TRIM] = check_trim,
  [NBD_CMD_CACHE] = check_cache,
  [NBD_CMD_WRITE_ZEROES] = check_write,
  [NBD_CMD_BLOCK_STATUS] = check_status,
};

struct request_error
request_check (const struct request_env *env, const struct request_head *head)
{
  if (head->type >= sizeof checkers / sizeof checkers[0]
      || checkers[head->type] == NULL)
    return refuse (NBD_EINVAL, "unknown command");
  if (head->flags & ~allowed_flags (env, head->type))
    return refuse (NBD_EINVAL, "flag does not apply to this command");
  return checkers[head->type] (env, head);
}

struct request_error
request_decode_status (const struct request_env *env,
                       const struct request_head *head, const void *payload,
                       uint64_t *ret_len, bool *wanted)
{
  const uint8_t *p = payload;
  uint64_t len = load_be64 (p), pos;
  uint32_t id;

  if (len == 0)
    return refuse (NBD_EINVAL, "block status of nothing");
  if (!range_is_within (head->off, len, env->size))
    return refuse (NBD_EINVAL, "block status beyond the end of the export");
  memset (wanted, 0, env->nr_contexts * sizeof wanted[0]);
  for (pos = 8; pos < head->len; pos += 4) {
    id = load_be32 (p + pos);
    if (id == 0 || id > env->nr_contexts || wanted[id-1])
      return refuse (NBD_EINVAL, "unknown or repeated metadata context");
    wanted[id-1] = true;
  }
  *ret_len = len;
  return ok;
}

static struct request_error
error_from_result (int r, const struct request_head *head)
{
  uint32_t error = nbd_errno_from_errno (-r,
                                         head->type == NBD_CMD_WRITE_ZEROES
                                         && (head->flags
                                             & NBD_CMD_FLAG_FAST_ZERO));

  return refuse (error, nbd_errno_text (error));
}

static struct request_error
error_removed (const struct request_head *head)
{
  return error_from_result (-ESHUTDOWN, head);
}

bool
request_read_now (struct slot *slot)
{
  struct conn *c = slot->conn;
  int r;

  if (!(c->can & BLK_CAN_NOWAIT) || !export_enter (c->export))
    return false;
  r = blk_pread (export_blk (c->export), slot->buf, slot->head.len,
                 slot->head.off, BLK_NOWAIT);
  export_leave (c->export);
  if (r == -EAGAIN)
    return false;
  if (r < 0)
    reply_small (slot, error_from_result (r, &slot->head));
  else
    reply_read (slot);
  return true;
}

static unsigned
fua_flag (const struct request_head *head)
{
  return head->flags & NBD_CMD_FLAG_FUA ? BLK_FUA : 0;
}

struct request_error
request_write_now (struct conn *c, const struct request_head *head,
                   const void *data)
{
  int r;

  if (!export_enter (c->export))
    return error_removed (head);
  r = blk_pwrite (export_blk (c->export), data, head->len, head->off,
                  fua_flag (head));
  export_leave (c->export);
  return error_from_result (r, head);
}

static int
zero_or_trim (struct blk *blk, const struct request_head *head, uint64_t len,
              uint64_t off, unsigned flags)
{
  if (head->type == NBD_CMD_TRIM)
    return blk_trim (blk, len, off, flags);
  if (!(head->flags & NBD_CMD_FLAG_NO_HOLE))
    flags |= BLK_MAY_UNMAP;
  if (head->flags & NBD_CMD_FLAG_FAST_ZERO)
    flags |= BLK_FAST;
  return blk_zero (blk, len, off, flags);
}

static int
zero_piece (struct conn *c, const struct request_head *head, uint64_t len,
            uint64_t off, unsigned flags, bool flush)
{
  int r;

  if (!export_enter (c->export))
    return -ESHUTDOWN;
  r = zero_or_trim (export_blk (c->export), head, len, off, flags);
  if (r == 0 && flush)
    r = blk_flush (export_blk (c->export));
  export_leave (c->export);
  return r;
}

/* Zero or trim, a long range in pieces and one flush at the end.  A fast
 * request is one piece: it must change all or nothing.
 */
static int
execute_zero (struct conn *c, const struct request_head *head)
{
  uint64_t done, n;
  int r = 0;

  if (head->len <= ZERO_PIECE || (head->flags & NBD_CMD_FLAG_FAST_ZERO))
    return zero_piece (c, head, head->len, head->off, fua_flag (head), false);
  for (done = 0; done < head->len && r == 0; done += n) {
    if (atomic_load (&c->is_dead) || atomic_load (&c->is_stopping))
      return -ESHUTDOWN;
    n = MIN (head->len - done, ZERO_PIECE);
    r = zero_piece (c, head, n, head->off + done, 0,
                    done + n == head->len && fua_flag (head));
  }
  return r;
}

/* Append one context's chunk to the slot's buffer; *used is its length. */
static int
add_status (struct slot *slot, size_t index, size_t max, bool is_last,
            size_t *used)
{
  struct conn *c = slot->conn;
  bool is_extended = c->request_env.is_extended;
  struct extents extents;
  int r;

  extents_init (&extents, max);
  r = meta_context_extents (&c->contexts.ptr[index], export_blk (c->export),
                            slot->status_len, slot->head.off,
                            max == 1 ? BLK_ONE : 0, &extents);
  if (r == 0)
    r = slot_reserve (slot, *used + reply_status_size (is_extended,
                                                       extents.len), *used);
  if (r == 0)
    *used += reply_encode_status (is_extended, &slot->head, index + 1,
                                  is_last, &extents, slot->buf + *used);
  extents_free (&extents);
  return r;
}

/* Encode the reply of a block status request into the slot's buffer. */
static int
execute_status (struct slot *slot, size_t *ret_len)
{
  struct conn *c = slot->conn;
  size_t nr = 0, used = 0, max, i;
  int r = 0;

  for (i = 0; i < c->contexts.len; ++i)
    nr += slot->wanted[i];
  max = MAX (REQUEST_MAX_EXTENTS / nr, REQUEST_MIN_EXTENTS);
  if (slot->head.flags & NBD_CMD_FLAG_REQ_ONE)
    max = 1;
  if (!export_enter (c->export))
    return -ESHUTDOWN;
  for (i = 0; i < c->contexts.len && r == 0; ++i)
    if (slot->wanted[i])
      r = add_status (slot, i, max, --nr == 0, &used);
  export_leave (c->export);
  *ret_len = used;
  return r;
}

/* Commands without data in either direction, and writes. */
static int
execute_simple (struct slot *slot)
{
  const struct request_head *head = &slot->head;
  struct conn *c = slot->conn;
  struct blk *blk;
  int r = 0;

  if (head->type == NBD_CMD_TRIM || head->type == NBD_CMD_WRITE_ZEROES)
    return execute_zero (c, head);
  if (!export_enter (c->export))
    return -ESHUTDOWN;
  blk = export_blk (c->export);
  switch (head->type) {
  case NBD_CMD_READ:
    r = blk_pread (blk, slot->buf, head->len, head->off, 0);
    break;
  case NBD_CMD_WRITE:
    r = blk_pwrite (blk, slot->buf, head->len, head->off, fua_flag (head));
    break;
  case NBD_CMD_FLUSH:
    r = blk_flush (blk);
    break;
  case NBD_CMD_CACHE:
    r = blk_cache (blk, head->len, head->off);
    if (r == -ENOTSUP)
      r = 0;                    /* it is a hint */
    break;
  }
  export_leave (c->export);
  return r;
}

void
request_execute (struct slot *slot)
{
  size_t len = 0;
  int r;

  if (slot->head.type == NBD_CMD_BLOCK_STATUS) {
    r = execute_status (slot, &len);
    if (r == 0)
      reply_chunks (slot, len);
  }
  else {
    r = execute_simple (slot);
    if (r == 0 && slot->head.type == NBD_CMD_READ && slot->head.len > 0)
      reply_read (slot);
    else if (r == 0)
      reply_small (slot, ok);
  }
  if (r < 0)
    reply_small (slot, error_from_result (r, &slot->head));
}
