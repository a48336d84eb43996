/* SPDX-License-Identifier: BSD-3-Clause */
/* What a service manager wants of a daemon, without its library. */
#ifndef TIDEMARK_SYSTEMD_H
#define TIDEMARK_SYSTEMD_H

#include "error.h"
#include "service.h"

/* Add the sockets that were passed (LISTEN_FDS).  By LISTEN_FDNAMES: live,
 * backup, control; where none of these names occurs, by place in that order.
 * Before threads start and before a fork.  Returns how many, or -errno.
 */
int systemd_add_sockets (struct service *s, struct error *err);

/* Tell NOTIFY_SOCKET, if there is one: "READY=1". */
void systemd_notify (const char *state);

#endif /* TIDEMARK_SYSTEMD_H */
