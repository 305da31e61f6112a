-- Functions that the scripts share: the queues of batches, and what the end of a job brings about.

local function is_active(state) return state == BATCH_OPEN or state == BATCH_OPENING end

local function is_final(state) return state == BATCH_COMPLETE or state == BATCH_CANCELLED end

-- Return how many jobs of a batch run again
local function count_requeued(batch)
  return redis.call('ZCARD', '{lf}:requeued:' .. batch) + redis.call('ZCARD', '{lf}:suspects:' .. batch)
end

-- Return the index before which jobs of a batch may be leased; nil if none may be
local function lease_limit(state, paused_by, total, canary)
  if paused_by ~= '' or not is_active(state) then return nil end
  if canary ~= '0' then return math.min(tonumber(total), tonumber(canary)) end
  return tonumber(total)
end

-- Return the score of a batch in the order of leases: by priority, then by virtual time
local function rank(priority, virtual_time) return virtual_time - priority * PRIORITY_STEP end

-- Return the scores between which a batch of this priority is
local function ranks_of(priority)
  return rank(priority, -PRIORITY_STEP / 2), rank(priority, PRIORITY_STEP / 2)
end

local function lowest_score(key) return tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]) end

local function add_or_remove(key, batch, score)
  if score then redis.call('ZADD', key, score, batch) else redis.call('ZREM', key, batch) end
end

-- Count a change of the number of jobs of an active batch that have not ended
local function count_unfinished(batch, account, change)
  if not account or account == UNCOUNTED or change == 0 then return end
  redis.call('HINCRBY', batch_key(batch), 'unfinished', change)
  if redis.call('HINCRBY', '{lf}:unfinished_by_owner', account, change) == 0 then
    redis.call('HDEL', '{lf}:unfinished_by_owner', account)
  end
end

-- Put a batch into the queues in which `lease` finds it, and count its pending jobs. Called after each change of what
-- they depend on, so that neither a lease nor a heartbeat reads all batches.
local function place(batch, now)
  local key = batch_key(batch)
  local model, state, paused_by, total, canary, cursor, priority, virtual_time, leased, done, failed, cancelled, drafted,
    counted, account, preempt, unfinished = unpack(redis.call('HMGET', key, 'model', 'state', 'paused_by', 'total',
      'canary', 'cursor', 'priority', 'virtual_time', 'leased', 'done', 'failed', 'cancelled', 'drafted', 'counted',
      'account', 'preempt', 'unfinished'))
  local urgent, left = urgency_of(account, preempt) > 0, total - done - failed - cancelled - drafted
  local limit, pending, score, runs, runs_alone, later = lease_limit(state, paused_by, total, canary), 0, nil
  if limit then
    local again, alone = lowest_score('{lf}:requeued:' .. batch), lowest_score('{lf}:suspects:' .. batch)
    score = rank(priority, virtual_time)
    runs = tonumber(cursor) < limit or (again and again <= now)
    runs_alone = alone and alone <= now
    if again and not runs then later = again end
    if alone and not runs_alone then later = math.min(later or alone, alone) end
    if canary == '0' then
      pending = left - leased
    else
      pending = math.max(0, limit - cursor) + count_requeued(batch)
    end
  end
  add_or_remove('{lf}:runnable:' .. model, batch, runs and score)
  add_or_remove('{lf}:alone:' .. model, batch, runs_alone and score)
  if urgent then
    add_or_remove('{lf}:urgent:' .. model, batch, runs and score)
    add_or_remove('{lf}:urgent_alone:' .. model, batch, runs_alone and score)
  end
  add_or_remove('{lf}:waiting:' .. model, batch, later)
  local change = pending - (counted or 0)
  if change ~= 0 then
    redis.call('HSET', key, 'counted', pending)
    if redis.call('HINCRBY', '{lf}:pending', model, change) == 0 then redis.call('HDEL', '{lf}:pending', model) end
    -- a hint only, so a user that may not send it must not leave this half done
    if change > 0 and urgent then redis.pcall('PUBLISH', '{lf}:urgent', model) end
  end
  count_unfinished(batch, account, (is_active(state) and left or 0) - (unfinished or 0))
end

-- A batch joins those that run in its model and priority: raise its virtual time to their lowest. Otherwise it would
-- take every slot until it had made up for the time in which it could not run.
local function raise_virtual_time(batch)
  local model, priority, own = unpack(redis.call('HMGET', batch_key(batch), 'model', 'priority', 'virtual_time'))
  local least, most = ranks_of(priority)
  for _, peer in ipairs(redis.call('ZRANGEBYSCORE', '{lf}:runnable:' .. model, least, most, 'LIMIT', 0, 2)) do
    local lowest = redis.call('HGET', batch_key(peer), 'virtual_time')
    if peer ~= batch then
      if tonumber(lowest) > tonumber(own) then redis.call('HSET', batch_key(batch), 'virtual_time', lowest) end
      return
    end
  end
end

-- Put a leased job back in the queue, to run at `from_ms` or later
local function requeue(batch, index, name, from_ms, now)
  drop_lease(batch, name)
  set_state(batch, index, PENDING)
  local queue = company_of(batch, index) == COMPANY_ALONE and '{lf}:suspects:' or '{lf}:requeued:'
  redis.call('ZADD', queue .. batch, from_ms, decimal(index))
  mark_lost_lease(batch)
  place(batch, now)
end

-- Return the delay after a job's trouble. Meanwhile its worker renders another job, which clears the device.
local function retry_delay_ms(times) return RETRY_DELAY_MS * 2 ^ (times - 1) end

-- The batch has ended: queue its webhook and the collection of its orphaned objects, where it has any
local function queue_after_end(batch, now)
  local fields = read_fields(batch, 'webhook', 'lost_leases')
  if (fields.webhook or '') ~= '' then
    redis.call('ZADD', '{lf}:webhooks', now, batch)
    redis.call('HSET', batch_key(batch), 'webhook_state', 'due', 'webhook_attempts', 0, 'webhook_error', '')
  end
  if fields.lost_leases == '1' then redis.call('ZADD', '{lf}:orphans', now, batch) end
end

local function read_counters(batch)
  local names = { 'total', 'done', 'failed', 'cancelled', 'drafted', 'leased', 'canary', 'cursor' }
  local fields = read_fields(batch, 'state', 'model', 'account', unpack(names))
  for _, name in ipairs(names) do fields[name] = tonumber(fields[name]) end
  return fields
end

-- Return whether every job of a batch has ended, by its counters
local function all_ended(counters)
  return counters.done + counters.failed + counters.cancelled + counters.drafted == counters.total
end

-- Complete the batch if its manifest is closed and every job has ended. If some are drafted it stays open, so that they
-- can be finished; what waits for its end hears of it all the same. Otherwise pause it if its canary has ended.
local function complete_if_done(batch, now, counters)
  local key = batch_key(batch)
  local ended = counters.state == BATCH_OPEN and all_ended(counters)
  if ended and counters.drafted > 0 then
    redis.call('HSET', key, 'ended_ms', now)
    queue_after_end(batch, now)
    add_batch_event('drafted', batch)
  elseif ended then
    redis.call('HSET', key, 'state', BATCH_COMPLETE, 'paused_by', '', 'paused', '', 'ended_ms', now)
    redis.call('SREM', '{lf}:active:' .. counters.model, batch)
    place(batch, now)
    queue_after_end(batch, now)
    add_batch_event('complete', batch)
  elseif counters.canary ~= 0 and counters.cursor >= counters.canary and counters.leased == 0
    and count_requeued(batch) == 0 then
    redis.call('HSET', key, 'paused_by', PAUSED_BY_CANARY,
      'paused', 'the first ' .. decimal(counters.canary) .. ' jobs have ended')
    place(batch, now)
    add_batch_event('paused', batch)
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

-- Select the jobs whose indices are in ARGV, from a place on and so many places apart, by their state.
-- Return their indices as text, and how many they are by part.
local function select_jobs(batch, from, apart, state)
  local fields, parts, seen = {}, {}, {}
  for at = from, #ARGV, apart do
    local field, index = ARGV[at], tonumber(ARGV[at])
    if not seen[index] and get_state(batch, index) == state then
      local part = part_of(index)
      fields[#fields + 1], seen[index] = field, true
      parts[part] = (parts[part] or 0) + 1
    end
  end
  return fields, parts
end

-- Count jobs that had ended and run again, by part
local function uncount_ended(batch, parts, total)
  for part, count in pairs(parts) do
    -- the count of a flushed part was removed: all its jobs had ended
    redis.call('HSETNX', '{lf}:ended:' .. batch, decimal(part), part_size(part, total))
    redis.call('HINCRBY', '{lf}:ended:' .. batch, decimal(part), -count)
    redis.call('ZREM', '{lf}:flush_queue', job_name(batch, part))
  end
end

-- Remove what is recorded of the runs of jobs: they run again as if they had never run, or not at all
local function forget_runs(batch, fields)
  for _, kind in ipairs({ 'attempts', 'lost_by', 'errors', 'receipts' }) do
    redis.call('HDEL', '{lf}:' .. kind .. ':' .. batch, unpack(fields))
  end
end

-- Let jobs that had ended run again; `parts` has how many they are by part
local function queue_again(batch, fields, parts, total, now)
  local members = {}
  for _, field in ipairs(fields) do
    set_state(batch, tonumber(field), PENDING)
    members[#members + 1], members[#members + 2] = now, field
  end
  redis.call('ZADD', '{lf}:requeued:' .. batch, unpack(members))
  uncount_ended(batch, parts, total)
  forget_runs(batch, fields)
end

-- Let an active or complete batch run on whose ended jobs run again; its failure budget starts again
local function run_on(batch, state, model)
  local key = batch_key(batch)
  local f = read_fields(batch, 'done', 'failed', 'invalid', 'cancelled', 'drafted')
  redis.call('HINCRBY', key, 'retries', 1)
  redis.call('HSET', key, 'budget_failed', f.failed - f.invalid, 'budget_done', f.done + f.cancelled + f.drafted)
  if state ~= BATCH_COMPLETE then return end
  redis.call('HSET', key, 'state', BATCH_OPEN)
  redis.call('ZREM', '{lf}:orphans', batch)
  redis.call('SADD', '{lf}:active:' .. model, batch)
  raise_virtual_time(batch)
end

-- Count `count` jobs of a part that have ended, `released` of them under a lease that ends with them.
-- Return 1 if the part is full now.
local function count_ended(batch, part, count, counter, released, now)
  local counters = read_counters(batch)
  counters[counter], counters.leased = counters[counter] + count, counters.leased - released
  redis.call('HSET', batch_key(batch), counter, counters[counter], 'leased', counters.leased, 'last_ms', now)
  count_unfinished(batch, counters.account, -count)
  complete_if_done(batch, now, counters)
  local ended = redis.call('HINCRBY', '{lf}:ended:' .. batch, decimal(part), count)
  if ended == part_size(part, counters.total) then
    queue_flush(batch, part, now)
    return 1
  end
  return 0
end

-- Pause a batch that fails more than its budget allows. Invalid rows do not count: they have a limit of their own.
local function check_failure_budget(batch, now)
  local f = read_fields(batch, 'budget', 'done', 'failed', 'invalid', 'cancelled', 'drafted', 'budget_done',
    'budget_failed', 'paused_by')
  local share = tonumber(f.budget)
  -- what was discarded was drafted first
  local done = f.done + f.cancelled + f.drafted - f.budget_done
  local failed = f.failed - f.invalid - f.budget_failed
  if share == 0 or f.paused_by ~= '' then return end
  local hopeless = done == 0 and failed >= BUDGET_FIRST_FAILURES
  if not hopeless and (done + failed < BUDGET_MIN_JOBS or failed <= share * (done + failed)) then return end
  local by_code = {}
  local counts = redis.call('HGETALL', '{lf}:error_counts:' .. batch)
  for at = 1, #counts, 2 do by_code[#by_code + 1] = counts[at] .. ' ' .. counts[at + 1] end
  table.sort(by_code)
  redis.call('HSET', batch_key(batch), 'paused_by', PAUSED_BY_FAILURE_BUDGET,
    'paused', decimal(failed) .. ' failed and ' .. decimal(done) .. ' done (' .. table.concat(by_code, ', ') .. ')')
  place(batch, now)
  add_batch_event('paused', batch)
end

-- Fail a job that is no longer leased. Return 1 if its part is full now.
local function record_failure(batch, index, error, now)
  set_state(batch, index, FAILED)
  set_checkpoint(batch, index, 0)
  redis.call('HSET', '{lf}:errors:' .. batch, decimal(index), error)
  redis.call('HINCRBY', '{lf}:error_counts:' .. batch, cjson.decode(error).code, 1)
  local full = count_ended(batch, part_of(index), 1, 'failed', 0, now)
  check_failure_budget(batch, now)
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
  -- the checkpoint may be what ended the worker
  if crashed then set_checkpoint(batch, index, 0) end
  if crashes < POISON_CRASHES and losses < POISON_LOSSES then
    requeue(batch, index, name, crashed and now + retry_delay_ms(crashes) or now, now)
    return 'requeued'
  end
  drop_lease(batch, name)
  mark_lost_lease(batch)
  local message = 'lost ' .. losses .. (losses == 1 and ' time' or ' times') .. ' with ' .. workers
    .. (workers == 1 and ' worker' or ' workers') .. ', ' .. crashes .. ' of them in a call for this job'
  record_failure(batch, index, cjson.encode({ code = POISON, message = message, worker = worker }), now)
  return 'poison'
end
