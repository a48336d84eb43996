/* SPDX-License-Identifier: BSD-3-Clause */
/* The names of NBD exports (nbd: doc/uri.md). */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "nbd-uri.h"

#define UNIX_PREFIX "unix:"
#define NAME_KEY ":exportname="

static const char *const schemes[] = {
  "nbd://", "nbds://", "nbd+unix://", "nbds+unix://", "nbd+vsock://",
  "nbds+vsock://",
};

static bool
starts_with (const char *s, const char *prefix)
{
  return strncmp (s, prefix, strlen (prefix)) == 0;
}

static bool
is_uri (const char *s)
{
  size_t i;

  for (i = 0; i < sizeof schemes / sizeof schemes[0]; i++)
    if (starts_with (s, schemes[i]))
      return true;
  return false;
}

bool
nbd_uri_is_nbd (const char *s)
{
  return is_uri (s) || starts_with (s, "nbd:");
}

/* s with all but unreserved characters and "/" percent-encoded. */
static char *
encode (const char *s)
{
  static const char plain[] = "abcdefghijklmnopqrstuvwxyz"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/";
  char *ret = malloc (strlen (s) * 3 + 1), *p = ret;

  if (!ret)
    return NULL;
  for (; *s; s++) {
    if (strchr (plain, *s))
      *p++ = *s;
    else
      p += sprintf (p, "%%%02X", (unsigned char) *s);
  }
  *p = '\0';
  return ret;
}

/* address: what is between "nbd:" and the export's name. */
static int
from_old_form (const char *s, char *address, const char *name, char **ret,
               struct error *err)
{
  CLEANUP_FREE char *enc_name = encode (name);
  CLEANUP_FREE char *enc_path = NULL;
  int r;

  if (starts_with (address, UNIX_PREFIX)) {
    const char *path = address + strlen (UNIX_PREFIX);

    if (*path == '\0')
      return error_set (err, EINVAL, "%s: no socket path (nbd:unix:PATH"
                        "[:exportname=NAME])", s);
    enc_path = encode (path);
    if (!enc_name || !enc_path)
      return error_set_errno (err, ENOMEM, "%s", s);
    r = asprintf (ret, "nbd+unix:///%s?socket=%s", enc_name, enc_path);
  }
  else {
    const char *colon = strrchr (address, ':');

    if (!colon || colon == address || colon[1] == '\0' ||
        colon[1 + strspn (colon + 1, "0123456789")] != '\0')
      return error_set (err, EINVAL, "%s: not an NBD address (nbd:HOST:PORT"
                        "[:exportname=NAME] or nbd:unix:PATH)", s);
    if (!enc_name)
      return error_set_errno (err, ENOMEM, "%s", s);
    r = asprintf (ret, "nbd://%s/%s", address, enc_name);
  }
  return r < 0 ? error_set_errno (err, ENOMEM, "%s", s) : 0;
}

int
nbd_uri_normalize (const char *s, char **ret, struct error *err)
{
  CLEANUP_FREE char *address = NULL;
  char *name = NULL;

  if (!is_uri (s) && !starts_with (s, "nbd:"))
    return error_set (err, EINVAL, "%s: not an NBD URI", s);
  address = strdup (is_uri (s) ? s : s + strlen ("nbd:"));
  if (!address)
    return error_set_errno (err, ENOMEM, "%s", s);
  if (is_uri (s)) {
    *ret = address;
    address = NULL;
    return 0;
  }
  name = strstr (address, NAME_KEY);
  if (name) {
    *name = '\0';
    name += strlen (NAME_KEY);
  }
  return from_old_form (s, address, name ? name : "", ret, err);
}
