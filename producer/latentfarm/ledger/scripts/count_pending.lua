-- ARGV: model. Returns its jobs that wait to be leased; changes nothing.
return count_pending(ARGV[1])
