-- Let failed jobs run again, as if they had never run; those that were to be finished are rendered to their end. ARGV: batch, then index and error code of each.
-- Returns how many run again, or -1 if the batch is unknown, cancelled or deleted. A job that has not failed is left
-- alone.
local batch, retried = ARGV[1], 0
local key, now = batch_key(batch), now_ms()
local f = read_fields(batch, 'state', 'model', 'total')
if not is_active(f.state) and f.state ~= BATCH_COMPLETE then return -1 end

local function retry(index, code)
  uncount_ended(batch, index, tonumber(f.total))
  forget_runs(batch, index)
  set_state(batch, index, PENDING)
  redis.call('ZADD', '{lf}:requeued:' .. batch, now, decimal(index))
  if redis.call('HINCRBY', '{lf}:error_counts:' .. batch, code, -1) == 0 then
    redis.call('HDEL', '{lf}:error_counts:' .. batch, code)
  end
  retried = retried + 1
end

for at = 2, #ARGV, 2 do
  local index = tonumber(ARGV[at])
  if get_state(batch, index) == FAILED then retry(index, ARGV[at + 1]) end
end
if retried == 0 then return 0 end
redis.call('HINCRBY', key, 'failed', -retried)
run_on(batch, f.state, f.model)
place(batch, now)
add_batch_event('retried', batch)
return retried
