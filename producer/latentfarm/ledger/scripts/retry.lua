-- Let failed jobs run again, as if they had never run; those that were to be finished are rendered to their end.
-- ARGV: batch, then index and error code of each.
-- Returns how many run again, or -1 if the batch is unknown, cancelled or deleted. A job that has not failed is left
-- alone.
local batch, now = ARGV[1], now_ms()
local f = read_fields(batch, 'state', 'model', 'total', 'failed')
if not is_active(f.state) and f.state ~= BATCH_COMPLETE then return -1 end
local fields, parts = select_jobs(batch, 2, 2, FAILED)
if #fields == 0 then return 0 end

local codes = {}
for at = 2, #ARGV, 2 do codes[ARGV[at]] = ARGV[at + 1] end
for _, field in ipairs(fields) do
  if redis.call('HINCRBY', '{lf}:error_counts:' .. batch, codes[field], -1) == 0 then
    redis.call('HDEL', '{lf}:error_counts:' .. batch, codes[field])
  end
end
queue_again(batch, fields, parts, tonumber(f.total), now)
redis.call('HSET', batch_key(batch), 'failed', f.failed - #fields)
run_on(batch, f.state, f.model)
place(batch, now)
add_batch_event('retried', batch)
return #fields
