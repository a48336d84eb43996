/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS credentials that clients of the control protocol add, by id: QEMU's
 * objects tls-creds-x509 and tls-creds-psk.
 */
#ifndef TIDEMARK_TLS_OBJECTS_H
#define TIDEMARK_TLS_OBJECTS_H

#include "error.h"
#include "tls.h"

struct tls_objects;

int tls_objects_new (struct tls_objects **ret);
void tls_objects_free (struct tls_objects *o);  /* NULL is allowed */

/* All of these: any thread, with QEMU's messages. */

/* Takes ownership of creds, on failure too. */
int tls_objects_add (struct tls_objects *o, const char *id,
                     struct tls_creds *creds, struct error *err);
/* Who uses the credentials keeps them. */
int tls_objects_remove (struct tls_objects *o, const char *id,
                        struct error *err);
/* A new reference.  -ENOENT. */
int tls_objects_find (struct tls_objects *o, const char *id,
                      struct tls_creds **ret, struct error *err);

#endif /* TIDEMARK_TLS_OBJECTS_H */
