-- Writes to {lf}:probe and removes it again, with every command of the scripts and the queues. Returns those that the
-- user may not run. An outage is an error at the first write, when nothing is written yet.
local key = '{lf}:probe'

local calls = {
  { 'SET', key, 1, 'PX', 1000 }, { 'GET', key }, { 'MGET', key }, { 'INCRBY', key, 1 }, { 'GETRANGE', key, 0, 0 },
  { 'SETRANGE', key, 0, '' }, { 'EXISTS', key }, { 'EXPIRE', key, 1 }, { 'UNLINK', key },
  { 'HSET', key, 'a', 1 }, { 'EXPIRE', key, 1 }, { 'HSETNX', key, 'a', 1 }, { 'HGET', key, 'a' }, { 'HMGET', key, 'a' },
  { 'HGETALL', key }, { 'HKEYS', key }, { 'HSCAN', key, 0 }, { 'HINCRBY', key, 'a', 1 },
  { 'HINCRBYFLOAT', key, 'a', 1 }, { 'HDEL', key, 'a' }, { 'DEL', key },
  { 'SADD', key, 'a' }, { 'EXPIRE', key, 1 }, { 'SMEMBERS', key }, { 'SREM', key, 'a' }, { 'DEL', key },
  { 'ZADD', key, 1, 'a' }, { 'EXPIRE', key, 1 }, { 'ZCARD', key }, { 'ZSCORE', key, 'a' }, { 'ZRANGE', key, 0, -1 },
  { 'ZRANGEBYSCORE', key, 0, 1 }, { 'ZREVRANGE', key, 0, -1 }, { 'ZREVRANGEBYSCORE', key, 1, 0 },
  { 'ZREVRANK', key, 'a' }, { 'ZREMRANGEBYSCORE', key, 0, 0 }, { 'ZREM', key, 'a' }, { 'DEL', key },
  { 'LPUSH', key, 'a' }, { 'EXPIRE', key, 1 }, { 'LLEN', key }, { 'BRPOP', key, 0 }, { 'DEL', key },
  { 'XADD', key, 'MAXLEN', '~', 1, '*', 'a', 1 }, { 'EXPIRE', key, 1 }, { 'XREAD', 'STREAMS', key, '0' },
  { 'XREVRANGE', key, '+', '-' }, { 'DEL', key },
  { 'TIME' },
}

-- Redis 6.2 words it without NOPERM
local function is_refusal(text)
  for _, part in ipairs({ "can't run this command", "can't access", 'ACL failure', 'NOPERM' }) do
    if string.find(text, part, 1, true) then return true end
  end
  return false
end

local refused, seen = {}, {}
for at, call in ipairs(calls) do
  local reply = redis.pcall(unpack(call))
  local problem = type(reply) == 'table' and reply.err
  if problem and is_refusal(problem) then
    if not seen[call[1]] then refused[#refused + 1] = string.lower(call[1]) end
    seen[call[1]] = true
  elseif problem and at == 1 then
    return reply
  end
end
return refused
