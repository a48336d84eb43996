/* SPDX-License-Identifier: BSD-3-Clause */
/* "KEY=VALUE,KEY=VALUE" options; ",," stands for one comma in a value, as in
 * QEMU.  The first item may be a bare VALUE for a default key.
 */
#ifndef TIDEMARK_KEYVAL_H
#define TIDEMARK_KEYVAL_H

#include <stddef.h>

#include "error.h"

struct keyval {
  char *key;
  char *value;
};

struct keyvals {
  struct keyval *ptr;
  size_t len;
};

/* Parse s.  default_key (or NULL: not allowed) is given to a first item
 * without "=".  Empty and repeated keys are refused.  On success the caller
 * frees *ret with keyvals_free.  0 or -errno with *err set.
 */
int keyvals_parse (const char *s, const char *default_key,
                   struct keyvals *ret, struct error *err);
void keyvals_free (struct keyvals *kv);

/* The value of key, or NULL. */
const char *keyvals_get (const struct keyvals *kv, const char *key);

/* 0 if every key is in the NULL-terminated list; else -EINVAL and *err names
 * the first unknown key and what is allowed.
 */
int keyvals_check (const struct keyvals *kv, const char *what,
                   const char *const *allowed, struct error *err);

#endif /* TIDEMARK_KEYVAL_H */
