/* SPDX-License-Identifier: BSD-3-Clause */
/* Exports by id: what block-export-add has added, and for how long its disk and
 * bitmaps are held.
 *
 * An export is in the list from before it is in the table of the NBD servers
 * until it has left that; ADDING and REMOVING keep others off meanwhile.
 *
 *   -> ADDING [block_export_add] -> READY -> REMOVING [remove] -> gone
 *   ADDING -> gone [block_export_add fails]   REMOVING -> READY [still in use]
 *
 * Called by the threads of control connections, inside commands, and by the
 * thread that ends the process.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block-export.h"
#include "lock.h"
#include "log.h"
#include "nbd-server.h"
#include "vector.h"

enum export_state { ADDING, READY, REMOVING };

DEFINE_VECTOR (bitmap_vector, struct dirty_bitmap *);

struct block_export {
  /* Fixed after creation. */
  char *id;
  char *node_name;
  char *name;
  struct disk *disk;            /* held */
  struct bitmap_vector bitmaps; /* references, in use by us */

  enum export_state state;      /* protected by the lock of the list */
};

DEFINE_VECTOR (block_export_vector, struct block_export *);

/* A socket file of ours, to be removed at the end. */
struct socket_file {
  char path[sizeof ((struct sock_address *) 0)->path];  /* "" = none */
  dev_t dev;
  ino_t ino;
};

struct block_exports {
  struct service *service;      /* fixed */

  struct lock lock;             /* LOCK_RANK_SERVICE */
  /* Protected by lock. */
  struct block_export_vector list;
  struct nbd_server *server;    /* or NULL */
  bool is_switching;            /* somebody starts or stops it */
  struct socket_file socket;
};

int
block_exports_new (struct service *s, struct block_exports **ret)
{
  struct block_exports *be = calloc (1, sizeof *be);

  if (be == NULL)
    return -ENOMEM;
  be->service = s;
  lock_init (&be->lock, LOCK_RANK_SERVICE);
  *ret = be;
  return 0;
}

/*---- One export ----*/

static void
free_export (struct block_exports *be, struct block_export *e)
{
  if (e == NULL)
    return;
  while (e->bitmaps.len > 0) {
    struct dirty_bitmap *bm = e->bitmaps.ptr[--e->bitmaps.len];

    dirty_unuse (bm);
    dirty_unref (bm);
  }
  bitmap_vector_reset (&e->bitmaps);
  if (e->disk)
    nodes_release (service_nodes (be->service), e->disk, NODE_USE_SHARED);
  free (e->name);
  free (e->node_name);
  free (e->id);
  free (e);
}

static int
use_bitmap (struct block_export *e, const struct block_export_bitmap *b,
            bool is_read_only, struct error *err)
{
  struct dirty_bitmap *bm = dirty_find (disk_dirty (b->disk), b->name);
  int r;

  if (bm == NULL)
    return error_set (err, ENOENT, "Bitmap '%s' is not found", b->name);
  r = dirty_use (bm, is_read_only, err);
  if (r == 0 && bitmap_vector_append (&e->bitmaps, bm) < 0) {
    dirty_unuse (bm);
    r = error_set_errno (err, ENOMEM, "Bitmap '%s'", b->name);
  }
  if (r < 0)
    dirty_unref (bm);
  return r;
}

static int
make_export (struct block_exports *be, const struct block_export_options *o,
             struct block_export **ret, struct error *err)
{
  struct block_export *e = calloc (1, sizeof *e);
  bool is_frozen = !o->is_writable && !blk_is_read_only (disk_blk (o->disk));
  size_t i;
  int r = 0;

  if (e) {
    e->id = strdup (o->id);
    e->node_name = strdup (o->node_name);
    e->name = strdup (o->name);
  }
  if (e == NULL || !e->id || !e->node_name || !e->name) {
    free_export (be, e);
    return error_set_errno (err, ENOMEM, "export '%s'", o->id);
  }
  for (i = 0; i < o->nr_bitmaps && r == 0; i++)
    r = use_bitmap (e, &o->bitmaps[i], is_frozen, err);
  if (r == 0) {
    r = nodes_hold (service_nodes (be->service), o->disk, NODE_USE_SHARED,
                    err);
    e->disk = r == 0 ? o->disk : NULL;
  }
  if (r < 0) {
    free_export (be, e);
    return r;
  }
  *ret = e;
  return 0;
}

/*---- The list ----*/

static struct block_export *
find_locked (struct block_exports *be, const char *id)
{
  size_t i;

  lock_assert_held (&be->lock);
  for (i = 0; i < be->list.len; i++)
    if (strcmp (be->list.ptr[i]->id, id) == 0)
      return be->list.ptr[i];
  return NULL;
}

bool
block_export_exists (struct block_exports *be, const char *id)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&be->lock);
  return find_locked (be, id) != NULL;
}

static void
take_out (struct block_exports *be, struct block_export *e)
{
  size_t i;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&be->lock);
  for (i = 0; be->list.ptr[i] != e; i++)
    ;
  block_export_vector_remove (&be->list, i);
}

static void
set_ready (struct block_exports *be, struct block_export *e)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&be->lock);
  e->state = READY;
}

/* Offer it to clients. */
static int
publish (struct block_exports *be, const struct block_export *e,
         const struct block_export_options *o, struct error *err)
{
  struct export_bitmap *bitmaps = calloc (o->nr_bitmaps + 1, sizeof *bitmaps);
  struct export_options options = {
    .name = o->name, .description = o->description,
    .blk = disk_blk (o->disk), .disk_name = disk_name (o->disk),
    .is_read_only = !o->is_writable,
    .bitmaps = bitmaps, .nr_bitmaps = o->nr_bitmaps,
  };
  size_t i;
  int r;

  if (bitmaps == NULL)
    return error_set_errno (err, ENOMEM, "export '%s'", o->id);
  for (i = 0; i < o->nr_bitmaps; i++)
    bitmaps[i] = (struct export_bitmap) {
      .bitmap = e->bitmaps.ptr[i], .name = o->bitmaps[i].name,
    };
  r = export_add (service_exports (be->service, SERVICE_LIVE), &options, err);
  free (bitmaps);
  if (r == -EEXIST)
    error_set (err, EEXIST, "NBD server already has export named '%s'",
               o->name);
  return r;
}

int
block_export_add (struct block_exports *be,
                  const struct block_export_options *o, struct error *err)
{
  struct block_export *e = NULL;
  int r = make_export (be, o, &e, err);

  if (r < 0)
    return r;
  lock_acquire (&be->lock);
  if (find_locked (be, o->id))
    r = error_set (err, EEXIST, "Block export id '%s' is already in use",
                   o->id);
  else if (block_export_vector_append (&be->list, e) < 0)
    r = error_set_errno (err, ENOMEM, "export '%s'", o->id);
  lock_release (&be->lock);
  if (r < 0) {
    free_export (be, e);
    return r;
  }
  r = publish (be, e, o, err);
  if (r < 0) {
    take_out (be, e);
    free_export (be, e);
    return r;
  }
  set_ready (be, e);
  return 0;
}

/* The caller has made it REMOVING. */
static int
remove_export (struct block_exports *be, struct block_export *e, bool is_safe)
{
  struct export_table *table = service_exports (be->service, SERVICE_LIVE);
  json_t *data;
  int r;

  r = is_safe ? export_remove_unused (table, e->name)
    : export_remove (table, e->name);
  if (r == -EBUSY) {
    set_ready (be, e);
    return r;
  }
  take_out (be, e);
  data = json_pack ("{ss}", "id", e->id);
  free_export (be, e);
  if (data)
    service_send_event (be->service, "BLOCK_EXPORT_DELETED", data);
  json_decref (data);
  return 0;
}

int
block_export_remove (struct block_exports *be, const char *id, bool is_safe,
                     struct error *err)
{
  struct block_export *e;
  bool is_ready;

  lock_acquire (&be->lock);
  e = find_locked (be, id);
  is_ready = e && e->state == READY;
  if (is_ready)
    e->state = REMOVING;
  lock_release (&be->lock);
  if (e == NULL)
    return error_set (err, ENOENT, "Export '%s' is not found", id);
  if (!is_ready)
    return error_set (err, EBUSY, "Export '%s' is already shutting down", id);
  if (remove_export (be, e, is_safe) < 0)
    return error_set (err, EBUSY, "export '%s' still in use", id);
  return 0;
}

/* All that are ready; one that another command is removing goes anyway. */
static void
remove_all (struct block_exports *be)
{
  for (;;) {
    struct block_export *e = NULL;
    size_t i;

    lock_acquire (&be->lock);
    for (i = 0; i < be->list.len && e == NULL; i++)
      if (be->list.ptr[i]->state == READY) {
        e = be->list.ptr[i];
        e->state = REMOVING;
      }
    lock_release (&be->lock);
    if (e == NULL)
      return;
    remove_export (be, e, false);
  }
}

int
block_export_list (struct block_exports *be, struct block_export_info **ret,
                   size_t *ret_nr)
{
  struct block_export_info *infos;
  size_t i, nr;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&be->lock);
  nr = be->list.len;
  infos = calloc (nr + 1, sizeof *infos);
  for (i = 0; infos && i < nr; i++) {
    infos[i].id = strdup (be->list.ptr[i]->id);
    infos[i].node_name = strdup (be->list.ptr[i]->node_name);
    if (!infos[i].id || !infos[i].node_name) {
      block_export_list_free (infos, i + 1);
      infos = NULL;
    }
  }
  *ret = infos;
  *ret_nr = nr;
  return infos ? 0 : -ENOMEM;
}

void
block_export_list_free (struct block_export_info *infos, size_t nr)
{
  while (nr-- > 0) {
    free (infos[nr].id);
    free (infos[nr].node_name);
  }
  free (infos);
}

/*---- The server ----*/

static void
remove_socket_file (const struct socket_file *f)
{
  struct stat st;

  if (f->path[0] && lstat (f->path, &st) == 0 && st.st_dev == f->dev &&
      st.st_ino == f->ino && unlink (f->path) < 0)
    log_warning ("%s: cannot remove: %s", f->path, strerror (errno));
}

static int
new_server (struct block_exports *be, const struct sock_address *addr,
            unsigned max_connections, struct tls_creds *creds,
            struct nbd_server **ret, struct socket_file *socket,
            struct error *err)
{
  const struct nbd_server_options options = {
    .exports = service_exports (be->service, SERVICE_LIVE),
    .max_connections = max_connections,
    .tls = service_tls (be->service), .creds = creds,
    .role = TLS_ROLE_GUEST,
  };
  int fds[SOCK_ADDRESS_MAX_FDS], nr, i, r;
  struct nbd_server *server = NULL;
  struct stat st;

  nr = sock_address_listen (addr, fds, err);
  if (nr < 0)
    return addr->is_unix ? error_set (err, -nr, "Failed to bind socket to %s: "
                                      "%s", addr->path, strerror (-nr)) : nr;
  if (addr->is_unix && lstat (addr->path, &st) == 0) {
    strcpy (socket->path, addr->path);
    socket->dev = st.st_dev;
    socket->ino = st.st_ino;
  }
  r = nbd_server_new (&options, &server, err);
  for (i = 0; i < nr; i++)
    if (r < 0)
      close (fds[i]);
    else
      r = nbd_server_add_socket (server, fds[i], err);
  if (r == 0)
    r = nbd_server_start (server, err);
  if (r < 0) {
    nbd_server_free (server);
    remove_socket_file (socket);
    return r;
  }
  *ret = server;
  return 0;
}

/* Keep other commands from the server; false if some other has. */
static bool
begin_switch (struct block_exports *be, bool wants_server)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&be->lock);
  if (be->is_switching || (be->server != NULL) != wants_server)
    return false;
  be->is_switching = true;
  return true;
}

int
block_exports_start_server (struct block_exports *be,
                            const struct sock_address *addr,
                            unsigned max_connections,
                            struct tls_creds *creds, struct error *err)
{
  struct socket_file socket = { .path = "" };
  struct nbd_server *server = NULL;
  int r;

  if (!begin_switch (be, false))
    return error_set (err, EEXIST, "NBD server already running");
  r = new_server (be, addr, max_connections, creds, &server, &socket, err);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&be->lock);
  be->server = server;
  be->socket = socket;
  be->is_switching = false;
  return r;
}

int
block_exports_stop_server (struct block_exports *be, struct error *err)
{
  struct nbd_server *server;
  struct socket_file socket;

  if (!begin_switch (be, true))
    return error_set (err, ENOENT, "NBD server not running");
  remove_all (be);
  lock_acquire (&be->lock);
  server = be->server;
  socket = be->socket;
  be->server = NULL;
  lock_release (&be->lock);
  nbd_server_free (server);
  remove_socket_file (&socket);
  lock_acquire (&be->lock);
  be->is_switching = false;
  lock_release (&be->lock);
  return 0;
}

bool
block_exports_are_served (struct block_exports *be)
{
  if (service_has_live_listener (be->service))
    return true;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&be->lock);
  return be->server != NULL;
}

void
block_exports_free (struct block_exports *be)
{
  if (be == NULL)
    return;
  block_exports_stop_server (be, NULL);
  remove_all (be);
  assert (be->list.len == 0);
  block_export_vector_reset (&be->list);
  lock_destroy (&be->lock);
  free (be);
}
