-- End the leases that were not renewed in time, each job charged one attempt. A job that was lost POISON_LOSSES times
-- with POISON_WORKERS different workers, or POISON_MAX_LOSSES times, fails: it kills its workers.
-- ARGV: limit, lock_ms, patience_ms. If this did not run for patience_ms, Redis or the whole farm was down and no lease
-- could be renewed: then no lease expires for another patience_ms.
-- Returns the number of expired leases, or -1 if another worker is at it.
if not redis.call('SET', 'lf:sweep_lock', '1', 'NX', 'PX', ARGV[2]) then return -1 end
local now, patience_ms = now_ms(), tonumber(ARGV[3])
local last = tonumber(redis.call('GET', 'lf:last_sweep') or now)
redis.call('SET', 'lf:last_sweep', now)
if now - last > patience_ms then redis.call('SET', 'lf:grace_until', now + patience_ms, 'PX', patience_ms) end
if now < tonumber(redis.call('GET', 'lf:grace_until') or 0) then return 0 end

-- Record one more loss; return how many there are, and of how many workers
local function record_loss(batch, index, worker)
  local names = redis.call('HGET', 'lf:lost_by:' .. batch, decimal(index))
  names = names and names .. ' ' .. worker or worker
  redis.call('HSET', 'lf:lost_by:' .. batch, decimal(index), names)
  local losses, seen, workers = 0, {}, 0
  for name in string.gmatch(names, '%S+') do
    losses = losses + 1
    if not seen[name] then seen[name], workers = true, workers + 1 end
  end
  return losses, workers
end

local function expire(name)
  local batch, index = parse_name(name)
  local _, worker = holder_of(name)
  redis.call('HINCRBY', 'lf:attempts:' .. batch, decimal(index), 1)
  local losses, workers = record_loss(batch, index, worker)
  if losses < POISON_MAX_LOSSES and (losses < POISON_LOSSES or workers < POISON_WORKERS) then
    requeue(batch, index, name, now)
    return
  end
  drop_lease(batch, name)
  mark_lost_lease(batch)
  local message = 'lost ' .. losses .. ' times with ' .. workers .. (workers == 1 and ' worker' or ' workers')
  record_failure(batch, index, cjson.encode({ code = POISON, message = message, worker = worker }), now)
end

local expired = redis.call('ZRANGEBYSCORE', 'lf:leases', '-inf', now, 'LIMIT', 0, tonumber(ARGV[1]))
for _, name in ipairs(expired) do expire(name) end
return #expired
