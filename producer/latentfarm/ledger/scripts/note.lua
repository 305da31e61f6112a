-- An image that nobody wants may lie in a part's folder, or come to lie there; in an unknown batch that is left alone.
-- ARGV: batch, part.
if redis.call('HGET', batch_key(ARGV[1]), 'state') then note_leftovers(ARGV[1], tonumber(ARGV[2]), now_ms()) end
return 1
