-- A worker is here. ARGV: model, worker, forget_ms; then name and value of each figure measured since its last beat.
-- Returns the jobs of the model that wait to be leased.
local model, now = ARGV[1], now_ms()
redis.call('ZADD', 'lf:workers:' .. model, now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', 'lf:workers:' .. model, '-inf', now - tonumber(ARGV[3]))
for at = 4, #ARGV, 2 do redis.call('HINCRBYFLOAT', 'lf:speed:' .. model, ARGV[at], ARGV[at + 1]) end
return waiting_jobs(model)
