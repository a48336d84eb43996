/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks arguments of control commands.  Pure; any thread. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "qmp-args.h"

static const char *
separator (const char *path)
{
  return path ? "." : "";
}

static const char *
nonnull (const char *path)
{
  return path ? path : "";
}

static int
check_uint (const json_t *value, const char *path, const char *name,
            uint64_t max, const char *type, struct error *err)
{
  if (!json_is_integer (value))
    return error_set (err, EINVAL, "Parameter '%s%s%s' expects uint64",
                      nonnull (path), separator (path), name);
  if (json_integer_value (value) < 0 ||
      (uint64_t) json_integer_value (value) > max)
    return error_set (err, EINVAL, "Parameter '%s%s%s' expects %s",
                      nonnull (path), separator (path), name, type);
  return 0;
}

static int
check_enum (const json_t *value, const char *path, const struct qmp_arg *arg,
            struct error *err)
{
  const char *s = json_string_value (value);
  size_t i;

  if (s == NULL)
    return error_set (err, EINVAL,
                      "Invalid parameter type for '%s%s%s', expected: string",
                      nonnull (path), separator (path), arg->name);
  for (i = 0; arg->choices[i]; i++)
    if (strcmp (arg->choices[i], s) == 0)
      return 0;
  /* QEMU 7.2 names the member alone, without its path. */
  return error_set (err, EINVAL,
                    "Parameter '%s' does not accept value '%.64s'",
                    arg->name, s);
}

static int
check_type (const json_t *value, const char *path, const struct qmp_arg *arg,
            struct error *err)
{
  const char *expected = NULL;

  switch (arg->type) {
  case QMP_STRING:
    expected = json_is_string (value) ? NULL : "string";
    break;
  case QMP_BOOL:
    expected = json_is_boolean (value) ? NULL : "boolean";
    break;
  case QMP_ARRAY:
    expected = json_is_array (value) ? NULL : "array";
    break;
  case QMP_UINT32:
    return check_uint (value, path, arg->name, UINT32_MAX, "uint32_t", err);
  case QMP_UINT64:
    return check_uint (value, path, arg->name, INT64_MAX, "uint64", err);
  case QMP_SIZE:
    if (json_is_integer (value) && json_integer_value (value) < 0)
      return error_set (err, EINVAL, "Parameter '%s%s%s' expects a "
                        "non-negative number below 2^64", nonnull (path),
                        separator (path), arg->name);
    if (!json_is_integer (value))
      expected = "integer";
    break;
  case QMP_INT64:
    expected = json_is_integer (value) ? NULL : "integer";
    break;
  case QMP_ENUM:
    return check_enum (value, path, arg, err);
  case QMP_OBJECT:
    expected = json_is_object (value) ? NULL : "object";
    break;
  case QMP_NODE:
    expected = json_is_object (value) || json_is_string (value)
      ? NULL : "BlockdevRef";
    break;
  case QMP_NODE_OR_NULL:
    expected = json_is_object (value) || json_is_string (value) ||
      json_is_null (value) ? NULL : "BlockdevRefOrNull";
    break;
  case QMP_ANY:
    break;
  }
  if (expected)
    return error_set (err, EINVAL,
                      "Invalid parameter type for '%s%s%s', expected: %s",
                      nonnull (path), separator (path), arg->name, expected);
  return 0;
}

static bool
is_in_table (const struct qmp_arg *table, const char *name)
{
  for (; table->name; table++)
    if (strcmp (table->name, name) == 0)
      return true;
  return false;
}

int
qmp_args_check_members (const json_t *args, const char *path,
                        const struct qmp_arg *table, struct error *err)
{
  const struct qmp_arg *arg;
  const json_t *value;

  for (arg = table; arg->name; arg++) {
    value = json_object_get (args, arg->name);
    if (value == NULL && arg->is_required)
      return error_set (err, EINVAL, "Parameter '%s%s%s' is missing",
                        nonnull (path), separator (path), arg->name);
    if (value && check_type (value, path, arg, err) < 0)
      return -EINVAL;
  }
  return 0;
}

int
qmp_args_check (const json_t *args, const char *path,
                const struct qmp_arg *table, struct error *err)
{
  const char *name;
  const json_t *value;

  if (qmp_args_check_members (args, path, table, err) < 0)
    return -EINVAL;
  json_object_foreach ((json_t *) args, name, value)
    if (!is_in_table (table, name))
      return error_set (err, EINVAL, "Parameter '%s%s%s' is unexpected",
                        nonnull (path), separator (path), name);
  return 0;
}

const char *
qmp_args_string (const json_t *args, const char *name, const char *if_absent)
{
  const json_t *value = json_object_get (args, name);

  return value ? json_string_value (value) : if_absent;
}

bool
qmp_args_bool (const json_t *args, const char *name, bool if_absent)
{
  const json_t *value = json_object_get (args, name);

  return value ? json_is_true (value) : if_absent;
}

uint64_t
qmp_args_uint (const json_t *args, const char *name, uint64_t if_absent)
{
  const json_t *value = json_object_get (args, name);

  return value ? (uint64_t) json_integer_value (value) : if_absent;
}

int64_t
qmp_args_int (const json_t *args, const char *name, int64_t if_absent)
{
  const json_t *value = json_object_get (args, name);

  return value ? json_integer_value (value) : if_absent;
}

int
qmp_args_enum (const json_t *args, const char *name,
               const char *const *choices, int if_absent)
{
  const char *s = json_string_value (json_object_get (args, name));
  int i;

  if (s == NULL)
    return if_absent;
  for (i = 0; choices[i] && strcmp (choices[i], s) != 0; i++)
    ;
  return i;
}

int
qmp_args_choice (const char *path, const char *name, const char *s,
                 const char *const *choices, struct error *err)
{
  char list[128] = "";
  size_t i;

  for (i = 0; choices[i]; i++) {
    if (strcmp (choices[i], s) == 0)
      return (int) i;
    if (strlen (list) + strlen (choices[i]) + 3 < sizeof list) {
      strcat (list, i ? ", " : "");
      strcat (list, choices[i]);
    }
  }
  return error_set (err, EINVAL,
                    "Parameter '%s%s%s' does not accept value '%.64s' "
                    "(allowed: %s)", nonnull (path), separator (path), name,
                    s, list);
}

json_t *
qmp_text (const char *s)
{
  json_t *text = json_string (s);
  CLEANUP_FREE char *copy = NULL;
  size_t i;

  if (text)
    return text;
  copy = strdup (s);
  if (copy == NULL)
    return NULL;
  for (i = 0; copy[i]; i++)
    if (copy[i] & 0x80)
      copy[i] = '?';
  return json_string (copy);
}
