-- ARGV: model. Returns how many of its jobs wait for a lease; changes nothing.
return count_pending(ARGV[1])
