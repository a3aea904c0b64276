-- Included after `barrier`.  Needs `arrivals`, `draining`, `alive`, `index`, `left`, `inbox` and
-- `memory`; trip() and what it is made of.
-- Invariant: state first, message last: a message that fails or gets lost costs a heartbeat.
--
-- A token has one way: into `arrivals`, then with its index into `draining`, out when its task has
-- run.  `left` knows those that have passed or were broken but have not said yet that they know,
-- and those of which a copy may arrive late: none of them arrives again.

-- Writes fields of the record, which outlives its last use by 3.5 to 7 days.
local function write(...)
  redis.call('HSET', state, 'clock', now, ...)
  if now - (tonumber(was[7]) or 0) > 302400000 then
    was[7] = now
    redis.call('HSET', state, 'schema', 1, 'kept', now)
    redis.call('PEXPIRE', state, 604800000)
  end
end

local function lease_of(token)
  return tonumber(string.match(token, '/(%d+)'))
end

-- Whether this token will not arrive (again).
local function refused(token)
  return (tonumber(redis.call('ZSCORE', left, token)) or 0) > now
end

-- From now on it is refused, for `memory` ms, or for its lease where that is longer.
local function refuse(token)
  local kept = math.max(memory, lease_of(token))
  redis.call('ZADD', left, now + kept, token)
  if redis.call('PTTL', left) < kept then redis.call('PEXPIRE', left, 2 * kept) end
end

-- Forgets those that were refused for long enough.
local function forget()
  for _, token in ipairs(redis.call('ZRANGEBYSCORE', left, '-inf', now, 'LIMIT', 0, 1000)) do
    redis.call('ZREM', left, token)
    redis.call('HDEL', index, token)
  end
end

-- The arrivals of processes that have been silent for a lease leave.
local function drop_dead()
  if redis.call('ZCOUNT', alive, '-inf', now) == 0 then return end
  redis.call('ZREMRANGEBYSCORE', alive, '-inf', now)
  local known = {}
  for _, token in ipairs(redis.call('ZRANGE', arrivals, 0, -1)) do
    local process = process_of(token)
    if known[process] == nil then known[process] = redis.call('ZSCORE', alive, process) end
    if not known[process] then redis.call('ZREM', arrivals, token) end
  end
end

-- How many parties of the last trip have still to run; one that died counts for a claim.
local function undrained()
  return redis.call('ZCOUNT', draining, '(' .. now, '+inf')
end

-- Lets the first `agreed` arrivals pass if there are so many and the ones before them have drained.
-- -> the index of the `asker`, if it is one of them, which gets no message
local function trip(asker)
  if agreed == 0 or redis.call('ZCARD', arrivals) < agreed or undrained() > 0 then return nil end
  local passing = redis.call('ZRANGE', arrivals, 0, agreed - 1)
  redis.call('ZREMRANGEBYRANK', arrivals, 0, agreed - 1)
  redis.call('ZREMRANGEBYSCORE', draining, '-inf', now)
  generation = generation + 1
  write('generation', generation)
  forget()
  local asked
  for i, token in ipairs(passing) do
    redis.call('ZADD', draining, now + math.min(lease_of(token), 5000), token)
    redis.call('HSET', index, token, i - 1)
    refuse(token)
    if token == asker then asked = i - 1 end
  end
  redis.call('PEXPIRE', draining, 10000)
  redis.call('PEXPIRE', index, math.max(redis.call('PTTL', left), 1))
  local waiting = redis.call('ZCARD', arrivals)
  for i, token in ipairs(passing) do
    if token ~= asker then
      redis.pcall('PUBLISH', inbox .. process_of(token),
        't ' .. token .. ' ' .. i - 1 .. ' ' .. waiting)
    end
  end
  return asked
end
