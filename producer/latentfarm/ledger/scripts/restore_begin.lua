-- Begin to rebuild a batch from the bucket: every lease on it is lost.
-- ARGV: batch, total, account, keep_ms (0: for ever), then name and value of each other field that the bucket gives.
local batch, total, account, keep_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local key, now = batch_key(batch), now_ms()
write_schema()
drop_all_leases(batch)
local before = read_fields(batch, 'retries', 'created_ms', 'epoch', 'webhook_state')
-- errors stay until their part is written: they may be the only record of a failure
redis.call('UNLINK', '{lf}:requeued:' .. batch, '{lf}:suspects:' .. batch, '{lf}:checkpoints:' .. batch,
  '{lf}:error_counts:' .. batch)
if before.created_ms then
  redis.call('HSET', key, 'state', BATCH_RECOVERING)
  place(batch, now)
end
redis.call('DEL', key)
redis.call('ZADD', list_key(account), 'NX', before.created_ms or now, batch)
if keep_ms > 0 then redis.call('ZADD', '{lf}:expiring', (before.created_ms or now) + keep_ms, batch) end
redis.call('HSET', key, 'account', account, 'state', BATCH_RECOVERING, 'paused_by', '', 'paused', '', 'total', total, 'parts_digest', '',
  'weight', 1, 'cursor', 0, 'leased', 0, 'done', 0, 'failed', 0, 'cancelled', 0, 'drafted', 0, 'preempt', 0,
  'invalid', 0, 'sparse', 1,
  'epoch', before.epoch or 0, 'virtual_time', 0, 'budget_done', 0, 'budget_failed', 0,
  'webhook_state', before.webhook_state or '', 'created_ms', before.created_ms or now,
  -- images of lost leases may be in the bucket, or may still arrive
  'lost_leases', 1,
  -- A flush that read a part before this must not remove what is written now, and what it may still store must not win
  -- over what is stored later. The record before this may be missing or outdated, so its number does not suffice: the
  -- time is higher than any that was reached.
  'retries', decimal(math.max(tonumber(before.retries or 0) + 1, now)))
redis.call('HSET', key, unpack(ARGV, 5))
return 1
