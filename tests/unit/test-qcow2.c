/* SPDX-License-Identifier: BSD-3-Clause */
/* The qcow2 driver against a model: random operations on new and reopened
 * images of many shapes, the image checked by counting; writers in parallel.
 *
 * usage: test-qcow2 [SEED]
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "blk-mem.h"
#include "blk-qcow2.h"
#include "byteorder.h"
#include "qcow2.h"
#include "qcow2-image.h"
#include "range.h"

#define MAX_DISK (UINT64_C (4) << 20)
#define CAPACITY (UINT64_C (64) << 20)

static unsigned seed = 1;

static uint64_t
rnd (uint64_t n)
{
  static uint64_t state;

  if (seed) {
    state = seed * UINT64_C (0x9e3779b97f4a7c15) + 1;
    seed = 0;
  }
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (state >> 11) % n;
}

/* An image, its file and what it must hold. */
struct subject {
  struct file file;
  struct blk *node;
  uint64_t size, backing_size;
  unsigned max_depth;
  uint32_t cluster_size;
  uint8_t *model, *base;
};

static struct blk *
new_backing (const struct subject *s)
{
  struct blk *mem;

  if (!s->base)
    return NULL;
  assert_int_equal (blk_mem_new (s->backing_size, &mem), 0);
  assert_int_equal (blk_pwrite (mem, s->base, s->backing_size, 0, 0), 0);
  return mem;
}

/* Every other node gets caches of a few slices, to see them overflow. */
static void
set_caches (struct subject *s)
{
  struct qcow2 *q = (struct qcow2 *) s->node;

  if (rnd (2)) {
    q->limits.max_slices[QCOW2_L2] = q->limits.max_slices[QCOW2_REFCOUNT] = 2;
    q->limits.max_dirty[QCOW2_L2] = 1 + rnd (3);
    q->limits.max_dirty[QCOW2_REFCOUNT] = 1 + rnd (3);
  }
}

static void
subject_create (struct subject *s, uint64_t size, uint32_t cluster_size,
                uint64_t backing_size, bool is_device)
{
  struct qcow2_create_options options = {
    .size = size, .cluster_size = cluster_size,
  };
  struct error err = ERROR_INIT;

  memset (s, 0, sizeof *s);
  /* All of a device is looked at. */
  file_init (&s->file, is_device && cluster_size < 65536 ? CAPACITY / 4
             : CAPACITY);
  s->file.is_device = is_device;
  if (is_device)
    memset (s->file.bytes, 0xee, s->file.capacity);
  s->size = size;
  s->max_depth = backing_size ? 2 : 1;
  s->cluster_size = cluster_size;
  s->model = calloc (1, MAX (size, 1));
  if (backing_size) {
    s->backing_size = backing_size;
    s->base = malloc (backing_size);
    for (uint64_t i = 0; i < backing_size; i += 512)
      memset (s->base + i, (uint8_t) (i / 512 * 7 + 1),
              MIN (512, backing_size - i));
    memcpy (s->model, s->base, MIN (size, backing_size));
  }
  options.backing = new_backing (s);
  if (blk_qcow2_create (file_node (&s->file), &options, &s->node, &err) < 0)
    fail_msg ("%s", err.msg);
  set_caches (s);
}

static void
subject_destroy (struct subject *s)
{
  file_destroy (&s->file);
  free (s->model);
  free (s->base);
}

static void
check_image (struct subject *s, unsigned max_leaks)
{
  struct image_report report;

  image_check (s->file.bytes,
               s->file.is_device ? s->file.capacity : s->file.size, &report);
  assert_true (report.has_header);
  if (report.error)
    fail_msg ("%s: %llu", report.error, (unsigned long long) report.where);
  if (report.nr_leaks > max_leaks)
    fail_msg ("%u clusters leaked", report.nr_leaks);
}

static void
check_content (struct subject *s, uint64_t off, uint64_t len)
{
  uint8_t *buf = malloc (MAX (len, 1));

  assert_int_equal (blk_pread (s->node, buf, len, off, 0), 0);
  for (uint64_t i = 0; memcmp (buf, s->model + off, len) != 0; i++)
    if (buf[i] != s->model[off + i])
      fail_msg ("offset %llu is 0x%02x, not 0x%02x",
                (unsigned long long) (off + i), buf[i], s->model[off + i]);
  free (buf);
}

/* Extents say nothing untrue: zero is zero, and a depth fits. */
static void
check_extents (struct subject *s, uint64_t off, uint64_t len)
{
  struct extents e;

  extents_init (&e, 3);
  while (len > 0) {
    extents_clear (&e);
    assert_int_equal (blk_extents (s->node, len, off, 0,
                                   BLK_STATUS_ALLOCATION, &e), 0);
    for (size_t i = 0; i < e.len; i++)
      if (e.ptr[i].value & EXTENT_ZERO)
        assert_true (is_zero_buffer (s->model + e.ptr[i].off, e.ptr[i].len));
    extents_clear (&e);
    assert_int_equal (blk_extents (s->node, len, off, 0, BLK_STATUS_DEPTH,
                                   &e), 0);
    for (size_t i = 0; i < e.len; i++) {
      assert_in_range (e.ptr[i].value, 0, s->max_depth);
      if (e.ptr[i].value == 0)
        assert_true (is_zero_buffer (s->model + e.ptr[i].off, e.ptr[i].len));
    }
    off += extents_length (&e);
    len -= extents_length (&e);
  }
  extents_free (&e);
}

/* Close, check, and open for writing.  The backing node has no name by which
 * the image could find it: it is put in by hand.
 */
static void
reopen (struct subject *s)
{
  struct qcow2_open_options options = { .allow_backing = true };
  struct error err = ERROR_INIT;

  assert_int_equal (blk_close (s->node), 0);
  check_image (s, 0);
  if (blk_qcow2_open (file_node (&s->file), &options, &s->node, &err) < 0)
    fail_msg ("%s", err.msg);
  set_caches (s);
  if (s->base) {
    s->node->backing = new_backing (s);
    ((struct qcow2 *) s->node)->has_backing = true;
    ((struct qcow2 *) s->node)->backing_size = s->backing_size;
  }
}

static void
random_range (const struct subject *s, uint64_t *off, uint64_t *len)
{
  uint64_t unit = rnd (3) == 0 ? 1 : rnd (2) ? 512 : s->cluster_size;
  uint64_t max = rnd (4) == 0 ? s->size : 4 * (uint64_t) s->cluster_size;

  *off = round_down (rnd (s->size), unit);
  *len = MIN (1 + rnd (MIN (max, s->size)), s->size - *off);
  *len = MIN (round_up (*len, unit), s->size - *off);
}

static void
op_write (struct subject *s, uint64_t off, uint64_t len)
{
  uint8_t byte = (uint8_t) (1 + rnd (255));

  for (uint64_t i = 0; i < len; i += 512)
    memset (s->model + off + i, (uint8_t) (byte + i / 512),
            MIN (512, len - i));
  assert_int_equal (blk_pwrite (s->node, s->model + off, len, off, 0), 0);
}

/* Whole clusters become zeroes, the rest stays. */
static void
op_trim (struct subject *s, uint64_t off, uint64_t len)
{
  uint64_t start = round_up (off, s->cluster_size), end = off + len;

  assert_int_equal (blk_trim (s->node, len, off, 0), 0);
  if (end < s->size)
    end = round_down (end, s->cluster_size);
  if (start < end)
    memset (s->model + start, 0, end - start);
}

/* Reserve where nothing is allocated; the driver refuses what it knows is
 * reserved.
 */
static void
op_reserve (struct subject *s, uint64_t off, uint64_t len)
{
  struct extents e;
  uint64_t end = MIN (round_up (off + len, s->cluster_size), s->size);
  int r;

  off = round_down (off, s->cluster_size);
  extents_init (&e, 1);
  assert_int_equal (blk_extents (s->node, end - off, off, BLK_ONE,
                                 BLK_STATUS_DEPTH, &e), 0);
  len = e.ptr[0].value == 1 ? 0 : MIN (e.ptr[0].len, end - off);
  if (off + len < s->size)
    len = round_down (len, s->cluster_size);
  extents_free (&e);
  r = qcow2_reserve (s->node, len, off);
  assert_true (r == 0 || r == -EINVAL || r == -ENOTSUP);
}

static void
random_op (struct subject *s)
{
  uint64_t off, len;

  random_range (s, &off, &len);
  switch (rnd (8)) {
  case 0:
    assert_int_equal (blk_zero (s->node, len, off, 0), 0);
    memset (s->model + off, 0, len);
    break;
  case 1:
    assert_int_equal (blk_zero (s->node, len, off, BLK_MAY_UNMAP), 0);
    memset (s->model + off, 0, len);
    break;
  case 2:
    op_trim (s, off, len);
    break;
  case 3:
    if (rnd (2))
      assert_int_equal (blk_flush (s->node), 0);
    break;
  case 4:
    op_reserve (s, off, len);
    break;
  default:
    op_write (s, off, len);
    break;
  }
}

/* New space reads as zeroes, whatever was there before, and whatever the base
 * has there.
 */
static void
op_resize (struct subject *s)
{
  uint64_t size = rnd (2) ? s->size + rnd (s->size) / 2
    : s->size - rnd (s->size);

  size = MIN (MAX (round_down (size, 512), 512), MAX_DISK * 3 / 2);
  assert_int_equal (blk_resize (s->node, size), 0);
  assert_int_equal (blk_size (s->node), size);
  s->model = realloc (s->model, size);
  if (size > s->size)
    memset (s->model + s->size, 0, size - s->size);
  s->size = size;
}

static void
run_random (struct subject *s, unsigned nr)
{
  uint64_t off, len;

  for (unsigned i = 0; i < nr; i++) {
    if (i % 12 == 11)
      op_resize (s);
    else
      random_op (s);
    random_range (s, &off, &len);
    check_content (s, off, len);
    check_extents (s, off, len);
    if (i % 16 == 15) {
      assert_int_equal (blk_flush (s->node), 0);
      check_image (s, 0);
    }
    if (i % 30 == 29)
      reopen (s);
  }
  check_content (s, 0, s->size);
}

#ifdef __SANITIZE_THREAD__      /* those of 2 MiB take most of the time */
#define NR_RANDOM_CLUSTERS 4
#else
#define NR_RANDOM_CLUSTERS 5
#endif

/* Disk sizes that end within a cluster, at one, below one. */
static void
test_random (void **state)
{
  static const uint32_t clusters[] = { 512, 1024, 4096, 65536, 2 << 20 };
  static const unsigned sizes[] = { 1, 5, 300 };
  struct subject s;

  for (size_t c = 0; c < NR_RANDOM_CLUSTERS; c++)
    for (size_t n = 0; n < 3; n++)
      for (unsigned kind = 0; kind < 4; kind++) {
        uint64_t size = MIN ((uint64_t) clusters[c] * sizes[n], MAX_DISK);

        size = kind == 1 ? size : size - MIN (size - 512, 512);
        /* No base, a shorter one, a longer one; a device. */
        subject_create (&s, size, clusters[c],
                        kind == 1 ? size / 2 + 512 : kind == 2 ? size * 2 : 0,
                        kind == 3);
        run_random (&s, clusters[c] < 65536 ? 100 : 50);
        assert_int_equal (blk_close (s.node), 0);
        check_image (&s, 0);
        subject_destroy (&s);
      }
}

/* A larger L1 table on a device, whose size does not say where the last cluster
 * is.
 */
static void
test_grow_on_device (void **state)
{
  const uint64_t size = UINT64_C (2) << 20;
  struct subject s;
  uint64_t off;

  subject_create (&s, size, 512, 0, true);
  for (off = 0; off < size; off += 64 << 10)
    op_write (&s, off, 512);
  reopen (&s);
  assert_int_equal (blk_resize (s.node, 3 * size), 0);
  s.model = realloc (s.model, 3 * size);
  memset (s.model + size, 0, 2 * size);
  s.size = 3 * size;
  op_write (&s, 3 * size - 1000, 1000);
  check_content (&s, 0, s.size);
  assert_int_equal (blk_close (s.node), 0);
  check_image (&s, 0);
  subject_destroy (&s);
}

/* Refcounts of every width. */
static void
test_refcount_widths (void **state)
{
  struct subject s;

  for (unsigned order = 0; order <= 6; order++) {
    subject_create (&s, 300 * 1024, 1024, 0, false);
    op_write (&s, 1000, 50000);
    assert_int_equal (blk_close (s.node), 0);
    image_set_refcount_order (&s.file, order);
    check_image (&s, 0);
    s.node = NULL;
    assert_int_equal (blk_qcow2_open (file_node (&s.file),
                                      &(struct qcow2_open_options) { 0 },
                                      &s.node, NULL), 0);
    run_random (&s, 100);
    assert_int_equal (blk_close (s.node), 0);
    check_image (&s, 0);
    subject_destroy (&s);
  }
}

/* A refcount table of one cluster, for 2 MiB of file, that has to grow. */
static void
test_reftable_growth (void **state)
{
  struct subject s;

  subject_create (&s, UINT64_C (3) << 20, 512, 0, false);
  assert_int_equal (blk_close (s.node), 0);
  image_set_refcount_order (&s.file, 6);
  check_image (&s, 0);
  assert_int_equal (blk_qcow2_open (file_node (&s.file),
                                    &(struct qcow2_open_options) { 0 },
                                    &s.node, NULL), 0);
  for (uint64_t off = 0; off < s.size; off += 10000)
    op_write (&s, off, MIN (10000, s.size - off));
  assert_true (load_be32 (s.file.bytes + 56) == 1);
  check_content (&s, 0, s.size);
  assert_int_equal (blk_close (s.node), 0);
  assert_true (load_be32 (s.file.bytes + 56) > 1);
  check_image (&s, 0);
  subject_destroy (&s);
}

/* What others refuse to open before the first flush, and open after it. */
static void
test_no_header_before_flush (void **state)
{
  struct image_report report;
  struct subject s;

  subject_create (&s, 1 << 20, 4096, 0, false);
  op_write (&s, 0, 100000);
  image_check (s.file.bytes, s.file.size, &report);
  assert_false (report.has_header);
  assert_int_equal (blk_flush (s.node), 0);
  check_image (&s, 0);
  op_write (&s, 200000, 100000);
  check_image (&s, 100000);
  assert_int_equal (blk_close (s.node), 0);
  check_image (&s, 0);
  subject_destroy (&s);
}

/* Before its first flush a new image may be too large for the caches: that
 * does not make it valid.
 */
static void
test_spill (void **state)
{
  struct image_report report;
  struct subject s;
  struct qcow2 *q;

  subject_create (&s, MAX_DISK, 512, 0, false);
  q = (struct qcow2 *) s.node;
  q->limits.max_slices[QCOW2_L2] = q->limits.max_slices[QCOW2_REFCOUNT] = 4;
  q->limits.max_dirty[QCOW2_L2] = q->limits.max_dirty[QCOW2_REFCOUNT] = 2;
  op_write (&s, 0, MAX_DISK / 2);
  check_content (&s, 0, s.size);
  assert_in_range (q->nr_slices[QCOW2_L2], 1, 4);
  assert_in_range (q->nr_slices[QCOW2_REFCOUNT], 1, 5);
  image_check (s.file.bytes, s.file.size, &report);
  assert_false (report.has_header);
  assert_int_equal (blk_close (s.node), 0);
  check_image (&s, 0);
  subject_destroy (&s);
}

/* What is freed is used again, after the flush that frees it. */
static void
test_reuse (void **state)
{
  struct subject s;
  uint64_t end;

  subject_create (&s, UINT64_C (1) << 20, 4096, 0, false);
  reopen (&s);
  /* At the end of the file, which reads as zeroes: the first time only. */
  op_write (&s, 0, s.size);
  assert_int_equal (blk_flush (s.node), 0);
  end = ((struct qcow2 *) s.node)->file_end;
  for (unsigned i = 0; i < 5; i++) {
    op_trim (&s, 0, s.size);
    assert_int_equal (blk_flush (s.node), 0);
    op_write (&s, 1000, 200000);
    op_trim (&s, 0, 100000);
    op_write (&s, 500000, 500);
    op_write (&s, 700000, 300000);
    check_content (&s, 0, s.size);
  }
  reopen (&s);
  assert_int_equal (s.file.size, end);
  check_content (&s, 0, s.size);
  assert_int_equal (blk_close (s.node), 0);
  subject_destroy (&s);
}

/* Reserved space is in guest order whatever the order of the writes, and a
 * reservation that is never used costs nothing but a hole.
 */
static void
test_reserve (void **state)
{
  uint64_t l1, l2, before, entry;
  struct subject s;

  subject_create (&s, UINT64_C (2) << 20, 65536, 0, false);
  assert_int_equal (qcow2_reserve (s.node, 16 * 65536, 0), 0);
  assert_int_equal (qcow2_reserve (s.node, 65536, 0), -EINVAL);
  assert_int_equal (qcow2_reserve (s.node, 65536, 512), -EINVAL);
  assert_int_equal (qcow2_reserve (s.node, 512, 16 * 65536), -EINVAL);
  for (unsigned i = 15; i > 0; i--)
    if (i != 7 && i != 8)
      op_write (&s, i * 65536, 65536);
  assert_int_equal (blk_zero (s.node, 65536, 7 * 65536, 0), 0);
  assert_int_equal (blk_close (s.node), 0);
  check_image (&s, 0);
  l1 = load_be64 (s.file.bytes + 40);
  l2 = load_be64 (s.file.bytes + l1) & UINT64_C (0x00fffffffffffe00);
  before = load_be64 (s.file.bytes + l2 + 8);
  for (unsigned i = 2; i < 16; i++) {
    entry = load_be64 (s.file.bytes + l2 + i * 8);
    if (i == 7 || i == 8)
      assert_int_equal (entry, i == 7 ? 1 : 0);
    else
      assert_int_equal (entry, before + (i - 1) * UINT64_C (65536));
  }
  assert_int_equal (load_be64 (s.file.bytes + l2), 0);
  subject_destroy (&s);
}

/* A new image that was flushed and then left alone is gone on with: what came
 * after the flush is gone, and space is handed out in order behind the rest.
 */
static void
test_append (void **state)
{
  struct qcow2_open_options options = { .is_append = true };
  struct subject s;
  uint64_t l1, l2, last = 0, entry;
  struct file left;

  subject_create (&s, UINT64_C (2) << 20, 65536, 0, false);
  assert_int_equal (qcow2_reserve (s.node, 8 * 65536, 0), 0);
  op_write (&s, 0, 4 * 65536);
  assert_int_equal (blk_flush (s.node), 0);
  assert_int_equal (blk_pwrite (s.node, s.model, 3 * 65536, 5 * 65536, 0), 0);
  file_init (&left, CAPACITY);
  memcpy (left.bytes, s.file.bytes, CAPACITY);
  left.size = s.file.size;
  assert_int_equal (blk_close (s.node), 0);
  file_destroy (&s.file);
  s.file = left;
  check_image (&s, 0);

  assert_int_equal (blk_qcow2_open (file_node (&s.file), &options, &s.node,
                                    NULL), 0);
  check_content (&s, 0, s.size);
  assert_int_equal (qcow2_reserve (s.node, 20 * 65536, 4 * 65536), 0);
  for (unsigned i = 23; i >= 4; i--)
    op_write (&s, i * 65536, 65536 - (i % 2) * 700);
  check_content (&s, 0, s.size);
  assert_int_equal (blk_close (s.node), 0);
  check_image (&s, 0);
  l1 = load_be64 (s.file.bytes + 40);
  l2 = load_be64 (s.file.bytes + l1) & UINT64_C (0x00fffffffffffe00);
  for (unsigned i = 0; i < 24; i++, last = entry) {
    entry = load_be64 (s.file.bytes + l2 + i * 8);
    assert_true (entry > last);
  }
  subject_destroy (&s);
}

/* --- overlaps */

/* A write to the image is refused, and the image is marked corrupt. */
static void
expect_corrupt (struct subject *s)
{
  struct qcow2_open_options options = { 0 };
  uint8_t byte = 1;
  struct error err = ERROR_INIT;

  assert_int_equal (blk_pwrite (s->node, &byte, 1, 0, 0), -EIO);
  /* Nothing more is written. */
  assert_int_equal (blk_pwrite (s->node, &byte, 1, s->size - 1, 0), -EIO);
  assert_int_equal (blk_flush (s->node), -EIO);
  assert_int_equal (blk_close (s->node), -EIO);
  assert_int_equal (load_be64 (s->file.bytes + 72), 2);
  assert_int_equal (blk_qcow2_open (file_node (&s->file), &options, &s->node,
                                    &err), -EROFS);
  options.is_read_only = true;
  assert_int_equal (blk_qcow2_open (file_node (&s->file), &options, &s->node,
                                    &err), 0);
  assert_int_equal (blk_close (s->node), 0);
  subject_destroy (s);
}

/* Where the tables of the image are. */
struct places {
  uint64_t l1, l2, block;
};

static void
damageable (struct subject *s, struct places *p)
{
  subject_create (s, UINT64_C (2) << 20, 4096, 0, false);
  op_write (s, 0, 10 * 4096);
  assert_int_equal (blk_close (s->node), 0);
  p->l1 = load_be64 (s->file.bytes + 40);
  p->l2 = load_be64 (s->file.bytes + p->l1) & UINT64_C (0x00fffffffffffe00);
  p->block = load_be64 (s->file.bytes + load_be64 (s->file.bytes + 48));
}

static void
open_damaged (struct subject *s)
{
  assert_int_equal (blk_qcow2_open (file_node (&s->file),
                                    &(struct qcow2_open_options) { 0 },
                                    &s->node, NULL), 0);
}

/* Data where a table is, and tables and data whose clusters count as free. */
static void
test_overlaps (void **state)
{
  const uint64_t copied = UINT64_C (1) << 63;
  struct subject s;
  struct places p;

  damageable (&s, &p);
  store_be64 (s.file.bytes + p.l2, p.l2 | copied);
  open_damaged (&s);
  expect_corrupt (&s);

  damageable (&s, &p);
  store_be64 (s.file.bytes + p.l2, p.block | copied);
  open_damaged (&s);
  expect_corrupt (&s);

  /* The L2 table's refcount is 0: it is what the next cluster would take. */
  damageable (&s, &p);
  store_be64 (s.file.bytes + p.l2, 0);
  memset (s.file.bytes + p.block + p.l2 / 4096 * 2, 0, 2);
  open_damaged (&s);
  expect_corrupt (&s);

  /* The same of a snapshot's L1 table. */
  damageable (&s, &p);
  store_be32 (s.file.bytes + 60, 1);
  store_be64 (s.file.bytes + 64, load_be64 (s.file.bytes + p.l2 + 8)
              & ~copied);
  memset (s.file.bytes + load_be64 (s.file.bytes + 64), 0, 4096);
  store_be64 (s.file.bytes + load_be64 (s.file.bytes + 64),
              load_be64 (s.file.bytes + p.l2) & ~copied);
  store_be32 (s.file.bytes + load_be64 (s.file.bytes + 64) + 8, 16);
  open_damaged (&s);
  expect_corrupt (&s);
}

/* --- chains */

#define NR_LAYERS 5
#ifdef __SANITIZE_THREAD__
#define CHAIN_READS 25u
#else
#define CHAIN_READS 200u
#endif

/* Open the layer's file, with backing put in by hand. */
static struct blk *
open_layer (struct file *f, bool is_read_only, struct blk *backing)
{
  struct qcow2_open_options options = { .is_read_only = is_read_only };
  struct blk *ret;

  assert_int_equal (blk_qcow2_open (file_node (f), &options, &ret, NULL), 0);
  ret->backing = backing;
  ((struct qcow2 *) ret)->has_backing = backing != NULL;
  ((struct qcow2 *) ret)->backing_size = backing ? blk_size (backing) : 0;
  return ret;
}

/* Layer i over below, written as if it had been so from the beginning, and
 * opened over it.
 */
static void
make_layer (struct subject *s, unsigned i, const struct subject *below,
            uint32_t cluster_size, bool is_read_only)
{
  uint64_t size = (64 + i * 25 % 40) * UINT64_C (4096) - 512 * i, off, len;
  struct qcow2 *q;

  subject_create (s, size, cluster_size, 0, false);
  s->max_depth = i + 1;
  if (below) {
    q = (struct qcow2 *) s->node;
    q->blk.backing = below->node;
    q->has_backing = true;
    q->backing_size = below->size;
    memcpy (s->model, below->model, MIN (size, below->size));
  }
  for (unsigned k = 0; k < 8; k++) {
    random_range (s, &off, &len);
    op_write (s, off, MIN (len, 10000));
  }
  s->node->backing = NULL;
  assert_int_equal (blk_close (s->node), 0);
  s->node = open_layer (&s->file, is_read_only, below ? below->node : NULL);
}

/* Reading what has been prefetched reads all of that and nothing else. */
static void
check_prefetch (struct subject s[NR_LAYERS], uint64_t off, uint64_t len)
{
  struct subject *top = &s[NR_LAYERS - 1];
  unsigned i;

  /* It may read tables. */
  check_content (top, off, len);
  for (i = 0; i < NR_LAYERS; i++)
    file_watch (&s[i].file);
  assert_int_equal (blk_cache (top->node, len, off), 0);
  check_content (top, off, len);
  for (i = 0; i < NR_LAYERS; i++)
    assert_true (file_unwatch (&s[i].file));
}

/* A client cannot have all of a large disk read. */
static void
test_prefetch_is_bounded (void **state)
{
  const uint64_t limit = UINT64_C (32) << 20;
  struct subject s;

  subject_create (&s, 2 * limit, 65536, 0, false);
  op_write (&s, 0, 65536);
  op_write (&s, limit, 65536);
  assert_int_equal (blk_flush (s.node), 0);
  file_watch (&s.file);
  assert_int_equal (blk_cache (s.node, 2 * limit, 0), 0);
  check_content (&s, 0, 65536);
  assert_true (file_unwatch (&s.file));
  assert_int_equal (blk_close (s.node), 0);
  subject_destroy (&s);
}

/* Reads of all lengths in any order, which remember and recall layers, and
 * extents, through layers of different sizes, with clusters alike or not.
 */
static void
test_chain (void **state)
{
  struct subject s[NR_LAYERS], *top = &s[NR_LAYERS - 1];
  uint64_t off, len;

  for (unsigned round = 0; round < 4; round++) {
    for (unsigned i = 0; i < NR_LAYERS; i++)
      make_layer (&s[i], i, i ? &s[i - 1] : NULL,
                  1024u << (round < 2 ? i % 3 : round % 2),
                  round || &s[i] != top);
    for (unsigned k = 0; k < CHAIN_READS; k++) {
      random_range (top, &off, &len);
      check_content (top, off, rnd (2) ? len : MIN (len, 700));
      if (k % 10 == 0)
        check_extents (top, off, len);
      if (k % 10 == 1)
        check_prefetch (s, off, len);
    }
    assert_int_equal (blk_close (top->node), 0);
    for (unsigned i = 0; i < NR_LAYERS; i++)
      subject_destroy (&s[i]);
  }
}

/* --- writers in parallel */

#define NR_THREADS 4
#define SECTORS (UINT64_C (64) * 16)

struct writer {
  struct subject *s;
  unsigned nr;
};

/* Each thread writes its own sectors of all clusters. */
static void *
run_writer (void *opaque)
{
  struct writer *w = opaque;
  uint8_t buf[512];
  uint64_t i, off;

  memset (buf, (int) w->nr + 1, sizeof buf);
  for (i = 0; i < SECTORS / NR_THREADS; i++) {
    off = (i * NR_THREADS + w->nr) * 512;
    if (blk_pwrite (w->s->node, buf, 512, off, 0) < 0)
      abort ();
    if (i % 50 == 49 && blk_flush (w->s->node) < 0)
      abort ();
    if (i % 7 == 0 && (blk_zero (w->s->node, 512, off, 0) < 0
                       || blk_pread (w->s->node, buf, 512, off, 0) < 0
                       || !is_zero_buffer (buf, 512)))
      abort ();
    memset (buf, (int) w->nr + 1, sizeof buf);
  }
  return NULL;
}

static void
test_parallel (void **state)
{
  struct writer writers[NR_THREADS];
  pthread_t threads[NR_THREADS];
  struct subject s;

  for (unsigned round = 0; round < 6; round++) {
    /* Clusters of 8 sectors, with and without a base. */
    subject_create (&s, SECTORS * 512, 4096, round % 2 ? SECTORS * 512 : 0,
                    false);
    for (unsigned i = 0; i < NR_THREADS; i++) {
      writers[i] = (struct writer) { &s, i };
      assert_int_equal (pthread_create (&threads[i], NULL, run_writer,
                                        &writers[i]), 0);
    }
    for (unsigned i = 0; i < NR_THREADS; i++)
      pthread_join (threads[i], NULL);
    for (uint64_t i = 0; i < SECTORS; i++)
      memset (s.model + i * 512,
              i / NR_THREADS % 7 == 0 ? 0 : (int) (i % NR_THREADS) + 1, 512);
    check_content (&s, 0, s.size);
    assert_int_equal (blk_close (s.node), 0);
    check_image (&s, 0);
    subject_destroy (&s);
  }
}

int
main (int argc, char *argv[])
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_random),
    cmocka_unit_test (test_grow_on_device),
    cmocka_unit_test (test_refcount_widths),
    cmocka_unit_test (test_reftable_growth),
    cmocka_unit_test (test_no_header_before_flush),
    cmocka_unit_test (test_spill),
    cmocka_unit_test (test_reuse),
    cmocka_unit_test (test_reserve),
    cmocka_unit_test (test_append),
    cmocka_unit_test (test_overlaps),
    cmocka_unit_test (test_chain),
    cmocka_unit_test (test_prefetch_is_bounded),
    cmocka_unit_test (test_parallel),
  };

  if (argc > 1)
    seed = (unsigned) strtoul (argv[1], NULL, 0);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
