/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS as a process that serves is told to use it: nbdkit's options, the
 * credentials, and who may do what.
 */
#ifndef TIDEMARK_SERVER_TLS_H
#define TIDEMARK_SERVER_TLS_H

#include <stdbool.h>

#include "error.h"
#include "refusals.h"
#include "tls.h"

enum tls_mode {
  TLS_OFF,                      /* not offered */
  TLS_ON,                       /* clients may use it */
  TLS_REQUIRE,                  /* over TCP nothing is served without */
};

/* What a client does; from the listener that it has come to. */
enum tls_role {
  TLS_ROLE_GUEST,               /* uses a live disk */
  TLS_ROLE_BACKUP,              /* backs a disk up */
  TLS_ROLE_ADMIN,               /* everything */
};

struct server_tls;

int server_tls_new (struct server_tls **ret);
void server_tls_free (struct server_tls *st);   /* NULL is allowed */

/* "tls" = off|on|require, "tls-certificates" = DIR, "tls-psk" = FILE,
 * "tls-verify-peer" = on|off, and, several times, "tls-allow" =
 * ROLE[/DISK]:NAME with the roles guest, backup, admin.  -EINVAL.
 */
int server_tls_set (struct server_tls *st, const char *key, const char *value,
                    struct error *err);
/* Read the files, once all options are known.  Then st is fixed. */
int server_tls_load (struct server_tls *st, struct error *err);
/* After loading: can clients of the control socket come over TCP? */
int server_tls_check_control (const struct server_tls *st, const char *address,
                              struct error *err);

enum tls_mode server_tls_mode (const struct server_tls *st);
/* NULL if it is off. */
struct tls_creds *server_tls_creds (const struct server_tls *st);
/* Where refused clients are counted. */
struct refusals *server_tls_refusals (const struct server_tls *st);

/* May the peer do this with the disk?  disk NULL: with any disk at all, so that
 * it is let in.  One that is local may; without a list of names all
 * may do what is not an admin's.
 */
bool server_tls_allows (const struct server_tls *st, const struct tls *t,
                        bool is_local, enum tls_role role, const char *disk);

#endif /* TIDEMARK_SERVER_TLS_H */
