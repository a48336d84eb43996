/* SPDX-License-Identifier: BSD-3-Clause */
/* errno to the error values of the NBD protocol, in the one place. */
#ifndef TIDEMARK_NBD_ERRNO_H
#define TIDEMARK_NBD_ERRNO_H

#include <stdbool.h>
#include <stdint.h>

/* errnum: positive errno, or 0.  is_fast_zero: the request may be told
 * "not supported"; other requests may not (nbd: "Error values").
 */
uint32_t nbd_errno_from_errno (int errnum, bool is_fast_zero);

/* A few words for an error chunk; "" for success. */
const char *nbd_errno_text (uint32_t error);

#endif /* TIDEMARK_NBD_ERRNO_H */
