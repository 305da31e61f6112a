-- The data model of the ledger, and functions that the scripts share. `_transitions.lua` has more of them. Each script is
-- loaded with the check below and those functions that it uses.
--
-- <b> is a batch, <m> a model alias, <w> a worker, <i> the index of a job, <p> a part (PART jobs), <c> a chunk (CHUNK
-- jobs).
-- A job is named "<b>/<i>", a part "<b>/<p>". Times are milliseconds of Redis TIME; no caller's clock is used.
-- Names in capitals are constants of latentfarm/ledger/constants.py.
-- "Removed by" names the scripts that remove a key or its members.
-- Every key begins with "{lf}:", so that a cluster keeps all of them in one slot. Each script declares one, schema.
--
-- key                  type    meaning                                                     removed by
-- schema               string  version of this data model; every script refuses another    delete_batch (last batch)
--                              Also stored as lf:schema, which versions up to schema 3 read
-- batches              zset    all batches but interactive ones, by creation time           delete_batch
-- interactive          zset    interactive batches, by creation time: thousands a day, so   delete_batch
--                              that what lists batches must not read them
-- expiring             zset    batches that are not kept for ever, by the time from which   delete_batch
--                              they are deleted; a claim delays it
-- deletions            zset    batches that are being deleted, by the time from which        delete_batch,
--                              another process may continue; a claim delays it              deletion_claim
-- events               stream  changes of batches and workers, for servers: event, batch,   add_event, beyond
--                              model, account, worker                                       MAX_EVENTS
-- active:<m>           set     batches of a model whose state is opening or open           cancel, mark_deleting,
--                                                                                          completion
-- runnable:<m>         zset    batches of a model with jobs to lease now, in the order of  place
--                              `rank`; without those of the next key
-- alone:<m>            zset    the same for batches with a job that runs alone             place
-- urgent:<m>           zset    the urgent batches of runnable:<m>, in the same order       place
-- urgent_alone:<m>     zset    the urgent batches of alone:<m>                             place
-- waiting:<m>          zset    batches of a model with jobs that run again later, by the   place
--                              time of the first
-- pending              hash    <m> -> jobs that wait for a lease, if any do                place
-- unfinished_by_owner  hash    account -> jobs of its active batches that have not ended,   count_unfinished
--                              if there are any; without the account UNCOUNTED
-- chosen_models        hash    API key -> the model that it has chosen for its requests     never (one field a key)
-- session_secret       string  what servers sign sessions of browsers with                 never
-- submissions          zset    batches that servers are to submit, by due time; a claim     submission_resolve,
--                              delays it                                                    delete_batch
-- submission_claims    hash    <b> -> number of the latest claim on its submission         submission_resolve,
--                                                                                          delete_batch
-- batch:<b>            hash    the batch; fields below                                     delete_batch
-- states:<b>:<c>       string  one byte a job: PENDING, LEASED, DONE, FAILED, CANCELLED or delete_batch
--                              DRAFTED. A byte that was never written means pending, or
--                              cancelled in a cancelled batch: an untouched job costs no
--                              memory
-- requeued:<b>         zset    <i> of jobs that run again, by the earliest start time      lease, cancel
-- suspects:<b>         zset    the same for jobs that run alone                            lease, cancel
-- checkpoints:<b>      hash    <i> -> "<epoch> <finish>" of jobs that were drafted or      commit, discard, cancel,
--                              parked: the epoch of the image checkpoint from which the    restore_begin; failures
--                              job goes on, 0 for none; finish is 1 if it is rendered to
--                              its end also if its row has a draft. A job of an active
--                              batch that is drafted has an epoch
-- attempts:<b>         hash    <i> -> charged attempts: errors of the job itself           drop_flushed, retry
-- lost_by:<b>          hash    <i> -> names of the workers that lost it, one a loss;       drop_flushed, retry,
--                              "crash:<w>" if the worker died in a call for the job        commit, renew
-- errors:<b>           hash    <i> -> {code, message, worker} of its last failure          drop_flushed, retry
-- error_counts:<b>     hash    error code -> failed jobs                                   delete_batch
-- receipts:<b>         hash    <i> -> receipt, until its part is stored in the bucket      drop_flushed
-- ended:<b>            hash    <p> -> how many of its jobs have ended                      drop_flushed
-- flush_queue          zset    "<b>/<p>": parts whose receipts are to be stored, by due    drop_flushed, flush_claim,
--                              time; a claim delays it, so that others take other parts    retry, mark_deleting
-- flush_errors:<b>     hash    <p> -> how often it could not be stored for its own fault   drop_flushed
-- flushed:<b>          hash    <p> -> generation of the object that has its lines, if      delete_batch
--                              that is not 0
-- orphans              zset    batches that have ended and may have orphaned images in     orphans_resolve, retry,
--                              the bucket, or checkpoints of images, by the time they      mark_deleting
--                              were queued
-- leases               zset    "<b>/<i>" of leased jobs, by expiry                         end of the lease
-- holders              hash    "<b>/<i>" -> "<epoch> <worker>" of each lease               end of the lease
-- lease_reply:<w>      string  the worker's last lease request: its id, then a line        expiry, an hour
--                              "<b> <i> <jobs> <epoch> <attempts> <company> <urgency>
--                              <checkpoint> <finish>" for each run of jobs
-- rate:<b>:<slot>      string  jobs committed in one slot of RATE_SLOT_MS                       expiry, RATE_KEEP_S
-- models               zset    models that have workers, by their last heartbeat           heartbeat
-- workers:<m>          zset    workers of a model, by their last heartbeat                 heartbeat, sign-off
-- worker:<w>           hash    model, device, device_name, dtype, slots, draining (1: it   sign-off; expiry, a minute
--                              takes no more jobs), drain (1: it is to take no more, and    after its last heartbeat
--                              end), since (its first heartbeat), images (committed), and
--                              for the last WINDOWS windows, n = window % WINDOWS:
--                              window:<n>, images:<n>, busy_s:<n>, wall_s:<n>
-- model_facts          hash    <m> -> what its workers announce of it, JSON as in             never (one field a model)
--                              latentfarm/model_facts.py; batches are submitted without
--                              workers, too
-- model_adapters       hash    <m> -> the names of its workers' adapters by kind, JSON        never (one field a model)
-- throughput:<m>       hash    sums over all workers of a model: images, work, busy_s,     never (one key a model)
--                              size_bytes, pixels
-- sweep_lock           string  held by the worker that expires leases now                  expiry, under a second
-- last_sweep           string  when leases were last checked                               never
-- grace_until          string  no lease expires before this time (set after an outage)     expiry
-- probe                any     what `doctor` writes to check that writes work              probe; expiry, a second
-- webhooks             zset    batches whose webhook is to be sent, by due time            webhook_claim,
--                                                                                          webhook_resolve
--
-- Fields of {lf}:batch:<b>:
--   digest, model              what was submitted; two submissions of one name differ in `digest`
--   account                    "<kind>/<owner>": its kind, and the API key that submitted it, if one did
--   parts_digest, total        digest and number of the jobs stored so far; final when the state is no longer opening
--   state                      opening, open, complete, cancelled, deleting, recovering
--   paused_by, paused          who paused it ('' if it is not paused), and the reason as text
--   priority, weight           higher priority first; share among batches of one priority
--   preempt                    1 if its jobs are urgent: they take the place of running images that are not. Those of
--                              interactive batches are urgent too
--   virtual_time               leases so far divided by weight; the lowest is leased next
--   cursor                     first index that was never leased
--   sparse                     1 if some jobs at or after the cursor are not pending, so that the cursor must skip them
--   canary                     jobs from this index on wait for `resume`; 0 for none
--   epoch                      highest epoch of a lease so far
--   counted                    jobs of the batch that {lf}:pending counts
--   unfinished                 jobs of the batch that {lf}:unfinished_by_owner counts (absent if none ever)
--   leased, done, failed, cancelled, drafted   counters of jobs by state
--   invalid                    failed jobs whose row was invalid
--   truncated                  done jobs whose prompt was too long for the model (absent if none)
--   budget                     share of failures that pauses the batch; 0 for none
--   budget_done, budget_failed the counters when the budget began; drafted and discarded jobs count as done
--   retries                    rises as jobs are retried, finished, discarded or, if drafted, cancelled; a recovery
--                              sets it to the time. While it stays, ended jobs stay as they are: it is the generation of
--                              result lines
--   lost_leases                1 if a lease ended without a commit, or a checkpoint is of no more use: the bucket may
--                              have orphaned objects
--   webhook                    URL to notify, or ''
--   webhook_state, webhook_attempts, webhook_error   '', due, sent or failed; attempts so far; why the last one failed
--   created_ms, opened_ms, first_ms, last_ms, ended_ms   creation, manifest closed, first lease, last ended job, end;
--                              the batch has also ended while all that is left of it is drafted
--
-- Channel {lf}:cancelled: names of batches as they are cancelled. A worker that misses one finds its leases lost.
-- Channel {lf}:paused: names of batches as they are paused at once. A worker that misses one renders their images to the
-- end.
-- Channel {lf}:urgent: models as jobs of an urgent batch can be leased. A worker that misses one finds them at its next
-- lease.
-- Channel {lf}:watched:WORKER: empty messages while a client watches the worker, repeated; one holds for six seconds.
-- Channel {lf}:slots:WORKER: what a watched worker has on its device; as latentfarm/ledger/slot_reports.py writes it.
-- Channel {lf}:live: how far workers are with interactive jobs, and their previews; as latentfarm/ledger/live_reports.py
-- writes them.

do
  local found = redis.call('GET', KEYS[1])
  if not found then
    -- a cluster, which no older version could use, may refuse the old key
    local old = redis.pcall('GET', OLD_SCHEMA_KEY)
    if type(old) == 'string' then found = old end
  end
  if found and found ~= SCHEMA then return redis.error_reply('LFSCHEMA ' .. found .. ' ' .. SCHEMA) end
end

-- The old key keeps older versions, which know no other, from beginning a ledger beside this one
local function write_schema()
  redis.call('SET', KEYS[1], SCHEMA)
  redis.pcall('SET', OLD_SCHEMA_KEY, SCHEMA)
end

local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function now_ms() return math.floor(now_us() / 1000) end

-- Lua writes numbers of 15 digits and more with an exponent. Exact up to 2^53, which no index and no time reaches.
local function decimal(number) return string.format('%.0f', number) end

local function batch_key(batch) return '{lf}:batch:' .. batch end

-- Return fields of the batch's hash by name, as text; a field that is absent is nil
local function read_fields(batch, ...)
  local names, fields = { ... }, {}
  for at, value in ipairs(redis.call('HMGET', batch_key(batch), ...)) do fields[names[at]] = value or nil end
  return fields
end

-- Add an event to the stream. It is a notice: a user that may not write it must not leave a change half done.
local function add_event(event, ...)
  redis.pcall('XADD', '{lf}:events', 'MAXLEN', '~', MAX_EVENTS, '*', 'event', event, ...)
end

local function add_batch_event(event, batch)
  local f = read_fields(batch, 'model', 'account')
  add_event(event, 'batch', batch, 'model', f.model, 'account', f.account or UNCOUNTED)
end

local function is_interactive(account)
  return account and string.sub(account, 1, #INTERACTIVE_ACCOUNT) == INTERACTIVE_ACCOUNT
end

-- Return how urgent the jobs of a batch are: 0 for those that are not, 1 for those of a batch that preempts others, 2 for
-- those for which a client waits
local function urgency_of(account, preempt)
  if is_interactive(account) then return 2 end
  return preempt == '1' and 1 or 0
end

-- Return the set that lists a batch
local function list_key(account) return is_interactive(account) and '{lf}:interactive' or '{lf}:batches' end

local function chunk_key(batch, index) return '{lf}:states:' .. batch .. ':' .. math.floor(index / CHUNK) end

local function get_state(batch, index)
  local byte = redis.call('GETRANGE', chunk_key(batch, index), index % CHUNK, index % CHUNK)
  if byte == '' then return PENDING end
  return string.byte(byte)
end

local function set_state(batch, index, state)
  redis.call('SETRANGE', chunk_key(batch, index), index % CHUNK, string.char(state))
end

-- Set the state of jobs from an index on
local function set_states(batch, index, count, state)
  while count > 0 do
    local at = index % CHUNK
    local length = math.min(count, CHUNK - at)
    redis.call('SETRANGE', chunk_key(batch, index), at, string.rep(string.char(state), length))
    index, count = index + length, count - length
  end
end

-- Also the name of a part: "<b>/<p>"
local function job_name(batch, index) return batch .. '/' .. decimal(index) end

local function parse_name(name)
  local batch, index = string.match(name, '^(.*)/(%d+)$')
  return batch, tonumber(index)
end

local function part_of(index) return math.floor(index / PART) end

local function part_size(part, total) return math.min(PART, total - part * PART) end

-- Return the indices of a part as fields of a hash
local function part_fields(part)
  local fields = {}
  for index = part * PART, part * PART + PART - 1 do fields[#fields + 1] = decimal(index) end
  return fields
end

-- Return the epoch and the worker in a value of {lf}:holders, or nil
local function parse_holder(value)
  if not value then return nil end
  local epoch, worker = string.match(value, '^(%d+) (.*)$')
  return tonumber(epoch), worker
end

-- Return the epoch and the worker of the lease on a job, or nil
local function holder_of(name) return parse_holder(redis.call('HGET', '{lf}:holders', name)) end

local function drop_lease(batch, name)
  redis.call('ZREM', '{lf}:leases', name)
  redis.call('HDEL', '{lf}:holders', name)
  redis.call('HINCRBY', batch_key(batch), 'leased', -1)
end

-- Drop every lease on a batch; return the indices of its jobs
local function drop_all_leases(batch)
  local prefix, dropped = batch .. '/', {}
  for _, name in ipairs(redis.call('ZRANGE', '{lf}:leases', 0, -1)) do
    if string.sub(name, 1, #prefix) == prefix then
      redis.call('ZREM', '{lf}:leases', name)
      redis.call('HDEL', '{lf}:holders', name)
      local _, index = parse_name(name)
      dropped[#dropped + 1] = index
    end
  end
  return dropped
end

-- Record that a lease ended without a commit: its worker may have stored an image, or may still store one
local function mark_lost_lease(batch) redis.call('HSET', batch_key(batch), 'lost_leases', 1) end

-- Return the epoch of the checkpoint in a value of {lf}:checkpoints:<b>, 0 for none, and 1 if the job is to be finished
local function parse_checkpoint(value)
  local epoch, finish = string.match(value or '', '^(%d+) ([01])$')
  return tonumber(epoch or 0), tonumber(finish or 0)
end

-- Set the epoch of the checkpoint from which a job goes on, 0 for none. The mark to finish it stays.
local function set_checkpoint(batch, index, epoch)
  local key, field = '{lf}:checkpoints:' .. batch, decimal(index)
  local _, finish = parse_checkpoint(redis.call('HGET', key, field))
  if epoch == 0 and finish == 0 then
    redis.call('HDEL', key, field)
  else
    redis.call('HSET', key, field, decimal(epoch) .. ' ' .. finish)
  end
end

-- Return how often a job was lost, how often in a call for it, and with how many different workers
local function read_losses(batch, index)
  local losses, crashes, seen, workers = 0, 0, {}, 0
  for entry in string.gmatch(redis.call('HGET', '{lf}:lost_by:' .. batch, decimal(index)) or '', '%S+') do
    local worker = string.match(entry, '^crash:(.*)$')
    losses = losses + 1
    if worker then crashes = crashes + 1 end
    worker = worker or entry
    if not seen[worker] then seen[worker], workers = true, workers + 1 end
  end
  return losses, crashes, workers
end

-- Return with which other jobs a job may be rendered, and its charged attempts
local function company_of(batch, index)
  local losses, crashes = read_losses(batch, index)
  local attempts = tonumber(redis.call('HGET', '{lf}:attempts:' .. batch, decimal(index)) or 0)
  if losses > 1 or crashes > 0 or attempts > 0 then return COMPANY_ALONE, attempts end
  return losses == 1 and COMPANY_LOST or COMPANY_ANY, attempts
end

-- A worker that lost the job lives, so what lost the lease was not the job. Crashes stay: they name it.
local function clear_losses(batch, index)
  local key, field, crashes = '{lf}:lost_by:' .. batch, decimal(index), {}
  for entry in string.gmatch(redis.call('HGET', key, field) or '', 'crash:%S+') do crashes[#crashes + 1] = entry end
  if #crashes > 0 then
    redis.call('HSET', key, field, table.concat(crashes, ' '))
  else
    redis.call('HDEL', key, field)
  end
end
