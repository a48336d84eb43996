/* SPDX-License-Identifier: BSD-3-Clause */
/* A simulated machine whose power can be cut: files in memory, and for each of
 * their cells every content that a power cut may leave behind.
 *
 * A cell is the unit that a disk writes as a whole, a sector.  What is written
 * is in the cache at once, as is what is stored into a mapping; what a file
 * would hold after a power cut is, for each cell by itself, what it held when
 * it was last synced or any content that it has had since.  So writes are
 * reordered, torn at sectors and lost, and mapped pages reach the disk at any
 * time.
 *
 * A sync that fails makes nothing durable, nor does a later one make durable
 * what the failed one was to: the kernel has marked these pages clean.
 *
 * All functions may be called from any thread.
 */
#ifndef TIDEMARK_TESTS_SIM_H
#define TIDEMARK_TESTS_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sim;
struct sim_file;

/* What a power cut leaves of the cells that are not synced. */
enum sim_choice {
  SIM_ALL,                      /* their last content */
  SIM_NONE,                     /* what was synced */
  SIM_DATA_ONLY,                /* all of data files, nothing of others */
  SIM_DATA_AND_RANDOM,          /* all of data files, any of others */
  SIM_OTHERS_ONLY,              /* nothing of data files, all of others */
  SIM_RANDOM,                   /* any, each cell by itself */
  SIM_WRITES,                   /* some writes, others not at all */
  SIM_PREFIX,                   /* of each file all up to a moment */
  SIM_TORN,                     /* any, and cells torn within */
  SIM_NR_CHOICES
};

struct sim *sim_new (void);
void sim_free (struct sim *sim);

/* Called with every change that may matter, with the new content possible but
 * nothing more certain than before: after a write, before a sync takes effect,
 * and by sim_step.  It may call sim_cut_locked and nothing else of the same
 * machine; other threads wait.
 */
void sim_on_step (struct sim *sim, void (*step) (void *opaque), void *opaque);
/* Called at the beginning of each sync, without the lock, so that a test can
 * hold it up.
 */
void sim_on_sync (struct sim *sim,
                  void (*sync) (void *opaque, struct sim_file *file),
                  void *opaque);

/* A file of size bytes, all zero and durable.  cell: bytes, divides size and
 * capacity.  is_data: see enum sim_choice.  capacity: the size it can grow to,
 * whole pages.
 */
struct sim_file *sim_create (struct sim *sim, const char *name, bool is_data,
                             size_t cell, uint64_t size, uint64_t capacity);
/* NULL if there is none. */
struct sim_file *sim_find (struct sim *sim, const char *name);
/* Durable at once.  A file called to is replaced. */
void sim_rename (struct sim *sim, const char *from, const char *to);
void sim_remove (struct sim *sim, const char *name);
/* What is new is zero.  Durable with the next sync of any part of the file:
 * until then a power cut may leave it with its old size, and if that is larger,
 * with what was there.  -ENOSPC above the capacity.
 */
int sim_resize (struct sim_file *file, uint64_t size);
uint64_t sim_size (struct sim_file *file);

/* 0 or -EINVAL. */
int sim_read (struct sim_file *file, void *buf, uint64_t len, uint64_t off);
int sim_write (struct sim_file *file, const void *buf, uint64_t len,
               uint64_t off);
/* The cache itself, valid as long as the file.  sim_mapped says that this part
 * of it changes without sim_write.
 */
void *sim_cache (struct sim_file *file);
void sim_mapped (struct sim_file *file, uint64_t off, uint64_t len,
                 bool is_mapped);
/* Make a part durable, the end of the file for len 0. */
void sim_sync (struct sim_file *file, uint64_t off, uint64_t len);
/* The same, failing. */
void sim_sync_fails (struct sim_file *file, uint64_t off, uint64_t len);
/* Look at the mappings. */
void sim_step (struct sim *sim);

/* A machine after a power cut now, its files durable.  Free it with
 * sim_free.
 */
struct sim *sim_cut (struct sim *sim, enum sim_choice choice,
                     uint64_t *random);
struct sim *sim_cut_locked (struct sim *sim, enum sim_choice choice,
                            uint64_t *random);
/* The same machine, with all that is in the caches and nothing more certain to
 * be on disk: what a killed program leaves.
 */
struct sim *sim_copy (struct sim *sim);
struct sim *sim_copy_locked (struct sim *sim);

/* Steps taken, and cells that are not synced now. */
uint64_t sim_nr_steps (struct sim *sim);
uint64_t sim_nr_unsynced (struct sim *sim);

/* A small generator, so that a seed gives the same run everywhere. */
static inline uint64_t
sim_random (uint64_t *state)
{
  uint64_t z = *state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

#endif /* TIDEMARK_TESTS_SIM_H */
