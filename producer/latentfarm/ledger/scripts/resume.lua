-- End a pause or a canary; the failure budget starts again. ARGV: batch. Returns the state, '' for an unknown batch.
local batch = ARGV[1]
local f = read_fields(batch, 'state', 'paused_by', 'canary', 'done', 'failed', 'cancelled', 'drafted', 'invalid')
if not f.state then return '' end
if is_active(f.state) and (f.paused_by ~= '' or f.canary ~= '0') then
  redis.call('HSET', batch_key(batch), 'paused_by', '', 'paused', '', 'canary', 0,
    'budget_done', f.done + f.cancelled + f.drafted, 'budget_failed', f.failed - f.invalid)
  raise_virtual_time(batch)
  place(batch, now_ms())
  add_batch_event('resumed', batch)
end
return f.state
