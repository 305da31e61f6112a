-- Make a claimed part due again, as it could not be stored.
-- ARGV: batch, part, delay_ms, and the longest delay_ms if the part itself is the reason: then the delay doubles with
-- each such failure. Returns the delay in milliseconds.
local batch, part, delay_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
if ARGV[4] and redis.call('ZSCORE', '{lf}:flush_queue', batch .. '/' .. part) then
  local failures = redis.call('HINCRBY', '{lf}:flush_errors:' .. batch, part, 1)
  delay_ms = math.min(delay_ms * 2 ^ (failures - 1), tonumber(ARGV[4]))
end
redis.call('ZADD', '{lf}:flush_queue', 'XX', now_ms() + delay_ms, batch .. '/' .. part)
return delay_ms
