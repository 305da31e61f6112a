-- ARGV: batch, priority. Returns the state, '' for an unknown batch.
local batch = ARGV[1]
local f = read_fields(batch, 'state', 'priority')
if not f.state then return '' end
if f.priority ~= ARGV[2] then
  redis.call('HSET', batch_key(batch), 'priority', ARGV[2])
  raise_virtual_time(batch)
  place(batch, now_ms())
  add_batch_event('priority', batch)
end
return f.state
