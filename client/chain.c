/* SPDX-License-Identifier: BSD-3-Clause */
/* The backups of one disk in a repository.  Main thread.
 *
 * I9: an incremental is stored only on a chain that contains its base point.
 * Differentials and copies are asides, by which the bitmap does not move:
 * nothing is based on them.  The others are the trunk.  Further, each backup
 * between the base point and the trunk's newest must be one whose success the
 * server has not confirmed: a server that confirmed it counts from there, so
 * a bitmap that counts from an older point belongs to a disk that was rolled
 * back or copied.
 */
#include "config.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "blk-file.h"
#include "blk-qcow2.h"
#include "chain.h"
#include "cleanup.h"

int
chain_check_disk_name (const char *disk, struct error *err)
{
  static const char allowed[] = "abcdefghijklmnopqrstuvwxyz"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";

  if (disk[0] == '\0')
    return error_set (err, EINVAL, "the name of a disk cannot be empty");
  if (strlen (disk) > CHAIN_MAX_DISK_NAME)
    return error_set (err, ENAMETOOLONG, "the name of a disk can have %d "
                      "characters at most: %.40s...", CHAIN_MAX_DISK_NAME,
                      disk);
  if (disk[0] == '.' || disk[strspn (disk, allowed)] != '\0'
      || strcmp (disk, "lock") == 0 || strcmp (disk, "tidemark.json") == 0)
    return error_set (err, EINVAL, "'%.100s' cannot be a disk in a repository:"
                      " allowed are letters, digits, '-', '_' and '.', not "
                      "'.' first", disk);
  return 0;
}

static int
compare_backups (const void *a, const void *b)
{
  const struct backup *x = a, *y = b;

  return (x->number > y->number) - (x->number < y->number);
}

static int
add_backup (struct chain *chain, const char *name, unsigned number,
            bool is_full)
{
  struct backup *ptr, *b;
  char pending[BACKUP_NAME_MAX];

  ptr = realloc (chain->ptr, (chain->len + 1) * sizeof *ptr);
  if (!ptr)
    return -ENOMEM;
  chain->ptr = ptr;
  b = &ptr[chain->len++];
  memset (b, 0, sizeof *b);
  b->number = number;
  b->is_full = is_full;
  /* What is wrong with it is in b->error. */
  (void) manifest_read (chain->dirfd, chain->folder, name, &b->manifest,
                        &b->error);
  backup_name (number, is_full, ".pending", pending);
  b->is_pending = faccessat (chain->dirfd, pending, F_OK, 0) == 0;
  return 0;
}

static int
load_backups (struct chain *chain, struct error *err)
{
  struct dirent *d;
  DIR *dir;
  unsigned number;
  const char *suffix;
  bool is_full;
  int r = 0, fd = openat (chain->dirfd, ".", O_RDONLY | O_DIRECTORY
                          | O_CLOEXEC);

  dir = fd >= 0 ? fdopendir (fd) : NULL;
  if (!dir) {
    r = -errno;
    if (fd >= 0)
      close (fd);
    return error_set_errno (err, -r, "%s", chain->folder);
  }
  while (r == 0 && (errno = 0, d = readdir (dir)) != NULL) {
    if (!backup_name_parse (d->d_name, &number, &is_full, &suffix))
      continue;
    if (number > chain->max_number)
      chain->max_number = number;
    if (strcmp (suffix, ".json") == 0)
      r = add_backup (chain, d->d_name, number, is_full);
  }
  if (r == 0 && errno)
    r = -errno;
  closedir (dir);
  if (r < 0)
    return error_set_errno (err, -r, "%s", chain->folder);
  if (chain->len > 0)
    qsort (chain->ptr, chain->len, sizeof *chain->ptr, compare_backups);
  return 0;
}

static int
open_folder (struct chain *chain, const char *repo, int repo_dirfd,
             bool create, struct error *err)
{
  if (create) {
    if (mkdirat (repo_dirfd, chain->disk, 0777) == 0) {
      chain->was_created = true;
      if (fsync (repo_dirfd) < 0)
        return error_set_errno (err, errno, "%s", repo);
    }
    else if (errno != EEXIST)
      return error_set_errno (err, errno, "%s", chain->folder);
  }
  chain->dirfd = openat (repo_dirfd, chain->disk,
                         O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (chain->dirfd >= 0)
    return 0;
  if (errno == ENOENT)
    return error_set (err, ENOENT, "%s has no backup of a disk '%s'", repo,
                      chain->disk);
  return error_set_errno (err, errno, "%s", chain->folder);
}

int
chain_open (const char *repo, int repo_dirfd, const char *disk, bool create,
            struct chain **ret, struct error *err)
{
  struct chain *chain;
  int r = chain_check_disk_name (disk, err);

  if (r < 0)
    return r;
  chain = calloc (1, sizeof *chain);
  if (!chain)
    return error_set_errno (err, ENOMEM, "%s", disk);
  chain->dirfd = -1;
  chain->disk = strdup (disk);
  if (asprintf (&chain->folder, "%s/%s", repo, disk) < 0)
    chain->folder = NULL;
  if (!chain->disk || !chain->folder)
    r = error_set_errno (err, ENOMEM, "%s", disk);
  if (r == 0)
    r = open_folder (chain, repo, repo_dirfd, create, err);
  if (r == 0)
    r = load_backups (chain, err);
  if (r < 0)
    chain_close (chain);
  else
    *ret = chain;
  return r;
}

void
chain_close (struct chain *chain)
{
  size_t i;

  if (!chain)
    return;
  for (i = 0; i < chain->len; i++)
    manifest_free (chain->ptr[i].manifest);
  free (chain->ptr);
  if (chain->dirfd >= 0)
    close (chain->dirfd);
  free (chain->disk);
  free (chain->folder);
  free (chain);
}

const struct backup *
chain_head (const struct chain *chain)
{
  return chain->len > 0 ? &chain->ptr[chain->len - 1] : NULL;
}

const struct backup *
chain_trunk (const struct chain *chain)
{
  size_t i = chain->len;

  /* Of one that cannot be read nobody knows. */
  while (i-- > 0)
    if (!chain->ptr[i].manifest || manifest_is_trunk (chain->ptr[i].manifest))
      return &chain->ptr[i];
  return NULL;
}

const struct backup *
chain_find_number (const struct chain *chain, unsigned number)
{
  size_t i;

  for (i = 0; i < chain->len; i++)
    if (chain->ptr[i].number == number)
      return &chain->ptr[i];
  return NULL;
}

const struct backup *
chain_backing (const struct chain *chain, const struct backup *b)
{
  if (!b->manifest || b->manifest->backing_number == 0)
    return NULL;
  return chain_find_number (chain, b->manifest->backing_number);
}

int
chain_check_usable (const struct chain *chain, const struct backup *b,
                    struct error *err)
{
  const struct backup *next;
  char name[BACKUP_NAME_MAX];
  struct stat st;

  for (;; b = next) {
    if (!b->manifest) {
      if (err)
        *err = b->error;
      return -b->error.errnum;
    }
    backup_name (b->number, b->is_full, ".qcow2", name);
    if (faccessat (chain->dirfd, name, R_OK, 0) < 0
        || fstatat (chain->dirfd, name, &st, 0) < 0)
      return error_set_errno (err, errno, "%s/%s", chain->folder, name);
    if ((uint64_t) st.st_size < b->manifest->image_bytes)
      return error_set (err, EBADMSG, "%s/%s has %ju bytes instead of %ju",
                        chain->folder, name, (uintmax_t) st.st_size,
                        (uintmax_t) b->manifest->image_bytes);
    if (b->is_full)
      return 0;
    /* Numbers fall along the chain (manifest_read), so this ends. */
    next = chain_backing (chain, b);
    if (!next)
      return error_set (err, ENOENT, "%s: backup %u is based on backup %u, "
                        "whose manifest is missing", chain->folder, b->number,
                        b->manifest->backing_number);
    if (next->manifest
        && !point_id_is_equal (&next->manifest->point, &b->manifest->parent))
      return error_set (err, EBADMSG, "%s: backup %u is based on another "
                        "backup %u than the one that is there",
                        chain->folder, b->number, next->number);
  }
}

static int
select_point (const struct chain *chain, const char *at,
              const struct backup **ret, struct error *err)
{
  size_t i, len = strlen (at);
  char s[POINT_ID_STRING_SIZE];

  *ret = NULL;
  for (i = 0; i < chain->len; i++) {
    if (!chain->ptr[i].manifest)
      continue;
    point_id_format (&chain->ptr[i].manifest->point, s);
    if (strncasecmp (s, at, len) != 0)
      continue;
    if (*ret)
      return error_set (err, EINVAL, "point '%s' is ambiguous: backups %u and "
                        "%u", at, (*ret)->number, chain->ptr[i].number);
    *ret = &chain->ptr[i];
  }
  if (!*ret)
    return error_set (err, ENOENT, "%s has no backup of point '%s'",
                      chain->folder, at);
  return 0;
}

/* "2025-01-02", "2025-01-02 03:04", "2025-01-02T03:04:05"; with a final "Z"
 * UTC, else local time.  A time that leaves something out means its end.
 */
static int
parse_time (const char *s, int64_t *ret)
{
  static const struct { const char *format; int64_t last; } formats[] = {
    { "%Y-%m-%dT%H:%M:%S", 0 }, { "%Y-%m-%d %H:%M:%S", 0 },
    { "%Y-%m-%dT%H:%M", 59 }, { "%Y-%m-%d %H:%M", 59 },
    { "%Y-%m-%d", 86399 },
  };
  size_t i;

  for (i = 0; i < sizeof formats / sizeof formats[0]; i++) {
    struct tm tm = { .tm_isdst = -1 };
    const char *end = strptime (s, formats[i].format, &tm);

    if (!end || (*end && strcmp (end, "Z") != 0))
      continue;
    *ret = (int64_t) (*end ? timegm (&tm) : mktime (&tm)) + formats[i].last;
    return 0;
  }
  return -EINVAL;
}

static int
select_time (const struct chain *chain, const char *at, int64_t t,
             const struct backup **ret, struct error *err)
{
  size_t i;

  *ret = NULL;
  for (i = 0; i < chain->len; i++)
    if (chain->ptr[i].manifest && chain->ptr[i].manifest->time <= t)
      *ret = &chain->ptr[i];
  if (!*ret)
    return error_set (err, ENOENT, "%s has no backup as old as %s",
                      chain->folder, at);
  return 0;
}

int
chain_select (const struct chain *chain, const char *at,
              const struct backup **ret, struct error *err)
{
  size_t len = at ? strlen (at) : 0;
  int64_t t;

  if (chain->len == 0)
    return error_set (err, ENOENT, "%s holds no backup", chain->folder);
  if (!at || strcmp (at, "latest") == 0) {
    *ret = chain_head (chain);
    return 0;
  }
  if (len > 0 && len <= 6 && strspn (at, "0123456789") == len) {
    *ret = chain_find_number (chain, (unsigned) strtoul (at, NULL, 10));
    if (!*ret)
      return error_set (err, ENOENT, "%s has no backup number %s",
                        chain->folder, at);
    return 0;
  }
  if (len >= 6 && len < POINT_ID_STRING_SIZE
      && strspn (at, "0123456789abcdefABCDEF") == len)
    return select_point (chain, at, ret, err);
  if (parse_time (at, &t) == 0)
    return select_time (chain, at, t, ret, err);
  return error_set (err, EINVAL, "'%s' names no backup: allowed are 'latest', "
                    "a number, a point (6 to 32 hexadecimal digits), or a "
                    "time like 2025-01-02, '2025-01-02 03:04:05' or "
                    "2025-01-02T03:04:05Z", at);
}

int
chain_check_base (const struct chain *chain, const struct point_id *base,
                  struct error *err)
{
  const struct backup *b = chain_trunk (chain);
  const struct backup *confirmed = NULL;
  char s[POINT_ID_STRING_SIZE];

  point_id_format (base, s);
  if (!b)
    return error_set (err, ESTALE, "the repository has no backup of disk '%s' "
                      "yet", chain->disk);
  for (; b && b->manifest; b = chain_backing (chain, b)) {
    if (point_id_is_equal (&b->manifest->point, base)) {
      if (!confirmed)
        return 0;
      return error_set (err, ESTALE, "the bitmap counts from point %s, but "
                        "backup %u is newer and was confirmed: the disk was "
                        "rolled back or copied", s, confirmed->number);
    }
    if (!confirmed && !b->is_pending)
      confirmed = b;
  }
  return error_set (err, ESTALE, "the bitmap counts from point %s, which is "
                    "not in this chain", s);
}

int
chain_open_image (const struct chain *chain, const struct backup *b,
                  bool is_alone, struct blk **ret, struct error *err)
{
  struct qcow2_open_options options = { .is_read_only = true };
  CLEANUP_FREE char *path = NULL;
  char name[BACKUP_NAME_MAX];
  struct blk *file;
  int r;

  backup_name (b->number, b->is_full, ".qcow2", name);
  if (asprintf (&path, "%s/%s", chain->folder, name) < 0) {
    path = NULL;
    return error_set_errno (err, ENOMEM, "%s", name);
  }
  r = blk_file_open (path, BLK_FILE_READ_ONLY | BLK_FILE_ANY_SIZE, &file,
                     err);
  if (r < 0)
    return r;
  options.allow_backing = !is_alone && !b->is_full;
  options.only_neighbours = true;
  options.ignore_backing = is_alone;
  options.filename = path;
  r = blk_qcow2_open (file, &options, ret, err);
  if (r < 0)
    error_prefix_file (err, chain->folder, name);
  return r;
}
