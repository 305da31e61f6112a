-- The batch is about to be deleted: nothing of it is leased, flushed or told of any more. ARGV: batch.
-- Returns the state before it, '' for an unknown batch. To be called after `cancel`.
local batch = ARGV[1]
local state, model = unpack(redis.call('HMGET', batch_key(batch), 'state', 'model'))
if not state then return '' end
redis.call('HSET', batch_key(batch), 'state', 'deleting', 'paused', '', 'paused_by', '')
redis.call('SREM', 'lf:open:' .. model, batch)
redis.call('ZREM', 'lf:webhooks', batch)
for _, part in ipairs(redis.call('HKEYS', 'lf:parts:' .. batch)) do
  redis.call('SREM', 'lf:flush', job_name(batch, tonumber(part)))
end
return state
