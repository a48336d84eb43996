/* SPDX-License-Identifier: BSD-3-Clause */
/* The handshake: fixed newstyle, and the older newstyle that can only name an
 * export (nbd: "Newstyle negotiation", "Option types").
 *
 * I10: the whole handshake has one deadline; the number of options and the
 * size of each are limited, and so are names.  A client that keeps within the
 * protocol is answered and can go on; one that does not is cut off.
 *
 * Runs in the connection's receiving thread.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "conn.h"
#include "range.h"

/* A client that lists many exports asks for each of them. */
#define MAX_OPTIONS 1024
/* Room for an export name and a query for each of the contexts. */
#define MAX_DATA (256 * 1024)
/* More than MAX_DATA is thrown away up to here, then the client is cut off. */
#define MAX_SKIP (16 * 1024 * 1024)

/* The largest reply is that to LIST: two lengths, name and description. */
#define MAX_REPLY (NBD_OPTION_REPLY_SIZE + 8 + 2 * NBD_MAX_STRING)

struct handshake {
  struct conn *c;
  uint32_t option;              /* the current one */
  uint8_t *data;                /* and what came with it */
  size_t len, pos;
  char name[EXPORT_NAME_MAX + 1];
  struct meta_contexts listed;
  bool is_refused;              /* the log has it */
  uint8_t reply[MAX_REPLY];     /* filled behind its header */
};

static uint8_t *
reply_data (struct handshake *h)
{
  return h->reply + NBD_OPTION_REPLY_SIZE;
}

static int
send_reply (struct handshake *h, uint32_t type, size_t len)
{
  store_be64 (h->reply, NBD_OPTION_REPLY_MAGIC);
  store_be32 (h->reply + 8, h->option);
  store_be32 (h->reply + 12, type);
  store_be32 (h->reply + 16, len);
  return conn_send_all (h->c, h->reply, NBD_OPTION_REPLY_SIZE + len);
}

static int
send_ack (struct handshake *h)
{
  return send_reply (h, NBD_REP_ACK, 0);
}

static int
send_error (struct handshake *h, uint32_t type, const char *text)
{
  size_t len = strlen (text);

  memcpy (reply_data (h), text, len);
  return send_reply (h, type, len);
}

static int
send_unknown_export (struct handshake *h)
{
  return send_error (h, NBD_REP_ERR_UNKNOWN, "no such export");
}

static int
send_malformed (struct handshake *h)
{
  return send_error (h, NBD_REP_ERR_INVALID, "malformed option");
}

/* Parsing of h->data.  All return false if there is not enough. */

static bool
get_u16 (struct handshake *h, uint16_t *ret)
{
  if (h->len - h->pos < 2)
    return false;
  *ret = load_be16 (h->data + h->pos);
  h->pos += 2;
  return true;
}

static bool
get_u32 (struct handshake *h, uint32_t *ret)
{
  if (h->len - h->pos < 4)
    return false;
  *ret = load_be32 (h->data + h->pos);
  h->pos += 4;
  return true;
}

/* A length and a string of it, which stays in h->data. */
static bool
get_string (struct handshake *h, const char **ret, size_t *ret_len)
{
  uint32_t len;

  if (!get_u32 (h, &len) || len > h->len - h->pos || len > NBD_MAX_STRING
      || memchr (h->data + h->pos, 0, len))
    return false;
  *ret = (const char *) h->data + h->pos;
  *ret_len = len;
  h->pos += len;
  return true;
}

static bool
get_export_name (struct handshake *h)
{
  const char *s;
  size_t len;

  if (!get_string (h, &s, &len))
    return false;
  memcpy (h->name, s, len);
  h->name[len] = '\0';
  return true;
}

/* Transmission flags.  Between export_enter and export_leave. */
static uint16_t
transmission_flags (struct conn *c, struct export *e)
{
  struct blk *blk = export_blk (e);
  uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH
    | NBD_FLAG_SEND_FUA;

  if (export_is_read_only (e))
    flags |= NBD_FLAG_READ_ONLY;
  else {
    flags |= NBD_FLAG_SEND_WRITE_ZEROES;
    if (blk->can & BLK_CAN_FAST_ZERO)
      flags |= NBD_FLAG_SEND_FAST_ZERO;
  }
  /* A node that is read-only itself and yet can be trimmed is a view: its
   * reader trims what it needs no longer.
   */
  if ((blk->can & BLK_CAN_TRIM)
      && (!export_is_read_only (e) || blk_is_read_only (blk)))
    flags |= NBD_FLAG_SEND_TRIM;
  if (blk->can & BLK_CAN_CACHE)
    flags |= NBD_FLAG_SEND_CACHE;
  if (blk->can & BLK_CAN_MULTI_CONN)
    flags |= NBD_FLAG_CAN_MULTI_CONN;
  if (blk->can & BLK_IS_ROTATIONAL)
    flags |= NBD_FLAG_ROTATIONAL;
  if (c->request_env.is_structured)
    flags |= NBD_FLAG_SEND_DF;
  if (c->request_env.is_extended && c->contexts.len > 0
      && c->meta_export == e)
    flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
  return flags;
}

/* The client has chosen the export.  Takes over the reference. */
static void
choose (struct conn *c, struct export *e, uint16_t flags, unsigned can)
{
  c->export = e;
  c->can = can;
  if (c->meta_export != e)
    meta_contexts_reset (&c->contexts);
  c->request_env.nr_contexts = c->contexts.len;
  c->request_env.is_read_only = flags & NBD_FLAG_READ_ONLY;
  c->request_env.can_trim = flags & NBD_FLAG_SEND_TRIM;
  c->request_env.can_fast_zero = flags & NBD_FLAG_SEND_FAST_ZERO;
}

/* May this client know of the export? */
static bool
is_allowed (struct conn *c, const struct export *e)
{
  return !c->env.tls
    || server_tls_allows (c->env.tls, c->tls, c->is_local, c->env.role,
                          export_disk_name (e));
}

/* As export_find; one that the client may not use is not there. */
static struct export *
find_export (struct handshake *h)
{
  struct conn *c = h->c;
  struct export *e = export_find (c->env.exports, h->name);
  char why[256];

  if (e == NULL || is_allowed (c, e))
    return e;
  snprintf (why, sizeof why, "export '%.64s' is not for '%.150s' (tls-allow)",
            export_name (e), c->tls ? tls_peer (c->tls) : "");
  refusals_log (server_tls_refusals (c->env.tls), "nbd", c->fd, why);
  export_unref (e);
  return NULL;
}

/* Handlers: 0 goes on, 1 enters transmission, -errno closes. */

static int
handle_export_name (struct handshake *h)
{
  struct conn *c = h->c;
  uint8_t reply[10 + 124] = { 0 };
  struct export *e;
  uint16_t flags;
  unsigned can;
  int r;

  if (c->request_env.is_extended || h->len > EXPORT_NAME_MAX
      || memchr (h->data, 0, h->len))
    return -EPROTO;
  memcpy (h->name, h->data, h->len);
  h->name[h->len] = '\0';
  e = find_export (h);
  if (e == NULL)
    return -ENOENT;
  if (!export_enter (e)) {
    export_unref (e);
    return -ESHUTDOWN;
  }
  flags = transmission_flags (c, e);
  can = export_blk (e)->can;
  store_be64 (reply, blk_size (export_blk (e)));
  store_be16 (reply + 8, flags);
  export_leave (e);
  choose (c, e, flags, can);
  r = conn_send_all (c, reply, c->no_zeroes ? 10 : sizeof reply);
  return r < 0 ? r : 1;
}

static int
handle_abort (struct handshake *h)
{
  int r = send_ack (h);

  return r < 0 ? r : -ECONNRESET;
}

static int
send_listed (struct handshake *h, struct export *e)
{
  const char *name = export_name (e), *text = export_description (e);
  size_t name_len = strlen (name), text_len = text ? strlen (text) : 0;
  uint8_t *p = reply_data (h);

  store_be32 (p, name_len);
  memcpy (p + 4, name, name_len);
  if (text)
    memcpy (p + 4 + name_len, text, text_len);
  return send_reply (h, NBD_REP_SERVER, 4 + name_len + text_len);
}

static int
handle_list (struct handshake *h)
{
  struct export **exports;
  size_t nr, i;
  int r;

  if (h->len > 0)
    return send_malformed (h);
  r = export_list (h->c->env.exports, &exports, &nr);
  if (r < 0)
    return r;
  for (i = 0; i < nr && r == 0; ++i)
    if (is_allowed (h->c, exports[i]))
      r = send_listed (h, exports[i]);
  export_list_free (exports, nr);
  return r < 0 ? r : send_ack (h);
}

/* Nothing that was said before counts afterwards: somebody else may have said
 * it.  Nor is anything left that has been received: what a client sends along
 * with this option is taken for its part of TLS's handshake, and fails.
 */
static int
handle_starttls (struct handshake *h)
{
  struct conn *c = h->c;
  int r;

  if (h->len > 0)
    return send_malformed (h);
  if (c->tls)
    return send_error (h, NBD_REP_ERR_INVALID, "TLS is in use already");
  if (c->env.creds == NULL)
    return send_error (h, NBD_REP_ERR_UNSUP, "this server has no TLS");
  r = send_ack (h);
  if (r < 0)
    return r;
  meta_contexts_reset (&c->contexts);
  export_unref (c->meta_export);
  c->meta_export = NULL;
  c->request_env = (struct request_env) { .is_structured = false };
  return conn_start_tls (c);
}

static int
send_info_string (struct handshake *h, uint16_t type, const char *s)
{
  size_t len = strlen (s);
  uint8_t *p = reply_data (h);

  store_be16 (p, type);
  memcpy (p + 2, s, len);
  return send_reply (h, NBD_REP_INFO, 2 + len);
}

static int
send_info_export (struct handshake *h, uint64_t size, uint16_t flags)
{
  uint8_t *p = reply_data (h);

  store_be16 (p, NBD_INFO_EXPORT);
  store_be64 (p + 2, size);
  store_be16 (p + 10, flags);
  return send_reply (h, NBD_REP_INFO, 12);
}

static int
send_info_block_size (struct handshake *h, uint32_t preferred)
{
  uint8_t *p = reply_data (h);

  store_be16 (p, NBD_INFO_BLOCK_SIZE);
  store_be32 (p + 2, 1);
  store_be32 (p + 6, MIN (MAX (preferred, UINT32_C (4096)),
                          REQUEST_MAX_PAYLOAD));
  store_be32 (p + 10, REQUEST_MAX_PAYLOAD);
  return send_reply (h, NBD_REP_INFO, 14);
}

/* Send the items that were asked for, each once. */
static int
send_infos (struct handshake *h, struct export *e, const bool wanted[4],
            uint32_t block_size)
{
  const char *text = export_description (e);
  int r = 0;

  if (wanted[NBD_INFO_NAME])
    r = send_info_string (h, NBD_INFO_NAME, export_name (e));
  if (r == 0 && wanted[NBD_INFO_DESCRIPTION] && text)
    r = send_info_string (h, NBD_INFO_DESCRIPTION, text);
  if (r == 0 && wanted[NBD_INFO_BLOCK_SIZE])
    r = send_info_block_size (h, block_size);
  return r;
}

/* The data of INFO and GO.  False if malformed. */
static bool
parse_info (struct handshake *h, bool wanted[4])
{
  uint16_t nr, item;

  memset (wanted, 0, 4 * sizeof wanted[0]);
  if (!get_export_name (h) || !get_u16 (h, &nr))
    return false;
  while (nr-- > 0) {
    if (!get_u16 (h, &item))
      return false;
    if (item < 4)
      wanted[item] = true;
  }
  return h->pos == h->len;
}

static int
handle_info (struct handshake *h)
{
  struct conn *c = h->c;
  struct export *e;
  uint32_t block_size;
  bool wanted[4];
  uint16_t flags;
  uint64_t size;
  unsigned can;
  int r;

  if (!parse_info (h, wanted))
    return send_malformed (h);
  e = find_export (h);
  if (e == NULL)
    return send_unknown_export (h);
  if (!export_enter (e)) {
    export_unref (e);
    return send_unknown_export (h);
  }
  flags = transmission_flags (c, e);
  can = export_blk (e)->can;
  size = blk_size (export_blk (e));
  block_size = export_blk (e)->block_size;
  export_leave (e);
  r = send_infos (h, e, wanted, block_size);
  if (r == 0)
    r = send_info_export (h, size, flags);
  if (r == 0)
    r = send_ack (h);
  if (r == 0 && h->option == NBD_OPT_GO) {
    choose (c, e, flags, can);
    return 1;
  }
  export_unref (e);
  return r;
}

static int
handle_structured_reply (struct handshake *h)
{
  if (h->len > 0)
    return send_malformed (h);
  if (h->c->request_env.is_extended)
    return send_error (h, NBD_REP_ERR_EXT_HEADER_REQD,
                       "extended headers were negotiated");
  h->c->request_env.is_structured = true;
  return send_ack (h);
}

static int
handle_extended_headers (struct handshake *h)
{
  if (h->len > 0)
    return send_malformed (h);
  h->c->request_env.is_extended = true;
  h->c->request_env.is_structured = true;
  return send_ack (h);
}

/* The queries of the option: what they select goes to set.  0, -EPROTO if
 * malformed, or another -errno.  Between export_enter and export_leave.
 */
static int
select_contexts (struct handshake *h, struct export *e,
                 struct meta_contexts *set)
{
  bool is_list = h->option == NBD_OPT_LIST_META_CONTEXT;
  struct meta_query query;
  const char *s;
  uint32_t nr;
  size_t len;
  int r = 0;

  if (!get_u32 (h, &nr))
    return -EPROTO;
  if (nr == 0) {
    meta_query_parse (NULL, 0, is_list, &query);
    r = meta_contexts_add (set, e, &query);
  }
  while (nr-- > 0 && r == 0) {
    if (!get_string (h, &s, &len))
      return -EPROTO;
    meta_query_parse (s, len, is_list, &query);
    r = meta_contexts_add (set, e, &query);
  }
  return r == 0 && h->pos != h->len ? -EPROTO : r;
}

static int
send_contexts (struct handshake *h, const struct meta_contexts *set)
{
  uint8_t *p = reply_data (h);
  size_t i, len;
  int r = 0;

  for (i = 0; i < set->len && r == 0; ++i) {
    len = strlen (set->ptr[i].name);
    store_be32 (p, h->option == NBD_OPT_SET_META_CONTEXT ? i + 1 : 0);
    memcpy (p + 4, set->ptr[i].name, len);
    r = send_reply (h, NBD_REP_META_CONTEXT, 4 + len);
  }
  return r < 0 ? r : send_ack (h);
}

/* Fill set from the option's data and send the answer. */
static int
answer_contexts (struct handshake *h, struct export *e,
                 struct meta_contexts *set)
{
  int r = -ENOENT;

  if (export_enter (e)) {
    r = select_contexts (h, e, set);
    export_leave (e);
  }
  if (r == 0)
    return send_contexts (h, set);
  meta_contexts_reset (set);
  switch (r) {
  case -ENOENT:
    return send_unknown_export (h);
  case -EPROTO:
    return send_malformed (h);
  case -E2BIG:
    return send_error (h, NBD_REP_ERR_TOO_BIG, "too many metadata contexts");
  default:
    return r;
  }
}

static int
handle_list_meta (struct handshake *h)
{
  struct export *e;
  int r;

  if (!get_export_name (h))
    return send_malformed (h);
  e = find_export (h);
  if (e == NULL)
    return send_unknown_export (h);
  r = answer_contexts (h, e, &h->listed);
  meta_contexts_reset (&h->listed);
  export_unref (e);
  return r;
}

static int
handle_set_meta (struct handshake *h)
{
  struct conn *c = h->c;

  /* It replaces what was selected, also when it fails. */
  meta_contexts_reset (&c->contexts);
  export_unref (c->meta_export);
  c->meta_export = NULL;
  if (!c->request_env.is_structured)
    return send_error (h, NBD_REP_ERR_INVALID,
                       "needs structured replies first");
  if (!get_export_name (h))
    return send_malformed (h);
  c->meta_export = find_export (h);
  if (c->meta_export == NULL)
    return send_unknown_export (h);
  return answer_contexts (h, c->meta_export, &c->contexts);
}

static int
handle_unknown (struct handshake *h)
{
  return send_error (h, NBD_REP_ERR_UNSUP, "unknown option");
}

static int
refuse_plain (struct handshake *h)
{
  if (!h->is_refused)
    refusals_log (server_tls_refusals (h->c->env.tls), "nbd", h->c->fd,
                  "refused: no TLS");
  h->is_refused = true;
  if (h->option == NBD_OPT_EXPORT_NAME)
    return -EPROTO;
  return send_error (h, NBD_REP_ERR_TLS_REQD, "this server needs TLS");
}

static int
handle_option (struct handshake *h)
{
  if (conn_needs_tls (h->c) && h->option != NBD_OPT_STARTTLS
      && h->option != NBD_OPT_ABORT)
    return refuse_plain (h);
  switch (h->option) {
  case NBD_OPT_EXPORT_NAME:
    return handle_export_name (h);
  case NBD_OPT_ABORT:
    return handle_abort (h);
  case NBD_OPT_LIST:
    return handle_list (h);
  case NBD_OPT_STARTTLS:
    return handle_starttls (h);
  case NBD_OPT_INFO:
  case NBD_OPT_GO:
    return handle_info (h);
  case NBD_OPT_STRUCTURED_REPLY:
    return handle_structured_reply (h);
  case NBD_OPT_LIST_META_CONTEXT:
    return handle_list_meta (h);
  case NBD_OPT_SET_META_CONTEXT:
    return handle_set_meta (h);
  case NBD_OPT_EXTENDED_HEADERS:
    return handle_extended_headers (h);
  default:
    return handle_unknown (h);
  }
}

/* Throw away the data of an option and say that it was too long. */
static int
skip_option (struct handshake *h, uint32_t len)
{
  uint8_t *p = reply_data (h);
  int r = 0;

  if (len > MAX_SKIP || h->option == NBD_OPT_EXPORT_NAME)
    return -EPROTO;
  for (; len > 0 && r == 0; len -= MIN (len, 2 * NBD_MAX_STRING))
    r = conn_recv_all (h->c, p, MIN (len, 2 * NBD_MAX_STRING));
  return r < 0 ? r : send_error (h, NBD_REP_ERR_TOO_BIG,
                                 "option is too long");
}

/* Receive and handle one option. */
static int
next_option (struct handshake *h)
{
  uint8_t head[NBD_OPTION_SIZE];
  CLEANUP_FREE uint8_t *data = NULL;
  int r = conn_recv_all (h->c, head, sizeof head);

  if (r < 0)
    return r;
  h->option = load_be32 (head + 8);
  h->len = load_be32 (head + 12);
  h->pos = 0;
  if (load_be64 (head) != NBD_OPTION_MAGIC)
    return -EPROTO;
  /* An old client would not understand an answer to anything else. */
  if (!h->c->is_fixed_newstyle && h->option != NBD_OPT_EXPORT_NAME)
    return -EPROTO;
  if (h->len > MAX_DATA)
    return skip_option (h, h->len);
  data = malloc (h->len + 1);
  if (data == NULL)
    return -ENOMEM;
  h->data = data;
  r = conn_recv_all (h->c, data, h->len);
  return r < 0 ? r : handle_option (h);
}

static int
greet (struct conn *c)
{
  uint8_t hello[18], answer[4];
  uint32_t flags;
  int r;

  store_be64 (hello, NBD_MAGIC);
  store_be64 (hello + 8, NBD_OPTION_MAGIC);
  store_be16 (hello + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
  r = conn_send_all (c, hello, sizeof hello);
  if (r == 0)
    r = conn_recv_all (c, answer, sizeof answer);
  if (r < 0)
    return r;
  flags = load_be32 (answer);
  if (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
    return -EPROTO;
  c->is_fixed_newstyle = flags & NBD_FLAG_FIXED_NEWSTYLE;
  c->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
  return 0;
}

int
handshake_run (struct conn *c)
{
  CLEANUP_FREE struct handshake *h = calloc (1, sizeof *h);
  unsigned i;
  int r;

  if (h == NULL)
    return -ENOMEM;
  h->c = c;
  r = greet (c);
  for (i = 0; i < MAX_OPTIONS && r == 0; ++i)
    r = next_option (h);
  if (r == 0)
    return -E2BIG;
  return r < 0 ? r : 0;
}
