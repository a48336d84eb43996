/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands of the user's around a backup and around its point. */
#ifndef TIDEMARK_HOOKS_H
#define TIDEMARK_HOOKS_H

#include "error.h"

/* Run a command of the shell, with one more argument and TIDEMARK_HOOK=arg in
 * its environment, and wait for it.  What it prints goes to stderr.  limit:
 * seconds after which it is killed, with what it has started; 0 = none.  0 if
 * it ends with status 0, else -errno.
 */
int hook_run (const char *command, const char *arg, unsigned limit,
              struct error *err);

/* "COMMAND freeze" now and "COMMAND thaw" later, from a process of its own,
 * which does that after limit seconds or when we die, too.
 */
struct freeze;

/* Before threads are started.  On failure it has been thawed. */
int freeze_begin (const char *command, unsigned limit, struct freeze **ret,
                  struct error *err);

/* Thaw.  -ETIMEDOUT: that had been done before.  That thawing failed is logged.
 * NULL is allowed.
 */
int freeze_end (struct freeze *f, struct error *err);

#endif /* TIDEMARK_HOOKS_H */
