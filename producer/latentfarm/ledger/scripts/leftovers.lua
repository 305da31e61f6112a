-- Parts whose leftovers were noted a while ago, for one worker at a time: noted anew, they come back if it dies over them.
-- ARGV: age_ms, limit. Returns the time of the note, then "<b>/<p>" of each.
local now = now_ms()
local due = redis.call('ZRANGEBYSCORE', 'lf:leftovers', '-inf', now - tonumber(ARGV[1]), 'LIMIT', 0, tonumber(ARGV[2]))
for _, name in ipairs(due) do redis.call('ZADD', 'lf:leftovers', now, name) end
return { now, unpack(due) }
