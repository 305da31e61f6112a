-- Jobs have been stored in the bucket: let workers lease them. The last call closes the batch.
-- ARGV: batch, jobs stored before, jobs stored now, chain, closed (0 or 1); then index and error of each wrong row.
-- Returns the state after it, '' for an unknown batch, or 'conflict' when another submission is further.
local batch, before, total, chain = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local key, now = batch_key(batch), now_ms()
local f = redis.call('HMGET', key, 'state', 'total', 'parts_digest', 'cursor', 'model')
if not f[1] then return '' end
if f[1] ~= 'opening' then return f[1] end
-- the answer to a first try may have been lost on the way
local repeated = tonumber(f[2]) == total and f[3] == chain
if tonumber(f[2]) ~= before and not repeated then return 'conflict' end
if not repeated then
  if tonumber(f[4]) >= before then raise_virtual_time(batch, f[5]) end
  redis.call('HSET', key, 'total', total, 'parts_digest', chain)
end
if ARGV[5] == '1' then redis.call('HSET', key, 'state', 'open', 'opened_ms', now) end
if not repeated then
  for at = 6, #ARGV, 2 do
    redis.call('HINCRBY', key, 'invalid', 1)
    redis.call('HSET', key, 'sparse', 1)
    record_failure(batch, tonumber(ARGV[at]), ARGV[at + 1], now)
  end
end
complete_if_done(batch, now, read_counters(batch))
return redis.call('HGET', key, 'state')
