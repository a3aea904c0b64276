-- Included after `grant`.  Needs `waiters`, `alive`, `inbox`, `silence`; hand_over() and tell().
-- `taken` and `waiting` are how many hold a permit and how many stand in the queue, at any moment.
-- Invariant: state first, message last: a message that fails or gets lost costs a heartbeat.
-- The loops are bounded; whoever asks next carries on.
--
-- A token that ends in `/<condition>` is a sleeper's: it waits in that condition's zset until it is
-- notified, which moves it to the lock's queue.  So one that holds the lock or waits for it has been
-- notified, and if it dies its notification goes to another.
local taken = redis.call('ZCARD', holders)
local waiting = redis.call('ZCARD', waiters)
local handed = 0 -- how many of those who waited got a permit
local last_ticket = tonumber(was[7]) or 0

local function process_of(token)
  return string.match(token, '^(.*)%.')
end

local function condition_of(token)
  return string.match(token, '/%d+/(.+)$')
end

local function sleepers_of(condition)
  return string.sub(state, 1, -6) .. 'sleepers:' .. condition
end

-- Who cannot listen asks once a second.  Who has been silent for longer, and does not listen, is
-- dead or has lost its connection: there is no use in giving it anything.
local quiet = math.floor(silence / 4)

-- How long its process has not been heard of, ms.
local heard = {}
local function silence_of(token)
  local process = process_of(token)
  heard[process] = heard[process] or tonumber(redis.call('ZSCORE', alive, process)) or 0
  return now - heard[process]
end

-- The next place in a queue: µs where possible, never one twice.
local function new_ticket()
  last_ticket = math.max(last_ticket + 1, us)
  return last_ticket
end

-- The process of `token` is there.
local function note_alive(token)
  heard[process_of(token)] = now
  if redis.call('ZADD', alive, now, process_of(token)) == 1 then
    redis.call('ZREMRANGEBYSCORE', alive, '-inf', now - silence)
  end
  redis.call('PEXPIRE', alive, 10 * silence)
end

-- The first `count` sleepers that live wait for the lock from now on, in their order.
local function notify(condition, count)
  local sleepers = sleepers_of(condition)
  while count > 0 do
    local token = redis.call('ZPOPMIN', sleepers)[1]
    if not token then break end
    if silence_of(token) < silence then
      waiting = waiting + redis.call('ZADD', waiters, new_ticket(), token)
      count = count - 1
    end
  end
  if redis.call('PEXPIRE', waiters, 10 * silence) == 1 then write('ticket', last_ticket) end
end

local function drop(token)
  taken = taken - redis.call('ZREM', holders, token)
  if block == 0 then redis.call('HDEL', since, token) end
end

-- It died: what it was notified of goes to another.
local function bury(token)
  drop(token)
  local condition = condition_of(token)
  if condition then notify(condition, 1) end
end

-- A process that lets its lease run out counts as quiet, whatever it has asked for before.
local function drop_expired()
  for _, token in ipairs(redis.call('ZRANGEBYSCORE', holders, '-inf', now, 'LIMIT', 0, 100)) do
    if silence_of(token) < quiet then
      heard[process_of(token)] = now - quiet
      redis.call('ZADD', alive, now - quiet, process_of(token))
    end
    bury(token)
  end
end

-- Grants a permit.  Somebody has to find it here if one that was notified dies: sleepers look once a
-- heartbeat.
local function give(token, lease, sleeps)
  local ttl = taken > 0 and redis.call('PTTL', holders) or 0
  grant(token, lease, ttl)
  taken = taken + 1
  if sleeps then
    redis.call('PEXPIRE', holders, math.max(ttl, 2 * lease, 10 * silence))
  end
end

-- Whether no message reaches its process: it is told, once, what changes nothing.
local gone = {}
local function absent(token)
  local process = process_of(token)
  if gone[process] == nil then
    local news = 'w ' .. token .. ' ' .. waiting .. ' ' .. limit
    gone[process] = redis.pcall('PUBLISH', inbox .. process, news) == 0
  end
  return gone[process]
end

-- Serves the queue in order while permits are free; `asker`, if it gets its turn, gets a full
-- `lease` and no message.  A waiter silent for too long is dropped.  One that is quiet and absent
-- keeps its place and is overtaken; it is dropped if it is also late with its heartbeat.
-- -> true: the asker was served
local function hand_over(asker, lease)
  if taken >= limit then drop_expired() end
  local overtaken = 0
  for _ = 1, 1000 do
    local head = taken < limit and redis.call('ZRANGE', waiters, overtaken, overtaken)[1]
    if not head then return false end
    local silent = head == asker and 0 or silence_of(head)
    if silent >= silence then
      waiting = waiting - redis.call('ZREM', waiters, head)
      bury(head)
    elseif silent >= quiet and absent(head) then
      -- A sleeper is not dropped so early: exactly as many wake as were notified.
      if silent <= silence / 2 or condition_of(head) then
        overtaken = overtaken + 1
      else
        waiting = waiting - redis.call('ZREM', waiters, head)
      end
    else
      waiting = waiting - redis.call('ZREM', waiters, head)
      local claim, condition = string.match(head, '/(%d+)/?(.*)$')
      claim = head == asker and lease or tonumber(claim)
      give(head, claim, condition ~= '')
      if head == asker then return true end
      handed = handed + 1
      redis.pcall('PUBLISH', inbox .. process_of(head),
        string.format('g %s %.0f %d %d %d', head, fence, claim, waiting, limit))
    end
  end
  return false
end

-- Tells the processes that hold permits how many wait, and the limit.
local function tell(asker)
  local told = {[asker] = true}
  local news = ' ' .. waiting .. ' ' .. limit
  for _, token in ipairs(redis.call('ZRANGE', holders, 0, 31)) do
    local process = process_of(token)
    if not told[process] then
      told[process] = true
      redis.pcall('PUBLISH', inbox .. process, 'w ' .. token .. news)
    end
  end
end
