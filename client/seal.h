/* SPDX-License-Identifier: BSD-3-Clause */
/* JSON files whose last member is a checksum of all before it
 * (docs/format.md).
 */
#ifndef TIDEMARK_SEAL_H
#define TIDEMARK_SEAL_H

#include <jansson.h>
#include <stdbool.h>

/* The text of the object with its checksum, which the caller frees; NULL: no
 * memory.  Takes the reference to o, which may be NULL.
 */
char *seal_json (json_t *o);

/* Is it what that made?  o: what text was parsed to. */
bool seal_is_good (const char *text, const json_t *o);

#endif /* TIDEMARK_SEAL_H */
