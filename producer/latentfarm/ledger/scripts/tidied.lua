-- Nothing unwanted lies in a part's folder any more, unless that was noted again. ARGV: batch, part, time of the note.
local name = job_name(ARGV[1], ARGV[2])
if tonumber(redis.call('ZSCORE', 'lf:leftovers', name) or '0') > tonumber(ARGV[3]) then return 0 end
return redis.call('ZREM', 'lf:leftovers', name)
