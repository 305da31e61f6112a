-- ARGV: model. Returns its jobs that wait to be leased; changes nothing.
return waiting_jobs(ARGV[1])
