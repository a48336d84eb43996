/* SPDX-License-Identifier: BSD-3-Clause */
/* Header extensions of an existing image: found, changed, added, removed in
 * place, with every other one kept whether it is known or not.
 *
 * Invariant: after a crash at any moment the header is whole.  A new extension
 * is written behind the end mark, which is then replaced by its first eight
 * bytes: they lie within a sector.  A backing file's name that is in the way
 * is copied first, and then the header's pointer to it changed, likewise.
 *
 * I10: the chain of extensions is checked again, since the file may not be
 * what it was when it was opened.
 *
 * Called by the thread that opens or closes the image, or by the first write.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "qcow2.h"

/* Where things are in the header's cluster. */
struct place {
  uint8_t *buf;                 /* the cluster */
  uint64_t size;
  uint64_t backing, backing_len;        /* the name; 0 = none */
  uint64_t pos;                 /* of the extension; 0 = there is none */
  uint32_t len;                 /* of its data */
  uint64_t end;                 /* of the end mark */
};

static int
find (struct place *p, uint64_t pos, uint32_t type)
{
  uint64_t limit = p->size;
  uint32_t len, t;

  if (p->backing && p->backing < limit)
    limit = p->backing;
  for (; pos + 8 <= limit; pos += 8 + round_up (len, 8)) {
    t = load_be32 (p->buf + pos);
    len = load_be32 (p->buf + pos + 4);
    if (t == 0) {
      p->end = pos;
      return 0;
    }
    if (len > limit - pos - 8)
      return -EINVAL;
    if (t == type) {
      p->pos = pos;
      p->len = len;
    }
  }
  return -ENOSPC;               /* no end mark, hence no room for another */
}

/* Read the header and look for the extension. */
static int
look (struct qcow2 *q, uint32_t type, struct place *p)
{
  int error;

  memset (p, 0, sizeof *p);
  p->size = q->cluster_size;
  p->buf = malloc (p->size);
  if (!p->buf)
    return -ENOMEM;
  error = qcow2_file_read (q, p->buf, p->size, 0);
  if (error < 0)
    return error;
  p->backing = load_be64 (p->buf + 8);
  p->backing_len = load_be32 (p->buf + 16);
  if (p->backing
      && (p->backing < q->header.header_length
          || !range_is_within (p->backing, p->backing_len, p->size)))
    return -EINVAL;
  return find (p, q->header.header_length, type);
}

int
qcow2_extension_get (struct qcow2 *q, uint32_t type, void *buf, uint32_t len)
{
  struct place p;
  int r = look (q, type, &p);

  if (r == 0 || r == -ENOSPC)
    r = p.pos == 0 ? 0 : p.len == len ? 1 : -EINVAL;
  if (r == 1)
    memcpy (buf, p.buf + p.pos + 8, len);
  free (p.buf);
  return r;
}

static int
write_durably (struct qcow2 *q, const void *buf, uint64_t len, uint64_t off)
{
  int error = blk_pwrite (q->file, buf, len, off, 0);

  return error < 0 ? error : blk_flush (q->file);
}

/* Make room for extensions up to end. */
static int
move_backing_name (struct qcow2 *q, struct place *p, uint64_t end)
{
  uint64_t to = MAX (end, p->backing + p->backing_len);
  uint8_t fields[12];
  int error;

  if (p->backing == 0 || p->backing >= end)
    return end <= p->size ? 0 : -ENOSPC;
  if (!range_is_within (to, p->backing_len, p->size))
    return -ENOSPC;
  error = write_durably (q, p->buf + p->backing, p->backing_len, to);
  if (error < 0)
    return error;
  store_be64 (fields, to);
  store_be32 (fields + 8, (uint32_t) p->backing_len);
  return write_durably (q, fields, sizeof fields, 8);
}

static int
add (struct qcow2 *q, struct place *p, uint32_t type, const void *data,
     uint32_t len)
{
  uint64_t padded = round_up (len, 8);
  CLEANUP_FREE uint8_t *buf = calloc (1, padded + 8);
  uint8_t head[8];
  int error;

  if (!buf)
    return -ENOMEM;
  error = move_backing_name (q, p, p->end + 8 + padded + 8);
  if (error < 0)
    return error;
  memcpy (buf, data, len);
  error = write_durably (q, buf, padded + 8, p->end + 8);
  if (error < 0)
    return error;
  store_be32 (head, type);
  store_be32 (head + 4, len);
  return write_durably (q, head, sizeof head, p->end);
}

int
qcow2_extension_set (struct qcow2 *q, uint32_t type, const void *data,
                     uint32_t len)
{
  struct place p;
  int error = look (q, type, &p);

  if (p.pos && (error == 0 || error == -ENOSPC))
    error = p.len == len ? write_durably (q, data, len, p.pos + 8) : -EINVAL;
  else if (error == 0)
    error = add (q, &p, type, data, len);
  free (p.buf);
  return error;
}

int
qcow2_extension_remove (struct qcow2 *q, uint32_t type)
{
  static const uint8_t end_mark[8];
  uint64_t next;
  struct place p;
  int error = look (q, type, &p);

  if (error == 0 && p.pos) {
    next = p.pos + 8 + round_up (p.len, 8);
    if (next == p.end)
      error = write_durably (q, end_mark, sizeof end_mark, p.pos);
    else
      /* In front of others, where nobody puts it: they move up at once. */
      error = write_durably (q, p.buf + next, p.end + 8 - next, p.pos);
  }
  free (p.buf);
  return error == -ENOSPC && p.pos == 0 ? 0 : error;
}
