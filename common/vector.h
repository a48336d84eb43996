/* SPDX-License-Identifier: BSD-3-Clause */
/* Growable arrays.
 *
 *   DEFINE_VECTOR (string_list, char *);
 *   struct string_list list = VECTOR_INIT;
 *   if (string_list_append (&list, s) < 0) ...       // -ENOMEM
 *   list.ptr[0]; list.len; string_list_reset (&list);
 */
#ifndef TIDEMARK_VECTOR_H
#define TIDEMARK_VECTOR_H

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define VECTOR_INIT { .ptr = NULL, .len = 0, .cap = 0 }

#define DEFINE_VECTOR(name, type) \
  struct name { \
    type *ptr; \
    size_t len; \
    size_t cap; \
  }; \
  /* Make room for n more elements.  0 or -ENOMEM. */ \
  static inline __attribute__ ((unused)) int \
  name##_reserve (struct name *v, size_t n) \
  { \
    return vector_reserve ((void **) &v->ptr, v->len, &v->cap, n, \
                           sizeof (type)); \
  } \
  static inline __attribute__ ((unused)) int \
  name##_append (struct name *v, type elem) \
  { \
    if (v->len == v->cap && name##_reserve (v, 1) < 0) \
      return -ENOMEM; \
    v->ptr[v->len++] = elem; \
    return 0; \
  } \
  static inline __attribute__ ((unused)) void \
  name##_remove (struct name *v, size_t i) \
  { \
    memmove (&v->ptr[i], &v->ptr[i+1], (v->len - i - 1) * sizeof (type)); \
    v->len--; \
  } \
  /* Free the array (not what its elements point to). */ \
  static inline __attribute__ ((unused)) void \
  name##_reset (struct name *v) \
  { \
    free (v->ptr); \
    v->ptr = NULL; \
    v->len = v->cap = 0; \
  } \
  struct name /* the caller's semicolon ends this */

int vector_reserve (void **ptr, size_t len, size_t *cap, size_t n,
                    size_t elem_size);

#endif /* TIDEMARK_VECTOR_H */
