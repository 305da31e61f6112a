-- Claim a batch that ended at least delay_ms ago and may have orphaned images. If its claimer dies, it is due again
-- after hold_ms. ARGV: delay_ms, hold_ms. Returns the batch and the number of the claim, or nothing.
local due = now_ms() - tonumber(ARGV[1])
local batch = redis.call('ZRANGEBYSCORE', '{lf}:orphans', '-inf', due, 'LIMIT', 0, 1)[1]
if not batch then return {} end
redis.call('ZADD', '{lf}:orphans', due + tonumber(ARGV[2]), batch)
return { batch, due + tonumber(ARGV[2]) }
