/* SPDX-License-Identifier: BSD-3-Clause */
/* Cuts a stream of bytes into JSON values, within limits. */
#ifndef TIDEMARK_QMP_PARSER_H
#define TIDEMARK_QMP_PARSER_H

#include <stddef.h>

#include <jansson.h>

#include "error.h"

struct qmp_parser;

enum qmp_parse {
  QMP_PARSE_MORE,               /* all bytes were taken, no value yet */
  QMP_PARSE_VALUE,
  QMP_PARSE_ERROR,              /* tell the peer, and go on */
};

int qmp_parser_new (struct qmp_parser **ret);
void qmp_parser_free (struct qmp_parser *p);    /* NULL is allowed */

/* Take bytes up to the end of the next value or error; *ret_used says how
 * many.  *ret is a new reference with QMP_PARSE_VALUE (of any JSON type), *err
 * is set with QMP_PARSE_ERROR.
 */
enum qmp_parse qmp_parser_feed (struct qmp_parser *p, const char *data,
                                size_t len, size_t *ret_used, json_t **ret,
                                struct error *err);

#endif /* TIDEMARK_QMP_PARSER_H */
