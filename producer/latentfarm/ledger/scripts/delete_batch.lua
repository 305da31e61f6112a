-- The batch's objects are gone: forget all of it. ARGV: batch.
local batch = ARGV[1]
local total = tonumber(redis.call('HGET', batch_key(batch), 'total') or '0')
for chunk = 0, math.floor(total / CHUNK) do redis.call('UNLINK', 'lf:states:' .. batch .. ':' .. chunk) end
for _, kind in ipairs({ 'requeued', 'attempts', 'lost_by', 'returned', 'errors', 'reasons', 'results', 'parts' }) do
  redis.call('UNLINK', 'lf:' .. kind .. ':' .. batch)
end
remove_of(batch, 'lf:leftovers')
local slot = math.floor(now_ms() / PACE_SLOT_MS)
for back = 0, PACE_KEEP_S * 1000 / PACE_SLOT_MS do
  redis.call('UNLINK', 'lf:rate:' .. batch .. ':' .. text(slot - back))
end
-- and what its model's workers were told when they last leased
local model = redis.call('HGET', batch_key(batch), 'model')
for _, worker in ipairs(model and redis.call('ZRANGE', 'lf:workers:' .. model, 0, -1) or {}) do
  local answer = redis.call('GET', 'lf:lease_reply:' .. worker)
  if answer and string.find(answer, '\n' .. batch .. '/', 1, true) then redis.call('UNLINK', 'lf:lease_reply:' .. worker) end
end
redis.call('UNLINK', batch_key(batch))
redis.call('ZREM', 'lf:batches', batch)
-- an empty ledger is of no layout
if redis.call('ZCARD', 'lf:batches') == 0 then redis.call('UNLINK', 'lf:schema') end
return 1
