-- Remove the receipts and errors of a part that is stored in the bucket, unless a retry has reopened the part.
-- ARGV: batch, part, the batch's `retries` when its lines were read.
-- Returns how many receipts were removed, or -1 if the part must be flushed again.
local batch, part = ARGV[1], tonumber(ARGV[2])
local f = read_fields(batch, 'state', 'total', 'retries')
if f.retries and f.retries ~= ARGV[3] then return -1 end
redis.call('SREM', 'lf:flush_queue', job_name(batch, part))
if not f.state then return 0 end
local ended = tonumber(redis.call('HGET', 'lf:ended:' .. batch, decimal(part)) or 0)
if f.state ~= BATCH_CANCELLED and ended > 0 and ended < part_size(part, tonumber(f.total)) then return -1 end
local fields = part_fields(part)
for _, kind in ipairs({ 'attempts', 'lost_by', 'errors' }) do
  redis.call('HDEL', 'lf:' .. kind .. ':' .. batch, unpack(fields))
end
redis.call('HDEL', 'lf:ended:' .. batch, decimal(part))
return redis.call('HDEL', 'lf:receipts:' .. batch, unpack(fields))
