/* SPDX-License-Identifier: BSD-3-Clause */
/* Claims on byte ranges, in a list: there are as many claims as requests in
 * flight, a few dozen, so that a search of the list is cheaper than keeping a
 * tree.
 *
 * Called by cbw.c from the threads of guests and of readers of views, each
 * time with the view's lock held.
 */
#include "config.h"

#include <assert.h>

#include "range.h"
#include "reqlist.h"

void
reqlist_init (struct reqlist *list)
{
  list->first = NULL;
  list->nr_waiting = 0;
  cond_init (&list->released);
}

void
reqlist_destroy (struct reqlist *list)
{
  assert (list->first == NULL && list->nr_waiting == 0);
  pthread_cond_destroy (&list->released);
}

void
reqlist_add (struct reqlist *list, struct req *req, uint64_t off,
             uint64_t len)
{
  assert (len > 0);
  req->off = off;
  req->len = len;
  req->prev = NULL;
  req->next = list->first;
  if (list->first)
    list->first->prev = req;
  list->first = req;
}

void
reqlist_remove (struct reqlist *list, struct req *req)
{
  if (req->prev)
    req->prev->next = req->next;
  else {
    assert (list->first == req);
    list->first = req->next;
  }
  if (req->next)
    req->next->prev = req->prev;
  req->next = req->prev = NULL;
  if (list->nr_waiting)
    pthread_cond_broadcast (&list->released);
}

const struct req *
reqlist_find (const struct reqlist *list, uint64_t off, uint64_t len)
{
  for (const struct req *req = list->first; req; req = req->next)
    if (range_overlaps (req->off, req->len, off, len))
      return req;
  return NULL;
}

uint64_t
reqlist_free_prefix (const struct reqlist *list, uint64_t off, uint64_t len)
{
  for (const struct req *req = list->first; req; req = req->next)
    if (range_overlaps (req->off, req->len, off, len))
      len = req->off > off ? req->off - off : 0;
  return len;
}

bool
reqlist_wait (struct reqlist *list, struct lock *lock, uint64_t off,
              uint64_t len)
{
  bool waited = false;

  while (reqlist_find (list, off, len)) {
    waited = true;
    list->nr_waiting++;
    lock_wait (lock, &list->released);
    list->nr_waiting--;
  }
  return waited;
}
