/* SPDX-License-Identifier: BSD-3-Clause */
/* An NBD server that lies, for tests of clients: one export of 1 MiB whose
 * contents are byte 0x55, that breaks the protocol in one way.
 */
#ifndef TIDEMARK_FAKE_NBD_H
#define TIDEMARK_FAKE_NBD_H

#define FAKE_NBD_SIZE (UINT64_C (1) << 20)

enum fake_nbd_lie {
  FAKE_HONEST,
  FAKE_ZERO_LENGTH,             /* an empty extent */
  FAKE_BEYOND_END,              /* an extent past the export's end */
  FAKE_MISSING_CONTEXT,         /* granted, then left out of the reply */
  FAKE_DUPLICATE_CONTEXT,       /* one context twice in one reply */
  FAKE_NO_EXTENTS,              /* a block status reply without any chunk */
  FAKE_SHORT_READ,              /* half of the data, then done */
  FAKE_CLOSE,                   /* hangs up instead of a reply */
  FAKE_SILENT,                  /* never replies; hangs up when told */
  FAKE_SILENT_READS,            /* never replies to reads */
  FAKE_SILENT_GREETING,         /* accepts, which counts as a request, and says
                                   nothing */
  FAKE_SILENT_LIST,             /* never replies to LIST_META_CONTEXT, which
                                   counts as a request */
  FAKE_BAD_MAGIC,
  FAKE_ODD_SIZE,                /* not a multiple of its minimum block */
  FAKE_ONE_CLIENT,              /* says multi-conn, never accepts a second */
  FAKE_LAST_FIRST,              /* no lie: block status requests are answered
                                   FAKE_NBD_GROUP at a time, the last first */
  FAKE_FAILED_STATUS,           /* likewise; that of the second half fails */
};

#define FAKE_NBD_GROUP 8

struct fake_nbd;

/* Listen on socket_path and serve, on a thread of its own, one connection
 * after the other.
 */
struct fake_nbd *fake_nbd_start (const char *socket_path,
                                 enum fake_nbd_lie lie);
/* Cut the connection. */
void fake_nbd_hang_up (struct fake_nbd *f);
/* Wait until a request has arrived on it. */
void fake_nbd_wait_request (struct fake_nbd *f);
void fake_nbd_stop (struct fake_nbd *f);

#endif /* TIDEMARK_FAKE_NBD_H */
