-- Every key of the ledger. <b> is a batch, <m> a model alias, <c> a chunk of a million jobs, <p> a part of 1,000.
--
-- key                 type    meaning                                                   removed by
-- lf:schema           string  the version of this layout; scripts of another one        forget, the last batch
--                             leave the ledger alone
-- lf:batches          zset    every batch, by the time it was reserved (ms)             forget
-- lf:open:<m>         set     batches of a model that are opening or open               finish, cancel, forget
-- lf:batch:<b>        hash    digest, chain (digest of the parts stored so far), model, forget
--                             state (opening, open, complete, cancelled, deleting),
--                             paused (the reason, '' if it is not), total (jobs stored
--                             so far; final once the state is not opening), cursor,
--                             hold (a canary: jobs from here on wait; 0 for none),
--                             counters (leased, done, failed, cancelled, invalid,
--                             truncated: done ones whose text lost its end; only if any),
--                             priority, weight, served (virtual time), epoch,
--                             budget (share of failures that pauses it; 0 for none) and
--                             the counters at its start (budget_done, budget_failed),
--                             retries, gaps (1 if some jobs at or behind the cursor are
--                             not pending), webhook (URL), webhook_state ('', due, sent,
--                             failed), webhook_attempts, webhook_error; times in ms
-- lf:states:<b>:<c>   string  one byte a job: 0 pending 1 leased 2 done 3 failed        forget
--                             4 cancelled; a byte that was never written is pending
--                             (in a cancelled batch: cancelled)
-- lf:requeued:<b>        zset    jobs that came back, by the time from which they may run  lease, cancel
-- lf:attempts:<b>     hash    index -> charged attempts, only of jobs that had trouble  trim, retry
-- lf:lost_by:<b>       hash    index -> the workers that were lost with it, one a loss   trim, retry
-- lf:errors:<b>       hash    index -> {code, message, worker}, of the same jobs        trim, retry
-- lf:reasons:<b>      hash    code -> failed jobs                                       forget
-- lf:leases           zset    "<b>/<index>" in flight, by expiry (ms)                   commit, fail, release, sweep, cancel
-- lf:holders          hash    "<b>/<index>" -> "<epoch> <worker>"                       with lf:leases
-- lf:lease_reply:<w>     string  a worker's last request for leases: its id, then a line   expiry, an hour
--                             "<b>/<index> <epoch> <attempts>" for each that it got
-- lf:results:<b>      hash    index -> receipt, until its part lies in the bucket       trim
-- lf:parts:<b>        hash    part -> jobs of it that have ended                        trim
-- lf:returned:<b>     set     parts with jobs that were leased more than once           trim
-- lf:leftovers        zset    "<b>/<p>": parts in whose folder images that nobody       tidied, forget
--                             wants may lie, or come to lie, by when that was noted (ms)
-- lf:flush            set     "<b>/<p>": parts whose receipts wait for the bucket       trim, retry
-- lf:rate:<b>:<slot>  string  jobs done in ten seconds; the measured rate               expiry, 3 minutes
-- lf:workers:<m>      zset    workers of a model, by the time last seen (ms)            beat, leave
-- lf:models           zset    models that have workers, by the time last seen (ms)      beat
-- lf:worker:<w>       hash    a worker's model, device, device_name, dtype, slots,      leave; expiry, a minute after
--                             since (first seen, ms), images (committed so far), and    its last beat
--                             window:<n>, images:<n>, busy_s:<n>, wall_s:<n> of the
--                             last four half minutes, n = window % 4
-- lf:throughput:<m>        hash    what all workers of a model measured: images, work,       nobody: one small key a model
--                             busy_s, bytes, pixels
-- lf:sweeper          string  held by the one worker that sweeps now                    expiry, a quarter second
-- lf:last_sweep            string  when leases were last looked at (ms)                      nobody
-- lf:grace_until           string  before it no lease is judged: the farm was dark (ms)      expiry
-- lf:webhooks         zset    batch whose end is to be told, by the due time (ms)       webhook_take, webhook_settle
--
-- Channel lf:cancelled: the names of batches, as they are cancelled; a worker that misses one learns it from `renew`.
--
-- Time is Redis TIME, never a caller's clock. Each script is atomic; this file is put before each.

local PENDING, LEASED, DONE, FAILED, CANCELLED = 0, 1, 2, 3, 4
local CHUNK, PART = 1000000, 1000
local PACE_SLOT_MS, PACE_KEEP_S = 10000, 180
-- the failure budget: this many failures with no success, or more than a share after this many have ended
local BUDGET_FIRST, BUDGET_AFTER = 50, 500

-- It rises with every change that scripts from before would misread. A ledger from before it was written down has 1.
local SCHEMA = '1'
do
  local found = redis.call('GET', 'lf:schema')
  if found and found ~= SCHEMA then return redis.error_reply('LFSCHEMA ' .. found .. ' ' .. SCHEMA) end
end

-- Whoever writes a batch down says how
local function write_schema() redis.call('SET', 'lf:schema', SCHEMA) end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function batch_key(batch) return 'lf:batch:' .. batch end

local function get_state(batch, index)
  local key = 'lf:states:' .. batch .. ':' .. math.floor(index / CHUNK)
  local at = index % CHUNK
  local byte = redis.call('GETRANGE', key, at, at)
  if byte == '' then return PENDING end
  return string.byte(byte)
end

local function set_state(batch, index, state)
  local key = 'lf:states:' .. batch .. ':' .. math.floor(index / CHUNK)
  redis.call('SETRANGE', key, index % CHUNK, string.char(state))
end

-- numbers beyond 2^53 or in exponent notation never occur: indices and times are far below
local function text(number) return string.format('%.0f', number) end

local function job_name(batch, index) return batch .. '/' .. text(index) end

local function split(name)
  local batch, index = string.match(name, '^(.*)/(%d+)$')
  return batch, tonumber(index)
end

local function part_size(part, total) return math.min(PART, total - part * PART) end

-- The epoch and the worker in a value of lf:holders, or nil
local function held_by(value)
  if not value then return nil end
  local epoch, worker = string.match(value, '^(%d+) (.*)$')
  return tonumber(epoch), worker
end

-- The epoch and the worker of the lease on a job, or nil
local function holder(name) return held_by(redis.call('HGET', 'lf:holders', name)) end

local function drop_lease(batch, name)
  redis.call('ZREM', 'lf:leases', name)
  redis.call('HDEL', 'lf:holders', name)
  redis.call('HINCRBY', batch_key(batch), 'leased', -1)
end

-- Nothing more will happen in the batch: tell its webhook, if it has one
local function queue_webhook(batch, now)
  local url = redis.call('HGET', batch_key(batch), 'webhook')
  if url and url ~= '' then
    redis.call('ZADD', 'lf:webhooks', now, batch)
    redis.call('HSET', batch_key(batch), 'webhook_state', 'due', 'webhook_attempts', 0, 'webhook_error', '')
  end
end

-- A batch's counters, and what says whether it is over
local function read_counters(batch)
  local f = redis.call('HMGET', batch_key(batch), 'state', 'model', 'total', 'done', 'failed', 'cancelled', 'leased', 'canary',
    'cursor')
  return { state = f[1], model = f[2], total = tonumber(f[3]), done = tonumber(f[4]), failed = tonumber(f[5]),
    cancelled = tonumber(f[6]), leased = tonumber(f[7]), canary = tonumber(f[8]), cursor = tonumber(f[9]) }
end

-- The batch is complete once all of a closed manifest has ended; a canary's batch pauses once all it may run has
local function complete_if_done(batch, now, is)
  local key = batch_key(batch)
  if is.state == 'open' and is.done + is.failed + is.cancelled == is.total then
    redis.call('HSET', key, 'state', 'complete', 'paused', '', 'paused_by', '', 'completed_ms', now)
    redis.call('SREM', 'lf:open:' .. is.model, batch)
    queue_webhook(batch, now)
  elseif is.canary ~= 0 and is.cursor >= is.canary and is.leased == 0 and redis.call('ZCARD', 'lf:requeued:' .. batch) == 0 then
    redis.call('HSET', key, 'paused_by', 'canary', 'paused', 'the first ' .. text(is.canary) .. ' jobs have ended')
  end
end

-- Have every part flushed of which some jobs have ended: in a cancelled batch they never get full
local function flush_what_ended(batch)
  local counts = redis.call('HGETALL', 'lf:parts:' .. batch)
  for at = 1, #counts, 2 do
    if counts[at + 1] ~= '0' then redis.call('SADD', 'lf:flush', job_name(batch, tonumber(counts[at]))) end
  end
end

-- `count` jobs of a part reached a terminal state, `released` of them under a lease that ends with it: count them.
-- Returns 1 if that made the part full.
local function count_ended(batch, part, count, counter, released, now)
  local is = read_counters(batch)
  is[counter], is.leased = is[counter] + count, is.leased - released
  redis.call('HSET', batch_key(batch), counter, is[counter], 'leased', is.leased, 'last_ms', now)
  complete_if_done(batch, now, is)
  local ended = redis.call('HINCRBY', 'lf:parts:' .. batch, text(part), count)
  if ended == part_size(part, is.total) then
    redis.call('SADD', 'lf:flush', job_name(batch, part))
    return 1
  end
  return 0
end

-- Pause a batch that fails more than its budget allows. Wrong rows are not counted: they have a limit of their own.
local function check_failure_budget(batch)
  local key = batch_key(batch)
  local f = redis.call('HMGET', key, 'budget', 'done', 'failed', 'invalid', 'budget_done', 'budget_failed', 'paused_by')
  local share = tonumber(f[1])
  local done, failed = tonumber(f[2]) - tonumber(f[5]), tonumber(f[3]) - tonumber(f[4]) - tonumber(f[6])
  if share == 0 or f[7] ~= '' then return end
  local hopeless = done == 0 and failed >= BUDGET_FIRST
  if hopeless or (done + failed >= BUDGET_AFTER and failed > share * (done + failed)) then
    local reasons = {}
    local counts = redis.call('HGETALL', 'lf:reasons:' .. batch)
    for at = 1, #counts, 2 do reasons[#reasons + 1] = counts[at] .. ' ' .. counts[at + 1] end
    table.sort(reasons)
    redis.call('HSET', key, 'paused_by', 'failure_budget', 'paused', text(failed) .. ' failed and ' .. text(done)
      .. ' done (' .. table.concat(reasons, ', ') .. ')')
  end
end

local function record_failure(batch, index, error, now)
  set_state(batch, index, FAILED)
  redis.call('HSET', 'lf:errors:' .. batch, text(index), error)
  redis.call('HINCRBY', 'lf:reasons:' .. batch, cjson.decode(error).code, 1)
  local full = count_ended(batch, math.floor(index / PART), 1, 'failed', 0, now)
  check_failure_budget(batch)
  return full
end

-- A lease ended without a commit: an image of it may lie in the bucket all the same, or come to lie there
local function mark_lost_lease(batch, index)
  redis.call('SADD', 'lf:returned:' .. batch, text(math.floor(index / PART)))
end

-- What lies in a part's folder is to be looked through once more, some time from now. The batch is known to be there
local function note_leftovers(batch, part, now)
  redis.call('ZADD', 'lf:leftovers', now, job_name(batch, part))
end

-- Remove a batch's members "<b>/<number>" of a sorted set of all batches; returns them
local function remove_of(batch, key)
  local prefix, removed = batch .. '/', {}
  for _, name in ipairs(redis.call('ZRANGE', key, 0, -1)) do
    if string.sub(name, 1, #prefix) == prefix then
      redis.call('ZREM', key, name)
      removed[#removed + 1] = name
    end
  end
  return removed
end

-- Take every lease on a batch back; returns the indices of the jobs that were leased
local function drop_all_leases(batch)
  local dropped = remove_of(batch, 'lf:leases')
  for at, name in ipairs(dropped) do
    redis.call('HDEL', 'lf:holders', name)
    local _, index = split(name)
    dropped[at] = index
  end
  return dropped
end

-- Give a leased job back, to run again from a time on
local function give_back(batch, index, name, from_ms)
  drop_lease(batch, name)
  set_state(batch, index, PENDING)
  redis.call('ZADD', 'lf:requeued:' .. batch, from_ms, text(index))
  mark_lost_lease(batch, index)
end

-- Whether jobs of the batch may be leased, and up to which index, given state, paused, total and hold
local function leasable_until(state, paused_by, total, canary)
  if paused_by ~= '' or (state ~= 'open' and state ~= 'opening') then return nil end
  if canary ~= '0' then return math.min(tonumber(total), tonumber(canary)) end
  return tonumber(total)
end

-- A batch that had nothing to lease begins beside its peers: neither behind work done long ago nor ahead of everybody
local function raise_virtual_time(batch, model)
  local least
  for _, peer in ipairs(redis.call('SMEMBERS', 'lf:open:' .. model)) do
    if peer ~= batch then
      local f = redis.call('HMGET', batch_key(peer), 'state', 'paused_by', 'total', 'canary', 'cursor', 'virtual_time')
      local limit = leasable_until(f[1], f[2], f[3], f[4])
      local busy = limit and (tonumber(f[5]) < limit or redis.call('ZCARD', 'lf:requeued:' .. peer) > 0)
      if busy and (not least or tonumber(f[6]) < least) then least = tonumber(f[6]) end
    end
  end
  if least and least > tonumber(redis.call('HGET', batch_key(batch), 'virtual_time')) then
    redis.call('HSET', batch_key(batch), 'virtual_time', tostring(least))
  end
end

-- The jobs of a model's batches that wait to be leased
local function count_pending(model)
  local waiting = 0
  for _, batch in ipairs(redis.call('SMEMBERS', 'lf:open:' .. model)) do
    local f = redis.call('HMGET', batch_key(batch), 'state', 'paused_by', 'total', 'canary', 'cursor', 'leased', 'done',
      'failed')
    local limit = leasable_until(f[1], f[2], f[3], f[4])
    if limit and f[4] == '0' then
      waiting = waiting + limit - tonumber(f[6]) - tonumber(f[7]) - tonumber(f[8])
    elseif limit then
      waiting = waiting + math.max(0, limit - tonumber(f[5])) + redis.call('ZCARD', 'lf:requeued:' .. batch)
    end
  end
  return waiting
end
