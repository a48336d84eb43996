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
};

struct qmp_arg {
  const char *name;             /* NULL ends a table */
  enum qmp_type type;
  bool is_required;
};

/* 0, or -EINVAL with *err set: a required member is missing, one has another
 * type, or is not in the table.  path (or NULL) is where args is, "disks[0]".
 */
int qmp_args_check (const json_t *args, const char *path,
                    const struct qmp_arg *table, struct error *err);

/* After qmp_args_check.  Strings are borrowed from args; without the member
 * they are what the last argument says.
 */
const char *qmp_args_string (const json_t *args, const char *name,
                             const char *if_absent);
bool qmp_args_bool (const json_t *args, const char *name, bool if_absent);
uint64_t qmp_args_uint (const json_t *args, const char *name,
                        uint64_t if_absent);

/* The place of s in a NULL-terminated list, or -EINVAL with *err set. */
int qmp_args_choice (const char *path, const char *name, const char *s,
                     const char *const *choices, struct error *err);

/* A JSON string of any bytes: what is not UTF-8 is shown as "?".  NULL if
 * there is no memory.
 */
json_t *qmp_text (const char *s);

#endif /* TIDEMARK_QMP_ARGS_H */
