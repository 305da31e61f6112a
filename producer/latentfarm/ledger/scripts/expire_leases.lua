-- End the leases that were not renewed in time. Their workers may be dead, cut off or stopped: no job is charged, but
-- the loss is recorded, see `lose`.
-- ARGV: limit, lock_ms, patience_ms. If this did not run for patience_ms, Redis or the whole farm was down and no lease
-- could be renewed: then no lease expires for another patience_ms.
-- Returns the number of expired leases, or -1 if another worker is at it.
if not redis.call('SET', '{lf}:sweep_lock', '1', 'NX', 'PX', ARGV[2]) then return -1 end
local now, patience_ms = now_ms(), tonumber(ARGV[3])
local last = tonumber(redis.call('GET', '{lf}:last_sweep') or now)
redis.call('SET', '{lf}:last_sweep', now)
if now - last > patience_ms then redis.call('SET', '{lf}:grace_until', now + patience_ms, 'PX', patience_ms) end
if now < tonumber(redis.call('GET', '{lf}:grace_until') or 0) then return 0 end

local expired = redis.call('ZRANGEBYSCORE', '{lf}:leases', '-inf', now, 'LIMIT', 0, tonumber(ARGV[1]))
for _, name in ipairs(expired) do
  local batch, index = parse_name(name)
  lose(batch, index, name, false, now)
end
return #expired
