-- End the batch: what waits is cancelled, what runs loses its lease, what is done stays. ARGV: batch.
-- Returns the state before it, '' for an unknown batch.
local batch = ARGV[1]
local key, now = batch_key(batch), now_ms()
local f = redis.call('HMGET', key, 'state', 'model', 'total', 'done', 'failed')
if not f[1] then return '' end
if f[1] ~= 'open' and f[1] ~= 'opening' then return f[1] end
for _, index in ipairs(drop_all_leases(batch)) do
  set_state(batch, index, CANCELLED)
  mark_lost_lease(batch, index)
end
redis.call('DEL', 'lf:requeued:' .. batch)
redis.call('SREM', 'lf:open:' .. f[2], batch)
redis.call('HSET', key, 'state', 'cancelled', 'paused', '', 'paused_by', '', 'leased', 0, 'last_ms', now, 'completed_ms', now,
  'cancelled', tonumber(f[3]) - tonumber(f[4]) - tonumber(f[5]))
-- parts with some ended jobs never get full now
flush_what_ended(batch)
-- and those with none are never flushed
for _, part in ipairs(redis.call('SMEMBERS', 'lf:returned:' .. batch)) do note_leftovers(batch, tonumber(part), now) end
queue_webhook(batch, now)
redis.call('PUBLISH', 'lf:cancelled', batch)
return f[1]
