-- Images lie in the bucket. ARGV: name, epoch, receipt and truncated (1 if a text of it lost its end) of each.
-- Returns for each
-- 'done', 'full' (done, and with it its part), 'again' (this very commit came before), 'stale' (the lease is lost; whose
-- image counts is for the part's receipts to say, some of which may lie in the bucket by now) or 'deleting' (the batch).
-- One call tells of many images: what can be asked or written of all, or of a part's, at once is.
local now = now_ms()
local outcomes, names, leases, parts, order = {}, {}, {}, {}, {}
for at = 1, #ARGV, 4 do names[#names + 1] = ARGV[at] end
local holders = redis.call('HMGET', 'lf:holders', unpack(names))

-- The answer to a first try may have been lost on the way: the same epoch committing twice is no conflict
local function came_before(batch, index, epoch)
  local receipt = redis.call('HGET', 'lf:results:' .. batch, text(index))
  return receipt and cjson.decode(receipt).epoch == epoch
end

local function part_of(batch, index)
  local number = math.floor(index / PART)
  local name = job_name(batch, number)
  if not parts[name] then
    parts[name] = { batch = batch, number = number, count = 0, truncated = 0, receipts = {} }
    order[#order + 1] = parts[name]
  end
  return parts[name]
end

local function commit(at, epoch, receipt, truncated)
  local name = names[at]
  local batch, index = split(name)
  -- a name twice in one call is held by its first entry only
  if held_by(holders[at]) ~= epoch or leases[name] then
    if leases[name] or came_before(batch, index, epoch) then return 'again' end
    local state = redis.call('HGET', batch_key(batch), 'state')
    if state == 'deleting' then return 'deleting' end
    if state then note_leftovers(batch, math.floor(index / PART), now) end
    return 'stale'
  end
  leases[name], leases[#leases + 1] = true, name
  set_state(batch, index, DONE)
  local part = part_of(batch, index)
  part.count, part.truncated, part.last = part.count + 1, part.truncated + truncated, at
  part.receipts[2 * part.count - 1], part.receipts[2 * part.count] = text(index), receipt
  return 'done'
end

for at = 1, #names do
  local from = 4 * at - 3
  outcomes[at] = commit(at, tonumber(ARGV[from + 1]), ARGV[from + 2], tonumber(ARGV[from + 3]))
end
if #leases > 0 then
  redis.call('ZREM', 'lf:leases', unpack(leases))
  redis.call('HDEL', 'lf:holders', unpack(leases))
end
for _, part in ipairs(order) do
  redis.call('HSET', 'lf:results:' .. part.batch, unpack(part.receipts))
  if part.truncated > 0 then redis.call('HINCRBY', batch_key(part.batch), 'truncated', part.truncated) end
  local pace = 'lf:rate:' .. part.batch .. ':' .. text(math.floor(now / PACE_SLOT_MS))
  if redis.call('INCRBY', pace, part.count) == part.count then redis.call('EXPIRE', pace, PACE_KEEP_S) end
  if count_ended(part.batch, part.number, part.count, 'done', part.count, now) == 1 then outcomes[part.last] = 'full' end
end
return outcomes
