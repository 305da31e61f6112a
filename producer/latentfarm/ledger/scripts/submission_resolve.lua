-- A submission has ended: take it from the queue. ARGV: batch, number of the claim. Returns 1, or 0 if the claim is
-- lost.
local batch, claim = ARGV[1], ARGV[2]
if redis.call('HGET', '{lf}:submission_claims', batch) ~= claim then return 0 end
redis.call('ZREM', '{lf}:submissions', batch)
redis.call('HDEL', '{lf}:submission_claims', batch)
return 1
