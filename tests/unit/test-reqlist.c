/* SPDX-License-Identifier: BSD-3-Clause */
/* Claims on ranges, against an array of bytes that are claimed or not. */
#include "config.h"

#include "disk-util.h"

#define SIZE 64
#define NR 12

static void
check_against (const struct reqlist *list, const int *claimed)
{
  for (uint64_t off = 0; off < SIZE; off++)
    for (uint64_t len = 1; len <= SIZE - off; len++) {
      uint64_t free_len = 0;
      const struct req *req = reqlist_find (list, off, len);

      while (free_len < len && !claimed[off + free_len])
        free_len++;
      assert_int_equal (reqlist_free_prefix (list, off, len), free_len);
      assert_int_equal (req != NULL, free_len < len);
      if (req)
        assert_true (range_overlaps (req->off, req->len, off, len));
    }
}

static void
test_model (void **state)
{
  uint64_t seed = test_seed ();
  struct reqlist list;
  struct req reqs[NR];
  bool used[NR] = { false };
  int claimed[SIZE] = { 0 };

  reqlist_init (&list);
  for (int step = 0; step < 300; step++) {
    int i = (int) (rnd (&seed) % NR);

    if (!used[i]) {
      uint64_t off = rnd (&seed) % SIZE;

      reqlist_add (&list, &reqs[i], off, 1 + rnd (&seed) % (SIZE - off));
    }
    else
      reqlist_remove (&list, &reqs[i]);
    for (uint64_t k = 0; k < SIZE; k++)
      if (range_overlaps (reqs[i].off, reqs[i].len, k, 1))
        claimed[k] += used[i] ? -1 : 1;
    used[i] = !used[i];
    check_against (&list, claimed);
  }
  for (int i = 0; i < NR; i++)
    if (used[i])
      reqlist_remove (&list, &reqs[i]);
  reqlist_destroy (&list);
}

static void
test_limits (void **state)
{
  struct reqlist list;
  struct req req;

  reqlist_init (&list);
  reqlist_add (&list, &req, RANGE_MAX_SIZE - 1, 1);
  assert_null (reqlist_find (&list, 0, RANGE_MAX_SIZE - 1));
  assert_non_null (reqlist_find (&list, 0, RANGE_MAX_SIZE));
  assert_null (reqlist_find (&list, RANGE_MAX_SIZE - 1, 0));
  assert_int_equal (reqlist_free_prefix (&list, 0, RANGE_MAX_SIZE),
                    RANGE_MAX_SIZE - 1);
  reqlist_remove (&list, &req);
  reqlist_destroy (&list);
}

struct waiter {
  struct reqlist *list;
  struct lock *lock;
  uint64_t off, len;
  bool waited;
  _Atomic bool is_done;
  pthread_t thread;
};

static void *
wait_for_range (void *arg)
{
  struct waiter *w = arg;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (w->lock);
  w->waited = reqlist_wait (w->list, w->lock, w->off, w->len);
  assert_null (reqlist_find (w->list, w->off, w->len));
  atomic_store (&w->is_done, true);
  return NULL;
}

static unsigned
nr_waiting (struct reqlist *list, struct lock *lock)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (lock);
  return list->nr_waiting;
}

static void
test_wait (void **state)
{
  struct reqlist list;
  struct lock lock;
  struct req a, b;
  struct waiter over_both = { .list = &list, .lock = &lock, .len = 20 };
  struct waiter beside = { .list = &list, .lock = &lock, .off = 20,
                           .len = 5 };

  lock_init (&lock, LOCK_RANK_LEAF);
  reqlist_init (&list);
  lock_acquire (&lock);
  reqlist_add (&list, &a, 0, 10);
  reqlist_add (&list, &b, 10, 10);
  lock_release (&lock);

  pthread_create (&over_both.thread, NULL, wait_for_range, &over_both);
  pthread_create (&beside.thread, NULL, wait_for_range, &beside);
  pthread_join (beside.thread, NULL);
  assert_false (beside.waited);
  WAIT_FOR (nr_waiting (&list, &lock) == 1);

  lock_acquire (&lock);
  reqlist_remove (&list, &a);
  lock_release (&lock);
  WAIT_FOR (nr_waiting (&list, &lock) == 1);
  assert_false (over_both.is_done);

  lock_acquire (&lock);
  reqlist_remove (&list, &b);
  lock_release (&lock);
  pthread_join (over_both.thread, NULL);
  assert_true (over_both.waited);
  reqlist_destroy (&list);
  lock_destroy (&lock);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_model),
    cmocka_unit_test (test_limits),
    cmocka_unit_test (test_wait),
  };

  limit_test_time ();
  return cmocka_run_group_tests (tests, NULL, NULL);
}
