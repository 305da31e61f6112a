-- Claim the submission that is due for longest. If its claimer dies, it is due again after claim_ms. ARGV: claim_ms.
-- Returns the batch and the number of the claim, or nothing.
local claim, now = now_us(), now_ms()
local batch = redis.call('ZRANGEBYSCORE', '{lf}:submissions', '-inf', now, 'LIMIT', 0, 1)[1]
if not batch then return {} end
redis.call('ZADD', '{lf}:submissions', now + tonumber(ARGV[1]), batch)
redis.call('HSET', '{lf}:submission_claims', batch, decimal(claim))
return { batch, claim }
