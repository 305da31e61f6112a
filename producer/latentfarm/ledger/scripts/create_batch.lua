-- Take a batch's name before its manifest is written.
-- ARGV: batch, digest, model, priority, weight, budget, hold, webhook.
-- Returns 'new', 'same' (its own earlier try) or the other's digest; then state, total and chain.
local batch, digest, model = ARGV[1], ARGV[2], ARGV[3]
local key = batch_key(batch)
local held = redis.call('HMGET', key, 'digest', 'state', 'total', 'parts_digest')
if held[1] then
  return { held[1] == digest and 'same' or held[1], held[2], tonumber(held[3]), held[4] }
end
local now = now_ms()
write_schema()
redis.call('ZADD', 'lf:batches', now, batch)
redis.call('HSET', key, 'digest', digest, 'model', model, 'priority', ARGV[4], 'weight', ARGV[5], 'budget', ARGV[6],
  'canary', ARGV[7], 'webhook', ARGV[8], 'state', 'opening', 'paused', '', 'paused_by', '', 'total', 0, 'parts_digest', '', 'cursor', 0,
  'leased', 0, 'done', 0, 'failed', 0, 'cancelled', 0, 'invalid', 0, 'retries', 0, 'sparse', 0, 'epoch', 0, 'virtual_time', 0,
  'budget_done', 0, 'budget_failed', 0, 'webhook_state', '', 'reserved_ms', now)
redis.call('SADD', 'lf:open:' .. model, batch)
return { 'new', 'opening', 0, '' }
