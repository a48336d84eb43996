/* SPDX-License-Identifier: BSD-3-Clause */
/* Checksum files: writing them in order while clusters complete out of order,
 * and reading them.
 *
 * Ranges that are reserved and not yet written to the file stand in a queue,
 * as many as the copy engine has in flight; whoever completes the first of
 * them moves the complete ones into the run under construction.  So memory
 * does not depend on the size of the backup.
 *
 * sums_reserve is called by one thread at a time, sums_set by any number of
 * them at once, the rest by the main thread.
 */
#include "config.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "byteorder.h"
#include "lock.h"
#include "range.h"
#include "sums.h"

#define SUMS_MAGIC "TMRKSUMS"
#define SUMS_VERSION 1
#define SUMS_HASH_BLOCKS 1      /* SHA-256 of SHA-256s, see docs/format.md */
#define MAX_BLOCKS (SUMS_MAX_CLUSTER_SIZE / SUMS_BLOCK_SIZE)
#define BUFFER_SIZE 65536
#define FIRST_SLOTS 64          /* a power of two */

enum slot_state {
  SLOT_PENDING,
  SLOT_MIXED,                   /* kinds and hashes are set */
  SLOT_ZERO,
};

struct slot {
  enum slot_state state;
  uint64_t first, count;        /* clusters */
  uint8_t *hashes;              /* one per cluster */
  uint8_t *kinds;               /* enum sums_type, one per cluster */
  uint64_t cap;                 /* clusters */
};

struct sums_writer {
  /* Fixed after new. */
  int fd;
  struct sums_header header;
  bool skip_zero;

  struct lock lock;
  /* Protected by lock. */
  struct slot *slots;           /* ring; slot n is slots[n & (cap - 1)] */
  uint64_t cap, head, tail;
  enum sums_type run_type;      /* SUMS_END: no run yet */
  uint64_t run_first, run_count;
  uint8_t *run_hashes;          /* SUMS_MAX_DATA_RUN of them */
  uint64_t nr_records;
  struct sums_totals totals;
  uint64_t next;                /* cluster: those before it are in the run or
                                   before it */
  gnutls_hash_hd_t hash;
  uint64_t offset;              /* bytes given to the hash */
  uint8_t *buf;                 /* BUFFER_SIZE; the last of these */
  size_t buf_len;
  int error;                    /* -errno of the first failed write */
};

void
sums_hash_cluster (const void *buf, size_t len, uint8_t ret[SUMS_HASH_SIZE])
{
  /* Too large for the stack. */
  static _Thread_local uint8_t hashes[MAX_BLOCKS * SUMS_HASH_SIZE];
  const size_t nr = len / SUMS_BLOCK_SIZE, tail = len % SUMS_BLOCK_SIZE;

  sha256_blocks (buf, nr, SUMS_BLOCK_SIZE, hashes);
  if (tail > 0)
    sha256_hash ((const uint8_t *) buf + len - tail, tail,
                 hashes + nr * SUMS_HASH_SIZE);
  sha256_hash (hashes, (nr + (tail > 0)) * SUMS_HASH_SIZE, ret);
}

void
sums_hash_format (const uint8_t hash[SUMS_HASH_SIZE], char ret[SUMS_HEX_SIZE])
{
  size_t i;

  for (i = 0; i < SUMS_HASH_SIZE; i++)
    snprintf (&ret[2*i], 3, "%02x", hash[i]);
}

int
sums_hash_parse (const char *s, uint8_t ret[SUMS_HASH_SIZE])
{
  size_t i;
  unsigned byte;

  if (strlen (s) != SUMS_HEX_SIZE - 1
      || strspn (s, "0123456789abcdef") != SUMS_HEX_SIZE - 1)
    return -EINVAL;
  for (i = 0; i < SUMS_HASH_SIZE; i++) {
    if (sscanf (&s[2*i], "%2x", &byte) != 1)
      return -EINVAL;
    ret[i] = (uint8_t) byte;
  }
  return 0;
}

static void
write_buffer (struct sums_writer *w)
{
  size_t done = 0;
  ssize_t n;

  while (done < w->buf_len && w->error == 0) {
    n = write (w->fd, w->buf + done, w->buf_len - done);
    if (n > 0)
      done += (size_t) n;
    else if (n < 0 && errno != EINTR)
      w->error = -errno;
    else if (n == 0)
      w->error = -EIO;
  }
  w->buf_len = 0;
}

/* After an error nothing more is written: sums_set and sums_finish say so. */
static void
emit (struct sums_writer *w, const void *data, size_t len)
{
  const uint8_t *p = data;
  size_t n;

  gnutls_hash (w->hash, data, len);
  w->offset += len;
  while (len > 0) {
    n = MIN (len, BUFFER_SIZE - w->buf_len);
    memcpy (w->buf + w->buf_len, p, n);
    w->buf_len += n;
    p += n;
    len -= n;
    if (w->buf_len == BUFFER_SIZE)
      write_buffer (w);
  }
}

static void
emit_record (struct sums_writer *w, enum sums_type type, uint64_t first,
             uint64_t count)
{
  uint8_t record[SUMS_RECORD_SIZE] = { 0 };

  store_be32 (&record[0], (uint32_t) type);
  store_be64 (&record[8], first);
  store_be64 (&record[16], count);
  emit (w, record, sizeof record);
}

static void
emit_header (struct sums_writer *w)
{
  const struct sums_header *h = &w->header;
  uint8_t b[SUMS_HEADER_SIZE] = { 0 };

  memcpy (&b[0], SUMS_MAGIC, 8);
  store_be32 (&b[8], SUMS_VERSION);
  store_be32 (&b[12], SUMS_HEADER_SIZE);
  store_be32 (&b[16], h->cluster_size);
  store_be32 (&b[20], SUMS_HASH_BLOCKS);
  store_be64 (&b[24], h->virtual_size);
  store_be64 (&b[32], h->number);
  memcpy (&b[40], h->point.bytes, sizeof h->point.bytes);
  emit (w, b, sizeof b);
}

/* Without a byte written. */
static int
writer_new (int fd, const struct sums_header *header, bool skip_zero,
            struct sums_writer **ret)
{
  struct sums_writer *w = calloc (1, sizeof *w);

  if (!w)
    return -ENOMEM;
  w->fd = fd;
  w->header = *header;
  w->skip_zero = skip_zero;
  lock_init (&w->lock, LOCK_RANK_LEAF);
  w->cap = FIRST_SLOTS;
  w->slots = calloc (w->cap, sizeof *w->slots);
  w->run_hashes = malloc ((size_t) SUMS_MAX_DATA_RUN * SUMS_HASH_SIZE);
  w->buf = malloc (BUFFER_SIZE);
  if (!w->slots || !w->run_hashes || !w->buf
      || gnutls_hash_init (&w->hash, GNUTLS_DIG_SHA256) < 0) {
    w->hash = NULL;
    sums_writer_free (w);
    return -ENOMEM;
  }
  *ret = w;
  return 0;
}

int
sums_writer_new (int fd, const struct sums_header *header, bool skip_zero,
                 struct sums_writer **ret)
{
  int r = writer_new (fd, header, skip_zero, ret);

  if (r == 0)
    emit_header (*ret);
  return r;
}

/* All of buf from the file: 0, -EBADMSG if it is shorter, -errno. */
static int
read_at (int fd, void *buf, size_t len, uint64_t off)
{
  char *p = buf;
  ssize_t n;

  while (len > 0) {
    n = pread (fd, p, len, (off_t) off);
    if (n == 0)
      return -EBADMSG;
    if (n < 0 && errno != EINTR)
      return -errno;
    if (n > 0) {
      p += n;
      off += (uint64_t) n;
      len -= (size_t) n;
    }
  }
  return 0;
}

/* Give what the file has before the open run to the hash again. */
static int
hash_again (struct sums_writer *w, uint64_t end)
{
  size_t n;
  int r;

  for (; w->offset < end; w->offset += n) {
    n = (size_t) MIN (end - w->offset, BUFFER_SIZE);
    r = read_at (w->fd, w->buf, n, w->offset);
    if (r < 0)
      return r;
    gnutls_hash (w->hash, w->buf, n);
  }
  return lseek (w->fd, (off_t) end, SEEK_SET) < 0 ? -errno : 0;
}

static int
load_state (struct sums_writer *w, const struct sums_state *state)
{
  const uint64_t end = div_round_up (w->header.virtual_size,
                                     w->header.cluster_size);
  int r;

  if (state->offset < SUMS_HEADER_SIZE || state->next > end
      || state->run_type > SUMS_ZERO
      || (state->run_type == SUMS_DATA
          && state->run_count > SUMS_MAX_DATA_RUN))
    return -EBADMSG;
  r = hash_again (w, state->offset);
  if (r == 0 && state->run_type == SUMS_DATA)
    r = read_at (w->fd, w->run_hashes, state->run_count * SUMS_HASH_SIZE,
                 state->offset + SUMS_RECORD_SIZE);
  w->next = state->next;
  w->nr_records = state->nr_records;
  w->totals = state->totals;
  w->run_type = state->run_type;
  w->run_first = state->run_first;
  w->run_count = state->run_count;
  return r;
}

int
sums_writer_resume (int fd, const struct sums_header *header, bool skip_zero,
                    const struct sums_state *state, struct sums_writer **ret)
{
  struct sums_writer *w;
  int r = writer_new (fd, header, skip_zero, &w);

  if (r < 0)
    return r;
  r = load_state (w, state);
  if (r < 0)
    sums_writer_free (w);
  else
    *ret = w;
  return r;
}

void
sums_writer_free (struct sums_writer *w)
{
  uint64_t i;

  if (!w)
    return;
  if (w->hash)
    gnutls_hash_deinit (w->hash, NULL);
  for (i = 0; w->slots && i < w->cap; i++) {
    free (w->slots[i].hashes);
    free (w->slots[i].kinds);
  }
  free (w->slots);
  free (w->run_hashes);
  free (w->buf);
  lock_destroy (&w->lock);
  free (w);
}

static struct slot *
slot_at (struct sums_writer *w, uint64_t n)
{
  return &w->slots[n & (w->cap - 1)];
}

static int
grow_ring_locked (struct sums_writer *w)
{
  uint64_t cap = w->cap * 2, n;
  struct slot *slots = calloc (cap, sizeof *slots);

  lock_assert_held (&w->lock);
  if (!slots)
    return -ENOMEM;
  for (n = w->head; n < w->tail; n++)
    slots[n & (cap - 1)] = *slot_at (w, n);
  free (w->slots);
  w->slots = slots;
  w->cap = cap;
  return 0;
}

static int
reserve_hashes (struct slot *slot, uint64_t count)
{
  uint8_t *p;

  if (count <= slot->cap)
    return 0;
  p = realloc (slot->hashes, count * SUMS_HASH_SIZE);
  if (!p)
    return -ENOMEM;
  slot->hashes = p;
  p = realloc (slot->kinds, count);
  if (!p)
    return -ENOMEM;
  slot->kinds = p;
  slot->cap = count;
  return 0;
}

static void
flush_run (struct sums_writer *w)
{
  if (w->run_type == SUMS_END)
    return;
  emit_record (w, w->run_type, w->run_first, w->run_count);
  w->nr_records++;
  if (w->run_type == SUMS_DATA) {
    emit (w, w->run_hashes, w->run_count * SUMS_HASH_SIZE);
    w->totals.data_clusters += w->run_count;
  }
  else
    w->totals.zero_clusters += w->run_count;
  w->run_type = SUMS_END;
  w->run_count = 0;
}

/* Add clusters of one type to the run under construction. */
static void
add_run (struct sums_writer *w, enum sums_type type, uint64_t first,
         uint64_t count, const uint8_t *hashes)
{
  while (count > 0) {
    uint64_t n = count;

    if (w->run_type != type || w->run_first + w->run_count != first
        || (type == SUMS_DATA && w->run_count == SUMS_MAX_DATA_RUN))
      flush_run (w);
    if (w->run_type == SUMS_END) {
      w->run_type = type;
      w->run_first = first;
    }
    if (type == SUMS_DATA) {
      n = MIN (count, SUMS_MAX_DATA_RUN - w->run_count);
      memcpy (w->run_hashes + w->run_count * SUMS_HASH_SIZE, hashes,
              n * SUMS_HASH_SIZE);
      hashes += n * SUMS_HASH_SIZE;
    }
    w->run_count += n;
    first += n;
    count -= n;
  }
}

/* Add the clusters of a slot whose kinds are known. */
static void
add_mixed (struct sums_writer *w, const struct slot *slot)
{
  uint64_t i, n;

  for (i = 0; i < slot->count; i += n) {
    for (n = 1; i + n < slot->count; n++)
      if (slot->kinds[i+n] != slot->kinds[i])
        break;
    if (slot->kinds[i] == SUMS_DATA || !w->skip_zero)
      add_run (w, (enum sums_type) slot->kinds[i], slot->first + i, n,
               slot->hashes + i * SUMS_HASH_SIZE);
  }
}

/* Move what is complete at the head of the queue into the run. */
static void
pop_complete_locked (struct sums_writer *w)
{
  const struct slot *slot;

  lock_assert_held (&w->lock);
  for (; w->head < w->tail; w->head++) {
    slot = slot_at (w, w->head);
    if (slot->state == SLOT_PENDING)
      return;
    if (slot->state == SLOT_MIXED)
      add_mixed (w, slot);
    else if (!w->skip_zero)
      add_run (w, SUMS_ZERO, slot->first, slot->count, NULL);
    w->next = slot->first + slot->count;
  }
}

int
sums_reserve (struct sums_writer *w, uint64_t off, uint64_t len, bool is_zero)
{
  uint64_t cluster_size = w->header.cluster_size;
  struct slot *slot;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  if (w->tail - w->head == w->cap && grow_ring_locked (w) < 0)
    return -ENOMEM;
  slot = slot_at (w, w->tail);
  slot->first = off / cluster_size;
  slot->count = div_round_up (len, cluster_size);
  if (!is_zero && reserve_hashes (slot, slot->count) < 0)
    return -ENOMEM;
  slot->state = is_zero ? SLOT_ZERO : SLOT_PENDING;
  w->tail++;
  pop_complete_locked (w);
  return w->error;
}

/* The number of the pending slot that begins at cluster first. */
static uint64_t
find_slot_locked (struct sums_writer *w, uint64_t first)
{
  uint64_t lo = w->head, hi = w->tail;

  lock_assert_held (&w->lock);
  while (hi - lo > 1) {
    uint64_t mid = lo + (hi - lo) / 2;

    if (slot_at (w, mid)->first <= first)
      lo = mid;
    else
      hi = mid;
  }
  return lo;
}

/* Hash the clusters of a range, or find them zero. */
static void
examine (uint64_t cluster_size, const uint8_t *buf, uint64_t len,
         uint8_t *hashes, uint8_t *kinds)
{
  uint64_t n;

  for (; len > 0; len -= n) {
    n = MIN (cluster_size, len);
    *kinds = is_zero_buffer (buf, n) ? SUMS_ZERO : SUMS_DATA;
    if (*kinds == SUMS_DATA)
      sums_hash_cluster (buf, n, hashes);
    buf += n;
    hashes += SUMS_HASH_SIZE;
    kinds++;
  }
}

int
sums_set (struct sums_writer *w, uint64_t off, uint64_t len, const void *buf)
{
  uint64_t cluster_size = w->header.cluster_size, n;
  uint8_t *hashes, *kinds;
  struct slot *slot;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
    n = find_slot_locked (w, off / cluster_size);
    slot = slot_at (w, n);
    if (n >= w->tail || slot->first != off / cluster_size
        || slot->count != div_round_up (len, cluster_size)
        || slot->state != SLOT_PENDING)
      return -EINVAL;
    /* They stay where they are, also when the ring grows. */
    hashes = slot->hashes;
    kinds = slot->kinds;
  }
  examine (cluster_size, buf, len, hashes, kinds);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  slot_at (w, n)->state = SLOT_MIXED;
  pop_complete_locked (w);
  return w->error;
}

/* The hashes of the open run lie where they will lie when it is complete, so
 * the writing may go on over them.
 */
int
sums_writer_save (struct sums_writer *w, struct sums_state *ret)
{
  size_t len, done = 0;
  ssize_t n;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  pop_complete_locked (w);
  write_buffer (w);
  len = w->run_type == SUMS_DATA ? w->run_count * SUMS_HASH_SIZE : 0;
  while (done < len && w->error == 0) {
    n = pwrite (w->fd, w->run_hashes + done, len - done,
                (off_t) (w->offset + SUMS_RECORD_SIZE + done));
    if (n > 0)
      done += (size_t) n;
    else if (n == 0 || errno != EINTR)
      w->error = n == 0 ? -EIO : -errno;
  }
  *ret = (struct sums_state) {
    .next = w->next, .offset = w->offset, .nr_records = w->nr_records,
    .totals = w->totals, .run_type = w->run_type,
    .run_first = w->run_first, .run_count = w->run_count,
  };
  return w->error;
}

int
sums_finish (struct sums_writer *w, uint8_t ret_root[SUMS_HASH_SIZE])
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  pop_complete_locked (w);
  if (w->head != w->tail)
    return -EINVAL;
  flush_run (w);
  emit_record (w, SUMS_END, w->nr_records,
               w->totals.data_clusters + w->totals.zero_clusters);
  write_buffer (w);
  /* What a writer before us may have written beyond. */
  if (w->error == 0 && ftruncate (w->fd, (off_t) w->offset) < 0)
    w->error = -errno;
  if (w->error < 0)
    return w->error;
  gnutls_hash_output (w->hash, ret_root);
  return 0;
}

void
sums_writer_totals (const struct sums_writer *w, struct sums_totals *ret)
{
  *ret = w->totals;
}

struct sums_reader {
  FILE *fp;
  char *name;
  struct sums_header header;
  gnutls_hash_hd_t hash;
  uint64_t nr_clusters;         /* of the disk */
  uint64_t next_first;          /* the next record begins here or later */
  uint64_t nr_records, total;
  uint8_t *hashes;
};

static int
read_exactly (struct sums_reader *r, void *buf, size_t len, struct error *err)
{
  if (fread (buf, 1, len, r->fp) == len) {
    gnutls_hash (r->hash, buf, len);
    return 0;
  }
  if (ferror (r->fp))
    return error_set_errno (err, errno ? errno : EIO, "%s", r->name);
  return error_set (err, EBADMSG, "%s: the file is truncated", r->name);
}

static int
read_header (struct sums_reader *r, struct error *err)
{
  uint8_t b[SUMS_HEADER_SIZE];
  int e = read_exactly (r, b, sizeof b, err);

  if (e < 0)
    return e;
  if (memcmp (b, SUMS_MAGIC, 8) != 0)
    return error_set (err, EBADMSG, "%s: not a checksum file", r->name);
  if (load_be32 (&b[8]) != SUMS_VERSION)
    return error_set (err, ENOTSUP, "%s: format version %u; this program "
                      "reads version %u", r->name, load_be32 (&b[8]),
                      SUMS_VERSION);
  r->header.cluster_size = load_be32 (&b[16]);
  r->header.virtual_size = load_be64 (&b[24]);
  r->header.number = load_be64 (&b[32]);
  memcpy (r->header.point.bytes, &b[40], sizeof r->header.point.bytes);
  if (load_be32 (&b[12]) != SUMS_HEADER_SIZE
      || load_be32 (&b[20]) != SUMS_HASH_BLOCKS
      || !is_power_of_2 (r->header.cluster_size)
      || r->header.cluster_size < 512
      || r->header.cluster_size > SUMS_MAX_CLUSTER_SIZE
      || r->header.virtual_size > RANGE_MAX_SIZE)
    return error_set (err, EBADMSG, "%s: bad header", r->name);
  r->nr_clusters = div_round_up (r->header.virtual_size,
                                 r->header.cluster_size);
  return 0;
}

int
sums_reader_new (int fd, const char *name, struct sums_reader **ret,
                 struct error *err)
{
  struct sums_reader *r = calloc (1, sizeof *r);
  int e;

  if (!r) {
    close (fd);
    return error_set_errno (err, ENOMEM, "%s", name);
  }
  r->fp = fdopen (fd, "rb");
  if (!r->fp)
    close (fd);
  r->name = strdup (name);
  r->hashes = malloc ((size_t) SUMS_MAX_DATA_RUN * SUMS_HASH_SIZE);
  if (gnutls_hash_init (&r->hash, GNUTLS_DIG_SHA256) < 0)
    r->hash = NULL;
  if (!r->fp || !r->name || !r->hashes || !r->hash)
    e = error_set_errno (err, ENOMEM, "%s", name);
  else
    e = read_header (r, err);
  if (e < 0)
    sums_reader_free (r);
  else
    *ret = r;
  return e;
}

void
sums_reader_free (struct sums_reader *r)
{
  if (!r)
    return;
  if (r->hash)
    gnutls_hash_deinit (r->hash, NULL);
  if (r->fp)
    fclose (r->fp);
  free (r->name);
  free (r->hashes);
  free (r);
}

const struct sums_header *
sums_reader_header (const struct sums_reader *r)
{
  return &r->header;
}

static int
check_end (struct sums_reader *r, uint64_t nr_records, uint64_t total,
           struct error *err)
{
  if (nr_records != r->nr_records || total != r->total)
    return error_set (err, EBADMSG, "%s: the end record counts %ju records "
                      "and %ju clusters, the file has %ju and %ju", r->name,
                      (uintmax_t) nr_records, (uintmax_t) total,
                      (uintmax_t) r->nr_records, (uintmax_t) r->total);
  if (getc (r->fp) != EOF)
    return error_set (err, EBADMSG, "%s: data after the end record", r->name);
  return 0;
}

int
sums_reader_next (struct sums_reader *r, struct sums_record *ret,
                  struct error *err)
{
  uint8_t b[SUMS_RECORD_SIZE];
  uint32_t type;
  int e = read_exactly (r, b, sizeof b, err);

  if (e < 0)
    return e;
  type = load_be32 (&b[0]);
  ret->first = load_be64 (&b[8]);
  ret->count = load_be64 (&b[16]);
  ret->hashes = NULL;
  if (type == SUMS_END && load_be32 (&b[4]) == 0)
    return check_end (r, ret->first, ret->count, err);
  if ((type != SUMS_DATA && type != SUMS_ZERO) || load_be32 (&b[4]) != 0
      || ret->count == 0 || ret->first < r->next_first
      || !range_is_within (ret->first, ret->count, r->nr_clusters)
      || (type == SUMS_DATA && ret->count > SUMS_MAX_DATA_RUN))
    return error_set (err, EBADMSG, "%s: record %ju is malformed", r->name,
                      (uintmax_t) r->nr_records);
  ret->type = (enum sums_type) type;
  if (type == SUMS_DATA) {
    e = read_exactly (r, r->hashes, ret->count * SUMS_HASH_SIZE, err);
    if (e < 0)
      return e;
    ret->hashes = r->hashes;
  }
  r->next_first = ret->first + ret->count;
  r->nr_records++;
  r->total += ret->count;
  return 1;
}

void
sums_reader_root (struct sums_reader *r, uint8_t ret_root[SUMS_HASH_SIZE])
{
  gnutls_hash_output (r->hash, ret_root);
}
