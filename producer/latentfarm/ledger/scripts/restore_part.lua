-- Write the jobs of one part of a batch that is being restored.
-- ARGV: batch, part, a byte of state for each job, flushed (1 if all its lines lie in the bucket), the number of done jobs
-- with a text that lost its end, the number of receipts, index and receipt of each, then index and error of each failed job.
local batch, part, bytes, flushed, receipts = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1', tonumber(ARGV[6])
local key, first = batch_key(batch), part * PART
if redis.call('HGET', key, 'state') ~= 'recovering' then return 0 end
redis.call('SETRANGE', 'lf:states:' .. batch .. ':' .. math.floor(first / CHUNK), first % CHUNK, bytes)
local fields = {}
for index = first, first + PART - 1 do fields[#fields + 1] = text(index) end
for _, kind in ipairs({ 'attempts', 'lost_by', 'errors', 'results' }) do
  redis.call('HDEL', 'lf:' .. kind .. ':' .. batch, unpack(fields))
end
redis.call('HDEL', 'lf:parts:' .. batch, text(part))
redis.call('SREM', 'lf:flush', job_name(batch, part))
local done, failed = 0, 0
for at = 1, #bytes do
  local state = string.byte(bytes, at)
  if state == DONE then done = done + 1 elseif state == FAILED then failed = failed + 1 end
end
redis.call('HINCRBY', key, 'done', done)
redis.call('HINCRBY', key, 'failed', failed)
if ARGV[5] ~= '0' then redis.call('HINCRBY', key, 'truncated', ARGV[5]) end
for at = 7, 6 + 2 * receipts, 2 do redis.call('HSET', 'lf:results:' .. batch, ARGV[at], ARGV[at + 1]) end
for at = 7 + 2 * receipts, #ARGV, 2 do
  local code = cjson.decode(ARGV[at + 1]).code
  redis.call('HINCRBY', 'lf:reasons:' .. batch, code, 1)
  if code == 'invalid_row' then redis.call('HINCRBY', key, 'invalid', 1) end
  if not flushed then redis.call('HSET', 'lf:errors:' .. batch, ARGV[at], ARGV[at + 1]) end
end
-- images of leases that were lost may lie beside the ones that count, or come to lie there
if not flushed then redis.call('SADD', 'lf:returned:' .. batch, text(part)) end
if not flushed and done + failed > 0 then
  redis.call('HSET', 'lf:parts:' .. batch, text(part), done + failed)
  if done + failed == #bytes then redis.call('SADD', 'lf:flush', job_name(batch, part)) end
end
return 1
