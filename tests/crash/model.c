/* SPDX-License-Identifier: BSD-3-Clause */
/* What the bitmaps of a simulated disk have to be, see model.h. */
#include "config.h"

#include <assert.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dirty.h"
#include "model.h"
#include "range.h"

#define SECTOR 512

/* What was recorded from some moment on. */
struct record {
  bool writes[MODEL_MAX_WRITES];        /* by their numbers */
  bool *marked;                 /* granules; may be more than writes say */
  bool *is_new;                 /* granules that must be dirty, for the disk
                                   has grown by them */
};

struct bitmap_model {
  char name[16];
  uint64_t granularity;
  bool is_recording;
  bool is_frozen;
  bool was_disabled;            /* is_frozen: before */
  struct point_id base;
  struct record since_base;
  struct record since_point;    /* is_frozen */
};

struct table {
  uint64_t size;                /* of the disk */
  unsigned nr;
  struct bitmap_model bitmaps[MODEL_MAX_BITMAPS];
};

struct model {
  pthread_mutex_t lock;
  uint32_t nr_writes;
  struct table *now;
  struct table *next;           /* a command is in progress */
};

static uint64_t
nr_granules (const struct table *t, const struct bitmap_model *b)
{
  return div_round_up (t->size, b->granularity);
}

/*---- Tables ----*/

static bool *
new_marks (const struct table *t, const struct bitmap_model *b,
           const bool *from)
{
  bool *marks = calloc (nr_granules (t, b), sizeof *marks);

  assert (marks != NULL);
  if (from)
    memcpy (marks, from, nr_granules (t, b));
  return marks;
}

/* from: NULL = nothing is recorded. */
static void
init_marks (const struct table *t, const struct bitmap_model *b,
            struct record *r, const struct record *from)
{
  r->marked = new_marks (t, b, from ? from->marked : NULL);
  r->is_new = new_marks (t, b, from ? from->is_new : NULL);
}

static void
reset_record (const struct table *t, const struct bitmap_model *b,
              struct record *r)
{
  memset (r->writes, 0, sizeof r->writes);
  memset (r->marked, 0, nr_granules (t, b));
  memset (r->is_new, 0, nr_granules (t, b));
}

static void
free_record (struct record *r)
{
  free (r->marked);
  free (r->is_new);
}

static void
table_free (struct table *t)
{
  unsigned i;

  for (i = 0; t && i < t->nr; i++) {
    free_record (&t->bitmaps[i].since_base);
    free_record (&t->bitmaps[i].since_point);
  }
  free (t);
}

static struct table *
table_copy (const struct table *from)
{
  struct table *t = malloc (sizeof *t);
  struct bitmap_model *b;
  unsigned i;

  assert (t != NULL);
  *t = *from;
  for (i = 0; i < t->nr; i++) {
    b = &t->bitmaps[i];
    init_marks (t, b, &b->since_base, &from->bitmaps[i].since_base);
    init_marks (t, b, &b->since_point, &from->bitmaps[i].since_point);
  }
  return t;
}

static struct bitmap_model *
find (struct table *t, const char *name)
{
  unsigned i;

  for (i = 0; i < t->nr; i++)
    if (strcmp (t->bitmaps[i].name, name) == 0)
      return &t->bitmaps[i];
  return NULL;
}

/* One that is there. */
static struct bitmap_model *
get (struct table *t, const char *name)
{
  struct bitmap_model *b = find (t, name);

  if (b == NULL)
    abort ();
  return b;
}

struct model *
model_new (uint64_t size)
{
  struct model *m = calloc (1, sizeof *m);

  assert (m != NULL);
  pthread_mutex_init (&m->lock, NULL);
  m->now = calloc (1, sizeof *m->now);
  assert (m->now != NULL);
  m->now->size = size;
  return m;
}

void
model_free (struct model *m)
{
  table_free (m->now);
  table_free (m->next);
  pthread_mutex_destroy (&m->lock);
  free (m);
}

/*---- Writes and commands ----*/

static void
record_write (const struct bitmap_model *b, struct record *r,
              uint32_t number, uint64_t off, uint64_t len)
{
  uint64_t g;

  r->writes[number] = true;
  for (g = off / b->granularity; g <= (off + len - 1) / b->granularity; g++)
    r->marked[g] = true;
}

uint32_t
model_write (struct model *m, uint64_t off, uint64_t len)
{
  struct bitmap_model *b;
  uint32_t number = 0;
  unsigned i;

  pthread_mutex_lock (&m->lock);
  assert (m->next == NULL);
  if (m->nr_writes + 1 < MODEL_MAX_WRITES) {
    number = ++m->nr_writes;
    for (i = 0; i < m->now->nr; i++) {
      b = &m->now->bitmaps[i];
      if (!b->is_recording)
        continue;
      record_write (b, &b->since_base, number, off, len);
      if (b->is_frozen)
        record_write (b, &b->since_point, number, off, len);
    }
  }
  pthread_mutex_unlock (&m->lock);
  return number;
}

/* The table as it will be: to be changed, then published. */
static struct table *
begin (struct model *m)
{
  assert (m->next == NULL);
  return table_copy (m->now);
}

static void
publish (struct model *m, struct table *next)
{
  pthread_mutex_lock (&m->lock);
  m->next = next;
  pthread_mutex_unlock (&m->lock);
}

void
model_end (struct model *m, bool is_done)
{
  pthread_mutex_lock (&m->lock);
  assert (m->next != NULL);
  table_free (is_done ? m->now : m->next);
  if (is_done)
    m->now = m->next;
  m->next = NULL;
  pthread_mutex_unlock (&m->lock);
}

void
model_add (struct model *m, const char *name, uint64_t granularity,
           bool is_disabled)
{
  struct table *t = begin (m);
  struct bitmap_model *b = &t->bitmaps[t->nr++];

  assert (t->nr <= MODEL_MAX_BITMAPS);
  memset (b, 0, sizeof *b);
  snprintf (b->name, sizeof b->name, "%s", name);
  b->granularity = granularity;
  b->is_recording = !is_disabled;
  init_marks (t, b, &b->since_base, NULL);
  init_marks (t, b, &b->since_point, NULL);
  publish (m, t);
}

void
model_remove (struct model *m, const char *name)
{
  struct table *t = begin (m);
  struct bitmap_model *b = get (t, name);

  free_record (&b->since_base);
  free_record (&b->since_point);
  t->nr--;
  memmove (b, b + 1, (size_t) (&t->bitmaps[t->nr] - b) * sizeof *b);
  publish (m, t);
}

void
model_clear (struct model *m, const char *name)
{
  struct table *t = begin (m);
  struct bitmap_model *b = get (t, name);

  reset_record (t, b, &b->since_base);
  memset (&b->base, 0, sizeof b->base);
  publish (m, t);
}

void
model_set_recording (struct model *m, const char *name, bool is_recording)
{
  struct table *t = begin (m);
  struct bitmap_model *b = get (t, name);

  /* It has missed writes. */
  if (is_recording && !b->is_recording)
    memset (&b->base, 0, sizeof b->base);
  b->is_recording = is_recording;
  publish (m, t);
}

void
model_merge (struct model *m, const char *target, const char *source)
{
  struct table *t = begin (m);
  struct bitmap_model *to = get (t, target), *from = get (t, source);
  uint64_t g, off;
  struct bitmap_model *before = get (m->now, target);
  unsigned i;

  for (i = 0; i < MODEL_MAX_WRITES; i++)
    to->since_base.writes[i] |= from->since_base.writes[i];
  for (off = 0; off < t->size; off += SECTOR) {
    g = off / from->granularity;
    if (from->since_base.is_new[g])
      to->since_base.is_new[off / to->granularity] = true;
    /* Half merged it is still right. */
    if (from->since_base.marked[g])
      to->since_base.marked[off / to->granularity]
        = before->since_base.marked[off / to->granularity] = true;
  }
  publish (m, t);
}

void
model_freeze (struct model *m, const char *name, bool is_anew)
{
  struct table *t = begin (m);
  struct bitmap_model *b = get (t, name);

  if (is_anew) {
    reset_record (t, b, &b->since_base);
    memset (&b->base, 0, sizeof b->base);
    b->is_recording = true;
  }
  /* One that was disabled records until the end, and in case of success on. */
  if (!b->is_recording)
    memset (&b->base, 0, sizeof b->base);
  b->was_disabled = !b->is_recording;
  b->is_recording = true;
  b->is_frozen = true;
  reset_record (t, b, &b->since_point);
  publish (m, t);
}

void
model_drop (struct model *m, const char *name, const struct point_id *point)
{
  struct table *t = begin (m);
  struct bitmap_model *b = get (t, name);
  struct record old = b->since_base;

  b->since_base = b->since_point;
  b->since_point = old;
  b->is_frozen = false;
  b->base = *point;
  publish (m, t);
}

void
model_merge_back (struct model *m, const char *name)
{
  struct table *t = begin (m);
  struct bitmap_model *b = get (t, name);

  b->is_frozen = false;
  b->is_recording = !b->was_disabled;
  publish (m, t);
}

/* The marks of a record over another size. */
static void
resize_marks (const struct table *t, const struct bitmap_model *b,
              struct record *r, uint64_t old_size)
{
  const struct record old = *r;
  const uint64_t nr = MIN (nr_granules (t, b),
                           div_round_up (old_size, b->granularity));
  uint64_t off;

  init_marks (t, b, r, NULL);
  memcpy (r->marked, old.marked, nr);
  memcpy (r->is_new, old.is_new, nr);
  for (off = old_size; off < t->size; off += SECTOR)
    r->marked[off / b->granularity] = r->is_new[off / b->granularity] = true;
  free (old.marked);
  free (old.is_new);
}

void
model_resize (struct model *m, uint64_t size)
{
  struct table *t = begin (m);
  const uint64_t old_size = t->size;
  struct bitmap_model *b;
  unsigned i;

  t->size = size;
  for (i = 0; i < t->nr; i++) {
    /* The last granule may be dirty before the disk has grown. */
    b = &m->now->bitmaps[i];
    if (size > old_size && old_size % b->granularity != 0)
      b->since_base.marked[old_size / b->granularity] = true;
    resize_marks (t, &t->bitmaps[i], &t->bitmaps[i].since_base, old_size);
    resize_marks (t, &t->bitmaps[i], &t->bitmaps[i].since_point, old_size);
  }
  publish (m, t);
}

void
model_forget_bases (struct model *m)
{
  unsigned i;

  pthread_mutex_lock (&m->lock);
  for (i = 0; i < m->now->nr; i++)
    memset (&m->now->bitmaps[i].base, 0, sizeof m->now->bitmaps[i].base);
  pthread_mutex_unlock (&m->lock);
}

uint64_t
model_size (struct model *m)
{
  return m->now->size;
}

unsigned
model_nr_bitmaps (struct model *m)
{
  return m->now->nr;
}

const char *
model_name (struct model *m, unsigned i)
{
  return m->now->bitmaps[i].name;
}

bool
model_is_frozen (struct model *m, unsigned i)
{
  return m->now->bitmaps[i].is_frozen;
}

/*---- Checking ----*/

/* Bitmaps found on a disk. */
struct found {
  uint64_t size;
  struct dirty_info *infos;
  size_t nr;
  bool *bits[MODEL_MAX_BITMAPS];        /* of each granule */
};

static bool *
read_bits (struct disk *disk, const struct dirty_info *info)
{
  const uint64_t size = disk_size (disk);
  bool *bits = calloc (div_round_up (size, info->granularity) + 1, 1);
  struct dirty_bitmap *bm = dirty_find (disk_dirty (disk), info->name);
  struct extents e;
  uint64_t g;
  size_t i;

  assert (bits != NULL && bm != NULL);
  extents_init (&e, size / SECTOR + 1);
  if (dirty_extents (bm, size, 0, &e) == 0)
    for (i = 0; i < e.len; i++)
      for (g = e.ptr[i].off / info->granularity; e.ptr[i].value
           && g * info->granularity < e.ptr[i].off + e.ptr[i].len; g++)
        bits[g] = true;
  extents_free (&e);
  dirty_unref (bm);
  return bits;
}

static bool
read_disk (struct disk *disk, struct found *f)
{
  size_t i;

  memset (f, 0, sizeof *f);
  f->size = disk_size (disk);
  if (dirty_list (disk_dirty (disk), &f->infos, &f->nr) < 0)
    abort ();
  for (i = 0; i < f->nr && f->nr <= MODEL_MAX_BITMAPS; i++)
    if (f->infos[i].state != DIRTY_INCONSISTENT)
      f->bits[i] = read_bits (disk, &f->infos[i]);
  return f->nr <= MODEL_MAX_BITMAPS;
}

static void
found_free (struct found *f)
{
  unsigned i;

  for (i = 0; i < MODEL_MAX_BITMAPS; i++)
    free (f->bits[i]);
  dirty_infos_free (f->infos, f->nr);
}

static bool
check_info (const struct bitmap_model *b, const struct dirty_info *info,
            const struct model_limits *limits, char *message)
{
  if (info->state == DIRTY_INCONSISTENT)
    snprintf (message, 256, "%s is inconsistent: %s", b->name, info->reason);
  else if (info->granularity != b->granularity)
    snprintf (message, 256, "%s has another granularity", b->name);
  else if (info->is_busy)
    snprintf (message, 256, "%s is frozen", b->name);
  else if (info->is_recording != b->is_recording)
    snprintf (message, 256, "%s %s", b->name, info->is_recording
              ? "records" : "does not record");
  else if (!limits->is_image && !point_id_is_equal (&info->base, &b->base))
    snprintf (message, 256, "%s has another base point", b->name);
  else
    return true;
  return false;
}

/* No changed block is clean. */
static bool
check_changes (const struct table *t, const struct bitmap_model *b,
               const bool *bits, const uint32_t *sectors, char *message)
{
  uint64_t off;
  uint32_t write;

  for (off = 0; off < t->size; off += SECTOR) {
    if (b->since_base.is_new[off / b->granularity]
        && !bits[off / b->granularity]) {
      snprintf (message, 256, "%s: offset %" PRIu64 " is new and clean",
                b->name, off);
      return false;
    }
    write = sectors[off / SECTOR];
    if (write && b->since_base.writes[write] && !bits[off / b->granularity]) {
      snprintf (message, 256, "%s: offset %" PRIu64 " has changed (write"
                " %u) and is clean", b->name, off, write);
      return false;
    }
  }
  return true;
}

/* What is dirty without reason lies in few regions. */
static bool
check_extra (const struct table *t, const struct bitmap_model *b,
             const bool *bits, const struct model_limits *limits,
             char *message, uint64_t *extra)
{
  const uint64_t unit = MAX (limits->region_size, b->granularity);
  uint64_t g, region, last = UINT64_MAX, nr = 0;

  for (g = 0; g < nr_granules (t, b); g++) {
    if (!bits[g] || b->since_base.marked[g])
      continue;
    *extra += b->granularity;
    region = g * b->granularity / unit;
    nr += region != last;
    last = region;
  }
  if (nr <= limits->max_regions)
    return true;
  snprintf (message, 256, "%s: %" PRIu64 " regions are dirty without reason,"
            " %" PRIu64 " may be; the last at %" PRIu64, b->name, nr,
            limits->max_regions, last * unit);
  return false;
}

static bool
check_table (struct table *t, const struct found *f, const uint32_t *sectors,
             const struct model_limits *limits,
             char *message, uint64_t *extra)
{
  const struct bitmap_model *b;
  size_t i;

  *extra = 0;
  if (f->size != t->size) {
    snprintf (message, 256, "the disk has %" PRIu64 " bytes, not %" PRIu64,
              f->size, t->size);
    return false;
  }
  if (f->nr == 0 && limits->may_be_inconsistent)
    return true;
  if (f->nr != t->nr && !limits->may_be_inconsistent) {
    snprintf (message, 256, "%zu bitmaps, not %u", f->nr, t->nr);
    return false;
  }
  for (i = 0; i < f->nr; i++) {
    if (limits->may_be_inconsistent
        && f->infos[i].state == DIRTY_INCONSISTENT)
      continue;
    b = find (t, f->infos[i].name);
    if (b == NULL) {
      snprintf (message, 256, "%s should not be there", f->infos[i].name);
      return false;
    }
    if (!check_info (b, &f->infos[i], limits, message)
        || !check_changes (t, b, f->bits[i], sectors, message)
        || !check_extra (t, b, f->bits[i], limits, message, extra))
      return false;
  }
  return true;
}

/* The table that is right, or NULL. */
static struct table *
right_table (struct model *m, const struct found *f,
             const uint32_t *sectors, const struct model_limits *limits,
             char *message, uint64_t *extra)
{
  char other[256] = "";

  if (check_table (m->now, f, sectors, limits, message, extra))
    return m->now;
  if (m->next
      && check_table (m->next, f, sectors, limits, other, extra))
    return m->next;
  if (m->next)
    snprintf (message + strlen (message), 256 - strlen (message), "; or: %s",
              other);
  return NULL;
}

bool
model_check (struct model *m, struct disk *disk, const uint32_t *sectors,
             const struct model_limits *limits, char *message,
             uint64_t *ret_extra)
{
  struct found f;
  bool is_right;

  is_right = read_disk (disk, &f);
  pthread_mutex_lock (&m->lock);
  is_right = is_right
    && right_table (m, &f, sectors, limits, message, ret_extra);
  pthread_mutex_unlock (&m->lock);
  found_free (&f);
  return is_right;
}

static void
adopt_table (struct model *m, struct table *t, const struct found *f)
{
  struct bitmap_model *b;
  uint64_t g;
  size_t i;

  for (i = 0; i < f->nr; i++) {
    b = find (t, f->infos[i].name);
    b->is_frozen = false;
    for (g = 0; g < nr_granules (t, b); g++)
      b->since_base.marked[g] |= f->bits[i][g];
  }
  if (t == m->next) {
    table_free (m->now);
    m->now = m->next;
  }
  else
    table_free (m->next);
  m->next = NULL;
}

bool
model_adopt (struct model *m, struct disk *disk, const uint32_t *sectors,
             const struct model_limits *limits, char *message)
{
  struct table *t = NULL;
  struct found f;
  uint64_t extra;

  if (read_disk (disk, &f))
    t = right_table (m, &f, sectors, limits, message, &extra);
  if (t)
    adopt_table (m, t, &f);
  found_free (&f);
  return t != NULL;
}
