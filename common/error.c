/* SPDX-License-Identifier: BSD-3-Clause */
/* Error messages of a fixed size: see error.h.  Any thread. */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

char *
make_one_line (char *text)
{
  char *s;

  for (s = text; *s; s++)
    if ((unsigned char) *s < ' ' || *s == 0x7f)
      *s = ' ';
  return text;
}

static void
format_message (struct error *err, int errnum, const char *fmt, va_list args)
{
  err->errnum = errnum;
  vsnprintf (err->msg, sizeof err->msg, fmt, args);
  make_one_line (err->msg);
}

int
error_set (struct error *err, int errnum, const char *fmt, ...)
{
  va_list args;

  if (err) {
    va_start (args, fmt);
    format_message (err, errnum, fmt, args);
    va_end (args);
  }
  return -errnum;
}

int
error_set_errno (struct error *err, int errnum, const char *fmt, ...)
{
  va_list args;
  char buf[80];
  const char *text;
  size_t len, max;

  if (!err)
    return -errnum;

  va_start (args, fmt);
  format_message (err, errnum, fmt, args);
  va_end (args);

  /* The reason matters more than the end of a very long message. */
  text = strerror_r (errnum, buf, sizeof buf);
  len = strlen (err->msg);
  max = sizeof err->msg - 1 - strlen (": ") - strlen (text);
  if (len > max)
    len = max;
  snprintf (err->msg + len, sizeof err->msg - len, ": %s", text);
  return -errnum;
}

void
error_prefix (struct error *err, const char *fmt, ...)
{
  char prefix[sizeof err->msg], msg[sizeof err->msg];
  va_list args;

  if (!err)
    return;

  va_start (args, fmt);
  vsnprintf (prefix, sizeof prefix, fmt, args);
  va_end (args);
  make_one_line (prefix);

  memcpy (msg, err->msg, sizeof msg);
  /* Truncation is what a fixed size means. */
  if (snprintf (err->msg, sizeof err->msg, "%s: %s", prefix, msg) < 0)
    err->msg[0] = '\0';
}

void
error_prefix_file (struct error *err, const char *folder, const char *name)
{
  const size_t len = strlen (folder);

  if (err && (strncmp (err->msg, folder, len) != 0 || err->msg[len] != '/'))
    error_prefix (err, "%s/%s", folder, name);
}
