/* SPDX-License-Identifier: BSD-3-Clause */
/* manifest.c and chain.c: manifests there and back, every damaged byte
 * noticed; choosing a backup; which base an incremental may have (I9).
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "chain.h"
#include "manifest.h"
#include "unit.h"

#define IMAGE_BYTES 327680

static char folder[] = "/tmp/tidemark-chain.XXXXXX";
static int dirfd_repo = -1, dirfd_disk = -1;

static struct point_id
point (uint8_t n)
{
  struct point_id id;

  memset (&id, 0, sizeof id);
  id.bytes[0] = 0xab;
  id.bytes[1] = 0xcd;
  id.bytes[2] = n;
  return id;
}

static int
remove_one (const char *path, const struct stat *st, int flag,
            struct FTW *ftw)
{
  return remove (path);
}

static int
setup (void **state)
{
  memcpy (folder + strlen (folder) - 6, "XXXXXX", 6);
  assert_non_null (mkdtemp (folder));
  dirfd_repo = open (folder, O_RDONLY | O_DIRECTORY);
  assert_int_equal (mkdirat (dirfd_repo, "vda", 0777), 0);
  dirfd_disk = openat (dirfd_repo, "vda", O_RDONLY | O_DIRECTORY);
  return dirfd_disk < 0;
}

static int
teardown (void **state)
{
  close (dirfd_disk);
  close (dirfd_repo);
  return nftw (folder, remove_one, 10, FTW_DEPTH | FTW_PHYS);
}

static void
touch (const char *name)
{
  int fd = openat (dirfd_disk, name, O_WRONLY | O_CREAT, 0666);

  assert_true (fd >= 0);
  close (fd);
}

static void
file_suffix (unsigned number, bool is_full, const char *suffix)
{
  char name[BACKUP_NAME_MAX];

  touch (backup_name (number, is_full, suffix, name));
}

static struct manifest *
new_manifest (unsigned number, bool is_full)
{
  struct manifest *m = calloc (1, sizeof *m);

  m->number = number;
  m->is_full = is_full;
  m->disk = strdup ("vda");
  m->point = m->session = point ((uint8_t) number);
  if (!is_full) {
    m->backing_number = number - 1;
    m->is_backing_full = number == 2;
    m->parent = m->base = point ((uint8_t) (number - 1));
  }
  m->time = 1700000000 + 1000 * (int64_t) number;
  m->finished = m->time + 5;
  m->source = strdup ("unix:/x \"quoted\" \\ \303\244");
  m->bitmap = is_full ? NULL : strdup ("b0");
  m->mode = strdup (is_full ? "full" : "incremental");
  m->why = strdup ("because of \"checksum\": no reason");
  m->virtual_size = 1 << 20;
  m->cluster_size = 65536;
  m->dirty_bytes = 5;
  m->data_bytes = 65536;
  m->image_bytes = IMAGE_BYTES;
  m->disks = json_pack ("[s]", "vda");
  m->tool = strdup ("test");
  return m;
}

/* As long as the manifest says. */
static void
make_image (unsigned number, bool is_full)
{
  char name[BACKUP_NAME_MAX];
  int fd;

  file_suffix (number, is_full, ".qcow2");
  backup_name (number, is_full, ".qcow2", name);
  fd = openat (dirfd_disk, name, O_WRONLY | O_CLOEXEC);
  assert_true (fd >= 0);
  assert_int_equal (ftruncate (fd, IMAGE_BYTES), 0);
  close (fd);
}

/* Store a manifest, and an image and checksums that are there. */
static void
store (struct manifest *m, bool is_pending)
{
  struct error err = ERROR_INIT;
  char a[BACKUP_NAME_MAX], b[BACKUP_NAME_MAX];

  assert_int_equal (manifest_write_partial (dirfd_disk, m, &err), 0);
  backup_name (m->number, m->is_full, ".json.partial", a);
  backup_name (m->number, m->is_full, ".json", b);
  assert_int_equal (renameat (dirfd_disk, a, dirfd_disk, b), 0);
  make_image (m->number, m->is_full);
  file_suffix (m->number, m->is_full, ".sums");
  if (is_pending)
    file_suffix (m->number, m->is_full, ".pending");
  manifest_free (m);
}

static struct chain *
load (void)
{
  struct error err = ERROR_INIT;
  struct chain *chain;

  assert_int_equal (chain_open (folder, dirfd_repo, "vda", false, &chain,
                                &err), 0);
  return chain;
}

static void
test_names (void **state)
{
  static const char *const bad[] = {
    "", "1-full.json", "000000-full.json", "000001-full", "000001-full.x",
    "000001full.json", "000001-diff.json", "0000001-full.json",
    "000001-full.json.", "000001-full.json.partialx", " 00001-full.json",
    "000001-incfull.json",
  };
  char name[BACKUP_NAME_MAX];
  const char *suffix;
  unsigned number;
  bool is_full;
  size_t i;

  assert_string_equal (backup_name (2, false, ".json", name),
                       "000002-inc.json");
  assert_true (backup_name_parse ("123456-full.qcow2.partial", &number,
                                  &is_full, &suffix));
  assert_int_equal (number, 123456);
  assert_true (is_full);
  assert_string_equal (suffix, ".qcow2.partial");
  for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
    assert_false (backup_name_parse (bad[i], &number, &is_full, &suffix));
}

static void
test_round_trip (void **state)
{
  struct error err = ERROR_INIT;
  struct manifest *m = new_manifest (2, false), *got;
  json_t *a, *b;

  a = manifest_to_json (m);
  store (m, false);
  assert_int_equal (manifest_read (dirfd_disk, "f", "000002-inc.json", &got,
                                   &err), 0);
  b = manifest_to_json (got);
  assert_true (json_equal (a, b));
  assert_true (point_id_is_equal (&got->base, &(struct point_id) {
    { 0xab, 0xcd, 1 } }));
  json_decref (a);
  json_decref (b);
  manifest_free (got);
}

/* No single changed or missing byte goes unnoticed. */
static void
test_damage (void **state)
{
  struct error err = ERROR_INIT;
  struct manifest *got;
  char text[4096];
  ssize_t len, i;
  int fd;

  store (new_manifest (1, true), false);
  assert_int_equal (fchmodat (dirfd_disk, "000001-full.json", 0666, 0), 0);
  fd = openat (dirfd_disk, "000001-full.json", O_RDWR);
  len = read (fd, text, sizeof text);
  assert_true (len > 500);
  /* The last two bytes are white space and the brace. */
  for (i = 0; i < len - 2; i++) {
    char c = (char) (text[i] ^ 1);

    assert_int_equal (pwrite (fd, &c, 1, i), 1);
    if (manifest_read (dirfd_disk, "f", "000001-full.json", &got, &err) == 0)
      fail_msg ("byte %zd: %c for %c was not noticed", i, c, text[i]);
    assert_non_null (strstr (err.msg, "f/000001-full.json"));
    assert_int_equal (pwrite (fd, &text[i], 1, i), 1);
  }
  assert_int_equal (manifest_read (dirfd_disk, "f", "000001-full.json", &got,
                                   &err), 0);
  manifest_free (got);
  for (i = 0; i < len - 1; i += 7) {
    assert_int_equal (ftruncate (fd, i), 0);
    assert_true (manifest_read (dirfd_disk, "f", "000001-full.json", &got,
                                &err) < 0);
    assert_int_equal (pwrite (fd, text, (size_t) len, 0), len);
  }
  close (fd);
}

static void
three_backups (void)
{
  store (new_manifest (1, true), false);
  store (new_manifest (2, false), false);
  store (new_manifest (3, false), false);
}

static void
check_select (const struct chain *chain, const char *at, unsigned number)
{
  struct error err = ERROR_INIT;
  const struct backup *b;
  int r = chain_select (chain, at, &b, &err);

  if (number == 0)
    assert_true (r < 0 && strstr (err.msg, at));
  else {
    assert_int_equal (r, 0);
    assert_int_equal (b->number, number);
  }
}

static void
test_select (void **state)
{
  struct chain *chain;

  three_backups ();
  chain = load ();
  assert_int_equal (chain->len, 3);
  check_select (chain, NULL, 3);
  check_select (chain, "latest", 3);
  check_select (chain, "1", 1);
  check_select (chain, "000002", 2);
  check_select (chain, "4", 0);
  check_select (chain, "0", 0);
  check_select (chain, "abcd02", 2);
  check_select (chain, "ABCD0300", 3);
  check_select (chain, "abcd0200000000000000000000000000", 2);
  check_select (chain, "abcd02000000000000000000000000001", 0);
  check_select (chain, "abcd04", 0);
  check_select (chain, "abcd0", 0);
  /* Backup 1 is of 2023-11-14T22:30:00Z, the others of 1000 s later each. */
  check_select (chain, "2023-11-14T22:29:59Z", 0);
  check_select (chain, "2023-11-14T22:30:00Z", 1);
  check_select (chain, "2023-11-14 22:45Z", 1);
  check_select (chain, "2023-11-14 22:46Z", 2);
  check_select (chain, "2023-11-14T22:46:40Z", 2);
  check_select (chain, "2023-11-14Z", 3);
  check_select (chain, "2023-11-13", 0);
  check_select (chain, "2030-01-01", 3);
  check_select (chain, "2023-13-14", 0);
  check_select (chain, "yesterday", 0);
  check_select (chain, "", 0);
  chain_close (chain);
}

static void
test_ambiguous (void **state)
{
  struct manifest *m = new_manifest (2, false);
  struct chain *chain;

  store (new_manifest (1, true), false);
  m->point = point (1);
  m->point.bytes[15] = 9;
  store (m, false);
  chain = load ();
  check_select (chain, "abcd0100", 0);
  check_select (chain, "abcd0100000000000000000000000009", 2);
  chain_close (chain);
}

static void
check_base (uint8_t base, const char *message)
{
  struct error err = ERROR_INIT;
  struct point_id id = point (base);
  struct chain *chain = load ();
  int r = chain_check_base (chain, &id, &err);

  if (!message)
    assert_int_equal (r, 0);
  else {
    assert_int_equal (r, -ESTALE);
    if (!strstr (err.msg, message))
      fail_msg ("\"%s\" is not in \"%s\"", message, err.msg);
  }
  chain_close (chain);
}

static void
store_aside (unsigned number, bool is_full, const char *mode)
{
  struct manifest *m = new_manifest (number, is_full);

  free (m->mode);
  m->mode = strdup (mode);
  store (m, false);
}

static void
test_base (void **state)
{
  check_base (1, "has no backup");
  three_backups ();
  check_base (3, NULL);
  check_base (2, "backup 3 is newer and was confirmed");
  check_base (1, "rolled back or copied");
  check_base (4, "not in this chain");
  /* The server has not learnt of the third: it counts from the second. */
  file_suffix (3, false, ".pending");
  check_base (3, NULL);
  check_base (2, NULL);
  check_base (1, "backup 2 is newer and was confirmed");
  file_suffix (2, false, ".pending");
  check_base (1, NULL);
  /* A full backup begins a new chain. */
  store (new_manifest (4, true), true);
  check_base (4, NULL);
  check_base (3, "not in this chain");
  /* Asides, though confirmed, change nothing. */
  store_aside (5, false, "differential");
  store_aside (6, true, "copy");
  check_base (4, NULL);
  check_base (5, "not in this chain");
  check_base (6, "not in this chain");
}

static void
check_usable (unsigned number, const char *message)
{
  struct error err = ERROR_INIT;
  struct chain *chain = load ();
  int r = chain_check_usable (chain, chain_find_number (chain, number), &err);

  if (!message)
    assert_int_equal (r, 0);
  else {
    assert_true (r < 0);
    if (!strstr (err.msg, message))
      fail_msg ("\"%s\" is not in \"%s\"", message, err.msg);
  }
  chain_close (chain);
}

static void
test_usable (void **state)
{
  struct manifest *m;

  three_backups ();
  check_usable (3, NULL);
  assert_int_equal (unlinkat (dirfd_disk, "000002-inc.qcow2", 0), 0);
  check_usable (1, NULL);
  check_usable (3, "000002-inc.qcow2");
  file_suffix (2, false, ".qcow2");
  check_usable (3, "has 0 bytes instead of 327680");
  make_image (2, false);
  check_usable (3, NULL);
  /* Another backup 2 than the one that 3 is based on. */
  m = new_manifest (2, false);
  m->point = point (99);
  store (m, false);
  check_usable (2, NULL);
  check_usable (3, "another backup 2");
  assert_int_equal (unlinkat (dirfd_disk, "000002-inc.json", 0), 0);
  check_usable (3, "manifest is missing");
  touch ("000002-inc.json");
  check_usable (3, "000002-inc.json");
}

static void
test_disk_names (void **state)
{
  static const char *const good[] = { "vda", "a.b-c_9", "0" };
  static const char *const bad[] = {
    "", ".", "..", ".x", "a/b", "a b", "lock", "tidemark.json", "\303\244",
    "a\n",
  };
  struct error err = ERROR_INIT;
  char longest[CHAIN_MAX_DISK_NAME + 2];
  size_t i;

  for (i = 0; i < sizeof good / sizeof good[0]; i++)
    assert_int_equal (chain_check_disk_name (good[i], &err), 0);
  for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
    assert_true (chain_check_disk_name (bad[i], &err) < 0);
  memset (longest, 'a', sizeof longest);
  longest[CHAIN_MAX_DISK_NAME] = '\0';
  assert_int_equal (chain_check_disk_name (longest, &err), 0);
  longest[CHAIN_MAX_DISK_NAME] = 'a';
  longest[CHAIN_MAX_DISK_NAME + 1] = '\0';
  assert_int_equal (chain_check_disk_name (longest, &err), -ENAMETOOLONG);
}

#define TEST(f) cmocka_unit_test_setup_teardown (f, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_names), TEST (test_round_trip), TEST (test_damage),
    TEST (test_select), TEST (test_ambiguous), TEST (test_base),
    TEST (test_usable), TEST (test_disk_names),
  };

  unit_start ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
