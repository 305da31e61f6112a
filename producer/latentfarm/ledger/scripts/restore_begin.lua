-- Begin to write a batch anew, from what lies in the bucket: every lease on it is lost.
-- ARGV: batch, total, then name and value of each field of its hash.
local batch, total = ARGV[1], ARGV[2]
local key, now = batch_key(batch), now_ms()
write_schema()
drop_all_leases(batch)
local before = redis.call('HMGET', key, 'retries', 'reserved_ms', 'epoch', 'webhook_state')
-- what is known of single jobs stays until their part is written: it may be all that tells of a failure
redis.call('UNLINK', 'lf:requeued:' .. batch, 'lf:reasons:' .. batch)
redis.call('DEL', key)
redis.call('ZADD', 'lf:batches', 'NX', before[2] or now, batch)
redis.call('HSET', key, 'state', 'recovering', 'paused', '', 'paused_by', '', 'total', total, 'parts_digest', '', 'weight', 1, 'cursor', 0,
  'leased', 0, 'done', 0, 'failed', 0, 'cancelled', 0, 'invalid', 0, 'sparse', 1, 'epoch', before[3] or 0, 'virtual_time', 0,
  'budget_done', 0, 'budget_failed', 0, 'webhook_state', before[4] or '', 'reserved_ms', before[2] or now,
  -- a flush that read the part before this must not trim what is written now
  'retries', tonumber(before[1] or 0) + 1)
redis.call('HSET', key, unpack(ARGV, 3))
return 1
