/* SPDX-License-Identifier: BSD-3-Clause */
/* A simulated machine as what a disk and its store stand on. */
#ifndef TIDEMARK_TESTS_SIM_IO_H
#define TIDEMARK_TESTS_SIM_IO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "blk.h"
#include "sim.h"
#include "store-io.h"

#define SIM_SECTOR UINT64_C (512)
/* The disk of a machine. */
#define SIM_DISK "disk"

/* What the writes of this thread are called from here on; 0 = zeroes.  The
 * simulated disk keeps, of each sector, the name of its last write, whatever
 * the data was.
 */
void sim_disk_name_writes (uint32_t name);

struct sim_io;

/* A node over the disk of io's machine, which is made with size bytes if it is
 * not there; it can be resized, to twice that at most.  Trims and zeroes are
 * writes.
 */
struct blk *sim_disk_open (struct sim_io *io, uint64_t size);
/* The names of all sectors. */
void sim_disk_read (struct sim *sim, uint32_t *ret, uint64_t nr_sectors);

enum sim_io_mutant {
  SIM_IO_RIGHT,
  SIM_IO_LOSE,                  /* no sync of the range has an effect */
  SIM_IO_LATE,                  /* or it has with the next write to the disk
                                   only, after it */
};

/* The machine's files for a store. */
struct sim_io {
  struct store_io io;           /* to be given to the store */
  struct sim *sim;
  uint64_t capacity;            /* of files that it makes */
  uint8_t boot_id;              /* all its bytes */
  _Atomic uint64_t nr_calls;    /* that can fail */
  _Atomic uint64_t fail_from, fail_to;  /* these fail, counted from 1 */
  /* Breaks the order of things in a part of every file. */
  enum sim_io_mutant mutant;
  uint64_t mutant_off, mutant_len;
  _Atomic (struct sim_file *) late;     /* SIM_IO_LATE: has a sync to come */
};

void sim_io_init (struct sim_io *io, struct sim *sim, uint8_t boot_id);

#endif /* TIDEMARK_TESTS_SIM_IO_H */
