/* SPDX-License-Identifier: BSD-3-Clause */
/* Finds where each JSON value of a stream ends, and leaves the rest to jansson.
 *
 * The end is found by counting brackets outside strings, of whichever kind: a
 * value with mismatched brackets ends somewhere too, and is one error, after
 * which the next value is found.  What cannot be part of any value (a line
 * break inside a string, the byte 0xFF) ends it at once.
 *
 * I10: memory is bounded by QMP_MAX_REQUEST for the text and QMP_MAX_VALUES
 * for what jansson makes of it.
 *
 *   BETWEEN -> VALUE    bracket or quote         [begin]
 *   BETWEEN -> WORD     any other byte           [begin]
 *   VALUE   -> BETWEEN  brackets balanced        [finish]
 *   WORD    -> BETWEEN  space, bracket or quote  [finish]
 *   VALUE, WORD -> SKIP a limit is passed        [give_up]
 *   SKIP    -> BETWEEN  line break or balanced   [skip_byte]
 *   any     -> BETWEEN  byte 0xFF                [take_byte]
 *
 * Called by the thread of one connection.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "qmp.h"
#include "qmp-parser.h"
#include "vector.h"

#define FLUSH_BYTE 0xff         /* never part of UTF-8 */
#define KEEP_BUFFER 4096        /* kept allocated between requests */

DEFINE_VECTOR (byte_vector, char);

enum parser_state { BETWEEN, VALUE, WORD, SKIP };

struct qmp_parser {
  enum parser_state state;
  bool in_string;               /* VALUE, SKIP */
  bool is_escaped;              /* in_string: after a backslash */
  uint64_t depth;               /* open brackets */
  size_t nr_values;             /* at most, so far */
  struct byte_vector text;      /* VALUE, WORD */
};

int
qmp_parser_new (struct qmp_parser **ret)
{
  struct qmp_parser *p = calloc (1, sizeof *p);

  if (p == NULL)
    return -ENOMEM;
  *ret = p;
  return 0;
}

void
qmp_parser_free (struct qmp_parser *p)
{
  if (p == NULL)
    return;
  byte_vector_reset (&p->text);
  free (p);
}

static void
reset (struct qmp_parser *p)
{
  p->state = BETWEEN;
  p->in_string = p->is_escaped = false;
  p->depth = 0;
  p->nr_values = 0;
  p->text.len = 0;
  if (p->text.cap > KEEP_BUFFER)
    byte_vector_reset (&p->text);
}

static bool
is_space (unsigned char c)
{
  return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static bool
is_open (unsigned char c)
{
  return c == '{' || c == '[';
}

static bool
is_close (unsigned char c)
{
  return c == '}' || c == ']';
}

/* Jansson's text for people can quote the input, line breaks and all. */
static enum qmp_parse
syntax_error (const char *text, struct error *err)
{
  size_t i;

  error_set (err, EINVAL, "JSON parse error, %s", text);
  for (i = 0; err->msg[i]; i++)
    if ((unsigned char) err->msg[i] < ' ')
      err->msg[i] = ' ';
  return QMP_PARSE_ERROR;
}

/* The text is complete. */
static enum qmp_parse
finish (struct qmp_parser *p, json_t **ret, struct error *err)
{
  json_error_t json_err;

  assert (p->state == VALUE || p->state == WORD);
  *ret = json_loadb (p->text.ptr, p->text.len,
                     JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &json_err);
  reset (p);
  return *ret ? QMP_PARSE_VALUE : syntax_error (json_err.text, err);
}

static enum qmp_parse
give_up (struct qmp_parser *p, struct error *err, const char *what,
         unsigned limit)
{
  byte_vector_reset (&p->text);
  p->state = SKIP;
  error_set (err, E2BIG, "JSON %s limit exceeded (%u)", what, limit);
  return QMP_PARSE_ERROR;
}

static enum qmp_parse
append (struct qmp_parser *p, unsigned char c, struct error *err)
{
  if (p->text.len == QMP_MAX_REQUEST)
    return give_up (p, err, "request size", QMP_MAX_REQUEST);
  if (byte_vector_append (&p->text, (char) c) < 0) {
    reset (p);
    error_set_errno (err, ENOMEM, "request");
    return QMP_PARSE_ERROR;
  }
  return QMP_PARSE_MORE;
}

/* Follow strings and brackets.  True if c ends the value. */
static bool
track (struct qmp_parser *p, unsigned char c)
{
  if (p->in_string) {
    if (p->is_escaped)
      p->is_escaped = false;
    else if (c == '\\')
      p->is_escaped = true;
    else if (c == '"') {
      p->in_string = false;
      return p->depth == 0;
    }
    return false;
  }
  if (c == '"')
    p->in_string = true;
  else if (is_open (c)) {
    p->depth++;
    p->nr_values++;
  }
  else if (c == ',')
    p->nr_values++;
  else if (is_close (c) && p->depth > 0)
    return --p->depth == 0;
  return false;
}

static enum qmp_parse
value_byte (struct qmp_parser *p, unsigned char c, json_t **ret,
            struct error *err)
{
  enum qmp_parse r;
  bool is_end;

  if (p->in_string && c == '\n') {
    reset (p);
    return syntax_error ("line break in a string", err);
  }
  is_end = track (p, c);
  if (p->depth > QMP_MAX_DEPTH)
    return give_up (p, err, "nesting depth", QMP_MAX_DEPTH);
  if (p->nr_values > QMP_MAX_VALUES)
    return give_up (p, err, "number of values", QMP_MAX_VALUES);
  r = append (p, c, err);
  if (!is_end)
    return r;
  if (r == QMP_PARSE_MORE)
    return finish (p, ret, err);
  reset (p);
  return r;
}

static void
skip_byte (struct qmp_parser *p, unsigned char c)
{
  if (c == '\n' || track (p, c))
    reset (p);
}

/* *ret_taken is false if c belongs to what follows. */
static enum qmp_parse
take_byte (struct qmp_parser *p, unsigned char c, bool *ret_taken,
           json_t **ret, struct error *err)
{
  *ret_taken = true;
  if (c == FLUSH_BYTE) {
    bool was_idle = p->state == BETWEEN || p->state == SKIP;

    reset (p);
    return was_idle ? QMP_PARSE_MORE
      : syntax_error ("request cut off by byte 0xFF", err);
  }
  switch (p->state) {
  case BETWEEN:
    if (is_space (c))
      return QMP_PARSE_MORE;
    if (is_close (c))
      return syntax_error ("bracket without a beginning", err);
    p->state = is_open (c) || c == '"' ? VALUE : WORD;
    *ret_taken = false;
    return QMP_PARSE_MORE;
  case VALUE:
    return value_byte (p, c, ret, err);
  case WORD:
    if (is_space (c) || is_open (c) || is_close (c) || c == '"') {
      *ret_taken = is_space (c);
      return finish (p, ret, err);
    }
    return append (p, c, err);
  case SKIP:
    skip_byte (p, c);
    return QMP_PARSE_MORE;
  }
  abort ();
}

enum qmp_parse
qmp_parser_feed (struct qmp_parser *p, const char *data, size_t len,
                 size_t *ret_used, json_t **ret, struct error *err)
{
  size_t i = 0;

  while (i < len) {
    bool taken;
    enum qmp_parse r = take_byte (p, (unsigned char) data[i], &taken, ret,
                                  err);

    i += taken;
    if (r != QMP_PARSE_MORE) {
      *ret_used = i;
      return r;
    }
  }
  *ret_used = len;
  return QMP_PARSE_MORE;
}
