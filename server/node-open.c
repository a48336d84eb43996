/* SPDX-License-Identifier: BSD-3-Clause */
/* Opens the stack that blockdev-add's options describe, from the bottom up.
 *
 * Every node of the options becomes a struct node; a node's blk owns those of
 * its children, as drivers do, except where a child is a reference: there a
 * borrowing window stands in its place.
 *
 * Called by the thread of a control connection.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "blk-file.h"
#include "blk-inject.h"
#include "blk-nbd.h"
#include "blk-null.h"
#include "blk-qcow2.h"
#include "blk-window.h"
#include "cleanup.h"
#include "node-open.h"
#include "qmp-args.h"

#define NODE_NAME_MAX 31        /* QEMU's */
#define ERRNO_MAX 4095          /* Linux has none beyond */
#define NULL_DEFAULT_SIZE (UINT64_C (1) << 30)

struct opening {
  struct nodes *nodes;
  struct node_vector *made;
  const char *file;             /* where the data are, or NULL; and */
  struct statx *stat;           /* what that was before it was used */
};

/* How a node is wanted by its parent. */
struct wanted {
  bool is_read_only;
  const char *role;             /* NULL for the top */
};

static int open_node (struct opening *o, json_t *options,
                      const struct wanted *w, struct node **ret,
                      struct error *err);

void
node_open_undo (struct node_vector *made)
{
  if (made->len > 0)
    blk_close (made->ptr[made->len - 1]->blk);
  while (made->len > 0)
    node_free (made->ptr[--made->len]);
  node_vector_reset (made);
}

/*---- Names ----*/

static int
check_name (const char *name, struct error *err)
{
  static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abcdefghijklmnopqrstuvwxyz0123456789-_.";

  if (strspn (name, allowed) != strlen (name) ||
      strcspn (name, "0123456789-_.") == 0)
    return error_set (err, EINVAL, "Invalid node-name: '%.64s'", name);
  if (strlen (name) > NODE_NAME_MAX)
    return error_set (err, EINVAL, "Node name too long");
  return 0;
}

static bool
is_taken (struct opening *o, const char *name)
{
  size_t i;

  for (i = 0; i < o->made->len; i++)
    if (strcmp (o->made->ptr[i]->name, name) == 0)
      return true;
  return nodes_find (o->nodes, name) != NULL;
}

/* The name that is given, or, below the top, one that nobody could give. */
static int
name_node (struct opening *o, json_t *options, const struct wanted *w,
           struct node *node, struct error *err)
{
  const char *name = qmp_args_string (options, "node-name", NULL);

  if (name == NULL && w->role == NULL)
    return error_set (err, EINVAL, "'node-name' must be specified for the "
                      "root node");
  if (name) {
    if (check_name (name, err) < 0)
      return -EINVAL;
    if (is_taken (o, name))
      return error_set (err, EEXIST, "Duplicate nodes with node-name='%s'",
                        name);
    node->name = strdup (name);
  }
  else if (asprintf (&node->name, "#block%03u", ++o->nodes->next_number)
           < 0)
    node->name = NULL;
  if (node->name == NULL)
    return error_set_errno (err, ENOMEM, "node");
  return 0;
}

/*---- Children ----*/

/* A window on the node called name. */
static int
borrow (struct opening *o, struct node *node, const char *name,
        const char *role, bool is_read_only, struct blk **ret_blk,
        struct error *err)
{
  struct node *child = nodes_find (o->nodes, name);
  struct blk_window_options options = {
    .size = UINT64_MAX, .is_borrowed = true, .is_read_only = is_read_only,
  };
  int r;

  if (child == NULL) {
    error_set (err, ENOENT, "Cannot find device='%s' nor node-name='%s'",
               name, name);
    if (strcmp (role, "backing") == 0)
      error_prefix (err, "Could not open backing file");
    return -ENOENT;
  }
  if (!is_read_only && blk_is_read_only (child->blk))
    return error_set (err, EROFS, "Block node is read-only");
  r = nodes_lend (o->nodes, child, node, role, !is_read_only, err);
  return r < 0 ? r : blk_window_open (child->blk, &options, ret_blk, err);
}

/* Open one child; *ret_blk is the caller's until its own driver has it. */
static int
open_child (struct opening *o, struct node *node, json_t *options,
            const char *role, bool is_read_only, struct blk **ret_blk,
            struct error *err)
{
  json_t *value = json_object_get (options, role);
  const struct wanted w = { .is_read_only = is_read_only, .role = role };
  struct node_child c = { .role = role };
  int r;

  if (json_is_string (value))
    return borrow (o, node, json_string_value (value), role, is_read_only,
                   ret_blk, err);
  r = open_node (o, value, &w, &c.node, err);
  if (r < 0)
    return r;
  if (node_child_vector_append (&node->children, c) < 0) {
    blk_close (c.node->blk);
    return error_set_errno (err, ENOMEM, "node '%s'", node->name);
  }
  c.node->parent = node;
  *ret_blk = c.node->blk;
  return 0;
}

/*---- Drivers ----*/

/* What a driver's function is given: node has its name and driver. */
typedef int (*open_function) (struct opening *o, struct node *node,
                              json_t *options, bool is_read_only,
                              struct error *err);

/* QEMU's words for what the system refuses. */
static int
open_path (const char *filename, unsigned flags, struct blk **ret,
           struct error *err)
{
  int r = blk_file_open (filename, flags, ret, err);

  if (r == -ENOENT || r == -EISDIR || r == -EACCES || r == -EPERM ||
      r == -EROFS || r == -ENOTDIR)
    return error_set (err, -r, "Could not open '%s': %s", filename,
                      strerror (-r));
  return r;
}

static int
open_file (struct opening *o, struct node *node, json_t *options,
           bool is_read_only, struct error *err)
{
  const char *filename = qmp_args_string (options, "filename", NULL);
  bool is_device = strcmp (node->driver, "host_device") == 0;
  unsigned flags = BLK_FILE_ANY_SIZE;
  struct stat st;
  int r;

  if (stat (filename, &st) == 0 && !S_ISDIR (st.st_mode)) {
    if (is_device && !S_ISBLK (st.st_mode))
      return error_set (err, EINVAL, "'host_device' driver requires '%s' to be "
                        "either a character or block device", filename);
    if (!is_device && !S_ISREG (st.st_mode))
      return error_set (err, EINVAL, "'file' driver requires '%s' to be a "
                        "regular file", filename);
  }
  if (strcmp (qmp_args_string (options, "locking", "auto"), "off") == 0 ||
      qmp_args_bool (options, "force-share", false))
    flags |= BLK_FILE_NO_LOCK;
  if (is_read_only)
    return open_path (filename, flags | BLK_FILE_READ_ONLY, &node->blk, err);
  r = open_path (filename, flags, &node->blk, err);
  if ((r == -EACCES || r == -EROFS || r == -EPERM) &&
      qmp_args_bool (options, "auto-read-only", false))
    r = open_path (filename, flags | BLK_FILE_READ_ONLY, &node->blk, err);
  /* The very member of the options, not another file of the same name. */
  if (r == 0 && filename == o->file
      && statx (AT_FDCWD, filename, 0, STATX_BASIC_STATS | STATX_BTIME,
                o->stat) < 0)
    memset (o->stat, 0, sizeof *o->stat);
  return r;
}

static int
open_raw (struct opening *o, struct node *node, json_t *options,
          bool is_read_only, struct error *err)
{
  struct blk_window_options window = {
    .name = node->name, .is_read_only = is_read_only,
    .off = qmp_args_uint (options, "offset", 0),
    .size = qmp_args_uint (options, "size", UINT64_MAX),
  };
  struct blk *file;
  int r = open_child (o, node, options, "file", is_read_only, &file, err);

  if (r < 0)
    return r;
  window.is_read_only = is_read_only || blk_is_read_only (file);
  return blk_window_open (file, &window, &node->blk, err);
}

static int
get_cache_size (json_t *options, const char *name, bool *has, uint64_t *size,
                struct error *err)
{
  int64_t value = qmp_args_int (options, name, 0);

  *has = json_object_get (options, name) != NULL;
  *size = (uint64_t) value;
  return value >= 0 ? 0 : error_set (err, EINVAL, "Parameter '%s' expects a "
                                     "non-negative number below 2^64", name);
}

static int
get_cache_sizes (json_t *options, struct qcow2_cache_sizes *ret,
                 struct error *err)
{
  int r;

  r = get_cache_size (options, "cache-size", &ret->has_total, &ret->total,
                      err);
  if (r == 0)
    r = get_cache_size (options, "l2-cache-size", &ret->has_l2, &ret->l2, err);
  if (r == 0)
    r = get_cache_size (options, "l2-cache-entry-size", &ret->has_l2_entry,
                        &ret->l2_entry, err);
  return r < 0 ? r : get_cache_size (options, "refcount-cache-size",
                                     &ret->has_refcount, &ret->refcount, err);
}

static int
open_qcow2 (struct opening *o, struct node *node, json_t *options,
            bool is_read_only, struct error *err)
{
  json_t *backing = json_object_get (options, "backing");
  struct qcow2_open_options qcow2 = {
    .is_read_only = is_read_only,
    .allow_backing = json_is_true (json_object_get (options, "allow-backing")),
    .ignore_backing = backing != NULL,
  };
  struct blk *file;
  int r = open_child (o, node, options, "file", is_read_only, &file, err);

  if (r < 0)
    return r;
  r = get_cache_sizes (options, &qcow2.cache, err);
  if (r == 0 && backing && !json_is_null (backing))
    r = open_child (o, node, options, "backing", true, &qcow2.backing, err);
  if (r < 0) {
    blk_close (file);
    return r;
  }
  return blk_qcow2_open (file, &qcow2, &node->blk, err);
}

/* Percent-encode what is not plain in a URI. */
static char *
encode (const char *s)
{
  static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abcdefghijklmnopqrstuvwxyz0123456789-._~/";
  char *ret = malloc (3 * strlen (s) + 1), *p = ret;

  for (; ret && *s; s++)
    if (strchr (plain, *s))
      *p++ = *s;
    else
      p += sprintf (p, "%%%02X", (unsigned char) *s);
  if (ret)
    *p = '\0';
  return ret;
}

static char *
nbd_uri (json_t *options)
{
  json_t *server = json_object_get (options, "server");
  CLEANUP_FREE char *export = encode (qmp_args_string (options, "export", ""));
  CLEANUP_FREE char *path = NULL;
  const char *host;
  char *uri;

  if (export == NULL)
    return NULL;
  if (strcmp (qmp_args_string (server, "type", ""), "unix") == 0) {
    path = encode (qmp_args_string (server, "path", ""));
    return path && asprintf (&uri, "nbd+unix:///%s?socket=%s", export, path)
      >= 0 ? uri : NULL;
  }
  host = qmp_args_string (server, "host", "");
  return asprintf (&uri, strchr (host, ':') ? "nbd://[%s]:%s/%s"
                   : "nbd://%s:%s/%s", host,
                   qmp_args_string (server, "port", ""), export)
    >= 0 ? uri : NULL;
}

static int
open_nbd (struct opening *o, struct node *node, json_t *options,
          bool is_read_only, struct error *err)
{
  const char *tls = qmp_args_string (options, "tls-creds", NULL);
  CLEANUP_FREE char *uri = NULL;
  struct blk_nbd_options nbd = {
    .is_read_only = is_read_only, .is_allocation_optional = true,
  };

  if (tls)
    return error_set (err, ENOTSUP, "No TLS credentials with id '%.64s'",
                      tls);
  nbd.uri = uri = nbd_uri (options);
  if (uri == NULL)
    return error_set_errno (err, ENOMEM, "node '%s'", node->name);
  return blk_nbd_open (&nbd, &node->blk, err);
}

static int
open_null (struct opening *o, struct node *node, json_t *options,
           bool is_read_only, struct error *err)
{
  uint64_t size = qmp_args_uint (options, "size", NULL_DEFAULT_SIZE);

  if (size > RANGE_MAX_SIZE)
    return error_set (err, EFBIG, "Image size is too large");
  return blk_null_open (node->name, size,
                        is_read_only ? BLK_NULL_READ_ONLY : 0, &node->blk,
                        err);
}

/* Add the rules of one of the two arrays. */
static void
parse_rules (json_t *array, bool is_set_state, struct blk_inject_rule *rules,
             size_t *nr)
{
  static const char *const types[] = {
    "read", "write", "write-zeroes", "discard", "flush", "block-status"
  };
  size_t i, j;

  for (i = 0; i < json_array_size (array); i++) {
    json_t *item = json_array_get (array, i);
    const char *type = qmp_args_string (item, "iotype", NULL);
    json_t *sector = json_object_get (item, "sector");
    struct blk_inject_rule rule = {
      .event = blk_inject_event (qmp_args_string (item, "event", "")),
      .state = (unsigned) qmp_args_uint (item, "state", 0),
      .is_set_state = is_set_state,
      .new_state = (unsigned) qmp_args_uint (item, "new_state", 0),
      .errnum = (int) MIN (qmp_args_uint (item, "errno", EIO), ERRNO_MAX),
      .ops = BLK_INJECT_DEFAULT, .off = UINT64_MAX,
      .is_once = qmp_args_bool (item, "once", false),
    };

    /* The bits of BLK_INJECT_* are in the order of the types. */
    for (j = 0; type && j < sizeof types / sizeof types[0]; j++)
      if (strcmp (type, types[j]) == 0)
        rule.ops = 1u << j;
    if (sector && json_integer_value (sector) >= 0)
      rule.off = (uint64_t) json_integer_value (sector) * 512;
    rules[(*nr)++] = rule;
  }
}

static int
open_blkdebug (struct opening *o, struct node *node, json_t *options,
               bool is_read_only, struct error *err)
{
  json_t *inject = json_object_get (options, "inject-error");
  json_t *states = json_object_get (options, "set-state");
  size_t max = json_array_size (inject) + json_array_size (states), nr = 0;
  CLEANUP_FREE struct blk_inject_rule *rules = NULL;
  struct blk *image;
  int r;

  if (max > BLK_INJECT_MAX_RULES)
    return error_set (err, E2BIG, "node '%s': %zu rules, at most %d are "
                      "allowed", node->name, max, BLK_INJECT_MAX_RULES);
  rules = calloc (max + 1, sizeof *rules);
  if (rules == NULL)
    return error_set_errno (err, ENOMEM, "node '%s'", node->name);
  parse_rules (inject, false, rules, &nr);
  parse_rules (states, true, rules, &nr);
  r = open_child (o, node, options, "image", is_read_only, &image, err);
  return r < 0 ? r : blk_inject_open (image, node->name, rules, nr,
                                      &node->blk, err);
}

static open_function
function_of_driver (const char **driver)
{
  static const struct {
    const char *driver;
    open_function open;
  } table[] = {
    { "file", open_file }, { "host_device", open_file }, { "raw", open_raw },
    { "qcow2", open_qcow2 }, { "nbd", open_nbd }, { "null-co", open_null },
    { "blkdebug", open_blkdebug },
  };
  size_t i;

  for (i = 0; strcmp (table[i].driver, *driver) != 0; i++)
    ;
  *driver = table[i].driver;
  return table[i].open;
}

static int
rename_blk (struct node *node, struct error *err)
{
  char *copy = strdup (node->name);

  if (copy == NULL)
    return error_set_errno (err, ENOMEM, "node '%s'", node->name);
  free (node->blk->name);
  node->blk->name = copy;
  return 0;
}

/* Parts of a node that could not be opened have been closed with it: forget
 * them.
 */
static void
forget_parts (struct opening *o, size_t nr_before)
{
  while (o->made->len > nr_before)
    node_free (o->made->ptr[--o->made->len]);
}

static int
open_node (struct opening *o, json_t *options, const struct wanted *w,
           struct node **ret, struct error *err)
{
  struct node *node = calloc (1, sizeof *node);
  bool is_read_only = w->is_read_only ||
    qmp_args_bool (options, "read-only", false);
  size_t nr_before = o->made->len;
  open_function open;
  int r;

  if (node == NULL)
    return error_set_errno (err, ENOMEM, "node");
  node->driver = qmp_args_string (options, "driver", NULL);
  open = function_of_driver (&node->driver);
  node->parent_role = w->role;
  r = name_node (o, options, w, node, err);
  if (r == 0)
    r = open (o, node, options, is_read_only, err);
  if (r == 0 && (rename_blk (node, err) < 0 ||
                 node_vector_append (o->made, node) < 0)) {
    blk_close (node->blk);
    r = error_set_errno (err, ENOMEM, "node");
  }
  if (r < 0) {
    forget_parts (o, nr_before);
    node_free (node);
    return r;
  }
  *ret = node;
  return 0;
}

int
node_open (struct nodes *n, json_t *options, struct node_vector *made,
           struct statx *ret_stat, struct error *err)
{
  struct opening o = {
    .nodes = n, .made = made, .file = node_options_file (options),
    .stat = ret_stat,
  };
  const struct wanted w = { .role = NULL };
  struct node *top;

  return open_node (&o, options, &w, &top, err);
}
