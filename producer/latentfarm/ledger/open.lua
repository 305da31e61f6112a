-- The manifest lies in the bucket: let workers lease the batch's jobs. Opening twice changes nothing.
-- ARGV: batch. Returns the state after it, or '' for an unknown batch.
local batch = ARGV[1]
local key = batch_key(batch)
local state, model = unpack(redis.call('HMGET', key, 'state', 'model'))
if not state then return '' end
if state ~= 'opening' then return state end
-- a newcomer starts at the least served of its peers: neither behind work done long ago nor ahead of everybody
local least
for _, peer in ipairs(redis.call('SMEMBERS', 'lf:open:' .. model)) do
  local served = tonumber(redis.call('HGET', batch_key(peer), 'served'))
  if not least or served < least then least = served end
end
redis.call('HSET', key, 'state', 'open', 'opened_ms', now_ms(), 'served', least or 0)
redis.call('SADD', 'lf:open:' .. model, batch)
return 'open'
