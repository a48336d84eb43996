/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands for push jobs in progress, and the jobs' events, in QEMU's shape.
 *
 * Handlers are called by the thread of a control connection, without locks;
 * qmp_job_event by any thread that changes a job, with the job manager's lock.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "cleanup.h"
#include "job.h"
#include "log.h"
#include "qmp.h"
#include "qmp-args.h"

/*---- Events ----*/

static json_t *
progress_to_json (const struct job_info *info)
{
  json_t *data = json_pack ("{sssssIsIsI}", "type", "backup",
                            "device", info->id,
                            "len", (json_int_t) info->total,
                            "offset", (json_int_t) info->current,
                            "speed", (json_int_t) info->speed);

  return data;
}

static const char *
action_name (enum job_action action)
{
  return action == JOB_ACTION_REPORT ? "report"
    : action == JOB_ACTION_IGNORE ? "ignore" : "stop";
}

void
qmp_job_event (struct qmp_server *q, const struct job_event *event)
{
  const struct job_info *info = event->info;
  const char *name = NULL;
  json_t *data = NULL;

  switch (event->type) {
  case JOB_EVENT_STATUS:
    name = "JOB_STATUS_CHANGE";
    data = json_pack ("{ssss}", "id", info->id,
                      "status", job_status_name (info->status));
    break;
  case JOB_EVENT_COMPLETED:
    name = "BLOCK_JOB_COMPLETED";
    data = progress_to_json (info);
    if (data && *info->error)
      json_object_set_new (data, "error", json_string (info->error));
    break;
  case JOB_EVENT_CANCELLED:
    name = "BLOCK_JOB_CANCELLED";
    data = progress_to_json (info);
    break;
  case JOB_EVENT_PENDING:
    name = "BLOCK_JOB_PENDING";
    data = json_pack ("{ssss}", "type", "backup", "id", info->id);
    break;
  case JOB_EVENT_ERROR:
    name = "BLOCK_JOB_ERROR";
    data = json_pack ("{ssssss}", "device", info->id,
                      "operation", event->is_read ? "read" : "write",
                      "action", action_name (event->action));
    break;
  }
  if (data)
    qmp_event (q, name, data);
  else
    log_warning ("control: no memory for event %s", name);
  json_decref (data);
}

/*---- Commands ----*/

/* is_block: the old commands, which call a job "device". */
static int
run (struct qmp_call *call, const struct qmp_arg *table, bool is_block,
     struct job_command *command, struct error *err)
{
  int r;

  if (qmp_args_check (call->args, NULL, table, err) < 0)
    return -EINVAL;
  command->id = qmp_args_string (call->args, table[0].name, NULL);
  command->is_forced = is_block
    ? qmp_args_bool (call->args, "force", false) : true;
  command->speed = qmp_args_int (call->args, "speed", 0);
  r = job_execute (service_jobs (call->service), command, err);
  if (r != -ENOENT)
    return r;
  if (!is_block)
    return error_set (err, ENOENT, "Job not found");
  call->error_class = "DeviceNotActive";
  return error_set (err, ENOENT, "Block job '%s' not found", command->id);
}

static int
run_block (struct qmp_call *call, enum job_verb verb, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "device", QMP_STRING, true, NULL },
    { NULL }
  };
  struct job_command command = { .verb = verb };

  return run (call, table, true, &command, err);
}

/* block-job-finalize and -dismiss call it "id", but are of the old ones. */
static int
run_by_id (struct qmp_call *call, enum job_verb verb, bool is_block,
           struct error *err)
{
  static const struct qmp_arg table[] = {
    { "id", QMP_STRING, true, NULL },
    { NULL }
  };
  struct job_command command = { .verb = verb };

  return run (call, table, is_block, &command, err);
}

static int
block_job_cancel (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "device", QMP_STRING, true, NULL },
    { "force", QMP_BOOL, false, NULL },
    { NULL }
  };
  struct job_command command = { .verb = JOB_VERB_CANCEL };

  return run (call, table, true, &command, err);
}

static int
block_job_set_speed (struct qmp_call *call, json_t **ret, struct error *err)
{
  static const struct qmp_arg table[] = {
    { "device", QMP_STRING, true, NULL },
    { "speed", QMP_INT64, true, NULL },
    { NULL }
  };
  struct job_command command = { .verb = JOB_VERB_SET_SPEED };

  return run (call, table, true, &command, err);
}

static int
block_job_pause (struct qmp_call *call, json_t **ret, struct error *err)
{
  return run_block (call, JOB_VERB_PAUSE, err);
}

static int
block_job_resume (struct qmp_call *call, json_t **ret, struct error *err)
{
  return run_block (call, JOB_VERB_RESUME, err);
}

static int
block_job_complete (struct qmp_call *call, json_t **ret, struct error *err)
{
  return run_block (call, JOB_VERB_COMPLETE, err);
}

static int
block_job_finalize (struct qmp_call *call, json_t **ret, struct error *err)
{
  return run_by_id (call, JOB_VERB_FINALIZE, true, err);
}

static int
block_job_dismiss (struct qmp_call *call, json_t **ret, struct error *err)
{
  return run_by_id (call, JOB_VERB_DISMISS, true, err);
}

static int
job_pause (struct qmp_call *call, json_t **ret, struct error *err)
{
  return run_by_id (call, JOB_VERB_PAUSE, false, err);
}

static int
job_resume (struct qmp_call *call, json_t **ret, struct error *err)
{
  return run_by_id (call, JOB_VERB_RESUME, false, err);
}

static int
job_cancel (struct qmp_call *call, json_t **ret, struct error *err)
{
  return run_by_id (call, JOB_VERB_CANCEL, false, err);
}

static int
job_complete (struct qmp_call *call, json_t **ret, struct error *err)
{
  return run_by_id (call, JOB_VERB_COMPLETE, false, err);
}

static int
job_finalize (struct qmp_call *call, json_t **ret, struct error *err)
{
  return run_by_id (call, JOB_VERB_FINALIZE, false, err);
}

static int
job_dismiss (struct qmp_call *call, json_t **ret, struct error *err)
{
  return run_by_id (call, JOB_VERB_DISMISS, false, err);
}

/*---- Queries ----*/

static const char *
io_status_name (enum job_io_status status)
{
  return status == JOB_IO_OK ? "ok"
    : status == JOB_IO_NOSPACE ? "nospace" : "failed";
}

static json_t *
job_to_json (const struct job_info *info)
{
  return json_pack ("{sssssssIsI}", "id", info->id, "type", "backup",
                    "status", job_status_name (info->status),
                    "current-progress", (json_int_t) info->current,
                    "total-progress", (json_int_t) info->total);
}

/* busy is false whenever QEMU can be asked, so here too. */
static json_t *
block_job_to_json (const struct job_info *info)
{
  return json_pack ("{ssss" "sIsIsI" "sbsb" "ssss" "sbsbsb}", "type", "backup",
                    "device", info->id,
                    "len", (json_int_t) info->total,
                    "offset", (json_int_t) info->current,
                    "speed", (json_int_t) info->speed,
                    "busy", 0, "paused", (int) info->is_paused,
                    "io-status", io_status_name (info->io_status),
                    "status", job_status_name (info->status),
                    "ready", 0,
                    "auto-finalize", (int) info->auto_finalize,
                    "auto-dismiss", (int) info->auto_dismiss);
}

static int
query (struct qmp_call *call, json_t *(*to_json) (const struct job_info *info),
       json_t **ret, struct error *err)
{
  static const struct qmp_arg no_args[] = { { NULL } };
  CLEANUP_FREE struct job_info *infos = NULL;
  json_t *array, *o;
  size_t nr, i;
  int r = 0;

  if (qmp_args_check (call->args, NULL, no_args, err) < 0)
    return -EINVAL;
  if (job_list (service_jobs (call->service), &infos, &nr) < 0)
    return error_set_errno (err, ENOMEM, "reply");
  array = json_array ();
  for (i = 0; i < nr; i++) {
    o = to_json (&infos[i]);
    if (o && *infos[i].error)
      r |= json_object_set_new (o, "error", json_string (infos[i].error));
    r |= json_array_append_new (array, o);
  }
  if (array == NULL || r) {
    json_decref (array);
    return error_set_errno (err, ENOMEM, "reply");
  }
  *ret = array;
  return 0;
}

static int
query_jobs (struct qmp_call *call, json_t **ret, struct error *err)
{
  return query (call, job_to_json, ret, err);
}

static int
query_block_jobs (struct qmp_call *call, json_t **ret, struct error *err)
{
  return query (call, block_job_to_json, ret, err);
}

const struct qmp_command qmp_job_commands[] = {
  { "block-job-cancel", block_job_cancel },
  { "block-job-complete", block_job_complete },
  { "block-job-dismiss", block_job_dismiss },
  { "block-job-finalize", block_job_finalize },
  { "block-job-pause", block_job_pause },
  { "block-job-resume", block_job_resume },
  { "block-job-set-speed", block_job_set_speed },
  { "job-cancel", job_cancel },
  { "job-complete", job_complete },
  { "job-dismiss", job_dismiss },
  { "job-finalize", job_finalize },
  { "job-pause", job_pause },
  { "job-resume", job_resume },
  { "query-block-jobs", query_block_jobs },
  { "query-jobs", query_jobs },
  { NULL }
};
