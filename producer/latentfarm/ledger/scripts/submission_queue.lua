-- Queue a batch that a server has accepted and is to submit. ARGV: batch. Returns 1, or 0 if it is queued already.
return redis.call('ZADD', '{lf}:submissions', 'NX', now_ms(), ARGV[1])
