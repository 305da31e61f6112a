-- Write the jobs of one part of a batch that is being rebuilt.
-- ARGV: batch, part, a state byte for each job, flushed (1 if the bucket has all its lines), number of done jobs whose
-- prompt was too long, generation of the object that has the part's lines, number of receipts, index and receipt of
-- each, then index and error of each failed job.
local batch, part, bytes, flushed, receipts = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1', tonumber(ARGV[7])
local key, first = batch_key(batch), part * PART
if redis.call('HGET', key, 'state') ~= BATCH_RECOVERING then return 0 end
redis.call('SETRANGE', chunk_key(batch, first), first % CHUNK, bytes)
local fields = part_fields(part)
for _, kind in ipairs({ 'attempts', 'lost_by', 'errors', 'receipts' }) do
  redis.call('HDEL', '{lf}:' .. kind .. ':' .. batch, unpack(fields))
end
for _, kind in ipairs({ 'ended', 'flushed', 'flush_errors' }) do
  redis.call('HDEL', '{lf}:' .. kind .. ':' .. batch, decimal(part))
end
if ARGV[6] ~= '0' then redis.call('HSET', '{lf}:flushed:' .. batch, decimal(part), ARGV[6]) end
redis.call('ZREM', '{lf}:flush_queue', job_name(batch, part))
local done, failed = 0, 0
for at = 1, #bytes do
  local state = string.byte(bytes, at)
  if state == DONE then done = done + 1 elseif state == FAILED then failed = failed + 1 end
end
redis.call('HINCRBY', key, 'done', done)
redis.call('HINCRBY', key, 'failed', failed)
if ARGV[5] ~= '0' then redis.call('HINCRBY', key, 'truncated', ARGV[5]) end
for at = 8, 7 + 2 * receipts, 2 do redis.call('HSET', '{lf}:receipts:' .. batch, ARGV[at], ARGV[at + 1]) end
for at = 8 + 2 * receipts, #ARGV, 2 do
  local code = cjson.decode(ARGV[at + 1]).code
  redis.call('HINCRBY', '{lf}:error_counts:' .. batch, code, 1)
  if code == INVALID_ROW then redis.call('HINCRBY', key, 'invalid', 1) end
  if not flushed then redis.call('HSET', '{lf}:errors:' .. batch, ARGV[at], ARGV[at + 1]) end
end
if not flushed and done + failed > 0 then
  redis.call('HSET', '{lf}:ended:' .. batch, decimal(part), done + failed)
  if done + failed == #bytes then queue_flush(batch, part, now_ms()) end
end
return 1
