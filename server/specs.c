/* SPDX-License-Identifier: BSD-3-Clause */
/* What the command line says of disks and bitmaps, read and checked. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "dirty.h"
#include "range.h"
#include "size.h"
#include "specs.h"

struct disk_spec *
specs_find_disk (struct specs *specs, const char *name)
{
  size_t i;

  for (i = 0; i < specs->disks.len; i++)
    if (strcmp (specs->disks.ptr[i].options.name, name) == 0)
      return &specs->disks.ptr[i];
  return NULL;
}

/* The place of key's value among two, 0 if the key is absent. */
static int
parse_choice (const struct keyvals *kv, const char *what, const char *key,
              const char *const choices[2], int if_absent, struct error *err)
{
  const char *value = keyvals_get (kv, key);

  if (value == NULL)
    return if_absent;
  if (strcmp (value, choices[0]) == 0)
    return 0;
  if (strcmp (value, choices[1]) == 0)
    return 1;
  return error_set (err, EINVAL, "%s: %s=%s: must be '%s' or '%s'", what, key,
                    value, choices[0], choices[1]);
}

static int
check_disk_name (struct specs *specs, const char *name, struct error *err)
{
  static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "abcdefghijklmnopqrstuvwxyz0123456789-_.";

  if (name == NULL || *name == '\0')
    return error_set (err, EINVAL, "disk: a name is needed, as in "
                      "'NAME,file=PATH'");
  if (strlen (name) > DISK_NAME_MAX)
    return error_set (err, EINVAL, "disk name '%.32s...' is too long "
                      "(at most %d bytes)", name, DISK_NAME_MAX);
  if (name[strspn (name, allowed)] != '\0')
    return error_set (err, EINVAL, "disk name '%s': only letters, digits, "
                      "'-', '_' and '.' are allowed", name);
  if (specs_find_disk (specs, name))
    return error_set (err, EEXIST, "disk '%s' is given twice", name);
  return 0;
}

static int
parse_size (const struct keyvals *kv, const char *what, const char *key,
            bool *ret_has, uint64_t *ret, struct error *err)
{
  const char *value = keyvals_get (kv, key);

  *ret_has = value != NULL;
  if (value == NULL || size_parse (key, value, ret, err) == 0)
    return 0;
  error_prefix (err, "%s", what);
  return -EINVAL;
}

/* How much of a qcow2 image's metadata is kept in memory. */
static int
parse_cache (const struct keyvals *kv, const char *what,
             struct disk_options *o, struct error *err)
{
  struct qcow2_cache_sizes *c = &o->cache;

  if (parse_size (kv, what, "cache-size", &c->has_total, &c->total, err) < 0
      || parse_size (kv, what, "l2-cache-size", &c->has_l2, &c->l2, err) < 0
      || parse_size (kv, what, "refcount-cache-size", &c->has_refcount,
                     &c->refcount, err) < 0
      || parse_size (kv, what, "l2-cache-entry-size", &c->has_l2_entry,
                     &c->l2_entry, err) < 0)
    return -EINVAL;
  if ((c->has_total || c->has_l2 || c->has_refcount || c->has_l2_entry)
      && strcmp (o->format, "qcow2") != 0)
    return error_set (err, EINVAL, "%s: %s is for format=qcow2 only", what,
                      c->has_total ? "cache-size" : c->has_l2
                      ? "l2-cache-size" : c->has_refcount
                      ? "refcount-cache-size" : "l2-cache-entry-size");
  if (qcow2_cache_check (c, err) < 0) {
    error_prefix (err, "%s", what);
    return -EINVAL;
  }
  return 0;
}

/* Fill the options from spec->kv. */
static int
parse_disk_options (struct specs *specs, struct disk_spec *spec,
                    struct error *err)
{
  static const char *const formats[2] = { "raw", "qcow2" };
  static const char *const off_on[2] = { "off", "on" };
  static const char *const deny_allow[2] = { "deny", "allow" };
  static const char *const policies[2] =
    { "break-backup", "break-guest-write" };
  struct disk_options *o = &spec->options;
  const struct keyvals *kv = &spec->kv;
  const char *limit = keyvals_get (kv, "scratch-limit");
  char what[DISK_NAME_MAX + 10];
  int r;

  o->name = keyvals_get (kv, "disk");
  r = check_disk_name (specs, o->name, err);
  if (r < 0)
    return r;
  snprintf (what, sizeof what, "disk '%s'", o->name);
  o->file = keyvals_get (kv, "file");
  if (o->file == NULL || *o->file == '\0')
    return error_set (err, EINVAL, "%s: file=PATH is missing", what);
  r = parse_choice (kv, what, "format", formats, 0, err);
  if (r < 0)
    return r;
  o->format = formats[r];
  r = parse_cache (kv, what, o, err);
  if (r < 0)
    return r;
  r = parse_choice (kv, what, "readonly", off_on, 0, err);
  if (r < 0)
    return r;
  o->is_read_only = r == 1;
  r = parse_choice (kv, what, "backing", deny_allow, 0, err);
  if (r < 0)
    return r;
  o->allow_backing = r == 1;
  r = parse_choice (kv, what, "on-scratch-error", policies, 0, err);
  if (r < 0)
    return r;
  o->on_scratch_error = r == 1 ? CBW_BREAK_GUEST_WRITE : CBW_BREAK_BACKUP;
  o->scratch_dir = keyvals_get (kv, "scratch-dir");
  o->store = keyvals_get (kv, "store");
  if (o->store && *o->store == '\0')
    return error_set (err, EINVAL, "%s: store=PATH is empty ('none' means no"
                      " store)", what);
  if (o->store && strcmp (o->store, "none") == 0)
    o->store = "";
  if (limit == NULL)
    return 0;
  r = size_parse ("scratch-limit", limit, &o->scratch_limit, err);
  if (r < 0)
    error_prefix (err, "%s", what);
  return r;
}

int
specs_add_disk (struct specs *specs, const char *text, struct error *err)
{
  static const char *const keys[] = {
    "disk", "file", "format", "readonly", "backing", "scratch-dir",
    "scratch-limit", "on-scratch-error", "store", "cache-size",
    "l2-cache-size", "refcount-cache-size", "l2-cache-entry-size", NULL
  };
  struct disk_spec spec = { .disk = NULL };
  int r;

  r = keyvals_parse (text, "disk", &spec.kv, err);
  if (r < 0)
    return r;
  r = keyvals_check (&spec.kv, "disk", keys, err);
  if (r == 0)
    r = parse_disk_options (specs, &spec, err);
  if (r == 0 && disk_spec_vector_append (&specs->disks, spec) < 0)
    r = error_set_errno (err, ENOMEM, "disk");
  if (r < 0)
    keyvals_free (&spec.kv);
  return r;
}

static void
bitmap_spec_fini (struct bitmap_spec *spec)
{
  free (spec->disk);
  free (spec->name);
}

/* "DISK/NAME" */
static int
parse_bitmap_name (struct specs *specs, const char *text,
                   struct bitmap_spec *spec, struct error *err)
{
  const char *slash = text ? strchr (text, '/') : NULL;
  size_t i;

  if (slash == NULL || slash == text || slash[1] == '\0')
    return error_set (err, EINVAL, "bitmap '%s': must be DISK/NAME",
                      text ? text : "");
  spec->disk = strndup (text, (size_t) (slash - text));
  spec->name = strdup (slash + 1);
  if (spec->disk == NULL || spec->name == NULL)
    return error_set_errno (err, ENOMEM, "bitmap");
  if (specs_find_disk (specs, spec->disk) == NULL)
    return error_set (err, ENOENT, "bitmap '%s': there is no disk '%s'", text,
                      spec->disk);
  if (strlen (spec->name) > DIRTY_NAME_MAX)
    return error_set (err, EINVAL, "bitmap '%.64s...': the name is too long "
                      "(at most %d bytes)", text, DIRTY_NAME_MAX);
  for (i = 0; i < specs->bitmaps.len; i++)
    if (strcmp (specs->bitmaps.ptr[i].disk, spec->disk) == 0 &&
        strcmp (specs->bitmaps.ptr[i].name, spec->name) == 0)
      return error_set (err, EEXIST, "bitmap '%s' is given twice", text);
  return 0;
}

static int
parse_bitmap (struct specs *specs, const struct keyvals *kv,
              struct bitmap_spec *spec, struct error *err)
{
  static const char *const off_on[2] = { "off", "on" };
  static const char *const on_off[2] = { "on", "off" };
  const char *text = keyvals_get (kv, "bitmap");
  const char *granularity = keyvals_get (kv, "granularity");
  char what[100];
  int r;

  r = parse_bitmap_name (specs, text, spec, err);
  if (r < 0)
    return r;
  snprintf (what, sizeof what, "bitmap '%.64s'", text);
  r = parse_choice (kv, what, "disabled", off_on, 0, err);
  if (r < 0)
    return r;
  spec->is_disabled = r == 1;
  if (keyvals_get (kv, "persistent")) {
    r = parse_choice (kv, what, "persistent", on_off, 0, err);
    if (r < 0)
      return r;
    spec->persistent = r == 0 ? PERSISTENT_ON : PERSISTENT_OFF;
  }
  if (granularity == NULL)
    return 0;
  r = size_parse ("granularity", granularity, &spec->granularity, err);
  if (r == 0 && (!is_power_of_2 (spec->granularity) ||
                 spec->granularity < BITMAP_MIN_GRANULARITY ||
                 spec->granularity > BITMAP_MAX_GRANULARITY))
    r = error_set (err, EINVAL, "granularity=%s: must be a power of 2 from "
                   "512 to 2G", granularity);
  if (r < 0)
    error_prefix (err, "%s", what);
  return r;
}

int
specs_add_bitmap (struct specs *specs, const char *text, struct error *err)
{
  static const char *const keys[] =
    { "bitmap", "granularity", "disabled", "persistent", NULL };
  struct bitmap_spec spec = { .disk = NULL };
  struct keyvals kv;
  int r;

  r = keyvals_parse (text, "bitmap", &kv, err);
  if (r < 0)
    return r;
  r = keyvals_check (&kv, "bitmap", keys, err);
  if (r == 0)
    r = parse_bitmap (specs, &kv, &spec, err);
  if (r == 0 && bitmap_spec_vector_append (&specs->bitmaps, spec) < 0)
    r = error_set_errno (err, ENOMEM, "bitmap");
  if (r < 0)
    bitmap_spec_fini (&spec);
  keyvals_free (&kv);
  return r;
}

void
specs_free (struct specs *specs)
{
  size_t i;

  for (i = 0; i < specs->disks.len; i++)
    keyvals_free (&specs->disks.ptr[i].kv);
  disk_spec_vector_reset (&specs->disks);
  for (i = 0; i < specs->bitmaps.len; i++)
    bitmap_spec_fini (&specs->bitmaps.ptr[i]);
  bitmap_spec_vector_reset (&specs->bitmaps);
}
