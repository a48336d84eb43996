/* SPDX-License-Identifier: BSD-3-Clause */
/* NBD exports as sources.  Main thread. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blk-nbd.h"
#include "interrupt.h"
#include "source.h"
#include "tls-options.h"

static const char prefix[] = "qemu:dirty-bitmap:";

char *
source_context (const char *bitmap)
{
  char *s;

  if (strchr (bitmap, ':'))
    return strdup (bitmap);
  return asprintf (&s, "%s%s", prefix, bitmap) < 0 ? NULL : s;
}

/* "...; the export offers the bitmaps 'a', 'b'" */
static void
explain_contexts (const struct blk_nbd_options *o, struct error *err)
{
  const char *context = o->contexts[0];
  char **names;
  size_t nr, i, len = strlen (err->msg);
  int is_missing = 1;

  if (blk_nbd_list_contexts (o, prefix, &names, &nr, NULL) < 0)
    return;
  for (i = 0; i < nr; i++)
    is_missing &= strcmp (names[i], context) != 0;
  if (is_missing)
    snprintf (err->msg + len, sizeof err->msg - len, "; the export offers %s",
              nr > 0 ? "the bitmaps" : "no bitmap");
  for (i = 0; i < nr; i++) {
    len = strlen (err->msg);
    if (is_missing)
      snprintf (err->msg + len, sizeof err->msg - len, "%s '%s'",
                i > 0 ? "," : "", names[i] + sizeof prefix - 1);
    free (names[i]);
  }
  free (names);
}

int
source_open (const char *uri, bool is_foreign, const char *context,
             unsigned nr_connections, struct blk **ret, struct error *err)
{
  const struct blk_nbd_options o = {
    .uri = uri,
    .nr_connections = nr_connections,
    .is_read_only = true,
    .is_foreign = is_foreign,
    .tls = tls_options_nbd (),
    .cancel_fd = interrupt_fd (),
    .contexts = &context,
    .nr_contexts = context ? 1 : 0,
    .is_allocation_optional = true,
  };
  int r = blk_nbd_open (&o, ret, err);

  if (r == -ECANCELED)
    return interrupt_error (err);
  if (r < 0 && context && !is_foreign)
    explain_contexts (&o, err);
  return r;
}

void
source_cancel (void *opaque)
{
  blk_nbd_cancel (opaque);
}
