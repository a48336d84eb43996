/* SPDX-License-Identifier: BSD-3-Clause */
/* An NBD server that lies (nbd: doc/proto.md).  It trusts its client, which
 * is the one under test.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "byteorder.h"
#include "fake-nbd.h"

#define BUFFER_SIZE (FAKE_NBD_SIZE + 65536)
#define MAX_CONTEXTS 8

struct fake_nbd {
  enum fake_nbd_lie lie;
  int listen_fd;
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  int fd;                       /* of the connection; -1 = none */
  bool has_request, is_stopping;
  uint8_t *buf;
  unsigned nr_contexts;
  uint8_t held[FAKE_NBD_GROUP][28];     /* requests that wait for more */
  unsigned nr_held;
};

static bool
read_full (int fd, void *buf, size_t len)
{
  return len == 0 || recv (fd, buf, len, MSG_WAITALL) == (ssize_t) len;
}

static bool
write_full (int fd, const void *buf, size_t len)
{
  return send (fd, buf, len, MSG_NOSIGNAL) == (ssize_t) len;
}

static bool
option_reply (int fd, uint32_t option, uint32_t type, const void *data,
              uint32_t len)
{
  uint8_t h[20];

  store_be64 (h, UINT64_C (0x3e889045565a9));
  store_be32 (h + 8, option);
  store_be32 (h + 12, type);
  store_be32 (h + 16, len);
  return write_full (fd, h, sizeof h) && write_full (fd, data, len);
}

/* Grant every context asked for: name length, name, count, queries. */
static bool
set_meta_context (struct fake_nbd *f, int fd, const uint8_t *p)
{
  uint32_t i, n;

  p += 4 + load_be32 (p);
  n = load_be32 (p);
  p += 4;
  assert (n <= MAX_CONTEXTS);
  for (i = 0; i < n; i++) {
    uint8_t reply[512];
    uint32_t len = load_be32 (p);

    store_be32 (reply, i + 1);
    memcpy (reply + 4, p + 4, len);
    if (!option_reply (fd, 10, 4, reply, 4 + len))
      return false;
    p += 4 + len;
  }
  f->nr_contexts = n;
  return option_reply (fd, 10, 1, NULL, 0);
}

static bool
go (struct fake_nbd *f, int fd)
{
  uint8_t info[12], sizes[14];
  uint16_t flags = 1 | 4;       /* HAS_FLAGS, SEND_FLUSH */

  if (f->lie == FAKE_ONE_CLIENT)
    flags |= 1 << 8;            /* CAN_MULTI_CONN */
  store_be16 (info, 0);
  store_be64 (info + 2, FAKE_NBD_SIZE + (f->lie == FAKE_ODD_SIZE ? 512 : 0));
  store_be16 (info + 10, flags);
  store_be16 (sizes, 3);
  store_be32 (sizes + 2, f->lie == FAKE_ODD_SIZE ? 4096 : 1);
  store_be32 (sizes + 6, 4096);
  store_be32 (sizes + 10, 1 << 20);
  return option_reply (fd, 7, 3, info, sizeof info) &&
         option_reply (fd, 7, 3, sizes, sizeof sizes) &&
         option_reply (fd, 7, 1, NULL, 0);
}

static void
note_request (struct fake_nbd *f)
{
  pthread_mutex_lock (&f->lock);
  f->has_request = true;
  pthread_cond_broadcast (&f->changed);
  pthread_mutex_unlock (&f->lock);
}

/* True once the client has gone on to transmission. */
static bool
handshake (struct fake_nbd *f, int fd)
{
  uint8_t h[18];

  if (f->lie == FAKE_SILENT_GREETING) {
    note_request (f);
    return read_full (fd, h, 1) && false;
  }
  memcpy (h, "NBDMAGICIHAVEOPT", 16);
  store_be16 (h + 16, 3);
  if (!write_full (fd, h, 18) || !read_full (fd, h, 4))
    return false;
  for (;;) {
    uint32_t option, len;
    bool ok;

    if (!read_full (fd, h, 16))
      return false;
    option = load_be32 (h + 8);
    len = load_be32 (h + 12);
    assert (len < BUFFER_SIZE);
    if (!read_full (fd, f->buf, len))
      return false;
    switch (option) {
    case 7:
      return go (f, fd);
    case 8:
      ok = option_reply (fd, option, 1, NULL, 0);
      break;
    case 9:
      ok = f->lie == FAKE_SILENT_LIST
        || option_reply (fd, option, UINT32_C (0x80000001), NULL, 0);
      if (f->lie == FAKE_SILENT_LIST)
        note_request (f);
      break;
    case 10:
      ok = set_meta_context (f, fd, f->buf);
      break;
    default:
      ok = option_reply (fd, option, UINT32_C (0x80000001), NULL, 0);
    }
    if (!ok)
      return false;
  }
}

static bool
chunk (struct fake_nbd *f, int fd, const uint8_t *request, bool is_done,
       uint16_t type, const void *data, uint32_t len)
{
  uint8_t h[20];

  store_be32 (h, f->lie == FAKE_BAD_MAGIC ? 0xbad : 0x668e33ef);
  store_be16 (h + 4, is_done);
  store_be16 (h + 6, type);
  memcpy (h + 8, request + 8, 8);
  store_be32 (h + 16, len);
  return write_full (fd, h, sizeof h) && write_full (fd, data, len);
}

static bool
reply_read (struct fake_nbd *f, int fd, const uint8_t *request, uint64_t off,
            uint32_t len)
{
  uint8_t *data = f->buf;

  if (f->lie == FAKE_SHORT_READ)
    len /= 2;
  store_be64 (data, off);
  memset (data + 8, 0x55, len);
  return chunk (f, fd, request, true, 1, data, 8 + len);
}

static bool
reply_status (struct fake_nbd *f, int fd, const uint8_t *request, uint64_t off,
              uint32_t len)
{
  unsigned i, n = f->nr_contexts;

  if (f->lie == FAKE_NO_EXTENTS)
    n = 0;
  else if (f->lie == FAKE_MISSING_CONTEXT)
    n--;
  else if (f->lie == FAKE_DUPLICATE_CONTEXT)
    n++;
  for (i = 0; i < n; i++) {
    uint8_t data[20];

    store_be32 (data, i % f->nr_contexts + 1);
    store_be32 (data + 4, f->lie == FAKE_ZERO_LENGTH ? 0 : 4096);
    store_be32 (data + 8, 0);
    store_be32 (data + 12, f->lie == FAKE_BEYOND_END ?
                (uint32_t) (FAKE_NBD_SIZE - off) + 1 : len - 4096);
    store_be32 (data + 16, 1);
    if (!chunk (f, fd, request, false, 5, data, sizeof data))
      return false;
  }
  return chunk (f, fd, request, true, 0, NULL, 0);
}

/* When there are enough of them, all together. */
static bool
reply_status_later (struct fake_nbd *f, int fd, const uint8_t *request)
{
  const uint8_t error[6] = { 0, 0, 0, 5 };      /* EIO, no message */
  bool ok = true;

  memcpy (f->held[f->nr_held++], request, 28);
  if (f->nr_held < FAKE_NBD_GROUP)
    return true;
  while (ok && f->nr_held > 0) {
    const uint8_t *r = f->held[--f->nr_held];
    uint64_t off = load_be64 (r + 16);

    if (f->lie == FAKE_FAILED_STATUS && off >= FAKE_NBD_SIZE / 2)
      ok = chunk (f, fd, r, true, 0x8001, error, sizeof error);
    else
      ok = reply_status (f, fd, r, off, load_be32 (r + 24));
  }
  return ok;
}

static void
serve (struct fake_nbd *f, int fd)
{
  uint8_t request[28];
  bool ok = handshake (f, fd);

  while (ok && read_full (fd, request, sizeof request)) {
    uint16_t type = load_be16 (request + 6);
    uint64_t off = load_be64 (request + 16);
    uint32_t len = load_be32 (request + 24);

    note_request (f);
    if (f->lie == FAKE_CLOSE || type == 2)
      return;
    assert (len <= FAKE_NBD_SIZE);
    if (type == 1 && !read_full (fd, f->buf, len))
      return;
    if (f->lie == FAKE_SILENT || (f->lie == FAKE_SILENT_READS && type == 0))
      continue;
    if (type == 0)
      ok = reply_read (f, fd, request, off, len);
    else if (type == 7 && f->lie >= FAKE_LAST_FIRST)
      ok = reply_status_later (f, fd, request);
    else if (type == 7)
      ok = reply_status (f, fd, request, off, len);
    else
      ok = chunk (f, fd, request, true, 0, NULL, 0);
  }
}

static void *
run (void *opaque)
{
  struct fake_nbd *f = opaque;

  for (;;) {
    int fd = accept (f->listen_fd, NULL, NULL);
    bool is_stopping;

    if (fd < 0)
      return NULL;
    pthread_mutex_lock (&f->lock);
    f->fd = fd;
    is_stopping = f->is_stopping;
    pthread_mutex_unlock (&f->lock);
    if (!is_stopping)
      serve (f, fd);
    pthread_mutex_lock (&f->lock);
    f->fd = -1;
    pthread_mutex_unlock (&f->lock);
    close (fd);
  }
}

struct fake_nbd *
fake_nbd_start (const char *socket_path, enum fake_nbd_lie lie)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  struct fake_nbd *f = calloc (1, sizeof *f);

  assert (f);
  f->lie = lie;
  f->fd = -1;
  f->buf = malloc (BUFFER_SIZE);
  assert (f->buf);
  pthread_mutex_init (&f->lock, NULL);
  pthread_cond_init (&f->changed, NULL);
  snprintf (addr.sun_path, sizeof addr.sun_path, "%s", socket_path);
  f->listen_fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  assert (f->listen_fd >= 0);
  unlink (socket_path);
  if (bind (f->listen_fd, (struct sockaddr *) &addr, sizeof addr) < 0 ||
      listen (f->listen_fd, 16) < 0 ||
      pthread_create (&f->thread, NULL, run, f) != 0)
    abort ();
  return f;
}

void
fake_nbd_hang_up (struct fake_nbd *f)
{
  pthread_mutex_lock (&f->lock);
  if (f->fd >= 0)
    shutdown (f->fd, SHUT_RDWR);
  pthread_mutex_unlock (&f->lock);
}

void
fake_nbd_wait_request (struct fake_nbd *f)
{
  pthread_mutex_lock (&f->lock);
  while (!f->has_request)
    pthread_cond_wait (&f->changed, &f->lock);
  pthread_mutex_unlock (&f->lock);
}

void
fake_nbd_stop (struct fake_nbd *f)
{
  pthread_mutex_lock (&f->lock);
  f->is_stopping = true;
  pthread_mutex_unlock (&f->lock);
  shutdown (f->listen_fd, SHUT_RDWR);
  fake_nbd_hang_up (f);
  pthread_join (f->thread, NULL);
  close (f->listen_fd);
  pthread_mutex_destroy (&f->lock);
  pthread_cond_destroy (&f->changed);
  free (f->buf);
  free (f);
}
