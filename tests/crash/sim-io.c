/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk node and a store's file operations over a simulated machine, see
 * sim-io.h.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "range.h"
#include "sim-io.h"

/*---- The disk ----*/

/* The simulated disk has 8 bytes for each sector. */
#define CELL 8

static _Thread_local uint64_t write_name;

void
sim_disk_name_writes (uint32_t name)
{
  write_name = name;
}

struct sim_disk {
  struct blk blk;
  struct sim_io *io;
  struct sim_file *file;
};

static int
disk_close_node (struct blk *blk)
{
  blk_fini (blk);
  free (blk);
  return 0;
}

static int
disk_read (struct blk *blk, void *buf, uint64_t len, uint64_t off,
           unsigned flags)
{
  memset (buf, 0, len);
  return 0;
}

/* What a mutant has put off. */
static void
late_sync (struct sim_io *io)
{
  struct sim_file *file = atomic_exchange (&io->late, NULL);

  if (file)
    sim_sync (file, io->mutant_off, io->mutant_len);
}

static int
write_cells (struct blk *blk, uint64_t len, uint64_t off, uint64_t name)
{
  struct sim_disk *d = (struct sim_disk *) blk;
  uint64_t cells[256];
  const uint64_t nr = len / SIM_SECTOR;
  uint64_t i;
  int r;

  if ((off | len) % SIM_SECTOR != 0 || nr > 256)
    abort ();
  for (i = 0; i < nr; i++)
    cells[i] = name;
  r = sim_write (d->file, cells, nr * CELL, off / SIM_SECTOR * CELL);
  late_sync (d->io);
  return r;
}

static int
disk_write (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  return write_cells (blk, len, off, write_name);
}

static int
disk_zero_cells (struct blk *blk, uint64_t len, uint64_t off, unsigned flags)
{
  return write_cells (blk, len, off, write_name);
}

static int
disk_sync (struct blk *blk)
{
  sim_sync (((struct sim_disk *) blk)->file, 0, 0);
  return 0;
}

static int
disk_resize_file (struct blk *blk, uint64_t size)
{
  int r = sim_resize (((struct sim_disk *) blk)->file,
                      size / SIM_SECTOR * CELL);

  if (r == 0)
    atomic_store (&blk->size, size);
  return r;
}

static const struct blk_driver driver = {
  .name = "simulated",
  .close = disk_close_node,
  .pread = disk_read,
  .pwrite = disk_write,
  .zero = disk_zero_cells,
  .trim = disk_zero_cells,
  .flush = disk_sync,
  .resize = disk_resize_file,
};

struct blk *
sim_disk_open (struct sim_io *io, uint64_t size)
{
  const uint64_t cells = size / SIM_SECTOR * CELL;
  struct sim_file *file = sim_find (io->sim, SIM_DISK);
  struct sim_disk *d = calloc (1, sizeof *d);

  if (file == NULL)
    file = sim_create (io->sim, SIM_DISK, true, CELL, cells,
                       round_up (2 * cells, 4096));
  size = sim_size (file) / CELL * SIM_SECTOR;

  if (d == NULL || blk_init (&d->blk, &driver, SIM_DISK, NULL, size,
                             BLK_CAN_TRIM | BLK_CAN_ZERO
                             | BLK_CAN_MULTI_CONN) < 0)
    abort ();
  d->blk.block_size = SIM_SECTOR;
  d->io = io;
  d->file = file;
  return &d->blk;
}

void
sim_disk_read (struct sim *sim, uint32_t *ret, uint64_t nr)
{
  const uint64_t *cells = sim_cache (sim_find (sim, SIM_DISK));
  uint64_t i;

  for (i = 0; i < nr; i++)
    ret[i] = (uint32_t) cells[i];
}

/*---- The store's file ----*/

static struct sim_io *
of (const struct store_io *io)
{
  return io->opaque;
}

static int
may_fail (const struct store_io *io)
{
  const uint64_t n = atomic_fetch_add (&of (io)->nr_calls, 1) + 1;

  return n >= atomic_load (&of (io)->fail_from)
    && n <= atomic_load (&of (io)->fail_to) ? -EIO : 0;
}

static int
io_open (const struct store_io *io, const char *path, enum store_io_open how,
         void **ret)
{
  struct sim_file *file = sim_find (of (io)->sim, path);

  if (how == STORE_IO_CREATE) {
    int r = may_fail (io);

    if (r < 0)
      return r;
    if (file)
      return -EEXIST;
    file = sim_create (of (io)->sim, path, false, SIM_SECTOR, 0,
                       of (io)->capacity);
  }
  *ret = file;
  return file ? 0 : -ENOENT;
}

static int
io_close (const struct store_io *io, void *file)
{
  return 0;
}

static int
io_size (const struct store_io *io, void *file, uint64_t *ret)
{
  *ret = sim_size (file);
  return 0;
}

static int
io_pread (const struct store_io *io, void *file, void *buf, size_t len,
          uint64_t off)
{
  int r = may_fail (io);

  if (r < 0)
    return r;
  return sim_read (file, buf, len, off) < 0 ? -ENODATA : 0;
}

static int
grow (void *file, uint64_t size)
{
  return sim_size (file) < size
    ? sim_resize (file, round_up (size, SIM_SECTOR)) : 0;
}

/* True if a mutant is to take care of a sync of this range. */
static bool
is_diverted (struct sim_io *s, void *file, uint64_t off, uint64_t len)
{
  if (s->mutant == SIM_IO_RIGHT || off + len <= s->mutant_off
      || off >= s->mutant_off + s->mutant_len)
    return false;
  sim_step (s->sim);
  if (s->mutant == SIM_IO_LATE)
    atomic_store (&s->late, file);
  return true;
}

static void
sync_range (struct sim_io *s, void *file, uint64_t off, uint64_t len,
            bool is_failure)
{
  const uint64_t start = round_down (off, SIM_SECTOR);

  len = round_up (off + len, SIM_SECTOR) - start;
  if (is_failure)
    sim_sync_fails (file, start, len);
  else if (!is_diverted (s, file, start, len))
    sim_sync (file, start, len);
}

static int
io_pwrite (const struct store_io *io, void *file, const void *buf,
           size_t len, uint64_t off, unsigned flags)
{
  const int fails = may_fail (io);
  int r = grow (file, off + len);

  if (r == 0)
    r = sim_write (file, buf, len, off);
  if (r == 0 && (fails || (flags & STORE_IO_DURABLE)))
    sync_range (of (io), file, off, len, fails != 0);
  return r < 0 ? r : fails;
}

static int
io_allocate (const struct store_io *io, void *file, uint64_t off,
             uint64_t len)
{
  void *zeroes;
  int r = may_fail (io);

  if (r == 0)
    r = grow (file, off + len);
  if (r < 0)
    return r;
  zeroes = calloc (1, len);
  if (zeroes == NULL)
    abort ();
  r = sim_write (file, zeroes, len, off);
  free (zeroes);
  return r;
}

static int
io_reserve (const struct store_io *io, void *file, uint64_t off, uint64_t len)
{
  return may_fail (io);
}

static int
io_sync (const struct store_io *io, void *file)
{
  int r = may_fail (io);

  if (r < 0)
    sim_sync_fails (file, 0, 0);
  else
    sim_sync (file, 0, 0);
  return r;
}

/* Pages that are zero are holes. */
static int
io_next_data (const struct store_io *io, void *file, uint64_t off,
              uint64_t end, struct range *ret)
{
  const char *cache = sim_cache (file);
  uint64_t stop;

  while (off < end && is_zero_buffer (cache + off, 4096))
    off += 4096;
  for (stop = off; stop < end && !is_zero_buffer (cache + stop, 4096); )
    stop += 4096;
  *ret = (struct range) { off, stop - off };
  return 0;
}

static int
io_map (const struct store_io *io, void *file, uint64_t off, size_t len,
        void **ret)
{
  int r = may_fail (io);

  if (r < 0)
    return r;
  if (!range_is_within (off, len, sim_size (file)))
    return -ENODATA;
  sim_mapped (file, off, len, true);
  *ret = (char *) sim_cache (file) + off;
  return 0;
}

static void
io_lock_map (const struct store_io *io, void *file, void *addr, size_t len)
{
}

static int
io_sync_map (const struct store_io *io, void *file, void *addr, size_t len)
{
  const uint64_t off = (uint64_t) ((char *) addr - (char *) sim_cache (file));
  int r = may_fail (io);

  sync_range (of (io), file, off, len, r < 0);
  return r;
}

static int
io_unmap (const struct store_io *io, void *file, void *addr, size_t len)
{
  sim_mapped (file, (uint64_t) ((char *) addr - (char *) sim_cache (file)),
              len, false);
  return 0;
}

static int
io_rename (const struct store_io *io, const char *from, const char *to)
{
  int r = may_fail (io);

  if (r == 0)
    sim_rename (of (io)->sim, from, to);
  return r;
}

static int
io_unlink (const struct store_io *io, const char *path)
{
  int r = may_fail (io);

  if (r == 0 && sim_find (of (io)->sim, path) == NULL)
    r = -ENOENT;
  if (r == 0)
    sim_remove (of (io)->sim, path);
  return r;
}

/* A file of its own; as durable as its name. */
static int
io_note (const struct store_io *io, const struct store_place *place,
         const char *name, enum store_io_note how)
{
  char path[256];
  int r;

  snprintf (path, sizeof path, "%s/%s", place->path, name);
  if (how == STORE_IO_NOTE_REMOVE)
    return io_unlink (io, path);
  r = how == STORE_IO_NOTE_SET ? may_fail (io) : 0;
  if (r == 0 && sim_find (of (io)->sim, path) == NULL) {
    if (how == STORE_IO_NOTE_LOOK)
      return -ENOENT;
    sim_create (of (io)->sim, path, false, SIM_SECTOR, 0, 4096);
  }
  return r;
}

static int
io_boot_id (const struct store_io *io, uint8_t ret[16])
{
  memset (ret, of (io)->boot_id, 16);
  return 0;
}

void
sim_io_init (struct sim_io *s, struct sim *sim, uint8_t boot_id)
{
  memset (s, 0, sizeof *s);
  s->io = (struct store_io) {
    .opaque = s,
    .open = io_open,
    .close = io_close,
    .size = io_size,
    .pread = io_pread,
    .pwrite = io_pwrite,
    .allocate = io_allocate,
    .reserve = io_reserve,
    .sync = io_sync,
    .next_data = io_next_data,
    .map = io_map,
    .lock_map = io_lock_map,
    .sync_map = io_sync_map,
    .unmap = io_unmap,
    .rename = io_rename,
    .unlink = io_unlink,
    .note = io_note,
    .boot_id = io_boot_id,
  };
  s->sim = sim;
  s->capacity = 512 * 1024;
  s->boot_id = boot_id;
}
