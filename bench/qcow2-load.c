/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes and reads qcow2 images with our driver, as fast as it can.
 *
 *   qcow2-load write SOURCE IMAGE          a new image from a raw file
 *   qcow2-load scatter SIZE STEP COUNT IMAGE
 *                                          COUNT writes of 4 KiB, each STEP
 *                                          bytes after the one before, into a
 *                                          new image
 *   qcow2-load chain SIZE LAYERS PREFIX    PREFIX0 to PREFIX(LAYERS-1), data in
 *                                          clusters of any layer
 *   qcow2-load read SIZE IMAGE             all of it, SIZE bytes at a time
 *   qcow2-load bare SIZE LAYERS PREFIX     what "chain" wrote, cluster by
 *                                          cluster from the files, by plain
 *                                          reads that know where each is
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blk-file.h"
#include "blk-qcow2.h"
#include "cleanup.h"
#include "range.h"

#define PIECE (UINT64_C (1) << 20)
#define SMALL UINT64_C (4096)
#define MAX_LAYERS 64
/* One for each processor: more wait for each other, at the lock of the file
 * that all write to.  qemu-img convert has 8 requests in flight.
 */
#define MAX_THREADS 4

static uint8_t buf[PIECE];
static struct error err;

static int
open_file (const char *path, unsigned flags, struct blk **ret)
{
  return blk_file_open (path, flags | BLK_FILE_ANY_SIZE, ret, &err);
}

static int
create (const char *path, const struct qcow2_create_options *options,
        struct blk **ret)
{
  struct blk *file;
  int r = open_file (path, BLK_FILE_CREATE, &file);

  return r < 0 ? r : blk_qcow2_create (file, options, ret, &err);
}

/* What several threads do together, piece by piece, until do_piece says that
 * there are no more: 0, 1 = no more, -errno.
 */
struct job {
  int (*do_piece) (struct job *job, uint64_t nr, void *piece);
  struct blk *in, *out;
  uint64_t size, step, count;
  atomic_uint_fast64_t next;
  atomic_int error;
};

static void *
do_pieces (void *arg)
{
  struct job *job = arg;
  void *piece = calloc (1, PIECE);
  int r = piece ? 0 : -ENOMEM;

  while (r == 0)
    r = job->do_piece (job, atomic_fetch_add (&job->next, 1), piece);
  free (piece);
  if (r < 0)
    atomic_store (&job->error, r);
  return NULL;
}

static int
do_job (struct job *job)
{
  const long nr_cpus = sysconf (_SC_NPROCESSORS_ONLN);
  pthread_t threads[MAX_THREADS];
  unsigned i;

  for (i = 0; i < MAX_THREADS && i < MAX (nr_cpus, 1); i++)
    if (pthread_create (&threads[i], NULL, do_pieces, job) != 0)
      break;
  if (i == 0)
    return -EAGAIN;
  while (i > 0)
    pthread_join (threads[--i], NULL);
  return atomic_load (&job->error);
}

static int
copy_piece (struct job *job, uint64_t nr, void *piece)
{
  const uint64_t off = nr * PIECE, n = MIN (PIECE, job->size - off);
  int r;

  if (off >= job->size)
    return 1;
  r = blk_pread (job->in, piece, n, off, 0);
  return r < 0 ? r : blk_pwrite (job->out, piece, n, off, 0);
}

static int
write_new (const char *source, const char *path)
{
  struct qcow2_create_options options = { 0 };
  struct job job = { .do_piece = copy_piece };
  int r, r2;

  r = open_file (source, BLK_FILE_READ_ONLY, &job.in);
  if (r < 0)
    return r;
  options.size = job.size = round_down (blk_size (job.in), 512);
  r = create (path, &options, &job.out);
  if (r < 0) {
    blk_close (job.in);
    return r;
  }
  r = do_job (&job);
  r2 = blk_close (job.out);
  blk_close (job.in);
  return r < 0 ? r : r2;
}

static int
scatter_piece (struct job *job, uint64_t nr, void *piece)
{
  if (nr >= job->count)
    return 1;
  return blk_pwrite (job->out, piece, SMALL, nr * job->step % job->size, 0);
}

static int
scatter (uint64_t size, uint64_t step, uint64_t count, const char *path)
{
  struct qcow2_create_options options = { .size = round_down (size, SMALL) };
  struct job job = {
    .do_piece = scatter_piece, .size = options.size,
    .step = round_down (step, SMALL), .count = count,
  };
  int r = create (path, &options, &job.out), r2;

  if (r < 0)
    return r;
  r = do_job (&job);
  r2 = blk_close (job.out);
  return r < 0 ? r : r2;
}

/* The layer that has the cluster: the one that a hash gives. */
static unsigned
layer_of (uint64_t cluster, unsigned nr)
{
  return (cluster * UINT64_C (0x9e3779b97f4a7c15) >> 40) % nr;
}

static int
write_layer (struct blk *out, uint64_t size, unsigned layer, unsigned nr)
{
  const uint64_t cluster = QCOW2_DEFAULT_CLUSTER_SIZE;
  int r = 0;

  for (uint64_t i = 0; i < size / cluster && r == 0; i++)
    if (layer_of (i, nr) == layer) {
      memset (buf, 1 + (int) (i % 255), cluster);
      r = blk_pwrite (out, buf, cluster, i * cluster, 0);
    }
  return r;
}

static int
write_chain (uint64_t size, unsigned nr, const char *prefix)
{
  struct qcow2_create_options options = {
    .size = round_down (size, PIECE), .backing_format = "qcow2",
  };
  char path[1024], below[1024] = "";
  const char *slash = strrchr (prefix, '/');
  struct blk *out;
  int r = 0, r2;

  for (unsigned i = 0; i < nr && r == 0; i++) {
    snprintf (path, sizeof path, "%s%u", prefix, i);
    options.backing_file = i ? below : NULL;
    r = create (path, &options, &out);
    if (r < 0)
      return r;
    r = write_layer (out, options.size, i, nr);
    r2 = blk_close (out);
    r = r < 0 ? r : r2;
    snprintf (below, sizeof below, "%s%u", slash ? slash + 1 : prefix, i);
  }
  return r;
}

static int
read_all (uint64_t piece, const char *path)
{
  struct qcow2_open_options options = {
    .is_read_only = true, .allow_backing = true,
  };
  struct blk *file, *in;
  uint64_t size, n;
  int r;

  r = open_file (path, BLK_FILE_READ_ONLY, &file);
  if (r == 0)
    r = blk_qcow2_open (file, &options, &in, &err);
  if (r < 0)
    return r;
  size = blk_size (in);
  for (uint64_t off = 0; off < size && r == 0; off += n) {
    n = MIN (piece, size - off);
    r = blk_pread (in, buf, n, off, 0);
  }
  blk_close (in);
  return r;
}

/* The driver lays out the clusters of a new image one after the other, as they
 * are written: nothing has to be looked up.
 */
static int
read_bare (uint64_t size, unsigned nr, const char *prefix)
{
  const uint64_t cluster = QCOW2_DEFAULT_CLUSTER_SIZE;
  struct { int fd; off_t off; } layers[MAX_LAYERS];
  char path[1024];
  ssize_t n = 1;

  for (unsigned i = 0; i < nr; i++) {
    snprintf (path, sizeof path, "%s%u", prefix, i);
    layers[i].fd = open (path, O_RDONLY | O_CLOEXEC);
    if (layers[i].fd < 0)
      return -errno;
    layers[i].off = 0;
  }
  for (uint64_t i = 0; i < size / cluster && n > 0; i++) {
    unsigned l = layer_of (i, nr);

    n = pread (layers[l].fd, buf, cluster, layers[l].off);
    layers[l].off += n;
  }
  return n > 0 ? 0 : -EIO;
}

int
main (int argc, char *argv[])
{
  int r = -EINVAL;

  if (argc == 4 && strcmp (argv[1], "write") == 0)
    r = write_new (argv[2], argv[3]);
  else if (argc == 6 && strcmp (argv[1], "scatter") == 0)
    r = scatter (strtoull (argv[2], NULL, 0), strtoull (argv[3], NULL, 0),
                 strtoull (argv[4], NULL, 0), argv[5]);
  else if (argc == 5 && strcmp (argv[1], "chain") == 0)
    r = write_chain (strtoull (argv[2], NULL, 0),
                     (unsigned) MAX (strtoul (argv[3], NULL, 0), 1), argv[4]);
  else if (argc == 4 && strcmp (argv[1], "read") == 0)
    r = read_all (MIN (MAX (strtoull (argv[2], NULL, 0), SMALL), PIECE),
                  argv[3]);
  else if (argc == 5 && strcmp (argv[1], "bare") == 0)
    r = read_bare (strtoull (argv[2], NULL, 0),
                   (unsigned) MIN (MAX (strtoul (argv[3], NULL, 0), 1),
                                   MAX_LAYERS), argv[4]);
  if (r < 0)
    fprintf (stderr, "qcow2-load: %s\n", err.msg[0] ? err.msg
             : strerror (-r));
  return r < 0;
}
