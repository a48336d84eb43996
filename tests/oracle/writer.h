/* SPDX-License-Identifier: BSD-3-Clause */
/* The guest: threads that read, write, zero and trim at random. */
#ifndef TIDEMARK_TESTS_WRITER_H
#define TIDEMARK_TESTS_WRITER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "history.h"

/* One way to the disks; each thread has its own.  0 or -errno. */
struct guest {
  int (*pread) (struct guest *g, unsigned disk, void *buf, uint64_t len,
                uint64_t off);
  int (*pwrite) (struct guest *g, unsigned disk, const void *buf,
                 uint64_t len, uint64_t off, bool is_fua);
  int (*zero) (struct guest *g, unsigned disk, uint64_t len, uint64_t off,
               bool may_unmap);
  int (*trim) (struct guest *g, unsigned disk, uint64_t len, uint64_t off);
  int (*flush) (struct guest *g, unsigned disk);
  void (*close) (struct guest *g);
};

struct writers;

struct writers_options {
  struct history *history;
  uint64_t seed;
  unsigned nr_threads;
  unsigned nr_disks;
  uint64_t nr_cells;
  /* Operations per second of a thread; 0 = as many as there can be. */
  unsigned rate;
  /* Called in each thread. */
  struct guest *(*connect) (void *opaque);
  void *opaque;
};

/* Start; exits on an error. */
struct writers *writers_start (const struct writers_options *options);
/* Stop and free.  False if a request failed or a read found what it should
 * not have (said on stderr).
 */
bool writers_stop (struct writers *w);
/* True once something has failed. */
bool writers_have_failed (const struct writers *w);

#endif /* TIDEMARK_TESTS_WRITER_H */
