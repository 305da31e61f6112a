-- Create a batch before its manifest is stored, or find the batch that has its name.
-- ARGV: batch, digest, model, priority, weight, budget, canary, webhook, account, keep_ms (0: for ever), preempt (0 or 1).
-- Returns digest, state, total and parts_digest of the batch that has the name now.
local batch, digest, model, account, keep_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[9], tonumber(ARGV[10])
local found = read_fields(batch, 'digest', 'state', 'total', 'parts_digest')
if found.digest then
  return { found.digest, found.state, tonumber(found.total), found.parts_digest }
end
local now = now_ms()
write_schema()
redis.call('ZADD', list_key(account), now, batch)
if keep_ms > 0 then redis.call('ZADD', '{lf}:expiring', now + keep_ms, batch) end
-- Redis searches a small hash from its beginning, so what each lease and commit reads is there
redis.call('HSET', batch_key(batch), 'total', 0, 'cursor', 0, 'leased', 0, 'done', 0, 'failed', 0, 'cancelled', 0,
  'drafted', 0, 'canary', ARGV[7], 'state', BATCH_OPENING, 'model', model, 'account', account, 'preempt', ARGV[11],
  'priority', ARGV[4], 'virtual_time', 0, 'weight', ARGV[5],
  'epoch', 0, 'sparse', 0, 'created_ms', now, 'counted', 0, 'paused_by', '', 'paused', '', 'budget', ARGV[6],
  'invalid', 0, 'retries', 0, 'budget_done', 0, 'budget_failed', 0, 'webhook', ARGV[8], 'webhook_state', '',
  'parts_digest', '', 'digest', digest)
redis.call('SADD', '{lf}:active:' .. model, batch)
add_batch_event('created', batch)
return { digest, BATCH_OPENING, 0, '' }
