/* SPDX-License-Identifier: BSD-3-Clause */
/* A qcow2 image on a simulated machine, in the place of its disk. */
#ifndef TIDEMARK_TESTS_SIM_IMAGE_H
#define TIDEMARK_TESTS_SIM_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "blk.h"
#include "sim-io.h"

/* The image's node, over the machine's SIM_DISK; an image of size bytes is made
 * if there is none.  -errno if it cannot be opened.
 */
int sim_image_open (struct sim_io *io, uint64_t size, struct blk **ret,
                    struct error *err);

/* Look at every reference of the image, which nobody has open.  False, and the
 * first fault in message[256]: it is corrupt.  Leaks are no fault.
 */
bool sim_image_check (struct sim_io *io, char *message);

#endif /* TIDEMARK_TESTS_SIM_IMAGE_H */
