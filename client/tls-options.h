/* SPDX-License-Identifier: BSD-3-Clause */
/* What the user has said of TLS, for every connection of this process. */
#ifndef TIDEMARK_TLS_OPTIONS_H
#define TIDEMARK_TLS_OPTIONS_H

#include "blk-nbd.h"
#include "cmdline.h"
#include "tls.h"

/* For the tables of the commands that connect to servers. */
#define TLS_OPTION_CERTIFICATES \
  { "tls-certificates", 0, "DIR", "for TLS: ca-cert.pem, client-cert.pem, " \
    "client-key.pem (default: the system's authorities)" }
#define TLS_OPTION_PSK \
  { "tls-psk", 0, "FILE", "for TLS: pre-shared keys instead of certificates" }
#define TLS_OPTION_USER \
  { "tls-user", 0, "NAME", "whose key of --tls-psk it is (default: of the " \
    "only one)" }

/* Read the files that the options name, if there are any.  -errno with *err
 * naming what is wrong.  Main thread, before anything else below.
 */
int tls_options_init (const struct options *options, struct error *err);
void tls_options_fini (void);

/* For control connections; NULL with *err set if there are none to be had. */
struct tls_creds *tls_options_creds (struct error *err);

/* For NBD connections; NULL = nothing was said. */
const struct blk_nbd_tls *tls_options_nbd (void);

#endif /* TIDEMARK_TLS_OPTIONS_H */
