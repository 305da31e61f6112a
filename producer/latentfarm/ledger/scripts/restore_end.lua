-- Every part of the batch is rebuilt: let its jobs run.
-- ARGV: batch, parts_digest, closed, cancelled (0 or 1 each), highest generation of results in the bucket.
-- Returns the state after it.
local batch = ARGV[1]
local key, now = batch_key(batch), now_ms()
local f = read_fields(batch, 'state', 'model', 'total', 'done', 'failed', 'cancelled', 'drafted', 'invalid', 'retries')
if f.state ~= BATCH_RECOVERING then return f.state or '' end
if tonumber(f.retries) <= tonumber(ARGV[5]) then redis.call('HSET', key, 'retries', decimal(tonumber(ARGV[5]) + 1)) end
redis.call('HSET', key, 'parts_digest', ARGV[2], 'budget_done', f.done + f.cancelled + f.drafted,
  'budget_failed', f.failed - f.invalid)
if ARGV[4] == '1' then
  redis.call('HSET', key, 'state', BATCH_CANCELLED, 'cancelled', f.total - f.done - f.failed, 'ended_ms', now)
  flush_started_parts(batch, now)
  queue_after_end(batch, now)
  add_batch_event('recovered', batch)
  return BATCH_CANCELLED
end
redis.call('HSET', key, 'state', ARGV[3] == '1' and BATCH_OPEN or BATCH_OPENING)
redis.call('SADD', '{lf}:active:' .. f.model, batch)
raise_virtual_time(batch)
place(batch, now)
add_batch_event('recovered', batch)
complete_if_done(batch, now, read_counters(batch))
return redis.call('HGET', key, 'state')
