-- Lease up to k jobs of a model: the batch of highest priority first, then the least served per weight;
-- within a batch the jobs that came back first, then the cursor.
-- ARGV: model, worker, k, lease_ms. Returns [batch, index, epoch, attempts charged so far] for each job.
local model, worker, wanted, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms()
local leased = {}

local function candidates()
  local found = {}
  for _, batch in ipairs(redis.call('SMEMBERS', 'lf:open:' .. model)) do
    local f = redis.call('HMGET', batch_key(batch), 'state', 'paused', 'total', 'hold', 'cursor', 'priority', 'served',
      'weight', 'epoch', 'invalid')
    local limit = leasable_until(f[1], f[2], f[3], f[4])
    if limit then
      found[#found + 1] = { name = batch, limit = limit, cursor = tonumber(f[5]), priority = tonumber(f[6]),
        served = tonumber(f[7]), weight = tonumber(f[8]), epoch = tonumber(f[9]), gaps = f[10] ~= '0', taken = 0 }
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

-- The next index of the batch and the attempts charged to it, or nil
local function next_job(batch)
  if not batch.again then
    batch.again = redis.call('ZRANGEBYSCORE', 'lf:again:' .. batch.name, '-inf', now, 'LIMIT', 0, wanted)
    batch.returned = 0
  end
  if batch.returned < #batch.again then
    batch.returned = batch.returned + 1
    local index = batch.again[batch.returned]
    redis.call('ZREM', 'lf:again:' .. batch.name, index)
    return tonumber(index), tonumber(redis.call('HGET', 'lf:attempts:' .. batch.name, index) or '0')
  end
  while batch.cursor < batch.limit do
    local index = batch.cursor
    batch.cursor = index + 1
    -- a wrong row of the prompt file has failed before it was ever leased
    if not batch.gaps or get_state(batch.name, index) == PENDING then return index, 0 end
  end
  return nil
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
  leased[#leased + 1] = { batch.name, index, batch.epoch + batch.taken, attempts }
end

local batches = candidates()
local touched = { unpack(batches) }
while #leased < wanted and #batches > 0 do
  local at = first(batches)
  local index, attempts = next_job(batches[at])
  if index then take(batches[at], index, attempts) else table.remove(batches, at) end
end
for _, batch in ipairs(touched) do
  local key = batch_key(batch.name)
  redis.call('HSET', key, 'cursor', batch.cursor)
  if batch.taken > 0 then
    redis.call('HINCRBY', key, 'epoch', batch.taken)
    redis.call('HINCRBY', key, 'leased', batch.taken)
    redis.call('HSET', key, 'served', tostring(batch.served))
    redis.call('HSETNX', key, 'first_ms', now)
  end
end
if #leased > 0 then
  redis.call('ZADD', 'lf:leases', unpack(expiries))
  redis.call('HSET', 'lf:holders', unpack(holders))
end
return leased
