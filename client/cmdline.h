/* SPDX-License-Identifier: BSD-3-Clause */
/* Command line options by table. */
#ifndef TIDEMARK_CMDLINE_H
#define TIDEMARK_CMDLINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "error.h"

/* Tables end with a NULL name. */
struct option_spec {
  const char *name;             /* without "--" */
  char letter;                  /* 0 = none */
  const char *arg;              /* what its argument is; NULL = a flag */
  const char *help;
};

struct option_value {
  const char *name;
  const char *value;            /* NULL for a flag; points into argv */
};

struct options {
  struct option_value *values;
  size_t nr_values;
  const char **args;            /* what is no option, in order */
  size_t nr_args;
};

/* "--name VALUE", "--name=VALUE", "-x VALUE", "-xVALUE", flags; "--" ends the
 * options, "-" alone is an argument.  Options may stand between arguments.
 * On success the caller frees *ret with options_free.  0 or -EINVAL/-ENOMEM
 * with *err set.
 */
int options_parse (const struct option_spec *specs, int argc, char **argv,
                   struct options *ret, struct error *err);
void options_free (struct options *options);

bool options_has (const struct options *options, const char *name);
/* The value given last, or NULL. */
const char *options_get (const struct options *options, const char *name);
/* The nth value (from 0) of a repeated option, or NULL. */
const char *options_get_nth (const struct options *options, const char *name,
                             size_t n);

/* A whole number within [min, max]; *ret is left alone if the option was not
 * given.  is_size: suffixes as in size.h are allowed.
 */
int options_get_number (const struct options *options, const char *name,
                        bool is_size, uint64_t min, uint64_t max,
                        uint64_t *ret, struct error *err);

/* One line for each option, for --help. */
void options_print_help (const struct option_spec *specs, FILE *fp);
/* "--name" lines, for --long-options and messages. */
void options_print_names (const struct option_spec *specs, const char *sep,
                          FILE *fp);

#endif /* TIDEMARK_CMDLINE_H */
