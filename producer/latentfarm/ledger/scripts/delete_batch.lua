-- Remove every key of a batch. Its objects in the bucket are deleted already. ARGV: batch.
local batch = ARGV[1]
local f = read_fields(batch, 'total', 'model', 'account')
if f.model then
  redis.call('HSET', batch_key(batch), 'state', BATCH_DELETING)
  place(batch, now_ms())
  add_batch_event('deleted', batch)
end
for first = 0, tonumber(f.total or 0), CHUNK do redis.call('UNLINK', chunk_key(batch, first)) end
for _, kind in ipairs({ 'requeued', 'suspects', 'checkpoints', 'attempts', 'lost_by', 'errors', 'error_counts', 'receipts', 'ended',
  'flushed', 'flush_errors' }) do
  redis.call('UNLINK', '{lf}:' .. kind .. ':' .. batch)
end
redis.call('ZREM', '{lf}:orphans', batch)
redis.call('ZREM', '{lf}:expiring', batch)
redis.call('ZREM', '{lf}:deletions', batch)
redis.call('ZREM', '{lf}:submissions', batch)
redis.call('HDEL', '{lf}:submission_claims', batch)
local slot = math.floor(now_ms() / RATE_SLOT_MS)
for back = 0, RATE_KEEP_S * 1000 / RATE_SLOT_MS do
  redis.call('UNLINK', '{lf}:rate:' .. batch .. ':' .. decimal(slot - back))
end
-- replies to lease requests name its jobs
for _, worker in ipairs(f.model and redis.call('ZRANGE', '{lf}:workers:' .. f.model, 0, -1) or {}) do
  local key = '{lf}:lease_reply:' .. worker
  if string.find(redis.call('GET', key) or '', '\n' .. batch .. ' ', 1, true) then redis.call('UNLINK', key) end
end
redis.call('UNLINK', batch_key(batch))
redis.call('ZREM', list_key(f.account), batch)
-- an empty ledger may be used by any version
if redis.call('ZCARD', '{lf}:batches') + redis.call('ZCARD', '{lf}:interactive') == 0 then
  redis.call('UNLINK', KEYS[1])
  redis.pcall('UNLINK', OLD_SCHEMA_KEY)
end
return 1
