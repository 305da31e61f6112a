-- A part's receipts lie in the bucket: forget them here. ARGV: batch, part.
-- Returns how many receipts were dropped.
local batch, part = ARGV[1], tonumber(ARGV[2])
local dropped = 0
for index = part * PART, part * PART + PART - 1 do
  dropped = dropped + redis.call('HDEL', 'lf:results:' .. batch, text(index))
end
redis.call('HDEL', 'lf:parts:' .. batch, text(part))
redis.call('SREM', 'lf:flush', job_name(batch, part))
return dropped
