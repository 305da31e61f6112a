-- A worker is here. ARGV: model, worker, forget_s, how many facts, name and value of each of them (device, slots);
-- then name and value of each figure measured since its last beat (images, busy_s, wall_s).
-- Returns the jobs of the model that wait to be leased.
local model, worker, forget_s, facts = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms()
-- rates are those of the last windows, the one that has begun counted in
local WINDOW_MS, WINDOWS = 30000, 4

redis.call('ZADD', 'lf:workers:' .. model, now, worker)
redis.call('ZREMRANGEBYSCORE', 'lf:workers:' .. model, '-inf', now - 1000 * forget_s)
redis.call('ZADD', 'lf:models', now, model)
redis.call('ZREMRANGEBYSCORE', 'lf:models', '-inf', now - 1000 * forget_s)

local key = 'lf:worker:' .. worker
redis.call('HSETNX', key, 'since', now)
redis.call('HSET', key, 'model', model)
for at = 5, 3 + 2 * facts, 2 do redis.call('HSET', key, ARGV[at], ARGV[at + 1]) end

local window = math.floor(now / WINDOW_MS)
local place = ':' .. text(window % WINDOWS)
if redis.call('HGET', key, 'window' .. place) ~= text(window) then
  redis.call('HSET', key, 'window' .. place, text(window), 'images' .. place, 0, 'busy_s' .. place, 0, 'wall_s' .. place, 0)
end
for at = 5 + 2 * facts, #ARGV, 2 do
  local figure, value = ARGV[at], ARGV[at + 1]
  -- a worker's clock is its own affair; what a picture costs is the model's
  if figure ~= 'wall_s' then redis.call('HINCRBYFLOAT', 'lf:throughput:' .. model, figure, value) end
  if figure == 'images' then redis.call('HINCRBYFLOAT', key, figure, value) end
  if figure == 'images' or figure == 'busy_s' or figure == 'wall_s' then
    redis.call('HINCRBYFLOAT', key, figure .. place, value)
  end
end
redis.call('EXPIRE', key, forget_s)
return count_pending(model)
