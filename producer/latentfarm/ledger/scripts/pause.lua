-- Lease no more jobs of a batch until `resume`; running jobs may end. A pause that exists stays as it is.
-- ARGV: batch, paused_by, reason. Returns the state, '' for an unknown batch.
local f = read_fields(ARGV[1], 'state', 'paused_by')
if not f.state then return '' end
if f.paused_by == '' and is_active(f.state) then
  redis.call('HSET', batch_key(ARGV[1]), 'paused_by', ARGV[2], 'paused', ARGV[3])
  place(ARGV[1], now_ms())
  add_batch_event('paused', ARGV[1])
end
return f.state
