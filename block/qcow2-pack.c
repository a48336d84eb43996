/* SPDX-License-Identifier: BSD-3-Clause */
/* Writing compressed clusters.
 *
 * A cluster is compressed by the thread that writes it, without the lock, so
 * that several threads share the work; one that does not get shorter is
 * written as it is.  Packed clusters lie one behind the other, with no regard
 * to the borders of host clusters: see qcow2_alloc_packed.
 *
 * Invariants are those of qcow2-write.c: a step claims the cluster, and the
 * entry is changed after the packed data has been written.
 *
 * Called from any thread.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "cleanup.h"
#include "qcow2.h"

/* Raw deflate with a window of 4 KiB, as readers expect it. */
#define ZLIB_WINDOW_BITS (-12)
#define ZLIB_MEM_LEVEL 9

/* Both: the length of the packed data, 0 if it is not shorter than max,
 * -ENOMEM.
 */
static int64_t
pack_zlib (const uint8_t *in, size_t len, uint8_t *out, size_t max, int level)
{
  z_stream z = {
    .next_in = (Bytef *) in, .avail_in = (uInt) len,
    .next_out = out, .avail_out = (uInt) max,
  };
  int64_t n;

  if (deflateInit2 (&z, level ? level : Z_DEFAULT_COMPRESSION, Z_DEFLATED,
                    ZLIB_WINDOW_BITS, ZLIB_MEM_LEVEL,
                    Z_DEFAULT_STRATEGY) != Z_OK)
    return -ENOMEM;
  n = deflate (&z, Z_FINISH) == Z_STREAM_END ? (int64_t) (max - z.avail_out)
    : 0;
  deflateEnd (&z);
  return n;
}

static int64_t
pack_zstd (const uint8_t *in, size_t len, uint8_t *out, size_t max, int level)
{
  size_t n = ZSTD_compress (out, max, in, len,
                            level ? level : ZSTD_CLEVEL_DEFAULT);

  if (!ZSTD_isError (n))
    return (int64_t) n;
  return ZSTD_getErrorCode (n) == ZSTD_error_memory_allocation ? -ENOMEM : 0;
}

static int64_t
pack (const struct qcow2 *q, const uint8_t *in, uint8_t *out)
{
  size_t max = q->cluster_size - 1;

  if (q->header.compression == QCOW2_COMPRESSION_ZSTD)
    return pack_zstd (in, q->cluster_size, out, max, q->compression_level);
  return pack_zlib (in, q->cluster_size, out, max, q->compression_level);
}

/* What the library has taken once it has compressed a cluster; data makes no
 * difference.
 */
static uint64_t
zstd_memory (int level, uint32_t cluster_size)
{
  CLEANUP_FREE uint8_t *in = calloc (2, cluster_size);
  ZSTD_CCtx *ctx = ZSTD_createCCtx ();
  uint64_t n = 0;

  if (ctx && in
      && !ZSTD_isError (ZSTD_compressCCtx (ctx, in + cluster_size,
                                           cluster_size, in, cluster_size,
                                           level)))
    n = ZSTD_sizeof_CCtx (ctx);
  ZSTD_freeCCtx (ctx);
  return n;
}

uint64_t
qcow2_pack_memory (enum qcow2_compression compression, int level,
                   uint32_t cluster_size)
{
  uint64_t n;

  if (compression == QCOW2_COMPRESSION_ZSTD)
    n = zstd_memory (level ? level : ZSTD_CLEVEL_DEFAULT, cluster_size);
  else                          /* zconf.h: what deflate takes */
    n = (UINT64_C (1) << (-ZLIB_WINDOW_BITS + 2))
      + (UINT64_C (1) << (ZLIB_MEM_LEVEL + 9));
  return n ? n + cluster_size : 0;
}

/* The L2 entry for len bytes at host; 0 if an entry cannot say that. */
static uint64_t
packed_entry (const struct qcow2 *q, uint64_t host, uint64_t len)
{
  unsigned x = 62 - (q->cluster_bits - 8);
  uint64_t sectors = ((host & 511) + len - 1) / 512;

  if (host >> x)
    return 0;
  return QCOW2_COMPRESSED | sectors << x | host;
}

static int
write_at (struct qcow2_step *s, const uint8_t *packed, uint64_t len,
          uint64_t host)
{
  struct qcow2 *q = s->q;
  struct qcow2_change change = {
    .off = s->start, .len = q->cluster_size,
    .entry = packed_entry (q, host, len),
  };
  uint64_t done;
  int error = change.entry ? 0 : -EFBIG;

  lock_release (&q->lock);
  if (error == 0)
    error = blk_pwrite (q->file, packed, len, host, 0);
  lock_acquire (&q->lock);
  if (error == 0)
    error = qcow2_l2_set (q, &change, &done);
  if (error == 0 && q->reservations.len > 0)
    error = qcow2_reservation_drop (q, s->start, q->cluster_size);
  else if (error < 0)
    qcow2_unalloc_packed (q, host, len);
  return error;
}

/* Write the packed cluster at off. */
static int
write_packed (struct qcow2 *q, const uint8_t *packed, uint64_t len,
              uint64_t off)
{
  struct qcow2_step s;
  uint64_t host;
  int error;

  error = qcow2_step_prepare (q);
  if (error == 0)
    error = qcow2_step_begin (&s, q, off, 1, true);
  if (error < 0)
    return error;
  error = qcow2_l2_prepare (q, off);
  if (error == 0)
    error = qcow2_alloc_packed (q, len, &host);
  if (error == 0)
    error = write_at (&s, packed, len, host);
  qcow2_step_end (&s);
  return error;
}

int
qcow2_pwrite_packed (struct qcow2 *q, const uint8_t *buf, uint64_t len,
                     uint64_t off)
{
  CLEANUP_FREE uint8_t *packed = malloc (q->cluster_size);
  CLEANUP_FREE uint8_t *last = NULL;
  int64_t n = 0;

  if (!packed)
    return -ENOMEM;
  if (len < q->cluster_size) {
    /* The disk's last cluster. */
    last = calloc (1, q->cluster_size);
    if (!last)
      return -ENOMEM;
    memcpy (last, buf, len);
    buf = last;
  }
  n = pack (q, buf, packed);
  if (n < 0)
    return (int) n;
  if (n == 0)
    return qcow2_pwrite (&q->blk, buf, len, off, 0);
  return write_packed (q, packed, (uint64_t) n, off);
}
