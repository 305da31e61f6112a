-- Remove the receipts and errors of a part whose lines are stored in the bucket, unless a retry, a recovery or the
-- deletion of the batch came between. ARGV: batch, part, the batch's `retries` when its lines were read: the generation
-- of the object that has them.
-- Returns how many receipts were removed, or -1 if that object does not count.
local batch, part, generation = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local f = read_fields(batch, 'state', 'total', 'retries')
if f.retries ~= generation or f.state == BATCH_RECOVERING or f.state == BATCH_DELETING then return -1 end
local ended = tonumber(redis.call('HGET', '{lf}:ended:' .. batch, decimal(part)) or 0)
if f.state ~= BATCH_CANCELLED and ended > 0 and ended < part_size(part, tonumber(f.total)) then return -1 end
redis.call('ZREM', '{lf}:flush_queue', job_name(batch, part))
if generation ~= '0' then redis.call('HSET', '{lf}:flushed:' .. batch, decimal(part), generation) end
local fields = part_fields(part)
for _, kind in ipairs({ 'attempts', 'lost_by', 'errors' }) do
  redis.call('HDEL', '{lf}:' .. kind .. ':' .. batch, unpack(fields))
end
redis.call('HDEL', '{lf}:ended:' .. batch, decimal(part))
redis.call('HDEL', '{lf}:flush_errors:' .. batch, decimal(part))
return redis.call('HDEL', '{lf}:receipts:' .. batch, unpack(fields))
