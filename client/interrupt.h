/* SPDX-License-Identifier: BSD-3-Clause */
/* SIGINT, SIGTERM and SIGHUP as a flag and a readable file descriptor. */
#ifndef TIDEMARK_INTERRUPT_H
#define TIDEMARK_INTERRUPT_H

#include <stdbool.h>

#include "error.h"

/* Once, before threads start.  The second signal of a kind ends the process
 * at once.
 */
int interrupt_init (struct error *err);

/* Turns true with the first signal; never back. */
const volatile bool *interrupt_flag (void);
bool interrupt_is_set (void);

/* Becomes readable with the first signal and stays so; -1 before init. */
int interrupt_fd (void);

/* -ECANCELED and a message that names the signal. */
int interrupt_error (struct error *err);

#endif /* TIDEMARK_INTERRUPT_H */
