-- All parts of the batch are written: let it go on. ARGV: batch, chain, closed, cancelled (0 or 1 each).
-- Returns the state after it.
local batch = ARGV[1]
local key, now = batch_key(batch), now_ms()
local f = redis.call('HMGET', key, 'state', 'model', 'total', 'done', 'failed', 'invalid')
if f[1] ~= 'recovering' then return f[1] or '' end
redis.call('HSET', key, 'parts_digest', ARGV[2], 'budget_done', f[4], 'budget_failed', tonumber(f[5]) - tonumber(f[6]))
if ARGV[4] == '1' then
  redis.call('HSET', key, 'state', 'cancelled', 'cancelled', tonumber(f[3]) - tonumber(f[4]) - tonumber(f[5]))
  flush_what_ended(batch)
  return 'cancelled'
end
redis.call('HSET', key, 'state', ARGV[3] == '1' and 'open' or 'opening')
redis.call('SADD', 'lf:open:' .. f[2], batch)
raise_virtual_time(batch, f[2])
complete_if_done(batch, now, read_counters(batch))
return redis.call('HGET', key, 'state')
