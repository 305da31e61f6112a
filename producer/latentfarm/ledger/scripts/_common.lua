-- The data model of the ledger, and the functions that the scripts share. This file is put before each script.
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
-- batches              zset    all batches, by creation time                               delete_batch
-- active:<m>           set     batches of a model whose state is opening or open           cancel, mark_deleting,
--                                                                                          completion
-- batch:<b>            hash    the batch; fields below                                     delete_batch
-- states:<b>:<c>       string  one byte a job: PENDING, LEASED, DONE, FAILED or CANCELLED. delete_batch
--                              A byte that was never written means pending, or cancelled
--                              in a cancelled batch: an untouched job costs no memory
-- requeued:<b>         zset    <i> of jobs that run again, by the earliest start time      lease, cancel
-- suspects:<b>         zset    the same for jobs that run alone                            lease, cancel
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
--                              the bucket, by the time they were queued                    mark_deleting
-- leases               zset    "<b>/<i>" of leased jobs, by expiry                         end of the lease
-- holders              hash    "<b>/<i>" -> "<epoch> <worker>" of each lease               end of the lease
-- lease_reply:<w>      string  the worker's last lease request: its id, then a line        expiry, an hour
--                              "<b>/<i> <epoch> <attempts> <company>" for each lease
-- rate:<b>:<slot>      string  jobs done in one slot of RATE_SLOT_MS                       expiry, RATE_KEEP_S
-- models               zset    models that have workers, by their last heartbeat           heartbeat
-- workers:<m>          zset    workers of a model, by their last heartbeat                 heartbeat, sign-off
-- worker:<w>           hash    model, device, device_name, dtype, slots, draining (1: it   sign-off; expiry, a minute
--                              takes no more jobs), since (its first heartbeat), images    after its last heartbeat
--                              (committed), and for the last WINDOWS windows, n = window %
--                              WINDOWS: window:<n>, images:<n>, busy_s:<n>, wall_s:<n>
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
--   parts_digest, total        digest and number of the jobs stored so far; final when the state is no longer opening
--   state                      opening, open, complete, cancelled, deleting, recovering
--   paused_by, paused          who paused it ('' if it is not paused), and the reason as text
--   priority, weight           higher priority first; share among batches of one priority
--   virtual_time               leases so far divided by weight; the lowest is leased next
--   cursor                     first index that was never leased
--   sparse                     1 if some jobs at or after the cursor are not pending, so that the cursor must skip them
--   canary                     jobs from this index on wait for `resume`; 0 for none
--   epoch                      highest epoch of a lease so far
--   leased, done, failed, cancelled   counters of jobs by state
--   invalid                    failed jobs whose row was invalid
--   truncated                  done jobs whose prompt was too long for the model (absent if none)
--   budget                     share of failures that pauses the batch; 0 for none
--   budget_done, budget_failed the counters when the budget began
--   retries                    rises with each retry; a recovery sets it to the time. While it stays, ended jobs stay
--                              as they are: it is the generation of result lines
--   lost_leases                1 if a lease ended without a commit: the bucket may have orphaned images
--   webhook                    URL to notify, or ''
--   webhook_state, webhook_attempts, webhook_error   '', due, sent or failed; attempts so far; why the last one failed
--   created_ms, opened_ms, first_ms, last_ms, ended_ms   creation, manifest closed, first lease, last ended job, end
--
-- Channel {lf}:cancelled: names of batches as they are cancelled. A worker that misses one finds its leases lost.

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

local function chunk_key(batch, index) return '{lf}:states:' .. batch .. ':' .. math.floor(index / CHUNK) end

local function get_state(batch, index)
  local byte = redis.call('GETRANGE', chunk_key(batch, index), index % CHUNK, index % CHUNK)
  if byte == '' then return PENDING end
  return string.byte(byte)
end

local function set_state(batch, index, state)
  redis.call('SETRANGE', chunk_key(batch, index), index % CHUNK, string.char(state))
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

-- Put a leased job back in the queue, to run at `from_ms` or later
local function requeue(batch, index, name, from_ms)
  drop_lease(batch, name)
  set_state(batch, index, PENDING)
  local queue = company_of(batch, index) == COMPANY_ALONE and '{lf}:suspects:' or '{lf}:requeued:'
  redis.call('ZADD', queue .. batch, from_ms, decimal(index))
  mark_lost_lease(batch)
end

-- Return how many jobs of a batch run again
local function count_requeued(batch)
  return redis.call('ZCARD', '{lf}:requeued:' .. batch) + redis.call('ZCARD', '{lf}:suspects:' .. batch)
end

-- Return the delay after a job's trouble. Meanwhile its worker renders another job, which clears the device.
local function retry_delay_ms(times) return RETRY_DELAY_MS * 2 ^ (times - 1) end

-- The batch has ended: queue its webhook and the collection of its orphaned images, where it has any
local function queue_after_end(batch, now)
  local fields = read_fields(batch, 'webhook', 'lost_leases')
  if (fields.webhook or '') ~= '' then
    redis.call('ZADD', '{lf}:webhooks', now, batch)
    redis.call('HSET', batch_key(batch), 'webhook_state', 'due', 'webhook_attempts', 0, 'webhook_error', '')
  end
  if fields.lost_leases == '1' then redis.call('ZADD', '{lf}:orphans', now, batch) end
end

local function read_counters(batch)
  local names = { 'total', 'done', 'failed', 'cancelled', 'leased', 'canary', 'cursor' }
  local fields = read_fields(batch, 'state', 'model', unpack(names))
  for _, name in ipairs(names) do fields[name] = tonumber(fields[name]) end
  return fields
end

-- Complete the batch if its manifest is closed and every job has ended. Otherwise pause it if its canary has ended.
local function complete_if_done(batch, now, counters)
  local key = batch_key(batch)
  if counters.state == BATCH_OPEN and counters.done + counters.failed + counters.cancelled == counters.total then
    redis.call('HSET', key, 'state', BATCH_COMPLETE, 'paused_by', '', 'paused', '', 'ended_ms', now)
    redis.call('SREM', '{lf}:active:' .. counters.model, batch)
    queue_after_end(batch, now)
  elseif counters.canary ~= 0 and counters.cursor >= counters.canary and counters.leased == 0
    and count_requeued(batch) == 0 then
    redis.call('HSET', key, 'paused_by', PAUSED_BY_CANARY,
      'paused', 'the first ' .. decimal(counters.canary) .. ' jobs have ended')
  end
end

-- A part that is claimed already stays so
local function queue_flush(batch, part, now) redis.call('ZADD', '{lf}:flush_queue', 'NX', now, job_name(batch, part)) end

-- Queue the flush of every part in which a job has ended: the parts of a cancelled batch never become full. A part with
-- a count of 0 is among them: before a retry it may have been stored with jobs that failed and are cancelled now.
local function flush_started_parts(batch, now)
  local counts = redis.call('HGETALL', '{lf}:ended:' .. batch)
  for at = 1, #counts, 2 do queue_flush(batch, tonumber(counts[at]), now) end
end

-- Count `count` jobs of a part that have ended, `released` of them under a lease that ends with them.
-- Return 1 if the part is full now.
local function count_ended(batch, part, count, counter, released, now)
  local counters = read_counters(batch)
  counters[counter], counters.leased = counters[counter] + count, counters.leased - released
  redis.call('HSET', batch_key(batch), counter, counters[counter], 'leased', counters.leased, 'last_ms', now)
  complete_if_done(batch, now, counters)
  local ended = redis.call('HINCRBY', '{lf}:ended:' .. batch, decimal(part), count)
  if ended == part_size(part, counters.total) then
    queue_flush(batch, part, now)
    return 1
  end
  return 0
end

-- Pause a batch that fails more than its budget allows. Invalid rows do not count: they have a limit of their own.
local function check_failure_budget(batch)
  local f = read_fields(batch, 'budget', 'done', 'failed', 'invalid', 'budget_done', 'budget_failed', 'paused_by')
  local share = tonumber(f.budget)
  local done, failed = f.done - f.budget_done, f.failed - f.invalid - f.budget_failed
  if share == 0 or f.paused_by ~= '' then return end
  local hopeless = done == 0 and failed >= BUDGET_FIRST_FAILURES
  if not hopeless and (done + failed < BUDGET_MIN_JOBS or failed <= share * (done + failed)) then return end
  local by_code = {}
  local counts = redis.call('HGETALL', '{lf}:error_counts:' .. batch)
  for at = 1, #counts, 2 do by_code[#by_code + 1] = counts[at] .. ' ' .. counts[at + 1] end
  table.sort(by_code)
  redis.call('HSET', batch_key(batch), 'paused_by', PAUSED_BY_FAILURE_BUDGET,
    'paused', decimal(failed) .. ' failed and ' .. decimal(done) .. ' done (' .. table.concat(by_code, ', ') .. ')')
end

-- Fail a job that is no longer leased. Return 1 if its part is full now.
local function record_failure(batch, index, error, now)
  set_state(batch, index, FAILED)
  redis.call('HSET', '{lf}:errors:' .. batch, decimal(index), error)
  redis.call('HINCRBY', '{lf}:error_counts:' .. batch, cjson.decode(error).code, 1)
  local full = count_ended(batch, part_of(index), 1, 'failed', 0, now)
  check_failure_budget(batch)
  return full
end

-- Record that a leased job was lost with its worker, `crashed` if in a call for it. It runs again, or fails if that
-- happened too often: then it is the job that ends its workers. Return 'requeued' or 'poison'.
local function lose(batch, index, name, crashed, now)
  local _, worker = holder_of(name)
  local field, entry = decimal(index), (crashed and 'crash:' or '') .. worker
  local before = redis.call('HGET', '{lf}:lost_by:' .. batch, field)
  redis.call('HSET', '{lf}:lost_by:' .. batch, field, before and before .. ' ' .. entry or entry)
  local losses, crashes, workers = read_losses(batch, index)
  if crashes < POISON_CRASHES and losses < POISON_LOSSES then
    requeue(batch, index, name, crashed and now + retry_delay_ms(crashes) or now)
    return 'requeued'
  end
  drop_lease(batch, name)
  mark_lost_lease(batch)
  local message = 'lost ' .. losses .. (losses == 1 and ' time' or ' times') .. ' with ' .. workers
    .. (workers == 1 and ' worker' or ' workers') .. ', ' .. crashes .. ' of them in a call for this job'
  record_failure(batch, index, cjson.encode({ code = POISON, message = message, worker = worker }), now)
  return 'poison'
end

local function is_active(state) return state == BATCH_OPEN or state == BATCH_OPENING end

local function is_final(state) return state == BATCH_COMPLETE or state == BATCH_CANCELLED end

-- Return the index before which jobs of a batch may be leased; nil if none may be
local function lease_limit(state, paused_by, total, canary)
  if paused_by ~= '' or not is_active(state) then return nil end
  if canary ~= '0' then return math.min(tonumber(total), tonumber(canary)) end
  return tonumber(total)
end

-- A batch becomes runnable: raise its virtual time to the lowest of the runnable batches of its model. Otherwise it
-- would take every slot until it had made up for the time in which it could not run.
local function raise_virtual_time(batch, model)
  local lowest
  for _, peer in ipairs(redis.call('SMEMBERS', '{lf}:active:' .. model)) do
    if peer ~= batch then
      local state, paused_by, total, canary, cursor, virtual_time = unpack(redis.call('HMGET', batch_key(peer), 'state',
        'paused_by', 'total', 'canary', 'cursor', 'virtual_time'))
      local limit = lease_limit(state, paused_by, total, canary)
      local runnable = limit and (tonumber(cursor) < limit or count_requeued(peer) > 0)
      if runnable and (not lowest or tonumber(virtual_time) < lowest) then lowest = tonumber(virtual_time) end
    end
  end
  if lowest and lowest > tonumber(redis.call('HGET', batch_key(batch), 'virtual_time')) then
    redis.call('HSET', batch_key(batch), 'virtual_time', tostring(lowest))
  end
end

-- Return how many jobs of a model wait for a lease. Called at every heartbeat, so it builds no table for a batch.
local function count_pending(model)
  local pending = 0
  for _, batch in ipairs(redis.call('SMEMBERS', '{lf}:active:' .. model)) do
    local state, paused_by, total, canary, cursor, leased, done, failed = unpack(redis.call('HMGET', batch_key(batch),
      'state', 'paused_by', 'total', 'canary', 'cursor', 'leased', 'done', 'failed'))
    local limit = lease_limit(state, paused_by, total, canary)
    if limit and canary == '0' then
      pending = pending + limit - leased - done - failed
    elseif limit then
      pending = pending + math.max(0, limit - cursor) + count_requeued(batch)
    end
  end
  return pending
end
