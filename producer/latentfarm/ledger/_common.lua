-- Every key of the ledger. <b> is a batch, <m> a model alias, <c> a chunk of a million jobs, <p> a part of 1,000.
--
-- key                 type    meaning                                                   removed by
-- lf:batches          zset    every batch, by the time it was reserved (ms)             delete
-- lf:open:<m>         set     open batches of a model that are not complete             commit, fail, sweep
-- lf:batch:<b>        hash    model, total, digest, priority, weight, state, cursor,    delete
--                             counters (leased, done, failed, cancelled), epoch,
--                             served (virtual time), times in ms
-- lf:states:<b>:<c>   string  one byte a job: 0 pending 1 leased 2 done 3 failed        delete
--                             4 cancelled; a byte that was never written is pending
-- lf:again:<b>        zset    jobs that came back, by the time from which they may run  lease
-- lf:attempts:<b>     hash    index -> charged attempts, only of jobs that had trouble  delete
-- lf:errors:<b>       hash    index -> {code, message, worker}, of the same jobs        delete
-- lf:leases           zset    "<b>/<index>" in flight, by expiry (ms)                   commit, fail, release, sweep
-- lf:holders          hash    "<b>/<index>" -> "<epoch> <worker>"                       with lf:leases
-- lf:results:<b>      hash    index -> receipt, until its part lies in the bucket       trim
-- lf:parts:<b>        hash    part -> jobs of it that have ended                        trim
-- lf:flush            set     "<b>/<p>": parts whose receipts wait for the bucket       trim
-- lf:pace:<b>:<slot>  string  jobs done in ten seconds; the measured rate               expiry, 3 minutes
-- lf:workers:<m>      zset    workers of a model, by the time last seen (ms)            beat
-- lf:sweeper          string  held by the one worker that sweeps now                    expiry, 2 seconds
--
-- Time is Redis TIME, never a caller's clock. Each script is atomic; this file is put before each.

local PENDING, LEASED, DONE, FAILED, CANCELLED = 0, 1, 2, 3, 4
local CHUNK, PART = 1000000, 1000
local PACE_SLOT_MS, PACE_KEEP_S = 10000, 180

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function batch_key(batch) return 'lf:batch:' .. batch end

local function get_state(batch, index)
  local key = 'lf:states:' .. batch .. ':' .. math.floor(index / CHUNK)
  local at = index % CHUNK
  local byte = redis.call('GETRANGE', key, at, at)
  if byte == '' then return PENDING end
  return string.byte(byte)
end

local function set_state(batch, index, state)
  local key = 'lf:states:' .. batch .. ':' .. math.floor(index / CHUNK)
  redis.call('SETRANGE', key, index % CHUNK, string.char(state))
end

-- numbers beyond 2^53 or in exponent notation never occur: indices and times are far below
local function text(number) return string.format('%.0f', number) end

local function job_name(batch, index) return batch .. '/' .. text(index) end

local function split(name)
  local batch, index = string.match(name, '^(.*)/(%d+)$')
  return batch, tonumber(index)
end

-- The epoch and the worker of the lease on a job, or nil
local function holder(name)
  local value = redis.call('HGET', 'lf:holders', name)
  if not value then return nil end
  local epoch, worker = string.match(value, '^(%d+) (.*)$')
  return tonumber(epoch), worker
end

local function drop_lease(batch, name)
  redis.call('ZREM', 'lf:leases', name)
  redis.call('HDEL', 'lf:holders', name)
  redis.call('HINCRBY', batch_key(batch), 'leased', -1)
end

-- A job reached a terminal state: count it, close its part and perhaps its batch. Returns 1 if the part is full.
local function finish(batch, index, counter, now)
  local key = batch_key(batch)
  redis.call('HINCRBY', key, counter, 1)
  redis.call('HSET', key, 'last_ms', now)
  local facts = redis.call('HMGET', key, 'total', 'done', 'failed', 'cancelled', 'model')
  local total = tonumber(facts[1])
  if tonumber(facts[2]) + tonumber(facts[3]) + tonumber(facts[4]) == total then
    redis.call('HSET', key, 'state', 'complete', 'completed_ms', now)
    redis.call('SREM', 'lf:open:' .. facts[5], batch)
  end
  local part = math.floor(index / PART)
  local ended = redis.call('HINCRBY', 'lf:parts:' .. batch, text(part), 1)
  if ended == math.min(PART, total - part * PART) then
    redis.call('SADD', 'lf:flush', job_name(batch, part))
    return 1
  end
  return 0
end

local function record_failure(batch, index, error, now)
  set_state(batch, index, FAILED)
  redis.call('HSET', 'lf:errors:' .. batch, text(index), error)
  return finish(batch, index, 'failed', now)
end

-- Give a leased job back, to run again from a time on
local function give_back(batch, index, name, from_ms)
  drop_lease(batch, name)
  set_state(batch, index, PENDING)
  redis.call('ZADD', 'lf:again:' .. batch, from_ms, text(index))
end

-- The jobs of a model's open batches that wait to be leased
local function waiting_jobs(model)
  local waiting = 0
  for _, batch in ipairs(redis.call('SMEMBERS', 'lf:open:' .. model)) do
    local f = redis.call('HMGET', batch_key(batch), 'state', 'cursor', 'total')
    if f[1] == 'open' then
      waiting = waiting + tonumber(f[3]) - tonumber(f[2]) + redis.call('ZCARD', 'lf:again:' .. batch)
    end
  end
  return waiting
end
