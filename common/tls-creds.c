/* SPDX-License-Identifier: BSD-3-Clause */
/* Credentials: certificates and pre-shared keys, read from files.
 *
 * Read once, by the thread that configures the process.  What is wrong with a
 * file is said with its name.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "tls-private.h"

#define MAX_LINE 4096           /* of a file of keys */

/* GnuTLS's own defaults, and nothing older than TLS 1.2. */
#define PRIORITY "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
#define PRIORITY_PSK PRIORITY ":-KX-ALL:+ECDHE-PSK:+DHE-PSK"

static int
failed (int code, const char *file, struct error *err)
{
  return error_set (err, EINVAL, "TLS: %.160s: %s", file,
                    gnutls_strerror (code));
}

/* *ret = DIR/NAME; 1 if it is there, 0 if not. */
static int
find_file (const char *dir, const char *name, char **ret, struct error *err)
{
  if (asprintf (ret, "%s/%s", dir, name) < 0) {
    *ret = NULL;
    return error_set_errno (err, ENOMEM, "TLS");
  }
  if (access (*ret, R_OK) == 0)
    return 1;
  return errno == ENOENT ? 0 : error_set_errno (err, errno, "TLS: %s", *ret);
}

static int
need_file (const char *dir, const char *name, char **ret, struct error *err)
{
  int r = find_file (dir, name, ret, err);

  return r == 0 ? error_set_errno (err, ENOENT, "TLS: %s", *ret) : r;
}

/* The authorities that the peer's certificate has to come from. */
static int
load_authorities (struct tls_creds *c, const char *dir, struct error *err)
{
  CLEANUP_FREE char *ca = NULL, *crl = NULL;
  int r = find_file (dir, "ca-cert.pem", &ca, err);

  if (r < 0)
    return r;
  if (r == 0)
    return c->is_server && !c->verify_peer ? 0
      : error_set_errno (err, ENOENT, "TLS: %s", ca);
  r = gnutls_certificate_set_x509_trust_file (c->x509, ca,
                                              GNUTLS_X509_FMT_PEM);
  if (r <= 0)
    return failed (r < 0 ? r : GNUTLS_E_NO_CERTIFICATE_FOUND, ca, err);
  r = find_file (dir, "ca-crl.pem", &crl, err);
  if (r > 0) {
    r = gnutls_certificate_set_x509_crl_file (c->x509, crl,
                                              GNUTLS_X509_FMT_PEM);
    if (r < 0)
      return failed (r, crl, err);
  }
  return r < 0 ? r : 0;
}

static int
load_own (struct tls_creds *c, const char *dir, struct error *err)
{
  const char *cert_name = c->is_server ? "server-cert.pem" : "client-cert.pem";
  const char *key_name = c->is_server ? "server-key.pem" : "client-key.pem";
  CLEANUP_FREE char *cert = NULL, *key = NULL;
  int r = find_file (dir, cert_name, &cert, err);

  if (r < 0)
    return r;
  if (r == 0 && !c->is_server)
    return 0;                   /* it has none */
  if (r == 0)
    return error_set_errno (err, ENOENT, "TLS: %s", cert);
  r = need_file (dir, key_name, &key, err);
  if (r < 0)
    return r;
  r = gnutls_certificate_set_x509_key_file (c->x509, cert, key,
                                            GNUTLS_X509_FMT_PEM);
  return r < 0 ? failed (r, cert, err) : 0;
}

static int
load_certificates (struct tls_creds *c, const char *dir, struct error *err)
{
  int r = gnutls_certificate_allocate_credentials (&c->x509);

  if (r < 0)
    return failed (r, "certificates", err);
  if (dir == NULL) {
    r = gnutls_certificate_set_x509_system_trust (c->x509);
    return r < 0 ? failed (r, "the system's authorities", err) : 0;
  }
  r = load_authorities (c, dir, err);
  return r < 0 ? r : load_own (c, dir, err);
}

/* One line, "USER:HEXKEY".  0, or -EINVAL. */
static int
parse_key (char *line, struct tls_user *ret)
{
  char *colon = strrchr (line, ':');
  gnutls_datum_t hex;

  if (colon == NULL || colon == line || colon[1] == '\0')
    return -EINVAL;
  *colon = '\0';
  hex.data = (unsigned char *) colon + 1;
  hex.size = strlen (colon + 1);
  if (gnutls_hex_decode2 (&hex, &ret->key) < 0)
    return -EINVAL;
  ret->name = strdup (line);
  if (ret->name && ret->key.size > 0)
    return 0;
  free (ret->name);
  gnutls_free (ret->key.data);
  return -EINVAL;
}

static int
load_users (struct tls_creds *c, const char *file, struct error *err)
{
  CLEANUP_FCLOSE FILE *fp = fopen (file, "re");
  char line[MAX_LINE];
  struct tls_user user;
  unsigned nr = 0;

  if (fp == NULL)
    return error_set_errno (err, errno, "TLS: %s", file);
  while (fgets (line, sizeof line, fp)) {
    nr++;
    line[strcspn (line, "\r\n")] = '\0';
    if (line[0] == '\0' || line[0] == '#')
      continue;
    if (parse_key (line, &user) < 0)
      return error_set (err, EINVAL, "TLS: %.160s, line %u: USER:HEXKEY is "
                        "expected", file, nr);
    if (tls_user_vector_append (&c->users, user) < 0) {
      free (user.name);
      gnutls_free (user.key.data);
      return error_set_errno (err, ENOMEM, "TLS: %s", file);
    }
  }
  if (ferror (fp))
    return error_set_errno (err, errno, "TLS: %s", file);
  return c->users.len > 0 ? 0
    : error_set (err, EINVAL, "TLS: %.160s: there is no key in it", file);
}

const struct tls_user *
tls_creds_find_user (const struct tls_creds *c, const char *name, size_t len)
{
  size_t i;

  for (i = 0; i < c->users.len; i++)
    if (strlen (c->users.ptr[i].name) == len &&
        memcmp (c->users.ptr[i].name, name, len) == 0)
      return &c->users.ptr[i];
  return NULL;
}

/* The client's own key. */
static int
choose_user (struct tls_creds *c, const struct tls_creds_options *o,
             struct error *err)
{
  const struct tls_user *user = NULL;
  int r;

  if (o->user)
    user = tls_creds_find_user (c, o->user, strlen (o->user));
  else if (c->users.len == 1)
    user = &c->users.ptr[0];
  if (user == NULL && o->user)
    return error_set (err, ENOENT, "TLS: %.120s: there is no key of user "
                      "'%.64s'", o->psk, o->user);
  if (user == NULL)
    return error_set (err, EINVAL, "TLS: %.160s has keys of %zu users: say "
                      "which one you are with --tls-user", o->psk,
                      c->users.len);
  c->user = user->name;
  r = gnutls_psk_allocate_client_credentials (&c->psk_client);
  if (r == 0)
    r = gnutls_psk_set_client_credentials (c->psk_client, user->name,
                                           &user->key, GNUTLS_PSK_KEY_RAW);
  return r < 0 ? failed (r, o->psk, err) : 0;
}

static int
load_psk (struct tls_creds *c, const struct tls_creds_options *o,
          struct error *err)
{
  int r = load_users (c, o->psk, err);

  if (r < 0)
    return r;
  if (!c->is_server)
    return choose_user (c, o, err);
  r = gnutls_psk_allocate_server_credentials (&c->psk_server);
  if (r < 0)
    return failed (r, o->psk, err);
  gnutls_psk_set_server_credentials_function (c->psk_server, tls_psk_lookup);
  return 0;
}

int
tls_creds_new (const struct tls_creds_options *o, struct tls_creds **ret,
               struct error *err)
{
  struct tls_creds *c;
  int r;

  if (o->certificates && o->psk)
    return error_set (err, EINVAL, "TLS: certificates (%.80s) and pre-shared "
                      "keys (%.80s) exclude each other", o->certificates,
                      o->psk);
  c = calloc (1, sizeof *c);
  if (c == NULL)
    return error_set_errno (err, ENOMEM, "TLS");
  atomic_init (&c->nr_refs, 1);
  c->is_server = o->is_server;
  c->verify_peer = o->verify_peer || o->psk || !o->is_server;
  r = gnutls_priority_init (&c->priority, o->psk ? PRIORITY_PSK : PRIORITY,
                            NULL);
  if (r < 0)
    r = failed (r, "priority", err);
  else if (o->psk)
    r = load_psk (c, o, err);
  else
    r = load_certificates (c, o->certificates, err);
  if (r < 0)
    tls_creds_free (c);
  else
    *ret = c;
  return r;
}

struct tls_creds *
tls_creds_ref (struct tls_creds *c)
{
  atomic_fetch_add (&c->nr_refs, 1);
  return c;
}

void
tls_creds_free (struct tls_creds *c)
{
  size_t i;

  if (c == NULL || atomic_fetch_sub (&c->nr_refs, 1) > 1)
    return;
  if (c->x509)
    gnutls_certificate_free_credentials (c->x509);
  if (c->psk_server)
    gnutls_psk_free_server_credentials (c->psk_server);
  if (c->psk_client)
    gnutls_psk_free_client_credentials (c->psk_client);
  if (c->priority)
    gnutls_priority_deinit (c->priority);
  for (i = 0; i < c->users.len; i++) {
    free (c->users.ptr[i].name);
    gnutls_free (c->users.ptr[i].key.data);
  }
  tls_user_vector_reset (&c->users);
  free (c);
}

const char *
tls_creds_user (const struct tls_creds *c)
{
  return c->user;
}

bool
tls_creds_verify_peer (const struct tls_creds *c)
{
  return c->verify_peer;
}
