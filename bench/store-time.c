/* SPDX-License-Identifier: BSD-3-Clause */
/* What a store costs by itself, in one process, without NBD: opening one,
 * taking a point on it, and the bytes that are written to it.  Prints one line
 * of JSON.
 *
 * store-time STORE SIZE COUNT
 *
 * STORE: the file, which is made.  The disk is of SIZE bytes and holds nothing:
 * it reads as zeroes, and its COUNT writes of 4 KiB at random places are
 * forgotten, so that all that the process writes is the store.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blk-null.h"
#include "disk.h"
#include "session.h"
#include "store.h"

#define WRITE 4096
#define BITMAP "k"

static void __attribute__ ((noreturn, format (printf, 1, 2)))
die (const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  fprintf (stderr, "store-time: ");
  vfprintf (stderr, fmt, args);
  fprintf (stderr, "\n");
  va_end (args);
  exit (1);
}

static double
now_ms (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (double) t.tv_sec * 1e3 + (double) t.tv_nsec / 1e6;
}

/* Processor time of this process. */
static double
cpu_ms (void)
{
  struct timespec t;

  clock_gettime (CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double) t.tv_sec * 1e3 + (double) t.tv_nsec / 1e6;
}

/* Bytes that this process has caused to be written to storage.  0 for files
 * in memory.
 */
static uint64_t
bytes_written (void)
{
  FILE *fp = fopen ("/proc/self/io", "re");
  uint64_t n = 0;
  char line[100];

  while (fp && fgets (line, sizeof line, fp))
    if (sscanf (line, "write_bytes: %" SCNu64, &n) == 1)
      break;
  if (fp)
    fclose (fp);
  return n;
}

static struct disk *
open_disk (const char *store, uint64_t size)
{
  const struct disk_options options = { .name = "d", .store = store };
  struct blk *blk;
  struct disk *disk;
  struct error err;

  if (blk_null_open ("d", size, 0, &blk, &err) < 0
      || disk_new (blk, &options, &disk, &err) < 0)
    die ("%s", err.msg);
  return disk;
}

/*---- What is measured ----*/

/* Dirty something all over the disk, close. */
static void
prepare (const char *store, uint64_t size)
{
  struct disk *disk = open_disk (store, size);
  struct error err;
  char buf[WRITE] = "";
  uint64_t off;

  if (disk_bitmap_add (disk, BITMAP, 0, DIRTY_IS_PERSISTENT, &err) < 0)
    die ("%s", err.msg);
  for (off = 0; off < size; off += size / 200)
    if (disk_pwrite (disk, buf, MIN (sizeof buf, size - off), off, 0) < 0)
      die ("a write fails");
  if (disk_close (disk) < 0)
    die ("the disk cannot be closed");
}

static double
time_point (struct disk *disk)
{
  const struct session_disk_request disk_request = {
    .disk = disk, .bitmap = BITMAP, .mode = SESSION_AUTO,
    .is_dirty_view = true,
  };
  const struct session_request request = {
    .disks = &disk_request, .nr_disks = 1,
  };
  struct session_manager *m;
  struct session *s;
  struct error err;
  double start;

  if (session_manager_new (NULL, NULL, &m) < 0)
    die ("out of memory");
  start = now_ms ();
  if (session_begin (m, &request, &s, &err) < 0)
    die ("%s", err.msg);
  start = now_ms () - start;
  if (session_end (m, session_id (s), true, &err) < 0)
    die ("%s", err.msg);
  session_unref (s);
  session_manager_free (m);
  return start;
}

static void
write_randomly (struct disk *disk, uint64_t size, uint64_t count)
{
  char buf[WRITE] = "";
  uint64_t i, z, state = 1;

  for (i = 0; i < count; i++) {
    z = state += UINT64_C (0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
    if (disk_pwrite (disk, buf, sizeof buf,
                     (z ^ z >> 31) % (size / WRITE) * WRITE, 0) < 0)
      die ("a write fails");
  }
}

int
main (int argc, char *argv[])
{
  uint64_t size, count, written;
  double open_ms, clean_ms, clean_cpu_ms, first_ms, point_ms, write_ms;
  struct disk *disk;

  if (argc != 4)
    die ("usage: store-time STORE SIZE COUNT");
  size = strtoull (argv[2], NULL, 0);
  count = strtoull (argv[3], NULL, 0);
  prepare (argv[1], size);

  clean_cpu_ms = cpu_ms ();
  clean_ms = now_ms ();
  disk = open_disk (argv[1], size);
  clean_ms = now_ms () - clean_ms;
  clean_cpu_ms = cpu_ms () - clean_cpu_ms;
  disk_abandon (disk);
  open_ms = now_ms ();
  disk = open_disk (argv[1], size);
  open_ms = now_ms () - open_ms;

  first_ms = time_point (disk);
  /* A moment later: what the store's thread does every few seconds. */
  if (store_retire (disk_store (disk), false) < 0)
    die ("the store fails");
  point_ms = time_point (disk);
  written = bytes_written ();
  write_ms = now_ms ();
  write_randomly (disk, size, count);
  write_ms = now_ms () - write_ms;
  if (disk_close (disk) < 0)
    die ("the disk cannot be closed");
  written = bytes_written () - written;
  printf ("{\"open_ms\": %.3f, \"open_cpu_ms\": %.3f,"
          " \"open_unclean_ms\": %.3f, \"first_point_ms\": %.3f,"
          " \"point_ms\": %.3f, \"store_bytes\": %" PRIu64
          ", \"data_bytes\": %" PRIu64 ", \"write_ms\": %.1f}\n", clean_ms,
          clean_cpu_ms, open_ms, first_ms, point_ms, written, count * WRITE,
          write_ms);
  return 0;
}
