-- Images lie in the bucket. ARGV: name, epoch, receipt and truncated (1 if a text of it lost its end) of each.
-- Returns for each
-- 'done', 'full' (done, and with it its part), 'again' (this very commit came before), 'stale' (the lease is lost; whose
-- image counts is for the part's receipts to say, some of which may lie in the bucket by now) or 'deleting' (the batch).
local now = now_ms()
local outcomes, leases, parts, order = {}, {}, {}, {}

-- The answer to a first try may have been lost on the way: the same epoch committing twice is no conflict
local function came_before(batch, index, epoch)
  local receipt = redis.call('HGET', 'lf:results:' .. batch, text(index))
  return receipt and cjson.decode(receipt).epoch == epoch
end

local function commit(at, name, epoch, receipt, truncated)
  local batch, index = split(name)
  -- a name twice in one call is held by its first entry only
  if holder(name) ~= epoch or leases[name] then
    if leases[name] or came_before(batch, index, epoch) then return 'again' end
    if redis.call('HGET', batch_key(batch), 'state') == 'deleting' then return 'deleting' end
    note_leftovers(batch, math.floor(index / PART), now)
    return 'stale'
  end
  leases[name], leases[#leases + 1] = true, name
  set_state(batch, index, DONE)
  redis.call('HSET', 'lf:results:' .. batch, text(index), receipt)
  local part = job_name(batch, math.floor(index / PART))
  if not parts[part] then
    parts[part] = { count = 0, truncated = 0 }
    order[#order + 1] = part
  end
  parts[part].count = parts[part].count + 1
  parts[part].truncated = parts[part].truncated + truncated
  parts[part].last = at
  return 'done'
end

for at = 1, #ARGV, 4 do
  outcomes[#outcomes + 1] = commit(#outcomes + 1, ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 3]))
end
if #leases > 0 then
  redis.call('ZREM', 'lf:leases', unpack(leases))
  redis.call('HDEL', 'lf:holders', unpack(leases))
end
for _, name in ipairs(order) do
  local batch, part = split(name)
  local count, truncated = parts[name].count, parts[name].truncated
  redis.call('HINCRBY', batch_key(batch), 'leased', -count)
  if truncated > 0 then redis.call('HINCRBY', batch_key(batch), 'truncated', truncated) end
  local pace = 'lf:pace:' .. batch .. ':' .. text(math.floor(now / PACE_SLOT_MS))
  redis.call('INCRBY', pace, count)
  redis.call('EXPIRE', pace, PACE_KEEP_S)
  if finish(batch, part, count, 'done', now) == 1 then outcomes[parts[name].last] = 'full' end
end
return outcomes
