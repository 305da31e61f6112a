-- Take a batch's name before its manifest is written.
-- ARGV: batch, digest, model, total, priority, weight. Returns 'new', 'same' (its own earlier try) or the other's digest.
local batch, digest = ARGV[1], ARGV[2]
local key = batch_key(batch)
local held = redis.call('HGET', key, 'digest')
if held == digest then return 'same' end
if held then return held end
local now = now_ms()
redis.call('ZADD', 'lf:batches', now, batch)
redis.call('HSET', key, 'digest', digest, 'model', ARGV[3], 'total', ARGV[4], 'priority', ARGV[5],
  'weight', ARGV[6], 'state', 'opening', 'cursor', 0, 'leased', 0, 'done', 0, 'failed', 0, 'cancelled', 0,
  'epoch', 0, 'served', 0, 'reserved_ms', now)
return 'new'
