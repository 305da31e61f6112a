-- Lease up to k jobs of a model: from the batch of the highest priority, among equals from the one of the lowest
-- virtual time. If several batches of one priority have jobs, one call takes a run of at most half of its jobs from one,
-- but MIN_RUN: a run costs less than jobs of many batches. In a batch, a job that runs alone comes first, then requeued
-- jobs, then the jobs at the cursor.
-- ARGV: model, worker, k, lease_ms, request ('' or an id that no other request of the worker has), alone (1 if one of
-- the jobs may be one that runs alone: a worker that dies has at most one of them, so the others are not suspected),
-- urgent (1: only jobs of urgent batches).
-- If a request has the id of the one before, the reply to that one may have been lost: its leases that are still held
-- are returned again, with their full time, for any k.
-- Returns a list of runs of consecutive jobs under one epoch: [batch, first index, jobs, epoch, charged attempts,
-- creation of the batch, company, urgency as in `urgency_of`, epoch of the checkpoint from which they go on (0 for none),
-- 1 if they are rendered to their end also if their rows have drafts].
local model, worker, wanted, lease_ms, request = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local may_run_alone = ARGV[6] == '1'
local only_urgent = ARGV[7] == '1'
local RUNNABLE = (only_urgent and '{lf}:urgent:' or '{lf}:runnable:') .. model
local ALONE = (only_urgent and '{lf}:urgent_alone:' or '{lf}:alone:') .. model
local started_us = now_us()
local now = math.floor(started_us / 1000)
local REPLY_KEY, REPLY_KEEP_S = '{lf}:lease_reply:' .. worker, 3600
-- bytes of job states that one call scans at most, and in one read
local MAX_SCAN, SCAN_BLOCK = 4000000, 65536
-- batches whose time has come that one call moves at most
local MAX_DUE = 100
local MIN_RUN = 32
local scanned, taken = 0, 0
local runs, expiries, holders = {}, {}, {}

local function repeat_reply()
  local held, reply = {}, request ~= '' and redis.call('GET', REPLY_KEY)
  if not reply or string.match(reply, '^[^\n]*') ~= request then return held end
  for batch, index, count, epoch, attempts, company, urgency, checkpoint, finish in
    string.gmatch(reply, '\n(%S+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)') do
    for at = 0, count - 1 do
      local name = job_name(batch, index + at)
      if holder_of(name) == tonumber(epoch) then
        redis.call('ZADD', '{lf}:leases', 'XX', now + lease_ms, name)
        local created_ms = tonumber(redis.call('HGET', batch_key(batch), 'created_ms'))
        held[#held + 1] = { batch, index + at, 1, tonumber(epoch), tonumber(attempts), created_ms, tonumber(company),
          tonumber(urgency), tonumber(checkpoint), tonumber(finish) }
      end
    end
  end
  return held
end

local function store_reply()
  local lines = { request }
  for _, run in ipairs(runs) do
    lines[#lines + 1] = table.concat({ run[1], decimal(run[2]), run[3], decimal(run[4]), run[5], run[7], run[8],
      decimal(run[9]), run[10] }, ' ')
  end
  redis.call('SET', REPLY_KEY, table.concat(lines, '\n'), 'EX', REPLY_KEEP_S)
end

-- Return the first batch of a queue, its score, and the score of the second
local function first_of(key)
  local found = redis.call('ZRANGE', key, 0, 1, 'WITHSCORES')
  return found[1], tonumber(found[2]), tonumber(found[4])
end

-- Return the batch that is next, how many jobs one run takes from it at most, and whether it comes for its job alone
local function next_batch()
  local name, score, second = first_of(RUNNABLE)
  if may_run_alone then
    local other, other_score = first_of(ALONE)
    if other and (not name or other_score < score or (other_score == score and other <= name)) then
      return other, 1, true
    end
  end
  local shared = second and second - score < PRIORITY_STEP / 2
  return name, shared and math.max(MIN_RUN, math.ceil(wanted / 2)) or wanted, false
end

local function read_batch(name)
  local total, canary, cursor, priority, virtual_time, weight, epoch, sparse, created_ms, leased, first_ms, counted,
    account, preempt = unpack(redis.call('HMGET', batch_key(name), 'total', 'canary', 'cursor', 'priority',
      'virtual_time', 'weight', 'epoch', 'sparse', 'created_ms', 'leased', 'first_ms', 'counted', 'account', 'preempt'))
  return {
    name = name, limit = canary == '0' and tonumber(total) or math.min(total, canary), cursor = tonumber(cursor),
    taken = 0, virtual_time = tonumber(virtual_time), weight = tonumber(weight), sparse = sparse ~= '0',
    leased = tonumber(leased), first_ms = first_ms or now, created_ms = tonumber(created_ms), priority = priority,
    counted = counted, urgency = urgency_of(account, preempt),
    -- the clock keeps epochs rising even if Redis was restored from an older snapshot
    epoch = math.max(tonumber(epoch), started_us) + 1,
  }
end

-- Lease jobs of a batch from an index on
local function record(batch, index, count, attempts, company, checkpoint, finish)
  local expiry, holder, prefix, at = now + lease_ms, decimal(batch.epoch) .. ' ' .. worker, batch.name .. '/', 2 * taken
  for each = index, index + count - 1 do
    local name = prefix .. each
    expiries[at + 1], expiries[at + 2], holders[at + 1], holders[at + 2] = expiry, name, name, holder
    at = at + 2
  end
  set_states(batch.name, index, count, LEASED)
  batch.taken, taken = batch.taken + count, taken + count
  runs[#runs + 1] = { batch.name, index, count, batch.epoch, attempts, batch.created_ms, company, batch.urgency,
    checkpoint, finish }
end

-- Lease requeued jobs of a queue
local function take_again(batch, key, count)
  local due = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, count)
  if #due == 0 then return end
  redis.call('ZREM', key, unpack(due))
  local checkpoints = redis.call('HMGET', '{lf}:checkpoints:' .. batch.name, unpack(due))
  for at, index in ipairs(due) do
    local company, attempts = company_of(batch.name, tonumber(index))
    record(batch, tonumber(index), 1, attempts, company, parse_checkpoint(checkpoints[at]))
  end
end

-- Move the cursor of a sparse batch to the next pending job; return whether there is one
local function skip_to_pending(batch)
  while batch.cursor < batch.limit and scanned < MAX_SCAN do
    local at = batch.cursor % CHUNK
    local length = math.min(SCAN_BLOCK, batch.limit - batch.cursor, CHUNK - at)
    local bytes = redis.call('GETRANGE', chunk_key(batch.name, batch.cursor), at, at + length - 1)
    local found = string.find(bytes, string.char(PENDING), 1, true)
    if found or #bytes < length then
      batch.cursor = batch.cursor + (found and found - 1 or #bytes)
      scanned = scanned + (found or #bytes)
      return true
    end
    batch.cursor, scanned = batch.cursor + length, scanned + length
  end
  return false
end

-- Lease the next job of a sparse batch that does not wait for its time in a queue; return whether there is one
local function take_sparse(batch)
  while skip_to_pending(batch) do
    local index = batch.cursor
    batch.cursor = index + 1
    if not (redis.call('ZSCORE', '{lf}:requeued:' .. batch.name, decimal(index))
      or redis.call('ZSCORE', '{lf}:suspects:' .. batch.name, decimal(index))) then
      record(batch, index, 1, 0, COMPANY_ANY, 0, 0)
      return true
    end
  end
  return false
end

local function take_at_cursor(batch, count)
  if batch.sparse then
    while count > 0 and take_sparse(batch) do count = count - 1 end
    return
  end
  count = math.min(count, batch.limit - batch.cursor)
  if count <= 0 then return end
  -- a job that was never leased has no checkpoint
  record(batch, batch.cursor, count, 0, COMPANY_ANY, 0, 0)
  batch.cursor = batch.cursor + count
end

local function save(batch, alone)
  if batch.taken == 0 then
    redis.call('HSET', batch_key(batch.name), 'cursor', batch.cursor)
    return place(batch.name, now)
  end
  local virtual_time = batch.virtual_time + batch.taken / batch.weight
  -- what `place` would do, in fewer commands: the usual batch has more jobs at its cursor
  local stays = not alone and not batch.sparse and batch.cursor < batch.limit
  redis.call('HSET', batch_key(batch.name), 'cursor', batch.cursor, 'epoch', batch.epoch, 'virtual_time',
    virtual_time, 'leased', batch.leased + batch.taken, 'first_ms', batch.first_ms,
    'counted', stays and batch.counted - batch.taken or batch.counted)
  if not stays then return place(batch.name, now) end
  local score = rank(batch.priority, virtual_time)
  redis.call('ZADD', '{lf}:runnable:' .. model, score, batch.name)
  redis.call('ZADD', '{lf}:alone:' .. model, 'XX', score, batch.name)
  if batch.urgency > 0 then
    redis.call('ZADD', '{lf}:urgent:' .. model, score, batch.name)
    redis.call('ZADD', '{lf}:urgent_alone:' .. model, 'XX', score, batch.name)
  end
  redis.call('HINCRBY', '{lf}:pending', model, -batch.taken)
end

local function take(name, count, alone)
  local batch = read_batch(name)
  if alone then
    may_run_alone = false
    take_again(batch, '{lf}:suspects:' .. name, 1)
  else
    take_again(batch, '{lf}:requeued:' .. name, count)
    take_at_cursor(batch, count - batch.taken)
  end
  save(batch, alone)
end

local held = repeat_reply()
if #held > 0 then return held end

for _, name in ipairs(redis.call('ZRANGEBYSCORE', '{lf}:waiting:' .. model, '-inf', now, 'LIMIT', 0, MAX_DUE)) do
  place(name, now)
end
while taken < wanted and scanned < MAX_SCAN do
  local name, most, alone = next_batch()
  if not name then break end
  take(name, math.min(most, wanted - taken), alone)
end
if taken > 0 then
  -- Lua cannot unpack more than a few thousand at once, and a call leases at most 1,000
  redis.call('ZADD', '{lf}:leases', unpack(expiries))
  redis.call('HSET', '{lf}:holders', unpack(holders))
  if request ~= '' then store_reply() end
end
return runs
