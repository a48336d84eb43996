/* SPDX-License-Identifier: BSD-3-Clause */
/* What has been written when: the oracle's memory of the disks.
 *
 * A disk is a row of cells of 512 bytes.  Every write gives each of its cells
 * a content of its own, which names the operation and the place.  Operations
 * in flight never overlap, so each cell has one sequence of versions.  Times
 * are ticks of one counter, for all disks and threads.
 */
#ifndef TIDEMARK_TESTS_HISTORY_H
#define TIDEMARK_TESTS_HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CELL UINT64_C (512)

enum op_kind { OP_WRITE, OP_ZERO, OP_READ };

struct history;

/* All disks are nr_cells long and zero. */
struct history *history_new (uint64_t seed, unsigned nr_disks,
                             uint64_t nr_cells);
void history_free (struct history *h);

/* Claim the cells for an operation that is about to be sent.  Returns its
 * number, or 0 if another in flight overlaps.
 */
uint32_t history_begin (struct history *h, unsigned disk, uint64_t cell,
                        uint64_t nr, enum op_kind kind);
/* What a write is to write. */
void history_fill (const struct history *h, uint32_t op, void *buf);
/* True if buf is what a read has to find. */
bool history_check_read (struct history *h, uint32_t op, const void *buf);
/* It has been answered. */
void history_end (struct history *h, uint32_t op);

/* Operations begun so far. */
uint64_t history_count (struct history *h);

/* A point in time, taken at some moment between open and returned. */
struct history_point;

/* Before the point is asked for. */
struct history_point *history_point_open (struct history *h);
/* It has been taken. */
void history_point_returned (struct history_point *p);
/* Compare what a backup says of cells [cell, cell+nr) of a disk.  Prints what
 * is wrong and returns false.
 */
bool history_point_check (struct history_point *p, unsigned disk,
                          uint64_t cell, uint64_t nr, const void *buf);
/* After all cells of all disks of the point: is there a moment at which the
 * disks were like this?  Frees it.
 */
bool history_point_verdict (struct history_point *p);
/* Forget it. */
void history_point_close (struct history_point *p);

/* A small generator, so that a seed gives the same choices everywhere. */
static inline uint64_t
next_random (uint64_t *state)
{
  uint64_t z = *state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

#endif /* TIDEMARK_TESTS_HISTORY_H */
