/* SPDX-License-Identifier: BSD-3-Clause */
/* Hold a file open as a node until standard input ends: for tests of locks.
 *
 *   hold-file rw|ro PATH
 *
 * Prints "open" once the file is open.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blk-file.h"

int
main (int argc, char *argv[])
{
  struct error err = ERROR_INIT;
  struct blk *blk;
  char c;

  if (argc != 3 || (strcmp (argv[1], "rw") != 0
                    && strcmp (argv[1], "ro") != 0)) {
    fprintf (stderr, "usage: %s rw|ro PATH\n", argv[0]);
    return EXIT_FAILURE;
  }
  if (blk_file_open (argv[2], strcmp (argv[1], "ro") == 0
                     ? BLK_FILE_READ_ONLY : 0, &blk, &err) < 0) {
    fprintf (stderr, "%s: %s\n", argv[0], err.msg);
    return EXIT_FAILURE;
  }
  printf ("open\n");
  fflush (stdout);
  while (read (STDIN_FILENO, &c, 1) > 0)
    ;
  return blk_close (blk) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
