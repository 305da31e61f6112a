-- Let failed jobs run again, as if they had never run. ARGV: batch, then index and error code of each.
-- Returns how many run again, or -1 if the batch is unknown, cancelled or deleted. A job that has not failed is left
-- alone.
local batch, retried = ARGV[1], 0
local key, now = batch_key(batch), now_ms()
local f = read_fields(batch, 'state', 'model', 'total', 'done')
if not is_active(f.state) and f.state ~= BATCH_COMPLETE then return -1 end

local function retry(index, code)
  local part, field = decimal(part_of(index)), decimal(index)
  -- the count of a flushed part was removed: all its jobs had ended
  redis.call('HSETNX', '{lf}:ended:' .. batch, part, part_size(part_of(index), tonumber(f.total)))
  redis.call('HINCRBY', '{lf}:ended:' .. batch, part, -1)
  redis.call('ZREM', '{lf}:flush_queue', batch .. '/' .. part)
  set_state(batch, index, PENDING)
  for _, kind in ipairs({ 'attempts', 'lost_by', 'errors' }) do
    redis.call('HDEL', '{lf}:' .. kind .. ':' .. batch, field)
  end
  redis.call('ZADD', '{lf}:requeued:' .. batch, now, field)
  if redis.call('HINCRBY', '{lf}:error_counts:' .. batch, code, -1) == 0 then
    redis.call('HDEL', '{lf}:error_counts:' .. batch, code)
  end
  retried = retried + 1
end

for at = 2, #ARGV, 2 do
  local index = tonumber(ARGV[at])
  if get_state(batch, index) == FAILED then retry(index, ARGV[at + 1]) end
end
if retried == 0 then return 0 end
local failed = redis.call('HINCRBY', key, 'failed', -retried)
redis.call('HINCRBY', key, 'retries', 1)
redis.call('HSET', key, 'budget_failed', failed - redis.call('HGET', key, 'invalid'), 'budget_done', f.done)
if f.state == BATCH_COMPLETE then
  redis.call('HSET', key, 'state', BATCH_OPEN)
  redis.call('ZREM', '{lf}:orphans', batch)
  redis.call('SADD', '{lf}:active:' .. f.model, batch)
  raise_virtual_time(batch)
end
place(batch, now)
add_batch_event('retried', batch)
return retried
