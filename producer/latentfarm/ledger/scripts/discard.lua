-- Cancel drafted jobs. ARGV: batch, then index of each.
-- Returns index and epoch of the checkpoint of each job that was drafted, one after the other; -1 if the batch is unknown
-- or being rebuilt.
local batch, now = ARGV[1], now_ms()
local CHECKPOINTS = '{lf}:checkpoints:' .. batch
local f = read_fields(batch, 'state', 'total', 'drafted', 'cancelled')
if not f.state or f.state == BATCH_RECOVERING then return -1 end
-- in a batch that has ended no job is drafted
if not is_active(f.state) then return {} end
local fields, parts = select_jobs(batch, 2, 1, DRAFTED)
if #fields == 0 then return {} end

local discarded = {}
for at, value in ipairs(redis.call('HMGET', CHECKPOINTS, unpack(fields))) do
  local index = tonumber(fields[at])
  set_state(batch, index, CANCELLED)
  discarded[#discarded + 1], discarded[#discarded + 2] = index, (parse_checkpoint(value))
end
redis.call('HDEL', CHECKPOINTS, unpack(fields))
forget_runs(batch, fields)
-- result lines change; the process that discards may also die before it deletes what the drafts have stored
redis.call('HSET', batch_key(batch), 'drafted', f.drafted - #fields, 'cancelled', f.cancelled + #fields)
redis.call('HINCRBY', batch_key(batch), 'retries', 1)
mark_lost_lease(batch)
for part in pairs(parts) do
  local size = part_size(part, tonumber(f.total))
  -- the count of a flushed part was removed
  redis.call('HSETNX', '{lf}:ended:' .. batch, decimal(part), size)
  if tonumber(redis.call('HGET', '{lf}:ended:' .. batch, decimal(part))) == size then queue_flush(batch, part, now) end
end
add_batch_event('discarded', batch)
if tonumber(f.drafted) == #fields then complete_if_done(batch, now, read_counters(batch)) end
return discarded
