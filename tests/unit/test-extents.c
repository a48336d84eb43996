/* SPDX-License-Identifier: BSD-3-Clause */
/* block/extents against an array with a value per byte. */
#include "config.h"

#include <string.h>

#include "extents.h"
#include "unit/unit.h"

#define SPACE 256
#define START 1000

/* The list says what the model says, merged as far as possible. */
static void
check (const struct extents *e, const int *model, size_t model_len)
{
  const struct extent *found;
  size_t i, j, pos = 0;

  assert_int_equal (extents_length (e), model_len);
  for (i = 0; i < e->len; i++) {
    assert_int_equal (e->ptr[i].off, START + pos);
    assert_true (e->ptr[i].len > 0);
    assert_true (i == 0 || e->ptr[i].value != e->ptr[i - 1].value);
    for (j = 0; j < e->ptr[i].len; j++, pos++) {
      assert_int_equal (model[pos], e->ptr[i].value);
      found = extents_find (e, START + pos);
      assert_ptr_equal (found, &e->ptr[i]);
    }
  }
  assert_int_equal (pos, model_len);
  assert_null (extents_find (e, START + model_len));
  assert_null (extents_find (e, START - 1));
}

static void
test_random_model (void **state)
{
  uint64_t seed = 1, len, cut;
  int model[SPACE + 20];
  struct extents e;
  size_t pos, i;
  unsigned n, value;

  extents_init (&e, 1000);
  for (n = 0; n < 300; n++) {
    extents_clear (&e);
    for (pos = 0; pos < SPACE; pos += len) {
      len = unit_random (&seed) % 12;
      value = unit_random (&seed) % 3;
      assert_int_equal (extents_add (&e, START + pos, len, value), 0);
      for (i = 0; i < len; i++)
        model[pos + i] = (int) value;
      check (&e, model, pos + len);
    }
    while (pos > 0) {
      cut = unit_random (&seed) % (pos + 10);
      extents_truncate (&e, START + cut);
      pos = cut < pos ? cut : pos;
      check (&e, model, pos);
    }
    assert_int_equal (e.len, 0);
  }
  extents_free (&e);
}

static void
test_full (void **state)
{
  struct extents e;

  extents_init (&e, 2);
  assert_int_equal (extents_add (&e, 0, 10, 1), 0);
  assert_int_equal (extents_add (&e, 10, 10, 2), 0);
  assert_int_equal (extents_add (&e, 20, 10, 1), 1);
  assert_int_equal (extents_length (&e), 20);
  /* Nothing and a merge always fit. */
  assert_int_equal (extents_add (&e, 20, 0, 1), 0);
  assert_int_equal (extents_add (&e, 20, 10, 2), 0);
  assert_int_equal (extents_length (&e), 30);
  assert_int_equal (e.len, 2);
  extents_free (&e);
}

static void
test_limits (void **state)
{
  const uint64_t half = UINT64_C (1) << 61;
  struct extents e;

  extents_init (&e, 10);
  assert_int_equal (extents_length (&e), 0);
  assert_null (extents_find (&e, 0));
  extents_truncate (&e, 5);
  assert_int_equal (extents_add (&e, 0, half, 0), 0);
  assert_int_equal (extents_add (&e, half, half, 3), 0);
  assert_true (extents_length (&e) == 2 * half);
  assert_int_equal (extents_find (&e, 2 * half - 1)->value, 3);
  assert_null (extents_find (&e, 2 * half));
  extents_truncate (&e, UINT64_MAX);
  assert_true (extents_length (&e) == 2 * half);
  extents_truncate (&e, 0);
  assert_int_equal (e.len, 0);
  extents_free (&e);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_random_model),
    cmocka_unit_test (test_full),
    cmocka_unit_test (test_limits),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
