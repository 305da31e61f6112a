-- A worker is here. ARGV: model, worker, forget_ms. Returns the jobs of the model that wait to be leased.
local model, now = ARGV[1], now_ms()
redis.call('ZADD', 'lf:workers:' .. model, now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', 'lf:workers:' .. model, '-inf', now - tonumber(ARGV[3]))
local waiting = 0
for _, batch in ipairs(redis.call('SMEMBERS', 'lf:open:' .. model)) do
  local f = redis.call('HMGET', batch_key(batch), 'state', 'cursor', 'total')
  if f[1] == 'open' then
    waiting = waiting + tonumber(f[3]) - tonumber(f[2]) + redis.call('ZCARD', 'lf:again:' .. batch)
  end
end
return waiting
