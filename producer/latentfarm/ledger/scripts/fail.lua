-- A job could not be rendered, by its own fault. ARGV: name, epoch, error, retry (0 or 1), max attempts, delay_ms.
-- Returns 'failed', 'full' (failed, and with it its part is ended), 'retry' or 'stale'.
local name, epoch, error = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local batch, index = split(name)
if holder(name) ~= epoch then return 'stale' end
local now = now_ms()
local attempts = redis.call('HINCRBY', 'lf:attempts:' .. batch, text(index), 1)
if ARGV[4] == '1' and attempts < tonumber(ARGV[5]) then
  redis.call('HSET', 'lf:errors:' .. batch, text(index), error)
  give_back(batch, index, name, now + tonumber(ARGV[6]))
  return 'retry'
end
drop_lease(batch, name)
if record_failure(batch, index, error, now) == 1 then return 'full' end
return 'failed'
