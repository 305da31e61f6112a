-- Lease up to k jobs of a model: the batch of highest priority first, then the least served per weight;
-- within a batch the jobs that came back first, then the cursor.
-- ARGV: model, worker, k, lease_ms, request: '', or what tells this call from any other of the worker. The answer to
-- it may be lost on the way: asked again it is given again, as far as its leases are still held, whatever k is.
-- Returns [batch, index, epoch, attempts charged so far, ms since the batch was reserved] for each job.
local model, worker, wanted, lease_ms, request = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local moment = now_us()
local now = math.floor(moment / 1000)
local leased = {}
local ANSWER_KEY, ANSWER_KEEP_S = 'lf:lease_reply:' .. worker, 3600
-- bytes of state looked at in one call for the next pending job
local MAX_SCAN, BLOCK = 4000000, 65536
local scanned = 0

-- The leases that this very request was given before and that are still held, with their full time again
local function answered_before()
  local held, answer = {}, request ~= '' and redis.call('GET', ANSWER_KEY)
  if not answer or string.match(answer, '^[^\n]*') ~= request then return held end
  for name, epoch, attempts in string.gmatch(answer, '\n(%S+) (%d+) (%d+)') do
    if holder(name) == tonumber(epoch) then
      local batch, index = split(name)
      redis.call('ZADD', 'lf:leases', 'XX', now + lease_ms, name)
      held[#held + 1] = { batch, index, tonumber(epoch), tonumber(attempts) }
    end
  end
  return held
end

local function remember()
  local lines = { request }
  for _, job in ipairs(leased) do
    lines[#lines + 1] = job_name(job[1], job[2]) .. ' ' .. text(job[3]) .. ' ' .. text(job[4])
  end
  redis.call('SET', ANSWER_KEY, table.concat(lines, '\n'), 'EX', ANSWER_KEEP_S)
end

local function candidates()
  local found = {}
  for _, batch in ipairs(redis.call('SMEMBERS', 'lf:open:' .. model)) do
    local f = redis.call('HMGET', batch_key(batch), 'state', 'paused_by', 'total', 'canary', 'cursor', 'priority', 'virtual_time',
      'weight', 'epoch', 'sparse', 'reserved_ms', 'leased', 'first_ms')
    local limit = leasable_until(f[1], f[2], f[3], f[4])
    if limit then
      found[#found + 1] = { name = batch, limit = limit, began = tonumber(f[5]), cursor = tonumber(f[5]),
        priority = tonumber(f[6]), served = tonumber(f[7]), weight = tonumber(f[8]), gaps = f[10] ~= '0', taken = 0, age = now - tonumber(f[11]),
        leased = tonumber(f[12]), first_ms = f[13] or now,
        -- higher than any before, even if Redis came back with an older record: the clock has moved on
        epoch = math.max(tonumber(f[9]), moment) }
    end
  end
  return found
end

local function before(one, other)
  if one.priority ~= other.priority then return one.priority > other.priority end
  if one.served ~= other.served then return one.served < other.served end
  return one.name < other.name
end

local function first(batches)
  local best = 1
  for at = 2, #batches do
    if before(batches[at], batches[best]) then best = at end
  end
  return best
end

-- Move the cursor behind jobs that are not pending: wrong rows, or all that was done before a recovery.
-- Returns whether a pending one is there.
local function skip_to_pending(batch)
  while batch.cursor < batch.limit and scanned < MAX_SCAN do
    local at = batch.cursor % CHUNK
    local length = math.min(BLOCK, batch.limit - batch.cursor, CHUNK - at)
    local key = 'lf:states:' .. batch.name .. ':' .. math.floor(batch.cursor / CHUNK)
    local bytes = redis.call('GETRANGE', key, at, at + length - 1)
    local found = string.find(bytes, '\0', 1, true)
    if found or #bytes < length then
      batch.cursor = batch.cursor + (found and found - 1 or #bytes)
      scanned = scanned + (found or #bytes)
      return true
    end
    batch.cursor, scanned = batch.cursor + length, scanned + length
  end
  return false
end

-- The next index of the batch and the attempts charged to it, or nil
local function next_job(batch)
  if not batch.again then
    batch.again = redis.call('ZRANGEBYSCORE', 'lf:requeued:' .. batch.name, '-inf', now, 'LIMIT', 0, wanted)
    batch.returned = 0
  end
  if batch.returned < #batch.again then
    batch.returned = batch.returned + 1
    local index = batch.again[batch.returned]
    redis.call('ZREM', 'lf:requeued:' .. batch.name, index)
    return tonumber(index), tonumber(redis.call('HGET', 'lf:attempts:' .. batch.name, index) or '0')
  end
  if batch.gaps and not skip_to_pending(batch) then return nil end
  if batch.cursor >= batch.limit then return nil end
  batch.cursor = batch.cursor + 1
  return batch.cursor - 1, 0
end

local expiries, holders = {}, {}

local function take(batch, index, attempts)
  local name = job_name(batch.name, index)
  batch.taken = batch.taken + 1
  batch.served = batch.served + 1 / batch.weight
  set_state(batch.name, index, LEASED)
  expiries[#expiries + 1] = now + lease_ms
  expiries[#expiries + 1] = name
  holders[#holders + 1] = name
  holders[#holders + 1] = text(batch.epoch + batch.taken) .. ' ' .. worker
  leased[#leased + 1] = { batch.name, index, batch.epoch + batch.taken, attempts, batch.age }
end

local held = answered_before()
if #held > 0 then return held end

local batches = candidates()
local touched = { unpack(batches) }
while #leased < wanted and #batches > 0 do
  local at = first(batches)
  local index, attempts = next_job(batches[at])
  if index then take(batches[at], index, attempts) else table.remove(batches, at) end
end
for _, batch in ipairs(touched) do
  local key = batch_key(batch.name)
  if batch.taken > 0 then
    redis.call('HSET', key, 'cursor', batch.cursor, 'epoch', text(batch.epoch + batch.taken), 'virtual_time',
      tostring(batch.served), 'leased', batch.leased + batch.taken, 'first_ms', batch.first_ms)
  elseif batch.cursor ~= batch.began then
    redis.call('HSET', key, 'cursor', batch.cursor)
  end
end
if #leased > 0 then
  redis.call('ZADD', 'lf:leases', unpack(expiries))
  redis.call('HSET', 'lf:holders', unpack(holders))
  if request ~= '' then remember() end
end
return leased
