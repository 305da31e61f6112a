-- Requeue jobs without a charge: the worker shuts down or its device is broken, which is not the jobs' fault.
-- ARGV: name and epoch of each. Returns how many were still held.
local now, released = now_ms(), 0
for at = 1, #ARGV, 2 do
  local name = ARGV[at]
  if holder_of(name) == tonumber(ARGV[at + 1]) then
    local batch, index = parse_name(name)
    requeue(batch, index, name, now, now)
    released = released + 1
  end
end
return released
