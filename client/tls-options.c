/* SPDX-License-Identifier: BSD-3-Clause */
/* What the user has said of TLS, for every connection of this process.
 *
 * Set once, by the main thread, before there are others and before anything
 * connects; then nothing changes but the system's authorities, which the main
 * thread reads when the first control connection needs them.
 */
#include "config.h"

#include <errno.h>

#include "tls-options.h"

static struct tls_creds *creds;
static struct blk_nbd_tls nbd;
static bool is_given;

int
tls_options_init (const struct options *options, struct error *err)
{
  const struct tls_creds_options o = {
    .certificates = options_get (options, "tls-certificates"),
    .psk = options_get (options, "tls-psk"),
    .user = options_get (options, "tls-user"),
  };
  int r;

  if (o.user && !o.psk)
    return error_set (err, EINVAL, "--tls-user goes with --tls-psk alone");
  if (!o.certificates && !o.psk)
    return 0;
  r = tls_creds_new (&o, &creds, err);
  if (r < 0)
    return r;
  nbd = (struct blk_nbd_tls) {
    .certificates = o.certificates, .psk = o.psk,
    .user = tls_creds_user (creds),
  };
  is_given = true;
  return 0;
}

void
tls_options_fini (void)
{
  tls_creds_free (creds);
  creds = NULL;
  is_given = false;
}

struct tls_creds *
tls_options_creds (struct error *err)
{
  const struct tls_creds_options o = { .is_server = false };

  if (creds == NULL && tls_creds_new (&o, &creds, err) < 0)
    return NULL;
  return creds;
}

const struct blk_nbd_tls *
tls_options_nbd (void)
{
  return is_given ? &nbd : NULL;
}
