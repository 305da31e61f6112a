-- Create a batch before its manifest is stored, or find the batch that has its name.
-- ARGV: batch, digest, model, priority, weight, budget, canary, webhook.
-- Returns digest, state, total and parts_digest of the batch that has the name now.
local batch, digest, model = ARGV[1], ARGV[2], ARGV[3]
local found = read_fields(batch, 'digest', 'state', 'total', 'parts_digest')
if found.digest then
  return { found.digest, found.state, tonumber(found.total), found.parts_digest }
end
local now = now_ms()
write_schema()
redis.call('ZADD', '{lf}:batches', now, batch)
redis.call('HSET', batch_key(batch), 'digest', digest, 'model', model, 'priority', ARGV[4], 'weight', ARGV[5],
  'budget', ARGV[6], 'canary', ARGV[7], 'webhook', ARGV[8], 'state', BATCH_OPENING, 'paused_by', '', 'paused', '',
  'total', 0, 'parts_digest', '', 'cursor', 0, 'leased', 0, 'done', 0, 'failed', 0, 'cancelled', 0, 'invalid', 0,
  'retries', 0, 'sparse', 0, 'epoch', 0, 'virtual_time', 0, 'budget_done', 0, 'budget_failed', 0, 'webhook_state', '',
  'created_ms', now)
redis.call('SADD', '{lf}:active:' .. model, batch)
return { digest, BATCH_OPENING, 0, '' }
