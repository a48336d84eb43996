/* SPDX-License-Identifier: BSD-3-Clause */
/* fake-nbd-server SOCKET LIE: serve one export that breaks the protocol in one
 * way (unit/fake-nbd.h) until standard input ends.  It prints "request" when
 * the first request has arrived.
 */
#include "config.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "unit/fake-nbd.h"

static const struct {
  const char *name;
  enum fake_nbd_lie lie;
} lies[] = {
  { "honest", FAKE_HONEST },
  { "zero-length", FAKE_ZERO_LENGTH },
  { "beyond-end", FAKE_BEYOND_END },
  { "missing-context", FAKE_MISSING_CONTEXT },
  { "duplicate-context", FAKE_DUPLICATE_CONTEXT },
  { "no-extents", FAKE_NO_EXTENTS },
  { "short-read", FAKE_SHORT_READ },
  { "close", FAKE_CLOSE },
  { "silent", FAKE_SILENT },
  { "silent-reads", FAKE_SILENT_READS },
  { "silent-greeting", FAKE_SILENT_GREETING },
  { "silent-list", FAKE_SILENT_LIST },
  { "bad-magic", FAKE_BAD_MAGIC },
  { "odd-size", FAKE_ODD_SIZE },
};

int
main (int argc, char **argv)
{
  struct fake_nbd *server;
  size_t i;
  char c;

  for (i = 0; argc == 3 && i < sizeof lies / sizeof lies[0]; i++)
    if (strcmp (argv[2], lies[i].name) == 0) {
      server = fake_nbd_start (argv[1], lies[i].lie);
      puts ("ready");
      fflush (stdout);
      fake_nbd_wait_request (server);
      puts ("request");
      fflush (stdout);
      while (read (STDIN_FILENO, &c, 1) > 0)
        ;
      fake_nbd_stop (server);
      return 0;
    }
  fprintf (stderr, "usage: fake-nbd-server SOCKET LIE\n");
  return 2;
}
