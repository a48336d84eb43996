/* SPDX-License-Identifier: BSD-3-Clause */
/* Checking stored backups against their manifests and checksums. */
#ifndef TIDEMARK_VERIFY_H
#define TIDEMARK_VERIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "chain.h"
#include "error.h"

struct verify_options {
  unsigned nr_threads;          /* 0 = one per processor, at most 8 */
  bool skip_data;               /* all but the content of the clusters */
  const volatile bool *cancel;
};

/* Check the layer b alone: its manifest, its image file's length, header and
 * clusters, its checksum file.  Each damage is reported as it is found (to
 * stderr, or as event "damage").  Returns how many there were, or -ECANCELED
 * with *err set.
 */
int64_t verify_layer (const struct chain *chain, const struct backup *b,
                      const struct verify_options *options,
                      struct error *err);

/* Check what b is based on: that it is there and the right one.  Returns the
 * number of damages reported.
 */
int64_t verify_backing (const struct chain *chain, const struct backup *b);

/* Check the folder for images that no manifest names.  Returns the number of
 * damages reported, or -errno with *err set.
 */
int64_t verify_folder (const struct chain *chain, struct error *err);

#endif /* TIDEMARK_VERIFY_H */
