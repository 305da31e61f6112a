-- Record the outcome of an attempt to send a webhook.
-- ARGV: batch, ended_ms, retries, number of the attempt, outcome (sent, retry or failed), error, delay_ms to the next
-- attempt. Returns 1, or 0 if the attempt is out of date.
local batch, ended_ms, retries, attempt, outcome, error, delay_ms = unpack(ARGV)
local key = batch_key(batch)
local f = read_fields(batch, 'ended_ms', 'retries', 'webhook_attempts', 'webhook_state')
-- the batch runs again, has ended once more, or the event is resolved
if f.ended_ms ~= ended_ms or f.retries ~= retries or f.webhook_state ~= 'due' then return 0 end
-- a delivery always counts; a failure only if no later attempt has begun
if outcome ~= 'sent' and f.webhook_attempts ~= attempt then return 0 end
if outcome == 'retry' then
  redis.call('ZADD', '{lf}:webhooks', now_ms() + tonumber(delay_ms), batch)
  redis.call('HSET', key, 'webhook_error', error)
else
  redis.call('ZREM', '{lf}:webhooks', batch)
  redis.call('HSET', key, 'webhook_state', outcome, 'webhook_error', error)
end
return 1
