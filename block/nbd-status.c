/* SPDX-License-Identifier: BSD-3-Clause */
/* Block status in 64 or 32 bits, see nbd-status.h.  From 1.18 on libnbd asks
 * every server for extended headers by itself, and then has all entries in 64
 * bits, whether the server has granted them or not.
 */
#include "config.h"

#include "nbd-blk.h"
#include "nbd-status.h"
#include "range.h"

#ifdef LIBNBD_HAVE_NBD_AIO_BLOCK_STATUS_64

struct nbd_status_entry
nbd_status_entry (const struct nbd_status *status, size_t i)
{
  const nbd_extent *entry = (const nbd_extent *) status->entries + i;

  return (struct nbd_status_entry) { entry->length, entry->flags };
}

uint64_t
nbd_status_max_length (struct nbd_handle *h)
{
  return nbd_get_extended_headers_negotiated (h) == 1 ? RANGE_MAX_SIZE
    : NBD_MAX_LENGTH;
}

static int
arrived (void *opaque, const char *context, uint64_t off, nbd_extent *entries,
         size_t nr_entries, int *error)
{
  struct nbd_status_sink *sink = opaque;

  sink->arrived (sink->opaque, &(struct nbd_status) {
    .context = context, .off = off, .entries = entries,
    .nr_entries = nr_entries,
  });
  return 0;
}

int64_t
nbd_status_issue (struct nbd_handle *h, uint64_t len, uint64_t off,
                  struct nbd_status_sink *sink,
                  nbd_completion_callback completion, uint32_t flags)
{
  return nbd_aio_block_status_64 (h, len, off, (nbd_extent64_callback) {
    .callback = arrived, .user_data = sink }, completion, flags);
}

#else /* pairs of length and flags */

struct nbd_status_entry
nbd_status_entry (const struct nbd_status *status, size_t i)
{
  const uint32_t *entry = (const uint32_t *) status->entries + 2 * i;

  return (struct nbd_status_entry) { entry[0], entry[1] };
}

uint64_t
nbd_status_max_length (struct nbd_handle *h)
{
  return NBD_MAX_LENGTH;
}

static int
arrived (void *opaque, const char *context, uint64_t off, uint32_t *entries,
         size_t nr_numbers, int *error)
{
  struct nbd_status_sink *sink = opaque;

  sink->arrived (sink->opaque, &(struct nbd_status) {
    .context = context, .off = off, .entries = entries,
    .nr_entries = nr_numbers / 2,
  });
  return 0;
}

int64_t
nbd_status_issue (struct nbd_handle *h, uint64_t len, uint64_t off,
                  struct nbd_status_sink *sink,
                  nbd_completion_callback completion, uint32_t flags)
{
  return nbd_aio_block_status (h, len, off, (nbd_extent_callback) {
    .callback = arrived, .user_data = sink }, completion, flags);
}

#endif
