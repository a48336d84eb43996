/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS 1.2 and 1.3 over a connected socket, by GnuTLS: credentials, and sessions
 * with the calls of a socket.
 *
 * Files and their names are nbdkit's: a directory with ca-cert.pem, and
 * optionally ca-crl.pem, and server-cert.pem and server-key.pem, or
 * client-cert.pem and client-key.pem; or a file of pre-shared keys with lines
 * USER:HEXKEY, as psktool writes it.
 */
#ifndef TIDEMARK_TLS_H
#define TIDEMARK_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "error.h"

struct tls_creds_options {
  bool is_server;
  /* One of the two; a client may have neither: it then believes the
   * certificate authorities of the system and has no certificate.
   */
  const char *certificates;     /* a directory */
  const char *psk;              /* a file */
  bool verify_peer;             /* server with certificates: the client needs
                                   one, too (a client always verifies) */
  const char *user;             /* client with keys; NULL: there is one line */
};

/* Fixed after creation, used by any number of sessions, which it has to
 * outlive.
 */
struct tls_creds;

int tls_creds_new (const struct tls_creds_options *options,
                   struct tls_creds **ret, struct error *err);
struct tls_creds *tls_creds_ref (struct tls_creds *creds);
/* Give a reference back; the first one is tls_creds_new's.  NULL is allowed. */
void tls_creds_free (struct tls_creds *creds);
/* Server: it knows the names of its clients. */
bool tls_creds_verify_peer (const struct tls_creds *creds);
/* Client with keys: its user name.  Else NULL. */
const char *tls_creds_user (const struct tls_creds *creds);

struct tls;

/* A session over the socket fd (not owned), before its handshake.  host: the
 * name that a server's certificate has to be for; NULL in a server.
 */
int tls_new (struct tls_creds *creds, int fd, const char *host,
             struct tls **ret, struct error *err);
void tls_free (struct tls *t);                  /* NULL is allowed */

/* Go on with the handshake as far as that is possible without waiting.  0: it
 * is done.  -EAGAIN: call again after poll's *ret_events.  Else it has failed,
 * *err says what is wrong, and the peer has been told.
 */
int tls_handshake (struct tls *t, short *ret_events, struct error *err);

/* As recv(2) and sendmsg(2) with flags 0 or MSG_DONTWAIT, after the handshake:
 * a number of bytes, or -1 and errno.  One thread may receive while another
 * one sends.  A peer that goes without saying so: ECONNRESET.
 *
 * After EAGAIN or EINTR the next call of tls_sendv has to begin with the same
 * bytes: some of them may be on their way already.
 */
ssize_t tls_recv (struct tls *t, void *buf, size_t len, int flags);
ssize_t tls_sendv (struct tls *t, const struct iovec *iov, size_t nr,
                   int flags);
/* There are bytes that tls_recv returns without the socket being readable. */
bool tls_has_pending (struct tls *t);
/* Of the thread that receives: why tls_recv failed, or NULL. */
const char *tls_recv_error (const struct tls *t);
/* Tell the peer that it may not be here, if that is possible without waiting.
 */
void tls_refuse (struct tls *t);
/* Tell the peer that nothing more comes, if that is possible without waiting.
 */
void tls_end (struct tls *t);

/* Is the peer, which has been verified, called so?  Its certificate's
 * distinguished name (RFC 4514, as certtool prints it), common name, or
 * alternative names of type DNS, address or URI; its user name with keys.
 */
bool tls_peer_has_name (const struct tls *t, const char *name);
/* For messages: the distinguished name, the user name, or "". */
const char *tls_peer (const struct tls *t);

#endif /* TIDEMARK_TLS_H */
