/* SPDX-License-Identifier: BSD-3-Clause */
/* What is noted of a store elsewhere, because it cannot be written itself.
 *
 * I6 (part): after any crash, recovered bits are a superset of the blocks that
 *     changed since the base point.  Here: a store that has missed changes, or
 *     will from now on, and cannot say so, is named by a note at another place
 *     before anybody goes on (store_note_failure, store_note_missing).  The
 *     next opening finds it (store_find_note), and removes it only once what
 *     it makes of that is durable (store_forget_notes).
 *
 * A note has no content but its name: that of the store's id, or of its path if
 * the id is not known.  One that stays although it is of no more use does no
 * harm: a store that has been noted gets another id.
 *
 * Called by whoever has the store's claim, or opens it.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "log.h"
#include "store-private.h"

#define NOTE_PREFIX "tidemark-failed-"
#define NOTE_NAME_SIZE 64

/*---- Names ----*/

static void
name_of_id (const struct point_id *id, char ret[NOTE_NAME_SIZE])
{
  char text[POINT_ID_STRING_SIZE];

  point_id_format (id, text);
  snprintf (ret, NOTE_NAME_SIZE, "%s%s", NOTE_PREFIX, text);
}

/* FNV-1a, of 64 bits: nothing depends on who could make it come out equal. */
static void
name_of_path (const char *path, char ret[NOTE_NAME_SIZE])
{
  uint64_t hash = UINT64_C (0xcbf29ce484222325);

  for (; *path; path++)
    hash = (hash ^ (uint8_t) *path) * UINT64_C (0x100000001b3);
  snprintf (ret, NOTE_NAME_SIZE, "%spath-%016" PRIx64, NOTE_PREFIX,
            hash);
}

/*---- Places ----*/

int
store_copy_places (struct store *s, const struct store_options *options)
{
  size_t i;

  for (i = 0; i < STORE_MAX_PLACES && options->places[i].path; i++) {
    s->places[i] = options->places[i];
    s->places[i].path = strdup (options->places[i].path);
    if (s->places[i].path == NULL)
      return -ENOMEM;
  }
  return 0;
}

void
store_free_places (struct store *s)
{
  size_t i;

  for (i = 0; i < STORE_MAX_PLACES; i++)
    free ((char *) s->places[i].path);
}

/* At the first place that takes it. */
static int
set_note (const struct store_io *io, const struct store_place *places,
          const char *name)
{
  size_t i;
  int r = -ENOTSUP;

  for (i = 0; i < STORE_MAX_PLACES && places[i].path; i++) {
    r = io->note (io, &places[i], name, STORE_IO_NOTE_SET);
    if (r == 0)
      return 0;
  }
  return r;
}

/* A place that cannot be read may have had one. */
static bool
has_note (const struct store *s, const char *name)
{
  size_t i;
  int r;

  for (i = 0; i < STORE_MAX_PLACES && s->places[i].path; i++) {
    r = s->io->note (s->io, &s->places[i], name, STORE_IO_NOTE_LOOK);
    if (r == 0 || r == -EIO)
      return true;
  }
  return false;
}

static void
remove_note (const struct store *s, const char *name)
{
  size_t i;
  int r;

  for (i = 0; i < STORE_MAX_PLACES && s->places[i].path; i++) {
    r = s->io->note (s->io, &s->places[i], name, STORE_IO_NOTE_REMOVE);
    if (r < 0 && r != -ENOENT)
      log_debug ("store '%s': cannot remove the note '%s' at '%s': %s",
                 s->path, name, s->places[i].path, strerror (-r));
  }
}

/*---- Notes ----*/

int
store_note_failure (const struct store *s)
{
  char name[NOTE_NAME_SIZE];

  name_of_id (&s->header.id, name);
  return set_note (s->io, s->places, name);
}

int
store_note_missing (const struct store_options *options)
{
  const struct store_io *io = options->io ? options->io : &store_io_system;
  CLEANUP_FREE char *path = NULL;
  char name[NOTE_NAME_SIZE];

  name_of_path (options->path, name);
  if (set_note (io, options->places, name) == 0)
    return 0;
  /* Then it is not found. */
  if (asprintf (&path, "%s.damaged", options->path) < 0)
    return -ENOMEM;
  return io->rename (io, options->path, path);
}

enum store_note
store_find_note (const struct store *s)
{
  char name[NOTE_NAME_SIZE];

  name_of_id (&s->header.id, name);
  if (has_note (s, name))
    return STORE_NOTE_FAILED;
  name_of_path (s->path, name);
  return has_note (s, name) ? STORE_NOTE_MISSING : STORE_NOTE_NONE;
}

void
store_forget_notes (const struct store *s, const struct point_id *id)
{
  char name[NOTE_NAME_SIZE];

  if (id) {
    name_of_id (id, name);
    remove_note (s, name);
  }
  name_of_path (s->path, name);
  remove_note (s, name);
}
