-- End a batch: pending jobs are cancelled, leases on its jobs are lost, finished jobs stay. ARGV: batch.
-- Returns the state before it, '' for an unknown batch.
local batch = ARGV[1]
local now = now_ms()
local f = read_fields(batch, 'state', 'model', 'total', 'done', 'failed')
if not f.state then return '' end
if not is_active(f.state) then return f.state end
-- first, because a user without this permission must change nothing; the message leaves when the script ends
redis.call('PUBLISH', '{lf}:cancelled', batch)
for _, index in ipairs(drop_all_leases(batch)) do
  set_state(batch, index, CANCELLED)
  mark_lost_lease(batch)
end
redis.call('DEL', '{lf}:requeued:' .. batch, '{lf}:suspects:' .. batch)
redis.call('SREM', '{lf}:active:' .. f.model, batch)
redis.call('HSET', batch_key(batch), 'state', BATCH_CANCELLED, 'paused_by', '', 'paused', '', 'leased', 0,
  'last_ms', now, 'ended_ms', now, 'cancelled', f.total - f.done - f.failed)
place(batch, now)
flush_started_parts(batch, now)
queue_after_end(batch, now)
add_batch_event('cancelled', batch)
return f.state
