/* SPDX-License-Identifier: BSD-3-Clause */
/* Numbers of the NBD protocol (nbd: doc/proto.md, and its extension
 * EXTENDED_HEADERS).  All fields on the wire are big-endian.
 */
#ifndef TIDEMARK_NBD_PROTOCOL_H
#define TIDEMARK_NBD_PROTOCOL_H

#include <stdint.h>

/* "String values": names, descriptions, queries and error texts. */
#define NBD_MAX_STRING 4096

/* Magic numbers. */
#define NBD_MAGIC UINT64_C (0x4e42444d41474943)         /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC UINT64_C (0x49484156454f5054)  /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC UINT64_C (0x0003e889045565a9)
#define NBD_REQUEST_MAGIC UINT32_C (0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC UINT32_C (0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C (0x668e33ef)
#define NBD_EXTENDED_REQUEST_MAGIC UINT32_C (0x21e41c71)
#define NBD_EXTENDED_REPLY_MAGIC UINT32_C (0x6e8a278c)

/* Sizes of headers. */
#define NBD_OPTION_SIZE 16              /* magic, option, length */
#define NBD_OPTION_REPLY_SIZE 20        /* magic, option, type, length */
#define NBD_REQUEST_SIZE 28
#define NBD_EXTENDED_REQUEST_SIZE 32
#define NBD_SIMPLE_REPLY_SIZE 16
#define NBD_STRUCTURED_REPLY_SIZE 20
#define NBD_EXTENDED_REPLY_SIZE 32

/* Handshake flags of the server and of the client have the same bits. */
#define NBD_FLAG_FIXED_NEWSTYLE (1u << 0)
#define NBD_FLAG_NO_ZEROES (1u << 1)

/* Transmission flags. */
#define NBD_FLAG_HAS_FLAGS (1u << 0)
#define NBD_FLAG_READ_ONLY (1u << 1)
#define NBD_FLAG_SEND_FLUSH (1u << 2)
#define NBD_FLAG_SEND_FUA (1u << 3)
#define NBD_FLAG_ROTATIONAL (1u << 4)
#define NBD_FLAG_SEND_TRIM (1u << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES (1u << 6)
#define NBD_FLAG_SEND_DF (1u << 7)
#define NBD_FLAG_CAN_MULTI_CONN (1u << 8)
#define NBD_FLAG_SEND_CACHE (1u << 10)
#define NBD_FLAG_SEND_FAST_ZERO (1u << 11)
#define NBD_FLAG_BLOCK_STATUS_PAYLOAD (1u << 12)

/* Options. */
enum {
  NBD_OPT_EXPORT_NAME = 1,
  NBD_OPT_ABORT = 2,
  NBD_OPT_LIST = 3,
  NBD_OPT_STARTTLS = 5,
  NBD_OPT_INFO = 6,
  NBD_OPT_GO = 7,
  NBD_OPT_STRUCTURED_REPLY = 8,
  NBD_OPT_LIST_META_CONTEXT = 9,
  NBD_OPT_SET_META_CONTEXT = 10,
  NBD_OPT_EXTENDED_HEADERS = 11,
};

/* Option replies. */
#define NBD_REP_ACK UINT32_C (1)
#define NBD_REP_SERVER UINT32_C (2)
#define NBD_REP_INFO UINT32_C (3)
#define NBD_REP_META_CONTEXT UINT32_C (4)
#define NBD_REP_ERROR(n) (UINT32_C (0x80000000) | (n))
#define NBD_REP_ERR_UNSUP NBD_REP_ERROR (1)
#define NBD_REP_ERR_POLICY NBD_REP_ERROR (2)
#define NBD_REP_ERR_INVALID NBD_REP_ERROR (3)
#define NBD_REP_ERR_PLATFORM NBD_REP_ERROR (4)
#define NBD_REP_ERR_TLS_REQD NBD_REP_ERROR (5)
#define NBD_REP_ERR_UNKNOWN NBD_REP_ERROR (6)
#define NBD_REP_ERR_SHUTDOWN NBD_REP_ERROR (7)
#define NBD_REP_ERR_BLOCK_SIZE_REQD NBD_REP_ERROR (8)
#define NBD_REP_ERR_TOO_BIG NBD_REP_ERROR (9)
#define NBD_REP_ERR_EXT_HEADER_REQD NBD_REP_ERROR (10)

/* Information types of NBD_OPT_INFO and NBD_OPT_GO. */
enum {
  NBD_INFO_EXPORT = 0,
  NBD_INFO_NAME = 1,
  NBD_INFO_DESCRIPTION = 2,
  NBD_INFO_BLOCK_SIZE = 3,
};

/* Commands. */
enum {
  NBD_CMD_READ = 0,
  NBD_CMD_WRITE = 1,
  NBD_CMD_DISC = 2,
  NBD_CMD_FLUSH = 3,
  NBD_CMD_TRIM = 4,
  NBD_CMD_CACHE = 5,
  NBD_CMD_WRITE_ZEROES = 6,
  NBD_CMD_BLOCK_STATUS = 7,
};

/* Command flags. */
#define NBD_CMD_FLAG_FUA (1u << 0)
#define NBD_CMD_FLAG_NO_HOLE (1u << 1)
#define NBD_CMD_FLAG_DF (1u << 2)
#define NBD_CMD_FLAG_REQ_ONE (1u << 3)
#define NBD_CMD_FLAG_FAST_ZERO (1u << 4)
#define NBD_CMD_FLAG_PAYLOAD_LEN (1u << 5)

/* Chunks of structured and extended replies. */
#define NBD_REPLY_FLAG_DONE (1u << 0)
#define NBD_REPLY_TYPE_NONE 0
#define NBD_REPLY_TYPE_OFFSET_DATA 1
#define NBD_REPLY_TYPE_OFFSET_HOLE 2
#define NBD_REPLY_TYPE_BLOCK_STATUS 5
#define NBD_REPLY_TYPE_BLOCK_STATUS_EXT 6
#define NBD_REPLY_TYPE_ERROR 0x8001
#define NBD_REPLY_TYPE_ERROR_OFFSET 0x8002

/* Errors. */
enum {
  NBD_SUCCESS = 0,
  NBD_EPERM = 1,
  NBD_EIO = 5,
  NBD_ENOMEM = 12,
  NBD_EINVAL = 22,
  NBD_ENOSPC = 28,
  NBD_EOVERFLOW = 75,
  NBD_ENOTSUP = 95,
  NBD_ESHUTDOWN = 108,
};

#endif /* TIDEMARK_NBD_PROTOCOL_H */
