-- A part's lines lie in the bucket: forget them here, unless a retry has opened the part again meanwhile.
-- ARGV: batch, part, the batch's retries when the lines were read.
-- Returns how many receipts were dropped, or -1 if the part must be flushed again.
local batch, part = ARGV[1], tonumber(ARGV[2])
local f = redis.call('HMGET', batch_key(batch), 'state', 'total', 'retries')
if f[3] and f[3] ~= ARGV[3] then return -1 end
redis.call('SREM', 'lf:flush', job_name(batch, part))
if not f[1] then return 0 end
local ended = tonumber(redis.call('HGET', 'lf:parts:' .. batch, text(part)) or '0')
if f[1] ~= 'cancelled' and ended > 0 and ended < part_size(part, tonumber(f[2])) then return -1 end
local fields = {}
for index = part * PART, part * PART + PART - 1 do fields[#fields + 1] = text(index) end
redis.call('HDEL', 'lf:attempts:' .. batch, unpack(fields))
redis.call('HDEL', 'lf:lost_by:' .. batch, unpack(fields))
redis.call('HDEL', 'lf:errors:' .. batch, unpack(fields))
redis.call('HDEL', 'lf:parts:' .. batch, text(part))
-- a dead worker's last request may still be on its way to the bucket
if redis.call('SREM', 'lf:returned:' .. batch, text(part)) == 1 then note_leftovers(batch, part, now_ms()) end
return redis.call('HDEL', 'lf:results:' .. batch, unpack(fields))
