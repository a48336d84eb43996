/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS credentials by id.  Files are read by the caller, without the lock. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lock.h"
#include "tls-objects.h"
#include "vector.h"

/* Each is read from files: a client cannot fill the memory with them. */
#define MAX_OBJECTS 64

struct tls_object {
  char *id;
  struct tls_creds *creds;      /* a reference */
};

DEFINE_VECTOR (tls_object_vector, struct tls_object);

struct tls_objects {
  struct lock lock;
  struct tls_object_vector list;        /* protected by lock */
};

int
tls_objects_new (struct tls_objects **ret)
{
  struct tls_objects *o = calloc (1, sizeof *o);

  if (o == NULL)
    return -ENOMEM;
  lock_init (&o->lock, LOCK_RANK_LEAF);
  *ret = o;
  return 0;
}

static void
object_fini (struct tls_object *object)
{
  tls_creds_free (object->creds);
  free (object->id);
}

void
tls_objects_free (struct tls_objects *o)
{
  size_t i;

  if (o == NULL)
    return;
  for (i = 0; i < o->list.len; i++)
    object_fini (&o->list.ptr[i]);
  tls_object_vector_reset (&o->list);
  lock_destroy (&o->lock);
  free (o);
}

/* Its place, or the number of all. */
static size_t
find_locked (struct tls_objects *o, const char *id)
{
  size_t i;

  for (i = 0; i < o->list.len && strcmp (o->list.ptr[i].id, id) != 0; i++)
    ;
  return i;
}

int
tls_objects_add (struct tls_objects *o, const char *id,
                 struct tls_creds *creds, struct error *err)
{
  struct tls_object object = { .id = strdup (id), .creds = creds };
  int r = 0;

  lock_acquire (&o->lock);
  if (find_locked (o, id) < o->list.len)
    r = error_set (err, EEXIST, "attempt to add duplicate property '%.64s' to "
                   "object (type 'container')", id);
  else if (o->list.len == MAX_OBJECTS)
    r = error_set (err, E2BIG, "There are %d objects already: remove one",
                   MAX_OBJECTS);
  else if (object.id == NULL ||
           tls_object_vector_append (&o->list, object) < 0)
    r = error_set_errno (err, ENOMEM, "object '%.64s'", id);
  lock_release (&o->lock);
  if (r < 0)
    object_fini (&object);
  return r;
}

int
tls_objects_remove (struct tls_objects *o, const char *id, struct error *err)
{
  struct tls_object object;
  size_t i;

  lock_acquire (&o->lock);
  i = find_locked (o, id);
  if (i == o->list.len) {
    lock_release (&o->lock);
    return error_set (err, ENOENT, "object '%.64s' not found", id);
  }
  object = o->list.ptr[i];
  tls_object_vector_remove (&o->list, i);
  lock_release (&o->lock);
  object_fini (&object);
  return 0;
}

int
tls_objects_find (struct tls_objects *o, const char *id,
                  struct tls_creds **ret, struct error *err)
{
  size_t i;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&o->lock);
  i = find_locked (o, id);
  if (i == o->list.len)
    return error_set (err, ENOENT, "No TLS credentials with id '%.64s'", id);
  *ret = tls_creds_ref (o->list.ptr[i].creds);
  return 0;
}
