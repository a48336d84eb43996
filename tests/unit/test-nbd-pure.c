/* SPDX-License-Identifier: BSD-3-Clause */
/* The pure parts of the NBD server: queries, errors, checks, encoding. */
#include "config.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "byteorder.h"
#include "inline-policy.h"
#include "meta-context.h"
#include "nbd-errno.h"
#include "range.h"
#include "refusals.h"
#include "reply.h"
#include "request.h"

#define MiB (UINT64_C (1) << 20)

/* What a query selects, as letters. */
static const char *
selected (const char *query, size_t len, bool is_list)
{
  static char ret[8];
  struct meta_query q;

  meta_query_parse (query, len, is_list, &q);
  ret[0] = '\0';
  if (q.allocation)
    strcat (ret, "a");
  if (q.depth)
    strcat (ret, "d");
  if (q.all_bitmaps)
    strcat (ret, "*");
  if (q.bitmap)
    strcat (ret, "b");
  return ret;
}

static void
test_queries (void **state)
{
  static const struct {
    const char *query, *list, *set;
  } cases[] = {
    { "base:", "a", "" },
    { "base:allocation", "a", "a" },
    { "base:allocation:", "", "" },
    { "base", "", "" },
    { "", "", "" },
    { ":", "", "" },
    { "qemu:", "d*", "" },
    { "qemu:allocation-depth", "d", "d" },
    { "qemu:allocation-dept", "", "" },
    { "qemu:dirty-bitmap", "", "" },
    { "qemu:dirty-bitmap:", "*", "" },
    { "qemu:dirty-bitmap:x", "b", "b" },
    { "qemu:dirty-bitmap:x:y", "b", "b" },
    { "QEMU:dirty-bitmap:x", "", "" },
    { "x-other:dirty-bitmap:x", "", "" },
  };
  struct meta_query q;
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    size_t len = strlen (cases[i].query);

    assert_string_equal (selected (cases[i].query, len, true), cases[i].list);
    assert_string_equal (selected (cases[i].query, len, false), cases[i].set);
  }
  assert_string_equal (selected (NULL, 0, true), "ad*");
  assert_string_equal (selected (NULL, 0, false), "");
  /* It need not end in NUL, and the name is what follows the prefix. */
  meta_query_parse ("qemu:dirty-bitmap:abcdef", 21, false, &q);
  assert_int_equal (q.bitmap_len, 3);
  assert_memory_equal (q.bitmap, "abc", 3);
}

static void
test_errno (void **state)
{
  static const struct {
    int errnum;
    uint32_t error, fast;
  } cases[] = {
    { 0, 0, 0 }, { EPERM, 1, 1 }, { EROFS, 1, 1 }, { EACCES, 1, 1 },
    { EIO, 5, 5 }, { ENOMEM, 12, 12 }, { EINVAL, 22, 22 },
    { ENOSPC, 28, 28 }, { EDQUOT, 28, 28 }, { EFBIG, 28, 28 },
    { EOVERFLOW, 75, 75 }, { ENOTSUP, 22, 95 }, { EOPNOTSUPP, 22, 95 },
    { ESHUTDOWN, 108, 108 }, { ESTALE, 5, 5 }, { ETIMEDOUT, 5, 5 },
    { 99999, 5, 5 },
  };
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    assert_int_equal (nbd_errno_from_errno (cases[i].errnum, false),
                      cases[i].error);
    assert_int_equal (nbd_errno_from_errno (cases[i].errnum, true),
                      cases[i].fast);
    assert_true (strlen (nbd_errno_text (cases[i].error)) <= REPLY_MAX_TEXT);
  }
}

/* A request as a string of the error that it gets. */
static uint32_t
check (const struct request_env *env, uint16_t type, uint16_t flags,
       uint64_t off, uint64_t len)
{
  const struct request_head head = {
    .type = type, .flags = flags, .off = off, .len = len,
  };
  struct request_error error = request_check (env, &head);

  assert_non_null (error.text);
  assert_true (strlen (error.text) <= REPLY_MAX_TEXT);
  return error.error;
}

static void
test_ranges (void **state)
{
  static const uint64_t sizes[] = {
    0, 1, 4096, (UINT64_C (1) << 32) - 1, UINT64_C (1) << 32,
    (UINT64_C (1) << 32) + 1, RANGE_MAX_SIZE,
  };
  static const uint64_t values[] = {
    0, 1, 511, 4095, 4096, 4097, (UINT64_C (1) << 32) - 1,
    UINT64_C (1) << 32, (UINT64_C (1) << 32) + 1, RANGE_MAX_SIZE - 1,
    RANGE_MAX_SIZE, UINT64_C (1) << 63, UINT64_MAX - 1, UINT64_MAX,
  };
  struct request_env env = {
    .is_structured = true, .is_extended = true, .can_trim = true,
    .nr_contexts = 1,
  };
  size_t i, j, k;

  for (i = 0; i < sizeof sizes / sizeof sizes[0]; ++i)
    for (j = 0; j < sizeof values / sizeof values[0]; ++j)
      for (k = 0; k < sizeof values / sizeof values[0]; ++k) {
        unsigned __int128 end = (unsigned __int128) values[j] + values[k];
        bool inside = end <= sizes[i];

        env.size = sizes[i];
        assert_int_equal (check (&env, NBD_CMD_TRIM, 0, values[j], values[k]),
                          inside ? 0 : NBD_EINVAL);
        assert_int_equal (check (&env, NBD_CMD_WRITE_ZEROES, 0, values[j],
                                 values[k]), inside ? 0 : NBD_ENOSPC);
        assert_int_equal (check (&env, NBD_CMD_READ, 0, values[j], values[k]),
                          !inside ? NBD_EINVAL
                          : values[k] > REQUEST_MAX_PAYLOAD ? NBD_EOVERFLOW
                          : 0);
        assert_int_equal (check (&env, NBD_CMD_BLOCK_STATUS, 0, values[j],
                                 values[k]),
                          inside && values[k] ? 0 : NBD_EINVAL);
      }
}

static void
test_commands (void **state)
{
  struct request_env env = { .size = MiB };

  assert_int_equal (check (&env, 8, 0, 0, 0), NBD_EINVAL);
  assert_int_equal (check (&env, NBD_CMD_DISC, 0, 0, 0), NBD_EINVAL);
  assert_int_equal (check (&env, 65535, 65535, 0, 0), NBD_EINVAL);
  assert_int_equal (check (&env, NBD_CMD_TRIM, 0, 0, 1), NBD_EINVAL);
  assert_int_equal (check (&env, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 1),
                    NBD_EINVAL);
  assert_int_equal (check (&env, NBD_CMD_WRITE_ZEROES,
                           NBD_CMD_FLAG_FAST_ZERO, 0, 1), NBD_EINVAL);
  env.is_read_only = true;
  assert_int_equal (check (&env, NBD_CMD_WRITE, 0, 0, 1), NBD_EPERM);
  assert_int_equal (check (&env, NBD_CMD_TRIM, 0, 0, 1), NBD_EPERM);
  /* A view: read-only and can be trimmed. */
  env.can_trim = true;
  assert_int_equal (check (&env, NBD_CMD_TRIM, 0, 0, 1), NBD_SUCCESS);
  assert_int_equal (check (&env, NBD_CMD_WRITE_ZEROES, 0, 0, 1), NBD_EPERM);
}

static void
test_status_payload (void **state)
{
  const struct request_env env = {
    .is_structured = true, .is_extended = true, .nr_contexts = 3,
    .size = MiB,
  };
  uint64_t len;

  for (len = 0; len < 40; ++len)
    assert_int_equal (check (&env, NBD_CMD_BLOCK_STATUS,
                             NBD_CMD_FLAG_PAYLOAD_LEN, 0, len),
                      len == 12 || len == 16 || len == 20 ? 0 : NBD_EINVAL);
}

/* Blocks of the buffer are zero or not as the pattern's letters say; the
 * chunks must cover it, tell the truth, and be as few as they may.
 */
static void
check_holes (const char *pattern, uint64_t off, size_t max,
             const char *expected)
{
  size_t nr_blocks = strlen (pattern), len = nr_blocks * 4096 - off % 4096;
  uint8_t *buf = calloc (nr_blocks, 4096);
  struct reply_chunk chunks[REPLY_MAX_CHUNKS];
  char got[REPLY_MAX_CHUNKS + 1] = "";
  uint64_t pos = 0, i;
  size_t nr;

  assert_non_null (buf);
  for (i = 0; i < len; ++i)
    if (pattern[(off % 4096 + i) / 4096] == 'd')
      buf[i] = i % 4096 == 4095 - off % 4096;
  nr = reply_find_holes (buf, len, off, max, chunks);
  assert_in_range (nr, 1, max);
  for (i = 0; i < nr; ++i) {
    assert_int_equal (chunks[i].pos, pos);
    assert_true (chunks[i].len > 0);
    if (chunks[i].is_hole)
      assert_true (is_zero_buffer (buf + pos, chunks[i].len));
    got[i] = chunks[i].is_hole ? 'h' : 'd';
    pos += chunks[i].len;
  }
  assert_int_equal (pos, len);
  assert_string_equal (got, expected);
  free (buf);
}

static void
test_holes (void **state)
{
  check_holes ("d", 0, 16, "d");
  check_holes ("z", 0, 16, "h");
  check_holes ("z", 100, 16, "h");
  check_holes ("dd", 4000, 16, "d");
  check_holes ("zzzzzzzzd", 0, 16, "hd");
  check_holes ("zzzzzzzd", 0, 16, "d");          /* too short */
  check_holes ("zzzzzzzzzd", 1, 16, "hd");
  check_holes ("zzzzzzzzd", 1, 16, "d");         /* just too short */
  check_holes ("dzzzzzzzzd", 0, 16, "dhd");
  check_holes ("dzzzzzzzzdzdzzzzzzzz", 0, 16, "dhdh");
  check_holes ("dzzzzzzzzdzdzzzzzzzz", 0, 4, "dhdh");
  check_holes ("dzzzzzzzzdzdzzzzzzzz", 0, 3, "dhd");
  check_holes ("dzzzzzzzzdzdzzzzzzzz", 0, 2, "d");
  check_holes ("dzzzzzzzzdzdzzzzzzzz", 0, 1, "d");
  check_holes ("zzzzzzzz", 0, 1, "h");
}

static void
test_small_replies (void **state)
{
  const struct request_head head = {
    .type = NBD_CMD_WRITE, .cookie = 0x1122334455667788, .off = 77, .len = 9,
  };
  const struct request_head read_head = { .type = NBD_CMD_READ };
  const struct request_error no_error = { .text = "" };
  struct request_error error = { .error = NBD_EIO };
  struct request_env env = { .size = 0 };
  uint8_t out[REPLY_SMALL_MAX];
  char text[500];

  memset (text, 't', sizeof text - 1);
  text[sizeof text - 1] = '\0';
  error.text = text;
  assert_int_equal (reply_encode_small (&env, &head, error, out), 16);
  assert_int_equal (load_be32 (out), NBD_SIMPLE_REPLY_MAGIC);
  assert_int_equal (load_be32 (out + 4), NBD_EIO);
  assert_int_equal (load_be64 (out + 8), head.cookie);
  env.is_structured = true;
  assert_int_equal (reply_encode_small (&env, &head, no_error, out), 16);
  assert_int_equal (reply_encode_small (&env, &read_head, no_error, out), 20);
  assert_in_range (reply_encode_small (&env, &head, error, out), 26,
                   sizeof out);
  env.is_extended = true;
  assert_int_equal (reply_encode_small (&env, &head, no_error, out), 32);
  assert_int_equal (load_be64 (out + 16), 77);
  /* The longest text is cut, not overrun. */
  assert_int_equal (reply_encode_small (&env, &head, error, out), sizeof out);
  assert_int_equal (load_be16 (out + 36), REPLY_MAX_TEXT);
}

static void
test_long_extent_in_compact_reply (void **state)
{
  static const uint64_t lengths[] = {
    1, UINT32_MAX - 1, UINT32_MAX, UINT64_C (1) << 32,
    (UINT64_C (1) << 32) + 1, UINT64_C (1) << 44,
  };
  const struct request_head head = { .off = 0 };
  uint8_t out[200];
  size_t i, n;

  for (i = 0; i < sizeof lengths / sizeof lengths[0]; ++i) {
    struct extent e[] = {
      { .off = 0, .len = lengths[i], .value = 1 },
      { .off = lengths[i], .len = 5, .value = 0 },
    };
    const struct extents list = { .ptr = e, .len = 2, .max = 2 };
    uint32_t len;

    n = reply_encode_status (false, &head, 7, true, &list, out);
    len = load_be32 (out + 24);
    assert_int_equal (load_be32 (out + 20), 7);
    assert_int_equal (load_be32 (out + 28), 1);
    if (lengths[i] <= UINT32_MAX) {
      assert_int_equal (len, lengths[i]);
      assert_int_equal (n, 20 + 4 + 16);
    }
    else {
      /* Shorter, never nothing, and nothing after it. */
      assert_in_range (len, UINT32_MAX - 65535, UINT32_MAX);
      assert_int_equal (n, 20 + 4 + 8);
    }
    assert_int_equal (load_be32 (out + 16), n - 20);
    n = reply_encode_status (true, &head, 7, true, &list, out);
    assert_int_equal (n, reply_status_size (true, 2));
    assert_int_equal (load_be64 (out + 40), lengths[i]);
  }
}

static unsigned
handed_over (struct inline_policy *p)
{
  unsigned n = 0;

  while (!inline_policy_try (p))
    ++n;
  return n;
}

static void
test_inline_policy (void **state)
{
  struct inline_policy p = { .left = 0 };
  unsigned i, expected;

  /* Now and then a slow one changes nothing. */
  for (i = 0; i < 100; ++i) {
    assert_int_equal (handed_over (&p), 0);
    inline_policy_took (&p, i % 2 ? 5000 : INLINE_SLOW_NS);
  }
  /* From the second in a row on they are tried ever more rarely, up to a
   * limit.
   */
  inline_policy_took (&p, INLINE_SLOW_NS);
  for (expected = INLINE_MIN_PAUSE; expected < 5000; expected *= 2) {
    inline_policy_took (&p, INLINE_SLOW_NS);
    assert_int_equal (handed_over (&p), MIN (expected, INLINE_MAX_PAUSE));
  }
  /* One that is fast again ends it. */
  inline_policy_took (&p, INLINE_SLOW_NS - 1);
  assert_int_equal (handed_over (&p), 0);
  inline_policy_took (&p, INLINE_SLOW_NS);
  assert_int_equal (handed_over (&p), 0);
  inline_policy_took (&p, INLINE_SLOW_NS);
  assert_int_equal (handed_over (&p), INLINE_MIN_PAUSE);
}

/* Some lines at once, then one in a while; no refusal is left out of the
 * numbers, whatever the clock does.
 */
static void
test_refusals (void **state)
{
  struct refusals *r;
  uint64_t nr_hidden, sum = 0;
  int64_t now = 123456789;
  unsigned i, nr = 0, lines = 0;

  assert_int_equal (refusals_new (&r), 0);
  for (i = 0; i < 1000; i++, nr++)
    if (refusals_take (r, now, &nr_hidden)) {
      assert_int_equal (nr_hidden, 0);
      lines++;
    }
  assert_int_equal (lines, REFUSALS_BURST);
  /* Ten a second for an hour. */
  for (i = 0; i < 36000; i++, nr++, now += 100)
    if (refusals_take (r, now, &nr_hidden)) {
      lines++;
      sum += nr_hidden;
    }
  assert_true (lines <= REFUSALS_BURST + 3600 * 1000 / REFUSALS_INTERVAL);
  assert_true (lines >= REFUSALS_BURST + 3600 * 1000 / REFUSALS_INTERVAL - 1);
  /* A pause fills the bucket, not more. */
  now += INT64_C (1000) * REFUSALS_INTERVAL;
  for (i = 0; i < 1000; i++, nr++)
    if (refusals_take (r, now, &nr_hidden)) {
      assert_true (i < REFUSALS_BURST);
      lines++;
      sum += nr_hidden;
    }
  now += REFUSALS_INTERVAL;
  assert_true (refusals_take (r, now, &nr_hidden));
  assert_int_equal (lines + sum + nr_hidden, nr);
  /* A clock that goes backwards, or far ahead. */
  assert_false (refusals_take (r, 0, &nr_hidden));
  assert_true (refusals_take (r, INT64_MAX, &nr_hidden));
  assert_int_equal (nr_hidden, 1);
  refusals_free (r);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_queries),
    cmocka_unit_test (test_errno),
    cmocka_unit_test (test_ranges),
    cmocka_unit_test (test_commands),
    cmocka_unit_test (test_status_payload),
    cmocka_unit_test (test_holes),
    cmocka_unit_test (test_small_replies),
    cmocka_unit_test (test_long_extent_in_compact_reply),
    cmocka_unit_test (test_inline_policy),
    cmocka_unit_test (test_refusals),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
