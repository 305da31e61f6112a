-- ARGV: batch, priority. Returns the state, '' for an unknown batch.
local state = redis.call('HGET', batch_key(ARGV[1]), 'state')
if not state then return '' end
redis.call('HSET', batch_key(ARGV[1]), 'priority', ARGV[2])
return state
