/* SPDX-License-Identifier: BSD-3-Clause */
/* What the bitmaps of a simulated disk have to be, and may be at most.
 *
 * A write has a number; the disk keeps, of each sector, the number of its last
 * write.  For each bitmap the model knows which writes it has recorded since
 * its base point, and so, whatever a power cut has left of the disk, which of
 * its blocks have changed since then.
 *
 * Commands change the bitmaps from one state to another.  While one is in
 * progress either state is right, and no write is in progress.
 */
#ifndef TIDEMARK_TESTS_MODEL_H
#define TIDEMARK_TESTS_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "disk.h"
#include "point.h"

#define MODEL_MAX_WRITES 4096
#define MODEL_MAX_BITMAPS 4

struct model;

struct model *model_new (uint64_t disk_size);
void model_free (struct model *m);

/* The number of a write to [off, off+len) that is about to be made; 0 if there
 * have been too many.
 */
uint32_t model_write (struct model *m, uint64_t off, uint64_t len);

/* A command begins, with one of the functions below, and ends: it has been
 * done, or it has failed and nothing has changed.
 */
void model_add (struct model *m, const char *name, uint64_t granularity,
                bool is_disabled);
void model_remove (struct model *m, const char *name);
void model_clear (struct model *m, const char *name);
void model_set_recording (struct model *m, const char *name,
                          bool is_recording);
void model_merge (struct model *m, const char *target, const char *source);
/* is_anew: it could not be used, so a new one takes its place. */
void model_freeze (struct model *m, const char *name, bool is_anew);
/* The frozen bits go; the bitmap counts from point. */
void model_drop (struct model *m, const char *name,
                 const struct point_id *point);
void model_merge_back (struct model *m, const char *name);
/* Of the disk.  What is new counts as changed. */
void model_resize (struct model *m, uint64_t size);
void model_end (struct model *m, bool is_done);
/* The bitmaps count from no known point any more. */
void model_forget_bases (struct model *m);
uint64_t model_size (struct model *m);

/* For choosing: how many there are, and their names. */
unsigned model_nr_bitmaps (struct model *m);
const char *model_name (struct model *m, unsigned i);
bool model_is_frozen (struct model *m, unsigned i);

struct model_limits {
  uint64_t region_size;
  uint64_t max_regions;         /* that may be dirty without reason */
  bool may_be_inconsistent;     /* or gone, all of them: the store has failed */
  bool is_image;                /* they are an image's, without base points */
};

/* Hold the bitmaps of a disk that has been opened after a crash, with the
 * given writes in its sectors, against the model.  False, and why in
 * message[256]: they are wrong.  *ret_extra: bytes dirty without reason.
 */
bool model_check (struct model *m, struct disk *disk, const uint32_t *sectors,
                  const struct model_limits *limits, char *message,
                  uint64_t *ret_extra);
/* The same, and go on from there: what is dirty has its reason now, and no
 * command or session is in progress any more.
 */
bool model_adopt (struct model *m, struct disk *disk, const uint32_t *sectors,
                  const struct model_limits *limits, char *message);

#endif /* TIDEMARK_TESTS_MODEL_H */
