-- Remove a worker that ends. ARGV: model, worker.
local model, worker = ARGV[1], ARGV[2]
local removed = redis.call('ZREM', '{lf}:workers:' .. model, worker)
redis.call('DEL', '{lf}:worker:' .. worker)
if removed == 1 then add_event('worker_ended', 'model', model, 'worker', worker) end
return removed
