-- Let drafted jobs be rendered to their end, from their checkpoints. ARGV: batch, then index of each.
-- Returns how many run again, or -1 if the batch is unknown, cancelled or deleted. A job that is not drafted is left
-- alone.
local batch, now = ARGV[1], now_ms()
local CHECKPOINTS = '{lf}:checkpoints:' .. batch
local f = read_counters(batch)
if not is_active(f.state) and f.state ~= BATCH_COMPLETE then return -1 end
local fields, parts = select_jobs(batch, 2, 1, DRAFTED)
if #fields == 0 then return 0 end

local marks = {}
for at, value in ipairs(redis.call('HMGET', CHECKPOINTS, unpack(fields))) do
  local epoch = parse_checkpoint(value)
  marks[#marks + 1], marks[#marks + 2] = fields[at], decimal(epoch) .. ' 1'
end
redis.call('HSET', CHECKPOINTS, unpack(marks))
queue_again(batch, fields, parts, f.total, now)
redis.call('HSET', batch_key(batch), 'drafted', f.drafted - #fields)
-- the worker that finishes a job may die before it deletes what the draft has stored
mark_lost_lease(batch)
run_on(batch, f.state, f.model)
if all_ended(f) then raise_virtual_time(batch) end
place(batch, now)
add_batch_event('finishing', batch)
return #fields
