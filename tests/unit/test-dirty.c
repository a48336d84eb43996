/* SPDX-License-Identifier: BSD-3-Clause */
/* dirty.c: QEMU's rules and messages, every state against a naive model after
 * each step, and (I1, I2) marks from threads while points are taken.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <setjmp.h>
#include <cmocka.h>

#include "dirty.h"

#define DISK_SIZE (UINT64_C (1024) * 1024 - 512)

static struct gate gate;
static struct dirty *d;

static int
setup (void **state)
{
  gate_init (&gate);
  assert_int_equal (dirty_new (DISK_SIZE, &gate, &d), 0);
  gate_close (&gate);
  return 0;
}

static int
teardown (void **state)
{
  gate_open (&gate);
  dirty_free (d);
  gate_destroy (&gate);
  return 0;
}

/* A write: the gate is open only meanwhile. */
static void
mark (uint64_t off, uint64_t len)
{
  gate_open (&gate);
  gate_enter (&gate);
  assert_int_equal (dirty_mark (d, off, len), 0);
  gate_leave (&gate);
  gate_close (&gate);
}

static struct error err;

/* The call, which sets err, fails like this. */
#define assert_error(call, e, text) \
  do { \
    memset (&err, 0, sizeof err); \
    assert_int_equal ((call), -(e)); \
    assert_int_equal (err.errnum, e); \
    assert_string_equal (err.msg, text); \
  } while (0)

static struct dirty_info
info_of (const char *name)
{
  struct dirty_bitmap *bm = dirty_find (d, name);
  struct dirty_info info;

  assert_non_null (bm);
  assert_int_equal (dirty_get_info (bm, &info), 0);
  assert_string_equal (info.name, name);
  free (info.name);
  info.name = NULL;
  dirty_unref (bm);
  return info;
}

static void
test_add (void **state)
{
  char name[DIRTY_NAME_MAX + 2], msg[64];
  struct dirty_info *infos;
  size_t nr;
  int i;

  assert_error (dirty_add (d, "", 0, false, &err), EINVAL,
                "Bitmap name cannot be empty");
  assert_error (dirty_add (d, "b", 256, false, &err), EINVAL,
                "Granularity must be power of 2 and at least 512");
  assert_error (dirty_add (d, "b", 65537, false, &err), EINVAL,
                "Granularity must be power of 2 and at least 512");
  assert_error (dirty_add (d, "b", UINT64_C (1) << 32, false, &err), EINVAL,
                "Granularity must be at most 2147483648, not 4294967296");
  assert_error (dirty_add (d, "a\xff", 0, false, &err), EILSEQ,
                "Bitmap name is not UTF-8");
  assert_error (dirty_add (d, "\xc0\xaf", 0, false, &err), EILSEQ,
                "Bitmap name is not UTF-8");
  assert_error (dirty_add (d, "\xed\xa0\x80", 0, false, &err), EILSEQ,
                "Bitmap name is not UTF-8");
  assert_error (dirty_add (d, "\xe2\x82", 0, false, &err), EILSEQ,
                "Bitmap name is not UTF-8");
  memset (name, 'n', sizeof name);
  name[DIRTY_NAME_MAX + 1] = '\0';
  assert_int_equal (dirty_add (d, name, 0, false, &err), -EINVAL);
  assert_memory_equal (err.msg, "Bitmap name too long: nnn", 25);
  name[DIRTY_NAME_MAX] = '\0';
  assert_int_equal (dirty_add (d, name, 512, true, NULL), 0);
  assert_int_equal (dirty_add (d, "\xe2\x82\xac\xf0\x9f\x92\xbe", 0, false,
                               NULL), 0);
  assert_int_equal (dirty_add (d, name + 1000, 0, false, NULL), 0);
  assert_error (dirty_add (d, name + 1000, 0, false, &err), EEXIST,
                "Bitmap already exists: nnnnnnnnnnnnnnnnnnnnnnn");
  assert_int_equal (dirty_list (d, &infos, &nr), 0);
  assert_int_equal (nr, 3);
  assert_string_equal (infos[0].name, name);
  assert_int_equal (infos[0].granularity, 512);
  assert_int_equal (infos[0].state, DIRTY_DISABLED);
  assert_int_equal (infos[1].granularity, DIRTY_DEFAULT_GRANULARITY);
  assert_int_equal (infos[1].state, DIRTY_RECORDING);
  assert_true (infos[1].is_recording);
  assert_false (infos[1].is_busy);
  assert_true (point_id_is_none (&infos[1].base));
  dirty_infos_free (infos, nr);

  for (i = 3; i < DIRTY_MAX_BITMAPS; i++) {
    snprintf (msg, sizeof msg, "b%d", i);
    assert_int_equal (dirty_add (d, msg, 0, false, NULL), 0);
  }
  assert_error (dirty_add (d, "more", 0, false, &err), ENOSPC,
                "Bitmap 'more': a disk can have at most 64 bitmaps");
  mark (0, DISK_SIZE);
  assert_int_equal (info_of ("b63").dirty_bytes, DISK_SIZE);
  assert_int_equal (info_of (name).dirty_bytes, 0);
}

static void
test_not_found (void **state)
{

  assert_error (dirty_remove (d, "x", &err), ENOENT,
                "Dirty bitmap 'x' not found");
  assert_error (dirty_clear (d, "x", &err), ENOENT,
                "Dirty bitmap 'x' not found");
  assert_error (dirty_enable (d, "x", &err), ENOENT,
                "Dirty bitmap 'x' not found");
  assert_error (dirty_disable (d, "x", &err), ENOENT,
                "Dirty bitmap 'x' not found");
  assert_error (dirty_merge (d, "x", NULL, 0, &err), ENOENT,
                "Dirty bitmap 'x' not found");
  assert_null (dirty_find (d, "x"));
}

static void
test_busy (void **state)
{
  static const char busy[] = "Bitmap 'b' is currently in use by another"
    " operation and cannot be used";
  struct dirty_bitmap *bm;

  assert_int_equal (dirty_add (d, "b", 0, false, NULL), 0);
  assert_int_equal (dirty_add (d, "c", 0, false, NULL), 0);
  bm = dirty_find (d, "b");
  assert_int_equal (dirty_freeze (d, bm, NULL), 0);
  assert_true (info_of ("b").is_busy);
  assert_true (info_of ("b").is_recording);
  assert_error (dirty_freeze (d, bm, &err), EBUSY, busy);
  assert_error (dirty_remove (d, "b", &err), EBUSY, busy);
  assert_error (dirty_clear (d, "b", &err), EBUSY, busy);
  assert_error (dirty_enable (d, "b", &err), EBUSY, busy);
  assert_error (dirty_disable (d, "b", &err), EBUSY, busy);
  assert_error (dirty_merge (d, "b", NULL, 0, &err), EBUSY, busy);
  assert_error (dirty_merge (d, "c", &bm, 1, &err), EBUSY, busy);
  assert_int_equal (dirty_resize (d, DISK_SIZE / 2), -EBUSY);
  dirty_merge_back (d, bm);
  assert_false (info_of ("b").is_busy);
  assert_int_equal (dirty_remove (d, "b", NULL), 0);
  dirty_unref (bm);
}

static void
test_inconsistent (void **state)
{
  static const char text[] = "Bitmap 'b' is inconsistent and cannot be used";
  struct dirty_bitmap *bm;
  struct extents extents;
  struct dirty_info info;

  assert_int_equal (dirty_add (d, "b", 0, false, NULL), 0);
  assert_int_equal (dirty_add (d, "c", 0, false, NULL), 0);
  bm = dirty_find (d, "b");
  dirty_invalidate (d, bm, "changed behind our back");
  info = info_of ("b");
  assert_int_equal (info.state, DIRTY_INCONSISTENT);
  assert_false (info.is_recording);
  assert_string_equal (info.reason, "changed behind our back");
  assert_error (dirty_freeze (d, bm, &err), EINVAL, text);
  assert_error (dirty_clear (d, "b", &err), EINVAL, text);
  assert_error (dirty_enable (d, "b", &err), EINVAL, text);
  assert_error (dirty_disable (d, "b", &err), EINVAL, text);
  assert_error (dirty_merge (d, "c", &bm, 1, &err), EINVAL, text);
  extents_init (&extents, 10);
  assert_int_equal (dirty_extents (bm, 512, 0, &extents), -ESTALE);
  assert_int_equal (extents.len, 0);
  mark (0, DISK_SIZE);
  assert_int_equal (dirty_remove (d, "b", NULL), 0);
  extents_free (&extents);
  dirty_unref (bm);
}

/* Whoever holds a removed bitmap learns so, also when the disk is gone. */
static void
test_removed (void **state)
{
  struct dirty_bitmap *bm;
  struct extents extents;
  struct dirty_info info;

  extents_init (&extents, 10);
  assert_int_equal (dirty_add (d, "b", 0, false, NULL), 0);
  bm = dirty_find (d, "b");
  assert_int_equal (dirty_extents (bm, 512, 0, &extents), 0);
  assert_int_equal (dirty_remove (d, "b", NULL), 0);
  extents_clear (&extents);
  assert_int_equal (dirty_extents (bm, 512, 0, &extents), -ESTALE);
  assert_int_equal (dirty_get_info (bm, &info), -ENOENT);
  assert_error (dirty_freeze (d, bm, &err), ENOENT,
                "Dirty bitmap 'b' not found");
  /* A new one of that name is another one. */
  assert_int_equal (dirty_add (d, "b", 0, false, NULL), 0);
  mark (0, 1);
  assert_int_equal (dirty_extents (bm, 512, 0, &extents), -ESTALE);
  assert_error (dirty_merge (d, "b", &bm, 1, &err), ENOENT,
                "Dirty bitmap 'b' not found");
  dirty_unref (bm);

  bm = dirty_find (d, "b");
  gate_open (&gate);
  dirty_free (d);
  assert_int_equal (dirty_extents (bm, 512, 0, &extents), -ESTALE);
  assert_int_equal (dirty_get_info (bm, &info), -ENOENT);
  dirty_unref (dirty_ref (bm));
  dirty_unref (bm);
  extents_free (&extents);
  assert_int_equal (dirty_new (DISK_SIZE, &gate, &d), 0);
  gate_close (&gate);
}

static void
test_merge (void **state)
{
  struct dirty_bitmap *sources[2], *other;
  struct gate gate2;
  struct dirty *d2;

  assert_int_equal (dirty_add (d, "t", 65536, false, NULL), 0);
  assert_int_equal (dirty_add (d, "s1", 512, false, NULL), 0);
  mark (700, 1);
  assert_int_equal (dirty_disable (d, "s1", NULL), 0);
  assert_int_equal (dirty_clear (d, "t", NULL), 0);
  assert_int_equal (dirty_add (d, "s2", 4096, true, NULL), 0);
  sources[0] = dirty_find (d, "s1");
  sources[1] = dirty_find (d, "s2");

  /* A second source that cannot be used: the target stays as it is. */
  dirty_invalidate (d, sources[1], "test");
  assert_int_equal (dirty_merge (d, "t", sources, 2, &err), -EINVAL);
  assert_int_equal (info_of ("t").dirty_bytes, 0);
  assert_int_equal (dirty_merge (d, "t", sources, 1, NULL), 0);
  assert_int_equal (info_of ("t").dirty_bytes, 65536);
  assert_int_equal (info_of ("s1").dirty_bytes, 512);

  /* From another disk. */
  gate_init (&gate2);
  assert_int_equal (dirty_new (DISK_SIZE * 2, &gate2, &d2), 0);
  gate_close (&gate2);
  assert_int_equal (dirty_add (d2, "o", 0, false, NULL), 0);
  other = dirty_find (d2, "o");
  assert_error (dirty_merge (d, "t", &other, 1, &err), EINVAL,
                "Bitmaps are of different sizes (destination size is 1048064,"
                " source size is 2096128) and can't be merged");
  assert_int_equal (dirty_resize (d2, DISK_SIZE), 0);
  gate_open (&gate2);
  gate_enter (&gate2);
  assert_int_equal (dirty_mark (d2, DISK_SIZE - 1, 1), 0);
  gate_leave (&gate2);
  assert_int_equal (dirty_merge (d, "t", &other, 1, NULL), 0);
  assert_int_equal (info_of ("t").dirty_bytes, 2 * 65536 - 512);
  dirty_unref (other);
  dirty_free (d2);
  gate_destroy (&gate2);
  dirty_unref (sources[0]);
  dirty_unref (sources[1]);
}

static void
test_resize (void **state)
{
  struct dirty_bitmap *bm;
  struct extents e;

  assert_int_equal (dirty_add (d, "b", 65536, false, NULL), 0);
  assert_int_equal (dirty_add (d, "off", 512, true, NULL), 0);
  mark (0, 1);
  assert_int_equal (dirty_resize (d, DISK_SIZE + 65536), 0);
  bm = dirty_find (d, "b");
  extents_init (&e, 10);
  assert_int_equal (dirty_extents (bm, DISK_SIZE + 65536, 0, &e), 0);
  assert_int_equal (e.len, 3);
  assert_int_equal (e.ptr[1].value, 0);
  /* The granule that held the old end. */
  assert_int_equal (e.ptr[2].off, DISK_SIZE + 512 - 65536);
  assert_int_equal (e.ptr[2].value, EXTENT_DIRTY);
  assert_int_equal (info_of ("off").dirty_bytes, 65536);
  extents_clear (&e);
  assert_int_equal (dirty_extents (bm, DISK_SIZE + 65537, 0, &e), -EINVAL);

  assert_int_equal (dirty_resize (d, 65536 * 2), 0);
  assert_int_equal (info_of ("b").dirty_bytes, 65536);
  assert_int_equal (info_of ("off").dirty_bytes, 0);
  mark (65536, 65536);
  assert_int_equal (info_of ("b").dirty_bytes, 65536 * 2);
  assert_int_equal (dirty_resize (d, 0), 0);
  assert_int_equal (info_of ("b").dirty_bytes, 0);
  extents_free (&e);
  dirty_unref (bm);
}

static bool
has_base (const char *name)
{
  struct dirty_bitmap *bm = dirty_find (d, name);
  struct dirty_info info;

  assert_int_equal (dirty_get_info (bm, &info), 0);
  free (info.name);
  dirty_unref (bm);
  return !point_id_is_none (&info.base);
}

static void
give_base (const char *name)
{
  struct dirty_bitmap *bm = dirty_find (d, name);
  struct point_id point;

  assert_int_equal (point_id_random (&point), 0);
  assert_int_equal (dirty_freeze (d, bm, NULL), 0);
  dirty_drop (d, bm, &point);
  dirty_unref (bm);
  assert_true (has_base (name));
}

/* One that has missed a write, or forgotten one, counts from no point: an
 * incremental backup from there would lack it.
 */
static void
test_lost_base (void **state)
{
  assert_int_equal (dirty_add (d, "b", 0, 0, NULL), 0);
  give_base ("b");
  assert_int_equal (dirty_enable (d, "b", NULL), 0);
  assert_true (has_base ("b"));
  assert_int_equal (dirty_disable (d, "b", NULL), 0);
  assert_int_equal (dirty_enable (d, "b", NULL), 0);
  assert_false (has_base ("b"));
  give_base ("b");
  assert_int_equal (dirty_clear (d, "b", NULL), 0);
  assert_false (has_base ("b"));
}

/* The naive model: one byte per granule, old and new bits apart. */
#define NR 4
#define MAX_GRANULES 2048

struct model {
  bool exists, is_frozen, is_on;
  uint64_t gran;
  struct point_id base;
  uint8_t old[MAX_GRANULES], new[MAX_GRANULES];
  struct dirty_bitmap *frozen;
};

static struct model models[NR];

static void
model_mark (uint64_t off, uint64_t len)
{
  uint64_t g;
  size_t i;

  for (i = 0; i < NR; i++)
    if (models[i].exists && models[i].is_on)
      for (g = off / models[i].gran; g * models[i].gran < off + len; g++)
        (models[i].is_frozen ? models[i].new : models[i].old)[g] = 1;
}

static void
check_extents (struct dirty_bitmap *bm, const struct model *m)
{
  const uint64_t off = (uint64_t) random () % DISK_SIZE;
  const uint64_t len = (uint64_t) random () % (DISK_SIZE - off) + 1;
  const size_t max = random () % 4 ? 4096 : 3;
  struct extents e;
  uint64_t pos, g;
  size_t i;

  extents_init (&e, max);
  assert_int_equal (dirty_extents (bm, len, off, &e), 0);
  assert_true (e.len >= 1 && e.len <= max);
  if (max > 3)
    assert_int_equal (extents_length (&e), len);
  for (i = 0, pos = off; i < e.len; i++) {
    assert_int_equal (e.ptr[i].off, pos);
    assert_true (i == 0 || e.ptr[i].value != e.ptr[i-1].value);
    for (g = pos / m->gran; g * m->gran < pos + e.ptr[i].len; g++)
      assert_int_equal (e.ptr[i].value, m->old[g] | m->new[g]);
    pos += e.ptr[i].len;
  }
  assert_true (pos <= off + len);
  extents_free (&e);
}

/* The same of the frozen bits alone. */
static void
check_frozen_extents (struct dirty_bitmap *bm, const struct model *m)
{
  struct extents e;
  uint64_t g;
  size_t i;

  extents_init (&e, 4096);
  assert_int_equal (dirty_frozen_extents (bm, DISK_SIZE, 0, &e),
                    m->is_frozen ? 0 : -ESTALE);
  for (i = 0; i < e.len; i++)
    for (g = e.ptr[i].off / m->gran;
         g * m->gran < e.ptr[i].off + e.ptr[i].len; g++)
      assert_int_equal (e.ptr[i].value, m->old[g]);
  assert_int_equal (extents_length (&e), m->is_frozen ? DISK_SIZE : 0);
  extents_free (&e);
}

static void
check_model (size_t i)
{
  const struct model *m = &models[i];
  const char name[] = { (char) ('a' + i), '\0' };
  struct dirty_bitmap *bm = dirty_find (d, name);
  struct dirty_info info;
  uint64_t g, bytes = 0, new_bytes = 0;

  assert_int_equal (bm != NULL, m->exists);
  if (bm == NULL)
    return;
  info = info_of (name);
  assert_int_equal (info.state, m->is_frozen ? DIRTY_FROZEN
                    : m->is_on ? DIRTY_RECORDING : DIRTY_DISABLED);
  assert_int_equal (info.is_busy, m->is_frozen);
  assert_int_equal (info.is_recording, m->is_on);
  assert_true (point_id_is_equal (&info.base, &m->base));
  for (g = 0; g * m->gran < DISK_SIZE; g++) {
    bytes += m->old[g] ? MIN (m->gran, DISK_SIZE - g * m->gran) : 0;
    new_bytes += m->new[g] ? MIN (m->gran, DISK_SIZE - g * m->gran) : 0;
  }
  assert_int_equal (info.dirty_bytes, MIN (bytes + new_bytes, DISK_SIZE));
  if (m->is_frozen) {
    assert_ptr_equal (m->frozen, bm);
    assert_int_equal (bitmap_dirty_bytes (dirty_frozen_bits (bm)), bytes);
  }
  check_extents (bm, m);
  check_frozen_extents (bm, m);
  dirty_unref (bm);
}

static void
model_add_or_remove (struct model *m, const char *name)
{
  static const uint64_t granules[] = { 512, 1024, 65536, 1 << 20 };
  const uint64_t gran = granules[random () % 4];
  const bool is_disabled = random () % 4 == 0;

  if (m->exists) {
    assert_int_equal (dirty_remove (d, name, NULL),
                      m->is_frozen ? -EBUSY : 0);
    if (!m->is_frozen)
      memset (m, 0, sizeof *m);
    return;
  }
  assert_int_equal (dirty_add (d, name, gran, is_disabled, NULL), 0);
  m->exists = true;
  m->gran = gran;
  m->is_on = !is_disabled;
}

static void
model_freeze_or_end (struct model *m, const char *name)
{
  struct point_id point;
  size_t g;

  if (!m->is_frozen) {
    m->frozen = dirty_find (d, name);
    assert_int_equal (dirty_freeze (d, m->frozen, NULL), 0);
    m->is_frozen = true;
    return;
  }
  if (random () % 2) {
    assert_int_equal (point_id_random (&point), 0);
    dirty_drop (d, m->frozen, &point);
    m->base = point;
    memcpy (m->old, m->new, sizeof m->old);
  }
  else {
    dirty_merge_back (d, m->frozen);
    for (g = 0; g < MAX_GRANULES; g++)
      m->old[g] |= m->new[g];
  }
  memset (m->new, 0, sizeof m->new);
  m->is_frozen = false;
  dirty_unref (m->frozen);
  m->frozen = NULL;
}

static void
model_merge (struct model *m, const char *name)
{
  const size_t i = (size_t) random () % NR;
  const char source_name[] = { (char) ('a' + i), '\0' };
  const struct model *s = &models[i];
  struct dirty_bitmap *source = dirty_find (d, source_name);
  const bool ok = source && !m->is_frozen && !s->is_frozen;
  uint64_t p;

  if (source == NULL)
    return;
  assert_int_equal (dirty_merge (d, name, &source, 1, NULL),
                    ok ? 0 : -EBUSY);
  for (p = 0; ok && p < DISK_SIZE; p += 512)
    m->old[p / m->gran] |= s->old[p / s->gran];
  dirty_unref (source);
}

static void
model_step (size_t i)
{
  const char name[] = { (char) ('a' + i), '\0' };
  const uint64_t off = (uint64_t) random () % DISK_SIZE;
  const uint64_t max = random () % 3 ? 9000 : 300000;
  const uint64_t len = (uint64_t) random () % MIN (DISK_SIZE - off, max) + 1;
  struct model *m = &models[i];
  const int busy = m->is_frozen ? -EBUSY : 0;

  if (!m->exists || random () % 20 == 0) {
    model_add_or_remove (m, name);
    return;
  }
  switch (random () % 8) {
  case 0:
    assert_int_equal (dirty_clear (d, name, NULL), busy);
    if (!busy) {
      memset (m->old, 0, sizeof m->old);
      memset (&m->base, 0, sizeof m->base);
    }
    break;
  case 1:
    assert_int_equal (dirty_enable (d, name, NULL), busy);
    if (!busy && !m->is_on)
      memset (&m->base, 0, sizeof m->base);
    m->is_on = busy ? m->is_on : true;
    break;
  case 2:
    assert_int_equal (dirty_disable (d, name, NULL), busy);
    m->is_on = busy ? m->is_on : false;
    break;
  case 3:
    model_merge (m, name);
    break;
  case 4: case 5:
    model_freeze_or_end (m, name);
    break;
  default:
    mark (off, len);
    model_mark (off, len);
  }
}

static void
test_model (void **state)
{
  unsigned steps;
  size_t i;

  srandom (1);
  for (steps = 0; steps < 2000; steps++) {
    model_step ((size_t) random () % NR);
    for (i = 0; i < NR; i++)
      check_model (i);
  }
  for (i = 0; i < NR; i++)
    if (models[i].is_frozen) {
      dirty_merge_back (d, models[i].frozen);
      dirty_unref (models[i].frozen);
    }
}

/* Writers change a small "disk" inside the gate.  Points are taken meanwhile;
 * the granules of the frozen bits, and only those, go to the "backup", which
 * must then equal the disk as it was at the point.
 */
#define GRANULES 256
#define WRITERS 3
#define POINTS 2000

static _Atomic unsigned blocks[GRANULES];
static atomic_bool is_done;

static void *
writer (void *arg)
{
  unsigned seed = (unsigned) (uintptr_t) arg, i, n;

  while (!atomic_load (&is_done)) {
    i = (unsigned) rand_r (&seed) % GRANULES;
    n = (unsigned) rand_r (&seed) % MIN (4u, GRANULES - i) + 1;
    gate_enter (&gate);
    dirty_mark (d, UINT64_C (512) * i, UINT64_C (512) * n);
    while (n-- > 0)
      atomic_fetch_add (&blocks[i + n], 1);
    gate_leave (&gate);
  }
  return NULL;
}

static void *
reader (void *arg)
{
  struct dirty_bitmap *bm = arg;
  struct dirty_info *infos;
  struct extents e;
  size_t nr;

  extents_init (&e, GRANULES);
  while (!atomic_load (&is_done)) {
    extents_clear (&e);
    if (dirty_extents (bm, GRANULES * 512, 0, &e) < 0
        || extents_length (&e) != GRANULES * 512
        || dirty_list (d, &infos, &nr) < 0)
      abort ();
    dirty_infos_free (infos, nr);
  }
  extents_free (&e);
  return NULL;
}

static void
take_point (struct dirty_bitmap *bm, unsigned *backup, bool is_success)
{
  unsigned now[GRANULES], i;
  const struct bitmap *bits;
  struct point_id point;

  gate_close (&gate);
  assert_int_equal (dirty_freeze (d, bm, NULL), 0);
  for (i = 0; i < GRANULES; i++)
    now[i] = atomic_load (&blocks[i]);
  gate_open (&gate);

  bits = dirty_frozen_bits (bm);
  for (i = 0; i < GRANULES; i++)
    if (is_success && bitmap_get (bits, UINT64_C (512) * i))
      backup[i] = now[i];
  assert_int_equal (point_id_random (&point), 0);
  gate_close (&gate);
  if (is_success)
    dirty_drop (d, bm, &point);
  else
    dirty_merge_back (d, bm);
  gate_open (&gate);
  if (is_success)
    assert_memory_equal (backup, now, sizeof now);
}

static void
test_points_under_writers (void **state)
{
  unsigned backup[GRANULES] = { 0 }, i;
  pthread_t threads[WRITERS + 1];
  struct dirty_bitmap *bm;

  assert_int_equal (dirty_add (d, "b", 512, false, NULL), 0);
  assert_int_equal (dirty_add (d, "c", 65536, false, NULL), 0);
  bm = dirty_find (d, "b");
  gate_open (&gate);
  for (i = 0; i < WRITERS; i++)
    assert_int_equal (pthread_create (&threads[i], NULL, writer,
                                      (void *) (uintptr_t) (i + 1)), 0);
  assert_int_equal (pthread_create (&threads[i], NULL, reader, bm), 0);
  for (i = 0; i < POINTS; i++)
    take_point (bm, backup, i % 3 != 2);
  atomic_store (&is_done, true);
  for (i = 0; i < WRITERS + 1; i++)
    assert_int_equal (pthread_join (threads[i], NULL), 0);
  take_point (bm, backup, true);
  dirty_unref (bm);
  gate_close (&gate);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown (test_add, setup, teardown),
    cmocka_unit_test_setup_teardown (test_not_found, setup, teardown),
    cmocka_unit_test_setup_teardown (test_busy, setup, teardown),
    cmocka_unit_test_setup_teardown (test_inconsistent, setup, teardown),
    cmocka_unit_test_setup_teardown (test_removed, setup, teardown),
    cmocka_unit_test_setup_teardown (test_lost_base, setup, teardown),
    cmocka_unit_test_setup_teardown (test_merge, setup, teardown),
    cmocka_unit_test_setup_teardown (test_resize, setup, teardown),
    cmocka_unit_test_setup_teardown (test_model, setup, teardown),
    cmocka_unit_test_setup_teardown (test_points_under_writers, setup,
                                     teardown),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
