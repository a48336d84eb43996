/* SPDX-License-Identifier: BSD-3-Clause */
/* The form of a store's header and table on disk, see docs/format.md.
 *
 * I10: whatever the bytes are, decoding ends in a description whose numbers
 *     are within bounds, or in an error.
 *
 * Called by the store and by tools, from any thread.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "bitmap.h"
#include "byteorder.h"
#include "range.h"
#include "store-format.h"

_Static_assert (sizeof (struct store_live_slot) == 64, "the live page");
_Static_assert (sizeof (struct store_live) <= STORE_PAGE, "the live page");

/* Places in the header. */
enum {
  H_MAGIC = 0, H_VERSION = 8, H_LENGTH = 12, H_GENERATION = 16, H_SUM = 24,
  H_FLAGS = 28, H_NR_BITMAPS = 32, H_ID = 40, H_BOOT_ID = 56, H_DISK_SIZE = 72,
  H_OTHER_SIZE = 80, H_REGION_SIZE = 88, H_INTENT_OFF = 96,
  H_INTENT_LEN = 104, H_FILE_LEN = 112, H_INODE = 120, H_BIRTH = 128,
  H_MTIME = 136, H_DISK_FILE_SIZE = 144, H_REASON = 160,
};

/* Places in a record, which is as long as its name, rounded up to 8. */
enum {
  R_LENGTH = 0, R_NAME_LEN = 4, R_STATE = 6, R_GRANULARITY = 8, R_BASE = 16,
  R_OVER_ESTIMATE = 32, R_BITS_OFF = 40, R_NR_BITS = 48, R_BITS_SUM = 56,
  R_SUCCESSOR_SUM = 60, R_SUCCESSOR_OFF = 64, R_REASON = 72, R_NAME = 200,
};

uint64_t
store_array_bytes (uint64_t nr_bits)
{
  return round_up (MAX (div_round_up (nr_bits, 64) * 8, 8), STORE_PAGE);
}

uint32_t
store_sum_add (uint32_t sum, const void *words, uint64_t off, uint64_t len)
{
  const uint8_t *p = words;
  const uint64_t end = off + len;
  uint8_t number[8];

  for (; off < end; off += STORE_PAGE) {
    if (is_zero_buffer (p + off, STORE_PAGE))
      continue;
    store_le64 (number, off / STORE_PAGE);
    sum = (uint32_t) crc32 (sum, number, sizeof number);
    sum = (uint32_t) crc32 (sum, p + off, (uInt) STORE_PAGE);
  }
  return sum;
}

static void
put_text (uint8_t *p, const char *text)
{
  memset (p, 0, STORE_REASON_SIZE);
  memcpy (p, text, strnlen (text, STORE_REASON_SIZE - 1));
}

static size_t
encode_record (const struct store_record *r, uint8_t *p)
{
  const size_t name_len = strlen (r->name);
  const size_t len = (size_t) round_up (R_NAME + name_len, 8);

  memset (p, 0, len);
  store_le32 (p + R_LENGTH, (uint32_t) len);
  store_le16 (p + R_NAME_LEN, (uint16_t) name_len);
  p[R_STATE] = r->state;
  store_le64 (p + R_GRANULARITY, r->granularity);
  memcpy (p + R_BASE, r->base.bytes, 16);
  store_le64 (p + R_OVER_ESTIMATE, r->over_estimate);
  store_le64 (p + R_BITS_OFF, r->bits.off);
  store_le64 (p + R_NR_BITS, r->bits.nr_bits);
  store_le32 (p + R_BITS_SUM, r->bits.sum);
  store_le32 (p + R_SUCCESSOR_SUM, r->successor.sum);
  store_le64 (p + R_SUCCESSOR_OFF, r->successor.off);
  put_text (p + R_REASON, r->reason);
  memcpy (p + R_NAME, r->name, name_len);
  return len;
}

static void
encode_header (const struct store_header *h, size_t len, uint8_t *p)
{
  memset (p, 0, STORE_HEADER_SIZE);
  memcpy (p + H_MAGIC, STORE_MAGIC, 8);
  store_le32 (p + H_VERSION, STORE_VERSION);
  store_le32 (p + H_LENGTH, (uint32_t) len);
  store_le64 (p + H_GENERATION, h->generation);
  store_le32 (p + H_FLAGS, h->flags);
  store_le32 (p + H_NR_BITMAPS, h->nr_bitmaps);
  memcpy (p + H_ID, h->id.bytes, 16);
  memcpy (p + H_BOOT_ID, h->boot_id, 16);
  store_le64 (p + H_DISK_SIZE, h->disk_size);
  store_le64 (p + H_OTHER_SIZE, h->other_size);
  store_le64 (p + H_REGION_SIZE, h->region_size);
  store_le64 (p + H_INTENT_OFF, h->intent_off);
  store_le64 (p + H_INTENT_LEN, h->intent_len);
  store_le64 (p + H_FILE_LEN, h->file_len);
  store_le64 (p + H_INODE, h->identity.inode);
  store_le64 (p + H_BIRTH, (uint64_t) h->identity.birth_ns);
  store_le64 (p + H_MTIME, (uint64_t) h->identity.mtime_ns);
  store_le64 (p + H_DISK_FILE_SIZE, h->identity.file_size);
  put_text (p + H_REASON, h->reason);
}

size_t
store_encode (const struct store_header *header,
              const struct store_record *records, void *buf)
{
  uint8_t *p = buf;
  size_t len = STORE_HEADER_SIZE, i;

  for (i = 0; i < header->nr_bitmaps; i++) {
    assert (len + R_NAME + strlen (records[i].name) + 8 <= STORE_SLOT_SIZE);
    len += encode_record (&records[i], p + len);
  }
  encode_header (header, len, p);
  store_le32 (p + H_SUM, (uint32_t) crc32 (0, p, (uInt) len));
  return len;
}

static void
decode_header (const uint8_t *p, struct store_header *h)
{
  memset (h, 0, sizeof *h);
  h->generation = load_le64 (p + H_GENERATION);
  h->flags = load_le32 (p + H_FLAGS);
  h->nr_bitmaps = load_le32 (p + H_NR_BITMAPS);
  memcpy (h->id.bytes, p + H_ID, 16);
  memcpy (h->boot_id, p + H_BOOT_ID, 16);
  h->disk_size = load_le64 (p + H_DISK_SIZE);
  h->other_size = load_le64 (p + H_OTHER_SIZE);
  h->region_size = load_le64 (p + H_REGION_SIZE);
  h->intent_off = load_le64 (p + H_INTENT_OFF);
  h->intent_len = load_le64 (p + H_INTENT_LEN);
  h->file_len = load_le64 (p + H_FILE_LEN);
  h->identity.inode = load_le64 (p + H_INODE);
  h->identity.birth_ns = (int64_t) load_le64 (p + H_BIRTH);
  h->identity.mtime_ns = (int64_t) load_le64 (p + H_MTIME);
  h->identity.file_size = load_le64 (p + H_DISK_FILE_SIZE);
  memcpy (h->reason, p + H_REASON, STORE_REASON_SIZE - 1);
  make_one_line (h->reason);
}

/* Is an extent of the file where it can be? */
static bool
is_place (const struct store_header *h, uint64_t off, uint64_t len)
{
  return off % STORE_PAGE == 0 && off >= STORE_DATA_OFF
    && range_is_within (off, len, h->file_len);
}

static int
check_header (const struct store_header *h, struct error *err)
{
  if (h->nr_bitmaps > STORE_MAX_BITMAPS)
    return error_set (err, EINVAL, "it claims %" PRIu32 " bitmaps, at most %d"
                      " are possible", h->nr_bitmaps, STORE_MAX_BITMAPS);
  if (h->disk_size > RANGE_MAX_SIZE || h->other_size > h->disk_size
      || h->file_len > RANGE_MAX_SIZE)
    return error_set (err, EINVAL, "a size in its header is impossible");
  if (!is_power_of_2 (h->region_size) || h->region_size < STORE_MIN_REGION
      || h->region_size > RANGE_MAX_SIZE)
    return error_set (err, EINVAL, "its region size %" PRIu64
                      " is impossible", h->region_size);
  if (!is_place (h, h->intent_off, h->intent_len)
      || h->intent_len % STORE_PAGE != 0
      || h->intent_len / STORE_PAGE <
         div_round_up (div_round_up (h->disk_size, h->region_size),
                       8 * STORE_PAGE))
    return error_set (err, EINVAL, "its map of intents is impossible");
  return 0;
}

static int
check_record (const struct store_header *h, const struct store_record *r,
              struct error *err)
{
  const uint64_t bytes = store_array_bytes (MIN (r->bits.nr_bits,
                                                 RANGE_MAX_SIZE / 8));

  if (r->state > STORE_INCONSISTENT || !is_power_of_2 (r->granularity)
      || r->granularity < BITMAP_MIN_GRANULARITY
      || r->granularity > BITMAP_MAX_GRANULARITY)
    return error_set (err, EINVAL, "bitmap '%.40s' is impossible", r->name);
  if (r->bits.off == 0 && r->successor.off == 0
      && r->state == STORE_INCONSISTENT)
    return 0;
  if (r->bits.nr_bits != div_round_up (h->disk_size, r->granularity)
      || !is_place (h, r->bits.off, bytes)
      || (r->successor.off && !is_place (h, r->successor.off, bytes)))
    return error_set (err, EINVAL, "the bits of bitmap '%.40s' are in an"
                      " impossible place", r->name);
  return 0;
}

/* One record of at most max bytes.  Returns its length or -errno. */
static int
decode_record (const struct store_header *h, const uint8_t *p, size_t max,
               struct store_record *r, struct error *err)
{
  size_t len, name_len;

  if (max < R_NAME)
    return error_set (err, EINVAL, "its table is too short");
  len = load_le32 (p + R_LENGTH);
  name_len = load_le16 (p + R_NAME_LEN);
  if (len > max || name_len == 0 || name_len > 1023
      || len != round_up (R_NAME + name_len, 8)
      || memchr (p + R_NAME, '\0', name_len))
    return error_set (err, EINVAL, "a record of its table is impossible");
  r->name = strndup ((const char *) p + R_NAME, name_len);
  if (r->name == NULL)
    return error_set_errno (err, ENOMEM, "store");
  r->state = p[R_STATE];
  r->granularity = load_le64 (p + R_GRANULARITY);
  memcpy (r->base.bytes, p + R_BASE, 16);
  r->over_estimate = load_le64 (p + R_OVER_ESTIMATE);
  r->bits.off = load_le64 (p + R_BITS_OFF);
  r->bits.nr_bits = load_le64 (p + R_NR_BITS);
  r->bits.sum = load_le32 (p + R_BITS_SUM);
  r->successor.off = load_le64 (p + R_SUCCESSOR_OFF);
  r->successor.nr_bits = r->bits.nr_bits;
  r->successor.sum = load_le32 (p + R_SUCCESSOR_SUM);
  memcpy (r->reason, p + R_REASON, STORE_REASON_SIZE - 1);
  make_one_line (r->reason);
  return check_record (h, r, err) < 0 ? -EINVAL : (int) len;
}

/* The sum over the slot, as if its own place were zero. */
static bool
is_sum_right (const uint8_t *p, size_t len)
{
  static const uint8_t zero[4];
  uint32_t sum = (uint32_t) crc32 (0, p, H_SUM);

  sum = (uint32_t) crc32 (sum, zero, sizeof zero);
  sum = (uint32_t) crc32 (sum, p + H_SUM + 4, (uInt) (len - H_SUM - 4));
  return sum == load_le32 (p + H_SUM);
}

static int
check_slot (const uint8_t *p, struct error *err)
{
  const uint32_t version = load_le32 (p + H_VERSION);
  const uint32_t len = load_le32 (p + H_LENGTH);

  if (memcmp (p + H_MAGIC, STORE_MAGIC, 8) != 0)
    return error_set (err, ENOENT, "it is not a Tidemark store");
  if (version > STORE_VERSION)
    return error_set (err, ENOTSUP, "it has format version %" PRIu32
                      ", this program knows versions up to %d", version,
                      STORE_VERSION);
  if (version == 0 || len < STORE_HEADER_SIZE || len > STORE_SLOT_SIZE
      || !is_sum_right (p, len))
    return error_set (err, EINVAL, "the checksum of its header is wrong");
  return 0;
}

int
store_decode (const void *buf, struct store_header *header,
              struct store_record **ret_records, struct error *err)
{
  const uint8_t *p = buf;
  struct store_record *records;
  size_t off = STORE_HEADER_SIZE, len, i;
  int r = check_slot (p, err);

  if (r < 0)
    return r;
  len = load_le32 (p + H_LENGTH);
  decode_header (p, header);
  r = check_header (header, err);
  if (r < 0)
    return r;
  records = calloc (header->nr_bitmaps + 1, sizeof *records);
  if (records == NULL)
    return error_set_errno (err, ENOMEM, "store");
  for (i = 0; i < header->nr_bitmaps; i++) {
    r = decode_record (header, p + off, len - off, &records[i], err);
    if (r < 0) {
      store_records_free (records, header->nr_bitmaps);
      return r;
    }
    off += (size_t) r;
  }
  *ret_records = records;
  return 0;
}

void
store_records_free (struct store_record *records, size_t nr)
{
  size_t i;

  for (i = 0; records && i < nr; i++)
    free (records[i].name);
  free (records);
}
