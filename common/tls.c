/* SPDX-License-Identifier: BSD-3-Clause */
/* Sessions.
 *
 * The handshake is one thread's.  Afterwards one thread at a time receives and
 * one at a time sends, and the two may be different ones: GnuTLS allows that,
 * and what belongs to each side here is marked.
 *
 * I10: a session holds one record of each direction; a handshake message has a
 * limit, and so has the number of names of a peer.
 *
 * The peer is verified within the handshake, so that there is no session with
 * one that was not.  Renegotiation is an error, and nothing of a session is
 * kept for a later one.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <gnutls/x509.h>

#include "range.h"
#include "tls-private.h"

#define RECORD_SIZE 16384
#define MAX_HANDSHAKE_MESSAGE 65536
#define MAX_NAMES 64            /* of the peer */
#define FIRST_HANDSHAKE 22      /* the first byte of a client's first record */

DEFINE_VECTOR (name_vector, char *);

struct tls {
  /* Fixed after creation. */
  struct tls_creds *creds;
  int fd;
  gnutls_session_t session;
  char *host;                   /* of the peer; NULL in a server */
  gnutls_typed_vdata_st verify[2]; /* GnuTLS keeps a pointer to it */

  /* Of the handshake's thread, then fixed. */
  bool is_done;
  bool has_input;               /* a byte has come */
  bool is_foreign;              /* ... and was none of TLS */
  bool user_is_known;           /* the key was looked up and found */
  char user[128];               /* that it was looked up for */
  struct name_vector names;     /* the peer's, the one for messages first */

  /* Of the thread that receives. */
  int recv_flags;
  bool recv_failed;
  char recv_error[128];

  /* Of the thread that sends. */
  int send_flags;
  size_t pending;               /* bytes of a record that is not wholly sent */
  uint8_t *record;              /* where small pieces are gathered */
};

/* GnuTLS's transport. */

static ssize_t
pull (gnutls_transport_ptr_t opaque, void *buf, size_t len)
{
  struct tls *t = opaque;
  ssize_t n = recv (t->fd, buf, len, t->recv_flags);

  if (n > 0 && !t->has_input) {
    t->has_input = true;
    t->is_foreign = t->creds->is_server &&
      *(const uint8_t *) buf != FIRST_HANDSHAKE;
  }
  return n;
}

static ssize_t
push (gnutls_transport_ptr_t opaque, const giovec_t *iov, int nr)
{
  struct tls *t = opaque;
  struct msghdr msg = {
    .msg_iov = (struct iovec *) iov, .msg_iovlen = (size_t) nr,
  };

  return sendmsg (t->fd, &msg, t->send_flags | MSG_NOSIGNAL);
}

int
tls_psk_lookup (gnutls_session_t session, const char *name,
                gnutls_datum_t *ret_key)
{
  struct tls *t = gnutls_session_get_ptr (session);
  const struct tls_user *user =
    tls_creds_find_user (t->creds, name, strlen (name));

  snprintf (t->user, sizeof t->user, "%s", name);
  make_one_line (t->user);
  t->user_is_known = user != NULL;
  if (user == NULL)
    return -1;
  ret_key->data = gnutls_malloc (user->key.size);
  if (ret_key->data == NULL)
    return -1;
  memcpy (ret_key->data, user->key.data, user->key.size);
  ret_key->size = user->key.size;
  return 0;
}

static int
set_credentials (struct tls *t)
{
  const struct tls_creds *c = t->creds;

  if (c->psk_server)
    return gnutls_credentials_set (t->session, GNUTLS_CRD_PSK, c->psk_server);
  if (c->psk_client)
    return gnutls_credentials_set (t->session, GNUTLS_CRD_PSK, c->psk_client);
  return gnutls_credentials_set (t->session, GNUTLS_CRD_CERTIFICATE, c->x509);
}

static void
verify_certificates (struct tls *t)
{
  const struct tls_creds *c = t->creds;
  unsigned char *purpose = (unsigned char *)
    (c->is_server ? GNUTLS_KP_TLS_WWW_CLIENT : GNUTLS_KP_TLS_WWW_SERVER);

  t->verify[0].type = GNUTLS_DT_KEY_PURPOSE_OID;
  t->verify[0].data = purpose;
  t->verify[1].type = GNUTLS_DT_DNS_HOSTNAME;
  t->verify[1].data = (unsigned char *) t->host;
  if (c->is_server)
    gnutls_certificate_server_set_request (t->session, c->verify_peer
                                           ? GNUTLS_CERT_REQUIRE
                                           : GNUTLS_CERT_IGNORE);
  if (c->verify_peer)
    gnutls_session_set_verify_cert2 (t->session, t->verify, t->host ? 2 : 1,
                                     0);
}

int
tls_new (struct tls_creds *creds, int fd, const char *host, struct tls **ret,
         struct error *err)
{
  const unsigned flags = GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL
    | GNUTLS_NO_TICKETS;
  struct tls *t = calloc (1, sizeof *t);
  int r;

  if (t == NULL)
    return error_set_errno (err, ENOMEM, "TLS");
  t->creds = creds;
  t->fd = fd;
  t->recv_flags = t->send_flags = MSG_DONTWAIT;
  /* A certificate that the server does not believe is sent, too: its answer
   * then says why.
   */
  r = gnutls_init (&t->session, flags
                   | (creds->is_server ? GNUTLS_SERVER
                      : GNUTLS_CLIENT | GNUTLS_FORCE_CLIENT_CERT));
  if (r < 0)
    t->session = NULL;
  t->host = host ? strdup (host) : NULL;
  if (r < 0 || (host && t->host == NULL)) {
    tls_free (t);
    return error_set_errno (err, ENOMEM, "TLS");
  }
  gnutls_session_set_ptr (t->session, t);
  gnutls_transport_set_ptr (t->session, t);
  gnutls_transport_set_pull_function (t->session, pull);
  gnutls_transport_set_vec_push_function (t->session, push);
  gnutls_handshake_set_max_packet_length (t->session, MAX_HANDSHAKE_MESSAGE);
  r = gnutls_priority_set (t->session, creds->priority);
  if (r == 0)
    r = set_credentials (t);
  if (creds->x509)
    verify_certificates (t);
  /* It names the host, but no address (RFC 6066). */
  if (r == 0 && host && host[strspn (host, "0123456789.")] &&
      !strchr (host, ':'))
    r = gnutls_server_name_set (t->session, GNUTLS_NAME_DNS, host,
                                strlen (host));
  if (r < 0) {
    tls_free (t);
    return error_set (err, EINVAL, "TLS: %s", gnutls_strerror (r));
  }
  *ret = t;
  return 0;
}

void
tls_free (struct tls *t)
{
  size_t i;

  if (t == NULL)
    return;
  if (t->session)
    gnutls_deinit (t->session);
  for (i = 0; i < t->names.len; i++)
    free (t->names.ptr[i]);
  name_vector_reset (&t->names);
  free (t->host);
  free (t->record);
  free (t);
}

/* The peer's names. */

static int
add_name (struct tls *t, const void *name, size_t len)
{
  char *copy;

  /* A NUL inside is an attempt to look like another name. */
  if (len == 0 || memchr (name, 0, len) || t->names.len == MAX_NAMES)
    return 0;
  copy = strndup (name, len);
  if (copy == NULL)
    return -ENOMEM;
  if (name_vector_append (&t->names, copy) < 0) {
    free (copy);
    return -ENOMEM;
  }
  return 0;
}

static int
add_certificate_names (struct tls *t, gnutls_x509_crt_t crt)
{
  gnutls_datum_t dn = { .data = NULL };
  char buf[1024];
  size_t len;
  unsigned i;
  int r = 0, type;

  if (gnutls_x509_crt_get_dn3 (crt, &dn, 0) == 0) {
    r = add_name (t, dn.data, strlen ((char *) dn.data));
    gnutls_free (dn.data);
  }
  len = sizeof buf;
  if (r == 0 && gnutls_x509_crt_get_dn_by_oid (crt, GNUTLS_OID_X520_COMMON_NAME,
                                               0, 0, buf, &len) == 0)
    r = add_name (t, buf, len);
  for (i = 0; r == 0 && i < MAX_NAMES; i++) {
    len = sizeof buf;
    type = gnutls_x509_crt_get_subject_alt_name (crt, i, buf, &len, NULL);
    if (type == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
      break;
    if (type == GNUTLS_SAN_DNSNAME || type == GNUTLS_SAN_RFC822NAME ||
        type == GNUTLS_SAN_URI)
      r = add_name (t, buf, len);
  }
  return r;
}

/* Once the handshake is done.  0 or -ENOMEM. */
static int
learn_names (struct tls *t)
{
  const gnutls_datum_t *list;
  gnutls_x509_crt_t crt;
  unsigned nr = 0;
  int r;

  if (t->creds->psk_server)
    return add_name (t, t->user, strlen (t->user));
  if (t->creds->x509 == NULL || !t->creds->verify_peer)
    return 0;
  list = gnutls_certificate_get_peers (t->session, &nr);
  if (list == NULL || nr == 0 || gnutls_x509_crt_init (&crt) < 0)
    return -ENOMEM;
  r = gnutls_x509_crt_import (crt, &list[0], GNUTLS_X509_FMT_DER) < 0
    ? -ENOMEM : add_certificate_names (t, crt);
  gnutls_x509_crt_deinit (crt);
  return r;
}

bool
tls_peer_has_name (const struct tls *t, const char *name)
{
  size_t i;

  for (i = 0; i < t->names.len; i++)
    if (strcmp (t->names.ptr[i], name) == 0)
      return true;
  return false;
}

const char *
tls_peer (const struct tls *t)
{
  return t->names.len > 0 ? t->names.ptr[0] : "";
}

/* What went wrong, in words. */

/* A certificate that was not accepted; also the alert for it. */
static const char *
explain_certificate (unsigned status, gnutls_alert_description_t *ret_alert)
{
  static const struct {
    unsigned flag;
    gnutls_alert_description_t alert;
    const char *text;
  } table[] = {
    { GNUTLS_CERT_REVOKED, GNUTLS_A_CERTIFICATE_REVOKED, "has been revoked" },
    { GNUTLS_CERT_EXPIRED, GNUTLS_A_CERTIFICATE_EXPIRED, "has expired" },
    { GNUTLS_CERT_NOT_ACTIVATED, GNUTLS_A_BAD_CERTIFICATE,
      "is not valid yet" },
    { GNUTLS_CERT_SIGNER_NOT_FOUND, GNUTLS_A_UNKNOWN_CA,
      "does not come from an authority that is trusted (ca-cert.pem)" },
    { GNUTLS_CERT_SIGNER_NOT_CA, GNUTLS_A_UNKNOWN_CA,
      "was signed by one that is no authority" },
    { GNUTLS_CERT_SIGNATURE_FAILURE, GNUTLS_A_UNKNOWN_CA,
      "has a signature that is wrong" },
    { GNUTLS_CERT_PURPOSE_MISMATCH, GNUTLS_A_UNSUPPORTED_CERTIFICATE,
      "is for another purpose" },
    { GNUTLS_CERT_UNEXPECTED_OWNER, GNUTLS_A_BAD_CERTIFICATE,
      "is for another name" },
    { GNUTLS_CERT_INSECURE_ALGORITHM, GNUTLS_A_BAD_CERTIFICATE,
      "uses an algorithm that is too weak" },
    { GNUTLS_CERT_REVOCATION_DATA_SUPERSEDED, GNUTLS_A_BAD_CERTIFICATE,
      "cannot be checked: the list of those revoked is too old" },
  };
  size_t i;

  for (i = 0; i < sizeof table / sizeof table[0]; i++)
    if (status & table[i].flag) {
      *ret_alert = table[i].alert;
      return table[i].text;
    }
  *ret_alert = GNUTLS_A_BAD_CERTIFICATE;
  return "is not trusted";
}

static int
refuse_certificate (struct tls *t, struct error *err)
{
  gnutls_alert_description_t alert;
  unsigned status = gnutls_session_get_verify_cert_status (t->session);
  const char *text = explain_certificate (status, &alert);

  gnutls_alert_send (t->session, GNUTLS_AL_FATAL, alert);
  if (t->host)
    return error_set (err, EACCES, "TLS: the certificate of the server %s: "
                      "'%.100s' is expected", text, t->host);
  return error_set (err, EACCES, "TLS: the certificate of the client %s",
                    text);
}

/* The peer has refused us. */
static void
format_alert (struct tls *t, char *buf, size_t size)
{
  const char *name =
    gnutls_alert_get_name (gnutls_alert_get (t->session));

  snprintf (buf, size, "the %s refused: %s", t->creds->is_server ? "client"
            : "server", name ? name : "unknown alert");
}

/* The key did not fit, as far as can be known.  False: that is not it. */
static bool
explain_key (struct tls *t, int code, struct error *err)
{
  if (!t->creds->psk_server || t->user[0] == '\0')
    return false;
  if (!t->user_is_known)
    error_set (err, EACCES, "TLS: unknown user '%s'", t->user);
  else if (code == GNUTLS_E_MEMORY_ERROR)
    return false;
  else
    error_set (err, EACCES, "TLS: the key of user '%s' is wrong", t->user);
  return true;
}

static void
explain_failure (struct tls *t, int code, struct error *err)
{
  bool is_server = t->creds->is_server;
  char alert[100];

  switch (code) {
  case GNUTLS_E_PREMATURE_TERMINATION:
  case GNUTLS_E_PULL_ERROR:
  case GNUTLS_E_PUSH_ERROR:
    error_set (err, ECONNRESET, "TLS: the %s has closed the connection in the "
               "handshake", is_server ? "client" : "server");
    return;
  case GNUTLS_E_FATAL_ALERT_RECEIVED:
    format_alert (t, alert, sizeof alert);
    if (t->creds->psk_client)   /* servers' alerts for that differ */
      error_set (err, EACCES, "TLS: %s: perhaps it has no user '%.64s', or "
                 "another key", alert, t->creds->user);
    else
      error_set (err, EACCES, "TLS: %s", alert);
    return;
  case GNUTLS_E_NO_CERTIFICATE_FOUND:
  case GNUTLS_E_CERTIFICATE_REQUIRED:
    error_set (err, EACCES, "TLS: the %s has no certificate, which is needed",
               is_server ? "client" : "server");
    return;
  }
  if (t->creds->psk_server && code == GNUTLS_E_INSUFFICIENT_CREDENTIALS) {
    error_set (err, EACCES, "TLS: the client has no pre-shared key, which is "
               "needed");
    return;
  }
  if (is_server && t->is_foreign)
    error_set (err, EPROTO, "TLS: what came is no TLS handshake");
  else if (explain_key (t, code, err))
    ;
  else if (code == GNUTLS_E_UNSUPPORTED_VERSION_PACKET)
    error_set (err, EPROTO, "TLS: the %s does not speak TLS 1.2 or later",
               is_server ? "client" : "server");
  else
    error_set (err, EPROTO, "TLS: the handshake failed: %s",
               gnutls_strerror (code));
}

int
tls_handshake (struct tls *t, short *ret_events, struct error *err)
{
  int r;

  do
    r = gnutls_handshake (t->session);
  while (r == GNUTLS_E_INTERRUPTED || r == GNUTLS_E_WARNING_ALERT_RECEIVED
         || r == GNUTLS_E_GOT_APPLICATION_DATA);
  if (r == GNUTLS_E_AGAIN) {
    *ret_events = gnutls_record_get_direction (t->session) ? POLLOUT : POLLIN;
    return -EAGAIN;
  }
  if (r == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR)
    return refuse_certificate (t, err);
  if (r < 0) {
    if (r != GNUTLS_E_FATAL_ALERT_RECEIVED && r != GNUTLS_E_PULL_ERROR
        && r != GNUTLS_E_PUSH_ERROR && r != GNUTLS_E_PREMATURE_TERMINATION)
      gnutls_alert_send_appropriate (t->session, r);
    explain_failure (t, r, err);
    return -err->errnum;
  }
  t->record = malloc (RECORD_SIZE);
  if (t->record == NULL || learn_names (t) < 0)
    return error_set_errno (err, ENOMEM, "TLS");
  t->is_done = true;
  return 0;
}

/* Data. */

static ssize_t
recv_failed (struct tls *t, int code)
{
  t->recv_failed = true;
  errno = ECONNRESET;
  switch (code) {
  case GNUTLS_E_FATAL_ALERT_RECEIVED:
    format_alert (t, t->recv_error, sizeof t->recv_error);
    errno = EACCES;
    break;
  case GNUTLS_E_PREMATURE_TERMINATION:
    snprintf (t->recv_error, sizeof t->recv_error,
              "the connection was cut off");
    break;
  case GNUTLS_E_PULL_ERROR:
    snprintf (t->recv_error, sizeof t->recv_error, "the connection failed");
    break;
  default:
    snprintf (t->recv_error, sizeof t->recv_error, "%s",
              gnutls_strerror (code));
    errno = EPROTO;
  }
  return -1;
}

ssize_t
tls_recv (struct tls *t, void *buf, size_t len, int flags)
{
  ssize_t n;

  t->recv_flags = flags;
  do
    n = gnutls_record_recv (t->session, buf, len);
  while (n == GNUTLS_E_WARNING_ALERT_RECEIVED);
  if (n >= 0)
    return n;
  if (n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED) {
    errno = n == GNUTLS_E_AGAIN ? EAGAIN : EINTR;
    return -1;
  }
  return recv_failed (t, (int) n);
}

bool
tls_has_pending (struct tls *t)
{
  return gnutls_record_check_pending (t->session) > 0;
}

const char *
tls_recv_error (const struct tls *t)
{
  return t->recv_failed ? t->recv_error : NULL;
}

/* The next record's bytes, from skip on: in one piece where they are, or
 * gathered.
 */
static size_t
gather (struct tls *t, const struct iovec *iov, size_t nr, size_t skip,
        const uint8_t **ret)
{
  size_t len = 0, part;

  while (nr > 0 && skip >= iov->iov_len) {
    skip -= iov->iov_len;
    iov++;
    nr--;
  }
  if (nr > 0 && iov->iov_len - skip >= RECORD_SIZE) {
    *ret = (const uint8_t *) iov->iov_base + skip;
    return RECORD_SIZE;
  }
  for (; nr > 0 && len < RECORD_SIZE; iov++, nr--) {
    part = MIN (iov->iov_len - skip, RECORD_SIZE - len);
    memcpy (t->record + len, (const uint8_t *) iov->iov_base + skip, part);
    len += part;
    skip = 0;
  }
  *ret = t->record;
  return len;
}

/* Bytes sent, 0 at the end of iov, or a GnuTLS error. */
static ssize_t
send_record (struct tls *t, const struct iovec *iov, size_t nr, size_t skip)
{
  const uint8_t *data;
  size_t len;
  ssize_t n;

  if (t->pending > 0) {
    n = gnutls_record_send (t->session, NULL, 0);
    if (n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED)
      return n;
    len = t->pending;
    t->pending = 0;
    return n < 0 ? n : (ssize_t) len;
  }
  len = gather (t, iov, nr, skip, &data);
  if (len == 0)
    return 0;
  n = gnutls_record_send (t->session, data, len);
  if (n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED)
    t->pending = len;
  return n;
}

ssize_t
tls_sendv (struct tls *t, const struct iovec *iov, size_t nr, int flags)
{
  size_t done = 0;
  ssize_t n;

  t->send_flags = flags & ~MSG_NOSIGNAL;
  while ((n = send_record (t, iov, nr, done)) > 0)
    done += (size_t) n;
  if (n == 0 || done > 0)
    return (ssize_t) done;
  errno = n == GNUTLS_E_AGAIN ? EAGAIN : n == GNUTLS_E_INTERRUPTED ? EINTR
    : EPIPE;
  return -1;
}

void
tls_refuse (struct tls *t)
{
  t->send_flags = MSG_DONTWAIT;
  gnutls_alert_send (t->session, GNUTLS_AL_FATAL, GNUTLS_A_ACCESS_DENIED);
}

void
tls_end (struct tls *t)
{
  t->send_flags = MSG_DONTWAIT;
  if (t->is_done && t->pending == 0)
    gnutls_bye (t->session, GNUTLS_SHUT_WR);
}
