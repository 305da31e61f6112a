-- The device of a worker was lost in a call for these jobs: each runs alone next, uncharged, or fails at its
-- POISON_CRASHES-th crash. ARGV: name and epoch of each. Returns for each 'requeued', 'poison', or 'stale' if the lease
-- was lost before.
local now, outcomes = now_ms(), {}
for at = 1, #ARGV, 2 do
  local name = ARGV[at]
  if holder_of(name) == tonumber(ARGV[at + 1]) then
    local batch, index = parse_name(name)
    outcomes[#outcomes + 1] = lose(batch, index, name, true, now)
  else
    outcomes[#outcomes + 1] = 'stale'
  end
end
return outcomes
