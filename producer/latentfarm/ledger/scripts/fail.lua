-- Charge a job an attempt for an error that is its own fault. It runs again if `retry` is 1 and attempts are left.
-- ARGV: name, epoch, error, retry (0 or 1), delay_ms before it runs again ('' for one that doubles with each attempt).
-- Returns 'failed', 'full' (failed, and its part is full now), 'retry', or 'stale' if the lease was lost.
local name, epoch, error = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local batch, index = parse_name(name)
if holder_of(name) ~= epoch then return 'stale' end
local now = now_ms()
local attempts = redis.call('HINCRBY', '{lf}:attempts:' .. batch, decimal(index), 1)
if ARGV[4] == '1' and attempts < MAX_ATTEMPTS then
  redis.call('HSET', '{lf}:errors:' .. batch, decimal(index), error)
  -- the checkpoint may be the cause
  set_checkpoint(batch, index, 0)
  requeue(batch, index, name, now + (tonumber(ARGV[5]) or retry_delay_ms(attempts)), now)
  return 'retry'
end
drop_lease(batch, name)
return record_failure(batch, index, error, now) == 1 and 'full' or 'failed'
