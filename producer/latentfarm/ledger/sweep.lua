-- Return the jobs whose lease ran out, each charged one attempt; after the last attempt the job has failed.
-- ARGV: max attempts, limit, lock_ms. Returns the number of expired leases, or -1 when another worker sweeps.
if not redis.call('SET', 'lf:sweeper', '1', 'NX', 'PX', ARGV[3]) then return -1 end
local now, max_attempts = now_ms(), tonumber(ARGV[1])
local expired = redis.call('ZRANGEBYSCORE', 'lf:leases', '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
for _, name in ipairs(expired) do
  local batch, index = split(name)
  local _, worker = holder(name)
  local attempts = redis.call('HINCRBY', 'lf:attempts:' .. batch, text(index), 1)
  if attempts < max_attempts then
    give_back(batch, index, name, now)
  else
    drop_lease(batch, name)
    local message = 'lost with its worker ' .. attempts .. ' times'
    record_failure(batch, index, cjson.encode({ code = 'poison', message = message, worker = worker }), now)
  end
end
return #expired
