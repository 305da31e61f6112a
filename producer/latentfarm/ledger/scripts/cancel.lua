-- End a batch: pending and drafted jobs are cancelled, leases on its jobs are lost, finished jobs stay. ARGV: batch.
-- Returns the state before it, '' for an unknown batch.
local batch = ARGV[1]
local now = now_ms()
local f = read_fields(batch, 'state', 'model', 'total', 'done', 'failed', 'drafted')
local CHECKPOINTS = '{lf}:checkpoints:' .. batch
-- bytes of job states in one read
local SCAN_BLOCK = 65536

-- Cancel the drafted jobs that are in a block of states
local function cancel_drafts(first, bytes)
  local cancelled, found = string.gsub(bytes, string.char(DRAFTED), string.char(CANCELLED))
  if found == 0 then return 0 end
  redis.call('SETRANGE', chunk_key(batch, first), first % CHUNK, cancelled)
  local at, drafted = 1, string.char(DRAFTED)
  while at do
    at = string.find(bytes, drafted, at, true)
    if at then
      local part = part_of(first + at - 1)
      -- the lines of a part that is flushed are stored again
      redis.call('HSETNX', '{lf}:ended:' .. batch, decimal(part), part_size(part, tonumber(f.total)))
      at = (part + 1) * PART - first + 1
    end
  end
  return found
end

local function cancel_all_drafts()
  local left, first, total = tonumber(f.drafted), 0, tonumber(f.total)
  if left == 0 then return end
  while left > 0 and first < total do
    local count = math.min(SCAN_BLOCK, total - first, CHUNK - first % CHUNK)
    local bytes = redis.call('GETRANGE', chunk_key(batch, first), first % CHUNK, first % CHUNK + count - 1)
    left, first = left - cancel_drafts(first, bytes), first + count
  end
  redis.call('HINCRBY', batch_key(batch), 'retries', 1)
end

if not f.state then return '' end
if not is_active(f.state) then return f.state end
-- first, because a user without this permission must change nothing; the message leaves when the script ends
redis.call('PUBLISH', '{lf}:cancelled', batch)
for _, index in ipairs(drop_all_leases(batch)) do
  set_state(batch, index, CANCELLED)
  mark_lost_lease(batch)
end
cancel_all_drafts()
if redis.call('UNLINK', CHECKPOINTS) == 1 then mark_lost_lease(batch) end
redis.call('DEL', '{lf}:requeued:' .. batch, '{lf}:suspects:' .. batch)
redis.call('SREM', '{lf}:active:' .. f.model, batch)
redis.call('HSET', batch_key(batch), 'state', BATCH_CANCELLED, 'paused_by', '', 'paused', '', 'leased', 0,
  'drafted', 0,
  'last_ms', now, 'ended_ms', now, 'cancelled', f.total - f.done - f.failed)
place(batch, now)
flush_started_parts(batch, now)
queue_after_end(batch, now)
add_batch_event('cancelled', batch)
return f.state
