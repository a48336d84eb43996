/* SPDX-License-Identifier: BSD-3-Clause */
/* A qcow2 image on a simulated machine, see sim-image.h. */
#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blk-qcow2.h"
#include "qcow2-check.h"
#include "range.h"
#include "sim-image.h"

#define CLUSTER 2048

/*---- Its file ----*/

struct image_file {
  struct blk blk;
  struct sim_file *file;
};

static struct sim_file *
file_of (struct blk *blk)
{
  return ((struct image_file *) blk)->file;
}

static int
file_close (struct blk *blk)
{
  blk_fini (blk);
  free (blk);
  return 0;
}

static int
file_pread (struct blk *blk, void *buf, uint64_t len, uint64_t off,
            unsigned flags)
{
  return sim_read (file_of (blk), buf, len, off);
}

static int
file_pwrite (struct blk *blk, const void *buf, uint64_t len, uint64_t off,
             unsigned flags)
{
  return sim_write (file_of (blk), buf, len, off);
}

static int
file_flush (struct blk *blk)
{
  sim_sync (file_of (blk), 0, 0);
  return 0;
}

static int
file_resize (struct blk *blk, uint64_t size)
{
  int r = size == blk_size (blk) ? 0 : sim_resize (file_of (blk), size);

  if (r == 0)
    atomic_store (&blk->size, size);
  return r;
}

static const struct blk_driver driver = {
  .name = "simulated file",
  .close = file_close,
  .pread = file_pread,
  .pwrite = file_pwrite,
  .flush = file_flush,
  .resize = file_resize,
};

static struct blk *
file_node (struct sim_io *io)
{
  struct image_file *f = calloc (1, sizeof *f);

  if (f == NULL)
    abort ();
  f->file = sim_find (io->sim, SIM_DISK);
  if (blk_init (&f->blk, &driver, SIM_DISK, NULL, sim_size (f->file),
                BLK_CAN_MULTI_CONN) < 0)
    abort ();
  return &f->blk;
}

/*---- The image ----*/

static int
create (struct sim_io *io, uint64_t size, struct error *err)
{
  const struct qcow2_create_options options = {
    .size = size, .cluster_size = CLUSTER,
  };
  struct blk *node;
  int r;

  sim_create (io->sim, SIM_DISK, true, SIM_SECTOR, 0,
              round_up (4 * size + (1 << 20), 4096));
  r = blk_qcow2_create (file_node (io), &options, &node, err);
  return r < 0 ? r : blk_close (node);
}

int
sim_image_open (struct sim_io *io, uint64_t size, struct blk **ret,
                struct error *err)
{
  const struct qcow2_open_options options = { .is_read_only = false };
  int r = 0;

  if (sim_find (io->sim, SIM_DISK) == NULL)
    r = create (io, size, err);
  return r < 0 ? r : blk_qcow2_open (file_node (io), &options, ret, err);
}

static void
note_fault (void *opaque, bool is_leak, const char *msg)
{
  char *message = opaque;

  if (!is_leak && message[0] == '\0')
    snprintf (message, 256, "%s", msg);
}

bool
sim_image_check (struct sim_io *io, char *message)
{
  const struct qcow2_check_options options = {
    .report = note_fault, .opaque = message, .window = 4096,
  };
  struct qcow2_check_result result;
  struct error err = ERROR_INIT;

  message[0] = '\0';
  if (blk_qcow2_check (file_node (io), &options, &result, &err) < 0) {
    snprintf (message, 256, "%s", err.msg);
    return false;
  }
  return result.corruptions == 0;
}
