-- A worker is here. ARGV: model, worker, forget_ms. Returns the jobs of the model that wait to be leased.
local model, now = ARGV[1], now_ms()
redis.call('ZADD', 'lf:workers:' .. model, now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', 'lf:workers:' .. model, '-inf', now - tonumber(ARGV[3]))
return waiting_jobs(model)
