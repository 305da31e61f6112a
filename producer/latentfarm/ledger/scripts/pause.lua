-- Lease no more jobs of the batch until `resume`; what runs may end. ARGV: batch, reason.
-- Returns the state, '' for an unknown batch. A reason that is there already stays.
local key = batch_key(ARGV[1])
local state, paused = unpack(redis.call('HMGET', key, 'state', 'paused'))
if not state then return '' end
if paused == '' and (state == 'open' or state == 'opening') then redis.call('HSET', key, 'paused', ARGV[2]) end
return state
