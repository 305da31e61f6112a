-- Claim batches whose webhook is due. If a sender dies, its batches are due again after hold_ms.
-- ARGV: limit, hold_ms, wait_ms: a batch with results that are not in the bucket yet is due again after that time.
-- Returns for each batch: name, URL, number of this attempt, state, ended_ms, retries, model, total, done, failed,
-- cancelled, a list of error codes each followed by its count, and the time.
local now, limit, hold_ms, wait_ms = now_ms(), tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local claimed = {}

local function claim(batch, f)
  redis.call('ZADD', '{lf}:webhooks', now + hold_ms, batch)
  local attempt = redis.call('HINCRBY', batch_key(batch), 'webhook_attempts', 1)
  claimed[#claimed + 1] = { batch, f.webhook, attempt, f.state, f.ended_ms, f.retries, f.model, f.total, f.done,
    f.failed, f.cancelled, redis.call('HGETALL', '{lf}:error_counts:' .. batch), now }
end

-- those that have to wait must not keep the others from being sent; 100, so that one call stays short
for _, batch in ipairs(redis.call('ZRANGEBYSCORE', '{lf}:webhooks', '-inf', now, 'LIMIT', 0, 100)) do
  if #claimed == limit then break end
  local f = read_fields(batch, 'state', 'webhook', 'ended_ms', 'retries', 'model', 'total', 'done', 'failed',
    'cancelled')
  if f.state == BATCH_RECOVERING or (is_final(f.state) and redis.call('EXISTS', '{lf}:ended:' .. batch) == 1) then
    redis.call('ZADD', '{lf}:webhooks', now + wait_ms, batch)
  elseif is_final(f.state) then
    claim(batch, f)
  else
    -- the batch is deleted, or its failed jobs run again: its next end queues the webhook again
    redis.call('ZREM', '{lf}:webhooks', batch)
    if f.state then redis.call('HSET', batch_key(batch), 'webhook_state', '') end
  end
end
return claimed
