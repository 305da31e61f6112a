-- Extend leases. ARGV: lease_ms, then name and epoch of each. Returns the names that are no longer held.
local until_ms = now_ms() + tonumber(ARGV[1])
local lost = {}
for at = 2, #ARGV, 2 do
  local name = ARGV[at]
  if holder_of(name) == tonumber(ARGV[at + 1]) then
    redis.call('ZADD', '{lf}:leases', 'XX', until_ms, name)
  else
    lost[#lost + 1] = name
    clear_losses(parse_name(name))
  end
end
return lost
