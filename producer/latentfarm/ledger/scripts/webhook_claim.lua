-- Claim batches whose webhook is due. If a sender dies, its batches are due again after hold_ms.
-- ARGV: limit, hold_ms, wait_ms: a batch with results that are not in the bucket yet is due again after that time.
-- Returns for each batch: name, URL, number of this attempt, state (drafted if what is left of the batch is), ended_ms,
-- retries, model, total, done, failed, cancelled, drafted, a list of error codes each followed by its count, and the time.
local now, limit, hold_ms, wait_ms = now_ms(), tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local claimed = {}

local function claim(batch, state, f)
  redis.call('ZADD', '{lf}:webhooks', now + hold_ms, batch)
  local attempt = redis.call('HINCRBY', batch_key(batch), 'webhook_attempts', 1)
  local ends = redis.call('HMGET', batch_key(batch), 'webhook', 'ended_ms', 'retries', 'model')
  claimed[#claimed + 1] = { batch, ends[1], attempt, state, ends[2], ends[3], ends[4], f.total, f.done, f.failed,
    f.cancelled, f.drafted, redis.call('HGETALL', '{lf}:error_counts:' .. batch), now }
end

-- Return the state in which a batch has ended, nil if it has not
local function end_of(f)
  if is_final(f.state) then return f.state end
  return f.state == BATCH_OPEN and all_ended(f) and BATCH_DRAFTED or nil
end

-- those that have to wait must not keep the others from being sent; 100, so that one call stays short
for _, batch in ipairs(redis.call('ZRANGEBYSCORE', '{lf}:webhooks', '-inf', now, 'LIMIT', 0, 100)) do
  if #claimed == limit then break end
  local f = read_counters(batch)
  local state = end_of(f)
  if f.state == BATCH_RECOVERING or (state and redis.call('EXISTS', '{lf}:ended:' .. batch) == 1) then
    redis.call('ZADD', '{lf}:webhooks', now + wait_ms, batch)
  elseif state then
    claim(batch, state, f)
  else
    -- the batch is deleted, or ended jobs run again: its next end queues the webhook again
    redis.call('ZREM', '{lf}:webhooks', batch)
    if f.state then redis.call('HSET', batch_key(batch), 'webhook_state', '') end
  end
end
return claimed
