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

  /* Protected by the lock of struct nodes. */
  struct node *parent;          /* it goes with, or that writes through it */
  const char *parent_role;
  unsigned nr_readers;          /* parents that only read */
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
  unsigned next_number;         /* of a name that we give */
};

struct node *nodes_find (struct nodes *n, const char *name);

#endif /* TIDEMARK_NODES_PRIVATE_H */
