/* SPDX-License-Identifier: BSD-3-Clause */
/* What tls.c and tls-creds.c share.  Nobody else includes this. */
#ifndef TIDEMARK_TLS_PRIVATE_H
#define TIDEMARK_TLS_PRIVATE_H

#include <stdatomic.h>

#include <gnutls/gnutls.h>

#include "tls.h"
#include "vector.h"

struct tls_user {
  char *name;
  gnutls_datum_t key;
};

DEFINE_VECTOR (tls_user_vector, struct tls_user);

struct tls_creds {
  atomic_uint nr_refs;

  /* Fixed after creation. */
  bool is_server;
  bool verify_peer;
  gnutls_priority_t priority;
  gnutls_certificate_credentials_t x509;        /* or NULL */
  gnutls_psk_server_credentials_t psk_server;   /* or NULL */
  gnutls_psk_client_credentials_t psk_client;   /* or NULL */
  struct tls_user_vector users;
  const char *user;             /* the client's own, of users, or NULL */
};

/* NULL if there is no such user. */
const struct tls_user *tls_creds_find_user (const struct tls_creds *creds,
                                            const char *name, size_t len);
/* The server looks up a user's key. */
int tls_psk_lookup (gnutls_session_t session, const char *user,
                    gnutls_datum_t *ret_key);

#endif /* TIDEMARK_TLS_PRIVATE_H */
