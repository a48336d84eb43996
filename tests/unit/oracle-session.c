/* SPDX-License-Identifier: BSD-3-Clause */
/* Random writers and random sessions on one disk, each backup compared with
 * what the disk was at its point.
 *
 * Each writer changes units of its own, one operation after the other, and
 * operation n is known from the seed.  A point falls somewhere between the
 * last operation that had ended before session_begin and the first that began
 * after it: a view is right if for every writer there is a k in that window
 * such that its units are exactly as after k operations.  Units of different
 * writers lie side by side in one block, so that they meet there.
 *
 * Each backup thread has a bitmap of its own and applies incrementals to its
 * image; so a bit that is lost shows as a wrong image.
 */
#include "config.h"

#include "disk-util.h"

enum { NR_WRITERS = 3, NR_BACKUPS = 3, SESSIONS_EACH = 25 };

#define UNIT UINT64_C (1024)
#define NR_SHARED 512           /* units that take turns */
#define NR_OWN 512              /* units in a row, for each writer */
#define NR_UNITS (NR_SHARED + NR_WRITERS * NR_OWN)
#define SIZE (NR_UNITS * UNIT)
#define CLUSTER (16 * KiB)

struct writer {
  struct oracle *o;
  unsigned number;
  _Atomic uint64_t nr_begun, nr_ended;
  pthread_t thread;
};

struct oracle {
  struct disk *disk;
  struct session_manager *m;
  uint64_t seed;
  _Atomic bool stop;
  struct writer writers[NR_WRITERS];
  _Atomic unsigned nr_full, nr_incremental, nr_refused;
};

/*---- What operation n of a writer is ----*/

struct op {
  uint64_t first, nr;           /* units */
  bool is_trim;
};

static struct op
get_op (const struct oracle *o, unsigned writer, uint64_t n)
{
  uint64_t r = o->seed ^ (uint64_t) writer << 56 ^ n;
  struct op op = { .nr = 1 };

  rnd (&r);
  if (rnd (&r) % 2) {
    /* A shared unit that is this writer's turn. */
    op.first = rnd (&r) % (NR_SHARED / NR_WRITERS) * NR_WRITERS + writer;
    op.is_trim = false;
  }
  else {
    uint64_t off = rnd (&r) % NR_OWN;
    uint64_t max = rnd (&r) % 16 ? 20 : 400;

    op.first = NR_SHARED + writer * NR_OWN + off;
    max = MIN (max, NR_OWN - off);
    op.nr = 1 + rnd (&r) % max;
    op.is_trim = rnd (&r) % 4 == 0;
  }
  return op;
}

/* The 64-bit word that fills a unit. */
static uint64_t
unit_word (unsigned writer, uint64_t n, bool is_trim)
{
  return is_trim ? 0 : (uint64_t) (writer + 1) << 56 | n;
}

static void *
write_randomly (void *arg)
{
  struct writer *w = arg;
  uint64_t *buf = malloc (NR_OWN * UNIT);

  for (uint64_t n = 1; !atomic_load (&w->o->stop); n++) {
    struct op op = get_op (w->o, w->number, n);
    uint64_t word = unit_word (w->number, n, op.is_trim);
    int r;

    for (uint64_t i = 0; i < op.nr * UNIT / 8; i++)
      buf[i] = word;
    atomic_store (&w->nr_begun, n);
    r = op.is_trim
      ? disk_zero (w->o->disk, op.nr * UNIT, op.first * UNIT, BLK_MAY_UNMAP)
      : disk_pwrite (w->o->disk, buf, op.nr * UNIT, op.first * UNIT, 0);
    if (r < 0)
      abort ();
    atomic_store (&w->nr_ended, n);
  }
  free (buf);
  return NULL;
}

/*---- Checking ----*/

struct backup {
  struct oracle *o;
  unsigned number;
  char bitmap[8];
  char *image;                  /* as of the last success */
  char *next;
  /* The writers' units as they were after .. operations. */
  uint64_t after[NR_WRITERS];
  uint64_t *words[NR_WRITERS];
  uint64_t seed;
  pthread_t thread;
};

static void __attribute__ ((noreturn))
die (const struct backup *b, const char *what)
{
  fprintf (stderr, "backup thread %u: %s (TEST_SEED=%llu)\n", b->number, what,
           (unsigned long long) b->o->seed);
  abort ();
}

static void
replay (struct backup *b, unsigned writer, uint64_t to)
{
  while (b->after[writer] < to) {
    uint64_t n = ++b->after[writer];
    struct op op = get_op (b->o, writer, n);

    for (uint64_t i = 0; i < op.nr; i++)
      b->words[writer][op.first + i] = unit_word (writer, n, op.is_trim);
  }
}

static bool
is_owner (unsigned writer, uint64_t unit)
{
  return unit < NR_SHARED
    ? unit % NR_WRITERS == writer && unit / NR_WRITERS < NR_SHARED / NR_WRITERS
    : (unit - NR_SHARED) / NR_OWN == writer;
}

static bool
matches (const struct backup *b, unsigned writer, const uint64_t *data)
{
  for (uint64_t unit = 0; unit < NR_UNITS; unit++)
    if (is_owner (writer, unit)
        && data[unit * UNIT / 8] != b->words[writer][unit])
      return false;
  return true;
}

/* data is the whole disk; the point lies between the numbers given. */
static void
check_image (struct backup *b, const char *data, const uint64_t *ended,
             const uint64_t *begun)
{
  const uint64_t *words = (const uint64_t *) data;

  for (uint64_t i = 0; i < SIZE / 8; i++)
    if (words[i] != words[i - i % (UNIT / 8)])
      die (b, "a write is there in part");
  for (unsigned w = 0; w < NR_WRITERS; w++) {
    uint64_t k = ended[w];

    replay (b, w, k);
    while (!matches (b, w, words)) {
      if (k == begun[w])
        die (b, "the backup is not what the disk was at its point");
      replay (b, w, ++k);
    }
  }
}

/*---- Backups ----*/

/* Read what the session says into b->next, giving some of it up, and some of
 * it twice.  Returns false if the view was broken.
 */
static bool
pull (struct backup *b, const struct session_disk *sd)
{
  struct blk *blk = cbw_view_blk (sd->view);
  struct extents extents;
  bool ret = true;

  extents_init (&extents, 10000);
  if (sd->mode == SESSION_INCREMENTAL)
    ret = dirty_frozen_extents (sd->bitmap, SIZE, 0, &extents) == 0;
  else
    extents_add (&extents, 0, SIZE, EXTENT_DIRTY);
  for (size_t i = 0; ret && i < extents.len; i++) {
    uint64_t off = extents.ptr[i].off, end = off + extents.ptr[i].len;

    for (uint64_t n; ret && extents.ptr[i].value && off < end; off += n) {
      n = BLOCK * (1 + rnd (&b->seed) % 16);
      n = MIN (n, end - off);
      ret = blk_pread (blk, b->next + off, n, off, 0) == 0;
      if (ret && rnd (&b->seed) % 2)
        ret = blk_trim (blk, n, off, 0) == 0;
      else if (ret && rnd (&b->seed) % 2) {
        CLEANUP_FREE char *again = malloc (n);

        ret = blk_pread (blk, again, n, off, 0) == 0;
        if (ret && memcmp (again, b->next + off, n) != 0)
          die (b, "a second read differs");
      }
    }
  }
  extents_free (&extents);
  return ret;
}

static void
one_backup (struct backup *b)
{
  struct oracle *o = b->o;
  struct session_disk_request rd = {
    .disk = o->disk, .bitmap = b->bitmap, .mode = SESSION_AUTO,
    .is_dirty_view = true, .cluster_size = CLUSTER,
  };
  struct session_request request = { .disks = &rd, .nr_disks = 1 };
  uint64_t ended[NR_WRITERS], begun[NR_WRITERS];
  struct session *s;
  const struct session_disk *sd;
  bool is_whole, is_success = rnd (&b->seed) % 4 != 0;
  size_t nr;
  int r;

  if (rnd (&b->seed) % 8 == 0)
    request.scratch_limit = 16 * BLOCK;
  for (unsigned w = 0; w < NR_WRITERS; w++)
    ended[w] = atomic_load (&o->writers[w].nr_ended);
  if (session_begin (o->m, &request, &s, NULL) < 0)
    die (b, "session_begin");
  for (unsigned w = 0; w < NR_WRITERS; w++)
    begun[w] = atomic_load (&o->writers[w].nr_begun);

  sd = session_disks (s, &nr);
  memcpy (b->next, b->image, SIZE);
  is_whole = pull (b, sd);
  if (is_whole)
    check_image (b, b->next, ended, begun);
  else if (!request.scratch_limit)
    die (b, "the view cannot be read");
  r = session_end (o->m, session_id (s), is_success, NULL);
  if (r < 0 && !request.scratch_limit)
    die (b, "session_end");
  if (r < 0)
    atomic_fetch_add (&o->nr_refused, 1);
  else if (is_success && is_whole) {
    char *t = b->image;

    b->image = b->next;
    b->next = t;
    atomic_fetch_add (sd->mode == SESSION_FULL ? &o->nr_full
                      : &o->nr_incremental, 1);
  }
  else if (is_success)
    die (b, "success of a broken session");
  session_unref (s);
}

static void *
back_up_randomly (void *arg)
{
  struct backup *b = arg;

  for (int i = 0; i < SESSIONS_EACH; i++)
    one_backup (b);
  return NULL;
}

static void
test_oracle (void **state)
{
  static struct oracle o;
  static struct backup backups[NR_BACKUPS];

  o.seed = test_seed ();
  o.disk = debug_disk ("d", SIZE, CBW_BREAK_BACKUP);
  assert_int_equal (session_manager_new (NULL, NULL, &o.m), 0);
  for (unsigned i = 0; i < NR_BACKUPS; i++) {
    struct backup *b = &backups[i];

    b->o = &o;
    b->number = i;
    b->seed = o.seed + i;
    snprintf (b->bitmap, sizeof b->bitmap, "b%u", i);
    b->image = calloc (1, SIZE);
    b->next = calloc (1, SIZE);
    for (int w = 0; w < NR_WRITERS; w++)
      b->words[w] = calloc (NR_UNITS, sizeof (uint64_t));
  }
  for (unsigned w = 0; w < NR_WRITERS; w++) {
    o.writers[w].o = &o;
    o.writers[w].number = w;
    pthread_create (&o.writers[w].thread, NULL, write_randomly,
                    &o.writers[w]);
  }
  for (int i = 0; i < NR_BACKUPS; i++)
    pthread_create (&backups[i].thread, NULL, back_up_randomly, &backups[i]);
  for (int i = 0; i < NR_BACKUPS; i++)
    pthread_join (backups[i].thread, NULL);
  atomic_store (&o.stop, true);
  for (unsigned w = 0; w < NR_WRITERS; w++)
    pthread_join (o.writers[w].thread, NULL);
  print_message ("%u full, %u incremental, %u refused, %llu writes\n",
                 o.nr_full, o.nr_incremental, o.nr_refused,
                 (unsigned long long) o.writers[0].nr_ended);
  assert_true (o.nr_full >= NR_BACKUPS);
  assert_true (o.nr_incremental >= NR_BACKUPS * SESSIONS_EACH / 4);
  for (int i = 0; i < NR_BACKUPS; i++) {
    for (int w = 0; w < NR_WRITERS; w++)
      free (backups[i].words[w]);
    free (backups[i].image);
    free (backups[i].next);
  }
  session_manager_free (o.m);
  disk_close (o.disk);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_oracle),
  };

  limit_test_time ();
  log_set_handler (unit_ignore_log);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
