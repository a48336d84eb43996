/* SPDX-License-Identifier: BSD-3-Clause */
/* What nodes.c shares with node-open.c, which builds stacks, and with the
 * queries.
 */
#ifndef TIDEMARK_NODES_PRIVATE_H
#define TIDEMARK_NODES_PRIVATE_H

#include "lock.h"
#include "nodes.h"
#include "vector.h"

/* What a child is to its parent. */
struct node_child {
  const char *role;             /* "file", "backing", "image" */
  struct node *node;
  bool is_reference;            /* it was there before; else it goes with its
                                   parent */
  bool is_exclusive;            /* a reference through which is written */
};

DEFINE_VECTOR (node_child_vector, struct node_child);

struct node {
  /* Fixed once it is in the list. */
  char *name;
  const char *driver;           /* QEMU's name of it */
  struct blk *blk;              /* the driver's; owned by disk or the parent */
  struct disk *disk;            /* NULL for one that goes with its parent */
  struct node_child_vector children;
  bool is_fixed;                /* from the start; not closed here */

  /* Changed as the list is. */
  struct node *parent;          /* it goes with, or that writes through it */
  const char *parent_role;
  unsigned nr_readers;          /* parents that only read */
  bool is_doomed;

  /* Protected by the lock of struct nodes. */
  unsigned nr_shared;           /* holds */
  bool has_job;
};

DEFINE_VECTOR (node_vector, struct node *);

struct nodes {
  struct lock lock;             /* LOCK_RANK_SERVICE */
  pthread_cond_t changed;       /* somebody has left */
  /* Protected by lock. */
  unsigned nr_inside;           /* commands */
  unsigned nr_changers;         /* that wait to be alone */
  bool is_changing;

  /* Changed between nodes_begin_change and nodes_end_change only. */
  struct node_vector list;      /* children before their parents */

  /* Atomic. */
  _Atomic unsigned next_number; /* of a name that we give */
};

struct node *nodes_find (struct nodes *n, const char *name);

/* Also gives back what it refers to. */
void node_free (struct node *node);

/* Let parent refer to child, exclusively if it writes.  -EBUSY, -ENOMEM. */
int nodes_lend (struct nodes *n, struct node *child, struct node *parent,
                const char *role, bool is_exclusive, struct error *err);

/* Make a disk of the top of an opened stack and put all into the list.  The
 * stack is taken, on failure too.  -EEXIST if a name is taken.
 */
int nodes_insert (struct nodes *n, struct node_vector *made,
                  const struct disk_options *options, struct error *err);

#endif /* TIDEMARK_NODES_PRIVATE_H */
