-- Hold the claim on a submission for claim_ms from now. ARGV: batch, number of the claim, claim_ms.
-- Returns 1, or 0 if the claim is lost.
local batch, claim = ARGV[1], ARGV[2]
if redis.call('HGET', '{lf}:submission_claims', batch) ~= claim then return 0 end
redis.call('ZADD', '{lf}:submissions', 'XX', now_ms() + tonumber(ARGV[3]), batch)
return 1
