-- Mark a batch whose objects are about to be deleted: nothing of it is leased, flushed or sent any more. If the caller
-- does not claim the deletion within hold_ms, another process may. ARGV: batch, hold_ms.
-- Returns the state before it, '' for an unknown batch. `cancel` comes first.
local batch = ARGV[1]
local f = read_fields(batch, 'state', 'model')
if not f.state then return '' end
-- first, because a user without this permission must change nothing
local parts = redis.call('HKEYS', '{lf}:ended:' .. batch)
redis.call('HSET', batch_key(batch), 'state', BATCH_DELETING, 'paused_by', '', 'paused', '')
redis.call('ZADD', '{lf}:deletions', now_ms() + tonumber(ARGV[2]), batch)
redis.call('SREM', '{lf}:active:' .. f.model, batch)
place(batch, now_ms())
redis.call('ZREM', '{lf}:webhooks', batch)
redis.call('ZREM', '{lf}:orphans', batch)
for _, part in ipairs(parts) do
  redis.call('ZREM', '{lf}:flush_queue', job_name(batch, tonumber(part)))
end
return f.state
