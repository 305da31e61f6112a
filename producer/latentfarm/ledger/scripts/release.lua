-- Give jobs back uncharged: the worker drains or is broken, the jobs are not to blame.
-- ARGV: name and epoch of each. Returns how many were still held.
local now, released = now_ms(), 0
for at = 1, #ARGV, 2 do
  local name = ARGV[at]
  if holder(name) == tonumber(ARGV[at + 1]) then
    local batch, index = split(name)
    give_back(batch, index, name, now)
    released = released + 1
  end
end
return released
