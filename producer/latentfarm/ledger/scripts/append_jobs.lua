-- Let workers lease jobs whose part is stored in the bucket. The last call closes the batch.
-- ARGV: batch, total before, total now, parts_digest, closed (0 or 1), then index and error of each invalid row.
-- Returns the state after it, '' for an unknown batch, 'conflict' if another submission appended other jobs.
local batch, before, total, parts_digest = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local key, now = batch_key(batch), now_ms()
local f = read_fields(batch, 'state', 'total', 'parts_digest', 'cursor', 'model')
if not f.state then return '' end
if f.state ~= BATCH_OPENING then return f.state end
-- the reply to an earlier try of this call may have been lost
local repeated = tonumber(f.total) == total and f.parts_digest == parts_digest
if tonumber(f.total) ~= before and not repeated then return 'conflict' end
if not repeated then
  if tonumber(f.cursor) >= before then raise_virtual_time(batch) end
  redis.call('HSET', key, 'total', total, 'parts_digest', parts_digest)
end
if ARGV[5] == '1' then
  redis.call('HSET', key, 'state', BATCH_OPEN, 'opened_ms', now)
  add_batch_event('open', batch)
end
if not repeated then
  for at = 6, #ARGV, 2 do
    redis.call('HINCRBY', key, 'invalid', 1)
    redis.call('HSET', key, 'sparse', 1)
    record_failure(batch, tonumber(ARGV[at]), ARGV[at + 1], now)
  end
end
place(batch, now)
complete_if_done(batch, now, read_counters(batch))
return redis.call('HGET', key, 'state')
