-- Lease no more jobs of a batch until `resume`. A pause that exists stays as it is.
-- ARGV: batch, paused_by, reason, now (1: workers are to park its running images; 0: these may end).
-- Returns the state, '' for an unknown batch.
local f = read_fields(ARGV[1], 'state', 'paused_by')
if not f.state then return '' end
-- first, because a user without this permission must change nothing; the message leaves when the script ends
if ARGV[4] == '1' and is_active(f.state) then redis.call('PUBLISH', '{lf}:paused', ARGV[1]) end
if f.paused_by == '' and is_active(f.state) then
  redis.call('HSET', batch_key(ARGV[1]), 'paused_by', ARGV[2], 'paused', ARGV[3])
  place(ARGV[1], now_ms())
  add_batch_event('paused', ARGV[1])
end
return f.state
