/* SPDX-License-Identifier: BSD-3-Clause */
/* The nodes of a process by name: the disks that it was started with, and what
 * blockdev-add has added.
 *
 * A node that no other node is built on is a disk: it can have bitmaps, be
 * exported, backed up, or be a job's target.  A node that another one writes
 * through belongs to that one until it is gone; one that another only reads
 * (a backing file) stays a disk.
 *
 * Commands run inside (nodes_enter, done by qmp_dispatch): what a look-up has
 * returned stays valid until the handler returns.  Whoever keeps a disk for
 * longer (an export, a session, a job) takes a hold on it, inside a command,
 * and gives it back from any thread.
 */
#ifndef TIDEMARK_NODES_H
#define TIDEMARK_NODES_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "blk.h"
#include "disk.h"
#include "error.h"

struct nodes;
struct node;

int nodes_new (struct nodes **ret);
/* Closes what blockdev-add has added, parents first; nothing is held any more.
 * 0, or -errno if something could not be written back (it has been logged).
 * NULL is allowed.
 */
int nodes_free (struct nodes *n);

/* A disk that the process was started with; before commands are served.  It
 * is not owned, and outlives n.  -ENOMEM.
 */
int nodes_add_fixed (struct nodes *n, struct disk *disk);

/*---- Around commands ----*/

void nodes_enter (struct nodes *n);
void nodes_leave (struct nodes *n);
/* For a handler that takes nodes away or gives them another owner: alone until
 * nodes_end_change.  Others may have changed things while it waited: nothing
 * looked up before is valid any more.
 */
void nodes_begin_change (struct nodes *n);
void nodes_end_change (struct nodes *n);

/*---- Inside a command ----*/

/* The disk called name, which may be a device's or a node's, or NULL. */
struct disk *nodes_find_disk (struct nodes *n, const char *name);
/* The same with QEMU's message for commands that take either ("device",
 * "target").
 */
struct disk *nodes_find_device (struct nodes *n, const char *name,
                                struct error *err);
/* All disks, in order of creation. */
size_t nodes_nr_disks (struct nodes *n);
struct disk *nodes_disk (struct nodes *n, size_t i);

/* blockdev-add and blockdev-del, from inside a command, which is alone for a
 * while.  options: of the disk that the top becomes, except for its name;
 * spec has been checked (node-open.h).
 */
int nodes_add (struct nodes *n, json_t *spec,
               const struct disk_options *options, struct error *err);
int nodes_delete (struct nodes *n, const char *name, struct error *err);

/*---- Holds ----*/

enum node_use {
  NODE_USE_SHARED,              /* an export, a pull session; any number */
  NODE_USE_JOB,                 /* a push job's source or target: one job at a
                                   time has it, as in QEMU */
};

/* The disk stays until it is given back: blockdev-del and using it as a child
 * are refused.  -EBUSY with QEMU's message if another job has it.
 */
int nodes_hold (struct nodes *n, struct disk *disk, enum node_use use,
                struct error *err);
/* Any thread, with no lock above LOCK_RANK_SERVICE held. */
void nodes_release (struct nodes *n, struct disk *disk, enum node_use use);

#endif /* TIDEMARK_NODES_H */
