/* SPDX-License-Identifier: BSD-3-Clause */
/* How much of a qcow2 image's metadata is in memory: the sizes that may be
 * given and what they come to; with the least of them random writes, zeroes and
 * trims over an image with hundreds of tables, by one and by several threads,
 * leave what a model holds, and there are never more slices than that allows.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "qcow2-image.h"
#include "qcow2.h"

#define KIB UINT64_C (1024)
#define MIB (1024 * KIB)
#define ALL UINT64_MAX

static const struct {
  struct qcow2_cache_sizes sizes;
  bool is_read_only, is_extended;
  size_t l2, refcount;          /* slices of 16 KiB, of 8 GiB of disk */
} limits[] = {
  { { 0 }, false, false, 2048, 64 },
  { { 0 }, true, false, 128, 64 },
  { { 0 }, false, true, 2048, 64 },
  { { .has_total = true, .total = MIB }, false, false, 48, 16 },
  { { .has_total = true, .total = 4 * MIB }, false, false, 64, 192 },
  { { .has_total = true, .total = 4 * MIB }, false, true, 128, 128 },
  { { .has_total = true, .total = MIB + 256 * KIB }, false, false, 64, 16 },
  { { .has_total = true, .total = MIB + 272 * KIB }, false, false, 64, 17 },
  { { .has_total = true, .total = 0 }, false, false, 2, 16 },
  { { .has_total = true, .total = 100 * KIB }, true, false, 2, 16 },
  { { .has_l2 = true, .l2 = 0 }, false, false, 2, 64 },
  { { .has_l2 = true, .l2 = 160 * KIB }, true, false, 10, 64 },
  { { .has_l2 = true, .l2 = 40 * MIB }, false, false, 2560, 64 },
  { { .has_refcount = true, .refcount = 0 }, false, false, 2048, 16 },
  { { .has_refcount = true, .refcount = 2 * MIB }, true, false, 128, 128 },
  { { .has_total = true, .total = MIB, .has_l2 = true, .l2 = 256 * KIB },
    false, false, 16, 48 },
  { { .has_total = true, .total = MIB, .has_l2 = true, .l2 = MIB },
    false, false, 64, 16 },
  { { .has_l2 = true, .l2 = ALL }, false, false, ALL >> 14, 64 },
  { { .has_total = true, .total = MIB, .has_refcount = true,
      .refcount = 512 * KIB }, false, false, 32, 32 },
  { { .has_total = true, .total = MIB, .has_refcount = true,
      .refcount = 64 * KIB }, false, false, 60, 16 },
  { { .has_l2 = true, .l2 = 64 * KIB, .has_refcount = true,
      .refcount = 512 * KIB }, false, false, 4, 32 },
};

static const struct {
  struct qcow2_cache_sizes sizes;
  const char *message;
} refused[] = {
  { { .has_total = true, .total = MIB, .has_l2 = true, .has_refcount = true },
    "cache-size, l2-cache-size and refcount-cache-size may not be set at the"
    " same time" },
  { { .has_total = true, .total = MIB, .has_l2 = true, .l2 = MIB + 1 },
    "l2-cache-size may not exceed cache-size" },
  { { .has_total = true, .has_refcount = true, .refcount = 1 },
    "refcount-cache-size may not exceed cache-size" },
  { { .has_refcount = true, .refcount = ALL }, "Refcount cache size too big" },
  { { .has_total = true, .total = ALL }, "Refcount cache size too big" },
};

static const struct qcow2_header header = {
  .version = 3, .cluster_bits = 16, .size = 8192 * MIB, .refcount_order = 4,
};

static void
test_limits (void **state)
{
  for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
    struct qcow2_cache_limits got;
    struct qcow2_header h = header;
    struct error err = ERROR_INIT;

    if (limits[i].is_extended)
      h.incompatible = QCOW2_INCOMPAT_EXTENDED_L2;
    if (qcow2_cache_set (&limits[i].sizes, &h, 14, limits[i].is_read_only,
                         &got, &err) < 0)
      fail_msg ("%zu: %s", i, err.msg);
    if (got.max_slices[QCOW2_L2] != limits[i].l2
        || got.max_slices[QCOW2_REFCOUNT] != limits[i].refcount)
      fail_msg ("%zu: %zu and %zu slices", i, got.max_slices[QCOW2_L2],
                got.max_slices[QCOW2_REFCOUNT]);
    for (unsigned kind = 0; kind < 2; kind++)
      assert_in_range (got.max_dirty[kind], 1, got.max_slices[kind] / 2);
  }
}

static void
test_refused (void **state)
{
  for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
    struct qcow2_cache_limits got;
    struct error err = ERROR_INIT;

    assert_int_equal (qcow2_cache_set (&refused[i].sizes, &header, 14, false,
                                       &got, &err), -EINVAL);
    assert_string_equal (err.msg, refused[i].message);
  }
}

/* The size of a slice, by what is asked for and the log2 of a cluster. */
static void
test_slices (void **state)
{
  static const struct {
    uint64_t size;
    unsigned cluster_bits, bits;        /* 0 = refused */
  } cases[] = {
    { 512, 9, 9 }, { 512, 16, 9 }, { 4096, 16, 12 }, { 16384, 16, 14 },
    { 32768, 16, 14 }, { 65536, 16, 14 }, { 2 * MIB, 21, 14 },
    { 0, 16, 0 }, { 256, 16, 0 }, { 1000, 16, 0 }, { 1024, 9, 0 },
    { 131072, 16, 0 }, { UINT64_C (1) << 32, 16, 0 }, { ALL, 21, 0 },
  };
  struct qcow2_cache_sizes sizes = { 0 };
  struct qcow2_header h = header;
  unsigned bits;

  assert_int_equal (qcow2_cache_slice (&sizes, &h, &bits, NULL), 0);
  assert_int_equal (bits, 14);
  sizes.has_l2_entry = true;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    struct error err = ERROR_INIT;

    sizes.l2_entry = cases[i].size;
    h.cluster_bits = cases[i].cluster_bits;
    if (cases[i].bits) {
      assert_int_equal (qcow2_cache_slice (&sizes, &h, &bits, &err), 0);
      assert_int_equal (bits, cases[i].bits);
      continue;
    }
    assert_int_equal (qcow2_cache_slice (&sizes, &h, &bits, &err), -EINVAL);
    assert_non_null (strstr (err.msg, "L2 cache entry size must be a power of"
                             " two between 512 and the cluster size ("));
  }
}

/* --- an image with more tables than slices */

#define CLUSTER 512
#define NR_TABLES 256
#define DISK (NR_TABLES * UINT64_C (64) * CLUSTER)
#define NR_THREADS 4
#define PART (DISK / NR_THREADS)
#define OPS 1500

struct image {
  struct file file;
  uint32_t cluster_size;
  struct blk *node;
  uint8_t *model;
};

static struct qcow2 *
open_image (struct image *im, const struct qcow2_cache_sizes *sizes)
{
  struct qcow2_open_options options = { .cache = *sizes };
  struct error err = ERROR_INIT;

  if (blk_qcow2_open (file_node (&im->file), &options, &im->node, &err) < 0)
    fail_msg ("%s", err.msg);
  return (struct qcow2 *) im->node;
}

/* One that has all of its tables. */
static void
image_init (struct image *im, uint32_t cluster_size)
{
  struct qcow2_create_options options = {
    .size = DISK, .cluster_size = cluster_size,
  };
  struct error err = ERROR_INIT;

  im->cluster_size = cluster_size;
  file_init (&im->file, 64 * MIB);
  im->model = calloc (1, DISK);
  assert_int_equal (blk_qcow2_create (file_node (&im->file), &options,
                                      &im->node, &err), 0);
  for (unsigned i = 0; i < NR_TABLES; i++) {
    im->model[i * 64 * CLUSTER] = 1;
    assert_int_equal (blk_pwrite (im->node, "\1", 1, i * 64 * CLUSTER, 0), 0);
  }
  assert_int_equal (blk_close (im->node), 0);
}

static void
image_fini (struct image *im)
{
  struct image_report report;

  assert_int_equal (blk_close (im->node), 0);
  image_check (im->file.bytes, im->file.size, &report);
  if (report.error)
    fail_msg ("%s: %llu", report.error, (unsigned long long) report.where);
  assert_int_equal (report.nr_leaks, 0);
  file_destroy (&im->file);
  free (im->model);
}

static uint64_t
rnd (uint64_t *state, uint64_t n)
{
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return (*state >> 11) % n;
}

/* One random change of a range of clusters in [first, first + PART). */
static int
change (struct image *im, uint64_t first, uint64_t *state)
{
  uint64_t off = first + rnd (state, PART / im->cluster_size)
    * im->cluster_size;
  uint64_t len = (1 + rnd (state, 80 * CLUSTER / im->cluster_size))
    * im->cluster_size;
  uint8_t *m = im->model + off;

  len = MIN (len, first + PART - off);
  switch (rnd (state, 4)) {
  case 0:
    memset (m, 0, len);
    return blk_zero (im->node, len, off, BLK_MAY_UNMAP);
  case 1:
    memset (m, 0, len);
    return blk_trim (im->node, len, off, 0);
  default:
    memset (m, (int) rnd (state, 256), len);
    return blk_pwrite (im->node, m, len, off, 0);
  }
}

static void
check_content (struct image *im)
{
  uint8_t *buf = malloc (DISK);

  assert_int_equal (blk_pread (im->node, buf, DISK, 0, 0), 0);
  assert_memory_equal (buf, im->model, DISK);
  free (buf);
}

/* A step of this image changes one table, and blocks for 64 clusters, which may
 * lie anywhere: slack slices each.
 */
static void
assert_bounded (const struct qcow2 *q, size_t slack)
{
  size_t max = q->limits.max_slices[QCOW2_REFCOUNT];

  assert_in_range (q->nr_slices[QCOW2_L2], 1,
                   q->limits.max_slices[QCOW2_L2] + slack);
  assert_in_range (q->nr_slices[QCOW2_REFCOUNT], 0, max + slack);
}

static void
test_bounded (void **state)
{
  static const struct qcow2_cache_sizes sizes[] = {
    { .has_total = true }, { .has_l2 = true, .l2 = 5000 },
    { .has_refcount = true },
    { .has_total = true, .total = 20000, .has_l2 = true, .l2 = 10000 },
  };
  uint64_t r = UINT64_C (0x9e3779b97f4a7c15);
  struct image im;
  struct qcow2 *q;

  image_init (&im, CLUSTER);
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    q = open_image (&im, &sizes[i]);
    for (unsigned k = 0; k < OPS; k++) {
      assert_int_equal (change (&im, rnd (&r, NR_THREADS) * PART, &r), 0);
      assert_bounded (q, 2);
      if (rnd (&r, 100) == 0)
        assert_int_equal (blk_flush (im.node), 0);
    }
    check_content (&im);
    assert_bounded (q, 0);
    assert_int_equal (blk_close (im.node), 0);
  }
  q = open_image (&im, &sizes[0]);
  check_content (&im);
  image_fini (&im);
}

/* Eight slices a table. */
static void
test_parts_of_tables (void **state)
{
  static const struct qcow2_cache_sizes least = {
    .has_total = true, .has_l2_entry = true, .l2_entry = 512,
  };
  uint64_t r = UINT64_C (0x9e3779b97f4a7c15);
  struct image im;
  struct qcow2 *q;

  image_init (&im, 8 * CLUSTER);
  q = open_image (&im, &least);
  assert_int_equal (q->slice_bits, 9);
  for (unsigned k = 0; k < OPS; k++) {
    assert_int_equal (change (&im, rnd (&r, NR_THREADS) * PART, &r), 0);
    assert_bounded (q, 2);
  }
  check_content (&im);
  assert_int_equal (blk_flush (im.node), 0);
  check_content (&im);
  image_fini (&im);
}

struct worker {
  pthread_t thread;
  struct image *image;
  unsigned number;
  int error;
};

static void *
work (void *vp)
{
  struct worker *w = vp;
  uint64_t r = w->number + 1;

  for (unsigned k = 0; k < OPS / 2 && w->error == 0; k++)
    w->error = change (w->image, w->number * PART, &r);
  return NULL;
}

static void
test_threads (void **state)
{
  const struct qcow2_cache_sizes least = { .has_total = true };
  struct worker workers[NR_THREADS];
  struct image im;
  struct qcow2 *q;

  image_init (&im, CLUSTER);
  q = open_image (&im, &least);
  for (unsigned i = 0; i < NR_THREADS; i++) {
    workers[i] = (struct worker) { .image = &im, .number = i };
    assert_int_equal (pthread_create (&workers[i].thread, NULL, work,
                                      &workers[i]), 0);
  }
  for (unsigned i = 0; i < NR_THREADS; i++) {
    pthread_join (workers[i].thread, NULL);
    assert_int_equal (workers[i].error, 0);
  }
  check_content (&im);
  assert_int_equal (blk_flush (im.node), 0);
  check_content (&im);
  assert_bounded (q, 0);
  image_fini (&im);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_limits),
    cmocka_unit_test (test_refused),
    cmocka_unit_test (test_slices),
    cmocka_unit_test (test_bounded),
    cmocka_unit_test (test_parts_of_tables),
    cmocka_unit_test (test_threads),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
