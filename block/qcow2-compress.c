/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading compressed clusters: raw deflate with a 4 KiB window, or zstd.
 *
 * I10: the place and length of the packed data are bounded by the entry's
 * format (at most two clusters) and cut at the end of the file; unpacking stops
 * at one cluster, whatever the data says.
 *
 * Called from every thread that reads, without the lock.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include <zlib.h>
#include <zstd.h>

#include "cleanup.h"
#include "qcow2.h"

void
qcow2_packed_place (const struct qcow2 *q, uint64_t entry, uint64_t *ret_off,
                    uint64_t *ret_len)
{
  unsigned x = 62 - (q->cluster_bits - 8);
  uint64_t off = entry & ((UINT64_C (1) << x) - 1);
  uint64_t sectors = (entry & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> x;

  *ret_off = off;
  *ret_len = (sectors + 1) * 512 - (off & 511);
}

static int
unpack_zlib (const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
  z_stream z = {
    .next_in = (Bytef *) in, .avail_in = (uInt) in_len,
    .next_out = out, .avail_out = (uInt) out_len,
  };
  int r;

  if (inflateInit2 (&z, -12) != Z_OK)
    return -ENOMEM;
  r = inflate (&z, Z_FINISH);
  inflateEnd (&z);
  /* Data may follow the end, and the end mark may be missing. */
  return (r == Z_STREAM_END || r == Z_BUF_ERROR) && z.avail_out == 0
    ? 0 : -EIO;
}

static int
unpack_zstd (const uint8_t *in, size_t in_len, uint8_t *out, size_t out_len)
{
  ZSTD_DCtx *ctx = ZSTD_createDCtx ();
  ZSTD_inBuffer from = { in, in_len, 0 };
  ZSTD_outBuffer to = { out, out_len, 0 };
  size_t before, r;

  if (!ctx)
    return -ENOMEM;
  while (to.pos < to.size) {
    before = from.pos + to.pos;
    r = ZSTD_decompressStream (ctx, &to, &from);
    if (ZSTD_isError (r) || from.pos + to.pos == before)
      break;
  }
  ZSTD_freeDCtx (ctx);
  return to.pos == to.size ? 0 : -EIO;
}

int
qcow2_read_packed (struct qcow2 *q, uint64_t entry, uint8_t *buf)
{
  CLEANUP_FREE uint8_t *in = NULL;
  uint64_t off, len, size = blk_size (q->file);
  int error;

  qcow2_packed_place (q, entry, &off, &len);
  if (off >= size)
    return qcow2_damaged (q, "compressed data at %" PRIu64 " is beyond the end"
                          " of the file", off);
  len = MIN (len, size - off);
  in = malloc (len);
  if (!in)
    return -ENOMEM;
  blk_event (q->file, BLK_EVENT_READ_COMPRESSED);
  error = blk_pread (q->file, in, len, off, 0);
  if (error < 0)
    return error;
  if (q->header.compression == QCOW2_COMPRESSION_ZSTD)
    error = unpack_zstd (in, len, buf, q->cluster_size);
  else
    error = unpack_zlib (in, len, buf, q->cluster_size);
  if (error == -EIO)
    return qcow2_damaged (q, "what is at %" PRIu64 " of the file (%" PRIu64
                          " bytes) is not a compressed cluster", off, len);
  return error;
}
