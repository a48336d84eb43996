/* SPDX-License-Identifier: BSD-3-Clause */
/* Making the node of an NBD export: connections, what the server can do, and
 * the metadata contexts.  Called from any one thread; starts none.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "clock.h"
#include "nbd-blk.h"
#include "nbd-uri.h"
#include "nbd-why.h"
#include "range.h"
#include "vector.h"

#define DEFAULT_CONNECTIONS 4
#define MAX_CONNECTIONS 64

#define CONNECT_TIMEOUT 30000   /* milliseconds, first connection */
#define MIN_EXTRA_TIMEOUT 1000  /* the others: at least this, or ... */
#define EXTRA_TIMEOUT_FACTOR 5  /* ... so many times what the first took */

#define DEFAULT_BLOCK_SIZE 4096
#define ALLOCATION "base:allocation"

/* Bytes of the names that a list of contexts may have: more than the 65,535
 * bitmaps of a qcow2 image with names of usual lengths.
 */
#define MAX_LIST_BYTES (16 << 20)

DEFINE_VECTOR (string_list, char *);

/* The handle knows more of what went wrong than errno. */
static int
libnbd_error (struct error *err, const char *uri)
{
  const char *msg = nbd_get_error ();
  int errnum = nbd_get_errno ();

  return error_set (err, errnum ? errnum : EIO, "%s: %s", uri,
                    msg ? msg : "unknown error");
}

void
nbd_blk_free (struct nbd_blk *s)
{
  size_t i;

  for (i = 0; i < s->nr_conns; i++)
    nbd_conn_free (s->conns[i]);
  free (s->conns);
  for (i = 0; i < s->nr_contexts; i++)
    free (s->contexts[i]);
  free (s->contexts);
  reqlist_destroy (&s->writes);
  lock_destroy (&s->lock);
  blk_fini (&s->blk);
  free (s);
}

static int
set_tls (struct nbd_handle *h, const struct blk_nbd_tls *tls)
{
  if (tls->certificates && nbd_set_tls_certificates (h, tls->certificates) < 0)
    return -1;
  if (tls->psk && nbd_set_tls_psk_file (h, tls->psk) < 0)
    return -1;
  return tls->user ? nbd_set_tls_username (h, tls->user) : 0;
}

/* A handle that is ready to connect.  Unless is_foreign the user has named the
 * URI, so it may name key files.
 */
static struct nbd_handle *
new_handle (char *const *contexts, size_t nr_contexts, bool is_foreign,
            const struct blk_nbd_tls *tls)
{
  struct nbd_handle *h = nbd_create ();
  size_t i;

  if (!h)
    return NULL;
  /* Our buffers are filled or the read fails, so libnbd need not clear them.
   * Nor need it check requests, as blk.c does: it would refuse to trim an
   * export that is read-only, which a backup's can be.
   */
  if (nbd_set_pread_initialize (h, false) < 0 ||
      nbd_set_strict_mode (h, nbd_get_strict_mode (h)
                           & ~(uint32_t) LIBNBD_STRICT_COMMANDS) < 0 ||
      nbd_set_uri_allow_local_file (h, !is_foreign) < 0 ||
      (tls && set_tls (h, tls) < 0))
    goto fail;
  for (i = 0; i < nr_contexts; i++)
    if (nbd_add_meta_context (h, contexts[i]) < 0)
      goto fail;
  return h;

 fail:
  nbd_close (h);
  return NULL;
}

static int
cancel_fd_of (const struct blk_nbd_options *o)
{
  return o->cancel_fd > 0 ? o->cancel_fd : -1;
}

static struct nbd_patience
patience_of (const struct blk_nbd_options *o, int timeout_ms)
{
  return (struct nbd_patience) {
    .timeout_ms = timeout_ms, .cancel_fd = cancel_fd_of (o),
  };
}

static int
connect_first (struct nbd_blk *s, const char *uri,
               const struct blk_nbd_options *o, struct nbd_handle **ret,
               struct error *err)
{
  const struct nbd_patience patience = patience_of (o, CONNECT_TIMEOUT);
  struct error why = ERROR_INIT;
  struct nbd_handle *h = new_handle (s->contexts, s->nr_contexts,
                                     s->is_foreign, o->tls);

  if (!h)
    return libnbd_error (err, o->uri);
  nbd_connect_all (&h, 1, uri, &patience, &why);
  if (!h)
    return error_set (err, why.errnum, "%s: %s", o->uri, why.msg);
  *ret = h;
  return 0;
}

static int
add_conn (struct nbd_blk *s, struct nbd_handle *h)
{
  int r = nbd_conn_new (h, &s->conns[s->nr_conns]);

  if (r == 0)
    s->nr_conns++;
  return r;
}

/* As many more as there are to get.  A server may take fewer clients than it
 * was asked for, and let the others wait: so not getting them is no error, and
 * the time is limited by how long the first one took.
 */
static void
connect_more (struct nbd_blk *s, const char *uri,
              const struct blk_nbd_options *o, size_t nr, int timeout_ms)
{
  const struct nbd_patience patience = patience_of (o, timeout_ms);
  struct nbd_handle *handles[MAX_CONNECTIONS];
  size_t i, n = 0;

  for (i = 0; i < nr; i++) {
    handles[n] = new_handle (s->contexts, s->nr_contexts, s->is_foreign,
                             o->tls);
    if (handles[n])
      n++;
  }
  nbd_connect_all (handles, n, uri, &patience, NULL);
  for (i = 0; i < n; i++) {
    if (!handles[i])
      continue;
    if (nbd_get_size (handles[i]) != (int64_t) blk_size (&s->blk) ||
        nbd_can_multi_conn (handles[i]) != 1 ||
        nbd_status_max_length (handles[i]) < s->max_status)
      nbd_close (handles[i]);   /* not the same export any more */
    else
      add_conn (s, handles[i]);
  }
}

static int
copy_contexts (struct nbd_blk *s, const struct blk_nbd_options *o,
               struct error *err)
{
  size_t i;

  if (o->nr_contexts >= NBD_MAX_CONTEXTS)
    return error_set (err, EINVAL, "%s: %zu metadata contexts asked for, "
                      "at most %d are possible", o->uri, o->nr_contexts,
                      NBD_MAX_CONTEXTS - 1);
  s->contexts = calloc (o->nr_contexts + 1, sizeof *s->contexts);
  if (!s->contexts)
    return error_set_errno (err, ENOMEM, "%s", o->uri);
  for (i = 0; i < o->nr_contexts + 1; i++) {
    s->contexts[i] = strdup (i == 0 ? ALLOCATION : o->contexts[i-1]);
    if (!s->contexts[i])
      return error_set_errno (err, ENOMEM, "%s", o->uri);
    s->nr_contexts++;
  }
  return 0;
}

static int
check_contexts (struct nbd_blk *s, struct nbd_handle *h,
                const struct blk_nbd_options *o, struct error *err)
{
  size_t i;

  for (i = 0; i < s->nr_contexts; i++) {
    bool is_granted = nbd_can_meta_context (h, s->contexts[i]) == 1;

    if (i == 0)
      s->has_allocation = is_granted;
    if (is_granted)
      s->has_status = true;
    else if (i > 0 || !o->is_allocation_optional)
      return error_set (err, ENOENT, "%s: the server does not offer the "
                        "metadata context \"%s\"", o->uri, s->contexts[i]);
  }
  return 0;
}

/* libnbd has dropped constraints that are nonsense by themselves. */
static int
check_sizes (struct nbd_blk *s, struct nbd_handle *h, const char *name,
             uint32_t *ret_preferred, uint64_t *ret_size, struct error *err)
{
  int64_t size = nbd_get_size (h);
  int64_t min = nbd_get_block_size (h, LIBNBD_SIZE_MINIMUM);
  int64_t preferred = nbd_get_block_size (h, LIBNBD_SIZE_PREFERRED);
  int64_t max = nbd_get_block_size (h, LIBNBD_SIZE_MAXIMUM);

  if (size < 0)
    return libnbd_error (err, name);
  if ((uint64_t) size > RANGE_MAX_SIZE)
    return error_set (err, EFBIG, "%s: the export's size %" PRIi64
                      " is too large", name, size);
  if (min <= 0)
    min = 1;
  if (min > NBD_MAX_BLOCK_SIZE || !is_power_of_2 (min))
    return error_set (err, EPROTO, "%s: the server's minimum block size %"
                      PRIi64 " is not a power of 2 up to %" PRIu32,
                      name, min, NBD_MAX_BLOCK_SIZE);
  if (size & (min - 1))
    return error_set (err, EPROTO, "%s: the export's size %" PRIi64 " is not "
                      "a multiple of its minimum block size %" PRIi64,
                      name, size, min);
  if (max <= 0 || max > NBD_MAX_PAYLOAD)
    max = NBD_MAX_PAYLOAD;
  s->min_block = min;
  s->max_payload = MAX (round_down (max, min), (uint64_t) min);
  if (preferred <= 0 || preferred > NBD_MAX_PAYLOAD ||
      !is_power_of_2 (preferred))
    preferred = MAX (min, DEFAULT_BLOCK_SIZE);
  *ret_preferred = preferred;
  *ret_size = size;
  return 0;
}

static unsigned
abilities (struct nbd_blk *s, struct nbd_handle *h, bool is_read_only)
{
  unsigned can = BLK_CAN_EXTENTS * s->has_allocation;

  if (is_read_only)
    can |= BLK_IS_READ_ONLY;
  if (nbd_can_fua (h) == 1)
    can |= BLK_CAN_FUA;
  /* A read-only export that takes trims is a view, which can be given back.
   * In one that is only opened so, by us, they would destroy data.
   */
  if (nbd_can_trim (h) == 1 && (!is_read_only || nbd_is_read_only (h) == 1))
    can |= BLK_CAN_TRIM;
  if (nbd_can_zero (h) == 1) {
    can |= BLK_CAN_ZERO;
    if (nbd_can_fast_zero (h) == 1)
      can |= BLK_CAN_FAST_ZERO;
  }
  if (nbd_can_cache (h) == 1)
    can |= BLK_CAN_CACHE;
  if (nbd_can_multi_conn (h) == 1 || nbd_can_flush (h) != 1)
    can |= BLK_CAN_MULTI_CONN;
  if (nbd_is_rotational (h) == 1)
    can |= BLK_IS_ROTATIONAL;
  s->can_flush = nbd_can_flush (h) == 1;
  return can;
}

/* Fill the node from its first connection, which it takes. */
static int
init_node (struct nbd_blk *s, struct nbd_handle *h,
           const struct blk_nbd_options *o, struct error *err)
{
  uint32_t preferred = 0;
  uint64_t size = 0;
  unsigned can;
  int r;

  s->conns = calloc (MAX_CONNECTIONS, sizeof *s->conns);
  r = s->conns ? add_conn (s, h) : -ENOMEM;
  if (r < 0) {
    if (!s->conns)
      nbd_close (h);
    return error_set_errno (err, -r, "%s", o->uri);
  }
  r = check_contexts (s, h, o, err);
  if (r == 0)
    r = check_sizes (s, h, o->uri, &preferred, &size, err);
  if (r < 0)
    return r;
  if (!o->is_read_only && nbd_is_read_only (h) == 1)
    return error_set (err, EROFS, "%s: the export is read-only", o->uri);
  can = abilities (s, h, o->is_read_only);
  r = blk_init (&s->blk, &nbd_blk_driver, o->uri, o->uri, size, can);
  if (r < 0)
    return error_set_errno (err, -r, "%s", o->uri);
  s->blk.block_size = preferred;
  s->max_status = nbd_status_max_length (h);
  return 0;
}

static int
open_node (struct nbd_blk *s, const char *uri,
           const struct blk_nbd_options *o, struct error *err)
{
  const int64_t start = clock_ms ();
  struct nbd_handle *h = NULL;
  int64_t extra_timeout;
  size_t nr;
  int r;

  r = copy_contexts (s, o, err);
  if (r == 0)
    r = connect_first (s, uri, o, &h, err);
  if (r == 0)
    r = init_node (s, h, o, err);
  if (r < 0)
    return r;
  extra_timeout = (clock_ms () - start) * EXTRA_TIMEOUT_FACTOR;
  nr = o->nr_connections ? o->nr_connections : DEFAULT_CONNECTIONS;
  nr = MIN (nr, MAX_CONNECTIONS);
  if (nr > 1 && nbd_can_multi_conn (h) == 1)
    connect_more (s, uri, o, nr - 1,
                  (int) MAX (extra_timeout, MIN_EXTRA_TIMEOUT));
  return 0;
}

/* There may be more to say about an attempt that has failed. */
static void
why_not (const char *uri, const struct blk_nbd_options *o, struct error *err)
{
  if (err && err->errnum != ECANCELED && !o->is_foreign)
    nbd_why (uri, o->tls, cancel_fd_of (o), err);
}

int
blk_nbd_open (const struct blk_nbd_options *options, struct blk **ret,
              struct error *err)
{
  CLEANUP_FREE char *uri = NULL;
  struct nbd_blk *s;
  int r;

  r = nbd_uri_normalize (options->uri, &uri, err);
  if (r < 0)
    return r;
  s = calloc (1, sizeof *s);
  if (!s)
    return error_set_errno (err, ENOMEM, "%s", options->uri);
  s->is_foreign = options->is_foreign;
  lock_init (&s->lock, LOCK_RANK_PROTOCOL);
  reqlist_init (&s->writes);
  r = open_node (s, uri, options, err);
  if (r < 0) {
    nbd_blk_free (s);
    why_not (uri, options, err);
    return r;
  }
  *ret = &s->blk;
  return 0;
}

struct list_call {
  const char *prefix;
  struct string_list names;
  size_t bytes;
  int error;
};

static int
context_arrived (void *user_data, const char *name)
{
  struct list_call *lc = user_data;
  char *copy;

  if (strncmp (name, lc->prefix, strlen (lc->prefix)) != 0 || lc->error)
    return 0;
  lc->bytes += strlen (name) + sizeof name;
  if (lc->bytes > MAX_LIST_BYTES) {
    lc->error = -EMSGSIZE;
    return 0;
  }
  copy = strdup (name);
  if (!copy || string_list_append (&lc->names, copy) < 0) {
    free (copy);
    lc->error = -ENOMEM;
  }
  return 0;
}

static int
list_completed (void *user_data, int *error)
{
  struct list_call *lc = user_data;

  if (*error && lc->error == 0)
    lc->error = -*error;
  return 1;
}

/* Ask the connected server for all its contexts.  The handle may be NULL after
 * an error.
 */
static int
list_contexts (struct nbd_handle **h, struct list_call *lc,
               const struct blk_nbd_options *o, struct error *err)
{
  const struct nbd_patience patience = patience_of (o, CONNECT_TIMEOUT);
  const nbd_context_callback each = {
    .callback = context_arrived, .user_data = lc
  };
  const nbd_completion_callback end = {
    .callback = list_completed, .user_data = lc
  };
  struct error why = ERROR_INIT;

  if (nbd_aio_opt_list_meta_context (*h, each, end) < 0)
    return libnbd_error (err, o->uri);
  nbd_handshake_all (h, 1, &patience, &why);
  if (!*h)
    return error_set (err, why.errnum, "%s: %s", o->uri, why.msg);
  return lc->error ? error_set_errno (err, -lc->error, "%s", o->uri) : 0;
}

static int
connect_and_list (struct list_call *lc, const char *uri,
                  const struct blk_nbd_options *o, struct error *err)
{
  const struct nbd_patience patience = patience_of (o, CONNECT_TIMEOUT);
  struct nbd_handle *h = new_handle (NULL, 0, false, o->tls);
  struct error why = ERROR_INIT;
  int r;

  if (!h || nbd_set_opt_mode (h, true) < 0) {
    nbd_close (h);
    return libnbd_error (err, o->uri);
  }
  nbd_connect_all (&h, 1, uri, &patience, &why);
  if (!h)
    return error_set (err, why.errnum, "%s: %s", o->uri, why.msg);
  if (nbd_aio_is_negotiating (h))
    r = list_contexts (&h, lc, o, err);
  else
    r = error_set (err, ENOTSUP, "%s: the server is too old to list metadata "
                   "contexts", o->uri);
  /* Best effort, without waiting for the server. */
  if (h && nbd_aio_is_negotiating (h))
    nbd_aio_opt_abort (h);
  nbd_close (h);
  return r;
}

int
blk_nbd_list_contexts (const struct blk_nbd_options *options,
                       const char *prefix, char ***ret, size_t *ret_nr,
                       struct error *err)
{
  CLEANUP_FREE char *uri = NULL;
  struct list_call lc = { .prefix = prefix };
  size_t i;
  int r;

  r = nbd_uri_normalize (options->uri, &uri, err);
  if (r < 0)
    return r;
  r = connect_and_list (&lc, uri, options, err);
  if (r < 0) {
    why_not (uri, options, err);
    for (i = 0; i < lc.names.len; i++)
      free (lc.names.ptr[i]);
    string_list_reset (&lc.names);
    return r;
  }
  *ret = lc.names.ptr;
  *ret_nr = lc.names.len;
  return 0;
}
