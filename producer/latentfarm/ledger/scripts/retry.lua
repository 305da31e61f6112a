-- Let failed jobs run again, as if never tried. ARGV: batch, then index and error code of each.
-- Returns how many do; those that have not failed are left alone; -1 for an unknown or ended-for-good batch.
local batch, retried = ARGV[1], 0
local key, now = batch_key(batch), now_ms()
local f = redis.call('HMGET', key, 'state', 'model', 'total')
if f[1] ~= 'opening' and f[1] ~= 'open' and f[1] ~= 'complete' then return -1 end
for at = 2, #ARGV, 2 do
  local index = tonumber(ARGV[at])
  if get_state(batch, index) == FAILED then
    local part = math.floor(index / PART)
    -- a part that was trimmed counts no more, since all of it had ended
    redis.call('HSETNX', 'lf:parts:' .. batch, text(part), part_size(part, tonumber(f[3])))
    redis.call('HINCRBY', 'lf:parts:' .. batch, text(part), -1)
    redis.call('SREM', 'lf:flush', job_name(batch, part))
    set_state(batch, index, PENDING)
    redis.call('HDEL', 'lf:attempts:' .. batch, text(index))
    redis.call('HDEL', 'lf:lost_by:' .. batch, text(index))
    redis.call('HDEL', 'lf:errors:' .. batch, text(index))
    redis.call('ZADD', 'lf:requeued:' .. batch, now, text(index))
    if redis.call('HINCRBY', 'lf:reasons:' .. batch, ARGV[at + 1], -1) == 0 then
      redis.call('HDEL', 'lf:reasons:' .. batch, ARGV[at + 1])
    end
    retried = retried + 1
  end
end
if retried > 0 then
  redis.call('HINCRBY', key, 'failed', -retried)
  redis.call('HINCRBY', key, 'retries', 1)
  local failed, invalid = unpack(redis.call('HMGET', key, 'failed', 'invalid'))
  redis.call('HSET', key, 'budget_failed', tonumber(failed) - tonumber(invalid), 'budget_done', redis.call('HGET', key, 'done'))
  if f[1] == 'complete' then
    redis.call('HSET', key, 'state', 'open')
    redis.call('SADD', 'lf:open:' .. f[2], batch)
    raise_virtual_time(batch, f[2])
  end
end
return retried
