-- Cancel drafted jobs. ARGV: batch, then index of each.
-- Returns index and epoch of the checkpoint of each job that was drafted, one after the other; -1 if the batch is unknown
-- or being rebuilt.
local batch, discarded = ARGV[1], {}
local now = now_ms()
local f = read_fields(batch, 'state', 'total', 'drafted', 'cancelled')
if not f.state or f.state == BATCH_RECOVERING then return -1 end
-- in a batch that has ended no job is drafted
if not is_active(f.state) then return discarded end

local parts = {}
for at = 2, #ARGV do
  local index, field = tonumber(ARGV[at]), ARGV[at]
  if get_state(batch, index) == DRAFTED then
    local epoch = parse_checkpoint(redis.call('HGET', '{lf}:checkpoints:' .. batch, field))
    forget_runs(batch, index)
    redis.call('HDEL', '{lf}:checkpoints:' .. batch, field)
    set_state(batch, index, CANCELLED)
    parts[part_of(index)] = true
    discarded[#discarded + 1], discarded[#discarded + 2] = index, epoch
  end
end
local count = #discarded / 2
if count == 0 then return discarded end
redis.call('HSET', batch_key(batch), 'drafted', f.drafted - count, 'cancelled', f.cancelled + count)
-- result lines change; who discards may also die before it deletes what the drafts have stored
redis.call('HINCRBY', batch_key(batch), 'retries', 1)
mark_lost_lease(batch)
for part in pairs(parts) do rewrite_lines(batch, part, tonumber(f.total), now) end
add_batch_event('discarded', batch)
if tonumber(f.drafted) == count then complete_if_done(batch, now, read_counters(batch)) end
return discarded
