/* SPDX-License-Identifier: BSD-3-Clause */
/* JSON files with a checksum of their own.  Any thread. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "seal.h"
#include "sha256.h"
#include "sums.h"

char *
seal_json (json_t *o)
{
  char *body = o ? json_dumps (o, JSON_INDENT (2)) : NULL;
  char *head = NULL, *text = NULL, hex[SUMS_HEX_SIZE];
  uint8_t hash[SUMS_HASH_SIZE];
  size_t len;

  json_decref (o);
  if (!body)
    return NULL;
  len = strlen (body);
  if (len > 2 && strcmp (body + len - 2, "\n}") == 0
      && asprintf (&head, "%.*s,\n  ", (int) (len - 2), body) >= 0) {
    sha256_hash (head, strlen (head), hash);
    sums_hash_format (hash, hex);
    if (asprintf (&text, "%s\"checksum\": \"%s\"\n}\n", head, hex) < 0)
      text = NULL;
    free (head);
  }
  free (body);
  return text;
}

bool
seal_is_good (const char *text, const json_t *o)
{
  const char *p, *last = NULL;
  const char *checksum = json_string_value (json_object_get (o, "checksum"));
  uint8_t hash[SUMS_HASH_SIZE];
  char hex[SUMS_HEX_SIZE];

  for (p = text; (p = strstr (p, "\"checksum\"")) != NULL; p++)
    last = p;
  if (!last || !checksum)
    return false;
  sha256_hash (text, (size_t) (last - text), hash);
  sums_hash_format (hash, hex);
  return strcmp (hex, checksum) == 0;
}
