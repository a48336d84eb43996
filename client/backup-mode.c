/* SPDX-License-Identifier: BSD-3-Clause */
/* What --mode and --full ask for, disk by disk.  Main thread.
 *
 * Of the values that name a disk the last one counts for it, else the last one
 * that names none; --full is --mode full.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "backup.h"

static const char *const names[] = {
  [BACKUP_AUTO] = "auto",
  [BACKUP_INCREMENTAL] = "incremental",
  [BACKUP_FULL] = "full",
  [BACKUP_DIFFERENTIAL] = "differential",
  [BACKUP_COPY] = "copy",
};
#define NR_NAMES (sizeof names / sizeof names[0])

const char *
backup_mode_name (enum backup_mode mode)
{
  return names[mode];
}

const char *
backup_disk_mode (const struct backup_disk *d)
{
  if (d->is_incremental)
    return names[d->is_aside ? BACKUP_DIFFERENTIAL : BACKUP_INCREMENTAL];
  return names[d->is_aside ? BACKUP_COPY : BACKUP_FULL];
}

/* The nth option's value, "[DISK=]MODE", or NULL if it is another option. */
static const char *
value_of (const struct options *o, size_t n)
{
  if (strcmp (o->values[n].name, "full") == 0)
    return "full";
  return strcmp (o->values[n].name, "mode") == 0 ? o->values[n].value : NULL;
}

/* *ret_len: of the disk's name at its start, 0 = all.  NULL: no mode. */
static const char *
parse (const char *value, size_t *ret_len, enum backup_mode *ret)
{
  const char *eq = strrchr (value, '='), *name = eq ? eq + 1 : value;
  size_t i;

  *ret_len = eq ? (size_t) (eq - value) : 0;
  for (i = 0; i < NR_NAMES; i++)
    if (strcmp (names[i], name) == 0) {
      *ret = (enum backup_mode) i;
      return name;
    }
  return NULL;
}

bool
backup_has_disk_modes (const struct options *o)
{
  size_t i;

  for (i = 0; i < o->nr_values; i++)
    if (value_of (o, i) && strchr (value_of (o, i), '='))
      return true;
  return false;
}

enum backup_mode
backup_asked_mode (const struct options *o, const char *disk)
{
  enum backup_mode all = BACKUP_AUTO, one = BACKUP_AUTO, mode;
  bool has_one = false;
  size_t i, len;

  for (i = 0; i < o->nr_values; i++) {
    const char *value = value_of (o, i);

    if (!value || !parse (value, &len, &mode))
      continue;
    if (len == 0)
      all = mode;
    else if (disk && strlen (disk) == len && memcmp (disk, value, len) == 0) {
      one = mode;
      has_one = true;
    }
  }
  return has_one ? one : all;
}

int
backup_check_modes (const struct options *o, struct error *err)
{
  enum backup_mode mode;
  size_t i, len;

  for (i = 0; i < o->nr_values; i++) {
    const char *value = value_of (o, i);

    if (value && (!parse (value, &len, &mode) || value[0] == '='))
      return error_set (err, EINVAL, "--mode %s: allowed are auto, "
                        "incremental, full, differential and copy, with DISK= "
                        "in front for one disk", value);
  }
  return 0;
}

int
backup_check_mode_disks (const struct options *o, const json_t *disks,
                         struct error *err)
{
  size_t i, j, len;
  enum backup_mode mode;

  for (i = 0; i < o->nr_values; i++) {
    const char *value = value_of (o, i), *name;

    if (!value || !parse (value, &len, &mode) || len == 0)
      continue;
    for (j = 0; j < json_array_size (disks); j++) {
      name = json_string_value (json_array_get (disks, j));
      if (name && strlen (name) == len && memcmp (name, value, len) == 0)
        break;
    }
    if (j == json_array_size (disks))
      return error_set (err, ENOENT, "--mode %s: no such disk is to be backed "
                        "up", value);
  }
  return 0;
}

json_t *
backup_modes_to_json (const struct options *o)
{
  json_t *a = json_array ();
  size_t i;

  for (i = 0; i < o->nr_values; i++)
    if (value_of (o, i))
      json_array_append_new (a, json_string (value_of (o, i)));
  return a;
}
