/* SPDX-License-Identifier: BSD-3-Clause */
/* Why there is no connection to an NBD server, as far as TLS has to do with
 * it: libnbd's messages do not tell an expired certificate from one that is
 * missing.
 */
#ifndef TIDEMARK_NBD_WHY_H
#define TIDEMARK_NBD_WHY_H

#include "blk-nbd.h"

/* After an attempt on uri has failed, with *err.  Goes through the first steps
 * once more, over a connection of its own, if the URI is one of TCP and says no
 * more than tls does about TLS.  If that shows what is wrong, *err is that;
 * else it stays.  Takes 10 seconds at most, and the time to connect; it ends
 * when cancel_fd (-1 = none) is readable.
 */
void nbd_why (const char *uri, const struct blk_nbd_tls *tls, int cancel_fd,
              struct error *err);

#endif /* TIDEMARK_NBD_WHY_H */
