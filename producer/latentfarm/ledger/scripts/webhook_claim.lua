-- Claim batches whose end is to be told by now. ARGV: limit, hold_ms: so long nobody else claims them, and an event
-- whose sender died is claimed again after it.
-- Returns of each: batch, URL, number of this attempt, state, completed_ms, retries, model, total, done, failed,
-- cancelled, and a list of error codes, each followed by its count; then the time.
local now, hold_ms, taken = now_ms(), tonumber(ARGV[2]), {}
for _, batch in ipairs(redis.call('ZRANGEBYSCORE', 'lf:webhooks', '-inf', now, 'LIMIT', 0, tonumber(ARGV[1]))) do
  local key = batch_key(batch)
  local f = redis.call('HMGET', key, 'state', 'webhook', 'completed_ms', 'retries', 'model', 'total', 'done', 'failed',
    'cancelled')
  if f[1] == 'complete' or f[1] == 'cancelled' then
    redis.call('ZADD', 'lf:webhooks', now + hold_ms, batch)
    local attempt = redis.call('HINCRBY', key, 'webhook_attempts', 1)
    taken[#taken + 1] = { batch, f[2], attempt, f[1], f[3], f[4], f[5], f[6], f[7], f[8], f[9],
      redis.call('HGETALL', 'lf:reasons:' .. batch), now }
  else
    -- it is deleted, or its failed jobs run again and its next end will be told
    redis.call('ZREM', 'lf:webhooks', batch)
    if f[1] then redis.call('HSET', key, 'webhook_state', '') end
  end
end
return taken
