/* SPDX-License-Identifier: BSD-3-Clause */
/* What the tests of gate, cbw, disk and session share: disks in memory below
 * which requests can be paused and made to fail, and threads whose progress
 * can be looked at.
 */
#ifndef TIDEMARK_TESTS_DISK_UTIL_H
#define TIDEMARK_TESTS_DISK_UTIL_H

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blk-debug.h"
#include "blk-mem.h"
#include "cbw-private.h"
#include "cleanup.h"
#include "disk.h"
#include "log.h"
#include "range.h"
#include "session.h"
#include "unit.h"

#define KiB UINT64_C (1024)
#define MiB (KiB * 1024)
#define BLOCK CBW_BLOCK_SIZE

/* For main: end it all if it takes too long, say because a thread waits for
 * what a failed test has left behind.
 */
static inline void
limit_test_time (void)
{
  alarm (120);
}

/* Wait until cond is true; fail the test after 30 seconds. */
#define WAIT_FOR(cond) \
  do { \
    time_t wait_end = time (NULL) + 30; \
    while (!(cond)) { \
      if (time (NULL) > wait_end) \
        fail_msg ("waited in vain for %s", #cond); \
      sched_yield (); \
    } \
  } while (0)

/* A blk-debug node over memory. */
static inline struct blk *
debug_node (uint64_t size)
{
  struct blk *mem, *debug;

  assert_int_equal (blk_mem_new (size, &mem), 0);
  assert_int_equal (blk_debug_open (mem, &debug, NULL), 0);
  return debug;
}

/* A disk called name over a blk-debug node. */
static inline struct disk *
debug_disk (const char *name, uint64_t size, enum cbw_on_error on_error)
{
  struct disk_options options = {
    .name = name, .on_scratch_error = on_error,
  };
  struct disk *disk;

  assert_int_equal (disk_new (debug_node (size), &options, &disk, NULL), 0);
  return disk;
}

static inline void
fill (struct disk *disk, uint64_t off, uint64_t len, int byte)
{
  CLEANUP_FREE char *buf = malloc (len);

  assert_non_null (buf);
  memset (buf, byte, len);
  assert_int_equal (disk_pwrite (disk, buf, len, off, 0), 0);
}

/* The first byte at off of a node, after checking that len bytes are alike. */
static inline int
read_same (struct blk *blk, uint64_t off, uint64_t len)
{
  CLEANUP_FREE unsigned char *buf = malloc (len);

  assert_non_null (buf);
  assert_int_equal (blk_pread (blk, buf, len, off, 0), 0);
  for (uint64_t i = 1; i < len; i++)
    if (buf[i] != buf[0])
      fail_msg ("at %llu: byte %u, but at %llu: %u",
                (unsigned long long) off, buf[0],
                (unsigned long long) (off + i), buf[i]);
  return buf[0];
}

/* A request, or anything else, in a thread of its own. */
struct task {
  int (*run) (struct task *task);
  struct disk *disk;
  struct blk *blk;
  struct cbw_view *view;
  uint64_t off, len;
  int byte;                     /* to write, or that was read */
  void *opaque;
  int result;
  _Atomic bool is_done;
  pthread_t thread;
};

static inline void *
task_main (void *arg)
{
  struct task *task = arg;

  task->result = task->run (task);
  atomic_store (&task->is_done, true);
  return NULL;
}

static inline void
task_start (struct task *task)
{
  atomic_store (&task->is_done, false);
  assert_int_equal (pthread_create (&task->thread, NULL, task_main, task), 0);
}

static inline int
task_join (struct task *task)
{
  pthread_join (task->thread, NULL);
  return task->result;
}

static __attribute__ ((unused)) int
run_write (struct task *task)
{
  CLEANUP_FREE char *buf = malloc (task->len);

  if (!buf)
    return -ENOMEM;
  memset (buf, task->byte, task->len);
  return disk_pwrite (task->disk, buf, task->len, task->off, 0);
}

/* Read; byte becomes the value, or -1 if there are several. */
static __attribute__ ((unused)) int
run_read (struct task *task)
{
  CLEANUP_FREE unsigned char *buf = malloc (task->len);
  int r;

  if (!buf)
    return -ENOMEM;
  r = blk_pread (task->blk, buf, task->len, task->off, 0);
  task->byte = buf[0];
  for (uint64_t i = 1; i < task->len; i++)
    if (buf[i] != buf[0])
      task->byte = -1;
  return r;
}

static __attribute__ ((unused)) int
run_trim (struct task *task)
{
  return blk_trim (task->blk, task->len, task->off, 0);
}

/* Threads that wait for somebody's claim in a view. */
static inline unsigned
nr_claim_waiters (struct cbw_view *v)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&v->lock);
  return v->shared.nr_waiting + v->exclusive.nr_waiting;
}

static inline unsigned
nr_gate_waiters (struct gate *gate)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&gate->lock);
  return gate->nr_waiting;
}

/* A small generator, so that a seed gives the same run everywhere. */
static inline uint64_t
rnd (uint64_t *state)
{
  uint64_t z = *state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ (z >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C (0x94d049bb133111eb);
  return z ^ (z >> 31);
}

/* TEST_SEED in the environment, else the time; printed for a replay. */
static inline uint64_t
test_seed (void)
{
  const char *s = getenv ("TEST_SEED");
  uint64_t seed = s ? strtoull (s, NULL, 0) : (uint64_t) time (NULL);

  print_message ("TEST_SEED=%llu\n", (unsigned long long) seed);
  return seed;
}

/* A view on a disk, started and stopped with the gate closed around. */
static inline void
start_view (struct disk *disk, struct cbw_view *view,
            const struct bitmap *held)
{
  gate_close (disk_gate (disk));
  cbw_view_start (view, held);
  gate_open (disk_gate (disk));
}

static inline void
stop_view (struct disk *disk, struct cbw_view *view)
{
  gate_close (disk_gate (disk));
  cbw_view_stop (view);
  gate_open (disk_gate (disk));
}

/* A full view that has begun. */
static inline struct cbw_view *
full_view (struct disk *disk)
{
  struct cbw_options options;
  struct cbw_view *view;

  disk_cbw_options (disk, &options);
  assert_int_equal (cbw_view_new (disk_cbw (disk), &options, &view, NULL), 0);
  start_view (disk, view, NULL);
  return view;
}

static inline void
end_view (struct disk *disk, struct cbw_view *view)
{
  stop_view (disk, view);
  cbw_view_free (view);
}

#endif /* TIDEMARK_TESTS_DISK_UTIL_H */
