/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs a fuzz target on the files that are named.  Prints each name before it
 * is run, so that after a crash the last one is the culprit.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "cleanup.h"
#include "fuzz.h"

#define MAX_FILE (1 << 20)

static int
replay (const char *name)
{
  CLEANUP_FREE uint8_t *buf = malloc (MAX_FILE), *exact = NULL;
  FILE *f = fopen (name, "rb");
  size_t len;

  if (!buf || !f) {
    fprintf (stderr, "%s: %s\n", name, strerror (errno));
    if (f)
      fclose (f);
    return -1;
  }
  len = fread (buf, 1, MAX_FILE, f);
  fclose (f);
  /* Of the right length, so that a sanitizer sees who reads beyond it. */
  exact = malloc (len ? len : 1);
  if (!exact)
    return -1;
  memcpy (exact, buf, len);
  printf ("%s\n", name);
  fflush (stdout);
  LLVMFuzzerTestOneInput (exact, len);
  return 0;
}

int
main (int argc, char *argv[])
{
  LLVMFuzzerInitialize (&argc, &argv);
  for (int i = 1; i < argc; i++)
    if (replay (argv[i]) < 0)
      return EXIT_FAILURE;
  return EXIT_SUCCESS;
}
