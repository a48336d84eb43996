/* SPDX-License-Identifier: BSD-3-Clause */
/* The header of a qcow2 image and its extensions: read, checked, composed.
 *
 * I10: every field is checked here before anything is allocated or read by
 * it, so that the rest of the driver can rely on: shifts within range, tables
 * aligned and within QEMU's limits, names terminated.  Source: the spec's
 * sections "Header" to "Feature name table".
 *
 * Called when an image is opened or created, by the thread that does so.
 */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "qcow2.h"

#define EXT_END UINT32_C (0)
#define EXT_BACKING_FORMAT UINT32_C (0xe2792aca)
#define EXT_FEATURE_NAMES UINT32_C (0x6803f857)
#define EXT_DATA_FILE UINT32_C (0x44415441)
#define FEATURE_NAME_SIZE 46
#define FEATURE_ENTRY_SIZE 48

/* A header being read. */
struct reading {
  const char *name;             /* of the image, for messages */
  const uint8_t *buf;           /* its first cluster, or what there is of it */
  uint64_t len;
  uint64_t file_size;
  struct qcow2_header *h;
  const uint8_t *features;      /* feature name table, or NULL */
  size_t nr_features;
  struct error *err;
};

#define BAD(r, ...) bad ((r), EINVAL, __VA_ARGS__)

static int bad (const struct reading *r, int errnum, const char *fmt, ...)
  __attribute__ ((format (printf, 3, 4)));

static int
bad (const struct reading *r, int errnum, const char *fmt, ...)
{
  char msg[200];
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (msg, sizeof msg, fmt, ap);
  va_end (ap);
  return error_set (r->err, errnum, "%s: %s", r->name, msg);
}

/* A table of len bytes at off lies where a table can lie. */
static int
check_table (const struct reading *r, const char *what, uint64_t off,
             uint64_t len)
{
  uint64_t cluster_size = UINT64_C (1) << r->h->cluster_bits;

  if (off & (cluster_size - 1))
    return BAD (r, "the %s at %" PRIu64 " is not aligned to a cluster", what,
                off);
  if (off == 0)
    return BAD (r, "the %s is at offset 0, over the header", what);
  if (off >= QCOW2_MAX_HOST_OFFSET || !range_is_within (off, len,
                                                        r->file_size))
    return BAD (r, "the %s (%" PRIu64 " bytes at %" PRIu64
                ") is beyond the end of the file (%" PRIu64 ")",
                what, len, off, r->file_size);
  return 0;
}

/* Fields that both versions have. */
static int
parse_common (struct reading *r)
{
  struct qcow2_header *h = r->h;

  if (r->len < QCOW2_V2_HEADER_SIZE || load_be32 (r->buf) != QCOW2_MAGIC)
    return BAD (r, "not a qcow2 image");
  h->version = load_be32 (r->buf + 4);
  if (h->version != 2 && h->version != 3)
    return BAD (r, "qcow2 version %u is not supported, only 2 and 3",
                h->version);
  h->cluster_bits = load_be32 (r->buf + 20);
  if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS
      || h->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
    return BAD (r, "cluster_bits is %u, allowed are %d to %d",
                h->cluster_bits, QCOW2_MIN_CLUSTER_BITS,
                QCOW2_MAX_CLUSTER_BITS);
  h->size = load_be64 (r->buf + 24);
  if (h->size > RANGE_MAX_SIZE || h->size % 512 != 0)
    return BAD (r, "virtual size %" PRIu64
                " is too large or not a multiple of 512", h->size);
  h->l1_size = load_be32 (r->buf + 36);
  h->l1_offset = load_be64 (r->buf + 40);
  h->reftable_offset = load_be64 (r->buf + 48);
  h->reftable_clusters = load_be32 (r->buf + 56);
  h->nr_snapshots = load_be32 (r->buf + 60);
  h->snapshots_offset = load_be64 (r->buf + 64);
  if (load_be32 (r->buf + 32) != 0)
    return bad (r, ENOTSUP, "encryption (crypt_method %u) is not supported",
                load_be32 (r->buf + 32));
  return 0;
}

/* Fields of version 3; their defaults for version 2. */
static int
parse_v3 (struct reading *r)
{
  struct qcow2_header *h = r->h;

  h->refcount_order = 4;
  h->header_length = QCOW2_V2_HEADER_SIZE;
  if (h->version == 2)
    return 0;
  if (r->len < QCOW2_V3_HEADER_SIZE)
    return BAD (r, "the file is too short for a header");
  h->incompatible = load_be64 (r->buf + 72);
  h->compatible = load_be64 (r->buf + 80);
  h->autoclear = load_be64 (r->buf + 88);
  h->refcount_order = load_be32 (r->buf + 96);
  h->header_length = load_be32 (r->buf + 100);
  if (h->refcount_order > 6)
    return BAD (r, "refcount_order is %u, allowed are 0 to 6",
                h->refcount_order);
  if (h->header_length < QCOW2_V3_HEADER_SIZE || h->header_length % 8 != 0
      || h->header_length > r->len)
    return BAD (r, "header_length is %u, allowed are multiples of 8 from 104"
                " to the cluster size", h->header_length);
  if (h->header_length > QCOW2_V3_HEADER_SIZE)
    h->compression = r->buf[QCOW2_V3_HEADER_SIZE];
  return 0;
}

static int
parse_extension (struct reading *r, uint32_t type, const uint8_t *data,
                 uint32_t len)
{
  struct qcow2_header *h = r->h;

  switch (type) {
  case EXT_BACKING_FORMAT:
    if (len >= sizeof h->backing_format || memchr (data, 0, len))
      return BAD (r, "the backing format in the header is damaged");
    memcpy (h->backing_format, data, len);
    h->backing_format[len] = '\0';
    return 0;
  case EXT_DATA_FILE:
    if (len > QCOW2_MAX_DATA_FILE_NAME || memchr (data, 0, len))
      return BAD (r, "the data file's name in the header is damaged");
    memcpy (h->data_file, data, len);
    h->data_file[len] = '\0';
    return 0;
  case EXT_FEATURE_NAMES:
    r->features = data;
    r->nr_features = len / FEATURE_ENTRY_SIZE;
    return 0;
  default:
    return 0;                   /* the spec: unknown ones are ignored */
  }
}

static int
parse_extensions (struct reading *r)
{
  uint64_t pos = r->h->header_length, end = r->len, backing;
  uint32_t type, len;
  int error;

  /* The name of the backing file follows the extensions. */
  backing = load_be64 (r->buf + 8);
  if (backing && backing < end)
    end = backing;
  while (pos + 8 <= end) {
    type = load_be32 (r->buf + pos);
    len = load_be32 (r->buf + pos + 4);
    if (type == EXT_END)
      return 0;
    pos += 8;
    if (len > end - pos)
      return BAD (r, "header extension 0x%08x of %u bytes does not fit", type,
                  len);
    error = parse_extension (r, type, r->buf + pos, len);
    if (error < 0)
      return error;
    pos += round_up (len, 8);
  }
  return 0;
}

static int
parse_backing (struct reading *r)
{
  struct qcow2_header *h = r->h;
  uint64_t off = load_be64 (r->buf + 8);
  uint32_t len = load_be32 (r->buf + 16);

  if (off == 0)
    return 0;
  if (len == 0 || len > QCOW2_MAX_BACKING_NAME)
    return BAD (r, "the backing file's name is %u bytes long, allowed are 1"
                " to %d", len, QCOW2_MAX_BACKING_NAME);
  if (off < h->header_length || !range_is_within (off, len, r->len))
    return BAD (r, "the backing file's name is outside of the header's"
                " cluster");
  if (memchr (r->buf + off, 0, len))
    return BAD (r, "the backing file's name holds a zero byte");
  memcpy (h->backing_file, r->buf + off, len);
  h->backing_file[len] = '\0';
  return 0;
}

/* What the image calls an incompatible feature: for messages. */
static void
feature_name (const struct reading *r, unsigned bit,
              char ret[FEATURE_NAME_SIZE + 1])
{
  for (size_t i = 0; i < r->nr_features; i++) {
    const uint8_t *p = r->features + i * FEATURE_ENTRY_SIZE;

    if (p[0] != 0 || p[1] != bit)
      continue;
    memcpy (ret, p + 2, FEATURE_NAME_SIZE);
    ret[FEATURE_NAME_SIZE] = '\0';
    for (char *c = ret; *c; c++)
      if (!isprint ((unsigned char) *c))
        *c = '?';
    if (*ret)
      return;
  }
  snprintf (ret, FEATURE_NAME_SIZE + 1, "unknown");
}

static int
check_features (const struct reading *r)
{
  const struct qcow2_header *h = r->h;
  uint64_t known = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT
    | QCOW2_INCOMPAT_DATA_FILE | QCOW2_INCOMPAT_COMPRESSION
    | QCOW2_INCOMPAT_EXTENDED_L2;
  uint64_t unknown = h->incompatible & ~known;
  char name[FEATURE_NAME_SIZE + 1];
  unsigned bit;

  if (unknown) {
    bit = (unsigned) __builtin_ctzll (unknown);
    feature_name (r, bit, name);
    return bad (r, ENOTSUP,
                "incompatible feature \"%s\" (bit %u) is not supported", name,
                bit);
  }
  if (h->compression > QCOW2_COMPRESSION_ZSTD)
    return bad (r, ENOTSUP, "compression type %u is not supported",
                h->compression);
  if (!!(h->incompatible & QCOW2_INCOMPAT_COMPRESSION)
      != (h->compression != QCOW2_COMPRESSION_ZLIB))
    return BAD (r, "the compression type bit and compression_type %u"
                " contradict each other", h->compression);
  if ((h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2)
      && h->cluster_bits < QCOW2_MIN_EXTENDED_CLUSTER_BITS)
    return BAD (r, "extended L2 entries need clusters of at least %u bytes",
                1u << QCOW2_MIN_EXTENDED_CLUSTER_BITS);
  if ((h->incompatible & QCOW2_INCOMPAT_DATA_FILE) && h->nr_snapshots > 0)
    return bad (r, ENOTSUP, "snapshots in an image with an external data file"
                " are not supported");
  return 0;
}

static int
check_tables (const struct reading *r)
{
  const struct qcow2_header *h = r->h;
  uint64_t l1_span = qcow2_l1_span (h);
  uint64_t needed = div_round_up (h->size, l1_span);
  uint64_t reftable;
  int error;

  if (h->l1_size > QCOW2_MAX_L1_BYTES / 8)
    return BAD (r, "the L1 table has %u entries, at most %" PRIu64
                " are allowed", h->l1_size, QCOW2_MAX_L1_BYTES / 8);
  if (h->l1_size < needed)
    return BAD (r, "the L1 table has %u entries, a disk of %" PRIu64
                " bytes needs %" PRIu64, h->l1_size, h->size, needed);
  if (h->l1_size > 0) {
    error = check_table (r, "L1 table", h->l1_offset,
                         (uint64_t) h->l1_size * 8);
    if (error < 0)
      return error;
  }
  reftable = (uint64_t) h->reftable_clusters << h->cluster_bits;
  if (reftable == 0 || reftable > MAX (QCOW2_MAX_REFTABLE_BYTES,
                                       UINT64_C (1) << h->cluster_bits))
    return BAD (r, "the refcount table has %u clusters: none, or too many",
                h->reftable_clusters);
  error = check_table (r, "refcount table", h->reftable_offset, 8);
  if (error < 0)
    return error;
  if (h->nr_snapshots > QCOW2_MAX_SNAPSHOTS)
    return BAD (r, "%u snapshots, at most %d are allowed", h->nr_snapshots,
                QCOW2_MAX_SNAPSHOTS);
  if (h->nr_snapshots > 0)
    return check_table (r, "snapshot table", h->snapshots_offset, 8);
  return 0;
}

static int
parse (struct reading *r)
{
  int error;

  if ((error = parse_common (r)) < 0)
    return error;
  /* Nothing of the header lies beyond its first cluster. */
  r->len = MIN (r->len, UINT64_C (1) << r->h->cluster_bits);
  if ((error = parse_v3 (r)) < 0 || (error = parse_extensions (r)) < 0
      || (error = check_features (r)) < 0 || (error = parse_backing (r)) < 0)
    return error;
  return check_tables (r);
}

uint64_t
qcow2_l1_span (const struct qcow2_header *h)
{
  unsigned entry_bits = h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2 ? 4 : 3;

  return UINT64_C (1) << (2 * h->cluster_bits - entry_bits);
}

int
qcow2_header_read (struct blk *file, struct qcow2_header *ret,
                   struct error *err)
{
  size_t max = 1u << QCOW2_MAX_CLUSTER_BITS;
  CLEANUP_FREE uint8_t *buf = NULL;
  uint32_t bits;
  struct reading r = {
    .name = file->name, .h = ret, .err = err, .file_size = blk_size (file),
  };
  uint8_t start[QCOW2_V2_HEADER_SIZE];
  int error;

  memset (ret, 0, sizeof *ret);
  if (r.file_size < sizeof start)
    return BAD (&r, "not a qcow2 image");
  error = blk_pread (file, start, sizeof start, 0, 0);
  if (error < 0)
    return error_set_errno (err, -error, "%s: reading the header", r.name);
  bits = load_be32 (start + 20);
  if (bits <= QCOW2_MAX_CLUSTER_BITS)
    max = MAX (1u << bits, sizeof start);
  r.len = MIN (r.file_size, max);
  buf = malloc (r.len);
  if (!buf)
    return error_set_errno (err, ENOMEM, "%s", r.name);
  error = blk_pread (file, buf, r.len, 0, 0);
  if (error < 0)
    return error_set_errno (err, -error, "%s: reading the header", r.name);
  r.buf = buf;
  return parse (&r);
}

/* Append an extension at *pos. */
static int
compose_extension (uint8_t *buf, size_t size, size_t *pos, uint32_t type,
                   const void *data, size_t len)
{
  /* Room for the end marker too. */
  if (*pos + 8 + round_up (len, 8) + 8 > size)
    return -ENAMETOOLONG;
  store_be32 (buf + *pos, type);
  store_be32 (buf + *pos + 4, (uint32_t) len);
  if (len)
    memcpy (buf + *pos + 8, data, len);
  *pos += 8 + round_up (len, 8);
  return 0;
}

/* The names of the features that we may set, as other programs print them. */
static int
compose_features (uint8_t *buf, size_t size, size_t *pos)
{
  static const struct {
    uint8_t type, bit;
    char name[FEATURE_NAME_SIZE];
  } table[] = {
    { 0, 0, "dirty bit" },
    { 0, 1, "corrupt bit" },
    { 0, 2, "external data file" },
    { 0, 3, "compression type" },
    { 0, 4, "extended L2 entries" },
    { 1, 0, "lazy refcounts" },
    { 2, 0, "bitmaps" },
    { 2, 1, "raw external data" },
  };

  _Static_assert (sizeof table[0] == FEATURE_ENTRY_SIZE, "as in the spec");
  return compose_extension (buf, size, pos, EXT_FEATURE_NAMES, table,
                            sizeof table);
}

static void
compose_v3 (const struct qcow2_header *h, uint8_t *buf)
{
  store_be64 (buf + 72, h->incompatible);
  store_be64 (buf + 80, h->compatible);
  store_be64 (buf + 88, h->autoclear);
  store_be32 (buf + 96, h->refcount_order);
  store_be32 (buf + 100, h->header_length);
  if (h->header_length > QCOW2_V3_HEADER_SIZE)
    buf[QCOW2_V3_HEADER_SIZE] = (uint8_t) h->compression;
}

int
qcow2_header_compose (const struct qcow2_header *h, uint8_t *buf, size_t size)
{
  size_t pos = h->header_length, name_len = strlen (h->backing_file);

  store_be32 (buf, QCOW2_MAGIC);
  store_be32 (buf + 4, h->version);
  store_be32 (buf + 20, h->cluster_bits);
  store_be64 (buf + 24, h->size);
  store_be32 (buf + 36, h->l1_size);
  store_be64 (buf + 40, h->l1_offset);
  store_be64 (buf + 48, h->reftable_offset);
  store_be32 (buf + 56, h->reftable_clusters);
  store_be32 (buf + 60, h->nr_snapshots);
  store_be64 (buf + 64, h->snapshots_offset);
  if (h->version >= 3)
    compose_v3 (h, buf);
  if (h->data_file[0]
      && compose_extension (buf, size, &pos, EXT_DATA_FILE, h->data_file,
                            strlen (h->data_file)) < 0)
    return -ENAMETOOLONG;
  if (h->backing_format[0]
      && compose_extension (buf, size, &pos, EXT_BACKING_FORMAT,
                            h->backing_format, strlen (h->backing_format)) < 0)
    return -ENAMETOOLONG;
  /* Optional: left out where small clusters have no room for it. */
  if (h->version >= 3
      && pos + 8 + 8 * FEATURE_ENTRY_SIZE + 8 + name_len <= size)
    compose_features (buf, size, &pos);
  /* The end marker is zeroes. */
  pos += 8;
  if (pos + name_len > size)
    return -ENAMETOOLONG;
  if (name_len == 0)
    return 0;
  store_be64 (buf + 8, pos);
  store_be32 (buf + 16, (uint32_t) name_len);
  memcpy (buf + pos, h->backing_file, name_len);
  return 0;
}
