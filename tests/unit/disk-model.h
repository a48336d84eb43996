/* SPDX-License-Identifier: BSD-3-Clause */
/* A naive disk: an array of bytes.  The same random requests go to a node and
 * to the array; the contents must be equal, and what the node calls zero must
 * be zero in the array.
 */
#ifndef TIDEMARK_TEST_DISK_MODEL_H
#define TIDEMARK_TEST_DISK_MODEL_H

#include <inttypes.h>
#include <string.h>

#include "blk.h"
#include "range.h"
#include "unit/unit.h"

struct disk_model {
  struct blk *blk;
  uint64_t size;
  unsigned char *bytes;
  unsigned char *buf;
  uint64_t seed;
};

static inline void
disk_model_init (struct disk_model *m, struct blk *blk, uint64_t seed)
{
  m->blk = blk;
  m->size = blk_size (blk);
  m->bytes = calloc (2 * m->size + 1, 1);
  m->buf = malloc (2 * m->size + 1);
  m->seed = seed;
  assert_non_null (m->bytes);
  assert_non_null (m->buf);
}

static inline void
disk_model_free (struct disk_model *m)
{
  free (m->bytes);
  free (m->buf);
}

/* All contents, and the extents against them. */
static inline void
disk_model_check (struct disk_model *m)
{
  struct extents e;
  size_t i;

  assert_int_equal (blk_size (m->blk), m->size);
  assert_int_equal (blk_pread (m->blk, m->buf, m->size, 0, 0), 0);
  for (i = 0; i < m->size; i++)
    if (m->buf[i] != m->bytes[i])
      fail_msg ("byte %zu is %u, should be %u", i, m->buf[i], m->bytes[i]);
  extents_init (&e, 100000);
  assert_int_equal (blk_extents (m->blk, m->size, 0, 0,
                                 BLK_STATUS_ALLOCATION, &e), 0);
  assert_int_equal (extents_length (&e), m->size);
  for (i = 0; i < e.len; i++) {
    if (e.ptr[i].value & EXTENT_ZERO)
      assert_true (is_zero_buffer (m->bytes + e.ptr[i].off, e.ptr[i].len));
    else
      assert_int_equal (e.ptr[i].value & EXTENT_HOLE, 0);
  }
  extents_free (&e);
}

/* A range: any bytes, or whole blocks. */
static inline struct range
disk_model_range (struct disk_model *m)
{
  uint64_t most = unit_random (&m->seed) % 9000;
  struct range range;

  range.off = unit_random (&m->seed) % (m->size + 1);
  range.len = unit_random (&m->seed) % (m->size - range.off + 1);
  if (unit_random (&m->seed) % 2)
    range.len = MIN (range.len, most);
  if (unit_random (&m->seed) % 2) {
    range.off = round_down (range.off, 4096);
    range.len = round_down (range.len, 4096);
  }
  return range;
}

static inline void
disk_model_step (struct disk_model *m)
{
  struct range range = disk_model_range (m);
  uint64_t off = range.off, len = range.len;
  unsigned flags = unit_random (&m->seed) % 4 ? 0 : BLK_FUA;
  size_t i;

  switch (unit_random (&m->seed) % 6) {
  case 0:
  case 1:
    for (i = 0; i < len; i++)
      m->bytes[off + i] = m->buf[i] = (unsigned char)
        unit_random (&m->seed);
    assert_int_equal (blk_pwrite (m->blk, m->buf, len, off, flags), 0);
    break;
  case 2:
    flags |= unit_random (&m->seed) % 2 ? BLK_MAY_UNMAP : 0;
    memset (m->bytes + off, 0, len);
    assert_int_equal (blk_zero (m->blk, len, off, flags), 0);
    break;
  case 3:
    /* What is trimmed may read as anything; as zero with these nodes, or as
     * before.
     */
    assert_int_equal (blk_trim (m->blk, len, off, flags), 0);
    assert_int_equal (blk_pread (m->blk, m->buf, len, off, 0), 0);
    for (i = 0; i < len; i++)
      assert_true (m->buf[i] == 0 || m->buf[i] == m->bytes[off + i]);
    memcpy (m->bytes + off, m->buf, len);
    break;
  case 4:
    assert_int_equal (blk_pread (m->blk, m->buf, len, off, 0), 0);
    assert_memory_equal (m->buf, m->bytes + off, len);
    break;
  case 5:
    assert_int_equal (blk_flush (m->blk), 0);
    assert_int_equal (blk_cache (m->blk, len, off), 0);
    break;
  }
}

#endif /* TIDEMARK_TEST_DISK_MODEL_H */
