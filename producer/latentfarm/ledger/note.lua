-- An image that nobody wants may lie in a part's folder, or come to lie there. ARGV: batch, part.
note_leftovers(ARGV[1], tonumber(ARGV[2]), now_ms())
return 1
