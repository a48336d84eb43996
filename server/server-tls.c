/* SPDX-License-Identifier: BSD-3-Clause */
/* The TLS options of a process, and the list of names.
 *
 * Set and loaded by the thread that configures, before any other starts; then
 * nothing changes, and any thread asks.
 *
 * Without a list of names every client over TCP can do all but administrate.
 * With one nobody else is served over TCP.  A name that may
 * administrate may do all; one that may back up a disk reaches the exports of
 * sessions over it, never the live disk; one that is a guest the live disk
 * alone.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "server-tls.h"
#include "vector.h"

#define FORM "ROLE:NAME or ROLE/DISK:NAME with the roles guest, backup, admin"

struct rule {
  enum tls_role role;
  char *disk;                   /* NULL = all */
  char *name;
};

DEFINE_VECTOR (rule_vector, struct rule);

struct server_tls {
  char *certificates;
  char *psk;
  bool verify_peer;
  bool mode_is_set;
  enum tls_mode mode;
  struct rule_vector rules;
  struct tls_creds *creds;
  struct refusals *refusals;
};

static const char *const mode_names[] = { "off", "on", "require", NULL };
static const char *const role_names[] = { "guest", "backup", "admin", NULL };

int
server_tls_new (struct server_tls **ret)
{
  struct server_tls *st = calloc (1, sizeof *st);
  int r = st ? refusals_new (&st->refusals) : -ENOMEM;

  if (r < 0)
    free (st);
  else
    *ret = st;
  return r;
}

static void
rule_fini (struct rule *rule)
{
  free (rule->disk);
  free (rule->name);
}

void
server_tls_free (struct server_tls *st)
{
  size_t i;

  if (st == NULL)
    return;
  tls_creds_free (st->creds);
  refusals_free (st->refusals);
  for (i = 0; i < st->rules.len; i++)
    rule_fini (&st->rules.ptr[i]);
  rule_vector_reset (&st->rules);
  free (st->certificates);
  free (st->psk);
  free (st);
}

/* The place of the len bytes at s in a list, or -1. */
static int
find_choice (const char *const *choices, const char *s, size_t len)
{
  int i;

  for (i = 0; choices[i]; i++)
    if (strlen (choices[i]) == len && strncmp (choices[i], s, len) == 0)
      return i;
  return -1;
}

static int
set_mode (struct server_tls *st, const char *value, struct error *err)
{
  int mode = find_choice (mode_names, value, strlen (value));

  if (mode < 0)
    return error_set (err, EINVAL, "tls=%.32s: must be 'off', 'on' or "
                      "'require'", value);
  st->mode = (enum tls_mode) mode;
  st->mode_is_set = true;
  return 0;
}

/* A daemon leaves the directory that relative names refer to. */
static int
set_path (char **path, const char *key, const char *value, struct error *err)
{
  CLEANUP_FREE char *cwd = NULL;

  if (*value == '\0')
    return error_set (err, EINVAL, "%s: a path is needed", key);
  free (*path);
  *path = NULL;
  if (*value == '/')
    *path = strdup (value);
  else {
    cwd = getcwd (NULL, 0);
    if (cwd && asprintf (path, "%s/%s", cwd, value) < 0)
      *path = NULL;
  }
  return *path ? 0 : error_set_errno (err, errno, "%s", key);
}

static int
set_verify_peer (struct server_tls *st, const char *value, struct error *err)
{
  if (strcmp (value, "on") != 0 && strcmp (value, "off") != 0)
    return error_set (err, EINVAL, "tls-verify-peer=%.32s: must be 'on' or "
                      "'off'", value);
  st->verify_peer = strcmp (value, "on") == 0;
  return 0;
}

/* "ROLE[/DISK]:NAME".  The name may have any characters. */
static int
add_rule (struct server_tls *st, const char *value, struct error *err)
{
  const char *colon = strchr (value, ':');
  size_t len = colon ? (size_t) (colon - value) : 0;
  const char *slash = memchr (value, '/', len);
  int role = find_choice (role_names, value, slash ? (size_t) (slash - value)
                          : len);
  struct rule rule = { .disk = NULL };

  if (role < 0 || colon[1] == '\0' || slash + 1 == colon)
    return error_set (err, EINVAL, "tls-allow=%.64s: must be " FORM, value);
  if (role == TLS_ROLE_ADMIN && slash)
    return error_set (err, EINVAL, "tls-allow=%.64s: an admin is one of all "
                      "disks", value);
  rule.role = (enum tls_role) role;
  rule.name = strdup (colon + 1);
  if (slash)
    rule.disk = strndup (slash + 1, (size_t) (colon - slash - 1));
  if (rule.name && (rule.disk || !slash) &&
      rule_vector_append (&st->rules, rule) == 0)
    return 0;
  rule_fini (&rule);
  return error_set_errno (err, ENOMEM, "tls-allow");
}

int
server_tls_set (struct server_tls *st, const char *key, const char *value,
                struct error *err)
{
  if (strcmp (key, "tls") == 0)
    return set_mode (st, value, err);
  if (strcmp (key, "tls-certificates") == 0)
    return set_path (&st->certificates, key, value, err);
  if (strcmp (key, "tls-psk") == 0)
    return set_path (&st->psk, key, value, err);
  if (strcmp (key, "tls-verify-peer") == 0)
    return set_verify_peer (st, value, err);
  if (strcmp (key, "tls-allow") == 0)
    return add_rule (st, value, err);
  return error_set (err, EINVAL, "unknown option '%s'", key);
}

int
server_tls_load (struct server_tls *st, struct error *err)
{
  const struct tls_creds_options options = {
    .is_server = true, .certificates = st->certificates, .psk = st->psk,
    .verify_peer = st->verify_peer,
  };
  bool has_files = st->certificates || st->psk;

  /* Who gives certificates wants them to be used. */
  if (!st->mode_is_set && has_files)
    st->mode = TLS_REQUIRE;
  if (st->mode == TLS_OFF && st->rules.len > 0)
    return error_set (err, EINVAL, "tls-allow: names are known by TLS alone, "
                      "which is off");
  if (st->mode == TLS_OFF)
    return 0;
  if (!has_files)
    return error_set (err, EINVAL, "tls=%s: give tls-certificates or tls-psk",
                      mode_names[st->mode]);
  if (st->certificates && st->rules.len > 0 && !st->verify_peer)
    return error_set (err, EINVAL, "tls-allow: without tls-verify-peer a "
                      "client with certificates has no name");
  /* A list that those without TLS get around would be worth nothing. */
  if (st->mode == TLS_ON && st->rules.len > 0)
    return error_set (err, EINVAL, "tls-allow: needs tls=require");
  return tls_creds_new (&options, &st->creds, err);
}

int
server_tls_check_control (const struct server_tls *st, const char *address,
                          struct error *err)
{
  if (st->creds == NULL)
    return error_set (err, ENOTSUP, "control address '%.64s': TCP needs TLS: "
                      "give tls-certificates or tls-psk", address);
  if (!tls_creds_verify_peer (st->creds))
    return error_set (err, ENOTSUP, "control address '%.64s': over TCP only "
                      "clients that are known: with certificates give "
                      "tls-verify-peer, too", address);
  return 0;
}

enum tls_mode
server_tls_mode (const struct server_tls *st)
{
  return st->mode;
}

struct tls_creds *
server_tls_creds (const struct server_tls *st)
{
  return st->creds;
}

struct refusals *
server_tls_refusals (const struct server_tls *st)
{
  return st->refusals;
}

static bool
rule_allows (const struct rule *rule, enum tls_role role, const char *disk)
{
  if (rule->role == TLS_ROLE_ADMIN)
    return true;
  return rule->role == role &&
    (disk == NULL || rule->disk == NULL || strcmp (rule->disk, disk) == 0);
}

bool
server_tls_allows (const struct server_tls *st, const struct tls *t,
                   bool is_local, enum tls_role role, const char *disk)
{
  size_t i;

  if (is_local)
    return true;
  if (st->rules.len == 0)
    return role != TLS_ROLE_ADMIN;
  for (i = 0; t && i < st->rules.len; i++)
    if (rule_allows (&st->rules.ptr[i], role, disk) &&
        tls_peer_has_name (t, st->rules.ptr[i].name))
      return true;
  return false;
}
