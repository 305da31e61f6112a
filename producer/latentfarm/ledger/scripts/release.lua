-- Requeue jobs without a charge: the worker shuts down or its device is broken, which is not the jobs' fault.
-- ARGV: parked (1: the checkpoint that each lease made is stored, and the next lease goes on from it; 0: the next one
-- goes on from where this one did), then name and epoch of each. Returns how many were still held.
local now, released = now_ms(), 0
for at = 2, #ARGV, 2 do
  local name, epoch = ARGV[at], tonumber(ARGV[at + 1])
  if holder_of(name) == epoch then
    local batch, index = parse_name(name)
    if ARGV[1] == '1' then set_checkpoint(batch, index, epoch) end
    requeue(batch, index, name, now, now)
    released = released + 1
  end
end
return released
