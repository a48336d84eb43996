/* SPDX-License-Identifier: BSD-3-Clause */
/* What the command line says of disks and bitmaps, read and checked; service.c
 * opens them.
 *
 * Invariant: no name is there twice, and a bitmap's disk is in the list.
 * Used by one thread.
 */
#ifndef TIDEMARK_SPECS_H
#define TIDEMARK_SPECS_H

#include <stdbool.h>
#include <stdint.h>

#include "disk.h"
#include "error.h"
#include "keyval.h"
#include "vector.h"

struct disk_spec {
  struct keyvals kv;            /* owns the strings of options */
  struct disk_options options;
  struct disk *disk;            /* once open */
};

struct bitmap_spec {
  char *disk;
  char *name;
  uint64_t granularity;         /* 0 = default */
  bool is_disabled;
  enum { PERSISTENT_AUTO, PERSISTENT_ON, PERSISTENT_OFF } persistent;
};

DEFINE_VECTOR (disk_spec_vector, struct disk_spec);
DEFINE_VECTOR (bitmap_spec_vector, struct bitmap_spec);

struct specs {                  /* all zero: none */
  struct disk_spec_vector disks;
  struct bitmap_spec_vector bitmaps;
};

/* As service_add_disk and service_add_bitmap (service.h). */
int specs_add_disk (struct specs *specs, const char *text, struct error *err);
int specs_add_bitmap (struct specs *specs, const char *text,
                      struct error *err);
/* The disk of that name, or NULL; valid until the next one is added. */
struct disk_spec *specs_find_disk (struct specs *specs, const char *name);
/* Frees what was read; disks that were opened are their opener's. */
void specs_free (struct specs *specs);

#endif
