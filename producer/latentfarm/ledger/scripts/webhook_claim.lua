-- Claim batches whose webhook is due. If a sender dies, its batches are due again after hold_ms. ARGV: limit, hold_ms.
-- Returns for each batch: name, URL, number of this attempt, state, ended_ms, retries, model, total, done, failed,
-- cancelled, a list of error codes each followed by its count, and the time.
local now, hold_ms, claimed = now_ms(), tonumber(ARGV[2]), {}
for _, batch in ipairs(redis.call('ZRANGEBYSCORE', 'lf:webhooks', '-inf', now, 'LIMIT', 0, tonumber(ARGV[1]))) do
  local key = batch_key(batch)
  local f = read_fields(batch, 'state', 'webhook', 'ended_ms', 'retries', 'model', 'total', 'done', 'failed',
    'cancelled')
  if is_final(f.state) then
    redis.call('ZADD', 'lf:webhooks', now + hold_ms, batch)
    local attempt = redis.call('HINCRBY', key, 'webhook_attempts', 1)
    claimed[#claimed + 1] = { batch, f.webhook, attempt, f.state, f.ended_ms, f.retries, f.model, f.total, f.done,
      f.failed, f.cancelled, redis.call('HGETALL', 'lf:error_counts:' .. batch), now }
  else
    -- the batch is deleted, or its failed jobs run again: its next end queues the webhook again
    redis.call('ZREM', 'lf:webhooks', batch)
    if f.state then redis.call('HSET', key, 'webhook_state', '') end
  end
end
return claimed
