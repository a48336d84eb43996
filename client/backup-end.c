/* SPDX-License-Identifier: BSD-3-Clause */
/* Ending a backup's session.  Main thread. */
#include "config.h"

#include <time.h>

#include "backup.h"
#include "interrupt.h"
#include "range.h"

/* Names of the disks whose bitmaps stay as they are. */
static json_t *
kept_bitmaps (const struct backup_run *run)
{
  json_t *a = json_array ();
  size_t i;

  for (i = 0; i < run->nr_disks; i++)
    if (run->disks[i].is_failed
        || (run->disks[i].is_aside && run->disks[i].is_incremental))
      json_array_append_new (a, json_string (run->disks[i].name));
  return a;
}

static int
call_end (struct backup_run *run, bool is_success, bool *ret_is_refused,
          struct error *err)
{
  struct control_call call = { .command = "backup-end", .is_final = true };
  json_t *kept = kept_bitmaps (run);
  int r;

  call.args = json_pack ("{s:s, s:b}", "id", run->session, "success",
                         is_success);
  if (call.args && is_success && json_array_size (kept) > 0)
    json_object_set (call.args, "keep", kept);
  json_decref (kept);
  r = control_call (run->control, &call, NULL, err);
  *ret_is_refused = call.error_class[0] != '\0';
  return r;
}

/* The end of a backup that is stored is worth some attempts: if the answer was
 * lost and not the request, the server says yes once more.
 */
int
backup_end_session (struct backup_run *run, bool is_success,
                    struct error *err)
{
  const time_t end = time (NULL) + (time_t) run->retry;
  int delay_ms = 100;
  bool is_refused;
  int r;

  if (!run->control || !run->session[0])
    return 0;
  control_keepalive_stop (run->control);
  r = call_end (run, is_success, &is_refused, err);
  while (r < 0 && !is_refused && is_success && time (NULL) < end
         && !interrupt_is_set ()) {
    interrupt_sleep (delay_ms);
    delay_ms = MIN (delay_ms * 2 + 1000, 5000);
    r = call_end (run, is_success, &is_refused, err);
  }
  run->session[0] = '\0';
  return r;
}
