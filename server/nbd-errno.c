/* SPDX-License-Identifier: BSD-3-Clause */
/* errno to the error values of the NBD protocol (nbd: "Error values").  Pure;
 * called by request.c from any thread.
 */
#include "config.h"

#include <errno.h>

#include "nbd-errno.h"
#include "nbd-protocol.h"

uint32_t
nbd_errno_from_errno (int errnum, bool is_fast_zero)
{
  switch (errnum) {
  case 0:
    return NBD_SUCCESS;
  case EPERM:
  case EACCES:
  case EROFS:
    return NBD_EPERM;
  case ENOMEM:
    return NBD_ENOMEM;
  case EINVAL:
    return NBD_EINVAL;
  case ENOSPC:
  case EDQUOT:
  case EFBIG:
    return NBD_ENOSPC;
  case EOVERFLOW:
    return NBD_EOVERFLOW;
  case ENOTSUP:
    return is_fast_zero ? NBD_ENOTSUP : NBD_EINVAL;
  case ESHUTDOWN:
    return NBD_ESHUTDOWN;
  default:
    return NBD_EIO;
  }
}

const char *
nbd_errno_text (uint32_t error)
{
  switch (error) {
  case NBD_SUCCESS:
    return "";
  case NBD_EPERM:
    return "operation not permitted";
  case NBD_ENOMEM:
    return "out of memory";
  case NBD_EINVAL:
    return "invalid request";
  case NBD_ENOSPC:
    return "no space left";
  case NBD_EOVERFLOW:
    return "request is too large";
  case NBD_ENOTSUP:
    return "not faster than writing zeroes";
  case NBD_ESHUTDOWN:
    return "export has been removed";
  default:
    return "input/output error";
  }
}
