/* SPDX-License-Identifier: BSD-3-Clause */
/* Command line options by table.  Called once, from the main thread. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cmdline.h"
#include "size.h"

struct parser {
  const struct option_spec *specs;
  int argc, i;
  char **argv;
  struct options *ret;
};

static const struct option_spec *
find_long (const struct option_spec *specs, const char *name, size_t len)
{
  const struct option_spec *s;

  for (s = specs; s->name; s++)
    if (strlen (s->name) == len && strncmp (s->name, name, len) == 0)
      return s;
  return NULL;
}

static const struct option_spec *
find_letter (const struct option_spec *specs, char letter)
{
  const struct option_spec *s;

  for (s = specs; s->name; s++)
    if (s->letter && s->letter == letter)
      return s;
  return NULL;
}

/* value: what was attached to the option itself, or NULL. */
static int
add_value (struct parser *p, const struct option_spec *spec,
           const char *value, struct error *err)
{
  if (!spec->arg && value)
    return error_set (err, EINVAL, "--%s takes no value (it was given '%s')",
                      spec->name, value);
  if (spec->arg && !value) {
    if (p->i + 1 >= p->argc)
      return error_set (err, EINVAL, "--%s needs a value: --%s %s",
                        spec->name, spec->name, spec->arg);
    value = p->argv[++p->i];
  }
  p->ret->values[p->ret->nr_values].name = spec->name;
  p->ret->values[p->ret->nr_values++].value = value;
  return 0;
}

static int
parse_long (struct parser *p, const char *word, struct error *err)
{
  const char *eq = strchr (word, '=');
  size_t len = eq ? (size_t) (eq - word) : strlen (word);
  const struct option_spec *spec = find_long (p->specs, word, len);

  if (!spec)
    return error_set (err, EINVAL, "unknown option '--%.*s'", (int) len,
                      word);
  return add_value (p, spec, eq ? eq + 1 : NULL, err);
}

static int
parse_letters (struct parser *p, const char *word, struct error *err)
{
  const struct option_spec *spec;
  int r;

  for (; *word; word++) {
    spec = find_letter (p->specs, *word);
    if (!spec)
      return error_set (err, EINVAL, "unknown option '-%c'", *word);
    if (spec->arg)
      return add_value (p, spec, word[1] ? word + 1 : NULL, err);
    r = add_value (p, spec, NULL, err);
    if (r < 0)
      return r;
  }
  return 0;
}

static int
parse_words (struct parser *p, struct error *err)
{
  bool is_end = false;
  int r = 0;

  for (p->i = 0; p->i < p->argc && r == 0; p->i++) {
    const char *word = p->argv[p->i];

    if (is_end || word[0] != '-' || word[1] == '\0')
      p->ret->args[p->ret->nr_args++] = word;
    else if (strcmp (word, "--") == 0)
      is_end = true;
    else if (word[1] == '-')
      r = parse_long (p, word + 2, err);
    else
      r = parse_letters (p, word + 1, err);
  }
  return r;
}

/* Every letter of a word may be an option. */
static size_t
max_values (int argc, char **argv)
{
  size_t n = 1;
  int i;

  for (i = 0; i < argc; i++)
    n += strlen (argv[i]) + 1;
  return n;
}

int
options_parse (const struct option_spec *specs, int argc, char **argv,
               struct options *ret, struct error *err)
{
  struct options o = { 0 };
  struct parser p = { .specs = specs, .argc = argc, .argv = argv, .ret = &o };
  int r;

  o.values = calloc (max_values (argc, argv), sizeof *o.values);
  o.args = calloc ((size_t) argc + 1, sizeof *o.args);
  if (!o.values || !o.args)
    r = error_set_errno (err, ENOMEM, "command line");
  else
    r = parse_words (&p, err);
  if (r < 0)
    options_free (&o);
  else
    *ret = o;
  return r;
}

void
options_free (struct options *options)
{
  free (options->values);
  free (options->args);
  memset (options, 0, sizeof *options);
}

bool
options_has (const struct options *options, const char *name)
{
  size_t i;

  for (i = 0; i < options->nr_values; i++)
    if (strcmp (options->values[i].name, name) == 0)
      return true;
  return false;
}

const char *
options_get (const struct options *options, const char *name)
{
  size_t i;

  for (i = options->nr_values; i-- > 0; )
    if (strcmp (options->values[i].name, name) == 0)
      return options->values[i].value;
  return NULL;
}

const char *
options_get_nth (const struct options *options, const char *name, size_t n)
{
  size_t i;

  for (i = 0; i < options->nr_values; i++)
    if (strcmp (options->values[i].name, name) == 0 && n-- == 0)
      return options->values[i].value;
  return NULL;
}

int
options_get_number (const struct options *options, const char *name,
                    bool is_size, uint64_t min, uint64_t max, uint64_t *ret,
                    struct error *err)
{
  const char *s = options_get (options, name);
  char what[80], a[SIZE_STRING_MAX], b[SIZE_STRING_MAX];
  uint64_t n;
  int r;

  if (!s)
    return 0;
  snprintf (what, sizeof what, "--%s", name);
  if (is_size) {
    r = size_parse (what, s, &n, err);
    if (r < 0)
      return r;
    if (n < min || n > max)
      return error_set (err, ERANGE, "--%s %s: allowed are %s to %s", name, s,
                        size_format (min, a), size_format (max, b));
  }
  else {
    size_t len = strspn (s, "0123456789");

    n = len > 0 && len < 19 ? strtoull (s, NULL, 10) : UINT64_MAX;
    if (len == 0 || s[len] || n < min || n > max)
      return error_set (err, EINVAL, "--%s %s: allowed are whole numbers "
                        "from %ju to %ju", name, s, (uintmax_t) min,
                        (uintmax_t) max);
  }
  *ret = n;
  return 0;
}

void
options_print_help (const struct option_spec *specs, FILE *fp)
{
  const struct option_spec *s;
  char left[64];

  for (s = specs; s->name; s++) {
    char letter[8] = "    ";

    if (s->letter)
      snprintf (letter, sizeof letter, "-%c, ", s->letter);
    snprintf (left, sizeof left, "%s--%s%s%s", letter, s->name,
              s->arg ? " " : "", s->arg ? s->arg : "");
    fprintf (fp, "  %-28s %s\n", left, s->help);
  }
}

void
options_print_names (const struct option_spec *specs, const char *sep,
                     FILE *fp)
{
  const struct option_spec *s;

  for (s = specs; s->name; s++)
    fprintf (fp, "%s--%s", s == specs ? "" : sep, s->name);
  if (s != specs)
    fputc ('\n', fp);
}
