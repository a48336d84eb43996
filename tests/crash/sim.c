/* SPDX-License-Identifier: BSD-3-Clause */
/* A simulated machine whose power can be cut, see sim.h.
 *
 * Of each cell there is the durable content, in file->durable, and a chain of
 * versions, the newest first: the contents that it has had since.  A cell
 * without versions is synced.  The newest version (or else the durable
 * content) is what the cell was when it was last looked at; the cache may
 * already differ where it is mapped.
 *
 * A sync makes the newest version durable and forgets the others, but for
 * cells all of whose versions are older than a failed sync of the file.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "range.h"
#include "sim.h"
#include "vector.h"

#define PAGE 4096

struct version {
  struct version *older;
  uint64_t write;               /* number of the write, or of the look at the
                                   mapping */
  unsigned char data[];
};

DEFINE_VECTOR (cell_list, uint32_t);

struct sim_file {
  struct sim *sim;
  struct sim_file *next;
  char *name;
  bool is_data;
  size_t cell;
  uint64_t size, capacity;
  uint64_t durable_size;        /* from size on durable has what was there */
  unsigned char *cache;
  unsigned char *durable;
  struct version **newest;      /* of each cell; NULL = synced */
  bool *is_mapped;              /* each page */
  bool *is_used;                /* each page: may be other than zero */
  struct cell_list unsynced;    /* the cells that have versions */
  uint64_t failed_write;        /* the last write before a failed sync */
};

struct sim {
  pthread_mutex_t lock;
  struct sim_file *files;
  struct sim_file *removed;     /* without a name, perhaps still mapped */
  uint64_t nr_writes;
  uint64_t nr_steps;
  void (*step) (void *opaque);
  void *step_opaque;
  void (*sync) (void *opaque, struct sim_file *file);
  void *sync_opaque;
};

/* Memory of files that are gone, all zero: to have it from the system each time
 * would take longer than all the rest.
 */
struct spare {
  struct spare *next;
  size_t len;
  void *ptr;
};

static pthread_mutex_t spares_lock = PTHREAD_MUTEX_INITIALIZER;
static struct spare *spares;

static void *
take_spare (size_t len)
{
  struct spare **p, *spare;
  void *ptr = NULL;

  pthread_mutex_lock (&spares_lock);
  for (p = &spares; (spare = *p) != NULL && ptr == NULL; p = &spare->next)
    if (spare->len == len) {
      ptr = spare->ptr;
      *p = spare->next;
      free (spare);
      break;
    }
  pthread_mutex_unlock (&spares_lock);
  return ptr;
}

/* len bytes of zeroes, whole pages. */
static void *
allocate (size_t len)
{
  void *p = take_spare (len);

  if (p)
    return p;
  p = mmap (NULL, len, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    abort ();
  return p;
}

/* Give len zeroes back. */
static void
keep_spare (void *ptr, size_t len)
{
  struct spare *spare = malloc (sizeof *spare);

  if (spare == NULL)
    abort ();
  pthread_mutex_lock (&spares_lock);
  *spare = (struct spare) { spares, len, ptr };
  spares = spare;
  pthread_mutex_unlock (&spares_lock);
}

struct sim *
sim_new (void)
{
  struct sim *s = calloc (1, sizeof *s);

  if (s == NULL)
    abort ();
  pthread_mutex_init (&s->lock, NULL);
  return s;
}

static size_t
newest_size (const struct sim_file *f)
{
  return round_up (f->capacity / f->cell * sizeof *f->newest, PAGE);
}

/* The chain of versions of a cell. */
static void
forget (struct sim_file *f, uint64_t i)
{
  struct version *v = f->newest[i], *older;

  for (; v; v = older) {
    older = v->older;
    free (v);
  }
  f->newest[i] = NULL;
}

static void
file_free (struct sim_file *f)
{
  size_t i;

  for (i = 0; i < f->unsynced.len; i++)
    forget (f, f->unsynced.ptr[i]);
  cell_list_reset (&f->unsynced);
  for (i = 0; i < f->capacity / PAGE; i++)
    if (f->is_used[i]) {
      memset (f->cache + i * PAGE, 0, PAGE);
      memset (f->durable + i * PAGE, 0, PAGE);
    }
  keep_spare (f->cache, f->capacity);
  keep_spare (f->durable, f->capacity);
  keep_spare (f->newest, newest_size (f));
  free (f->is_mapped);
  free (f->is_used);
  free (f->name);
  free (f);
}

void
sim_free (struct sim *s)
{
  struct sim_file *f;

  if (s == NULL)
    return;
  while ((f = s->files) != NULL) {
    s->files = f->next;
    file_free (f);
  }
  while ((f = s->removed) != NULL) {
    s->removed = f->next;
    file_free (f);
  }
  pthread_mutex_destroy (&s->lock);
  free (s);
}

void
sim_on_step (struct sim *s, void (*step) (void *opaque), void *opaque)
{
  s->step = step;
  s->step_opaque = opaque;
}

void
sim_on_sync (struct sim *s, void (*sync) (void *opaque, struct sim_file *file),
             void *opaque)
{
  s->sync = sync;
  s->sync_opaque = opaque;
}

static struct sim_file *
find_locked (struct sim *s, const char *name)
{
  struct sim_file *f;

  for (f = s->files; f && strcmp (f->name, name) != 0; f = f->next)
    ;
  return f;
}

static struct sim_file *
create_locked (struct sim *s, const char *name, bool is_data, size_t cell,
               uint64_t size, uint64_t capacity)
{
  struct sim_file *f = calloc (1, sizeof *f), **end;

  assert (size <= capacity && size % cell == 0 && capacity % PAGE == 0);
  assert (find_locked (s, name) == NULL);
  if (f == NULL)
    abort ();
  f->sim = s;
  f->name = strdup (name);
  f->is_data = is_data;
  f->cell = cell;
  f->size = f->durable_size = size;
  f->capacity = capacity;
  f->cache = allocate (capacity);
  f->durable = allocate (capacity);
  f->newest = allocate (newest_size (f));
  f->is_mapped = calloc (capacity / PAGE, sizeof *f->is_mapped);
  f->is_used = calloc (capacity / PAGE, sizeof *f->is_used);
  if (f->name == NULL || f->is_mapped == NULL || f->is_used == NULL)
    abort ();
  /* In order of creation, so that a seed always draws alike. */
  for (end = &s->files; *end; end = &(*end)->next)
    ;
  *end = f;
  return f;
}

struct sim_file *
sim_create (struct sim *s, const char *name, bool is_data, size_t cell,
            uint64_t size, uint64_t capacity)
{
  struct sim_file *f;

  pthread_mutex_lock (&s->lock);
  f = create_locked (s, name, is_data, cell, size, capacity);
  pthread_mutex_unlock (&s->lock);
  return f;
}

struct sim_file *
sim_find (struct sim *s, const char *name)
{
  struct sim_file *f;

  pthread_mutex_lock (&s->lock);
  f = find_locked (s, name);
  pthread_mutex_unlock (&s->lock);
  return f;
}

static void
remove_locked (struct sim *s, const char *name)
{
  struct sim_file **p, *f;

  for (p = &s->files; (f = *p) != NULL; p = &f->next)
    if (strcmp (f->name, name) == 0) {
      *p = f->next;
      f->next = s->removed;
      s->removed = f;
      return;
    }
}

void
sim_remove (struct sim *s, const char *name)
{
  pthread_mutex_lock (&s->lock);
  remove_locked (s, name);
  pthread_mutex_unlock (&s->lock);
}

void
sim_rename (struct sim *s, const char *from, const char *to)
{
  struct sim_file *f;

  pthread_mutex_lock (&s->lock);
  f = find_locked (s, from);
  assert (f != NULL);
  remove_locked (s, to);
  free (f->name);
  f->name = strdup (to);
  if (f->name == NULL)
    abort ();
  pthread_mutex_unlock (&s->lock);
}

/*---- Versions ----*/

static void
use_pages (struct sim_file *f, uint64_t off, uint64_t len)
{
  uint64_t page;

  for (page = off / PAGE; page < div_round_up (off + len, PAGE); page++)
    f->is_used[page] = true;
}

/* The used pages. */
static void
copy_pages (const struct sim_file *f, unsigned char *to,
            const unsigned char *from)
{
  uint64_t off;

  const uint64_t end = MAX (f->size, f->durable_size);

  for (off = 0; off < end; off += PAGE)
    if (f->is_used[off / PAGE])
      memcpy (to + off, from + off, MIN (PAGE, end - off));
}

/* Other threads may be setting bits of it. */
static void
load_cell (const struct sim_file *f, uint64_t i, void *ret)
{
  const uint64_t *src = (const uint64_t *) (f->cache + i * f->cell);
  uint64_t *dst = ret;
  size_t n;

  for (n = 0; n < f->cell / 8; n++)
    dst[n] = __atomic_load_n (&src[n], __ATOMIC_RELAXED);
}

static const unsigned char *
last_content (const struct sim_file *f, uint64_t i)
{
  return f->newest[i] ? f->newest[i]->data : f->durable + i * f->cell;
}

/* Note the cell's content if it is not what it was.  If is_write, also if it
 * is: a write was made.
 */
static void
note_cell (struct sim_file *f, uint64_t i, uint64_t write, bool is_write)
{
  uint64_t data[512 / 8];
  struct version *v;

  assert (f->cell % 8 == 0 && f->cell <= sizeof data);
  load_cell (f, i, data);
  if (!is_write && memcmp (data, last_content (f, i), f->cell) == 0)
    return;
  v = malloc (sizeof *v + f->cell);
  if (v == NULL)
    abort ();
  v->older = f->newest[i];
  v->write = write;
  memcpy (v->data, data, f->cell);
  if (v->older == NULL && cell_list_append (&f->unsynced, (uint32_t) i) < 0)
    abort ();
  f->newest[i] = v;
}

static void
look_at_mappings (struct sim *s)
{
  struct sim_file *f;
  uint64_t page, i;

  for (f = s->files; f; f = f->next)
    for (page = 0; page < div_round_up (f->size, PAGE); page++) {
      if (!f->is_mapped[page])
        continue;
      for (i = page * PAGE / f->cell;
           i < MIN ((page + 1) * PAGE, f->size) / f->cell; i++)
        note_cell (f, i, s->nr_writes + 1, false);
    }
}

static void
step_locked (struct sim *s)
{
  look_at_mappings (s);
  s->nr_writes++;
  s->nr_steps++;
  if (s->step)
    s->step (s->step_opaque);
}

void
sim_step (struct sim *s)
{
  pthread_mutex_lock (&s->lock);
  step_locked (s);
  pthread_mutex_unlock (&s->lock);
}

/*---- File operations ----*/

uint64_t
sim_size (struct sim_file *f)
{
  uint64_t size;

  pthread_mutex_lock (&f->sim->lock);
  size = f->size;
  pthread_mutex_unlock (&f->sim->lock);
  return size;
}

/* The file has its size for good. */
static void
forget_end (struct sim_file *f)
{
  if (f->durable_size > f->size)
    memset (f->durable + f->size, 0, f->durable_size - f->size);
  f->durable_size = f->size;
}

int
sim_resize (struct sim_file *f, uint64_t size)
{
  size_t i, n = 0;
  uint32_t c;

  if (size > f->capacity || size % f->cell != 0)
    return -ENOSPC;
  pthread_mutex_lock (&f->sim->lock);
  if (size < f->size) {
    for (i = 0; i < f->unsynced.len; i++) {
      c = f->unsynced.ptr[i];
      if (c >= size / f->cell)
        forget (f, c);
      else
        f->unsynced.ptr[n++] = c;
    }
    f->unsynced.len = n;
    memset (f->cache + size, 0, f->size - size);
  }
  else if (f->durable_size > f->size)
    forget_end (f);
  f->size = size;
  step_locked (f->sim);
  pthread_mutex_unlock (&f->sim->lock);
  return 0;
}

static void
read_cache (const struct sim_file *f, void *buf, uint64_t len, uint64_t off)
{
  uint64_t n;
  char *p = buf;

  for (; len > 0; p += n, off += n, len -= n) {
    n = MIN (PAGE - off % PAGE, len);
    if (f->is_used[off / PAGE])
      memcpy (p, f->cache + off, n);
    else
      memset (p, 0, n);
  }
}

int
sim_read (struct sim_file *f, void *buf, uint64_t len, uint64_t off)
{
  int r = -EINVAL;

  pthread_mutex_lock (&f->sim->lock);
  if (range_is_within (off, len, f->size)) {
    read_cache (f, buf, len, off);
    r = 0;
  }
  pthread_mutex_unlock (&f->sim->lock);
  return r;
}

int
sim_write (struct sim_file *f, const void *buf, uint64_t len, uint64_t off)
{
  struct sim *s = f->sim;
  uint64_t i;
  int r = -EINVAL;

  pthread_mutex_lock (&s->lock);
  if (range_is_within (off, len, f->size)) {
    look_at_mappings (s);
    use_pages (f, off, len);
    memcpy (f->cache + off, buf, len);
    s->nr_writes += 2;
    for (i = off / f->cell; i < div_round_up (off + len, f->cell); i++)
      note_cell (f, i, s->nr_writes, true);
    step_locked (s);
    r = 0;
  }
  pthread_mutex_unlock (&s->lock);
  return r;
}

void *
sim_cache (struct sim_file *f)
{
  return f->cache;
}

void
sim_mapped (struct sim_file *f, uint64_t off, uint64_t len, bool is_mapped)
{
  uint64_t page;

  pthread_mutex_lock (&f->sim->lock);
  /* Once mapped, always looked at: what a program stored before it unmapped
   * is still to be seen.
   */
  if (is_mapped)
    for (page = off / PAGE; page < div_round_up (off + len, PAGE); page++)
      f->is_mapped[page] = f->is_used[page] = true;
  else
    look_at_mappings (f->sim);
  pthread_mutex_unlock (&f->sim->lock);
}

/* Make the unsynced cells of a part durable. */
static void
sync_locked (struct sim_file *f, uint64_t off, uint64_t end)
{
  size_t i, n = 0;
  uint32_t c;

  for (i = 0; i < f->unsynced.len; i++) {
    c = f->unsynced.ptr[i];
    if (c * f->cell >= end || (c + 1) * f->cell <= off
        || f->newest[c]->write <= f->failed_write)
      f->unsynced.ptr[n++] = c;
    else {
      memcpy (f->durable + c * f->cell, f->newest[c]->data, f->cell);
      forget (f, c);
    }
  }
  f->unsynced.len = n;
  forget_end (f);
}

static void
sync_file (struct sim_file *f, uint64_t off, uint64_t len, bool is_failure)
{
  struct sim *s = f->sim;

  if (s->sync)
    s->sync (s->sync_opaque, f);
  pthread_mutex_lock (&s->lock);
  step_locked (s);
  if (is_failure)
    f->failed_write = s->nr_writes;
  else
    sync_locked (f, off, len == 0 ? f->size : off + len);
  pthread_mutex_unlock (&s->lock);
}

void
sim_sync (struct sim_file *f, uint64_t off, uint64_t len)
{
  sync_file (f, off, len, false);
}

void
sim_sync_fails (struct sim_file *f, uint64_t off, uint64_t len)
{
  sync_file (f, off, len, true);
}

/*---- Power cuts ----*/

/* The size that a file has after a cut. */
static uint64_t
cut_size (const struct sim_file *f, enum sim_choice choice, uint64_t *random)
{
  switch (choice) {
  case SIM_ALL:
    return f->size;
  case SIM_NONE:
    return f->durable_size;
  case SIM_DATA_ONLY:
  case SIM_DATA_AND_RANDOM:
    return f->is_data ? f->size : f->durable_size;
  case SIM_OTHERS_ONLY:
    return f->is_data ? f->durable_size : f->size;
  default:
    return sim_random (random) % 2 ? f->size : f->durable_size;
  }
}

/* What is drawn once for a cut, or for a file of it. */
struct draw {
  enum sim_choice choice;
  uint64_t salt;
  uint64_t last_write;          /* PREFIX */
  uint64_t random;              /* of one cell: what is drawn for it depends on
                                   no other, which may hold the time */
};

static bool
is_kept (const struct draw *draw, uint64_t write)
{
  uint64_t state = draw->salt ^ write;

  return sim_random (&state) % 2;
}

/* Any of the versions, or NULL for what is durable. */
static const struct version *
draw_any (const struct sim_file *f, uint64_t i, uint64_t *random)
{
  const struct version *v;
  uint64_t n = 0;

  for (v = f->newest[i]; v; v = v->older)
    n++;
  n = sim_random (random) % (n + 1);
  for (v = f->newest[i]; n > 0; v = v->older)
    n--;
  return v;
}

static const struct version *
draw_version (const struct sim_file *f, uint64_t i, struct draw *draw)
{
  const struct version *v = f->newest[i];

  switch (draw->choice) {
  case SIM_ALL:
    return v;
  case SIM_NONE:
    return NULL;
  case SIM_DATA_ONLY:
    return f->is_data ? v : NULL;
  case SIM_OTHERS_ONLY:
    return f->is_data ? NULL : v;
  case SIM_DATA_AND_RANDOM:
    return f->is_data ? v : draw_any (f, i, &draw->random);
  case SIM_WRITES:
    while (v && !is_kept (draw, v->write))
      v = v->older;
    return v;
  case SIM_PREFIX:
    while (v && v->write > draw->last_write)
      v = v->older;
    return v;
  default:
    return draw_any (f, i, &draw->random);
  }
}

static void
cut_cell (const struct sim_file *f, uint64_t i, struct draw *draw,
          unsigned char *ret)
{
  const struct version *v;
  size_t len = f->cell;

  draw->random = draw->salt + i * UINT64_C (0x9e3779b97f4a7c15);
  v = draw_version (f, i, draw);

  if (v)
    memcpy (ret, v->data, len);
  if (draw->choice == SIM_TORN && f->cell > 8) {
    /* Its first words are of another version. */
    v = draw_any (f, i, &draw->random);
    len = sim_random (&draw->random) % (f->cell / 8 + 1) * 8;
    memcpy (ret, v ? v->data : f->durable + i * f->cell, len);
  }
}

static struct sim_file *
copy_file (struct sim *to, const struct sim_file *f,
           const unsigned char *content)
{
  struct sim_file *copy = create_locked (to, f->name, f->is_data, f->cell,
                                         f->size, f->capacity);

  memcpy (copy->is_used, f->is_used, f->capacity / PAGE);
  copy_pages (f, copy->durable, content);
  copy->durable_size = f->durable_size;
  return copy;
}

struct sim *
sim_cut_locked (struct sim *s, enum sim_choice choice, uint64_t *random)
{
  struct sim *cut = sim_new ();
  struct draw draw = { .choice = choice };
  struct sim_file *copy;
  size_t n;
  uint64_t i;

  for (const struct sim_file *f = s->files; f; f = f->next) {
    draw.salt = sim_random (random);
    draw.last_write = sim_random (random) % 32;
    draw.last_write = s->nr_writes - MIN (draw.last_write, s->nr_writes);
    copy = copy_file (cut, f, f->durable);
    copy->size = cut_size (f, choice, random);
    for (n = 0; n < f->unsynced.len; n++) {
      i = f->unsynced.ptr[n];
      if ((i + 1) * f->cell <= copy->size)
        cut_cell (f, i, &draw, copy->durable + i * f->cell);
    }
    copy->durable_size = MAX (copy->size, copy->durable_size);
    forget_end (copy);
    copy_pages (copy, copy->cache, copy->durable);
  }
  return cut;
}

struct sim *
sim_cut (struct sim *s, enum sim_choice choice, uint64_t *random)
{
  struct sim *cut;

  pthread_mutex_lock (&s->lock);
  look_at_mappings (s);
  cut = sim_cut_locked (s, choice, random);
  pthread_mutex_unlock (&s->lock);
  return cut;
}

/* The same cell, with all its versions. */
static void
copy_versions (struct sim_file *to, const struct sim_file *from, uint32_t i)
{
  struct version **end = &to->newest[i];
  const struct version *v;

  for (v = from->newest[i]; v; v = v->older) {
    *end = malloc (sizeof *v + from->cell);
    if (*end == NULL)
      abort ();
    memcpy (*end, v, sizeof *v + from->cell);
    (*end)->older = NULL;
    end = &(*end)->older;
  }
  if (cell_list_append (&to->unsynced, i) < 0)
    abort ();
}

struct sim *
sim_copy_locked (struct sim *s)
{
  struct sim *copy = sim_new ();
  struct sim_file *to;
  uint64_t i;

  for (const struct sim_file *f = s->files; f; f = f->next) {
    to = copy_file (copy, f, f->durable);
    for (i = 0; i < f->size / f->cell; i++)
      if (f->is_used[i * f->cell / PAGE])
        load_cell (f, i, to->cache + i * f->cell);
    for (i = 0; i < f->unsynced.len; i++)
      copy_versions (to, f, f->unsynced.ptr[i]);
    memcpy (to->is_mapped, f->is_mapped,
            f->capacity / PAGE * sizeof *f->is_mapped);
    to->failed_write = f->failed_write;
  }
  copy->nr_writes = s->nr_writes;
  look_at_mappings (copy);
  return copy;
}

struct sim *
sim_copy (struct sim *s)
{
  struct sim *copy;

  pthread_mutex_lock (&s->lock);
  copy = sim_copy_locked (s);
  pthread_mutex_unlock (&s->lock);
  return copy;
}

uint64_t
sim_nr_steps (struct sim *s)
{
  uint64_t n;

  pthread_mutex_lock (&s->lock);
  n = s->nr_steps;
  pthread_mutex_unlock (&s->lock);
  return n;
}

uint64_t
sim_nr_unsynced (struct sim *s)
{
  uint64_t n = 0;

  pthread_mutex_lock (&s->lock);
  for (const struct sim_file *f = s->files; f; f = f->next)
    n += f->unsynced.len;
  pthread_mutex_unlock (&s->lock);
  return n;
}
