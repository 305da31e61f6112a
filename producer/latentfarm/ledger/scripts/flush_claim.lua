-- Claim a part whose receipts are to be stored. If its claimer dies, it is due again after hold_ms. ARGV: hold_ms.
-- Returns the batch and the part, or nothing.
local now = now_ms()
-- at most so many that cannot be stored now, so that one call stays short
for _, name in ipairs(redis.call('ZRANGEBYSCORE', '{lf}:flush_queue', '-inf', now, 'LIMIT', 0, 100)) do
  local batch, part = parse_name(name)
  local f = read_fields(batch, 'state', 'total')
  if not f.state or f.state == BATCH_DELETING then
    redis.call('ZREM', '{lf}:flush_queue', name)
  else
    redis.call('ZADD', '{lf}:flush_queue', now + tonumber(ARGV[1]), name)
    if f.state ~= BATCH_RECOVERING then return { batch, part } end
  end
end
return {}
