/* SPDX-License-Identifier: BSD-3-Clause */
/* From blockdev-add's options to stacks of nodes. */
#ifndef TIDEMARK_NODE_OPEN_H
#define TIDEMARK_NODE_OPEN_H

#include <jansson.h>

#include "nodes-private.h"

struct statx;

/* Whether the options are such as QEMU's schema has them, at any depth, with
 * QEMU's messages.  Looks at nothing else.  -EINVAL.
 */
int node_options_check (json_t *options, const char *path,
                        struct error *err);

/* True if they name nodes that are there already. */
bool node_options_have_references (json_t *options);

/* The name of the file in which the data of a stack are, as it is in options;
 * NULL if they are not in a file, or in that of a node that is there already.
 */
const char *node_options_file (json_t *options);

/* Open the stack, whose options have been checked; *made gets its nodes,
 * children first, the last one being the top, which is no disk yet.  Nodes
 * that it refers to are looked up in n and not marked: the caller is alone if
 * there are any.  *ret_stat: node_options_file as it was before any driver
 * could change it, all 0 if there is none.  On failure nothing is left.
 */
int node_open (struct nodes *n, json_t *options, struct node_vector *made,
               struct statx *ret_stat, struct error *err);

/* Close such a stack and free its nodes. */
void node_open_undo (struct node_vector *made);

#endif /* TIDEMARK_NODE_OPEN_H */
