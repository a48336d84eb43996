/* SPDX-License-Identifier: BSD-3-Clause */
/* The peer that existing tools are: a synchronous loop over libnbd.  Ask for
 * a bitmap's extents, read the dirty ones one after the other, write them to
 * a sparse file, and sync it.
 *
 * nbd-sync CONTEXT URI FILE
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libnbd.h>

#define MAX_READ (UINT64_C (16) << 20)
#define MAX_STATUS UINT64_C (0xffff0000)

struct extent {
  uint64_t off, len;
};

struct map {
  const char *context;
  struct extent *ptr;           /* dirty ones */
  size_t len, cap;
  uint64_t pos;                 /* where the map ends */
};

static void __attribute__ ((noreturn))
die (const char *what)
{
  const char *why = nbd_get_error ();

  fprintf (stderr, "nbd-sync: %s: %s\n", what, why ? why : strerror (errno));
  exit (EXIT_FAILURE);
}

static int
add_extents (void *user_data, const char *context, uint64_t off,
             uint32_t *entries, size_t nr_entries, int *error)
{
  struct map *map = user_data;
  size_t i;

  if (strcmp (context, map->context) != 0)
    return 0;
  for (i = 0; i + 1 < nr_entries; i += 2) {
    if (map->len == map->cap) {
      map->cap = map->cap * 2 + 1024;
      map->ptr = realloc (map->ptr, map->cap * sizeof *map->ptr);
      if (!map->ptr)
        die ("memory");
    }
    if (entries[i + 1] & 1)
      map->ptr[map->len++] = (struct extent) { off, entries[i] };
    off += entries[i];
  }
  map->pos = off;
  return 0;
}

static void
copy (struct nbd_handle *nbd, int fd, const struct extent *e, char *buf)
{
  uint64_t done, n;

  for (done = 0; done < e->len; done += n) {
    n = e->len - done < MAX_READ ? e->len - done : MAX_READ;
    if (nbd_pread (nbd, buf, n, e->off + done, 0) == -1)
      die ("read");
    if (pwrite (fd, buf, n, e->off + done) != (ssize_t) n)
      die ("write");
  }
}

int
main (int argc, char **argv)
{
  struct nbd_handle *nbd = nbd_create ();
  struct map map = { 0 };
  uint64_t size, bytes = 0;
  char *buf = malloc (MAX_READ);
  size_t i;
  int fd;

  if (argc != 4 || !nbd || !buf)
    die ("nbd-sync CONTEXT URI FILE");
  map.context = argv[1];
  if (nbd_add_meta_context (nbd, map.context) == -1 ||
      nbd_set_pread_initialize (nbd, false) == -1 ||
      nbd_connect_uri (nbd, argv[2]) == -1)
    die (argv[2]);
  size = nbd_get_size (nbd);
  fd = open (argv[3], O_WRONLY | O_CREAT | O_TRUNC, 0666);
  if (fd < 0 || ftruncate (fd, size) < 0)
    die (argv[3]);
  while (map.pos < size)
    if (nbd_block_status (nbd, size - map.pos < MAX_STATUS ? size - map.pos :
                          MAX_STATUS, map.pos, (nbd_extent_callback) {
                            .callback = add_extents, .user_data = &map
                          }, 0) == -1)
      die ("block status");
  for (i = 0; i < map.len; i++) {
    copy (nbd, fd, &map.ptr[i], buf);
    bytes += map.ptr[i].len;
  }
  if (fsync (fd) < 0)
    die ("fsync");
  printf ("{\"bytes\": %" PRIu64 "}\n", bytes);
  return 0;
}
