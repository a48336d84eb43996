/* SPDX-License-Identifier: BSD-3-Clause */
/* sums.c and sha256.c: hashes against GnuTLS, files against a model, threads
 * that complete ranges in any order, failing writes, malformed files.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "byteorder.h"
#include "range.h"
#include "sums.h"
#include "unit.h"

#define CLUSTER 4096u

static int
memory_file (void)
{
  int fd = memfd_create ("sums", MFD_CLOEXEC);

  assert_true (fd >= 0);
  return fd;
}

static void
fill (uint8_t *buf, size_t len, uint64_t seed)
{
  uint64_t state = seed * 2 + 1;
  size_t i;

  for (i = 0; i < len; i++)
    buf[i] = (uint8_t) (unit_random (&state) >> 32);
}

/* FIPS 180-4's examples, by way of both methods. */
static void
test_sha256_known (void **state)
{
  static const uint8_t abc[] = {
    0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40,
    0xde, 0x5d, 0xae, 0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17,
    0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad,
  };
  uint8_t hash[SHA256_SIZE];

  sha256_hash ("abc", 3, hash);
  assert_memory_equal (hash, abc, sizeof abc);
}

static void
test_sha256_blocks (void **state)
{
  static const size_t lens[] = { 64, 128, 512, 4096 };
  static const size_t counts[] = { 1, 2, 15, 16, 17, 33 };
  uint8_t *buf = malloc (33 * 4096), got[33 * 32], expected[33 * 32];
  size_t i, j;

  fill (buf, 33 * 4096, 1);
  for (i = 0; i < 4; i++)
    for (j = 0; j < 6; j++) {
      size_t n;

      memset (got, 0, sizeof got);
      sha256_blocks (buf, counts[j], lens[i], got);
      for (n = 0; n < counts[j]; n++)
        assert_int_equal (gnutls_hash_fast (
          GNUTLS_DIG_SHA256, buf + n * lens[i], lens[i], expected + n * 32),
          0);
      assert_memory_equal (got, expected, counts[j] * 32);
      sha256_set_generic (true);
      sha256_blocks (buf, counts[j], lens[i], got);
      sha256_set_generic (false);
      assert_memory_equal (got, expected, counts[j] * 32);
    }
  free (buf);
}

static void
test_cluster_hash (void **state)
{
  static const size_t lens[] = { 512, 4096, 4608, 65536, 65536 - 512 };
  static uint8_t buf[65536];
  uint8_t leaves[16 * 32], expected[32], got[32];
  size_t i, off, nr;

  fill (buf, sizeof buf, 2);
  for (i = 0; i < 5; i++) {
    for (off = 0, nr = 0; off < lens[i]; off += 4096, nr++)
      sha256_hash (buf + off, MIN (4096, lens[i] - off), leaves + nr * 32);
    sha256_hash (leaves, nr * 32, expected);
    sums_hash_cluster (buf, lens[i], got);
    assert_memory_equal (got, expected, 32);
  }
}

static const struct sums_header header = {
  .cluster_size = CLUSTER, .virtual_size = 1000 * CLUSTER + 512,
  .number = 7, .point = { { 1, 2, 3 } },
};

/* What each cluster of the disk is: 0 absent, 1 data, 2 zero. */
struct model {
  uint8_t kind[1001];
};

static void
cluster_content (uint64_t cluster, bool is_zero, uint8_t *buf)
{
  if (is_zero)
    memset (buf, 0, CLUSTER);
  else
    fill (buf, CLUSTER, cluster + 100);
}

static uint64_t
item_len (uint64_t first, uint64_t count)
{
  uint64_t off = first * CLUSTER;

  return MIN (count * CLUSTER, header.virtual_size - off);
}

/* Read the file back and hold it against the model. */
static void
check_file (int fd, const struct model *m, const uint8_t root[32])
{
  struct error err = ERROR_INIT;
  struct sums_reader *r;
  struct sums_record rec, last = { .type = SUMS_END };
  struct model got;
  static uint8_t buf[CLUSTER];
  uint8_t hash[32];
  uint64_t i;
  int e;

  memset (&got, 0, sizeof got);
  lseek (fd, 0, SEEK_SET);
  assert_int_equal (sums_reader_new (dup (fd), "sums", &r, &err), 0);
  assert_int_equal (sums_reader_header (r)->number, 7);
  assert_int_equal (sums_reader_header (r)->point.bytes[2], 3);
  while ((e = sums_reader_next (r, &rec, &err)) > 0) {
    if (last.type == rec.type && last.first + last.count == rec.first)
      assert_true (rec.type == SUMS_DATA && last.count == 4096);
    last = rec;
    for (i = 0; i < rec.count; i++) {
      got.kind[rec.first + i] = (uint8_t) rec.type;
      if (rec.type != SUMS_DATA)
        continue;
      cluster_content (rec.first + i, false, buf);
      sums_hash_cluster (buf, item_len (rec.first + i, 1), hash);
      assert_memory_equal (hash, rec.hashes + i * 32, 32);
    }
  }
  assert_int_equal (e, 0);
  sums_reader_root (r, hash);
  assert_memory_equal (hash, root, 32);
  assert_memory_equal (got.kind, m->kind, sizeof got.kind);
  sums_reader_free (r);
}

/* Ranges reserved in order and set in another order, many times. */
static void
run_model (uint64_t seed, bool skip_zero)
{
  struct model m;
  struct sums_writer *w;
  struct { uint64_t first, count; } pending[100];
  uint64_t rnd = seed, pos = 0, i, j;
  uint8_t *buf = malloc (40 * CLUSTER), root[32];
  size_t nr = 0;
  int fd = memory_file ();

  memset (&m, 0, sizeof m);
  assert_int_equal (sums_writer_new (fd, &header, skip_zero, &w), 0);
  while (pos < 1001 || nr > 0) {
    if (pos < 1001 && nr < 100 && unit_random (&rnd) % 3) {
      uint64_t count = 1 + unit_random (&rnd) % 40;
      bool is_zero = unit_random (&rnd) % 4 == 0;

      count = MIN (count, 1001 - pos);
      assert_int_equal (sums_reserve (w, pos * CLUSTER, item_len (pos, count),
                                      is_zero), 0);
      if (is_zero)
        memset (m.kind + pos, skip_zero ? 0 : 2, count);
      else {
        pending[nr].first = pos;
        pending[nr++].count = count;
      }
      pos += count + unit_random (&rnd) % 3 * 5;
    }
    else if (nr > 0) {
      i = unit_random (&rnd) % nr;
      for (j = 0; j < pending[i].count; j++) {
        bool is_zero = unit_random (&rnd) % 5 == 0;

        cluster_content (pending[i].first + j, is_zero, buf + j * CLUSTER);
        m.kind[pending[i].first + j] = !is_zero ? 1 : skip_zero ? 0 : 2;
      }
      assert_int_equal (sums_set (w, pending[i].first * CLUSTER,
                                  item_len (pending[i].first,
                                            pending[i].count), buf), 0);
      pending[i] = pending[--nr];
    }
  }
  assert_int_equal (sums_finish (w, root), 0);
  sums_writer_free (w);
  check_file (fd, &m, root);
  close (fd);
  free (buf);
}

static void
test_model (void **state)
{
  uint64_t seed;

  for (seed = 1; seed <= 40; seed++)
    run_model (seed, seed % 2);
}

/* A run of data longer than a record. */
static void
test_long_run (void **state)
{
  const struct sums_header h = {
    .cluster_size = 512, .virtual_size = UINT64_C (512) * 10000,
  };
  struct error err = ERROR_INIT;
  struct sums_writer *w;
  struct sums_reader *r;
  struct sums_record rec;
  struct sums_totals totals;
  uint8_t buf[512] = { 1 }, root[32];
  uint64_t i, counts[3] = { 4096, 4096, 10000 - 2 * 4096 };
  int fd = memory_file ();

  assert_int_equal (sums_writer_new (fd, &h, false, &w), 0);
  for (i = 0; i < 10000; i++) {
    assert_int_equal (sums_reserve (w, i * 512, 512, false), 0);
    assert_int_equal (sums_set (w, i * 512, 512, buf), 0);
  }
  assert_int_equal (sums_finish (w, root), 0);
  sums_writer_totals (w, &totals);
  assert_int_equal (totals.data_clusters, 10000);
  sums_writer_free (w);
  lseek (fd, 0, SEEK_SET);
  assert_int_equal (sums_reader_new (fd, "sums", &r, &err), 0);
  for (i = 0; i < 3; i++) {
    assert_int_equal (sums_reader_next (r, &rec, &err), 1);
    assert_int_equal (rec.first, i * 4096);
    assert_int_equal (rec.count, counts[i]);
  }
  assert_int_equal (sums_reader_next (r, &rec, &err), 0);
  sums_reader_free (r);
}

struct racer {
  struct sums_writer *w;
  pthread_mutex_t lock;
  uint64_t next;
};

static void *
race_thread (void *opaque)
{
  struct racer *r = opaque;
  uint8_t buf[CLUSTER];
  uint64_t i;

  for (;;) {
    pthread_mutex_lock (&r->lock);
    i = r->next++;
    if (i < 1001)
      assert_int_equal (sums_reserve (r->w, i * CLUSTER, item_len (i, 1),
                                      false), 0);
    pthread_mutex_unlock (&r->lock);
    if (i >= 1001)
      return NULL;
    cluster_content (i, false, buf);
    assert_int_equal (sums_set (r->w, i * CLUSTER, item_len (i, 1), buf), 0);
  }
}

static void
test_threads (void **state)
{
  struct racer r = { .lock = PTHREAD_MUTEX_INITIALIZER };
  pthread_t threads[4];
  struct model m;
  uint8_t root[32];
  int fd = memory_file (), i;

  memset (&m, 1, sizeof m);
  assert_int_equal (sums_writer_new (fd, &header, false, &r.w), 0);
  for (i = 0; i < 4; i++)
    assert_int_equal (pthread_create (&threads[i], NULL, race_thread, &r), 0);
  for (i = 0; i < 4; i++)
    pthread_join (threads[i], NULL);
  assert_int_equal (sums_finish (r.w, root), 0);
  sums_writer_free (r.w);
  check_file (fd, &m, root);
  close (fd);
}

static void
test_write_error (void **state)
{
  struct sums_writer *w;
  uint8_t root[32];
  int fd = open ("/dev/full", O_WRONLY | O_CLOEXEC);

  assert_int_equal (sums_writer_new (fd, &header, false, &w), 0);
  assert_int_equal (sums_finish (w, root), -ENOSPC);
  sums_writer_free (w);
  close (fd);
}

static void
test_misuse (void **state)
{
  struct sums_writer *w;
  uint8_t buf[CLUSTER] = { 1 }, root[32];
  int fd = memory_file ();

  assert_int_equal (sums_writer_new (fd, &header, false, &w), 0);
  assert_int_equal (sums_reserve (w, 0, CLUSTER, false), 0);
  assert_int_equal (sums_set (w, CLUSTER, CLUSTER, buf), -EINVAL);
  assert_int_equal (sums_set (w, 0, 2 * CLUSTER, buf), -EINVAL);
  /* One range is open yet. */
  assert_int_equal (sums_finish (w, root), -EINVAL);
  assert_int_equal (sums_set (w, 0, CLUSTER, buf), 0);
  assert_int_equal (sums_set (w, 0, CLUSTER, buf), -EINVAL);
  assert_int_equal (sums_finish (w, root), 0);
  sums_writer_free (w);
  close (fd);
}

/* A good file of one data record, one zero record and the end. */
static size_t
good_file (uint8_t *buf)
{
  struct sums_writer *w;
  static uint8_t data[2 * CLUSTER];
  uint8_t root[32];
  int fd = memory_file ();
  ssize_t n;

  fill (data, sizeof data, 9);
  assert_int_equal (sums_writer_new (fd, &header, false, &w), 0);
  assert_int_equal (sums_reserve (w, 0, sizeof data, false), 0);
  assert_int_equal (sums_reserve (w, 8 * CLUSTER, CLUSTER, true), 0);
  assert_int_equal (sums_set (w, 0, sizeof data, data), 0);
  assert_int_equal (sums_finish (w, root), 0);
  sums_writer_free (w);
  n = pread (fd, buf, 1024, 0);
  assert_int_equal (n, 64 + 24 + 64 + 24 + 24);
  close (fd);
  return (size_t) n;
}

/* 0: read to its end without an error. */
static int
read_file (const uint8_t *buf, size_t len)
{
  struct error err = ERROR_INIT;
  struct sums_reader *r;
  struct sums_record rec;
  int e, fd = memory_file ();

  assert_int_equal (pwrite (fd, buf, len, 0), len);
  e = sums_reader_new (fd, "sums", &r, &err);
  if (e == 0) {
    while ((e = sums_reader_next (r, &rec, &err)) > 0)
      ;
    sums_reader_free (r);
  }
  if (e < 0)
    assert_true (strstr (err.msg, "sums") != NULL);
  return e;
}

static void
test_malformed (void **state)
{
  enum { DATA = 64, ZERO = 64 + 24 + 64, END = ZERO + 24 };
  static const struct { size_t at, size; uint64_t value; } damages[] = {
    { 0, 1, 'X' }, { 8, 4, 2 }, { 12, 4, 63 }, { 16, 4, 0 }, { 16, 4, 1000 },
    { 16, 4, 1 << 22 }, { 20, 4, 2 }, { 24, 8, UINT64_MAX },
    { DATA, 4, 3 }, { DATA + 4, 4, 1 }, { DATA + 16, 8, 0 },
    { DATA + 16, 8, 4097 }, { DATA + 16, 8, UINT64_MAX },
    { DATA + 8, 8, UINT64_MAX }, { DATA + 8, 8, 1000 },
    { ZERO + 8, 8, 1 }, { ZERO + 16, 8, 994 }, { ZERO + 16, 8, UINT64_MAX },
    { END + 8, 8, 3 }, { END + 16, 8, 2 }, { END, 4, 4 }, { END + 4, 4, 1 },
  };
  uint8_t good[1024], bad[1024];
  size_t len = good_file (good), i;

  assert_int_equal (read_file (good, len), 0);
  for (i = 0; i < sizeof damages / sizeof damages[0]; i++) {
    memcpy (bad, good, len);
    switch (damages[i].size) {
    case 1: bad[damages[i].at] = (uint8_t) damages[i].value; break;
    case 4: store_be32 (bad + damages[i].at, (uint32_t) damages[i].value);
      break;
    default: store_be64 (bad + damages[i].at, damages[i].value);
    }
    if (read_file (bad, len) >= 0)
      fail_msg ("damage %zu was not noticed", i);
  }
  for (i = 0; i < len; i++)
    assert_true (read_file (good, i) < 0);
  memcpy (bad, good, len);
  bad[len] = 0;
  assert_true (read_file (bad, len + 1) < 0);
}

static void
test_hex (void **state)
{
  uint8_t hash[32], back[32];
  char hex[SUMS_HEX_SIZE];

  fill (hash, 32, 4);
  sums_hash_format (hash, hex);
  assert_int_equal (strlen (hex), 64);
  assert_int_equal (sums_hash_parse (hex, back), 0);
  assert_memory_equal (hash, back, 32);
  hex[10] = 'G';
  assert_int_equal (sums_hash_parse (hex, back), -EINVAL);
  assert_int_equal (sums_hash_parse ("ab", back), -EINVAL);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_sha256_known),
    cmocka_unit_test (test_sha256_blocks),
    cmocka_unit_test (test_cluster_hash),
    cmocka_unit_test (test_model),
    cmocka_unit_test (test_long_run),
    cmocka_unit_test (test_threads),
    cmocka_unit_test (test_write_error),
    cmocka_unit_test (test_misuse),
    cmocka_unit_test (test_malformed),
    cmocka_unit_test (test_hex),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
