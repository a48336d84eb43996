/* SPDX-License-Identifier: BSD-3-Clause */
/* See qcow2-image.h. */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "qcow2-image.h"
#include "range.h"

#define SECTOR 512

/* --- the file */

struct file_blk {
  struct blk blk;
  struct file *f;
};

static pthread_mutex_t changes_lock = PTHREAD_MUTEX_INITIALIZER;

void
file_init (struct file *f, uint64_t capacity)
{
  memset (f, 0, sizeof *f);
  f->capacity = capacity;
  f->bytes = calloc (1, capacity);
}

void
file_forget_changes (struct file *f)
{
  for (size_t i = 0; i < f->nr_changes; i++)
    free (f->changes[i].data);
  free (f->changes);
  f->changes = NULL;
  f->nr_changes = 0;
}

void
file_watch (struct file *f)
{
  f->marks = calloc (div_round_up (f->capacity, SECTOR), sizeof *f->marks);
  f->nr_unexpected = 0;
}

bool
file_unwatch (struct file *f)
{
  bool is_right = f->nr_unexpected == 0;
  uint64_t i;

  for (i = 0; i < div_round_up (f->capacity, SECTOR); i++)
    is_right = is_right && f->marks[i] != MARK_PREFETCHED;
  free (f->marks);
  f->marks = NULL;
  return is_right;
}

/* Sectors that the range touches. */
static void
mark (struct file *f, uint64_t off, uint64_t len, enum file_mark what)
{
  uint64_t i;

  for (i = off / SECTOR; f->marks && i < div_round_up (off + len, SECTOR); i++)
    {
      if (what == MARK_READ && f->marks[i] == MARK_NONE)
        f->nr_unexpected++;
      else
        f->marks[i] = what;
    }
}

void
file_destroy (struct file *f)
{
  file_forget_changes (f);
  free (f->bytes);
}

void
change_apply (const struct change *c, uint8_t *bytes, uint64_t *size)
{
  switch (c->what) {
  case CHANGE_WRITE:
    memcpy (bytes + c->off, c->data, c->len);
    break;
  case CHANGE_ZERO:
    memset (bytes + c->off, 0, c->len);
    break;
  case CHANGE_TRIM:
    memset (bytes + c->off, 0xdd, c->len);      /* anything */
    break;
  case CHANGE_RESIZE:
    if (c->len < *size)
      memset (bytes + c->len, 0, *size - c->len);
    *size = c->len;
    break;
  case CHANGE_FLUSH:
    break;
  }
}

static void
record (struct file *f, const struct change *c, const void *data)
{
  static uint64_t number;
  struct change *copy;

  pthread_mutex_lock (&changes_lock);
  if (f->is_recording) {
    f->changes = realloc (f->changes, (f->nr_changes + 1) * sizeof *c);
    copy = &f->changes[f->nr_changes++];
    *copy = *c;
    copy->number = number++;
    if (data) {
      copy->data = malloc (c->len);
      memcpy (copy->data, data, c->len);
    }
  }
  pthread_mutex_unlock (&changes_lock);
}

static struct file *
file_of (struct blk *blk)
{
  return ((struct file_blk *) blk)->f;
}

/* What is behind its end may not be zero any more. */
static void
use (struct file *f, uint64_t end)
{
  uint64_t used = atomic_load (&f->used);

  while (used < end && !atomic_compare_exchange_weak (&f->used, &used, end))
    ;
}

static int
file_close (struct blk *blk)
{
  blk_fini (blk);
  free (blk);
  return 0;
}

static int
file_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  memcpy (buf, file_of (blk)->bytes + off, len);
  mark (file_of (blk), off, len, MARK_READ);
  return 0;
}

static int
file_cache (struct blk *blk, uint64_t len, uint64_t off)
{
  mark (file_of (blk), off, len, MARK_PREFETCHED);
  return 0;
}

static int
file_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
             unsigned flags)
{
  struct change c = { .what = CHANGE_WRITE, .off = off, .len = len };

  use (file_of (blk), off + len);
  memcpy (file_of (blk)->bytes + off, buf, len);
  record (file_of (blk), &c, buf);
  return 0;
}

static int
file_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct change c = { .what = CHANGE_ZERO, .off = off, .len = len };

  change_apply (&c, file_of (blk)->bytes, &file_of (blk)->size);
  record (file_of (blk), &c, NULL);
  return 0;
}

/* After a trim the content is not defined. */
static int
file_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct change c = { .what = CHANGE_TRIM, .off = off, .len = len };

  use (file_of (blk), off + len);
  change_apply (&c, file_of (blk)->bytes, &file_of (blk)->size);
  record (file_of (blk), &c, NULL);
  return 0;
}

static int
file_flush (struct blk *blk)
{
  struct change c = { .what = CHANGE_FLUSH };

  record (file_of (blk), &c, NULL);
  return 0;
}

static int
file_resize (struct blk *blk, uint64_t size)
{
  struct change c = { .what = CHANGE_RESIZE, .len = size };
  struct file *f = file_of (blk);

  if (f->is_device)
    return -ENOTSUP;
  if (size > f->capacity)
    return -EFBIG;
  /* A file is made much longer in advance and cut off at the end. */
  f->size = MIN (f->size, MAX (atomic_load (&f->used), size));
  change_apply (&c, f->bytes, &f->size);
  record (f, &c, NULL);
  atomic_store (&blk->size, size);
  return 0;
}

static const struct blk_driver file_driver = {
  .name = "test-file",
  .close = file_close,
  .pread = file_pread,
  .cache = file_cache,
  .pwrite = file_pwrite,
  .zero = file_zero,
  .trim = file_trim,
  .flush = file_flush,
  .resize = file_resize,
};

struct blk *
file_node (struct file *f)
{
  struct file_blk *b = calloc (1, sizeof *b);

  b->f = f;
  use (f, f->size);
  if (blk_init (&b->blk, &file_driver, "file", NULL,
                f->is_device ? f->capacity : f->size,
                BLK_CAN_CACHE | BLK_CAN_TRIM | BLK_CAN_ZERO
                | BLK_CAN_FAST_ZERO) < 0)
    abort ();
  return &b->blk;
}

/* --- the check */

#define OFFSET UINT64_C (0x00fffffffffffe00)
#define TOP (UINT64_C (1) << 63)

struct check {
  const uint8_t *bytes;
  uint64_t size, nr;            /* host clusters */
  uint64_t *refs;               /* found */
  unsigned bits, order;
  struct image_report *ret;
};

static void
found (struct check *c, const char *error, uint64_t where)
{
  if (!c->ret->error) {
    c->ret->error = error;
    c->ret->where = where;
  }
}

/* One more reference to each cluster of [off, off+len). */
static void
refer (struct check *c, uint64_t off, uint64_t len, const char *what)
{
  uint64_t i = off >> c->bits, end = (off + len - 1) >> c->bits;

  for (; i <= end; i++)
    if (i >= c->nr)
      found (c, what, i);
    else
      c->refs[i]++;
}

/* The refcount that the image has for host cluster i. */
static uint64_t
stored (struct check *c, uint64_t i)
{
  uint64_t table = load_be64 (c->bytes + 48);
  unsigned per_block = c->bits + 3 - c->order;
  uint64_t slot = i >> per_block, block, bit;

  if (slot * 8 >= (uint64_t) load_be32 (c->bytes + 56) << c->bits)
    return 0;
  block = load_be64 (c->bytes + table + slot * 8);
  if (block == 0 || block + (UINT64_C (1) << c->bits) > c->size)
    return 0;
  i &= (UINT64_C (1) << per_block) - 1;
  bit = i << c->order;
  switch (c->order) {
  case 3: return c->bytes[block + i];
  case 4: return load_be16 (c->bytes + block + i * 2);
  case 5: return load_be32 (c->bytes + block + i * 4);
  case 6: return load_be64 (c->bytes + block + i * 8);
  default:
    return (c->bytes[block + bit / 8] >> (bit % 8))
      & ((1u << (1u << c->order)) - 1);
  }
}

/* Set it, where there is a block for it. */
static void
store (struct check *c, uint8_t *bytes, uint64_t i, uint64_t value)
{
  uint64_t table = load_be64 (bytes + 48), bit;
  uint64_t per_block = UINT64_C (1) << (c->bits + 3 - c->order);
  uint8_t *p = bytes + load_be64 (bytes + table + i / per_block * 8);
  unsigned mask;

  i %= per_block;
  switch (c->order) {
  case 3: p[i] = (uint8_t) value; break;
  case 4: store_be16 (p + i * 2, (uint16_t) value); break;
  case 5: store_be32 (p + i * 4, (uint32_t) value); break;
  case 6: store_be64 (p + i * 8, value); break;
  default:
    bit = i << c->order;
    mask = ((1u << (1u << c->order)) - 1) << (bit % 8);
    p[bit / 8] = (uint8_t) ((p[bit / 8] & ~mask) | (value << (bit % 8)));
    break;
  }
}

static void
check_l2 (struct check *c, uint64_t table, uint64_t guest)
{
  uint64_t entry, host;

  for (uint64_t i = 0; i < UINT64_C (1) << (c->bits - 3); i++, guest++) {
    entry = load_be64 (c->bytes + table + i * 8);
    host = entry & OFFSET;
    if (entry & (UINT64_C (1) << 62))
      continue;                 /* not made by these tests */
    if (entry & UINT64_C (0x3f000000000001fe))
      found (c, "reserved bits in an L2 entry", guest);
    if (host & ((UINT64_C (1) << c->bits) - 1))
      found (c, "an L2 entry is not aligned", guest);
    if (host)
      refer (c, host, UINT64_C (1) << c->bits, "data beyond the end");
    if (!!(entry & TOP) != (host != 0 && stored (c, host >> c->bits) == 1))
      found (c, "the copied flag of an L2 entry is wrong", guest);
  }
}

static void
check_l1 (struct check *c)
{
  uint64_t l1 = load_be64 (c->bytes + 40), entry, table;
  uint32_t nr = load_be32 (c->bytes + 36);

  refer (c, l1, (uint64_t) nr * 8, "L1 beyond the end");
  for (uint32_t i = 0; i < nr; i++) {
    entry = load_be64 (c->bytes + l1 + (uint64_t) i * 8);
    table = entry & OFFSET;
    if (entry == 0)
      continue;
    if (table + (UINT64_C (1) << c->bits) > c->size) {
      found (c, "an L2 table beyond the end", i);
      continue;
    }
    refer (c, table, UINT64_C (1) << c->bits, "L2 beyond the end");
    if (!!(entry & TOP) != (stored (c, table >> c->bits) == 1))
      found (c, "the copied flag of an L1 entry is wrong", i);
    check_l2 (c, table, (uint64_t) i << (c->bits - 3));
  }
}

static void
check_reftable (struct check *c)
{
  uint64_t table = load_be64 (c->bytes + 48), block;
  uint64_t len = (uint64_t) load_be32 (c->bytes + 56) << c->bits;

  refer (c, table, len, "the refcount table beyond the end");
  if (table + len > c->size)
    return;
  for (uint64_t i = 0; i < len / 8; i++) {
    block = load_be64 (c->bytes + table + i * 8);
    if (block & ((UINT64_C (1) << c->bits) - 1))
      found (c, "a refcount block is not aligned", i);
    else if (block)
      refer (c, block, UINT64_C (1) << c->bits,
             "a refcount block beyond the end");
  }
}

/* A table of a bitmap and what it points to. */
static void
check_bitmap (struct check *c, uint64_t table, uint32_t nr)
{
  uint64_t entry;

  if (nr == 0)
    return;
  refer (c, table, (uint64_t) nr * 8, "a bitmap's table beyond the end");
  for (uint32_t i = 0; i < nr && !c->ret->error; i++) {
    entry = load_be64 (c->bytes + table + (uint64_t) i * 8);
    if ((entry & ~(OFFSET | 1)) || ((entry & 1) && (entry & OFFSET)))
      found (c, "a bitmap's entry has reserved bits", i);
    else if (entry & OFFSET)
      refer (c, entry & OFFSET, UINT64_C (1) << c->bits,
             "a bitmap beyond the end");
  }
}

/* The bitmaps extension, if its autoclear bit is set. */
static void
check_bitmaps (struct check *c)
{
  uint64_t pos = load_be32 (c->bytes + 100), dir, len;
  const uint8_t *p;
  uint32_t nr;

  if (load_be32 (c->bytes + 4) != 3 || !(load_be64 (c->bytes + 88) & 1))
    return;
  while (load_be32 (c->bytes + pos) != 0x23852875) {
    if (load_be32 (c->bytes + pos) == 0) {
      found (c, "the autoclear bit without bitmaps", 0);
      return;
    }
    pos += 8 + round_up (load_be32 (c->bytes + pos + 4), 8);
  }
  p = c->bytes + pos + 8;
  nr = load_be32 (p);
  len = load_be64 (p + 8);
  dir = load_be64 (p + 16);
  refer (c, dir, len, "the bitmap directory beyond the end");
  for (p = c->bytes + dir; nr > 0 && !c->ret->error; nr--) {
    check_bitmap (c, load_be64 (p), load_be32 (p + 8));
    p += round_up (24 + load_be32 (p + 20) + load_be16 (p + 18), 8);
  }
  if (p != c->bytes + dir + len)
    found (c, "the bitmap directory has another length", dir);
}

void
image_check (const uint8_t *bytes, uint64_t size, struct image_report *ret)
{
  struct check c = { .bytes = bytes, .size = size, .ret = ret };
  uint64_t have;

  memset (ret, 0, sizeof *ret);
  ret->has_header = size >= 104 && load_be32 (bytes) == 0x514649fb;
  if (!ret->has_header)
    return;
  c.bits = load_be32 (bytes + 20);
  c.order = load_be32 (bytes + 4) == 3 ? load_be32 (bytes + 96) : 4;
  c.nr = div_round_up (size, UINT64_C (1) << c.bits);
  c.refs = calloc (c.nr, sizeof *c.refs);
  refer (&c, 0, 1, "");
  check_reftable (&c);
  if (!ret->error)
    check_l1 (&c);
  if (!ret->error)
    check_bitmaps (&c);
  for (uint64_t i = 0; i < c.nr && !ret->error; i++) {
    have = stored (&c, i);
    if (have < c.refs[i])
      found (&c, "a refcount is too low", i);
    else if (have > c.refs[i])
      ret->nr_leaks++;
  }
  free (c.refs);
}

static void
check_init (struct check *c, const struct file *f, struct image_report *report)
{
  *c = (struct check) {
    .bytes = f->bytes, .size = f->size, .ret = report,
    .bits = load_be32 (f->bytes + 20), .order = load_be32 (f->bytes + 96),
  };
  c->nr = f->size >> c->bits;
}

void
image_set_refcount_order (struct file *f, unsigned order)
{
  uint64_t table = load_be64 (f->bytes + 48), block;
  struct image_report report;
  uint64_t *values;
  struct check c;

  check_init (&c, f, &report);
  values = calloc (c.nr, sizeof *values);
  for (uint64_t i = 0; i < c.nr; i++)
    values[i] = stored (&c, i);
  block = load_be64 (f->bytes + table);
  memset (f->bytes + block, 0, (size_t) 1 << c.bits);
  store_be32 (f->bytes + 96, order);
  c.order = order;
  for (uint64_t i = 0; i < c.nr; i++)
    store (&c, f->bytes, i, values[i]);
  free (values);
}

/* --- a snapshot */

/* One reference more to each cluster that the entry at p is about. */
static uint64_t
share_entry (struct check *c, struct file *f, uint64_t p)
{
  uint64_t entry = load_be64 (f->bytes + p), host = entry & OFFSET;

  store_be64 (f->bytes + p, entry & ~TOP);
  if (host)
    store (c, f->bytes, host >> c->bits, stored (c, host >> c->bits) + 1);
  return host;
}

void
image_take_snapshot (struct file *f)
{
  const uint64_t l1 = load_be64 (f->bytes + 40), nr = load_be32 (f->bytes + 36);
  struct image_report report;
  uint64_t cluster, copy, table, l2;
  struct check c;

  check_init (&c, f, &report);
  cluster = UINT64_C (1) << c.bits;
  copy = round_up (f->size, cluster);
  table = copy + round_up (nr * 8, cluster);
  f->size = table + cluster;
  if (f->size > f->capacity)
    abort ();
  for (uint64_t i = 0; i < nr; i++) {
    l2 = share_entry (&c, f, l1 + i * 8);
    for (uint64_t k = 0; l2 && k < cluster; k += 8)
      share_entry (&c, f, l2 + k);
  }
  memset (f->bytes + copy, 0, f->size - copy);
  memcpy (f->bytes + copy, f->bytes + l1, nr * 8);
  for (uint64_t i = copy; i < f->size; i += cluster)
    store (&c, f->bytes, i >> c.bits, 1);
  store_be64 (f->bytes + table, copy);
  store_be32 (f->bytes + table + 8, (uint32_t) nr);
  store_be16 (f->bytes + table + 12, 1);        /* the id */
  store_be16 (f->bytes + table + 14, 1);        /* and the name */
  store_be32 (f->bytes + table + 36, 16);       /* bytes of extra data: */
  memcpy (f->bytes + table + 48, f->bytes + 24, 8);     /* the disk's size */
  memcpy (f->bytes + table + 56, "1s", 2);
  store_be32 (f->bytes + 60, 1);
  store_be64 (f->bytes + 64, table);
}

const uint8_t *
image_snapshot_data (const struct file *f, uint64_t guest)
{
  const uint64_t per_table = UINT64_C (1) << (load_be32 (f->bytes + 20) - 3);
  uint64_t l1 = load_be64 (f->bytes + load_be64 (f->bytes + 64)), l2, entry;

  l2 = load_be64 (f->bytes + l1 + guest / per_table * 8) & OFFSET;
  if (l2 == 0)
    return NULL;
  entry = load_be64 (f->bytes + l2 + guest % per_table * 8);
  return (entry & OFFSET) && !(entry & 1) ? f->bytes + (entry & OFFSET) : NULL;
}
