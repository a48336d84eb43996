/* SPDX-License-Identifier: BSD-3-Clause */
/* A client of the control protocol, docs/control.md. */
#ifndef TIDEMARK_CONTROL_H
#define TIDEMARK_CONTROL_H

#include <jansson.h>
#include <stdbool.h>

#include "error.h"

struct control;

enum source_kind {
  SOURCE_CONTROL,               /* a control socket */
  SOURCE_NBD,                   /* an export of an NBD server */
};

/* What the user's SOURCE is: "tidemarks://HOST:PORT",
 * "tidemark+unix:///PATH", "unix:/PATH" or the path of a socket; an NBD URI.
 * 0 or -errno with *err naming what is allowed.
 */
int control_source_kind (const char *source, enum source_kind *ret,
                         struct error *err);

/* Connect and negotiate capabilities. */
int control_connect (const char *source, struct control **ret,
                     struct error *err);
/* Ends the keepalive.  NULL is allowed. */
void control_close (struct control *c);

/* From now on a call connects again first if the connection was lost. */
void control_set_lasting (struct control *c);

/* The user has allowed data to come over TCP without TLS, if the control
 * connection is a Unix socket.
 */
void control_allow_plain_tcp (struct control *c);

/* An export's URI that the server has named: *ret is where to connect, which
 * the caller frees (NULL if uri is NULL).  Over TLS it has to be one with TLS,
 * and the server goes by the name that the user has given it.  Over a Unix
 * socket one over TCP without TLS has to be on this machine, or allowed.  Any
 * thread, not beside a call.
 */
int control_check_uri (struct control *c, const char *uri, char **ret,
                       struct error *err);

/* Carry out a command.  Takes the reference to args (an object; NULL = {}).
 * *ret, if ret is not NULL, is a new reference to what it returned.  -EREMOTEIO
 * and the server's text if the server refused; error_class, if not NULL, gets
 * the class ("" if it was no refusal); -ECANCELED if the process was
 * interrupted while waiting, unless is_final.  Any thread; one at a time.
 */
struct control_call {
  const char *command;
  json_t *args;
  bool is_final;                /* do not give up when interrupted */
  unsigned timeout;             /* seconds of silence after which the connection
                                   is lost; 0 = 120 */
  char error_class[40];         /* out */
};
int control_call (struct control *c, struct control_call *call, json_t **ret,
                  struct error *err);

/* Renew the lease of the session id every interval_ms, from a thread of its
 * own, until control_keepalive_stop, which waits for an answer that is due, or
 * close, which does not.  timeout as in a call.
 */
int control_keepalive_start (struct control *c, const char *id,
                             unsigned interval_ms, unsigned timeout,
                             struct error *err);
void control_keepalive_stop (struct control *c);

#endif /* TIDEMARK_CONTROL_H */
