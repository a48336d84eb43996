/* SPDX-License-Identifier: BSD-3-Clause */
/* Exit statuses of tidemarkd; documented in its manual page. */
#ifndef TIDEMARK_EXIT_STATUS_H
#define TIDEMARK_EXIT_STATUS_H

enum exit_status {
  EXIT_STATUS_OK = 0,           /* stopped as asked */
  EXIT_STATUS_FAILED = 1,       /* could not start, or not write back */
  EXIT_STATUS_USAGE = 2,        /* the command line is wrong */
};

#endif /* TIDEMARK_EXIT_STATUS_H */
