/* SPDX-License-Identifier: BSD-3-Clause */
/* Preloaded into stock nbdkit together with a sanitizer's runtime, which a
 * plugin built with one needs first.
 *
 * The programs that nbdkit starts do not get the runtime: QEMU's do not bear
 * it, and with the thread sanitizer's not even a shell runs.
 *
 * Locales are not freed.  With the runtime strerror unlocks a lock of the C
 * library once too often, and the next to want it for writing waits for ever:
 * freelocale, called by a destructor of p11-kit in exit ().
 */
#include "config.h"

#include <locale.h>
#include <stdlib.h>

__attribute__ ((constructor)) static void
keep_from_children (void)
{
  unsetenv ("LD_PRELOAD");
}

__attribute__ ((visibility ("default"))) void
freelocale (locale_t locale)
{
}
