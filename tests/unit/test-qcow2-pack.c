/* SPDX-License-Identifier: BSD-3-Clause */
/* Compressed writes against a model, mixed with all others, on new and
 * reopened images; from several threads; each image checked by counting.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "blk-qcow2.h"
#include "qcow2-check.h"
#include "qcow2-image.h"
#include "range.h"
#include "unit.h"

#define CAPACITY (UINT64_C (36) << 20)
#define MAX_DISK (UINT64_C (2) << 20)

static struct error err;

static uint64_t
rnd (uint64_t n)
{
  static uint64_t state = UINT64_C (88172645463325252);

  return unit_random (&state) % n;
}

static void
must (int r)
{
  if (r < 0)
    fail_msg ("%d: %s", r, err.msg);
}

/* Data that shrinks by some amount, or not at all. */
static void
fill (uint8_t *buf, uint64_t len)
{
  uint64_t noise = rnd (5);

  for (uint64_t i = 0; i < len; i++)
    buf[i] = (uint8_t) (i % 16 < noise * 4 ? rnd (256) : 'a' + noise);
}

static void
assert_sound (struct file *f)
{
  struct qcow2_check_options options = { .repair = QCOW2_REPAIR_NONE };
  struct qcow2_check_result result;

  must (blk_qcow2_check (file_node (f), &options, &result, &err));
  assert_int_equal (result.corruptions, 0);
  assert_int_equal (result.leaks, 0);
}

static void
step (struct blk *blk, uint8_t *model, uint32_t cluster)
{
  uint64_t size = blk_size (blk), off = rnd (size), len;
  static uint8_t buf[MAX_DISK];

  len = 1 + rnd (MIN (size - off, cluster * UINT64_C (4)));
  switch (rnd (6)) {
  case 0:
    must (blk_zero (blk, len, off, BLK_MAY_UNMAP));
    memset (model + off, 0, len);
    return;
  case 1:
    fill (buf, len);
    must (blk_pwrite (blk, buf, len, off, 0));
    break;
  case 2:
    /* Parts of clusters too. */
    fill (buf, len);
    must (blk_pwrite (blk, buf, len, off, BLK_COMPRESS));
    break;
  default:
    off = round_down (off, cluster);
    len = MIN (round_up (len, cluster), size - off);
    fill (buf, len);
    must (blk_pwrite (blk, buf, len, off, BLK_COMPRESS));
  }
  memcpy (model + off, buf, len);
}

static void
check_model (struct blk *blk, const uint8_t *model)
{
  static uint8_t buf[MAX_DISK];

  must (blk_pread (blk, buf, blk_size (blk), 0, 0));
  assert_memory_equal (buf, model, blk_size (blk));
}

static void
check_random (const struct qcow2_create_options *options)
{
  struct qcow2_open_options open = { .is_read_only = false };
  uint8_t *model = calloc (1, options->size);
  struct file f;
  struct blk *blk;

  file_init (&f, CAPACITY);
  must (blk_qcow2_create (file_node (&f), options, &blk, &err));
  for (unsigned round = 0; round < 5; round++) {
    for (unsigned i = 0; i < 60; i++) {
      step (blk, model, options->cluster_size);
      if (rnd (20) == 0)
        must (blk_flush (blk));
    }
    check_model (blk, model);
    must (blk_close (blk));
    assert_sound (&f);
    must (blk_qcow2_open (file_node (&f), &open, &blk, &err));
    check_model (blk, model);
    file_watch (&f);
    must (blk_cache (blk, options->size, 0));
    check_model (blk, model);
    assert_true (file_unwatch (&f));
  }
  must (blk_close (blk));
  file_destroy (&f);
  free (model);
}

static void
test_random (void **state)
{
  static const uint32_t clusters[] = { 512, 4096, 65536 };
  struct qcow2_create_options options = { .version = 3 };

  for (unsigned i = 0; i < 12; i++) {
    options.cluster_size = clusters[i % 3];
    options.size = MIN (MAX_DISK, clusters[i % 3] * UINT64_C (200)) - 512;
    options.compression = i / 3 % 2 ? QCOW2_COMPRESSION_ZSTD
      : QCOW2_COMPRESSION_ZLIB;
    options.refcount_bits = i < 6 ? 16 : 1;
    check_random (&options);
  }
}

struct writer {
  struct blk *blk;
  uint64_t first;
  uint8_t *data;
};

static void *
write_thread (void *opaque)
{
  struct writer *w = opaque;

  for (uint64_t i = w->first; i < 128; i += 4)
    if (blk_pwrite (w->blk, w->data + i * 4096, 4096, i * 4096,
                    BLK_COMPRESS) < 0)
      return w;
  return NULL;
}

static void
test_threads (void **state)
{
  struct qcow2_create_options options = {
    .size = 128 * 4096, .cluster_size = 4096,
    .compression = QCOW2_COMPRESSION_ZSTD,
  };
  struct qcow2_open_options open = { .is_read_only = true };
  struct writer writers[4];
  pthread_t threads[4];
  struct file f;
  struct blk *blk;
  uint8_t *data = malloc (options.size);
  void *failed;

  for (uint64_t i = 0; i < 128; i++)
    fill (data + i * 4096, 4096);
  file_init (&f, CAPACITY);
  must (blk_qcow2_create (file_node (&f), &options, &blk, &err));
  for (unsigned i = 0; i < 4; i++) {
    writers[i] = (struct writer) { blk, i, data };
    assert_int_equal (pthread_create (&threads[i], NULL, write_thread,
                                      &writers[i]), 0);
  }
  for (unsigned i = 0; i < 4; i++) {
    pthread_join (threads[i], &failed);
    assert_null (failed);
  }
  must (blk_close (blk));
  assert_sound (&f);
  must (blk_qcow2_open (file_node (&f), &open, &blk, &err));
  check_model (blk, data);
  must (blk_close (blk));
  file_destroy (&f);
  free (data);
}

/* Who cannot compress says so. */
static void
test_refused (void **state)
{
  struct qcow2_create_options options = {
    .size = 1 << 20, .cluster_size = 65536, .is_extended = true,
  };
  struct file f;
  struct blk *blk;
  char byte = 0;

  file_init (&f, CAPACITY);
  must (blk_qcow2_create (file_node (&f), &options, &blk, &err));
  assert_false (blk->can & BLK_CAN_COMPRESS);
  assert_int_equal (blk_pwrite (blk, &byte, 1, 0, BLK_COMPRESS), -EINVAL);
  must (blk_close (blk));
  file_destroy (&f);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_random),
    cmocka_unit_test (test_threads),
    cmocka_unit_test (test_refused),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
