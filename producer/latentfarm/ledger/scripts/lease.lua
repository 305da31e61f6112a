-- Lease up to k jobs of a model: from the batch of the highest priority, among equals from the one of the lowest
-- virtual time. In a batch, a job that runs alone comes first, then requeued jobs, then the jobs at the cursor.
-- ARGV: model, worker, k, lease_ms, request ('' or an id that no other request of the worker has), alone (1 if one of
-- the jobs may be one that runs alone: a worker that dies has at most one of them, so the others are not suspected).
-- If a request has the id of the one before, the reply to that one may have been lost: its leases that are still held
-- are returned again, with their full time, for any k.
-- Returns [batch, index, epoch, charged attempts, ms since the batch was created, company] for each job.
local model, worker, wanted, lease_ms, request = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local may_run_alone = ARGV[6] == '1'
local started_us = now_us()
local now = math.floor(started_us / 1000)
local REPLY_KEY, REPLY_KEEP_S = '{lf}:lease_reply:' .. worker, 3600
-- bytes of job states that one call scans at most, and in one read
local MAX_SCAN, SCAN_BLOCK = 4000000, 65536
local scanned = 0
local leased, expiries, holders = {}, {}, {}

local function repeat_reply()
  local held, reply = {}, request ~= '' and redis.call('GET', REPLY_KEY)
  if not reply or string.match(reply, '^[^\n]*') ~= request then return held end
  for name, epoch, attempts, company in string.gmatch(reply, '\n(%S+) (%d+) (%d+) (%d+)') do
    if holder_of(name) == tonumber(epoch) then
      local batch, index = parse_name(name)
      redis.call('ZADD', '{lf}:leases', 'XX', now + lease_ms, name)
      held[#held + 1] = { batch, index, tonumber(epoch), tonumber(attempts), 0, tonumber(company) }
    end
  end
  return held
end

local function store_reply()
  local lines = { request }
  for _, job in ipairs(leased) do
    lines[#lines + 1] = table.concat({ job_name(job[1], job[2]), decimal(job[3]), job[4], job[6] }, ' ')
  end
  redis.call('SET', REPLY_KEY, table.concat(lines, '\n'), 'EX', REPLY_KEEP_S)
end

-- Return the batches of the model of which jobs may be leased
local function runnable_batches()
  local batches = {}
  for _, name in ipairs(redis.call('SMEMBERS', '{lf}:active:' .. model)) do
    local state, paused_by, total, canary, cursor, priority, virtual_time, weight, epoch, sparse, created_ms, leases,
      first_ms = unpack(redis.call('HMGET', batch_key(name), 'state', 'paused_by', 'total', 'canary', 'cursor',
        'priority', 'virtual_time', 'weight', 'epoch', 'sparse', 'created_ms', 'leased', 'first_ms'))
    local limit = lease_limit(state, paused_by, total, canary)
    if limit then
      batches[#batches + 1] = {
        name = name, limit = limit, cursor = tonumber(cursor), cursor_before = tonumber(cursor), taken = 0,
        priority = tonumber(priority), virtual_time = tonumber(virtual_time), weight = tonumber(weight),
        sparse = sparse ~= '0', leased = tonumber(leases), first_ms = first_ms or now, age_ms = now - created_ms,
        -- the clock keeps epochs rising even if Redis was restored from an older snapshot
        epoch = math.max(tonumber(epoch), started_us),
      }
    end
  end
  return batches
end

local function is_before(one, other)
  if one.priority ~= other.priority then return one.priority > other.priority end
  if one.virtual_time ~= other.virtual_time then return one.virtual_time < other.virtual_time end
  return one.name < other.name
end

local function first_place(batches)
  local best = 1
  for at = 2, #batches do
    if is_before(batches[at], batches[best]) then best = at end
  end
  return best
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

-- Return the next job at the cursor that does not wait for its time in a queue. Only a recovered batch has such jobs.
local function next_at_cursor(batch)
  while true do
    if batch.sparse and not skip_to_pending(batch) then return nil end
    if batch.cursor >= batch.limit then return nil end
    batch.cursor = batch.cursor + 1
    local index = decimal(batch.cursor - 1)
    if not batch.sparse or not (redis.call('ZSCORE', '{lf}:requeued:' .. batch.name, index)
      or redis.call('ZSCORE', '{lf}:suspects:' .. batch.name, index)) then
      return batch.cursor - 1
    end
  end
end

-- Return the next job that runs alone; nil if none is due or the worker may have no more
local function next_alone(batch)
  local key = '{lf}:suspects:' .. batch.name
  local index = may_run_alone and redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, 1)[1]
  if not index then return nil end
  may_run_alone = false
  redis.call('ZREM', key, index)
  return index
end

local function next_requeued(batch)
  local key = '{lf}:requeued:' .. batch.name
  if not batch.requeued then
    batch.requeued, batch.requeued_at = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, wanted), 0
  end
  batch.requeued_at = batch.requeued_at + 1
  local index = batch.requeued[batch.requeued_at]
  if index then redis.call('ZREM', key, index) end
  return index
end

-- Return the next index of the batch, its charged attempts and its company; nil if the batch has no more
local function next_index(batch)
  local again = next_alone(batch) or next_requeued(batch)
  if again then
    local company, attempts = company_of(batch.name, tonumber(again))
    return tonumber(again), attempts, company
  end
  return next_at_cursor(batch), 0, COMPANY_ANY
end

local function record(batch, index, attempts, company)
  local name = job_name(batch.name, index)
  batch.taken = batch.taken + 1
  batch.virtual_time = batch.virtual_time + 1 / batch.weight
  set_state(batch.name, index, LEASED)
  local epoch = batch.epoch + batch.taken
  expiries[#expiries + 1], expiries[#expiries + 2] = now + lease_ms, name
  holders[#holders + 1], holders[#holders + 2] = name, decimal(epoch) .. ' ' .. worker
  leased[#leased + 1] = { batch.name, index, epoch, attempts, batch.age_ms, company }
end

local function save(batches)
  for _, batch in ipairs(batches) do
    local key = batch_key(batch.name)
    if batch.taken > 0 then
      redis.call('HSET', key, 'cursor', batch.cursor, 'epoch', decimal(batch.epoch + batch.taken), 'virtual_time',
        tostring(batch.virtual_time), 'leased', batch.leased + batch.taken, 'first_ms', batch.first_ms)
    elseif batch.cursor ~= batch.cursor_before then
      redis.call('HSET', key, 'cursor', batch.cursor)
    end
  end
  if #leased == 0 then return end
  redis.call('ZADD', '{lf}:leases', unpack(expiries))
  redis.call('HSET', '{lf}:holders', unpack(holders))
  if request ~= '' then store_reply() end
end

local held = repeat_reply()
if #held > 0 then return held end

local batches, left = runnable_batches(), {}
for at, batch in ipairs(batches) do left[at] = batch end
while #leased < wanted and #left > 0 do
  local at = first_place(left)
  local index, attempts, company = next_index(left[at])
  if index then
    record(left[at], index, attempts, company)
  else
    -- the order in `left` does not matter
    left[at] = left[#left]
    left[#left] = nil
  end
end
save(batches)
return leased
