/* SPDX-License-Identifier: BSD-3-Clause */
/* The JSON stream cutter: where values end, limits, and how it goes on. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qmp.h"
#include "qmp-parser.h"

/* Feed the text in pieces of the given size; append to out each value as
 * compact JSON, or "!" and the error, each with a newline.
 */
static void
feed_pieces (struct qmp_parser *p, const char *text, size_t len,
             size_t piece, FILE *out)
{
  size_t off = 0;

  while (off < len) {
    size_t n = len - off < piece ? len - off : piece, used = 0;
    struct error err = ERROR_INIT;
    json_t *value = NULL;
    char *s;

    switch (qmp_parser_feed (p, text + off, n, &used, &value, &err)) {
    case QMP_PARSE_MORE:
      assert_int_equal (used, n);
      break;
    case QMP_PARSE_VALUE:
      s = json_dumps (value, JSON_COMPACT | JSON_ENCODE_ANY);
      fprintf (out, "%s\n", s);
      free (s);
      json_decref (value);
      break;
    case QMP_PARSE_ERROR:
      assert_true (err.errnum > 0);
      assert_null (strchr (err.msg, '\n'));
      fprintf (out, "!%s\n", err.msg);
      break;
    }
    assert_true (used <= n);
    off += used;
  }
}

/* Expect the same whatever the pieces are. */
static void
check (const char *text, size_t len, const char *expected)
{
  size_t piece;

  for (piece = 1; piece <= len; piece = piece < 8 ? piece + 1 : piece * 2) {
    struct qmp_parser *p;
    char *result;
    size_t size;
    FILE *out = open_memstream (&result, &size);

    assert_int_equal (qmp_parser_new (&p), 0);
    feed_pieces (p, text, len, piece, out);
    fclose (out);
    qmp_parser_free (p);
    assert_string_equal (result, expected);
    free (result);
  }
}

static void
check_text (const char *text, const char *expected)
{
  check (text, strlen (text), expected);
}

static void
test_values (void **state)
{
  check_text ("{}", "{}\n");
  check_text ("{}{}[]", "{}\n{}\n[]\n");
  check_text (" \t\r\n{ \"a\" : [ 1 , 2 ] }\n{}", "{\"a\":[1,2]}\n{}\n");
  check_text ("{\"a\":\"}{][\\\"\\\\\"}{}", "{\"a\":\"}{][\\\"\\\\\"}\n{}\n");
}

static void
test_scalars (void **state)
{
  check_text ("5 ", "5\n");
  check_text ("\"abc\"{}", "\"abc\"\n{}\n");
  check_text ("true{}null\n", "true\n{}\nnull\n");
}

/* One error each, and the next request is understood. */
static void
test_broken (void **state)
{
  check_text ("{\"a\": ]{}", "!JSON parse error, unexpected token near ']'\n"
              "{}\n");
  check_text ("{\"a\": [1}, \"b\": 2}{}",
              "!JSON parse error, ']' expected near '}'\n{}\n");
  check_text ("{\"a\" 1}{}", "!JSON parse error, ':' expected near '1'\n{}\n");
  check_text ("}{}", "!JSON parse error, bracket without a beginning\n{}\n");
  check_text ("blah{}", "!JSON parse error, invalid token near 'blah'\n{}\n");
  check_text ("blah {}", "!JSON parse error, invalid token near 'blah'\n{}\n");
  check_text ("{\"a\n{}", "!JSON parse error, line break in a string\n{}\n");
  check_text ("{\"a\":1,\"a\":2}{}",
              "!JSON parse error, duplicate object key near '\"a\"'\n{}\n");
  check ("{\"a\0b\":1}{}", 11,
         "!JSON parse error, control character 0x0 near '\"a'\n{}\n");
}

/* 0xFF cuts off a request, and does nothing between requests. */
static void
test_flush_byte (void **state)
{
  check_text ("\xff\xff{}\xff{}", "{}\n{}\n");
  check_text ("{\"a\": [\xff{}",
              "!JSON parse error, request cut off by byte 0xFF\n{}\n");
  check_text ("{\"a\xff{}",
              "!JSON parse error, request cut off by byte 0xFF\n{}\n");
}

/* head, then n times body, then tail. */
static void
check_repeated (const char *head, const char *body, size_t n,
                const char *tail, const char *expected)
{
  char *text, *result;
  size_t len, size, i;
  FILE *in = open_memstream (&text, &len);
  FILE *out = open_memstream (&result, &size);
  struct qmp_parser *p;

  fputs (head, in);
  for (i = 0; i < n; i++)
    fputs (body, in);
  fputs (tail, in);
  fclose (in);
  assert_int_equal (qmp_parser_new (&p), 0);
  feed_pieces (p, text, len, 1000, out);
  fclose (out);
  qmp_parser_free (p);
  assert_string_equal (result, expected);
  free (result);
  free (text);
}

static void
test_size_limit (void **state)
{
  static const char error[] = "!JSON request size limit exceeded (1048576)\n";
  char expected[200];

  snprintf (expected, sizeof expected, "%s{}\n", error);
  /* Exactly the limit: "[", spaces, "]". */
  check_repeated ("[", " ", QMP_MAX_REQUEST - 2, "]{}", "[]\n{}\n");
  check_repeated ("[", " ", QMP_MAX_REQUEST - 1, "]{}", expected);
  check_repeated ("[\"", "{", 3 * QMP_MAX_REQUEST, "\"]{}", expected);
  check_repeated ("[\"", "\\\"", QMP_MAX_REQUEST, "\"]{}", expected);
  /* Not closed: the line ends it, as does 0xFF. */
  check_repeated ("[\"", "a", 2 * QMP_MAX_REQUEST, "\n{}", expected);
  check_repeated ("[", " ", 2 * QMP_MAX_REQUEST, "\n{}", expected);
  check_repeated ("[", " ", 2 * QMP_MAX_REQUEST, "\xff{}", expected);
  check_repeated ("", "a", 2 * QMP_MAX_REQUEST, "\n{}", expected);
}

static void
test_depth_limit (void **state)
{
  static const char expected[] =
    "!JSON nesting depth limit exceeded (64)\n{}\n";

  check_repeated ("", "[", QMP_MAX_DEPTH + 1, "\n{}", expected);
  check_repeated ("", "{\"a\":", 5000, "\n{}", expected);
  check_repeated ("", "[", 100000, "\xff{}", expected);
}

/* Closed again, without a line break. */
static void
test_depth_balanced (void **state)
{
  char text[2 * QMP_MAX_DEPTH + 5];

  memset (text, '[', QMP_MAX_DEPTH + 1);
  memset (text + QMP_MAX_DEPTH + 1, ']', QMP_MAX_DEPTH + 1);
  strcpy (text + 2 * QMP_MAX_DEPTH + 2, "{}");
  check_text (text, "!JSON nesting depth limit exceeded (64)\n{}\n");
}

static void
test_value_limit (void **state)
{
  static const char error[] =
    "!JSON number of values limit exceeded (16384)\n{}\n";

  check_repeated ("[", "{},", QMP_MAX_VALUES, "{}]{}", error);
  check_repeated ("[", "1,", QMP_MAX_VALUES, "1]{}", error);
}

/* Any bytes at all: no crash, no growth, and after a flush byte a request is
 * understood.
 */
static void
test_random (void **state)
{
  static const char alphabet[] = "{}[]\",:\\ \nab01\xff\x80";
  unsigned seed = 1;
  int round;

  for (round = 0; round < 2000; round++) {
    char text[204], *result;
    struct qmp_parser *p;
    size_t size, i;
    FILE *out = open_memstream (&result, &size);

    for (i = 0; i < 200; i++)
      text[i] = alphabet[rand_r (&seed) % (sizeof alphabet - 1)];
    memcpy (&text[200], "\xff{}", 4);
    assert_int_equal (qmp_parser_new (&p), 0);
    feed_pieces (p, text, 203, 1 + round % 10, out);
    fclose (out);
    qmp_parser_free (p);
    assert_true (size >= 3);
    assert_string_equal (result + size - 3, "{}\n");
    free (result);
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_values),
    cmocka_unit_test (test_scalars),
    cmocka_unit_test (test_broken),
    cmocka_unit_test (test_flush_byte),
    cmocka_unit_test (test_size_limit),
    cmocka_unit_test (test_depth_limit),
    cmocka_unit_test (test_depth_balanced),
    cmocka_unit_test (test_value_limit),
    cmocka_unit_test (test_random),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
