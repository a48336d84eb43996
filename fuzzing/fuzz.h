/* SPDX-License-Identifier: BSD-3-Clause */
/* What the fuzz targets share.  Each is one source that defines
 * LLVMFuzzerTestOneInput, as libFuzzer and AFL++ expect it; with replay.c it is
 * a plain program that runs the files that it is given.
 */
#ifndef TIDEMARK_FUZZ_H
#define TIDEMARK_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerInitialize (int *argc, char ***argv);
int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);
/* May be defined: makes another input of data.  libFuzzer's own is weak, for
 * there is none in the other programs.
 */
size_t LLVMFuzzerCustomMutator (uint8_t *data, size_t size, size_t max_size,
                                unsigned int seed);
size_t LLVMFuzzerMutate (uint8_t *data, size_t size, size_t max_size)
  __attribute__ ((weak));

/* What holds for every input; otherwise a bug has been found. */
#define CLAIM(condition, what) \
  do { \
    if (!(condition)) { \
      fprintf (stderr, "%s:%d: %s\n", __FILE__, __LINE__, (what)); \
      abort (); \
    } \
  } while (0)

#endif /* TIDEMARK_FUZZ_H */
