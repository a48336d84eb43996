/* SPDX-License-Identifier: BSD-3-Clause */
/* The registry of nodes: names, who uses what, and when things may go.
 *
 * A node is, at any time, one of
 *   a disk          no parent; it may have readers and holds
 *   lent            a parent writes through it: no holds, readers or bitmaps
 *   a part          it was made with its parent and goes with it
 *
 *   -> part, disk [nodes_insert]   disk -> lent [nodes_lend]
 *   lent -> disk [nodes_give_back]   disk, part -> gone [nodes_delete]
 *
 * The list changes, and nodes change their kind, only while one command is
 * alone (nodes_begin_change); so commands use what they look up without
 * further ado.  Holds are counted under the lock: they come back from any
 * thread.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "nodes-private.h"

int
nodes_new (struct nodes **ret)
{
  struct nodes *n = calloc (1, sizeof *n);

  if (n == NULL)
    return -ENOMEM;
  lock_init (&n->lock, LOCK_RANK_SERVICE);
  cond_init (&n->changed);
  *ret = n;
  return 0;
}

static void
node_free (struct node *node)
{
  free (node->name);
  node_child_vector_reset (&node->children);
  free (node);
}

int
nodes_free (struct nodes *n)
{
  if (n == NULL)
    return 0;
  while (n->list.len > 0)
    node_free (n->list.ptr[--n->list.len]);
  node_vector_reset (&n->list);
  pthread_cond_destroy (&n->changed);
  lock_destroy (&n->lock);
  free (n);
  return 0;
}

/*---- Around commands ----*/

void
nodes_enter (struct nodes *n)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
  while (n->is_changing || n->nr_changers > 0)
    lock_wait (&n->lock, &n->changed);
  n->nr_inside++;
}

void
nodes_leave (struct nodes *n)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
  n->nr_inside--;
  pthread_cond_broadcast (&n->changed);
}

void
nodes_begin_change (struct nodes *n)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
  n->nr_inside--;
  n->nr_changers++;
  pthread_cond_broadcast (&n->changed);
  while (n->is_changing || n->nr_inside > 0)
    lock_wait (&n->lock, &n->changed);
  n->nr_changers--;
  n->is_changing = true;
}

void
nodes_end_change (struct nodes *n)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
  n->is_changing = false;
  n->nr_inside++;
  pthread_cond_broadcast (&n->changed);
}

/*---- Looking up ----*/

struct node *
nodes_find (struct nodes *n, const char *name)
{
  size_t i;

  for (i = 0; i < n->list.len; i++)
    if (strcmp (n->list.ptr[i]->name, name) == 0)
      return n->list.ptr[i];
  return NULL;
}

struct disk *
nodes_find_disk (struct nodes *n, const char *name)
{
  struct node *node = nodes_find (n, name);

  return node && node->parent == NULL ? node->disk : NULL;
}

struct disk *
nodes_find_device (struct nodes *n, const char *name, struct error *err)
{
  struct disk *disk = nodes_find_disk (n, name);

  if (disk == NULL)
    error_set (err, ENOENT, "Cannot find device='%s' nor node-name='%s'",
               name, name);
  return disk;
}

size_t
nodes_nr_disks (struct nodes *n)
{
  size_t i, nr = 0;

  for (i = 0; i < n->list.len; i++)
    nr += n->list.ptr[i]->parent == NULL;
  return nr;
}

struct disk *
nodes_disk (struct nodes *n, size_t i)
{
  size_t j;

  for (j = 0; j < n->list.len; j++)
    if (n->list.ptr[j]->parent == NULL && i-- == 0)
      return n->list.ptr[j]->disk;
  return NULL;
}

/*---- Coming and going ----*/

int
nodes_add_fixed (struct nodes *n, struct disk *disk)
{
  struct node *node = calloc (1, sizeof *node);

  if (node)
    node->name = strdup (disk_name (disk));
  if (node == NULL || node->name == NULL ||
      node_vector_append (&n->list, node) < 0) {
    if (node)
      node_free (node);
    return -ENOMEM;
  }
  node->is_fixed = true;
  node->disk = disk;
  node->blk = disk_node (disk);
  node->driver = node->blk->driver->name;
  return 0;
}

/*---- Holds ----*/

static struct node *
node_of_disk (struct nodes *n, const struct disk *disk)
{
  size_t i;

  for (i = 0; n->list.ptr[i]->disk != disk; i++)
    ;
  return n->list.ptr[i];
}

int
nodes_hold (struct nodes *n, struct disk *disk, enum node_use use,
            struct error *err)
{
  struct node *node;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
  node = node_of_disk (n, disk);
  assert (node->parent == NULL);
  if (use == NODE_USE_SHARED)
    node->nr_shared++;
  else if (node->has_job)
    return error_set (err, EBUSY, "Node '%s' is busy: block device is in use "
                      "by block job: backup", node->name);
  else
    node->has_job = true;
  return 0;
}

void
nodes_release (struct nodes *n, struct disk *disk, enum node_use use)
{
  struct node *node;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
  node = node_of_disk (n, disk);
  if (use == NODE_USE_SHARED) {
    assert (node->nr_shared > 0);
    node->nr_shared--;
  }
  else {
    assert (node->has_job);
    node->has_job = false;
  }
}
