/* SPDX-License-Identifier: BSD-3-Clause */
/* The nbdkit plugin: nbdkit's callbacks on one side, disk.h and service.h on
 * the other, and nothing in between but the translation of names, flags and
 * errors.
 *
 * nbdkit calls load, config, config_complete and get_ready before it forks, so
 * that what the user got wrong reaches the terminal; after_fork starts the
 * threads of the control socket and the backup listener; unload ends them.
 * open, close and the data calls come from nbdkit's threads, many at once.
 */
#include "config.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "disk.h"
#include "extents.h"
#include "log.h"
#include "service.h"
#include "size.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define DIRTY_PREFIX "dirty:"

/* Enough for a busy map of 4 GiB in one reply; what does not fit, the client
 * asks for again.
 */
#define MAX_EXTENTS 65536

static struct service *service;
static unsigned nr_files;       /* of "file=": names disk0, disk1, ... */

/* A client's connection to one export. */
struct handle {
  struct disk *disk;
  struct dirty_bitmap *bitmap;  /* of a "dirty:" export, a reference; NULL */
  bool is_read_only;
};

static void
log_to_nbdkit (enum log_level level, const char *msg)
{
  switch (level) {
  case LOG_LEVEL_ERROR:
    nbdkit_error ("%s", msg);
    break;
  case LOG_LEVEL_WARNING:
    nbdkit_error ("warning: %s", msg);
    break;
  default:
    nbdkit_debug ("%s", msg);
  }
}

/* -1 with the message and errno set, as nbdkit wants it. */
static int
config_failed (const struct error *err)
{
  nbdkit_error ("%s", err->msg);
  nbdkit_set_error (err->errnum);
  return -1;
}

/* 0, or -1 with nbdkit's errno set.  The I/O error itself has been logged. */
static int
result (int r)
{
  if (r >= 0)
    return 0;
  nbdkit_set_error (-r);
  return -1;
}

static void
tidemark_load (void)
{
  int r;

  log_set_handler (log_to_nbdkit);
  log_set_debug (true);         /* nbdkit -v decides what is shown */
  r = service_new (&service);
  if (r < 0) {
    nbdkit_error ("cannot start: %s", strerror (-r));
    exit (EXIT_FAILURE);
  }
}

static void
tidemark_unload (void)
{
  if (service)
    service_free (service);
  service = NULL;
}

/* "file=PATH": a disk with a name made up.  Commas in PATH belong to it. */
static int
add_file (const char *path, struct error *err)
{
  CLEANUP_FREE char *spec = malloc (2 * strlen (path) + 64);
  char *p;

  if (!spec)
    return error_set_errno (err, ENOMEM, "%s", path);
  p = spec + sprintf (spec, "disk%u,file=", nr_files++);
  for (; *path; path++) {
    *p++ = *path;
    if (*path == ',')
      *p++ = ',';
  }
  *p = '\0';
  return service_add_disk (service, spec, err);
}

/* nbdkit changes its directory when it goes to the background. */
static int
add_address (enum service_listener kind, const char *value, struct error *err)
{
  static const char unix_prefix[] = "unix:";
  const size_t len = strlen (unix_prefix);
  CLEANUP_FREE char *path = NULL, *address = NULL;

  if (strncmp (value, unix_prefix, len) != 0)
    return service_add_address (service, kind, value, err);
  path = value[len] ? nbdkit_absolute_path (value + len) : strdup ("");
  if (!path || asprintf (&address, "%s%s", unix_prefix, path) < 0)
    return error_set_errno (err, ENOMEM, "%s", value);
  return service_add_address (service, kind, address, err);
}

static int
set_scratch_dir (const char *value, struct error *err)
{
  CLEANUP_FREE char *path = realpath (value, NULL);

  if (!path)
    return error_set_errno (err, errno, "scratch-dir: %s", value);
  return service_set_scratch_dir (service, path, err);
}

static int
set_scratch_limit (const char *value, struct error *err)
{
  uint64_t bytes;
  int r = size_parse ("scratch-limit", value, &bytes, err);

  return r < 0 ? r : service_set_scratch_limit (service, bytes);
}

static int
tidemark_config (const char *key, const char *value)
{
  struct error err = ERROR_INIT;
  int r;

  if (strcmp (key, "file") == 0)
    r = add_file (value, &err);
  else if (strcmp (key, "disk") == 0)
    r = service_add_disk (service, value, &err);
  else if (strcmp (key, "bitmap") == 0)
    r = service_add_bitmap (service, value, &err);
  else if (strcmp (key, "control") == 0)
    r = add_address (SERVICE_CONTROL, value, &err);
  else if (strcmp (key, "backup") == 0)
    r = add_address (SERVICE_BACKUP, value, &err);
  else if (strcmp (key, "max-connections") == 0)
    r = service_set_max_connections (service, key, value, &err);
  else if (strcmp (key, "scratch-dir") == 0)
    r = set_scratch_dir (value, &err);
  else if (strcmp (key, "scratch-limit") == 0)
    r = set_scratch_limit (value, &err);
  else if (strcmp (key, "tls") == 0 || strncmp (key, "tls-", 4) == 0)
    r = service_set_tls (service, key, value, &err);
  else
    r = error_set (&err, EINVAL, "unknown parameter \"%s\" (disk, file, "
                   "bitmap, control, backup, max-connections, scratch-dir, "
                   "scratch-limit, tls, tls-allow, tls-certificates, tls-psk "
                   "or tls-verify-peer)",
                   key);
  return r < 0 ? config_failed (&err) : 0;
}

static int
tidemark_config_complete (void)
{
  struct error err = ERROR_INIT;

  if (service_nr_disks (service) > 0)
    return service_complete (service, &err) < 0 ? config_failed (&err) : 0;
  nbdkit_error ("no disk given: \"nbdkit tidemark FILE\" or "
                "\"nbdkit tidemark disk=NAME,file=FILE\"");
  return -1;
}

#define tidemark_config_help \
  "[file=]FILE                A disk in a raw file or block device, named\n" \
  "                           disk0 (the next: disk1, ...).\n" \
  "disk=NAME,file=FILE[,...]  A disk called NAME.  More options of a disk:\n" \
  "                           format=raw|qcow2, readonly=on|off,\n" \
  "                           backing=allow|deny, scratch-dir=DIR,\n" \
  "                           scratch-limit=SIZE,\n" \
  "                           on-scratch-error=break-backup|" \
  "break-guest-write\n" \
  "bitmap=DISK/NAME[,granularity=SIZE][,disabled=on]\n" \
  "                           Record changes of DISK in dirty bitmap NAME.\n" \
  "control=ADDRESS            Control socket (QMP), unix:PATH or, with TLS,\n" \
  "                           HOST:PORT.\n" \
  "backup=ADDRESS             NBD listener for backup clients, unix:PATH or\n" \
  "                           HOST:PORT.\n" \
  "max-connections=NUMBER     Clients at once, of each of these two.\n" \
  "scratch-dir=DIR            Where old data goes during backups.\n" \
  "scratch-limit=SIZE         How much of it, per backup of a disk.\n" \
  "tls=off|on|require, tls-certificates=DIR, tls-psk=FILE,\n" \
  "tls-verify-peer=on|off, tls-allow=ROLE[/DISK]:NAME\n" \
  "                           TLS of control and backup addresses over TCP."

static int
tidemark_get_ready (void)
{
  struct error err = ERROR_INIT;
  int r = service_open (service, &err);

  if (r == 0)
    r = service_bind (service, &err);
  if (r == 0)
    return 0;
  config_failed (&err);
  /* nbdkit exits without unloading, which would leave socket files. */
  tidemark_unload ();
  return -1;
}

static int
tidemark_after_fork (void)
{
  struct error err = ERROR_INIT;

  if (service_start (service, &err) == 0)
    return 0;
  config_failed (&err);
  tidemark_unload ();
  return -1;
}

static void
tidemark_dump_plugin (void)
{
  printf ("tidemark_version=%s\n", PACKAGE_VERSION);
  printf ("tidemark_formats=raw qcow2 nbd\n");
  printf ("tidemark_contexts=base:allocation qemu:allocation-depth "
          "qemu:dirty-bitmap\n");
  printf ("tidemark_features=control backup-listener dirty-exports\n");
}

/* Add DISK's exports: itself, and one per bitmap. */
static int
list_disk (struct nbdkit_exports *exports, struct disk *disk)
{
  struct dirty_info *infos = NULL;
  size_t nr = 0, i;
  int r = dirty_list (disk_dirty (disk), &infos, &nr);

  if (r < 0)
    return result (r);
  r = nbdkit_add_export (exports, disk_name (disk), "live disk");
  for (i = 0; i < nr && r == 0; i++) {
    CLEANUP_FREE char *name = NULL;

    if (asprintf (&name, DIRTY_PREFIX "%s/%s", disk_name (disk),
                  infos[i].name) < 0)
      r = result (-ENOMEM);
    else
      r = nbdkit_add_export (exports, name,
                             "dirty areas are data, clean areas are holes; "
                             "reads give the live disk");
  }
  dirty_infos_free (infos, nr);
  return r;
}

static int
tidemark_list_exports (int readonly, int is_tls,
                       struct nbdkit_exports *exports)
{
  size_t i;

  for (i = 0; i < service_nr_disks (service); i++)
    if (list_disk (exports, service_disk (service, i)) < 0)
      return -1;
  return 0;
}

static const char *
tidemark_default_export (int readonly, int is_tls)
{
  return disk_name (service_disk (service, 0));
}

/* DISK/BITMAP of a "dirty:" export. */
static int
open_dirty (struct handle *h, const char *name)
{
  const char *slash = strchr (name, '/');
  CLEANUP_FREE char *disk = slash ? strndup (name, slash - name) : NULL;

  if (!disk)
    return slash ? -ENOMEM : -ENOENT;
  h->disk = service_find_disk (service, disk);
  if (h->disk)
    h->bitmap = dirty_find (disk_dirty (h->disk), slash + 1);
  return h->bitmap ? 0 : -ENOENT;
}

static void *
tidemark_open (int readonly)
{
  const size_t len = strlen (DIRTY_PREFIX);
  const char *name = nbdkit_export_name ();
  struct handle *h;
  int r = 0;

  if (!name)
    return NULL;
  h = calloc (1, sizeof *h);
  if (!h) {
    nbdkit_error ("out of memory");
    return NULL;
  }
  if (strncmp (name, DIRTY_PREFIX, len) == 0)
    r = open_dirty (h, name + len);
  else
    h->disk = service_find_disk (service, *name ? name :
                                 tidemark_default_export (readonly, 0));
  if (r < 0 || !h->disk) {
    nbdkit_error ("there is no export \"%s\"", name);
    nbdkit_set_error (r < 0 ? -r : ENOENT);
    free (h);
    return NULL;
  }
  h->is_read_only = readonly || h->bitmap ||
    blk_is_read_only (disk_blk (h->disk));
  return h;
}

static void
tidemark_close (void *handle)
{
  struct handle *h = handle;

  if (h->bitmap)
    dirty_unref (h->bitmap);
  free (h);
}

static const char *
tidemark_export_description (void *handle)
{
  struct handle *h = handle;

  return h->bitmap ? nbdkit_printf_intern ("dirty areas of disk %s",
                                           disk_name (h->disk)) :
         nbdkit_printf_intern ("live disk %s", disk_name (h->disk));
}

static int64_t
tidemark_get_size (void *handle)
{
  struct handle *h = handle;

  return disk_size (h->disk);
}

static bool
can (void *handle, unsigned what)
{
  struct handle *h = handle;

  return disk_blk (h->disk)->can & what;
}

static int
tidemark_can_write (void *handle)
{
  struct handle *h = handle;

  return !h->is_read_only;
}

static int
tidemark_can_flush (void *handle)
{
  return 1;
}

static int
tidemark_is_rotational (void *handle)
{
  return can (handle, BLK_IS_ROTATIONAL);
}

static int
tidemark_can_trim (void *handle)
{
  return can (handle, BLK_CAN_TRIM);
}

static int
tidemark_can_zero (void *handle)
{
  return 1;                     /* the disk writes zeroes if need be */
}

static int
tidemark_can_fast_zero (void *handle)
{
  return can (handle, BLK_CAN_FAST_ZERO);
}

static int
tidemark_can_fua (void *handle)
{
  return NBDKIT_FUA_NATIVE;
}

static int
tidemark_can_cache (void *handle)
{
  return can (handle, BLK_CAN_CACHE) ? NBDKIT_CACHE_NATIVE :
         NBDKIT_CACHE_EMULATE;
}

static int
tidemark_can_multi_conn (void *handle)
{
  return can (handle, BLK_CAN_MULTI_CONN);
}

static int
tidemark_can_extents (void *handle)
{
  struct handle *h = handle;

  return h->bitmap || can (handle, BLK_CAN_EXTENTS);
}

static int
tidemark_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                     uint32_t *maximum)
{
  struct handle *h = handle;
  const uint32_t size = disk_blk (h->disk)->block_size;

  *minimum = 1;
  *preferred = MAX (512, MIN (size, UINT32_C (32) << 20));
  *maximum = UINT32_MAX;
  return 0;
}

static unsigned
fua (uint32_t flags)
{
  return flags & NBDKIT_FLAG_FUA ? BLK_FUA : 0;
}

static int
tidemark_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
                uint32_t flags)
{
  struct handle *h = handle;

  return result (disk_pread (h->disk, buf, count, offset, 0));
}

static int
tidemark_pwrite (void *handle, const void *buf, uint32_t count,
                 uint64_t offset, uint32_t flags)
{
  struct handle *h = handle;

  return result (disk_pwrite (h->disk, buf, count, offset, fua (flags)));
}

static int
tidemark_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct handle *h = handle;
  unsigned f = fua (flags);

  if (flags & NBDKIT_FLAG_MAY_TRIM)
    f |= BLK_MAY_UNMAP;
  if (flags & NBDKIT_FLAG_FAST_ZERO)
    f |= BLK_FAST;
  return result (disk_zero (h->disk, count, offset, f));
}

static int
tidemark_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct handle *h = handle;

  return result (disk_trim (h->disk, count, offset, fua (flags)));
}

static int
tidemark_flush (void *handle, uint32_t flags)
{
  struct handle *h = handle;

  return result (disk_flush (h->disk));
}

static int
tidemark_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct handle *h = handle;

  return result (disk_cache (h->disk, count, offset));
}

/* nbdkit's type of an extent. */
static uint32_t
extent_type (const struct handle *h, uint32_t value)
{
  if (h->bitmap)
    return value & EXTENT_DIRTY ? 0 : NBDKIT_EXTENT_HOLE;
  return (value & EXTENT_HOLE ? NBDKIT_EXTENT_HOLE : 0) |
         (value & EXTENT_ZERO ? NBDKIT_EXTENT_ZERO : 0);
}

static int
tidemark_extents (void *handle, uint32_t count, uint64_t offset,
                  uint32_t flags, struct nbdkit_extents *extents)
{
  struct handle *h = handle;
  const bool is_one = flags & NBDKIT_FLAG_REQ_ONE;
  struct extents list;
  size_t i;
  int r;

  extents_init (&list, is_one ? 1 : MAX_EXTENTS);
  if (h->bitmap)
    r = dirty_extents (h->bitmap, count, offset, &list);
  else
    r = disk_extents (h->disk, count, offset, is_one ? BLK_ONE : 0,
                      BLK_STATUS_ALLOCATION, &list);
  for (i = 0; r >= 0 && i < list.len; i++)
    r = nbdkit_add_extent (extents, list.ptr[i].off, list.ptr[i].len,
                           extent_type (h, list.ptr[i].value)) < 0 ? -EIO : 0;
  extents_free (&list);
  return result (r);
}

static struct nbdkit_plugin plugin = {
  .name = "tidemark",
  .longname = "Tidemark: live disks with dirty bitmaps and pull backups",
  .version = PACKAGE_VERSION,
  .description = "serves disks, records what changes, and gives backup "
    "clients views of a point in time",
  .load = tidemark_load,
  .unload = tidemark_unload,
  .config = tidemark_config,
  .config_complete = tidemark_config_complete,
  .config_help = tidemark_config_help,
  .magic_config_key = "file",
  .dump_plugin = tidemark_dump_plugin,
  .get_ready = tidemark_get_ready,
  .after_fork = tidemark_after_fork,
  .list_exports = tidemark_list_exports,
  .default_export = tidemark_default_export,
  .open = tidemark_open,
  .close = tidemark_close,
  .export_description = tidemark_export_description,
  .get_size = tidemark_get_size,
  .block_size = tidemark_block_size,
  .can_write = tidemark_can_write,
  .can_flush = tidemark_can_flush,
  .is_rotational = tidemark_is_rotational,
  .can_trim = tidemark_can_trim,
  .can_zero = tidemark_can_zero,
  .can_fast_zero = tidemark_can_fast_zero,
  .can_fua = tidemark_can_fua,
  .can_cache = tidemark_can_cache,
  .can_multi_conn = tidemark_can_multi_conn,
  .can_extents = tidemark_can_extents,
  .pread = tidemark_pread,
  .pwrite = tidemark_pwrite,
  .zero = tidemark_zero,
  .trim = tidemark_trim,
  .flush = tidemark_flush,
  .cache = tidemark_cache,
  .extents = tidemark_extents,
};

struct nbdkit_plugin *plugin_init (void);
NBDKIT_REGISTER_PLUGIN (plugin)
