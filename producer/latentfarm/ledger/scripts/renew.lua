-- Extend leases. ARGV: lease_ms, then name and epoch of each. Returns the names that are no longer held.
local until_ms = now_ms() + tonumber(ARGV[1])
local lost = {}

-- Renew the leases whose arguments are between two places. Lua cannot unpack more than a few thousand at once.
local function renew(first, last)
  local names, held = {}, {}
  for at = first, last, 2 do names[#names + 1] = ARGV[at] end
  local holders = redis.call('HMGET', '{lf}:holders', unpack(names))
  for at, name in ipairs(names) do
    -- a holder is "<epoch> <worker>"
    if holders[at] and string.find(holders[at], ARGV[first + 2 * at - 1] .. ' ', 1, true) == 1 then
      held[#held + 1], held[#held + 2] = until_ms, name
    else
      lost[#lost + 1] = name
      clear_losses(parse_name(name))
    end
  end
  if #held > 0 then redis.call('ZADD', '{lf}:leases', 'XX', unpack(held)) end
end

for first = 2, #ARGV, 2000 do renew(first, math.min(first + 1999, #ARGV)) end
return lost
