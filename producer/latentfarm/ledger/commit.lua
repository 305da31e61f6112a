-- A job's image lies in the bucket. ARGV: name, epoch, receipt.
-- Returns 'done', 'full' (done, and with it its part), 'again' (this very commit came before) or 'stale'.
local name, epoch = ARGV[1], tonumber(ARGV[2])
local batch, index = split(name)
if holder(name) ~= epoch then
  -- the answer to a first try may have been lost on the way: the same epoch committing twice is no conflict
  local receipt = redis.call('HGET', 'lf:results:' .. batch, text(index))
  if receipt and cjson.decode(receipt).epoch == epoch then return 'again' end
  return 'stale'
end
local now = now_ms()
drop_lease(batch, name)
set_state(batch, index, DONE)
redis.call('HSET', 'lf:results:' .. batch, text(index), ARGV[3])
local pace = 'lf:pace:' .. batch .. ':' .. text(math.floor(now / PACE_SLOT_MS))
redis.call('INCR', pace)
redis.call('EXPIRE', pace, PACE_KEEP_S)
if finish(batch, index, 'done', now) == 1 then return 'full' end
return 'done'
