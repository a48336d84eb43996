/* SPDX-License-Identifier: BSD-3-Clause */
/* Checking stored backups.
 *
 * A layer is read alone, without its backing file: first its allocation is
 * held against the runs of the checksum file, then several threads read and
 * hash its data.  The main thread does all but that.  A damage never ends the
 * check: all that there is gets reported.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blk-qcow2.h"
#include "extents.h"
#include "lock.h"
#include "log.h"
#include "progress.h"
#include "range.h"
#include "sums.h"
#include "verify.h"

#define MAX_THREADS 8
#define MAX_CHUNK (UINT32_C (1) << 19)
#define MAX_EXTENTS 16384
/* Lines about one layer; further ones are counted. */
#define MAX_LINES 100

struct layer {
  /* Fixed while threads run. */
  const struct chain *chain;
  const struct backup *b;
  const struct verify_options *options;
  struct blk *blk;              /* NULL: could not be opened */
  uint64_t cluster_size, size;

  /* Atomic. */
  _Atomic int64_t nr_damages;

  struct lock lock;
  /* Protected by lock: what is to be read next. */
  struct sums_reader *reader;
  struct sums_record record;
  uint64_t pos;                 /* clusters of record that are done */
  bool at_end;
};

static int64_t
report (const struct chain *chain, unsigned number, const char *text)
{
  if (progress_get_mode () == PROGRESS_JSON)
    progress_event ("damage", json_pack ("{s:s, s:i, s:s}",
                                         "disk", chain->disk, "number",
                                         (int) number, "message", text));
  else
    log_error ("%s: backup %u: %s", chain->folder, number, text);
  return 1;
}

static void damage (struct layer *l, const char *fmt, ...)
  __attribute__ ((format (printf, 2, 3)));

static void
damage (struct layer *l, const char *fmt, ...)
{
  char text[400];
  va_list args;

  if (atomic_fetch_add (&l->nr_damages, 1) >= MAX_LINES)
    return;
  va_start (args, fmt);
  vsnprintf (text, sizeof text, fmt, args);
  va_end (args);
  report (l->chain, l->b->number, text);
}

int64_t
verify_backing (const struct chain *chain, const struct backup *b)
{
  const struct backup *backing = chain_backing (chain, b);
  char text[200];

  /* An unreadable manifest is verify_layer's to report. */
  if (!b->manifest || b->is_full)
    return 0;
  if (!backing) {
    snprintf (text, sizeof text, "it is based on backup %u, which is not "
              "there", b->manifest->backing_number);
    return report (chain, b->number, text);
  }
  if (!backing->manifest)
    return 0;
  if (!point_id_is_equal (&backing->manifest->point, &b->manifest->parent)) {
    snprintf (text, sizeof text, "it is based on another backup %u than the "
              "one that is there", backing->number);
    return report (chain, b->number, text);
  }
  return 0;
}

/* An image or checksum file under its final name always has a manifest, or,
 * between two steps of a commit, a manifest that is still ".partial".
 */
static int64_t
check_entry (const struct chain *chain, const char *entry)
{
  char name[BACKUP_NAME_MAX], text[400];
  const char *suffix;
  unsigned number;
  bool is_full;

  if (!backup_name_parse (entry, &number, &is_full, &suffix)
      || (strcmp (suffix, ".qcow2") != 0 && strcmp (suffix, ".sums") != 0))
    return 0;
  backup_name (number, is_full, ".json", name);
  if (faccessat (chain->dirfd, name, F_OK, 0) == 0)
    return 0;
  backup_name (number, is_full, ".json.partial", name);
  if (faccessat (chain->dirfd, name, F_OK, 0) == 0)
    return 0;
  snprintf (text, sizeof text, "%s is there, but its manifest is missing",
            entry);
  return report (chain, number, text);
}

int64_t
verify_folder (const struct chain *chain, struct error *err)
{
  int fd = openat (chain->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *dir = fd >= 0 ? fdopendir (fd) : NULL;
  struct dirent *d;
  int64_t n = 0;

  if (!dir) {
    n = error_set_errno (err, errno, "%s", chain->folder);
    if (fd >= 0)
      close (fd);
    return n;
  }
  while ((d = readdir (dir)) != NULL)
    n += check_entry (chain, d->d_name);
  closedir (dir);
  return n;
}

static void
check_image_file (struct layer *l)
{
  char name[BACKUP_NAME_MAX];
  struct stat st;

  backup_name (l->b->number, l->b->is_full, ".qcow2", name);
  if (fstatat (l->chain->dirfd, name, &st, 0) < 0)
    damage (l, "%s: %s", name, strerror (errno));
  else if ((uint64_t) st.st_size != l->b->manifest->image_bytes)
    damage (l, "%s has %jd bytes instead of %" PRIu64, name,
            (intmax_t) st.st_size, l->b->manifest->image_bytes);
}

static void
check_image_header (struct layer *l)
{
  const struct manifest *m = l->b->manifest;
  char backing[BACKUP_NAME_MAX] = "";
  struct qcow2_info info;

  blk_qcow2_info (l->blk, &info);
  if (info.size != m->virtual_size)
    damage (l, "the image says that the disk has %" PRIu64 " bytes instead of "
            "%" PRIu64, info.size, m->virtual_size);
  if (info.cluster_size != m->cluster_size)
    damage (l, "the image has clusters of %u bytes instead of %u",
            info.cluster_size, m->cluster_size);
  if (m->backing_number)
    backup_name (m->backing_number, m->is_backing_full, ".qcow2", backing);
  if (strcmp (info.backing_file, backing) != 0)
    damage (l, "the image's backing file is '%s' instead of '%s'",
            info.backing_file, backing);
  else if (backing[0] && strcmp (info.backing_format, "qcow2") != 0)
    damage (l, "the image's backing format is '%s' instead of 'qcow2'",
            info.backing_format);
}

static void
open_image (struct layer *l)
{
  struct error e = ERROR_INIT;

  check_image_file (l);
  if (chain_open_image (l->chain, l->b, true, &l->blk, &e) < 0) {
    l->blk = NULL;
    damage (l, "%s", e.msg);
    return;
  }
  check_image_header (l);
  l->size = blk_size (l->blk);
}

static int
open_sums (struct layer *l, struct error *err)
{
  char name[BACKUP_NAME_MAX];
  int fd;

  backup_name (l->b->number, l->b->is_full, ".sums", name);
  fd = openat (l->chain->dirfd, name, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return error_set_errno (err, errno, "%s", name);
  return sums_reader_new (fd, name, &l->reader, err);
}

static bool
is_header_right (const struct layer *l)
{
  const struct sums_header *h = sums_reader_header (l->reader);
  const struct manifest *m = l->b->manifest;

  return h->cluster_size == m->cluster_size
    && h->virtual_size == m->virtual_size && h->number == m->number
    && point_id_is_equal (&h->point, &m->point);
}

/* A run of clusters of one type; SUMS_END: none. */
struct run {
  enum sums_type type;
  uint64_t first, end;
};

/* The runs of the image, in order. */
struct image_walk {
  struct layer *l;
  uint64_t off;
  struct extents depth, status;
  size_t i;                     /* in status */
  uint64_t depth_end;
  int error;
};

/* The status of the next piece that the layer itself holds: 1, 0 at the end.
 */
static int
walk_fill (struct image_walk *w)
{
  const struct extent *e;
  int r;

  while (w->off < w->l->size) {
    extents_clear (&w->depth);
    r = blk_extents (w->l->blk, w->l->size - w->off, w->off, 0,
                     BLK_STATUS_DEPTH, &w->depth);
    if (r < 0)
      return r;
    e = &w->depth.ptr[0];
    if (e->value != 0) {
      extents_clear (&w->status);
      w->i = 0;
      r = blk_extents (w->l->blk, e->len, w->off, 0, BLK_STATUS_ALLOCATION,
                       &w->status);
      return r < 0 ? r : 1;
    }
    w->off += e->len;
  }
  return 0;
}

/* One extent as a run of clusters. */
static int
walk_extent (struct image_walk *w, struct run *ret)
{
  const struct extent *e;
  int r;

  if (w->i == w->status.len) {
    r = walk_fill (w);
    if (r <= 0)
      return r;
  }
  e = &w->status.ptr[w->i++];
  w->off = e->off + e->len;
  ret->type = e->value & EXTENT_ZERO ? SUMS_ZERO : SUMS_DATA;
  ret->first = e->off / w->l->cluster_size;
  ret->end = div_round_up (w->off, w->l->cluster_size);
  return 1;
}

static int
next_image_run (void *opaque, struct run *ret, struct error *err)
{
  struct image_walk *w = opaque;
  int r = walk_extent (w, ret);

  return r < 0 ? error_set_errno (err, -r, "the image's tables cannot be read"
                                  " at offset %" PRIu64, w->off) : r;
}

static int
next_sums_run (void *opaque, struct run *ret, struct error *err)
{
  struct layer *l = opaque;
  struct sums_record record;
  int r = sums_reader_next (l->reader, &record, err);

  if (r > 0) {
    ret->type = record.type;
    ret->first = record.first;
    ret->end = record.first + record.count;
  }
  return r;
}

struct run_source {
  int (*next) (void *opaque, struct run *ret, struct error *err);
  void *opaque;
  struct run run;               /* SUMS_END: at the end */
};

static int
advance (struct run_source *s, uint64_t pos, struct error *err)
{
  int r;

  while (s->run.type != SUMS_END && s->run.end <= pos) {
    r = s->next (s->opaque, &s->run, err);
    if (r < 0)
      return r;
    if (r == 0)
      s->run.type = SUMS_END;
  }
  return 0;
}

static enum sums_type
type_at (const struct run_source *s, uint64_t pos, uint64_t *end)
{
  if (s->run.type == SUMS_END)
    return SUMS_END;
  if (pos < s->run.first) {
    *end = MIN (*end, s->run.first);
    return SUMS_END;
  }
  *end = MIN (*end, s->run.end);
  return s->run.type;
}

static const char *
type_name (enum sums_type type)
{
  return type == SUMS_DATA ? "data" : type == SUMS_ZERO ? "zeroes"
    : "nothing";
}

/* Hold the clusters that the image has against those that it should have. */
static int
compare_runs (struct layer *l, struct run_source *want,
              struct run_source *have, struct error *err)
{
  uint64_t pos = 0, end;
  int r;

  /* Runs that end at 0 make both begin. */
  want->run = have->run = (struct run) { .type = SUMS_DATA };
  for (;; pos = end) {
    enum sums_type a, b;

    r = advance (want, pos, err);
    if (r == 0)
      r = advance (have, pos, err);
    if (r < 0
        || (want->run.type == SUMS_END && have->run.type == SUMS_END))
      return r;
    end = UINT64_MAX;
    a = type_at (want, pos, &end);
    b = type_at (have, pos, &end);
    if (a != b)
      damage (l, "clusters %" PRIu64 " to %" PRIu64 " hold %s instead of %s",
              pos, end - 1, type_name (b), type_name (a));
  }
}

/* Read the checksum file once, for its root and its runs.  True if it is
 * whole.
 */
static bool
check_structure (struct layer *l)
{
  struct image_walk walk = { .l = l };
  struct run_source want = { .next = next_sums_run, .opaque = l };
  struct run_source have = { .next = next_image_run, .opaque = &walk };
  struct error e = ERROR_INIT;
  uint8_t root[SUMS_HASH_SIZE];
  struct sums_record record;
  int r = 0;

  if (l->blk) {
    extents_init (&walk.depth, MAX_EXTENTS);
    extents_init (&walk.status, MAX_EXTENTS);
    r = compare_runs (l, &want, &have, &e);
    extents_free (&walk.depth);
    extents_free (&walk.status);
  }
  else
    while ((r = sums_reader_next (l->reader, &record, &e)) > 0)
      ;
  if (r < 0) {
    damage (l, "%s", e.msg);
    return false;
  }
  sums_reader_root (l->reader, root);
  if (memcmp (root, l->b->manifest->root, sizeof root) != 0) {
    damage (l, "the checksum file is not the one that the manifest names");
    return false;
  }
  return true;
}

/* Clusters to read: 1, 0 at the end. */
struct chunk {
  uint64_t first, count;
  uint8_t *hashes;
};

static bool
next_chunk (struct layer *l, struct chunk *ret)
{
  uint64_t max = MAX (1, MAX_CHUNK / l->cluster_size);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&l->lock);
  if (__atomic_load_n (l->options->cancel, __ATOMIC_RELAXED))
    l->at_end = true;
  while (!l->at_end
         && (l->record.type != SUMS_DATA || l->pos == l->record.count)) {
    l->pos = 0;
    if (sums_reader_next (l->reader, &l->record, NULL) <= 0)
      l->at_end = true;
  }
  if (l->at_end)
    return false;
  ret->first = l->record.first + l->pos;
  ret->count = MIN (max, l->record.count - l->pos);
  memcpy (ret->hashes, l->record.hashes + l->pos * SUMS_HASH_SIZE,
          ret->count * SUMS_HASH_SIZE);
  l->pos += ret->count;
  return true;
}

static void
check_chunk (struct layer *l, const struct chunk *c, uint8_t *buf)
{
  uint64_t off = c->first * l->cluster_size, i, bad = 0, first_bad = 0, n;
  uint64_t len = off < l->size
    ? MIN (c->count * l->cluster_size, l->size - off) : 0;
  uint8_t hash[SUMS_HASH_SIZE];
  int r = blk_pread (l->blk, buf, len, off, 0);

  if (r < 0) {
    damage (l, "clusters %" PRIu64 " to %" PRIu64 " cannot be read: %s",
            c->first, c->first + c->count - 1, strerror (-r));
    return;
  }
  for (i = 0; i * l->cluster_size < len; i++) {
    n = MIN (l->cluster_size, len - i * l->cluster_size);
    sums_hash_cluster (buf + i * l->cluster_size, n, hash);
    if (memcmp (hash, c->hashes + i * SUMS_HASH_SIZE, sizeof hash) == 0)
      continue;
    if (bad++ == 0)
      first_bad = c->first + i;
  }
  if (bad == 1)
    damage (l, "the content of cluster %" PRIu64 " (offset %" PRIu64 ") does "
            "not match its checksum", first_bad,
            first_bad * l->cluster_size);
  else if (bad > 1)
    damage (l, "the content of %" PRIu64 " clusters from cluster %" PRIu64
            " (offset %" PRIu64 ") on does not match their checksums", bad,
            first_bad, first_bad * l->cluster_size);
  progress_add (len);
}

static void *
data_thread (void *opaque)
{
  struct layer *l = opaque;
  size_t clusters = MAX (1, MAX_CHUNK / l->cluster_size);
  struct chunk c = { .hashes = malloc (clusters * SUMS_HASH_SIZE) };
  uint8_t *buf = malloc (clusters * l->cluster_size);

  if (!c.hashes || !buf)
    damage (l, "the data cannot be checked: %s", strerror (ENOMEM));
  while (c.hashes && buf && next_chunk (l, &c))
    check_chunk (l, &c, buf);
  free (c.hashes);
  free (buf);
  return NULL;
}

static unsigned
nr_threads (const struct verify_options *options)
{
  long n = sysconf (_SC_NPROCESSORS_ONLN);

  if (options->nr_threads)
    return options->nr_threads;
  return n < 1 ? 1 : (unsigned) MIN (n, MAX_THREADS);
}

static void
check_data (struct layer *l)
{
  unsigned nr = nr_threads (l->options), i;
  pthread_t *threads = calloc (nr, sizeof *threads);
  unsigned nr_started = 0;

  for (i = 1; threads && i < nr; i++)
    if (pthread_create (&threads[nr_started], NULL, data_thread, l) == 0)
      nr_started++;
  data_thread (l);
  for (i = 0; i < nr_started; i++)
    pthread_join (threads[i], NULL);
  free (threads);
}

static void
check_totals (struct layer *l)
{
  const struct manifest *m = l->b->manifest;
  uint64_t data = 0, zero = 0;
  struct sums_record record;
  struct error e = ERROR_INIT;

  while (sums_reader_next (l->reader, &record, &e) > 0)
    *(record.type == SUMS_DATA ? &data : &zero) += record.count;
  if (data * m->cluster_size != m->data_bytes
      || zero * m->cluster_size != m->zero_bytes)
    damage (l, "the manifest and the checksum file disagree about how much is "
            "stored");
}

static void
check_layer (struct layer *l)
{
  struct error e = ERROR_INIT;

  open_image (l);
  if (open_sums (l, &e) < 0) {
    damage (l, "%s", e.msg);
    return;
  }
  if (!is_header_right (l)) {
    damage (l, "the checksum file belongs to another backup");
    return;
  }
  if (!check_structure (l))
    return;
  sums_reader_free (l->reader);
  l->reader = NULL;
  if (open_sums (l, &e) == 0)
    check_totals (l);
  sums_reader_free (l->reader);
  l->reader = NULL;
  if (!l->blk || l->options->skip_data || open_sums (l, &e) < 0)
    return;
  check_data (l);
}

int64_t
verify_layer (const struct chain *chain, const struct backup *b,
              const struct verify_options *options, struct error *err)
{
  struct layer l = { .chain = chain, .b = b, .options = options };

  if (!b->manifest)
    return report (chain, b->number, b->error.msg);
  lock_init (&l.lock, LOCK_RANK_LEAF);
  l.cluster_size = b->manifest->cluster_size;
  check_layer (&l);
  if (l.nr_damages > MAX_LINES)
    log_error ("%s: backup %u: and %" PRIi64 " more", chain->folder,
               b->number, l.nr_damages - MAX_LINES);
  if (l.blk)
    blk_close (l.blk);
  sums_reader_free (l.reader);
  lock_destroy (&l.lock);
  if (__atomic_load_n (options->cancel, __ATOMIC_RELAXED))
    return error_set (err, ECANCELED, "interrupted");
  return l.nr_damages;
}
