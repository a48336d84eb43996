/* SPDX-License-Identifier: BSD-3-Clause */
/* The server of the oracle test, and the network in front of it: both can be
 * hit at any moment.
 *
 * Backups come through bench/relay, which cuts their connections; the guests
 * are connected to the server itself.  When that is killed, a guest connects to
 * the next one and sends again what was not answered; only then do backups get
 * through, so that no point is taken of a write that the kill has torn.
 */
#ifndef TIDEMARK_TESTS_WORLD_H
#define TIDEMARK_TESTS_WORLD_H

#include <stdbool.h>

struct world_options {
  const char *dir;              /* live.sock, ctl.sock, backup.sock of the
                                   server; ctl-relay.sock is for clients */
  const char *relay;            /* the program */
  char *const *server;          /* its command */
  unsigned nr_guests;
};

/* Start; exits on an error, as all of these do. */
void world_start (const struct world_options *options);
/* The server's exit status after SIGTERM, as waitpid has it. */
int world_stop (void);
/* The test has failed: leave no server behind.  Any thread. */
void world_abandon (void);

/* Any thread. */

/* Cut all backups' connections, with a proper end or with a reset. */
void world_cut (bool with_reset);
/* kill -9, and start it again. */
void world_kill_server (void);
/* How often either has been done or begun. */
unsigned world_nr_hits (void);
/* The same, but first what has been begun is brought to its end: then whoever
 * has failed because of it finds more than when he began.
 */
unsigned world_nr_hits_done (void);

/* A guest whose request has failed: true if that is because the server was
 * killed after *epoch (0 at first), and is there again: *epoch is then of the
 * new one.
 */
bool world_wait_restarted (unsigned *epoch);
/* All that the guest had sent to servers before this epoch has been answered.
 */
void world_caught_up (unsigned epoch);

#endif /* TIDEMARK_TESTS_WORLD_H */
