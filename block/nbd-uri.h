/* SPDX-License-Identifier: BSD-3-Clause */
/* The names of NBD exports: URIs, and QEMU's older form. */
#ifndef TIDEMARK_NBD_URI_H
#define TIDEMARK_NBD_URI_H

#include <stdbool.h>

#include "error.h"

/* True if s names an NBD export rather than a file. */
bool nbd_uri_is_nbd (const char *s);

/* A URI that libnbd takes: s itself, or made of nbd:unix:PATH[:exportname=NAME]
 * or nbd:HOST:PORT[:exportname=NAME].  The caller frees *ret.  0 or -errno
 * with *err set.
 */
int nbd_uri_normalize (const char *s, char **ret, struct error *err);

#endif /* TIDEMARK_NBD_URI_H */
