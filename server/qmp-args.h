/* SPDX-License-Identifier: BSD-3-Clause */
/* Arguments of control commands: checked against a table, with QEMU's
 * messages, and read afterwards without further checks.
 */
#ifndef TIDEMARK_QMP_ARGS_H
#define TIDEMARK_QMP_ARGS_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "error.h"

enum qmp_type {
  QMP_STRING, QMP_BOOL, QMP_UINT32, QMP_UINT64, QMP_ARRAY, QMP_ANY,
  QMP_INT64,                    /* may be negative */
  QMP_OBJECT,
  QMP_ENUM,                     /* a string of a list */
  QMP_SIZE,                     /* 0 to 2^63 - 1, said as QEMU does of sizes
                                   in blockdev-add */
  QMP_NODE,                     /* a node's name or options */
  QMP_NODE_OR_NULL,
};

struct qmp_arg {
  const char *name;             /* NULL ends a table */
  enum qmp_type type;
  bool is_required;
  const char *const *choices;   /* QMP_ENUM: ends with NULL */
};

#define QMP_PATH_MAX 128        /* of what a message shows as path */

/* 0, or -EINVAL with *err set: a required member is missing, one has another
 * type, or is not in the table.  path (or NULL) is where args is, "disks[0]".
 */
int qmp_args_check (const json_t *args, const char *path,
                    const struct qmp_arg *table, struct error *err);

/* The same, except that other members are not looked at: for objects that are
 * checked in several steps, of which qmp_args_check is the last.
 */
int qmp_args_check_members (const json_t *args, const char *path,
                            const struct qmp_arg *table, struct error *err);

/* After qmp_args_check.  Strings are borrowed from args; without the member
 * they are what the last argument says.
 */
const char *qmp_args_string (const json_t *args, const char *name,
                             const char *if_absent);
bool qmp_args_bool (const json_t *args, const char *name, bool if_absent);
uint64_t qmp_args_uint (const json_t *args, const char *name,
                        uint64_t if_absent);
int64_t qmp_args_int (const json_t *args, const char *name,
                      int64_t if_absent);
/* The place of a QMP_ENUM's value among its choices. */
int qmp_args_enum (const json_t *args, const char *name,
                   const char *const *choices, int if_absent);

/* The place of s in a NULL-terminated list, or -EINVAL with *err set. */
int qmp_args_choice (const char *path, const char *name, const char *s,
                     const char *const *choices, struct error *err);

/* A JSON string of any bytes: what is not UTF-8 is shown as "?".  NULL if
 * there is no memory.
 */
json_t *qmp_text (const char *s);

#endif /* TIDEMARK_QMP_ARGS_H */
