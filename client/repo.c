/* SPDX-License-Identifier: BSD-3-Clause */
/* The repository.  Main thread.
 *
 * I8: a backup appears only when all that it names is on stable storage:
 *   1 image and checksum file are complete and synced as ".partial" (pull.c)
 *   2 every manifest of the set is written and synced as ".json.partial"
 *   3 the images and checksum files get their names, the folders are synced
 *   4 the manifests get their names: the first of these renames commits the
 *     set, and whoever opens the repository after a crash in between does the
 *     others
 *   5 the folders are synced
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "files.h"
#include "journal.h"
#include "log.h"
#include "progress.h"
#include "repo.h"

#define REPO_FORMAT "tidemark repository"
#define REPO_VERSION 1
#define REPO_FILE "tidemark.json"
#define REPO_FILE_PARTIAL "tidemark.json.partial"
#define REPO_FILE_MAX 65536
#define LOCK_FILE "lock"

static int
parse_repo_file (struct repo *repo, const char *text, struct error *err)
{
  json_error_t jerr;
  json_t *o = json_loads (text, JSON_REJECT_DUPLICATES, &jerr);
  const char *format = json_string_value (json_object_get (o, "format"));
  const char *id = json_string_value (json_object_get (o, "id"));
  json_int_t version = json_integer_value (json_object_get (o, "version"));
  int r = 0;

  if (!format || strcmp (format, REPO_FORMAT) != 0)
    r = error_set (err, EBADMSG, "%s/" REPO_FILE ": not the description of a "
                   "repository", repo->path);
  else if (version != REPO_VERSION)
    r = error_set (err, ENOTSUP, "%s: a repository of format version %jd; this"
                   " program knows version %d only", repo->path,
                   (intmax_t) version, REPO_VERSION);
  else if (!id || point_id_parse (id, &repo->id) < 0)
    r = error_set (err, EBADMSG, "%s/" REPO_FILE ": \"id\" is missing or not "
                   "32 hexadecimal digits", repo->path);
  json_decref (o);
  return r;
}

/* -ENOENT without a message if there is no such file. */
static int
read_repo_file (struct repo *repo, struct error *err)
{
  CLEANUP_FREE char *text = NULL;
  int r = file_read_at (repo->dirfd, REPO_FILE, REPO_FILE_MAX, &text);

  if (r == -ENOENT)
    return r;
  if (r < 0)
    return error_set_errno (err, -r, "%s/" REPO_FILE, repo->path);
  return parse_repo_file (repo, text, err);
}

static bool
is_empty_folder (int dirfd)
{
  int fd = openat (dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *dir = fd >= 0 ? fdopendir (fd) : NULL;
  struct dirent *d;
  bool is_empty = dir != NULL;

  if (!dir && fd >= 0)
    close (fd);
  while (dir && (d = readdir (dir)) != NULL)
    if (strcmp (d->d_name, ".") != 0 && strcmp (d->d_name, "..") != 0
        && strcmp (d->d_name, "lost+found") != 0
        && strcmp (d->d_name, LOCK_FILE) != 0
        && strcmp (d->d_name, REPO_FILE_PARTIAL) != 0)
      is_empty = false;
  if (dir)
    closedir (dir);
  return is_empty;
}

static int
write_repo_file (struct repo *repo, struct error *err)
{
  char id[POINT_ID_STRING_SIZE], created[TIME_STRING_SIZE];
  CLEANUP_FREE char *text = NULL;
  json_t *o;
  int r = point_id_random (&repo->id);

  if (r < 0)
    return error_set_errno (err, -r, "random numbers");
  point_id_format (&repo->id, id);
  o = json_pack ("{s:s, s:i, s:s, s:s, s:s}", "format", REPO_FORMAT,
                 "version", REPO_VERSION, "id", id, "created",
                 time_format ((int64_t) time (NULL), created), "tool",
                 PACKAGE_STRING);
  text = o ? json_dumps (o, JSON_INDENT (2)) : NULL;
  json_decref (o);
  r = text ? file_write_at (repo->dirfd, REPO_FILE_PARTIAL, text, 0644)
    : -ENOMEM;
  if (r == 0
      && (renameat (repo->dirfd, REPO_FILE_PARTIAL, repo->dirfd,
                    REPO_FILE) < 0 || fsync (repo->dirfd) < 0))
    r = -errno;
  return r < 0 ? error_set_errno (err, -r, "%s/" REPO_FILE, repo->path) : 0;
}

static int
open_folder (struct repo *repo, bool create, struct error *err)
{
  if (create && mkdir (repo->path, 0777) < 0 && errno != EEXIST) {
    if (errno == ENOENT)
      return error_set (err, ENOENT, "%s: the folder that should hold the "
                        "repository does not exist", repo->path);
    return error_set_errno (err, errno, "%s", repo->path);
  }
  repo->dirfd = open (repo->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (repo->dirfd >= 0)
    return 0;
  if (errno == ENOENT)
    return error_set (err, ENOENT, "%s: there is no such repository",
                      repo->path);
  if (errno == ENOTDIR)
    return error_set (err, ENOTDIR, "%s: not a folder; a repository is one",
                      repo->path);
  return error_set_errno (err, errno, "%s", repo->path);
}

static int
take_lock (struct repo *repo, struct error *err)
{
  char holder[32] = "";
  ssize_t n;

  repo->lockfd = openat (repo->dirfd, LOCK_FILE, O_RDWR | O_CREAT | O_CLOEXEC,
                         0666);
  if (repo->lockfd < 0)
    return error_set_errno (err, errno, "%s/" LOCK_FILE, repo->path);
  if (flock (repo->lockfd, LOCK_EX | LOCK_NB) < 0) {
    if (errno != EWOULDBLOCK)
      return error_set_errno (err, errno, "%s/" LOCK_FILE, repo->path);
    n = pread (repo->lockfd, holder, sizeof holder - 1, 0);
    holder[n > 0 ? n : 0] = '\0';
    holder[strcspn (holder, "\n")] = '\0';
    return error_set (err, EBUSY, "%s: the repository is locked by another "
                      "tidemark%s%s", repo->path,
                      holder[0] ? ", process " : "", holder);
  }
  /* For the message above only. */
  n = snprintf (holder, sizeof holder, "%ld\n", (long) getpid ());
  if (ftruncate (repo->lockfd, 0) < 0
      || pwrite (repo->lockfd, holder, (size_t) n, 0) != n)
    log_debug ("%s/" LOCK_FILE ": cannot write the process id", repo->path);
  return 0;
}

static struct repo *
repo_new (const char *path, struct error *err)
{
  struct repo *repo = calloc (1, sizeof *repo);
  size_t len = strlen (path);

  /* "/backups/" and "/backups" are the same in messages. */
  while (len > 1 && path[len - 1] == '/')
    len--;
  if (repo)
    repo->path = strndup (path, len);
  if (!repo || !repo->path) {
    free (repo);
    error_set_errno (err, ENOMEM, "%s", path);
    return NULL;
  }
  repo->dirfd = repo->lockfd = -1;
  return repo;
}

int
repo_open (const char *path, struct repo **ret, struct error *err)
{
  struct repo *repo = repo_new (path, err);
  int r;

  if (!repo)
    return -ENOMEM;
  r = open_folder (repo, false, err);
  if (r == 0) {
    r = read_repo_file (repo, err);
    /* What is empty can become one. */
    if (r == -ENOENT)
      r = error_set (err, is_empty_folder (repo->dirfd) ? ENOENT : EEXIST,
                     "%s: not a repository (it has no " REPO_FILE ")",
                     repo->path);
  }
  if (r < 0)
    repo_close (repo);
  else
    *ret = repo;
  return r;
}

/* The folder is locked before the description is looked for, so that two first
 * backups do not both make one.
 */
static int
open_locked (struct repo *repo, struct error *err)
{
  int r = open_folder (repo, true, err);

  if (r < 0)
    return r;
  /* In this order: what fills an empty folder meanwhile is REPO_FILE. */
  if (!is_empty_folder (repo->dirfd)
      && faccessat (repo->dirfd, REPO_FILE, F_OK, 0) < 0)
    return error_set (err, EEXIST, "%s: not a repository (it has no "
                      REPO_FILE "), and not empty either", repo->path);
  r = take_lock (repo, err);
  if (r < 0)
    return r;
  r = read_repo_file (repo, err);
  if (r == -ENOENT) {
    r = write_repo_file (repo, err);
    if (r == 0)
      progress_say ("%s: new repository", repo->path);
  }
  return r;
}

static int recover (struct repo *repo, bool keeps, struct error *err);

int
repo_open_locked (const char *path, struct repo **ret, struct error *err)
{
  struct repo *repo = repo_new (path, err);
  int r;

  if (!repo)
    return -ENOMEM;
  r = open_locked (repo, err);
  if (r == 0)
    r = recover (repo, journal_has_run (repo->dirfd), err);
  if (r < 0)
    repo_close (repo);
  else
    *ret = repo;
  return r;
}

void
repo_close (struct repo *repo)
{
  if (!repo)
    return;
  if (repo->lockfd >= 0)
    close (repo->lockfd);
  if (repo->dirfd >= 0)
    close (repo->dirfd);
  free (repo->path);
  free (repo);
}

static int
compare_names (const void *a, const void *b)
{
  return strcmp (*(char *const *) a, *(char *const *) b);
}

void
repo_free_names (char **names, size_t nr)
{
  while (nr > 0)
    free (names[--nr]);
  free (names);
}

static bool
is_disk_folder (int dirfd, const char *name)
{
  struct stat st;

  return chain_check_disk_name (name, NULL) == 0
    && fstatat (dirfd, name, &st, 0) == 0 && S_ISDIR (st.st_mode)
    && strcmp (name, "lost+found") != 0;
}

static int
append_name (char ***names, size_t *nr, const char *name)
{
  char **p = realloc (*names, (*nr + 1) * sizeof *p);

  if (!p)
    return -ENOMEM;
  *names = p;
  p[*nr] = strdup (name);
  if (!p[*nr])
    return -ENOMEM;
  (*nr)++;
  return 0;
}

int
repo_disks (const struct repo *repo, char ***ret, size_t *ret_nr,
            struct error *err)
{
  int r = 0, fd = openat (repo->dirfd, ".",
                          O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *dir = fd >= 0 ? fdopendir (fd) : NULL;
  struct dirent *d;
  char **names = NULL;
  size_t nr = 0;

  if (!dir) {
    r = error_set_errno (err, errno, "%s", repo->path);
    if (fd >= 0)
      close (fd);
    return r;
  }
  while (r == 0 && (errno = 0, d = readdir (dir)) != NULL)
    if (is_disk_folder (repo->dirfd, d->d_name))
      r = append_name (&names, &nr, d->d_name);
  if (r == 0 && errno)
    r = -errno;
  closedir (dir);
  if (r < 0) {
    repo_free_names (names, nr);
    return error_set_errno (err, -r, "%s", repo->path);
  }
  if (nr > 0)
    qsort (names, nr, sizeof *names, compare_names);
  *ret = names;
  *ret_nr = nr;
  return 0;
}

static int
rename_suffix (int dirfd, const struct manifest *m, const char *from,
               const char *to)
{
  char a[BACKUP_NAME_MAX], b[BACKUP_NAME_MAX];

  backup_name (m->number, m->is_full, from, a);
  backup_name (m->number, m->is_full, to, b);
  return renameat (dirfd, a, dirfd, b) < 0 ? -errno : 0;
}

static bool
exists (int dirfd, unsigned number, bool is_full, const char *suffix)
{
  char name[BACKUP_NAME_MAX];

  backup_name (number, is_full, suffix, name);
  return faccessat (dirfd, name, F_OK, 0) == 0;
}

static int
remove_suffix (int dirfd, unsigned number, bool is_full, const char *suffix)
{
  char name[BACKUP_NAME_MAX];

  backup_name (number, is_full, suffix, name);
  return unlinkat (dirfd, name, 0) < 0 && errno != ENOENT ? -errno : 0;
}

/* Returns the first error. */
static int
remove_all (int dirfd, unsigned number, bool is_full)
{
  /* The manifest last: while it is there, the others are known to be
   * leftovers.
   */
  static const char *const suffixes[] = {
    ".qcow2.partial", ".sums.partial", ".qcow2", ".sums", ".pending",
    ".journal.new.partial", ".journal.partial", ".json.partial",
  };
  size_t i;
  int r = 0, e;

  for (i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
    e = remove_suffix (dirfd, number, is_full, suffixes[i]);
    if (r == 0)
      r = e;
  }
  return r;
}

/* Did another disk of the session commit?  Then this one has to as well. */
static bool
is_set_committed (struct repo *repo, const struct manifest *m)
{
  size_t i, j;
  struct chain *chain;
  bool found = false;

  for (i = 0; i < json_array_size (m->disks) && !found; i++) {
    const char *disk = json_string_value (json_array_get (m->disks, i));

    if (!disk || strcmp (disk, m->disk) == 0
        || chain_open (repo->path, repo->dirfd, disk, false, &chain,
                       NULL) < 0)
      continue;
    for (j = 0; j < chain->len; j++)
      if (chain->ptr[j].manifest
          && point_id_is_equal (&chain->ptr[j].manifest->session,
                                &m->session))
        found = true;
    chain_close (chain);
  }
  return found;
}

static void
remove_journal (int dirfd, unsigned number, bool is_full)
{
  remove_suffix (dirfd, number, is_full, ".journal.partial");
  remove_suffix (dirfd, number, is_full, ".journal.new.partial");
}

/* As it was before the set began to appear. */
static int
unprepare (int dirfd, unsigned number, bool is_full)
{
  const struct manifest m = { .number = number, .is_full = is_full };
  int r = 0;

  if (exists (dirfd, number, is_full, ".qcow2"))
    r = rename_suffix (dirfd, &m, ".qcow2", ".qcow2.partial");
  if (r == 0 && exists (dirfd, number, is_full, ".sums"))
    r = rename_suffix (dirfd, &m, ".sums", ".sums.partial");
  if (r == 0)
    r = remove_suffix (dirfd, number, is_full, ".pending");
  if (r == 0)
    r = remove_suffix (dirfd, number, is_full, ".json.partial");
  return r;
}

/* One number that has a ".partial" of any kind.  It has several, and the folder
 * may go on to list those that are gone: *said is the last that was removed.
 */
static int
recover_number (struct repo *repo, struct chain *chain, unsigned number,
                bool is_full, bool keeps, unsigned *said, struct error *err)
{
  char name[BACKUP_NAME_MAX];
  struct manifest *m = NULL;
  bool is_committed = false;
  int r = 0;

  backup_name (number, is_full, ".json.partial", name);
  if (exists (chain->dirfd, number, is_full, ".qcow2")
      && exists (chain->dirfd, number, is_full, ".sums")
      && manifest_read (chain->dirfd, chain->folder, name, &m, NULL) == 0)
    is_committed = is_set_committed (repo, m);
  if (is_committed) {
    r = rename_suffix (chain->dirfd, m, ".json.partial", ".json");
    if (r < 0)
      error_set_errno (err, -r, "%s/%s", chain->folder, name);
    else
      progress_say ("%s: completed backup %u, which a crash had cut off",
                    chain->folder, number);
    remove_journal (chain->dirfd, number, is_full);
  }
  else if (exists (chain->dirfd, number, is_full, ".json")) {
    /* The backup is there; a writer of another kind left something. */
    r = remove_suffix (chain->dirfd, number, is_full, ".qcow2.partial");
    remove_journal (chain->dirfd, number, is_full);
  }
  else if (keeps && exists (chain->dirfd, number, is_full,
                            ".journal.partial")) {
    r = unprepare (chain->dirfd, number, is_full);
    if (r < 0)
      error_set_errno (err, -r, "%s: unfinished backup %u", chain->folder,
                       number);
  }
  else {
    r = remove_all (chain->dirfd, number, is_full);
    if (r == 0 && *said != number)
      progress_say ("%s: removed the unfinished backup %u that an interrupted "
                    "run left", chain->folder, number);
    *said = number;
    if (r < 0)
      error_set_errno (err, -r, "%s: the unfinished backup %u cannot be "
                       "removed", chain->folder, number);
  }
  manifest_free (m);
  if (r == 0 && fsync (chain->dirfd) < 0)
    r = error_set_errno (err, errno, "%s", chain->folder);
  return r;
}

static int
recover_chain (struct repo *repo, const char *disk, bool keeps,
               struct error *err)
{
  struct chain *chain;
  struct dirent *d;
  DIR *dir;
  unsigned number, said = 0;
  const char *suffix;
  bool is_full;
  int fd, r;

  r = chain_open (repo->path, repo->dirfd, disk, false, &chain, err);
  if (r < 0)
    return r;
  fd = openat (chain->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  dir = fd >= 0 ? fdopendir (fd) : NULL;
  if (!dir) {
    r = error_set_errno (err, errno, "%s", chain->folder);
    if (fd >= 0)
      close (fd);
  }
  while (r == 0 && (d = readdir (dir)) != NULL)
    if (backup_name_parse (d->d_name, &number, &is_full, &suffix)
        && strstr (suffix, ".partial"))
      r = recover_number (repo, chain, number, is_full, keeps, &said, err);
  if (dir)
    closedir (dir);
  chain_close (chain);
  return r;
}

static int
recover (struct repo *repo, bool keeps, struct error *err)
{
  char **names;
  size_t nr, i;
  int r = repo_disks (repo, &names, &nr, err);

  if (r < 0)
    return r;
  for (i = 0; i < nr && r == 0; i++)
    r = recover_chain (repo, names[i], keeps, err);
  repo_free_names (names, nr);
  return r;
}

int
repo_clear (struct repo *repo, struct error *err)
{
  int r = recover (repo, false, err);

  if (r == 0)
    journal_remove_run (repo->dirfd);
  return r;
}

void
repo_discard (const struct repo_item *items, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++)
    remove_all (items[i].chain->dirfd, items[i].manifest->number,
                items[i].manifest->is_full);
}

/* Steps 2 and 3 for one item. */
static int
prepare_item (const struct repo_item *item, struct error *err)
{
  const struct manifest *m = item->manifest;
  int dirfd = item->chain->dirfd, r;
  char name[BACKUP_NAME_MAX];

  r = manifest_write_partial (dirfd, m, err);
  if (r < 0) {
    error_prefix (err, "%s", item->chain->folder);
    return r;
  }
  if (!item->is_acknowledged) {
    int fd;

    backup_name (m->number, m->is_full, ".pending", name);
    fd = openat (dirfd, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
      return error_set_errno (err, errno, "%s/%s", item->chain->folder, name);
    close (fd);
  }
  /* The manifest's partial name must be durable before these are. */
  if (fsync (dirfd) < 0)
    r = -errno;
  if (r == 0)
    r = rename_suffix (dirfd, m, ".qcow2.partial", ".qcow2");
  if (r == 0)
    r = rename_suffix (dirfd, m, ".sums.partial", ".sums");
  if (r == 0 && fsync (dirfd) < 0)
    r = -errno;
  if (r < 0)
    error_set_errno (err, -r, "%s: backup %u", item->chain->folder,
                     m->number);
  return r;
}

int
repo_commit (struct repo *repo, const struct repo_item *items, size_t nr,
             bool *ret_is_stored, struct error *err)
{
  size_t i;
  int r = 0, e;

  *ret_is_stored = false;
  for (i = 0; i < nr && r == 0; i++)
    r = prepare_item (&items[i], err);
  for (i = 0; i < nr && (r == 0 || *ret_is_stored); i++) {
    e = rename_suffix (items[i].chain->dirfd, items[i].manifest,
                       ".json.partial", ".json");
    if (e == 0)
      *ret_is_stored = true;
    else if (r == 0)
      r = error_set_errno (err, -e, "%s: manifest of backup %u",
                           items[i].chain->folder, items[i].manifest->number);
  }
  if (!*ret_is_stored) {
    repo_discard (items, nr);
    return r;
  }
  for (i = 0; i < nr; i++)
    remove_journal (items[i].chain->dirfd, items[i].manifest->number,
                    items[i].manifest->is_full);
  for (i = 0; i < nr; i++)
    if (fsync (items[i].chain->dirfd) < 0 && r == 0)
      r = error_set_errno (err, errno, "%s", items[i].chain->folder);
  return r;
}

void
repo_acknowledged (const struct repo_item *items, size_t nr)
{
  size_t i;

  for (i = 0; i < nr; i++)
    remove_suffix (items[i].chain->dirfd, items[i].manifest->number,
                   items[i].manifest->is_full, ".pending");
}
