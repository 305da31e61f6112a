-- Claim a batch that is not kept any longer. If its claimer dies, it is due again after hold_ms. ARGV: hold_ms.
-- Returns the batch, or ''.
local now = now_ms()
local batch = redis.call('ZRANGEBYSCORE', '{lf}:expiring', '-inf', now, 'LIMIT', 0, 1)[1]
if not batch then return '' end
redis.call('ZADD', '{lf}:expiring', now + tonumber(ARGV[1]), batch)
return batch
