-- Record images and drafts that are stored in the bucket.
-- ARGV: name, epoch, receipt and kind of each: 0 an image, 1 an image whose prompt was too long for the model, 2 a draft.
-- Returns an outcome for each:
--   done      committed
--   full      committed, and its part is full now
--   repeated  this very commit was made before
--   stale     the lease was lost: another image of the job counts
--   deleting  the batch is being deleted
-- Hundreds of images come in one call, so commands on a part or on all leases are sent once for all of them.
local now = now_ms()
local outcomes, names, ended, parts, order = {}, {}, {}, {}, {}
for at = 1, #ARGV, 4 do names[#names + 1] = ARGV[at] end
local holders = redis.call('HMGET', '{lf}:holders', unpack(names))

-- The reply to an earlier try may have been lost. If the receipt has the same epoch, it is the same commit; so it is if a
-- draft's checkpoint has it, whose receipt goes as the job is finished.
local function was_committed(batch, index, epoch)
  local receipt = redis.call('HGET', '{lf}:receipts:' .. batch, decimal(index))
  if receipt and cjson.decode(receipt).epoch == epoch then return true end
  return parse_checkpoint(redis.call('HGET', '{lf}:checkpoints:' .. batch, decimal(index))) == epoch
end

local function part_for(batch, index)
  local number, last = part_of(index), order[#order]
  if last and last.number == number and last.batch == batch then return last end
  local name = job_name(batch, number)
  if not parts[name] then
    parts[name] = { batch = batch, number = number, count = 0, truncated = 0, receipts = {}, drafts = {} }
    order[#order + 1] = parts[name]
  end
  return parts[name]
end

local function refuse(batch, index)
  clear_losses(batch, index)
  local f = read_fields(batch, 'state')
  if f.state == BATCH_DELETING then return 'deleting' end
  if f.state then
    mark_lost_lease(batch)
    if is_final(f.state) then redis.call('ZADD', '{lf}:orphans', now, batch) end
  end
  return 'stale'
end

-- Consecutive jobs are written together
local run = {}
local function write_run()
  if run.batch then set_states(run.batch, run.first, run.count, run.state) end
end

local function end_job(batch, index, state)
  if run.batch == batch and run.first + run.count == index and run.state == state then
    run.count = run.count + 1
  else
    write_run()
    run.batch, run.first, run.count, run.state = batch, index, 1, state
  end
end

local function commit(at, epoch, receipt, kind)
  local name = names[at]
  local batch, index = parse_name(name)
  -- a name may occur twice in one call; the first one ends the lease
  if ended[name] then return 'repeated' end
  -- a holder is "<epoch> <worker>"
  if not holders[at] or string.find(holders[at], epoch .. ' ', 1, true) ~= 1 then
    return was_committed(batch, index, tonumber(epoch)) and 'repeated' or refuse(batch, index)
  end
  ended[name], ended[#ended + 1] = true, name
  end_job(batch, index, kind == '2' and DRAFTED or DONE)
  local part, field = part_for(batch, index), decimal(index)
  part.count, part.last = part.count + 1, at
  part.receipts[2 * part.count - 1], part.receipts[2 * part.count] = field, receipt
  if kind == '2' then
    part.drafts[#part.drafts + 1], part.drafts[#part.drafts + 2] = field, epoch .. ' 0'
  elseif kind == '1' then
    part.truncated = part.truncated + 1
  end
  return 'done'
end

for at = 1, #names do
  local from = 4 * at - 3
  outcomes[at] = commit(at, ARGV[from + 1], ARGV[from + 2], ARGV[from + 3])
end
write_run()
if #ended > 0 then
  redis.call('ZREM', '{lf}:leases', unpack(ended))
  redis.call('HDEL', '{lf}:holders', unpack(ended))
end
for _, part in ipairs(order) do
  redis.call('HSET', '{lf}:receipts:' .. part.batch, unpack(part.receipts))
  local checkpoints, drafts = '{lf}:checkpoints:' .. part.batch, #part.drafts / 2
  -- those of what is done now are of no more use
  if redis.call('EXISTS', checkpoints) == 1 then
    for each = 1, #part.receipts, 2 do redis.call('HDEL', checkpoints, part.receipts[each]) end
  end
  if drafts > 0 then redis.call('HSET', checkpoints, unpack(part.drafts)) end
  if part.truncated > 0 then redis.call('HINCRBY', batch_key(part.batch), 'truncated', part.truncated) end
  local rate_key = '{lf}:rate:' .. part.batch .. ':' .. decimal(math.floor(now / RATE_SLOT_MS))
  if redis.call('INCRBY', rate_key, part.count) == part.count then redis.call('EXPIRE', rate_key, RATE_KEEP_S) end
  local done, full = part.count - drafts, 0
  if done > 0 then full = count_ended(part.batch, part.number, done, 'done', done, now) end
  if drafts > 0 then full = count_ended(part.batch, part.number, drafts, 'drafted', drafts, now) end
  if full == 1 then outcomes[part.last] = 'full' end
end
return outcomes
