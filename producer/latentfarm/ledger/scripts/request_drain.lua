-- Let a worker know at its next heartbeat that it is to take no more jobs, and end. ARGV: worker.
-- Returns 1, or 0 if no worker has that name.
local key = '{lf}:worker:' .. ARGV[1]
if redis.call('EXISTS', key) == 0 then return 0 end
redis.call('HSET', key, 'drain', 1)
return 1
