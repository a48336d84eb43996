/* SPDX-License-Identifier: BSD-3-Clause */
/* journal.c: what is read is what was written, or an error; never anything
 * else, whatever has become of the file.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "files.h"
#include "journal.h"
#include "seal.h"
#include "unit.h"

#define NAME "000007-inc.journal.partial"
#define MAX 65536

static char tmp[] = "/tmp/tidemark-test.XXXXXX";
static int dirfd = -1;

static const struct journal_key key = {
  .disk = "vda", .number = 7, .session = { { 1, 2, 3 } },
  .cluster_size = 65536,
};
static const struct journal progress = {
  .sums = {
    .next = 1234, .offset = 64 + 24 * 3 + 32 * 900, .nr_records = 3,
    .totals = { .data_clusters = 900, .zero_clusters = 11 },
    .run_type = SUMS_DATA, .run_first = 1200, .run_count = 34,
  },
};
static const struct journal complete = {
  .is_complete = true, .data_bytes = 900 << 16, .zero_bytes = 11 << 16,
  .image_bytes = 12345678, .finished = 1700000000,
  .root = { 0xab, 0xcd, [31] = 0xef },
};

static int
setup (void **state)
{
  if (!mkdtemp (tmp))
    return -1;
  dirfd = open (tmp, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  return dirfd < 0 ? -1 : 0;
}

static int
teardown (void **state)
{
  unlinkat (dirfd, NAME, 0);
  journal_remove_run (dirfd);
  close (dirfd);
  return rmdir (tmp);
}

static void
write_journal (const struct journal *j)
{
  struct error err = ERROR_INIT;

  assert_int_equal (journal_write (dirfd, &key, j, &err), 0);
}

static char *
file_text (const char *name)
{
  char *text;

  assert_int_equal (file_read_at (dirfd, name, MAX, &text), 0);
  return text;
}

static void
write_bytes (const char *name, const char *p, size_t len)
{
  int fd = openat (dirfd, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

  assert_true (fd >= 0);
  assert_int_equal (write (fd, p, len), len);
  assert_int_equal (ftruncate (fd, (off_t) len), 0);
  close (fd);
}

static void
assert_journal (const struct journal *a, const struct journal *b)
{
  assert_int_equal (a->is_complete, b->is_complete);
  assert_int_equal (a->sums.next, b->sums.next);
  assert_int_equal (a->sums.offset, b->sums.offset);
  assert_int_equal (a->sums.nr_records, b->sums.nr_records);
  assert_int_equal (a->sums.totals.data_clusters,
                    b->sums.totals.data_clusters);
  assert_int_equal (a->sums.totals.zero_clusters,
                    b->sums.totals.zero_clusters);
  assert_int_equal (a->sums.run_type, b->sums.run_type);
  assert_int_equal (a->sums.run_first, b->sums.run_first);
  assert_int_equal (a->sums.run_count, b->sums.run_count);
  assert_int_equal (a->data_bytes, b->data_bytes);
  assert_int_equal (a->zero_bytes, b->zero_bytes);
  assert_int_equal (a->image_bytes, b->image_bytes);
  assert_int_equal (a->finished, b->finished);
  assert_memory_equal (a->root, b->root, sizeof a->root);
}

/* Refused, and the message names the file and says what it is. */
static void
assert_refused (const struct journal_key *k, const char *what)
{
  struct error err = ERROR_INIT;
  struct journal j;

  assert_int_equal (journal_read (dirfd, k, &j, &err), -EBADMSG);
  assert_non_null (strstr (err.msg, NAME));
  if (!strstr (err.msg, what))
    fail_msg ("\"%s\" in \"%s\"", what, err.msg);
}

static void
test_round_trip (void **state)
{
  struct error err = ERROR_INIT;
  struct journal j;

  assert_int_equal (journal_read (dirfd, &key, &j, &err), -ENOENT);
  assert_int_equal (err.errnum, 0);
  write_journal (&progress);
  assert_int_equal (journal_read (dirfd, &key, &j, &err), 0);
  assert_journal (&j, &progress);
  write_journal (&complete);
  assert_int_equal (journal_read (dirfd, &key, &j, &err), 0);
  assert_journal (&j, &complete);
}

/* Some bit of each byte is another one: an error, or it made no difference. */
static void
flip_bits (const struct journal *wanted)
{
  struct error err;
  struct journal j;
  unsigned nr_good = 0;
  char *text;
  size_t len, i;
  int r;

  write_journal (wanted);
  text = file_text (NAME);
  len = strlen (text);
  for (i = 0; i < 2 * len; i++) {
    const char bit = (char) (1 << (i + i / len * 3) % 8);

    text[i % len] ^= bit;
    write_bytes (NAME, text, len);
    text[i % len] ^= bit;
    err = (struct error) ERROR_INIT;
    r = journal_read (dirfd, &key, &j, &err);
    if (r == 0) {
      assert_journal (&j, wanted);
      nr_good++;
    }
    else
      assert_int_equal (r, -EBADMSG);
  }
  /* White space behind the checksum. */
  assert_true (nr_good < 20);
  free (text);
}

static void
test_flipped_bits (void **state)
{
  flip_bits (&progress);
  flip_bits (&complete);
}

static void
test_truncated (void **state)
{
  size_t len, n;
  char *text;

  write_journal (&progress);
  text = file_text (NAME);
  len = strlen (text);
  /* Without the newline at its end it is still whole. */
  for (n = 0; n + 1 < len; n++) {
    write_bytes (NAME, text, n);
    assert_refused (&key, "Bad message");
  }
  /* And more than there was. */
  text[len - 1] = '{';
  write_bytes (NAME, text, len);
  assert_refused (&key, "Bad message");
  free (text);
}

static void
test_another_ones (void **state)
{
  struct journal_key k;

  write_journal (&complete);
  k = key;
  k.disk = "vdb";
  assert_refused (&k, "it is another disk's");
  k = key;
  k.session.bytes[15] ^= 1;
  assert_refused (&k, "it is of another session");
  k = key;
  k.cluster_size = 4096;
  assert_refused (&k, "it is of another cluster size");
}

/* Change what is in the sealed file to what its writer would not have written,
 * and seal it again.  path: members, the last of which becomes value; NULL: is
 * removed.
 */
static void
reseal (const char *a, const char *b, json_t *value)
{
  char *text = file_text (NAME);
  json_t *o = json_loads (text, 0, NULL), *in;

  assert_non_null (o);
  in = b ? json_object_get (o, a) : o;
  assert_non_null (in);
  assert_non_null (json_object_get (in, b ? b : a));
  if (value)
    json_object_set_new (in, b ? b : a, value);
  else
    json_object_del (in, b ? b : a);
  json_object_del (o, "checksum");
  free (text);
  text = seal_json (o);
  assert_non_null (text);
  write_bytes (NAME, text, strlen (text));
  free (text);
}

static void
test_sealed_nonsense (void **state)
{
  static const char *const progress_members[] = {
    "next-cluster", "sums-offset", "sums-records", "data-clusters",
    "zero-clusters", "run-type", "run-first", "run-count",
  };
  static const char *const complete_members[] = {
    "data-bytes", "zero-bytes", "image-bytes", "finished", "sums-sha256",
  };
  size_t i;

  for (i = 0; i < 8; i++) {
    write_journal (&progress);
    reseal ("progress", progress_members[i], NULL);
    assert_refused (&key, "Bad message");
    write_journal (&progress);
    reseal ("progress", progress_members[i], json_integer (-1));
    assert_refused (&key, "Bad message");
    write_journal (&progress);
    reseal ("progress", progress_members[i], json_string ("1"));
    assert_refused (&key, "Bad message");
  }
  for (i = 0; i < 5; i++) {
    write_journal (&complete);
    reseal ("complete", complete_members[i], NULL);
    assert_refused (&key, "Bad message");
    write_journal (&complete);
    reseal ("complete", complete_members[i], json_string ("zz"));
    assert_refused (&key, "Bad message");
  }
  write_journal (&progress);
  reseal ("progress", "run-type", json_integer (3));
  assert_refused (&key, "Bad message");
  write_journal (&progress);
  reseal ("progress", NULL, NULL);
  assert_refused (&key, "Bad message");
}

static void
test_head (void **state)
{
  static const struct {
    const char *member, *what;
  } heads[] = {
    { "format", "it is no journal" }, { "version", "of another version" },
    { "disk", "another disk's" }, { "number", "another backup's" },
    { "session", "of another session" },
    { "cluster-size", "of another cluster size" },
  };
  size_t i;

  for (i = 0; i < sizeof heads / sizeof heads[0]; i++) {
    write_journal (&progress);
    reseal (heads[i].member, NULL, NULL);
    assert_refused (&key, heads[i].what);
    write_journal (&progress);
    reseal (heads[i].member, NULL, json_integer (2));
    assert_refused (&key, heads[i].what);
    write_journal (&progress);
    reseal (heads[i].member, NULL, json_string ("x"));
    assert_refused (&key, heads[i].what);
  }
  /* What would be the right one if it was cut to 32 bits. */
  write_journal (&progress);
  reseal ("cluster-size", NULL, json_integer (65536 + (INT64_C (1) << 32)));
  assert_refused (&key, "of another cluster size");
}

/* The run's file, whose contents are its user's to check. */
static void
test_run (void **state)
{
  json_t *run = json_pack ("{s:s, s:[{s:s}]}", "format", "tidemark run",
                           "disks", "disk", "vda"), *o;
  struct error err = ERROR_INIT;
  size_t len, i;
  char *text;

  assert_false (journal_has_run (dirfd));
  assert_int_equal (journal_read_run (dirfd, &o), -ENOENT);
  assert_int_equal (journal_write_run (dirfd, run, &err), 0);
  assert_true (journal_has_run (dirfd));
  assert_int_equal (journal_read_run (dirfd, &o), 0);
  json_object_del (o, "checksum");
  assert_true (json_equal (o, run));
  json_decref (o);
  text = file_text ("run.partial");
  len = strlen (text);
  for (i = 0; i + 1 < len; i++) {
    write_bytes ("run.partial", text, i);
    assert_int_equal (journal_read_run (dirfd, &o), -EBADMSG);
    assert_null (o);
  }
  /* A bit of each byte. */
  for (i = 0; i < len; i++) {
    text[i] ^= (char) (1 << i % 8);
    write_bytes ("run.partial", text, len);
    text[i] ^= (char) (1 << i % 8);
    if (journal_read_run (dirfd, &o) == 0) {
      json_object_del (o, "checksum");
      assert_true (json_equal (o, run));
    }
    json_decref (o);
  }
  free (text);
  json_decref (run);
  journal_remove_run (dirfd);
  assert_false (journal_has_run (dirfd));
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_round_trip),
    cmocka_unit_test (test_flipped_bits),
    cmocka_unit_test (test_truncated),
    cmocka_unit_test (test_another_ones),
    cmocka_unit_test (test_sealed_nonsense),
    cmocka_unit_test (test_head),
    cmocka_unit_test (test_run),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, setup, teardown);
}
