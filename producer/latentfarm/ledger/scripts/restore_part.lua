-- Write the jobs of one part of a batch that is being rebuilt.
-- ARGV: batch, part, a state byte for each job, flushed (1 if the bucket has all its lines), number of done jobs whose
-- prompt was too long, generation of the object that has the part's lines, number of receipts, number of drafted jobs,
-- index and receipt of each receipt, index and epoch of the checkpoint of each drafted job, then index and error of each
-- failed job.
local batch, part, bytes, flushed = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1'
local drafts_at = 9 + 2 * ARGV[7]
local errors_at = drafts_at + 2 * ARGV[8]
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
local names = { [DONE] = 'done', [FAILED] = 'failed', [CANCELLED] = 'cancelled', [DRAFTED] = 'drafted' }
local counts, ended = { done = 0, failed = 0, cancelled = 0, drafted = 0 }, 0
for at = 1, #bytes do
  local name = names[string.byte(bytes, at)]
  if name then counts[name], ended = counts[name] + 1, ended + 1 end
end
for name, count in pairs(counts) do redis.call('HINCRBY', key, name, count) end
if ARGV[5] ~= '0' then redis.call('HINCRBY', key, 'truncated', ARGV[5]) end
for at = 9, drafts_at - 1, 2 do redis.call('HSET', '{lf}:receipts:' .. batch, ARGV[at], ARGV[at + 1]) end
for at = drafts_at, errors_at - 1, 2 do
  redis.call('HSET', '{lf}:checkpoints:' .. batch, ARGV[at], ARGV[at + 1] .. ' 0')
end
for at = errors_at, #ARGV, 2 do
  local code = cjson.decode(ARGV[at + 1]).code
  redis.call('HINCRBY', '{lf}:error_counts:' .. batch, code, 1)
  if code == INVALID_ROW then redis.call('HINCRBY', key, 'invalid', 1) end
  if not flushed then redis.call('HSET', '{lf}:errors:' .. batch, ARGV[at], ARGV[at + 1]) end
end
if not flushed and ended > 0 then
  redis.call('HSET', '{lf}:ended:' .. batch, decimal(part), ended)
  if ended == #bytes then queue_flush(batch, part, now_ms()) end
end
return 1
