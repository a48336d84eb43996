/* SPDX-License-Identifier: BSD-3-Clause */
/* The registry of nodes: names, who uses what, and when things may go.
 *
 * A node is, at any time, one of
 *   a disk          no parent; it may have readers and holds
 *   lent            a parent writes through it: no holds, readers or bitmaps
 *   a part          it was made with its parent and goes with it
 *
 *   -> part, disk [nodes_insert]   disk -> lent [nodes_lend]
 *   lent -> disk [give_back]       disk, part -> gone [delete_stack]
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
#include <sys/stat.h>

#include "log.h"
#include "node-open.h"

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

/*---- Parents and children ----*/

/* Whether child may become a part of another node. */
static int
check_lending (struct nodes *n, struct node *child, bool is_exclusive,
               struct error *err)
{
  struct dirty_info *infos;
  bool is_held;
  size_t nr;

  if (child->parent)
    return error_set (err, EBUSY, "Node '%s' is in use as '%s' of node '%s'",
                      child->name, child->parent_role, child->parent->name);
  if (!is_exclusive)
    return 0;
  lock_acquire (&n->lock);
  is_held = child->nr_shared > 0 || child->has_job;
  lock_release (&n->lock);
  if (child->is_fixed || child->nr_readers > 0 || is_held)
    return error_set (err, EBUSY, "Node '%s' is in use", child->name);
  if (disk_can_have_store (child->disk))
    return error_set (err, EBUSY, "Node '%s' has a store for dirty bitmaps",
                      child->name);
  if (dirty_list (disk_dirty (child->disk), &infos, &nr) < 0)
    return error_set_errno (err, ENOMEM, "Node '%s'", child->name);
  dirty_infos_free (infos, nr);
  if (nr > 0)
    return error_set (err, EBUSY, "Node '%s' has dirty bitmaps, which would "
                      "miss what is written through another node",
                      child->name);
  return 0;
}

int
nodes_lend (struct nodes *n, struct node *child, struct node *parent,
            const char *role, bool is_exclusive, struct error *err)
{
  const struct node_child c = {
    .role = role, .node = child, .is_reference = true,
    .is_exclusive = is_exclusive,
  };
  int r = check_lending (n, child, is_exclusive, err);

  if (r < 0)
    return r;
  if (node_child_vector_append (&parent->children, c) < 0)
    return error_set_errno (err, ENOMEM, "node '%s'", parent->name);
  if (is_exclusive) {
    child->parent = parent;
    child->parent_role = role;
  }
  else
    child->nr_readers++;
  return 0;
}

static void
give_back (const struct node_child *c)
{
  if (c->is_exclusive) {
    c->node->parent = NULL;
    disk_update_size (c->node->disk);
  }
  else
    c->node->nr_readers--;
}

void
node_free (struct node *node)
{
  size_t i;

  if (node == NULL)
    return;
  for (i = 0; i < node->children.len; i++)
    if (node->children.ptr[i].is_reference)
      give_back (&node->children.ptr[i]);
  node_child_vector_reset (&node->children);
  free (node->name);
  free (node);
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
    node_free (node);
    return -ENOMEM;
  }
  node->is_fixed = true;
  node->disk = disk;
  node->blk = disk_node (disk);
  node->driver = node->blk->driver->name;
  return 0;
}

static int
check_names (struct nodes *n, const struct node_vector *made,
             struct error *err)
{
  size_t i;

  for (i = 0; i < made->len; i++)
    if (nodes_find (n, made->ptr[i]->name))
      return error_set (err, EEXIST, "Duplicate nodes with node-name='%s'",
                        made->ptr[i]->name);
  return 0;
}

int
nodes_insert (struct nodes *n, struct node_vector *made,
              const struct disk_options *options, struct error *err)
{
  struct node *top = made->ptr[made->len - 1];
  struct disk_options o = *options;
  size_t i;
  int r = check_names (n, made, err);

  lock_acquire (&n->lock);
  if (r == 0 && node_vector_reserve (&n->list, made->len) < 0)
    r = error_set_errno (err, ENOMEM, "node '%s'", top->name);
  lock_release (&n->lock);
  if (r < 0) {
    node_open_undo (made);
    return r;
  }
  o.name = top->name;
  r = disk_new (top->blk, &o, &top->disk, err);
  if (r < 0) {
    top->blk = NULL;            /* closed */
    node_open_undo (made);
    return r;
  }
  lock_acquire (&n->lock);
  for (i = 0; i < made->len; i++)
    node_vector_append (&n->list, made->ptr[i]);
  lock_release (&n->lock);
  node_vector_reset (made);
  if (disk_start (top->disk) < 0)
    log_warning ("node '%s': the work on its store is done late", top->name);
  return 0;
}

int
nodes_add (struct nodes *n, json_t *spec, const struct disk_options *options,
           struct error *err)
{
  struct node_vector made = VECTOR_INIT;
  bool has_references = node_options_have_references (spec);
  struct disk_options o = *options;
  struct statx st = { .stx_mask = 0 };
  int r = 0;

  /* Nobody has to wait for a server that does not answer us. */
  if (!has_references)
    r = node_open (n, spec, &made, &st, err);
  nodes_begin_change (n);
  if (has_references)
    r = node_open (n, spec, &made, &st, err);
  if (o.store) {
    o.file = node_options_file (spec);
    o.file_stat = &st;
  }
  if (r == 0)
    r = nodes_insert (n, &made, &o, err);
  node_vector_reset (&made);
  nodes_end_change (n);
  return r;
}

/* Close the stack below a disk of ours, and forget its nodes. */
static int
delete_stack (struct nodes *n, struct node *top)
{
  size_t i;
  int r;

  /* Children come before their parents. */
  top->is_doomed = true;
  for (i = n->list.len; i-- > 0;) {
    struct node *node = n->list.ptr[i];

    if (node->disk == NULL && node->parent->is_doomed)
      node->is_doomed = true;
  }
  r = disk_close (top->disk);
  if (r < 0)
    log_error ("node '%s': cannot write back: %s", top->name, strerror (-r));
  for (i = n->list.len; i-- > 0;)
    if (n->list.ptr[i]->is_doomed) {
      struct node *node = n->list.ptr[i];

      /* nodes_release, from outside of commands, goes through the list. */
      lock_acquire (&n->lock);
      node_vector_remove (&n->list, i);
      lock_release (&n->lock);
      node_free (node);
    }
  return r;
}

static int
check_deletion (struct nodes *n, const struct node *node, const char *name,
                struct error *err)
{
  if (node == NULL)
    return error_set (err, ENOENT, "Failed to find node with node-name='%s'",
                      name);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
  if (node->has_job)
    return error_set (err, EBUSY, "Node '%s' is busy: block device is in use "
                      "by block job: backup", name);
  if (node->is_fixed || node->disk == NULL)
    return error_set (err, EPERM, "Node %s is not owned by the monitor",
                      name);
  if (node->nr_shared > 0)
    return error_set (err, EBUSY, "Node %s is in use", name);
  if (node->parent || node->nr_readers > 0)
    return error_set (err, EBUSY, "Block device %s is in use", name);
  return 0;
}

int
nodes_delete (struct nodes *n, const char *name, struct error *err)
{
  struct node *node;
  int r;

  nodes_begin_change (n);
  node = nodes_find (n, name);
  r = check_deletion (n, node, name, err);
  if (r == 0)
    delete_stack (n, node);
  nodes_end_change (n);
  return r;
}

int
nodes_free (struct nodes *n)
{
  int r, ret = 0;

  if (n == NULL)
    return 0;
  while (n->list.len > 0) {
    struct node *last = n->list.ptr[n->list.len - 1];

    if (last->is_fixed)
      node_free (n->list.ptr[--n->list.len]);
    else {
      r = delete_stack (n, last);
      ret = ret ? ret : r;
    }
  }
  node_vector_reset (&n->list);
  pthread_cond_destroy (&n->changed);
  lock_destroy (&n->lock);
  free (n);
  return ret;
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
