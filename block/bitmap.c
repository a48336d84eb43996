/* SPDX-License-Identifier: BSD-3-Clause */
/* Pure bits, see bitmap.h.
 *
 * Storage.  level[0] holds the bits themselves (the leaf), 64 to a word.  One
 * bit of level[k+1] stands for one word of level[k], up to a level small
 * enough to be scanned.  All are anonymous memory, which costs nothing until
 * it is written; only level[0].words is elsewhere for bits that live in a
 * mapped file (bitmap_new_at), the summary being made from them again.
 *
 * Order of setting.  The summary bits are set first, from the top level down,
 * the leaf last, each with release; so at every moment
 *
 *   (S) a bit of the leaf that is set has all its summary bits set.
 *
 * A summary bit over an empty word is harmless: a search goes down, finds
 * nothing and goes on.  The other order would be wrong in two ways: between
 * the two stores the bit would be hidden, and a second setter of the same
 * granule, which finds the leaf bit set and returns at once, would return
 * while it still is.  With (S) the leaf bit alone tells the second setter
 * that all is done: its acquiring load pairs with the releasing exchange of
 * the first, so whoever synchronises with either sees leaf and summary.
 * Hence a search that starts after bitmap_set returned finds the bit.
 *
 * Setting is wait-free: an exchange of a word fails only because another
 * setter has added a bit to it, at most 63 times.  The count is exact because
 * each bit is counted by the one exchange that turned it on; it may lag
 * behind bits whose setter has not returned.
 *
 * Clearing goes the other way, leaf first, and is never concurrent with
 * setting, so it keeps (S).
 *
 * Called from any thread, under the rules in bitmap.h.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bitmap.h"

#define WORD_SHIFT 6
#define WORD_BITS (UINT64_C (1) << WORD_SHIFT)
#define ALL_ONES UINT64_MAX

/* A level of at most this many words is the top one. */
#define TOP_WORDS 64

/* RANGE_MAX_SIZE / BITMAP_MIN_GRANULARITY is 2^53 bits: levels of 2^47, 2^41,
 * ... 2^5 words.
 */
#define MAX_LEVELS 8

struct level {
  _Atomic uint64_t *words;
  uint64_t nr_words;
};

struct bitmap {
  /* Fixed after new; resize changes them with everybody kept away. */
  uint64_t size;
  uint64_t nr_bits;
  unsigned shift;               /* log2 of the granularity */
  unsigned nr_levels;
  struct level level[MAX_LEVELS];
  unsigned first_level;         /* in map: 1 if the leaf is the caller's */
  void *map;                    /* the memory of the levels from there on */
  size_t map_len;

  /* Atomic. */
  _Atomic uint64_t count;
};

static int
map_levels (struct bitmap *b)
{
  const uint64_t page = (uint64_t) sysconf (_SC_PAGESIZE);
  uint64_t total = 0;
  unsigned k;
  char *p;

  for (k = b->first_level; k < b->nr_levels; k++)
    total += round_up (b->level[k].nr_words * sizeof (uint64_t), page);
  if (total > SIZE_MAX)
    return -ENOMEM;
  b->map_len = (size_t) total;
  if (total == 0)
    return 0;
  b->map = mmap (NULL, b->map_len, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (b->map == MAP_FAILED)
    return -ENOMEM;
  /* A huge page for every scattered bit would undo the laziness.  A kernel
   * without huge pages refuses this, which is as good.
   */
  (void) madvise (b->map, b->map_len, MADV_NOHUGEPAGE);

  p = b->map;
  for (k = b->first_level; k < b->nr_levels; k++) {
    b->level[k].words = (_Atomic uint64_t *) p;
    p += round_up (b->level[k].nr_words * sizeof (uint64_t), page);
  }
  return 0;
}

static int
new_bitmap (uint64_t size, uint64_t granularity, void *words,
            struct bitmap **ret)
{
  struct bitmap *b;
  uint64_t n;
  int r;

  assert (size <= RANGE_MAX_SIZE);
  assert (is_power_of_2 (granularity));
  assert (granularity >= BITMAP_MIN_GRANULARITY);
  assert (granularity <= BITMAP_MAX_GRANULARITY);

  b = calloc (1, sizeof *b);
  if (b == NULL)
    return -ENOMEM;
  b->size = size;
  b->shift = log2_exact (granularity);
  b->nr_bits = div_round_up (size, granularity);
  n = b->nr_bits;
  do {
    assert (b->nr_levels < MAX_LEVELS);
    n = MAX (div_round_up (n, WORD_BITS), 1);
    b->level[b->nr_levels++].nr_words = n;
  } while (n > TOP_WORDS);
  b->level[0].words = words;
  b->first_level = words != NULL;

  r = map_levels (b);
  if (r < 0) {
    free (b);
    return r;
  }
  *ret = b;
  return 0;
}

int
bitmap_new (uint64_t size, uint64_t granularity, struct bitmap **ret)
{
  return new_bitmap (size, granularity, NULL, ret);
}

void
bitmap_free (struct bitmap *b)
{
  if (b == NULL)
    return;
  if (b->map_len > 0)
    munmap (b->map, b->map_len);
  free (b);
}

uint64_t
bitmap_size (const struct bitmap *b)
{
  return b->size;
}

uint64_t
bitmap_granularity (const struct bitmap *b)
{
  return UINT64_C (1) << b->shift;
}

static inline uint64_t
word_load (const struct level *l, uint64_t w)
{
  return atomic_load_explicit (&l->words[w], memory_order_acquire);
}

/* The bits of word w that lie in [first, last]. */
static inline uint64_t
word_mask (uint64_t w, uint64_t first, uint64_t last)
{
  uint64_t mask = ALL_ONES;

  if (w == first >> WORD_SHIFT)
    mask &= ALL_ONES << (first % WORD_BITS);
  if (w == last >> WORD_SHIFT)
    mask &= ALL_ONES >> (WORD_BITS - 1 - last % WORD_BITS);
  return mask;
}

/* Returns how many of the bits in mask this call has turned on. */
static inline unsigned
word_set (struct level *l, uint64_t w, uint64_t mask)
{
  uint64_t old = word_load (l, w);

  while ((old & mask) != mask) {
    if (atomic_compare_exchange_weak_explicit (&l->words[w], &old, old | mask,
                                               memory_order_acq_rel,
                                               memory_order_acquire))
      return (unsigned) __builtin_popcountll (mask & ~old);
  }
  return 0;
}

static uint64_t
level_set (struct level *l, uint64_t first, uint64_t last)
{
  uint64_t w, n = 0;

  for (w = first >> WORD_SHIFT; w <= last >> WORD_SHIFT; w++)
    n += word_set (l, w, word_mask (w, first, last));
  return n;
}

/* The summary bits over the leaf's [first, last], from the top down. */
static void
summary_set (struct bitmap *b, uint64_t first, uint64_t last)
{
  unsigned k;

  for (k = b->nr_levels - 1; k > 0; k--)
    level_set (&b->level[k], first >> (k * WORD_SHIFT),
               last >> (k * WORD_SHIFT));
}

/* Set the bits in mask of the leaf's word w; how many of them were not set. */
static inline unsigned
leaf_set (struct bitmap *b, uint64_t w, uint64_t mask)
{
  const uint64_t old = word_load (&b->level[0], w);

  /* The common case, a block that is dirty already: one load. */
  if ((old & mask) == mask)
    return 0;
  /* With any bit of the word set the summary is there, by (S). */
  if (old == 0)
    summary_set (b, w << WORD_SHIFT, w << WORD_SHIFT);
  return word_set (&b->level[0], w, mask);
}

void
bitmap_set (struct bitmap *b, uint64_t off, uint64_t len)
{
  uint64_t first, last, w, n;

  assert (range_is_within (off, len, b->size));
  if (len == 0)
    return;
  first = off >> b->shift;
  last = (off + len - 1) >> b->shift;
  w = first >> WORD_SHIFT;
  if (w == last >> WORD_SHIFT)
    n = leaf_set (b, w, word_mask (w, first, last));
  else {
    summary_set (b, first, last);
    n = level_set (&b->level[0], first, last);
  }
  if (n > 0)
    atomic_fetch_add_explicit (&b->count, n, memory_order_relaxed);
}

int
bitmap_new_at (uint64_t size, uint64_t granularity, void *words,
               struct bitmap **ret)
{
  return new_bitmap (size, granularity, words, ret);
}

/* Up to 64 words of the leaf, from w on: one word of the next level. */
static void
summarize_word (struct bitmap *b, uint64_t w, uint64_t nr)
{
  uint64_t i, word, summary = 0, n = 0;
  unsigned k;

  for (i = 0; i < nr; i++) {
    word = word_load (&b->level[0], w + i);
    if (word == 0)
      continue;
    summary |= UINT64_C (1) << i;
    n += (unsigned) __builtin_popcountll (word);
  }
  if (summary == 0)
    return;
  atomic_fetch_add_explicit (&b->count, n, memory_order_relaxed);
  if (b->nr_levels > 1)
    atomic_fetch_or_explicit (&b->level[1].words[w >> WORD_SHIFT], summary,
                              memory_order_relaxed);
  for (k = 2; k < b->nr_levels; k++) {
    i = w >> ((k - 1) * WORD_SHIFT);
    level_set (&b->level[k], i, i);
  }
}

void
bitmap_summarize (struct bitmap *b, uint64_t first, uint64_t nr)
{
  const uint64_t end = MIN (first + nr, b->level[0].nr_words);
  uint64_t w;

  assert (first % WORD_BITS == 0);
  for (w = first; w < end; w += WORD_BITS)
    summarize_word (b, w, MIN (WORD_BITS, end - w));
}

/* The first set bit in [pos, end), or end. */
static uint64_t
find_set (const struct bitmap *b, uint64_t pos, uint64_t end)
{
  const unsigned top = b->nr_levels - 1;
  unsigned k = 0;
  uint64_t w, bits;

  /* pos counts in bits of level k. */
  while (pos << (k * WORD_SHIFT) < end) {
    w = pos >> WORD_SHIFT;
    bits = word_load (&b->level[k], w) & (ALL_ONES << (pos % WORD_BITS));
    if (bits != 0) {
      pos = (w << WORD_SHIFT) + (unsigned) __builtin_ctzll (bits);
      if (k == 0)
        return MIN (pos, end);
      pos <<= WORD_SHIFT;
      k--;
    }
    else if (k < top) {
      pos = w + 1;
      k++;
    }
    else
      pos = (w + 1) << WORD_SHIFT;
  }
  return end;
}

/* The first clear bit in [pos, end), or end. */
static uint64_t
find_clear (const struct bitmap *b, uint64_t pos, uint64_t end)
{
  uint64_t w, bits;

  while (pos < end) {
    w = pos >> WORD_SHIFT;
    bits = ~word_load (&b->level[0], w) & (ALL_ONES << (pos % WORD_BITS));
    if (bits != 0) {
      pos = (w << WORD_SHIFT) + (unsigned) __builtin_ctzll (bits);
      return MIN (pos, end);
    }
    pos = (w + 1) << WORD_SHIFT;
  }
  return end;
}

typedef uint64_t (*find_function) (const struct bitmap *b, uint64_t pos,
                                   uint64_t end);

/* The first run that start finds and stop ends, clipped to [off, off+len). */
static bool
find_run (const struct bitmap *b, uint64_t off, uint64_t len,
          find_function start, find_function stop, struct range *ret)
{
  uint64_t end, first, last_end, bit;

  if (len == 0 || off >= b->size)
    return false;
  end = MIN (len, b->size - off) + off;
  last_end = ((end - 1) >> b->shift) + 1;
  first = start (b, off >> b->shift, last_end);
  if (first == last_end)
    return false;
  /* Not from first on: it may be changing just now. */
  bit = stop (b, first + 1, last_end);
  ret->off = MAX (first << b->shift, off);
  ret->len = MIN (bit << b->shift, end) - ret->off;
  return true;
}

bool
bitmap_next_dirty (const struct bitmap *b, uint64_t off, uint64_t len,
                   struct range *ret)
{
  return find_run (b, off, len, find_set, find_clear, ret);
}

bool
bitmap_next_clean (const struct bitmap *b, uint64_t off, uint64_t len,
                   struct range *ret)
{
  return find_run (b, off, len, find_clear, find_set, ret);
}

bool
bitmap_get (const struct bitmap *b, uint64_t off)
{
  uint64_t bit = off >> b->shift;

  assert (off < b->size);
  return word_load (&b->level[0], bit >> WORD_SHIFT) >> (bit % WORD_BITS) & 1;
}

uint64_t
bitmap_count (const struct bitmap *b)
{
  return atomic_load_explicit (&b->count, memory_order_relaxed);
}

uint64_t
bitmap_dirty_bytes (const struct bitmap *b)
{
  const uint64_t count = bitmap_count (b);
  uint64_t bytes = count << b->shift;

  /* The count may not yet hold a last granule that is just being set. */
  if (count > 0 && bitmap_get (b, b->size - 1))
    bytes -= (b->nr_bits << b->shift) - b->size;
  return bytes;
}

/* Clear the bits in mask of the leaf's word w, and the summary over it. */
static void
leaf_clear (struct bitmap *b, uint64_t w, uint64_t mask)
{
  uint64_t old;
  unsigned k;

  old = atomic_fetch_and_explicit (&b->level[0].words[w], ~mask,
                                   memory_order_relaxed);
  atomic_fetch_sub_explicit (&b->count,
                             (unsigned) __builtin_popcountll (old & mask),
                             memory_order_relaxed);
  for (k = 1; (old & ~mask) == 0 && k < b->nr_levels; k++) {
    mask = UINT64_C (1) << (w % WORD_BITS);
    w >>= WORD_SHIFT;
    old = atomic_fetch_and_explicit (&b->level[k].words[w], ~mask,
                                     memory_order_relaxed);
  }
}

/* Clear the bits [first, end); work goes with those that are set. */
static void
clear_bits (struct bitmap *b, uint64_t first, uint64_t end)
{
  uint64_t pos = first, w;

  while ((pos = find_set (b, pos, end)) < end) {
    w = pos >> WORD_SHIFT;
    leaf_clear (b, w, word_mask (w, first, end - 1));
    pos = (w + 1) << WORD_SHIFT;
  }
}

void
bitmap_clear_all (struct bitmap *b)
{
  /* Give the memory back.  Refused for locked memory, and not what a file is
   * mapped for: then by hand.
   */
  if (b->first_level == 0
      && madvise (b->map, b->map_len, MADV_DONTNEED) == 0)
    atomic_store_explicit (&b->count, 0, memory_order_relaxed);
  else
    clear_bits (b, 0, b->nr_bits);
}

void
bitmap_clear (struct bitmap *b, uint64_t off, uint64_t len)
{
  uint64_t first, end;

  assert (range_is_within (off, len, b->size));
  first = round_up (off, bitmap_granularity (b)) >> b->shift;
  end = off + len == b->size ? b->nr_bits : (off + len) >> b->shift;
  if (first >= end)
    return;
  if (end - first == b->nr_bits)
    bitmap_clear_all (b);
  else
    clear_bits (b, first, end);
}

/* dst |= the bits [0, end) of src, of equal granularity, by whole words. */
static void
merge_words (struct bitmap *dst, const struct bitmap *src, uint64_t end)
{
  uint64_t pos = 0, w, n, added = 0;

  while ((pos = find_set (src, pos, end)) < end) {
    w = pos >> WORD_SHIFT;
    n = word_load (&src->level[0], w) & word_mask (w, 0, end - 1);
    added += leaf_set (dst, w, n);
    pos = (w + 1) << WORD_SHIFT;
  }
  atomic_fetch_add_explicit (&dst->count, added, memory_order_relaxed);
}

void
bitmap_merge (struct bitmap *dst, const struct bitmap *src)
{
  struct range r;
  uint64_t pos = 0;

  assert (dst->size == src->size);
  if (dst == src)
    return;
  if (dst->shift == src->shift) {
    merge_words (dst, src, src->nr_bits);
    return;
  }
  while (bitmap_next_dirty (src, pos, src->size - pos, &r)) {
    bitmap_set (dst, r.off, r.len);
    /* What the last granule of dst covers beyond the run is done as well. */
    pos = MIN (round_up (r.off + r.len, bitmap_granularity (dst)), dst->size);
  }
}

void
bitmap_merge_prefix (struct bitmap *dst, const struct bitmap *src)
{
  assert (dst->shift == src->shift);
  merge_words (dst, src, MIN (src->nr_bits, dst->nr_bits));
}

int
bitmap_copy (const struct bitmap *src, uint64_t size, struct bitmap **ret)
{
  struct bitmap *b;
  int r;

  r = bitmap_new (size, bitmap_granularity (src), &b);
  if (r < 0)
    return r;
  bitmap_merge_prefix (b, src);
  *ret = b;
  return 0;
}

int
bitmap_resize (struct bitmap *b, uint64_t size)
{
  struct bitmap *copy, old;
  int r;

  assert (b->first_level == 0);
  r = bitmap_copy (b, size, &copy);
  if (r < 0)
    return r;
  old = *b;
  *b = *copy;
  *copy = old;
  bitmap_free (copy);
  return 0;
}

size_t
bitmap_memory (const struct bitmap *b)
{
  return sizeof *b + b->map_len;
}
