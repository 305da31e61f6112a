-- Let drafted jobs be rendered to their end, from their checkpoints. ARGV: batch, then index of each.
-- Returns how many run again, or -1 if the batch is unknown, cancelled or deleted. A job that is not drafted is left
-- alone.
local batch, finished = ARGV[1], 0
local now = now_ms()
local f = read_fields(batch, 'state', 'model', 'total', 'drafted')
if not is_active(f.state) and f.state ~= BATCH_COMPLETE then return -1 end

for at = 2, #ARGV do
  local index, field = tonumber(ARGV[at]), ARGV[at]
  if get_state(batch, index) == DRAFTED then
    uncount_ended(batch, index, tonumber(f.total))
    forget_runs(batch, index)
    set_state(batch, index, PENDING)
    local epoch = parse_checkpoint(redis.call('HGET', '{lf}:checkpoints:' .. batch, field))
    redis.call('HSET', '{lf}:checkpoints:' .. batch, field, decimal(epoch) .. ' 1')
    redis.call('ZADD', '{lf}:requeued:' .. batch, now, field)
    finished = finished + 1
  end
end
if finished == 0 then return 0 end
redis.call('HSET', batch_key(batch), 'drafted', f.drafted - finished)
-- the worker that finishes a job may die before it deletes what the draft has stored
mark_lost_lease(batch)
run_on(batch, f.state, f.model)
raise_virtual_time(batch)
place(batch, now)
add_batch_event('finishing', batch)
return finished
