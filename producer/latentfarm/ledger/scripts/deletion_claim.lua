-- Claim the deletion of a batch. If its claimer does not claim it again within hold_ms, another process may.
-- ARGV: hold_ms, batch; '' for any that is due. Returns the batch; '' if there is none, or it is not being deleted.
local hold_ms, batch = tonumber(ARGV[1]), ARGV[2]
local now = now_ms()
local found = { batch }
if batch == '' then found = redis.call('ZRANGEBYSCORE', '{lf}:deletions', '-inf', now, 'LIMIT', 0, 10) end
for _, each in ipairs(found) do
  if read_fields(each, 'state').state == BATCH_DELETING then
    redis.call('ZADD', '{lf}:deletions', now + hold_ms, each)
    return each
  end
  -- a recovery has begun since
  redis.call('ZREM', '{lf}:deletions', each)
end
return ''
