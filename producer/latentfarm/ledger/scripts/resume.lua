-- Let the batch go on: after a pause, after its canary, with its failure budget as new. ARGV: batch.
-- Returns the state, '' for an unknown batch.
local batch = ARGV[1]
local key = batch_key(batch)
local f = redis.call('HMGET', key, 'state', 'paused_by', 'canary', 'model', 'done', 'failed', 'invalid')
if not f[1] then return '' end
if (f[1] == 'open' or f[1] == 'opening') and (f[2] ~= '' or f[3] ~= '0') then
  redis.call('HSET', key, 'paused', '', 'paused_by', '', 'canary', 0, 'budget_done', f[5], 'budget_failed', tonumber(f[6]) - tonumber(f[7]))
  raise_virtual_time(batch, f[4])
end
return f[1]
