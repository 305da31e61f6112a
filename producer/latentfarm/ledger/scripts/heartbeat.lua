-- Record that a worker is alive, and what it measured since its last heartbeat.
-- ARGV: model, worker, forget_s, number of facts, name and value of each fact (device, slots ...; `facts`, those of the
-- model as JSON; `adapters`, their names as JSON), then name and value of each figure (images, busy_s, wall_s ...).
-- Returns how many jobs of the model wait for a lease, and 1 if the worker is to take no more of them.
local model, worker, forget_s, facts = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms()
redis.call('ZADD', '{lf}:workers:' .. model, now, worker)
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', '{lf}:workers:' .. model, '-inf', now - 1000 * forget_s)) do
  redis.call('ZREM', '{lf}:workers:' .. model, dead)
  add_event('worker_ended', 'model', model, 'worker', dead)
end
redis.call('ZADD', '{lf}:models', now, model)
redis.call('ZREMRANGEBYSCORE', '{lf}:models', '-inf', now - 1000 * forget_s)

local key = '{lf}:worker:' .. worker
local started, was_draining = redis.call('HSETNX', key, 'since', now) == 1, redis.call('HGET', key, 'draining')
local about = { 'model', model }
for at = 5, 4 + 2 * facts, 2 do
  if ARGV[at] == 'facts' then
    redis.call('HSET', '{lf}:model_facts', model, ARGV[at + 1])
  elseif ARGV[at] == 'adapters' then
    redis.call('HSET', '{lf}:model_adapters', model, ARGV[at + 1])
  else
    about[#about + 1], about[#about + 2] = ARGV[at], ARGV[at + 1]
  end
end
redis.call('HSET', key, unpack(about))
local draining, drain = unpack(redis.call('HMGET', key, 'draining', 'drain'))
if started then add_event('worker_started', 'model', model, 'worker', worker) end
if draining == '1' and was_draining ~= '1' then add_event('worker_draining', 'model', model, 'worker', worker) end

-- a worker's rate is that of the last WINDOWS windows, the current one included
local window = math.floor(now / WINDOW_MS)
local suffix = ':' .. decimal(window % WINDOWS)
if redis.call('HGET', key, 'window' .. suffix) ~= decimal(window) then
  redis.call('HSET', key, 'window' .. suffix, decimal(window), 'images' .. suffix, 0, 'busy_s' .. suffix, 0,
    'wall_s' .. suffix, 0)
end
for at = 5 + 2 * facts, #ARGV, 2 do
  local figure, value = ARGV[at], ARGV[at + 1]
  if figure ~= 'wall_s' then redis.call('HINCRBYFLOAT', '{lf}:throughput:' .. model, figure, value) end
  if figure == 'images' then redis.call('HINCRBYFLOAT', key, figure, value) end
  if figure == 'images' or figure == 'busy_s' or figure == 'wall_s' then
    redis.call('HINCRBYFLOAT', key, figure .. suffix, value)
  end
end
redis.call('EXPIRE', key, forget_s)
return { tonumber(redis.call('HGET', '{lf}:pending', model) or 0), drain == '1' and 1 or 0 }
