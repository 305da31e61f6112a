-- Return the jobs whose lease ran out, each charged one attempt. A job that was lost with three workers, two of them
-- different, or with six, has failed: it is the job that kills them.
-- ARGV: limit, lock_ms, patience_ms: after so long without a look at the leases nobody could renew them either, Redis or
-- the whole farm being away; then their holders get as long to do so.
-- Returns the number of expired leases, or -1 when another worker sweeps.
if not redis.call('SET', 'lf:sweeper', '1', 'NX', 'PX', ARGV[2]) then return -1 end
local LOSSES, WORKERS, MOST_LOSSES = 3, 2, 6
local now, patience = now_ms(), tonumber(ARGV[3])
local swept = tonumber(redis.call('GET', 'lf:last_sweep') or now)
redis.call('SET', 'lf:last_sweep', now)
if now - swept > patience then redis.call('SET', 'lf:grace_until', now + patience, 'PX', patience) end
if now < tonumber(redis.call('GET', 'lf:grace_until') or 0) then return 0 end

-- Note one more loss; return how many there are, and of how many workers
local function lose(batch, index, worker)
  local losers = redis.call('HGET', 'lf:lost_by:' .. batch, text(index))
  losers = losers and losers .. ' ' .. worker or worker
  redis.call('HSET', 'lf:lost_by:' .. batch, text(index), losers)
  local count, seen, workers = 0, {}, 0
  for name in string.gmatch(losers, '%S+') do
    count = count + 1
    if not seen[name] then seen[name], workers = true, workers + 1 end
  end
  return count, workers
end

local expired = redis.call('ZRANGEBYSCORE', 'lf:leases', '-inf', now, 'LIMIT', 0, tonumber(ARGV[1]))
for _, name in ipairs(expired) do
  local batch, index = split(name)
  local _, worker = holder(name)
  redis.call('HINCRBY', 'lf:attempts:' .. batch, text(index), 1)
  local count, workers = lose(batch, index, worker)
  if (count >= LOSSES and workers >= WORKERS) or count >= MOST_LOSSES then
    drop_lease(batch, name)
    mark_lost_lease(batch, index)
    local message = 'lost ' .. count .. ' times with ' .. workers .. (workers == 1 and ' worker' or ' workers')
    record_failure(batch, index, cjson.encode({ code = 'poison', message = message, worker = worker }), now)
  else
    give_back(batch, index, name, now)
  end
end
return #expired
