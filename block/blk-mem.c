/* SPDX-License-Identifier: BSD-3-Clause */
/* A sparse disk in memory.
 *
 * Pages hang in a radix tree: upper nodes are added by compare-and-swap and
 * stay until close; a leaf covers one region, and its page pointers and the
 * pages themselves are protected by one of a fixed number of locks, chosen by
 * region.  A request takes one lock at a time, so it is atomic per page only,
 * as on a disk.
 *
 * Called through blk.c from any thread.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blk-mem.h"
#include "lock.h"
#include "range.h"

#define PAGE_BITS 12
#define PAGE_BYTES (UINT64_C (1) << PAGE_BITS)
#define LEAF_BITS 9
#define LEAF_PAGES (1u << LEAF_BITS)
#define REGION_BITS (PAGE_BITS + LEAF_BITS)
#define REGION_BYTES (UINT64_C (1) << REGION_BITS)
#define NODE_BITS 11
#define NODE_ENTRIES (1u << NODE_BITS)
/* 2^(4 * 11 + 21) bytes: more than RANGE_MAX_SIZE. */
#define NR_LEVELS 4
#define NR_LOCKS 64

struct leaf {
  void *pages[LEAF_PAGES];      /* NULL = hole */
};

struct node {
  _Atomic (void *) entries[NODE_ENTRIES];       /* nodes; leaves at level 0 */
};

struct mem {
  struct blk blk;
  /* Protected by themselves (atomic) down to the leaves. */
  struct node root;
  /* Protect the leaves. */
  struct lock locks[NR_LOCKS];
};

static struct lock *
region_lock (struct mem *mem, uint64_t off)
{
  return &mem->locks[off >> REGION_BITS & (NR_LOCKS - 1)];
}

static unsigned
node_index (uint64_t off, unsigned level)
{
  return off >> (REGION_BITS + level * NODE_BITS) & (NODE_ENTRIES - 1);
}

/* The entry, allocated with size bytes if it is not there; NULL: no memory. */
static void *
get_or_add (_Atomic (void *) *entry, size_t size)
{
  void *p = atomic_load_explicit (entry, memory_order_acquire), *fresh;

  if (p)
    return p;
  fresh = calloc (1, size);
  if (!fresh)
    return NULL;
  if (atomic_compare_exchange_strong (entry, &p, fresh))
    return fresh;
  free (fresh);
  return p;
}

/* The leaf that holds off.  If it is not there: NULL, and *ret_end is where
 * the hole around off ends at the earliest.
 */
static struct leaf *
find_leaf (struct mem *mem, uint64_t off, uint64_t *ret_end)
{
  struct node *node = &mem->root;
  unsigned level;
  void *p = NULL;

  for (level = NR_LEVELS; level-- > 0; node = p) {
    p = atomic_load_explicit (&node->entries[node_index (off, level)],
                              memory_order_acquire);
    if (!p) {
      unsigned bits = REGION_BITS + level * NODE_BITS;

      *ret_end = ((off >> bits) + 1) << bits;
      return NULL;
    }
  }
  *ret_end = round_down (off, REGION_BYTES) + REGION_BYTES;
  return p;
}

/* The leaf that holds off, or NULL: no memory. */
static struct leaf *
add_leaf (struct mem *mem, uint64_t off)
{
  struct node *node = &mem->root;
  unsigned level;

  for (level = NR_LEVELS - 1; node && level > 0; level--)
    node = get_or_add (&node->entries[node_index (off, level)],
                       sizeof *node);
  return node ? get_or_add (&node->entries[node_index (off, 0)],
                            sizeof (struct leaf)) : NULL;
}

static void **
page_of (struct leaf *leaf, uint64_t off)
{
  return &leaf->pages[off >> PAGE_BITS & (LEAF_PAGES - 1)];
}

/* Bytes from off to the end of its page, at most len. */
static uint64_t
page_piece (uint64_t off, uint64_t len)
{
  return MIN (len, PAGE_BYTES - (off & (PAGE_BYTES - 1)));
}

/* One region: [off, off+len) lies within it. */
static void
read_region (struct mem *mem, struct leaf *leaf, char *buf, uint64_t len,
             uint64_t off)
{
  const char *page;
  uint64_t n;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (region_lock (mem, off));
  for (; len > 0; buf += n, off += n, len -= n) {
    n = page_piece (off, len);
    page = *page_of (leaf, off);
    if (page)
      memcpy (buf, page + (off & (PAGE_BYTES - 1)), n);
    else
      memset (buf, 0, n);
  }
}

static int
mem_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
           unsigned flags)
{
  struct mem *mem = (struct mem *) blk;
  struct leaf *leaf;
  uint64_t end, n;
  char *p = buf;

  for (; len > 0; p += n, off += n, len -= n) {
    leaf = find_leaf (mem, off, &end);
    n = MIN (len, end - off);
    if (leaf)
      read_region (mem, leaf, p, n, off);
    else
      memset (p, 0, n);
  }
  return 0;
}

/* buf NULL: zeroes. */
static int
write_region (struct mem *mem, struct leaf *leaf, const char *buf,
              uint64_t len, uint64_t off)
{
  uint64_t n, pos;
  void **page;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (region_lock (mem, off));
  for (pos = 0; pos < len; pos += n) {
    n = page_piece (off + pos, len - pos);
    page = page_of (leaf, off + pos);
    if (!*page)
      *page = calloc (1, PAGE_BYTES);
    if (!*page)
      return -ENOMEM;
    if (buf)
      memcpy ((char *) *page + ((off + pos) & (PAGE_BYTES - 1)), buf + pos,
              n);
    else
      memset ((char *) *page + ((off + pos) & (PAGE_BYTES - 1)), 0, n);
  }
  return 0;
}

static int
write_all (struct mem *mem, const char *buf, uint64_t len, uint64_t off)
{
  struct leaf *leaf;
  uint64_t n;
  int r = 0;

  for (; len > 0 && r == 0; off += n, len -= n) {
    leaf = add_leaf (mem, off);
    if (!leaf)
      return -ENOMEM;
    n = MIN (len, REGION_BYTES - (off & (REGION_BYTES - 1)));
    r = write_region (mem, leaf, buf, n, off);
    if (buf)
      buf += n;
  }
  return r;
}

static int
mem_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  return write_all ((struct mem *) blk, buf, len, off);
}

/* Whole pages become holes, parts of pages zero. */
static void
discard_region (struct mem *mem, struct leaf *leaf, uint64_t len,
                uint64_t off)
{
  void **page;
  uint64_t n;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (region_lock (mem, off));
  for (; len > 0; off += n, len -= n) {
    n = page_piece (off, len);
    page = page_of (leaf, off);
    if (*page && n == PAGE_BYTES) {
      free (*page);
      *page = NULL;
    }
    else if (*page)
      memset ((char *) *page + (off & (PAGE_BYTES - 1)), 0, n);
  }
}

static void
discard (struct mem *mem, uint64_t len, uint64_t off)
{
  struct leaf *leaf;
  uint64_t end, n;

  for (; len > 0; off += n, len -= n) {
    leaf = find_leaf (mem, off, &end);
    n = MIN (len, end - off);
    if (leaf)
      discard_region (mem, leaf, n, off);
  }
}

static int
mem_zero (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  struct mem *mem = (struct mem *) blk;

  if (!(flags & BLK_MAY_UNMAP))
    return write_all (mem, NULL, len, off);
  discard (mem, len, off);
  return 0;
}

static int
mem_trim (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  discard ((struct mem *) blk, len, off);
  return 0;
}

static int
mem_flush (struct blk *blk)
{
  return 0;
}

static int
region_extents (struct mem *mem, struct leaf *leaf, uint64_t len,
                uint64_t off, struct extents *e)
{
  uint64_t n;
  int r = 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (region_lock (mem, off));
  for (; len > 0 && r == 0; off += n, len -= n) {
    n = page_piece (off, len);
    r = extents_add (e, off, n, *page_of (leaf, off) ? 0
                     : EXTENT_HOLE | EXTENT_ZERO);
  }
  return r;
}

static int
mem_extents (struct blk *blk, uint64_t len, uint64_t off, unsigned flags,
             enum blk_status status, struct extents *e)
{
  struct mem *mem = (struct mem *) blk;
  size_t old_len = e->len;
  struct leaf *leaf;
  uint64_t end, n;
  int r = 0;

  if (status == BLK_STATUS_DEPTH) {
    r = extents_add (e, off, len, 1);
    return r < 0 ? r : 0;
  }
  for (; len > 0 && r == 0; off += n, len -= n) {
    if ((flags & BLK_ONE) && e->len > old_len + 1)
      break;
    leaf = find_leaf (mem, off, &end);
    n = MIN (len, end - off);
    r = leaf ? region_extents (mem, leaf, n, off, e)
      : extents_add (e, off, n, EXTENT_HOLE | EXTENT_ZERO);
  }
  return r < 0 ? r : 0;
}

static int
mem_cache (struct blk *blk, uint64_t len, uint64_t off)
{
  return 0;
}

static int
mem_resize (struct blk *blk, uint64_t size)
{
  uint64_t old_size = blk_size (blk);

  atomic_store_explicit (&blk->size, size, memory_order_release);
  if (size < old_size)
    discard ((struct mem *) blk, round_up (old_size, PAGE_BYTES) - size,
             size);
  return 0;
}

static void
free_node (struct node *node, unsigned level, bool is_root)
{
  struct leaf *leaf;
  unsigned i, j;
  void *p;

  for (i = 0; i < NODE_ENTRIES; i++) {
    p = atomic_load_explicit (&node->entries[i], memory_order_acquire);
    if (!p)
      continue;
    if (level > 0)
      free_node (p, level - 1, false);
    else {
      leaf = p;
      for (j = 0; j < LEAF_PAGES; j++)
        free (leaf->pages[j]);
      free (leaf);
    }
  }
  if (!is_root)
    free (node);
}

static int
mem_close (struct blk *blk)
{
  struct mem *mem = (struct mem *) blk;
  size_t i;

  free_node (&mem->root, NR_LEVELS - 1, true);
  for (i = 0; i < NR_LOCKS; i++)
    lock_destroy (&mem->locks[i]);
  blk_fini (blk);
  free (mem);
  return 0;
}

static const struct blk_driver mem_driver = {
  .name = "mem",
  .close = mem_close,
  .pread = mem_pread,
  .pwrite = mem_pwrite,
  .zero = mem_zero,
  .trim = mem_trim,
  .flush = mem_flush,
  .extents = mem_extents,
  .cache = mem_cache,
  .resize = mem_resize,
};

int
blk_mem_new (uint64_t size, struct blk **ret)
{
  struct mem *mem = calloc (1, sizeof *mem);
  size_t i;
  int r;

  if (!mem)
    return -ENOMEM;
  r = blk_init (&mem->blk, &mem_driver, "mem", NULL, size,
                BLK_CAN_TRIM | BLK_CAN_ZERO | BLK_CAN_FAST_ZERO
                | BLK_CAN_CACHE | BLK_CAN_EXTENTS | BLK_CAN_MULTI_CONN
                | BLK_CAN_NOWAIT | BLK_CAN_FUA);
  if (r < 0) {
    free (mem);
    return r;
  }
  for (i = 0; i < NR_LOCKS; i++)
    lock_init (&mem->locks[i], LOCK_RANK_LEAF);
  *ret = &mem->blk;
  return 0;
}
