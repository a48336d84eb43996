/* SPDX-License-Identifier: BSD-3-Clause */
/* "KEY=VALUE,KEY=VALUE" options: see keyval.h.  Any thread. */
#include "config.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyval.h"

#define KEY_CHARACTERS \
  "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."

/* Copy the value at *s up to a single comma, ",," becoming ",".  On return *s
 * is at the comma or the end.  NULL if there is no memory.
 */
static char *
take_value (const char **s)
{
  char *value = malloc (strlen (*s) + 1), *p = value;
  const char *q = *s;

  if (!value)
    return NULL;
  while (*q && (*q != ',' || q[1] == ',')) {
    q += *q == ',';
    *p++ = *q++;
  }
  *p = '\0';
  *s = q;
  return value;
}

/* Takes ownership of value, on failure too. */
static int
append (struct keyvals *kv, const char *key, size_t key_len, char *value,
        struct error *err)
{
  struct keyval *ptr = NULL;
  char *copy = NULL;

  if (value)
    copy = strndup (key, key_len);
  if (copy)
    ptr = realloc (kv->ptr, (kv->len + 1) * sizeof *ptr);
  if (!ptr) {
    free (copy);
    free (value);
    return error_set_errno (err, ENOMEM, "options");
  }
  kv->ptr = ptr;
  if (keyvals_get (kv, copy)) {
    error_set (err, EINVAL, "'%s' is given twice", copy);
    free (copy);
    free (value);
    return -EINVAL;
  }
  kv->ptr[kv->len++] = (struct keyval) { .key = copy, .value = value };
  return 0;
}

/* One item at *s, which is moved behind it. */
static int
parse_item (const char **s, const char *default_key, struct keyvals *kv,
            struct error *err)
{
  const char *item = *s;
  size_t key_len = strcspn (item, "=,");

  if (item[key_len] == '=') {
    if (key_len == 0 || strspn (item, KEY_CHARACTERS) != key_len)
      return error_set (err, EINVAL, "'%.*s' is not the name of an option: "
                        "KEY=VALUE is expected",
                        (int) (key_len < 60 ? key_len : 60), item);
    *s = item + key_len + 1;
    return append (kv, item, key_len, take_value (s), err);
  }
  if (kv->len == 0 && default_key
      && (key_len > 0 || (item[0] == ',' && item[1] == ','))) {
    char *value = take_value (s);

    return append (kv, default_key, strlen (default_key), value, err);
  }
  if (key_len == 0)
    return error_set (err, EINVAL, "an option is empty: KEY=VALUE is "
                      "expected (a comma within a value is written ',,')");
  return error_set (err, EINVAL, "'%.*s' has no value: KEY=VALUE is expected "
                    "(a comma within a value is written ',,')",
                    (int) (key_len < 60 ? key_len : 60), item);
}

int
keyvals_parse (const char *s, const char *default_key, struct keyvals *ret,
               struct error *err)
{
  struct keyvals kv = { .ptr = NULL, .len = 0 };
  int r;

  for (;;) {
    r = parse_item (&s, default_key, &kv, err);
    if (r < 0) {
      keyvals_free (&kv);
      return r;
    }
    if (*s == '\0')
      break;
    s++;
  }
  *ret = kv;
  return 0;
}

void
keyvals_free (struct keyvals *kv)
{
  size_t i;

  for (i = 0; i < kv->len; i++) {
    free (kv->ptr[i].key);
    free (kv->ptr[i].value);
  }
  free (kv->ptr);
  kv->ptr = NULL;
  kv->len = 0;
}

const char *
keyvals_get (const struct keyvals *kv, const char *key)
{
  size_t i;

  for (i = 0; i < kv->len; i++)
    if (strcmp (kv->ptr[i].key, key) == 0)
      return kv->ptr[i].value;
  return NULL;
}

static bool
is_in_list (const char *s, const char *const *list)
{
  for (; *list; list++)
    if (strcmp (s, *list) == 0)
      return true;
  return false;
}

int
keyvals_check (const struct keyvals *kv, const char *what,
               const char *const *allowed, struct error *err)
{
  char list[160] = "";
  size_t i, j, len = 0;

  for (i = 0; i < kv->len; i++) {
    if (is_in_list (kv->ptr[i].key, allowed))
      continue;
    for (j = 0; allowed[j] && len < sizeof list; j++)
      len += (size_t) snprintf (list + len, sizeof list - len, "%s%s",
                                j ? ", " : "", allowed[j]);
    return error_set (err, EINVAL, "%s: unknown option '%.40s'; allowed: %s",
                      what, kv->ptr[i].key, list);
  }
  return 0;
}
