/* SPDX-License-Identifier: BSD-3-Clause */
/* Allocations that fail: for tests that are linked with --wrap for malloc,
 * calloc, realloc, strdup, asprintf and posix_memalign.
 */
#ifndef TIDEMARK_TESTS_FAULT_ALLOC_H
#define TIDEMARK_TESTS_FAULT_ALLOC_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

void *__real_malloc (size_t size);
void *__real_calloc (size_t nr, size_t size);
void *__real_realloc (void *p, size_t size);
char *__real_strdup (const char *s);
void *__wrap_malloc (size_t size);
void *__wrap_calloc (size_t nr, size_t size);
void *__wrap_realloc (void *p, size_t size);
char *__wrap_strdup (const char *s);
int __wrap_asprintf (char **ret, const char *fmt, ...);
int __wrap_posix_memalign (void **ret, size_t align, size_t size);
int __real_posix_memalign (void **ret, size_t align, size_t size);

/* Of this thread's allocations the one that makes it 0 fails. */
static __thread unsigned left;

static bool
fails (void)
{
  return left > 0 && --left == 0;
}

void *
__wrap_malloc (size_t size)
{
  return fails () ? NULL : __real_malloc (size);
}

void *
__wrap_calloc (size_t nr, size_t size)
{
  return fails () ? NULL : __real_calloc (nr, size);
}

void *
__wrap_realloc (void *p, size_t size)
{
  return fails () ? NULL : __real_realloc (p, size);
}

char *
__wrap_strdup (const char *s)
{
  return fails () ? NULL : __real_strdup (s);
}

int
__wrap_asprintf (char **ret, const char *fmt, ...)
{
  va_list args;
  int r;

  if (fails ())
    return -1;
  va_start (args, fmt);
  r = vasprintf (ret, fmt, args);
  va_end (args);
  return r;
}

int
__wrap_posix_memalign (void **ret, size_t align, size_t size)
{
  return fails () ? ENOMEM : __real_posix_memalign (ret, align, size);
}

#endif /* TIDEMARK_TESTS_FAULT_ALLOC_H */
