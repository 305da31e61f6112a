-- Lease up to k jobs of a model: the batch of highest priority first, then the least served per weight;
-- within a batch the jobs that came back first, then the cursor.
-- ARGV: model, worker, k, lease_ms. Returns [batch, index, epoch, attempts charged so far] for each job.
local model, worker, wanted, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms()
local leased = {}

local function candidates()
  local found = {}
  for _, batch in ipairs(redis.call('SMEMBERS', 'lf:open:' .. model)) do
    local f = redis.call('HMGET', batch_key(batch), 'state', 'priority', 'served', 'weight', 'cursor', 'total')
    if f[1] == 'open' then
      found[#found + 1] = { name = batch, priority = tonumber(f[2]), served = tonumber(f[3]),
        weight = tonumber(f[4]), cursor = tonumber(f[5]), total = tonumber(f[6]) }
    end
  end
  return found
end

local function before(one, other)
  if one.priority ~= other.priority then return one.priority > other.priority end
  if one.served ~= other.served then return one.served < other.served end
  return one.name < other.name
end

local function next_index(batch)
  local again = redis.call('ZRANGEBYSCORE', 'lf:again:' .. batch.name, '-inf', now, 'LIMIT', 0, 1)
  if again[1] then
    redis.call('ZREM', 'lf:again:' .. batch.name, again[1])
    return tonumber(again[1])
  end
  if batch.cursor < batch.total then
    local index = batch.cursor
    batch.cursor = index + 1
    redis.call('HSET', batch_key(batch.name), 'cursor', batch.cursor)
    return index
  end
  return nil
end

local function take(batch, index)
  local key, name = batch_key(batch.name), job_name(batch.name, index)
  local epoch = redis.call('HINCRBY', key, 'epoch', 1)
  batch.served = batch.served + 1 / batch.weight
  redis.call('HINCRBY', key, 'leased', 1)
  redis.call('HSET', key, 'served', tostring(batch.served))
  redis.call('HSETNX', key, 'first_ms', now)
  set_state(batch.name, index, LEASED)
  redis.call('ZADD', 'lf:leases', now + lease_ms, name)
  redis.call('HSET', 'lf:holders', name, text(epoch) .. ' ' .. worker)
  local attempts = redis.call('HGET', 'lf:attempts:' .. batch.name, text(index)) or '0'
  leased[#leased + 1] = { batch.name, index, epoch, tonumber(attempts) }
end

local batches = candidates()
while #leased < wanted and #batches > 0 do
  table.sort(batches, before)
  local index = next_index(batches[1])
  if index then take(batches[1], index) else table.remove(batches, 1) end
end
return leased
