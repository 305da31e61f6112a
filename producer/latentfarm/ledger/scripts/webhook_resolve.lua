-- What became of an attempt to tell a batch's end. ARGV: batch, completed_ms, retries and number of the attempt, outcome
-- (sent, retry or failed), error, delay_ms until the next attempt. Returns 1, or 0 where this attempt decides nothing
-- any more.
local batch, completed, retries, attempt, outcome, error, delay_ms = unpack(ARGV)
local key = batch_key(batch)
local f = redis.call('HMGET', key, 'completed_ms', 'retries', 'webhook_attempts', 'webhook_state')
-- the batch runs again or has ended once more since, or the matter is closed
if f[1] ~= completed or f[2] ~= retries or f[4] ~= 'due' then return 0 end
-- what was delivered is delivered; a failure counts only while nobody has claimed the event after it
if outcome ~= 'sent' and f[3] ~= attempt then return 0 end
if outcome == 'retry' then
  redis.call('ZADD', 'lf:webhooks', now_ms() + tonumber(delay_ms), batch)
  redis.call('HSET', key, 'webhook_error', error)
else
  redis.call('ZREM', 'lf:webhooks', batch)
  redis.call('HSET', key, 'webhook_state', outcome, 'webhook_error', error)
end
return 1
