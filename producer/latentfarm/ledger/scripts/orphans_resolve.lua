-- The orphaned images of a batch are removed. If the batch was queued again since the claim, it stays queued.
-- ARGV: batch, number of the claim. Returns 1 if it left the queue.
local batch, claim = ARGV[1], tonumber(ARGV[2])
if tonumber(redis.call('ZSCORE', '{lf}:orphans', batch) or 0) ~= claim then return 0 end
if is_final(redis.call('HGET', batch_key(batch), 'state')) then redis.call('HDEL', batch_key(batch), 'lost_leases') end
return redis.call('ZREM', '{lf}:orphans', batch)
