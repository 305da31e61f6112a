-- Stop leasing jobs of a batch until `resume`; running jobs may end. An existing pause stays as it is.
-- ARGV: batch, paused_by, reason. Returns the state, '' for an unknown batch.
local key = batch_key(ARGV[1])
local state, paused_by = unpack(redis.call('HMGET', key, 'state', 'paused_by'))
if not state then return '' end
if paused_by == '' and (state == 'open' or state == 'opening') then
  redis.call('HSET', key, 'paused_by', ARGV[2], 'paused', ARGV[3])
end
return state
